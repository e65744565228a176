# SPDX-License-Identifier: Apache-2.0
"""VXLAN between a switch and the kernel's `vxlan` (underlay.py draws the hosts), over IPv4 and IPv6, with and without
UDP's checksums.

    guest | up0, tap - switch on host 1 - VNI 100 - vx on host 2, with addresses

Nothing is on the wire but finished packets that fit it, and tshark finds nothing wrong with them, nor with what is in
them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from pvswitch.namespace import Namespace
from tests.conftest import RequirePeer
from tests.system import underlay
from tests.system.conftest import from_environment, ping, transfer
from tests.system.recording import ABSENT, GOOD, explained, record
from tests.system.traffic import pings, serve_iperf3, udp_rounds
from tests.system.underlay import GUEST, HEADERS, PEER, ROOM, SOURCE_PORTS, Fabric, Host, HostedSwitch
from tests.system.uplinks import FAMILIES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 4)
FLOWS = 8


@dataclass(frozen=True)
class Lab:
    """A switch on host 1 with a guest, the kernel on host 2."""

    family: str  # of the underlay
    checksums: bool
    fabric: Fabric
    host: Namespace
    guest: Host
    peer: Host
    switch: HostedSwitch

    @property
    def room(self) -> int:
        """The largest packet of a guest."""
        return ROOM[self.family]


CASES = [(family, checksums) for family in FAMILIES for checksums in (True, False)]


def named(case: tuple[str, bool]) -> str:
    return f"{case[0]}-{'sums' if case[1] else 'no_sums'}"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=CASES, ids=named)
async def lab(request: pytest.FixtureRequest, host_root: Path, require_peer: RequirePeer) -> AsyncIterator[Lab]:
    require_peer("tshark", package="tshark")
    family, checksums = request.param
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("guest", host_root) as guest,
        Host("peer", host_root) as peer,
    ):
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        words = underlay.checksum_words(family, checksums)
        await underlay.add_vxlan(peer, 2, [1], family=family, words=words, found=PEER)
        tunnel = underlay.tunnel(1, [2], family, udp_csum=checksums)
        async with underlay.hosted(
            host, underlay.one_bridge(guest=underlay.tap(guest, GUEST), tunnel=tunnel)
        ) as switch:
            await guest.ip(f"link set up0 mtu {ROOM[family]}")
            await underlay.reaches(guest, PEER["IPv4"])
            await underlay.reaches(peer, GUEST["IPv6"])
            for far in (guest, peer):
                await far.check("echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")
                await serve_iperf3(far)
            yield Lab(family, checksums, fabric, host, guest, peer, switch)


def both_ways(lab: Lab) -> list[tuple[Host, Host, dict[str, str]]]:
    return [(lab.guest, lab.peer, PEER), (lab.peer, lab.guest, GUEST)]


@pytest.mark.parametrize("family", FAMILIES)
async def test_ping(lab: Lab, family: str) -> None:
    """Small ones, those that fill the inner MTU, and those that come in fragments."""
    for source, target, found in both_ways(lab):
        full = lab.room - HEADERS[family]
        await ping(source, target, found[family], count=10, size=56)
        await ping(source, target, f"-M do {found[family]}", count=10, size=full)
        await ping(source, target, found[family], count=10, size=4000)


async def test_neighbours_are_found_and_learned(lab: Lab) -> None:
    """ARP and ND, by flooding to the remote; what is behind the tunnel is known to both sides then."""
    for device, far in (("up0", lab.guest), ("vx", lab.peer)):
        await far.ip(f"neigh flush dev {device}")
    for family in FAMILIES:
        await lab.guest.check(f"ping -c 1 -W 5 {PEER[family]}")
    near, far_mac = await underlay.mac_of(lab.guest, "up0"), await underlay.mac_of(lab.peer, "vx")
    listed = (await lab.peer.command("bridge", "fdb", "show", "dev", "vx")).splitlines()
    wanted = f"{near} dst {underlay.underlay(1)[lab.family]}"
    assert [line for line in listed if line.startswith(wanted)], listed
    entry = await lab.switch.learned(far_mac)
    assert entry["port"] == "tunnel"
    assert underlay.underlay(2)[lab.family] in json.dumps(entry), entry


async def test_multicast(lab: Lab) -> None:
    """Each side hears the group of all hosts, and its answers come back, each once."""
    for source, device in ((lab.guest, "up0"), (lab.peer, "vx")):
        for group in ("224.0.0.1", "ff02::1"):
            await pings(source, f"-L -I {device} {group}", 3, interval=0.2)


@pytest.mark.parametrize("family", FAMILIES)
async def test_udp(lab: Lab, family: str) -> None:
    """Every datagram comes back whole; those of 4000 bytes in fragments made by the guests."""
    for source, target, found in both_ways(lab):
        for size in (8, lab.room - HEADERS[family], 4000):
            await udp_rounds(source, target, found[family], rounds=10, datagrams=16, size=size, gso=False)


async def iperf(source: Host, address: str, words: str) -> None:
    """Let so much TCP go from a host to another one, or with --reverse from there."""
    report = json.loads(await source.check(f"iperf3 --client {address} --bytes {MEGABYTES << 20} --json {words}", 60))
    # What is still on its way when the sender is done isn't received any more.
    assert report["end"]["sum_sent"]["bytes"] >= MEGABYTES << 20
    assert report["end"]["sum_received"]["bytes"] > 0


@pytest.mark.parametrize("family", FAMILIES)
async def test_tcp_and_what_is_on_the_wire(lab: Lab, family: str, tmp_path: Path) -> None:
    """Several connections at full speed: no fragment, nothing too long, no bad checksum, neither outside nor inside."""
    async with record(lab.fabric, "v1", tmp_path / "seen"):
        for words in ("", "--reverse"):
            await iperf(lab.guest, PEER[family], f"--parallel {FLOWS} {words}")
        for source, target, found in ((lab.guest, lab.peer, GUEST), (lab.peer, lab.guest, PEER)):
            address = found[family] if family == "IPv4" else f"[{found[family]}]"
            await transfer(source, target, address, megabytes=MEGABYTES)
    fields = {
        "length": "frame.len",
        "ip": "ip.checksum.status",
        "tcp": "tcp.checksum.status",
        "udp": "udp.checksum.status",
        "fragments": "ip.frag_offset",
        "more": "ip.flags.mf",
        "fragments6": "ipv6.fraghdr.ident",
        "sport": "udp.srcport",
        "dport": "udp.dstport",
        "vni": "vxlan.vni",
        "flags": "vxlan.flags",
        "from": "ip.src" if lab.family == "IPv4" else "ipv6.src",
        "flow": "tcp.stream",
    }
    packets = [
        packet
        for packet in await explained(tmp_path / "seen", fields, inner=True)
        if packet["dport"].split(",")[0] == str(underlay.VXLAN_PORT)
    ]
    judge(lab, packets)


def judge(lab: Lab, packets: list[dict[str, str]]) -> None:
    """Fail when anything is wrong with the packets of the tunnel."""
    ours, theirs = (underlay.underlay(number)[lab.family] for number in (1, 2))
    senders = [packet["from"].split(",")[0] for packet in packets]
    assert min(senders.count(ours), senders.count(theirs)) > (MEGABYTES << 20) / lab.room
    assert max(int(packet["length"]) for packet in packets) <= underlay.MTU + 14
    assert {packet["vni"] for packet in packets} == {"100"}
    assert {packet["flags"] for packet in packets} == {"0x0800"}
    fragments = [
        packet
        for packet in packets
        if packet["fragments6"] or set(f"{packet['fragments']},{packet['more']}".split(",")) - {"0", "False", ""}
    ]
    assert not fragments, fragments[:3]
    wanted = GOOD if lab.checksums else ABSENT[lab.family]
    for packet in packets:
        assert set(packet["ip"].split(",")) <= {GOOD, ""}, packet
        assert set(packet["tcp"].split(",")) <= {GOOD, ""}, packet
        assert packet["udp"].split(",")[0] == wanted, packet
    # The frames of a flow leave by one port, those of several by several.
    sources: dict[str, set[int]] = {}
    for packet, sender in zip(packets, senders, strict=True):
        if packet["flow"] and sender == ours:
            sources.setdefault(packet["flow"], set()).add(int(packet["sport"].split(",")[0]))
    assert len(sources) >= 2 * FLOWS
    assert all(len(ports) == 1 for ports in sources.values()), sources
    used = set.union(*sources.values())
    assert len(used) >= 4, sources
    assert used <= set(SOURCE_PORTS), sources


async def test_large_frames_are_cut_and_joined(lab: Lab) -> None:
    """With the underlay's offloads on at our end a run of packets is one for the kernel: it cuts it, and joins it."""
    await lab.host.command("ethtool", "-K", "eth0", "tx", "on", "gso", "on", "gro", "on")
    try:
        before = await lab.switch.stats("guest")
        for words in ("", "--reverse"):
            await iperf(lab.guest, PEER["IPv4"], words)
        after = await lab.switch.stats("guest")
        assert after["rx_1523_to_max_packets"] > before["rx_1523_to_max_packets"]
        assert after["rx_errors"] == before["rx_errors"]
        for source, target, found in both_ways(lab):
            await udp_rounds(source, target, found["IPv4"], rounds=10, datagrams=32, size=1200, gso=True)
    finally:
        await lab.host.command("ethtool", "-K", "eth0", "tx", "off", "gso", "off", "gro", "off")
