# SPDX-License-Identifier: Apache-2.0
"""What a guest may try to be somebody else: a table of attempts, and of what an honest guest needs all the same."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, reach, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02"
ALL = "ff:ff:ff:ff:ff:ff"
IP4, IP6, LINK = "10.0.0.1", "2001:db8::1", "fe80::1"
VICTIM4, VICTIM6 = "10.0.0.2", "2001:db8::2"
RULES = {"max_macs": 1, "allowed_macs": [OWN], "allowed_ips": [IP4, IP6, LINK]}
CONFIG = {
    "ports": {"forger": {"tag": 10, "port_security": RULES}, "victim": {"tag": 10}, "other": {"tag": 20}, "trunk": {}}
}

E = Ether(src=OWN, dst=ALL)
E6 = Ether(src=OWN, dst="33:33:00:00:00:01")
FRAGMENT = IPv6ExtHdrFragment(id=7, nh=58, m=1)


def arp(**words: Any) -> Packet:
    return E / ARP(**{"hwsrc": OWN, "psrc": IP4, "pdst": VICTIM4, **words})


def ip6(**words: Any) -> Packet:
    return E6 / IPv6(**{"src": LINK, "dst": "ff02::1", **words})


HONEST: dict[str, Packet] = {
    "ARP request": arp(),
    "ARP reply": arp(op=2),
    "ARP probe": arp(psrc="0.0.0.0", pdst=IP4),
    "ping": E / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "TCP": E / IP(src=IP4, dst=VICTIM4) / TCP(dport=80),
    "IPv4 fragment": E / IP(src=IP4, dst=VICTIM4, flags="MF", frag=0) / UDP() / Raw(bytes(64)),
    "DHCP discover": E
    / IP(src="0.0.0.0", dst="255.255.255.255")
    / UDP(sport=68, dport=67)
    / BOOTP()
    / DHCP(options=["end"]),
    "priority-tagged ping": E / Dot1Q(vlan=0, prio=5) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "ping6": ip6(src=IP6) / ICMPv6EchoRequest(),
    "neighbour solicitation": ip6() / ICMPv6ND_NS(tgt=VICTIM6) / ICMPv6NDOptSrcLLAddr(lladdr=OWN),
    "duplicate address detection": ip6(src="::") / ICMPv6ND_NS(tgt=IP6),
    "neighbour advertisement": ip6(src=IP6) / ICMPv6ND_NA(tgt=IP6) / ICMPv6NDOptDstLLAddr(lladdr=OWN),
    "router solicitation": ip6() / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=OWN),
    "listener report": ip6(src="::") / IPv6ExtHdrHopByHop(options=[PadN()]) / ICMPv6MLReport2(),
    "UDP behind extension headers": ip6(src=IP6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(),
    "fragmented ping6, first": ip6(src=IP6) / FRAGMENT / ICMPv6EchoRequest(data=bytes(64)),
    "fragmented ping6, second": ip6(src=IP6) / IPv6ExtHdrFragment(id=7, nh=58, offset=9) / Raw(bytes(64)),
}
FORGED: dict[str, Packet] = {
    "another source MAC": Ether(src=OTHER, dst=ALL) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "a multicast source MAC": Ether(src="03:00:00:00:00:01", dst=ALL) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "no source MAC": Ether(src="00:00:00:00:00:00", dst=ALL) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "another IPv4 source": E / IP(src=VICTIM4, dst="10.0.0.3") / ICMP(),
    "no IPv4 source": E / IP(src="0.0.0.0", dst=VICTIM4) / ICMP(),
    "no IPv4 source, UDP": E / IP(src="0.0.0.0", dst=VICTIM4) / UDP(sport=67, dport=68),
    "a DHCP request in fragments": E / IP(src="0.0.0.0", dst="255.255.255.255", flags="MF") / UDP(sport=68, dport=67),
    "broadcast as IPv4 source": E / IP(src="255.255.255.255", dst=VICTIM4) / ICMP(),
    "a short IPv4 header": E / Raw(bytes(IP(src=IP4, dst=VICTIM4))[:19]),
    "IPv6 in an IPv4 frame": Ether(src=OWN, dst=ALL, type=0x0800) / Raw(bytes(IPv6(src=IP6, dst=VICTIM6) / UDP())),
    "ARP for another": arp(psrc=VICTIM4),
    "ARP reply for another": arp(op=2, psrc=VICTIM4, hwsrc=OWN),
    "ARP with another MAC": arp(hwsrc=OTHER),
    "ARP reply from nobody": arp(op=2, psrc="0.0.0.0", pdst=IP4),
    "ARP probe for another": arp(psrc="0.0.0.0"),
    "ARP of another operation": arp(op=3),
    "ARP of another hardware": arp(hwtype=6),
    "ARP with long addresses": E / ARP(hwlen=8, hwsrc=OWN, psrc=IP4, pdst=VICTIM4),
    "a cut ARP": Ether(src=OWN, dst=ALL, type=0x0806) / Raw(bytes(ARP(hwsrc=OWN, psrc=IP4))[:20]),
    "RARP": Ether(src=OWN, dst=ALL, type=0x8035) / ARP(hwsrc=OWN, psrc=IP4, op=3),
    "another IPv6 source": ip6(src=VICTIM6) / UDP(),
    "no IPv6 source": ip6(src="::") / UDP(),
    "no IPv6 source, ping": ip6(src="::") / ICMPv6EchoRequest(),
    "advertisement for another": ip6(src=IP6) / ICMPv6ND_NA(tgt=VICTIM6) / ICMPv6NDOptDstLLAddr(lladdr=OWN),
    "advertisement with another MAC": ip6(src=IP6) / ICMPv6ND_NA(tgt=IP6) / ICMPv6NDOptDstLLAddr(lladdr=OTHER),
    "advertisement from nobody": ip6(src="::") / ICMPv6ND_NA(tgt=VICTIM6),
    "solicitation with another MAC": ip6() / ICMPv6ND_NS(tgt=VICTIM6) / ICMPv6NDOptSrcLLAddr(lladdr=OTHER),
    "another's duplicate address detection": ip6(src="::") / ICMPv6ND_NS(tgt=VICTIM6),
    "router solicitation with another MAC": ip6() / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=OTHER),
    "router advertisement": ip6() / ICMPv6ND_RA() / ICMPv6NDOptSrcLLAddr(lladdr=OWN),
    "redirect": ip6() / ICMPv6ND_Redirect(tgt=LINK, dst=VICTIM6),
    "an option of no length": ip6(src=IP6) / ICMPv6ND_NA(tgt=IP6) / Raw(bytes([2, 0, 2, 0, 0, 0, 0, 1])),
    "an option beyond the end": ip6(src=IP6) / ICMPv6ND_NA(tgt=IP6) / Raw(bytes([2, 9, 2, 0, 0, 0, 0, 1])),
    "fragmented advertisement": ip6(src=IP6) / FRAGMENT / ICMPv6ND_NA(tgt=VICTIM6) / ICMPv6NDOptDstLLAddr(lladdr=OWN),
    "honest advertisement in fragments": ip6(src=IP6)
    / FRAGMENT
    / ICMPv6ND_NA(tgt=IP6)
    / ICMPv6NDOptDstLLAddr(lladdr=OWN),
    "advertisement behind headers": ip6(src=IP6)
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrRouting()
    / ICMPv6ND_NA(tgt=VICTIM6),
    "advertisement beyond the head": ip6(src=IP6)
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(100))])
    / ICMPv6ND_NA(tgt=IP6),
    "many extension headers": ip6(src=IP6, nh=60)
    / Raw(bytes([60, 0, 1, 4, 0, 0, 0, 0]) * 9 + bytes([58, 0, 1, 4, 0, 0, 0, 0]) + bytes(ICMPv6ND_NA(tgt=VICTIM6))),
    "an extension header beyond the end": ip6(src=IP6, nh=60) / Raw(bytes([58, 200, 1, 4, 0, 0, 0, 0])),
    "the port's own VLAN": E / Dot1Q(vlan=10) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "another VLAN": E / Dot1Q(vlan=20) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "two tags": E / Dot1Q(vlan=10) / Dot1Q(vlan=20) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "a tag behind a priority tag": E / Dot1Q(vlan=0) / Dot1Q(vlan=20) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "an S-tag": E / Dot1AD(vlan=20) / IP(src=IP4, dst=VICTIM4) / ICMP(),
    "IPv4 in LLC": Dot3(src=OWN, dst=ALL) / LLC() / SNAP(OUI=0, code=0x0800) / IP(src=VICTIM4, dst="10.0.0.3") / ICMP(),
    "another protocol": Ether(src=OWN, dst=ALL, type=0x88B5) / Raw(bytes(46)),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guests(switch: SwitchProcess) -> AsyncIterator[dict[str, Guest]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(Guest(switch.port_socket(name))) for name in CONFIG["ports"]}


async def attempt(switch: SwitchProcess, guests: dict[str, Guest], packet: Packet) -> tuple[list[str], dict[str, int]]:
    """Who gets it, and what was counted at the sender's port."""
    before = await stats(switch, "forger")
    reached = {name: (await stats(switch, name))["tx_packets"] for name in guests}
    await guests["forger"].send(bytes(packet))
    after = await reach(switch, "forger", {"rx_packets": before["rx_packets"] + 1})
    got = []
    for name, guest in guests.items():
        for _ in range((await stats(switch, name))["tx_packets"] - reached[name]):
            await guest.recv(PATIENCE)
            got.append(name)
    drops = {key: n - before["rx_drops"].get(key, 0) for key, n in after["rx_drops"].items()}
    return got, {key: n for key, n in drops.items() if n}


@pytest.mark.parametrize("what", HONEST)
async def test_an_honest_guest_is_heard(switch: SwitchProcess, guests: dict[str, Guest], what: str) -> None:
    assert await attempt(switch, guests, HONEST[what]) == (["victim", "trunk"], {})


@pytest.mark.parametrize("what", FORGED)
async def test_a_forged_frame_reaches_nobody(switch: SwitchProcess, guests: dict[str, Guest], what: str) -> None:
    got, drops = await attempt(switch, guests, FORGED[what])
    assert got == []
    assert drops in ({"port_security": 1}, {"vlan_filtered": 1})
    page = await switch.get("/bridges/br0/fdb?port=forger")
    assert {item["mac"] for item in page["items"]} <= {OWN}
