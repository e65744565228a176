# SPDX-License-Identifier: Apache-2.0
"""What a tunnel's packets look like from outside, and what comes in of those that look otherwise.

guest | up0, tap - switch on host 1 - VNI 100 - host 2, whose packets are made by hand, or the kernel's vxlan there
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import mac2str

from pvswitch.namespace import Namespace
from pvswitch.netlink import run_in_namespace
from tests.system import underlay
from tests.system.raw import RawSocket
from tests.system.traffic import pings, serve_iperf3
from tests.system.underlay import (
    GUEST,
    HEADERS,
    PEER,
    SOURCE_PORTS,
    VXLAN_PORT,
    Fabric,
    Host,
    HostedSwitch,
    Vtep,
    running,
    vxlan,
)
from tests.system.uplinks import FAMILIES, offload

pytestmark = pytest.mark.timeout(90)

FAR = "02:00:00:00:fa:02"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
NOT_ECT, ECT1, ECT0, CE = range(4)
DROPPED = None
# RFC 6040, figure 4: what an inner field becomes, by it and the outer one.
DECAPSULATED = {
    **{(NOT_ECT, outer): NOT_ECT for outer in (NOT_ECT, ECT0, ECT1)},
    (NOT_ECT, CE): DROPPED,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    **{(CE, outer): CE for outer in (NOT_ECT, ECT0, ECT1, CE)},
}


def frame(family: str, tos: int = 0, sport: int = 1000, size: int = 100, dst: str = FAR) -> Packet:
    """A UDP frame of the guest."""
    head: Packet
    if family == "IPv6":
        head = IPv6(src=GUEST["IPv6"], dst=PEER["IPv6"], tc=tos)
    else:
        head = IP(src=GUEST["IPv4"], dst=PEER["IPv4"], tos=tos)
    return Ether(src="02:00:00:00:aa:01", dst=dst) / head / UDP(sport=sport, dport=2000) / Raw(bytes(size))


def ip_of(packet: Packet) -> Packet:
    """The first IP header."""
    first: Packet = (
        packet[IP] if IP in packet and (IPv6 not in packet or packet.payload is packet[IP]) else packet[IPv6]
    )
    return first


def tos_of(header: Packet) -> int:
    return int(header.tc if isinstance(header, IPv6) else header.tos)


def hops_of(header: Packet) -> int:
    return int(header.hlim if isinstance(header, IPv6) else header.ttl)


async def heard(vtep: Vtep, wanted: bytes) -> Packet:
    """The packet that carries this frame, from Ethernet on."""
    while True:
        packet = await vtep.next()
        payload = bytes(packet[UDP].payload)
        if payload[8:] == wanted:
            assert payload[:8] == vxlan(b"")
            return packet


async def until(sock: RawSocket, wanted: Any, seconds: float = 10.0) -> bytes:
    """The next frame of which `wanted` is true."""
    async with asyncio.timeout(seconds):
        while not wanted(got := await sock.receive(seconds)):
            pass
    return got


@pytest.mark.parametrize(
    ("keys", "hops", "df"),
    [({}, 64, True), ({"ttl": 7, "df": False}, 7, False)],
    ids=["default", "ttl_and_df"],
)
@pytest.mark.parametrize("family", FAMILIES)
async def test_ttl_and_df(host_root: Path, family: str, keys: dict[str, Any], hops: int, df: bool) -> None:
    async with running(host_root, family=family, **keys) as lab, lab.vtep() as vtep, lab.wire() as wire:
        for inner in FAMILIES:
            sent = bytes(frame(inner))
            await wire.send(sent)
            outer = ip_of(await heard(vtep, sent))
            assert hops_of(outer) == hops
            if family == "IPv4":
                assert bool(outer.flags.DF) is df
                assert outer.frag == 0
                assert not outer.flags.MF


@pytest.mark.parametrize("family", FAMILIES)
async def test_dscp_and_ecn_are_copied_out(host_root: Path, family: str) -> None:
    """DSCP as it is inside, ECN in RFC 6040's normal mode; of a frame without IP neither."""
    async with running(host_root, family=family) as lab, lab.vtep() as vtep, lab.wire() as wire:
        for inner, dscp, ecn in itertools.product(FAMILIES, (0, 46), range(4)):
            sent = bytes(frame(inner, dscp << 2 | ecn))
            await wire.send(sent)
            assert tos_of(ip_of(await heard(vtep, sent))) == dscp << 2 | ecn, (inner, dscp, ecn)
        sent = bytes(Ether(src="02:00:00:00:aa:01", dst=EVERYBODY) / ARP(pdst=PEER["IPv4"]))
        await wire.send(sent)
        assert tos_of(ip_of(await heard(vtep, sent))) == 0


async def test_a_fixed_tos_leaves_ecn_alone(host_root: Path) -> None:
    """Of the key only the DSCP counts."""
    async with running(host_root, tos=0x48) as lab, lab.vtep() as vtep, lab.wire() as wire:
        for inner, ecn in itertools.product(FAMILIES, range(4)):
            sent = bytes(frame(inner, 46 << 2 | ecn))
            await wire.send(sent)
            assert tos_of(ip_of(await heard(vtep, sent))) == 0x48 | ecn, (inner, ecn)


@pytest.mark.parametrize("family", FAMILIES)
async def test_congestion_on_the_way_reaches_the_guest(host_root: Path, family: str) -> None:
    """Each pair of ECN fields, as RFC 6040 says; where a guest can't be told the frame is dropped, and counted."""
    async with running(host_root, family=family) as lab, lab.vtep() as vtep, lab.wire() as wire:
        for inner, (pair, wanted) in itertools.product(FAMILIES, DECAPSULATED.items()):
            inside, outside = pair
            sent = frame(inner, 46 << 2 | inside, dst=EVERYBODY)
            dropped = await lab.switch.counted("tunnel_ecn")
            await vtep.send(vtep.udp(vxlan(sent), tos=outside))
            mark = frame(inner, sport=4321, dst=EVERYBODY)
            await vtep.send(vtep.udp(vxlan(mark)))
            came = []
            while (got := await until(wire, lambda data: b"\x07\xd0" in data)) != bytes(mark):
                came.append(got)
            if wanted is DROPPED:
                assert came == [], (inner, pair)
                assert await lab.switch.counted("tunnel_ecn") == dropped + 1, (inner, pair)
            else:
                # with the checksum of the header that goes with it
                assert came == [bytes(frame(inner, 46 << 2 | wanted, dst=EVERYBODY))], (inner, pair)
                assert await lab.switch.counted("tunnel_ecn") == dropped
        # A frame without IP has nothing to mark.
        asked = bytes(Ether(src=FAR, dst=EVERYBODY) / ARP(pdst=GUEST["IPv4"]) / Raw(bytes(18)))
        await vtep.send(vtep.udp(vxlan(asked), tos=CE))
        await until(wire, lambda data: data == asked)


async def test_flows_spread_over_source_ports(host_root: Path) -> None:
    """Constant within a flow, of the dynamic range, and several for several."""
    async with running(host_root) as lab, lab.vtep() as vtep, lab.wire() as wire:
        used: dict[tuple[str, int], set[int]] = {}
        for inner, sport, _ in itertools.product(FAMILIES, range(1000, 1032), range(3)):
            sent = bytes(frame(inner, sport=sport))
            await wire.send(sent)
            used.setdefault((inner, sport), set()).add((await heard(vtep, sent))[UDP].sport)
        assert all(len(ports) == 1 for ports in used.values()), used
        for inner in FAMILIES:
            ports = set.union(*(found for (family, _), found in used.items() if family == inner))
            assert len(ports) >= 6
            assert ports <= set(SOURCE_PORTS)


@pytest.mark.parametrize("on", [True, False], ids=["sums", "no_sums"])
@pytest.mark.parametrize("family", FAMILIES)
async def test_udp_checksums(host_root: Path, family: str, on: bool) -> None:
    """As the key says; what comes in may have one or not."""
    async with running(host_root, family=family, udp_csum=on) as lab, lab.vtep() as vtep, lab.wire() as wire:
        sent = bytes(frame("IPv4"))
        await wire.send(sent)
        packet = await heard(vtep, sent)
        if on:
            again = Ether(bytes(packet))
            del again[UDP].chksum
            assert packet[UDP].chksum == Ether(bytes(again))[UDP].chksum != 0
        else:
            assert packet[UDP].chksum == 0
        answer = frame("IPv4", sport=77, dst=EVERYBODY)
        await vtep.send(vtep.udp(vxlan(answer)))
        await until(wire, lambda data: data == bytes(answer))
        if family == "IPv4" or not on:
            answer = frame("IPv4", sport=78, dst=EVERYBODY)
            packet = vtep.udp(vxlan(answer))
            packet[UDP].chksum = 0
            await vtep.send(packet)
            await until(wire, lambda data: data == bytes(answer))


# ---- what doesn't fit


async def too_big(lab: underlay.Lab, family: str, size: int) -> str:
    """Ping with a packet of so many bytes that mustn't be cut, until its sender knows why none answers."""
    words = f"/bin/ping -M do -c 3 -i 0.2 -W 1 -s {size - HEADERS[family]} {PEER[family]}"
    status, output = await lab.guest.run(words)
    assert status != 0, output
    return output


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_guest_with_a_larger_mtu(host_root: Path, family: str) -> None:
    """1500 bytes over a network of 1500: TCP's frames are cut smaller, who may not cut his own is told what fits."""
    async with running(host_root, family=family) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], family=family, found=PEER, mtu=1500)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        await underlay.reaches(lab.guest, PEER["IPv6"])
        for inner in FAMILIES:
            dropped = await lab.switch.dropped("tunnel", "mtu_exceeded")
            told = await too_big(lab, inner, 1500)
            assert f"mtu={underlay.ROOM[family]}" in told.replace(" ", "").replace("mtu:", "mtu="), told
            assert await lab.switch.dropped("tunnel", "mtu_exceeded") > dropped
            dropped = await lab.switch.dropped("tunnel", "mtu_exceeded")
            fits = underlay.ROOM[family] - HEADERS[inner]
            await pings(lab.guest, f"-M do -s {fits} {PEER[inner]}")
            assert await lab.switch.dropped("tunnel", "mtu_exceeded") == dropped
        await lab.guest.check("ip route flush cache; ip -6 route flush cache")
        await serve_iperf3(lab.peer)
        for inner in FAMILIES:
            await lab.guest.check(f"iperf3 --client {PEER[inner]} --bytes 4M", 30)


@pytest.mark.parametrize(
    ("keys", "tag"), [({"vni": {10: 100}}, 0), ({"trunks": [10]}, 4)], ids=["mapped", "tagged_inside"]
)
async def test_tags_take_room(host_root: Path, keys: dict[str, Any], tag: int) -> None:
    """What the guest may send is told to it in its own VLAN, and is less where its frames have a tag in the tunnel."""
    async with running(host_root, guest_keys={"tag": 10}, **keys) as lab, lab.vtep() as vtep, lab.wire() as wire:
        # There is nobody that would answer: whose address is whose is written down, and where it is, learned: who
        # sends to everybody, or to nobody knows whom, isn't told what fits.
        said = bytes(frame("IPv4", dst=EVERYBODY))
        said = said[:6] + mac2str(FAR) + said[12:]
        inside = said[:12] + b"\x81\x00\x00\x0a" + said[12:] if tag else said
        await vtep.send(vtep.udp(vxlan(inside)))
        await until(wire, lambda data: data == said)
        await lab.guest.ip(f"neigh replace {PEER['IPv4']} lladdr {FAR} dev up0")
        fits = underlay.ROOM["IPv4"] - tag
        told = await too_big(lab, "IPv4", fits + 1)
        assert f"mtu={fits}" in told.replace(" ", ""), told
        sent = bytes(Ether(src="02:00:00:00:aa:01", dst=FAR) / IP(src=GUEST["IPv4"], dst=PEER["IPv4"]) / UDP())
        sent += os.urandom(fits + 14 - len(sent))
        await wire.send(sent)
        while not bytes(packet := await vtep.next()).endswith(sent[-1000:]):
            pass
        assert len(packet[IP]) == underlay.MTU
        assert packet.len == underlay.MTU
        assert await lab.switch.dropped("tunnel", "mtu_exceeded") >= 1


@pytest.mark.parametrize("family", FAMILIES)
async def test_without_df_packets_may_be_fragments(host_root: Path, family: str) -> None:
    """What doesn't fit the underlay goes in fragments; those that come in are put together by the kernel."""
    async with running(host_root, family=family, df=False) as lab, lab.wire() as wire:
        await underlay.add_vxlan(lab.peer, 2, [1], family=family, mtu=1500)
        large = [bytes(frame("IPv4", size=1472, sport=number)) for number in range(20)]
        async with RawSocket(lab.peer.path, "vx") as vx:
            for sent in large:
                await wire.send(sent)
            missing = {*large}  # in any order, as they are of several flows
            while missing:
                missing.remove(await until(vx, lambda data: data in missing))
        assert await lab.switch.dropped("tunnel", "mtu_exceeded") == 0
        await lab.peer.ip("link del vx")
        async with lab.vtep() as vtep:
            for number in range(20):
                sent = bytes(frame("IPv4", size=1472, sport=number, dst=EVERYBODY))
                whole = vtep.udp(vxlan(sent))
                if family == "IPv4":
                    pieces = fragment(whole, 1000)
                else:
                    ether, head = whole[Ether], whole[IPv6]
                    pieces = [
                        Ether(src=ether.src, dst=ether.dst) / piece
                        for piece in fragment6(
                            IPv6(src=head.src, dst=head.dst) / IPv6ExtHdrFragment(id=number) / head.payload, 1280
                        )
                    ]
                assert len(pieces) == 2
                for piece in reversed(pieces):
                    await vtep.send(piece)
                await until(wire, lambda data, sent=sent: data == sent)


# linux/if_packet.h, linux/virtio_net.h
SOL_PACKET, PACKET_VNET_HDR = 263, 15
NEEDS_CSUM = 1
GSO_TCP = {"IPv4": 1, "IPv6": 4}


def large_segment(family: str, data: bytes, size: int) -> bytes:
    """A TCP frame as the guest's kernel hands it over, to be cut every `size` bytes, with its virtio-net header."""
    head = IPv6(src=GUEST[family], dst=PEER[family]) if family == "IPv6" else IP(src=GUEST[family], dst=PEER[family])
    frame = Ether(src="02:00:00:00:aa:01", dst=FAR) / head / TCP(sport=1, dport=2, seq=1000, flags="PA") / Raw(data)
    plain = bytearray(bytes(frame))
    start = len(plain) - len(data) - 20
    # Where its checksum will be there is the sum of the addresses, the length and the protocol.
    length = (len(data) + 20).to_bytes(4, "big")
    ends = (IPv6 in frame and plain[22:54]) or plain[26:34]
    pseudo = bytes(ends) + length + (6).to_bytes(4, "big")
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    plain[start + 16 : start + 18] = total.to_bytes(2, "big")
    return struct.pack("=BBHHHH", NEEDS_CSUM, GSO_TCP[family], start + 20, size, start, 16) + bytes(plain)


@pytest.mark.parametrize("inner", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
async def test_segments_that_do_not_fit_are_cut_smaller(host_root: Path, family: str, inner: str) -> None:
    """A large TCP frame says how long its segments may be: 1500 bytes don't fit, so that they are made shorter."""

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.bind(("up0", 0))
        return sock

    async with running(host_root, family=family) as lab, lab.vtep() as vtep:
        size = 1500 - (60 if inner == "IPv6" else 40)
        data = os.urandom(10 * size + 100)
        with await run_in_namespace(lab.guest.path, open_socket) as sock:
            sock.send(large_segment(inner, data, size))
        got = b""
        while len(got) < len(data):
            frame = Ether(bytes((await vtep.next())[UDP].payload)[8:])
            if TCP not in frame:
                continue
            header = ip_of(frame)
            assert len(header) <= underlay.ROOM[family]
            assert len(got) + len(bytes(frame[TCP].payload)) == len(data) or len(header) > underlay.ROOM[family] - 8
            assert frame[TCP].seq == 1000 + len(got)
            again = Ether(bytes(frame))
            del again[TCP].chksum
            assert Ether(bytes(again))[TCP].chksum == frame[TCP].chksum
            got += bytes(frame[TCP].payload)
        assert got == data
        assert await lab.switch.dropped("tunnel", "mtu_exceeded") == 0


async def test_nobody_is_told_where_it_is_off(host_root: Path) -> None:
    async with running(host_root, icmp_too_big=False) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER, mtu=1500)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        told = await too_big(lab, "IPv4", 1500)
        assert "mtu" not in told, told
        assert "100% packet loss" in told
        assert await lab.switch.dropped("tunnel", "mtu_exceeded") == 3


async def test_jumbo_frames_beneath_let_1500_bytes_pass(host_root: Path) -> None:
    async with running(host_root, mtu=9000) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER, mtu=1500)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        await underlay.reaches(lab.guest, PEER["IPv6"])
        for inner in FAMILIES:
            sized = f"-M do -s {1500 - HEADERS[inner]} {PEER[inner]}"
            await pings(lab.guest, sized)
        await lab.guest.ip("link set up0 mtu 8950")
        await lab.peer.ip("link set vx mtu 8950")
        sized = f"-M do -s {8950 - HEADERS['IPv4']} {PEER['IPv4']}"
        await pings(lab.guest, sized)
        assert await lab.switch.dropped("tunnel", "mtu_exceeded") == 0


@dataclass(frozen=True)
class Routed:
    """Host 1, a router, and host 2 behind it, at 198.51.100.2."""

    router: Namespace
    guest: Host
    peer: Host
    switch: HostedSwitch


@contextlib.asynccontextmanager
async def routed(root: Path) -> AsyncIterator[Routed]:
    """A switch, and the kernel's vxlan behind a router."""
    async with (
        Namespace() as host,
        Namespace() as router,
        Host("guest", root) as guest,
        Host("peer", root) as peer,
    ):
        await router.command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for end, name, net, own, via in ((host, "r1", "192.0.2", 1, 254), (peer, "r2", "198.51.100", 2, 254)):
            await router.ip(f"link add {name} type veth peer name eth0 netns {end.holder}")
            await router.ip(f"address add {net}.{via}/24 dev {name}")
            await router.ip(f"link set {name} up")
            await end.ip(f"address add {net}.{own}/24 dev eth0")
            await end.ip("link set eth0 up")
            await end.ip(f"route add default via {net}.{via}")
            for where, device in ((router, name), (end, "eth0")):
                await offload(where, device, False)
        await peer.ip("link add vx type vxlan id 100 local 198.51.100.2 remote 192.0.2.1 dstport 4789 udpcsum df unset")
        await peer.ip(f"address add {PEER['IPv4']}/24 dev vx")
        await peer.ip("link set vx mtu 1500 up")
        tunnel = {"type": "vxlan", "vni": 100, "local": "192.0.2.1", "remotes": ["198.51.100.2"]}
        config = underlay.one_bridge(guest=underlay.tap(guest, GUEST), tunnel=tunnel)
        async with underlay.hosted(host, config) as switch:
            await underlay.reaches(guest, PEER["IPv4"])
            await serve_iperf3(peer)
            yield Routed(router, guest, peer, switch)


async def test_a_path_that_becomes_narrower(host_root: Path) -> None:
    """The kernel learns it from the router, the tunnel from the kernel, and the guest from the tunnel."""
    async with routed(host_root) as lab:
        before, narrow = underlay.ROOM["IPv4"], 1300
        full = f"-M do -s {before - HEADERS['IPv4']} {PEER['IPv4']}"
        await pings(lab.guest, full)
        await lab.guest.check(f"iperf3 --client {PEER['IPv4']} --bytes 4M", 30)
        await lab.router.ip(f"link set r2 mtu {narrow}")
        await lab.peer.ip(f"link set eth0 mtu {narrow}")
        fits = narrow - (underlay.MTU - before)
        said = ""
        async with asyncio.timeout(20):
            while f"mtu={fits}" not in said.replace(" ", ""):
                _, said = await lab.guest.run(f"/bin/ping -c 3 -i 0.1 -W 1 {full}")
        await pings(lab.guest, f"-M do -s {fits - HEADERS['IPv4']} {PEER['IPv4']}")
        await lab.guest.check("ip route flush cache")
        await lab.guest.check(f"iperf3 --client {PEER['IPv4']} --bytes 4M", 30)


# ---- what is refused, and counted


INNER = bytes(frame("IPv4", dst=EVERYBODY))
REFUSED = {
    "another VNI": ("unknown_vni", vxlan(INNER, 101)),
    "VNI 0": ("unknown_vni", vxlan(INNER, 0)),
    "no I flag": ("tunnel_malformed", vxlan(INNER, flags=0)),
    "empty": ("tunnel_malformed", b""),
    "half a header": ("tunnel_malformed", vxlan(b"")[:7]),
    "no frame": ("malformed", vxlan(b"")),
    "half an Ethernet header": ("malformed", vxlan(INNER[:13])),
}


async def test_what_is_wrong_is_counted(host_root: Path) -> None:
    async with running(host_root) as lab, lab.vtep() as vtep, lab.wire() as wire:
        for name, (reason, payload) in REFUSED.items():
            before = {key: await lab.switch.counted(key) for key in ("unknown_vni", "tunnel_malformed", "malformed")}
            for _ in range(3):
                await vtep.send(vtep.udp(payload))
            mark = frame("IPv4", sport=4321, dst=EVERYBODY)
            await vtep.send(vtep.udp(vxlan(mark)))
            assert await until(wire, lambda data: b"\x07\xd0" in data) == bytes(mark), name

            async def reached(reason: str = reason, wanted: int = before[reason] + 3) -> bool:
                return await lab.switch.counted(reason) == wanted

            await lab.switch.wait_until(reached, f"{name} to be counted as {reason}", 5)
            after = {key: await lab.switch.counted(key) for key in before}
            assert after == {**before, reason: before[reason] + 3}, name
        # Reserved bits are ignored (RFC 7348, 5).
        odd = bytearray(vxlan(mark, flags=0xFF))
        odd[1:4], odd[7] = b"\xff\xff\xff", 0xFF
        await vtep.send(vtep.udp(bytes(odd)))
        assert await until(wire, lambda data: b"\x07\xd0" in data) == bytes(mark)


async def test_without_learning_only_remotes_are_heard(host_root: Path) -> None:
    """A host that nobody has named is refused, and counted."""
    async with running(host_root, learning=False) as lab, Namespace() as stranger:
        await lab.fabric.plug(stranger, 3)
        async with lab.vtep() as vtep, Vtep(stranger, 3, 1) as other, lab.wire() as wire:
            for _ in range(3):
                await other.send(other.udp(vxlan(INNER)))
            mark = frame("IPv4", sport=4321, dst=EVERYBODY)
            await vtep.send(vtep.udp(vxlan(mark)))
            assert await until(wire, lambda data: b"\x07\xd0" in data) == bytes(mark)
            assert await lab.switch.dropped("tunnel", "unknown_vtep") == 3
            assert not await lab.switch.learned("02:00:00:00:aa:01")


async def test_a_port_that_the_kernel_has(host_root: Path) -> None:
    """The start is refused, and says which device is in the way."""
    async with Fabric() as fabric, Namespace() as host, Host("guest", host_root) as guest:
        await fabric.plug(host, 1)
        await host.ip(f"link add kernelvx type vxlan id 55 local {underlay.underlay(1)['IPv4']} dstport {VXLAN_PORT}")
        await host.ip("link set kernelvx up")
        config = underlay.one_bridge(guest=underlay.tap(guest, GUEST), tunnel=underlay.tunnel(1, [2]))
        switch = HostedSwitch(host, config)
        try:
            await switch.spawn()
            status = await switch.ended()
            log = switch.log()
            assert status == 1, log
            assert "kernelvx" in log
            assert str(VXLAN_PORT) in log
            assert "Traceback" not in log
        finally:
            await switch.close()


async def test_icmp_of_the_underlay_hurts_nobody(host_root: Path) -> None:
    """Where no VTEP is its host says so; what is sent after that is sent all the same."""
    async with running(host_root) as lab, lab.wire() as wire, RawSocket(lab.peer.path, "eth0") as sock:
        for number in range(20):
            sent = bytes(frame("IPv4", sport=3000 + number % 2))
            await wire.send(sent)
            got = await until(sock, lambda data, sent=sent: data.endswith(sent))
            assert len(got) == 14 + 20 + 8 + 8 + len(sent)
        refused = await lab.peer.check("grep ^Icmp: /proc/net/snmp")
        assert int(refused.splitlines()[1].split()[refused.splitlines()[0].split().index("OutDestUnreachs")]) > 0
        assert (await lab.switch.stats("tunnel"))["tx_dropped"] == 0
