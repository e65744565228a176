# SPDX-License-Identifier: Apache-2.0
"""Frames that scapy made, from guest to guest through a real switch, for every set of features and way of polling."""

from __future__ import annotations

import contextlib
import itertools
from functools import partial
from typing import Any

import pytest
from scapy.contrib.lacp import LACP
from scapy.contrib.lldp import LLDPDU, LLDPDUChassisID, LLDPDUEndOfLLDPDU, LLDPDUPortID, LLDPDUTimeToLive
from scapy.contrib.slowprot import SlowProtocol
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, LLC, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet, Raw

from pvswitch.driver import Layout
from pvswitch.generator import Load
from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from tests.wire.lab import (
    FEATURE_SETS,
    RINGS,
    SENTINEL_TYPE,
    expect,
    expect_only,
    flush_frames,
    frame,
    reach,
    stats,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MACS = {port: f"02:00:00:00:00:0{i}" for i, port in enumerate("abcm", start=1)}
LARGEST = 14 + 65_536
BUFFER = 2048
LINK_LOCAL = {"bpdu": "01:80:c2:00:00:00", "lacp": "01:80:c2:00:00:02", "lldp": "01:80:c2:00:00:0e"}
TO_ALL = "ff:ff:ff:ff:ff:ff"
VLANS = (Dot1Q(vlan=7), Dot1AD(vlan=100), Dot1AD(vlan=1))  # of the frames below


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def payload(length: int) -> Raw:
    return Raw(bytes(i * 13 & 0xFF for i in range(length)))


def conversation(src: str, dst: str) -> dict[str, bytes]:
    """One frame of every kind, by name."""
    v4, v6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
    ethernet = Ether(src=src, dst=dst)
    packets: dict[str, Packet] = {
        "arp_request": Ether(src=src, dst=TO_ALL) / ARP(op="who-has", hwsrc=src, pdst="192.0.2.2"),
        "arp_reply": ethernet / ARP(op="is-at", hwsrc=src, hwdst=dst),
        "tcp": ethernet / v4 / TCP(sport=1024, dport=80, flags="S"),
        "udp": ethernet / v4 / UDP(sport=1024, dport=53) / payload(512),
        "icmp": ethernet / v4 / ICMP() / payload(56),
        "fragment": ethernet / IP(src="192.0.2.1", dst="192.0.2.2", flags="MF", frag=7) / payload(1480),
        "tcp6": ethernet / v6 / TCP(sport=1024, dport=80, flags="PA") / payload(1440),
        "udp6": ethernet / v6 / UDP(sport=1024, dport=53) / payload(33),
        "icmp6": ethernet / v6 / ICMPv6EchoRequest(data=b"x" * 56),
        "neighbour": Ether(src=src, dst="33:33:ff:00:00:02") / v6 / ICMPv6ND_NS(tgt="2001:db8::2"),
        "vlan": ethernet / Dot1Q(vlan=7, prio=5) / v4 / UDP() / payload(1472),
        "priority": ethernet / Dot1Q(vlan=0, prio=7) / v4 / UDP(),
        "qinq": ethernet / Dot1AD(vlan=100) / Dot1Q(vlan=4095) / v4 / UDP() / payload(1472),
        "three_tags": ethernet / Dot1AD(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / v4,
        "jumbo": ethernet / v4 / UDP() / payload(9000 - 28),
        "one_buffer": ethernet / payload(BUFFER - 12 - 14),
        "one_byte_more": ethernet / payload(BUFFER - 12 - 13),
        "largest": ethernet / payload(LARGEST - 14),
        "header_only": ethernet,
        "runt": ethernet / payload(1),
        "below_minimum": ethernet / payload(45),
        "bpdu": Dot3(src=src, dst=LINK_LOCAL["bpdu"]) / LLC() / STP(),
        "lacp": Ether(src=src, dst=LINK_LOCAL["lacp"]) / SlowProtocol() / LACP(),
        "lldp": Ether(src=src, dst=LINK_LOCAL["lldp"])
        / LLDPDU()
        / LLDPDUChassisID(subtype=LLDPDUChassisID.SUBTYPE_MAC_ADDRESS, id=src)
        / LLDPDUPortID(subtype=LLDPDUPortID.SUBTYPE_MAC_ADDRESS, id=src)
        / LLDPDUTimeToLive(ttl=120)
        / LLDPDUEndOfLLDPDU(),
    }
    return {name: bytes(packet) for name, packet in packets.items()}


def guest(switch: SwitchProcess, port: str, **conf: Any) -> Guest:
    """Able to send every frame above; without mergeable buffers also to receive them."""
    defaults: dict[str, Any] = {"mac": mac_bytes(MACS[port]), "tx_buf_size": LARGEST + 12}
    features = conf.get("features", FEATURE_SETS["all"])
    defaults["rx_buf_size"] = BUFFER if features & Feature.MRG_RXBUF else LARGEST + 12
    return Guest(switch.port_socket(port), **{**defaults, **conf})


def layouts(features: int) -> list[Layout | None]:
    """How frames are laid out in turn: as drivers do, and as nobody does."""
    packed, in_order = bool(features & Feature.RING_PACKED), bool(features & Feature.IN_ORDER)
    found: list[Layout | None] = [None]
    if features & Feature.ANY_LAYOUT or features & Feature.VERSION_1:
        cuts = (5, 12, 20, 127, 128, 129, 139, 140, 141)
        found += [Layout(cuts=(12,)), Layout(cuts=cuts, shuffle=packed or not in_order)]
    if features & Feature.INDIRECT_DESC:
        found += [Layout(cuts=(10, 26, 600), indirect=True, direct=not packed), Layout(cuts=(1, 2, 3), indirect=True)]
    return found


async def queues_agree(switch: SwitchProcess, port: str) -> bool:
    """The rings of all queue pairs together count what the port does."""
    seen = await stats(switch, port)
    return all(
        sum(queue[what] for queue in seen["queues"] if queue["direction"] == direction) == seen[f"{direction}_{what}"]
        for direction in ("rx", "tx")
        for what in ("packets", "bytes")
    )


@pytest.mark.parametrize("features", FEATURE_SETS.values(), ids=FEATURE_SETS)
async def test_every_kind_of_frame(
    polled_switch: SwitchProcess, stack: contextlib.AsyncExitStack, features: int
) -> None:
    """To b alone once b is known, to all others before that and for groups; and both sides count the same."""
    a, b = [await stack.enter_async_context(guest(polled_switch, p, features=features)) for p in "ab"]
    c = await stack.enter_async_context(guest(polled_switch, "c"))
    for port in "abc":
        await polled_switch.wait_link(port)
    await b.announce()
    for tag in VLANS:  # each has addresses of its own
        await b.send(bytes(Ether(src=MACS["b"], dst=TO_ALL) / tag / payload(46)))
    await flush_frames([a, c], b)
    await b.drain()
    before = {port: await stats(polled_switch, port) for port in "abc"}
    counted = {g: (g.low.counters(0), g.low.counters(1)) for g in (a, b, c)}

    frames = conversation(MACS["a"], MACS["b"])
    shapes = itertools.cycle(layouts(features))
    for name, sent in frames.items():
        await a.send(sent, layout=next(shapes))
        buffers = await expect(b, [sent])
        merged = -(-(b.low.hdr_len + len(sent)) // BUFFER) if features & Feature.MRG_RXBUF else 1
        assert buffers == [merged], name
    await expect_only(c, b, [sent for sent in frames.values() if sent[0] & 1])
    assert (await a.recv())[12:14] == SENTINEL_TYPE
    assert a.recv_nowait() is None
    await a.drain()
    await b.drain()

    for port, g in zip("abc", (a, b, c), strict=True):
        rx, tx = g.low.counters(0), g.low.counters(1)
        frames_in, bytes_in = rx.frames - counted[g][0].frames, rx.bytes - counted[g][0].bytes
        frames_out, bytes_out = tx.frames - counted[g][1].frames, tx.bytes - counted[g][1].bytes
        after = await reach(
            polled_switch,
            port,
            {
                "rx_packets": before[port]["rx_packets"] + frames_out,
                "rx_bytes": before[port]["rx_bytes"] + bytes_out,
                "tx_packets": before[port]["tx_packets"] + frames_in,
                "tx_bytes": before[port]["tx_bytes"] + bytes_in,
                "rx_drops": before[port]["rx_drops"],
                "tx_drops": before[port]["tx_drops"],
            },
        )
        assert rx.errors == tx.errors == 0
        assert sum(n for key, n in after.items() if "_to_" in key) == after["rx_packets"]
        await until(partial(queues_agree, polled_switch, port), "the counters of the queues to be those of the port")


@pytest.mark.parametrize("rings", RINGS)
async def test_many_frames_both_ways(
    polled_switch: SwitchProcess, stack: contextlib.AsyncExitStack, rings: str
) -> None:
    """Round the rings again and again, with only a few in flight: none lost, reordered or changed."""
    a, b = [await stack.enter_async_context(guest(polled_switch, p, rx_buf_size=BUFFER, **RINGS[rings])) for p in "ab"]
    await b.announce()
    await flush_frames([a], b)
    for sender, receiver in ((a, b), (b, a)):
        load = Load(dst=receiver.mac, src=sender.mac, len=200, window=64, level=2, frames=20_000, stall=30.0)
        result = await sender.generate([receiver], load)
        assert (result.sent, result.received) == (20_000, 20_000)
        assert (result.lost, result.reordered, result.corrupted, result.foreign, result.errors) == (0,) * 5


async def test_rarp_is_learned_and_broadcast(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a, b = [await stack.enter_async_context(guest(switch, p)) for p in "ab"]
    b.mac = mac_bytes("02:00:00:00:77:0b")
    await b.announce()
    seen = Ether(await a.recv())
    assert (seen.dst, seen.src, seen.type, len(seen)) == (TO_ALL, "02:00:00:00:77:0b", 0x8035, 60)
    rarp = ARP(bytes(seen.payload))
    assert (rarp.op, rarp.hwsrc, rarp.hwdst) == (3, "02:00:00:00:77:0b", "02:00:00:00:77:0b")
    fdb = (await switch.get("/bridges/br0/fdb"))["items"]
    assert [(e["port"], e["type"]) for e in fdb if e["mac"] == "02:00:00:00:77:0b"] == [("b", "dynamic")]
    await expect_only(b, a)


async def test_source_of_a_sent_frame_is_learned_and_forgotten_with_the_link(
    switch: SwitchProcess, stack: contextlib.AsyncExitStack
) -> None:
    async def port_of(mac: bytes) -> str | None:
        fdb = (await switch.get("/bridges/br0/fdb"))["items"]
        return next((e["port"] for e in fdb if e["mac"] == mac.hex(":")), None)

    a = await stack.enter_async_context(guest(switch, "a"))
    b = await stack.enter_async_context(guest(switch, "b"))
    await expect_only(b, a)
    assert await port_of(a.mac) == "a"
    await a.close()
    await switch.wait_link("a", "waiting_for_frontend")
    assert await port_of(a.mac) is None


@pytest.mark.parametrize(
    "tags", [b"", b"\x81\x00\x00\x07", b"\x88\xa8\x00\x64\x81\x00\x00\x07"], ids=["none", "q", "ad"]
)
async def test_mtu_is_of_the_l3_part(switch: SwitchProcess, stack: contextlib.AsyncExitStack, tags: bytes) -> None:
    a = await stack.enter_async_context(guest(switch, "a"))
    m = await stack.enter_async_context(guest(switch, "m"))
    assert m.offered & Feature.MTU
    assert not a.offered & Feature.MTU
    await m.announce()
    await flush_frames([a], m)
    before = await stats(switch, "m")
    head = m.mac + a.mac + tags + b"\x88\xb5"
    await a.send(head + bytes(1500))
    await a.send(head + bytes(1501))
    await expect_only(m, a, [head + bytes(1500)])
    drops = dict(before["tx_drops"])
    drops["mtu_exceeded"] = drops.get("mtu_exceeded", 0) + 1
    await reach(switch, "m", {"tx_drops": drops, "tx_packets": before["tx_packets"] + 2})


SWITCHABLE = {
    "mrg_rxbuf": Feature.MRG_RXBUF,
    "event_idx": Feature.EVENT_IDX,
    "indirect": Feature.INDIRECT_DESC,
    "packed": Feature.RING_PACKED,
    "in_order": Feature.IN_ORDER,
}


@pytest.mark.parametrize("feature", SWITCHABLE)
async def test_a_feature_switched_off_is_not_offered(
    switch: SwitchProcess, stack: contextlib.AsyncExitStack, feature: str
) -> None:
    bit, both = SWITCHABLE[feature], {"packed": True, "in_order": True}
    await switch.cli("port", "set", "c", f"features.{feature}=false")
    try:
        c = await stack.enter_async_context(guest(switch, "c", **both))
        assert not c.offered & bit
        assert not c.features & bit
        a = await stack.enter_async_context(guest(switch, "a", **both))
        assert a.features & bit
        await expect_only(c, a)
    finally:
        await switch.cli("port", "set", "c", f"features.{feature}=true")


async def test_frame_larger_than_the_buffers(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a = await stack.enter_async_context(guest(switch, "a"))
    features = FEATURE_SETS["no_mrg_rxbuf"]
    b = await stack.enter_async_context(guest(switch, "b", features=features, rx_buf_size=BUFFER))
    await b.announce()
    await flush_frames([a], b)
    before = (await stats(switch, "b"))["tx_drops"]
    fits = frame(b.mac, a.mac, BUFFER - 12)
    await a.send(fits)
    await a.send(frame(b.mac, a.mac, BUFFER - 11))
    await expect_only(b, a, [fits])
    await reach(switch, "b", {"tx_drops": {**before, "guest_rx_too_small": before.get("guest_rx_too_small", 0) + 1}})


@pytest.mark.parametrize("rings", RINGS)
async def test_receiver_that_does_not_read(switch: SwitchProcess, stack: contextlib.AsyncExitStack, rings: str) -> None:
    """As many frames as it has buffers; the rest is counted, and order is kept when it reads again."""
    a = await stack.enter_async_context(guest(switch, "a", **RINGS[rings]))
    b = await stack.enter_async_context(guest(switch, "b", queue_size=64, **RINGS[rings]))
    await b.announce()
    await flush_frames([a], b)
    before = (await stats(switch, "b"))["tx_drops"]
    sent = [frame(b.mac, a.mac, 100, seed=i) for i in range(100)]
    for one in sent:
        await a.send(one)
    await a.drain()
    await expect(b, sent[:64])
    await expect_only(b, a)
    await reach(switch, "b", {"tx_drops": {**before, "guest_rx_full": before.get("guest_rx_full", 0) + 36}})
