# SPDX-License-Identifier: Apache-2.0
"""Tunnels to Open vSwitch's userspace datapath, and Geneve and GRE byte for byte to packets that are made by hand.

guest | up0, tap - switch on host 1 - tunnel - br-int of Open vSwitch on host 2, its own port with addresses
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from pvswitch.bench.ovs import SCHEMA, VSWITCHD, Ovs
from pvswitch.namespace import Namespace
from tests.conftest import RequirePeer
from tests.system import underlay
from tests.system.conftest import from_environment, ping, transfer
from tests.system.raw import RawSocket
from tests.system.recording import GOOD, explained, record
from tests.system.underlay import GENEVE_PORT, GUEST, PEER, Fabric, Host, HostedSwitch, Vtep
from tests.system.uplinks import FAMILIES, with_prefix

pytestmark = pytest.mark.timeout(120)

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 2)
NEAR, FAR = "02:00:00:00:aa:01", "02:00:00:00:fa:02"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
GRE = 47
BRIDGED = bytes.fromhex("6558")  # transparent Ethernet bridging, the protocol of both
KINDS: dict[str, dict[str, Any]] = {
    "vxlan": {"type": "vxlan", "vni": 100},
    "geneve": {"type": "geneve", "vni": 100},
    "gre": {"type": "gre", "key": 100},
}


class OvsVtep(Ovs):
    """Open vSwitch on a host, without DPDK: br-phy has the host's eth0 and addresses, br-int a tunnel."""

    def __init__(self, host: Namespace, number: int, target: int) -> None:
        super().__init__([])
        self._host = host
        self._number = number
        self._target = target

    async def tunnel(self, kind: str, family: str, key: int) -> None:
        """Make the tunnel to the target."""
        options = (f"options:remote_ip={underlay.underlay(self._target)[family]}", f"options:key={key}")
        csum = () if kind == "gre" else ("options:csum=true",)
        await self.vsctl(
            "add-port", "br-int", "tun0", "--", "set", "interface", "tun0", f"type={kind}", *options, *csum
        )

    async def _start(self) -> None:
        database, socket = self._folder / "conf.db", self._folder / "db.sock"
        await self._call("ovsdb-tool", "create", str(database), SCHEMA)
        control = f"--unixctl={self._folder}/db.ctl"
        await self._daemon("ovsdb-server", str(database), f"--remote=punix:{socket}", control)
        await self._wait_for(socket)
        await self.vsctl("--no-wait", "init")
        log = f"--log-file={self._folder}/switch.log"
        control = f"--unixctl={self._folder}/switch.ctl"
        await self._daemon(*self._host.launcher, VSWITCHD, f"unix:{socket}", control, "-vconsole:off", log)
        await self._wait_for(self._folder / "switch.ctl")
        for bridge in ("br-phy", "br-int"):
            await self.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
        hardware = f"other-config:hwaddr={underlay.hardware(self._number)}"
        await self.vsctl("set", "bridge", "br-phy", hardware, "--", "add-port", "br-phy", "eth0")
        await self._host.ip("address flush dev eth0")
        # What comes by eth0 is for Open vSwitch alone: the kernel, which sees it too, would say that nobody is there.
        for setting in ("ipv4/conf/eth0/rp_filter", "ipv6/conf/eth0/disable_ipv6"):
            await self._host.command("sh", "-c", f"echo 1 > /proc/sys/net/{setting}")
        for bridge, found in (("br-phy", underlay.underlay(self._number)), ("br-int", PEER)):
            for address in with_prefix(found):
                await self._host.ip(f"address add {address} dev {bridge}")
            await self._host.ip(f"link set {bridge} up")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
async def test_open_vswitch(host_root: Path, family: str, kind: str, tmp_path: Path, require_peer: RequirePeer) -> None:
    """Ping and TCP both ways; tshark knows what is on the wire, and finds no fault with it."""
    require_peer(VSWITCHD, package="openvswitch-switch-dpdk")
    require_peer("tshark", package="tshark")
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("guest", host_root) as guest,
        Host("peer", host_root) as peer,
    ):
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        tunnel = underlay.tunnel(1, [2], family, **KINDS[kind])
        config = underlay.one_bridge(guest=underlay.tap(guest, GUEST), tunnel=tunnel)
        async with OvsVtep(peer, 2, 1) as ovs, underlay.hosted(host, config) as switch:
            await ovs.tunnel(kind, family, 100)
            room = underlay.ROOM[family]
            await guest.ip(f"link set up0 mtu {room}")
            await peer.ip(f"link set br-int mtu {room}")
            async with record(fabric, "v1", tmp_path / "seen"):
                for source, target, found in ((guest, peer, PEER), (peer, guest, GUEST)):
                    for inner in FAMILIES:
                        await underlay.reaches(source, found[inner])
                        full = room - underlay.HEADERS[inner]
                        await ping(source, target, f"-M do {found[inner]}", count=10, size=full)
                await transfer(guest, peer, GUEST["IPv4"], megabytes=MEGABYTES)
                await transfer(peer, guest, f"[{PEER['IPv6']}]", megabytes=MEGABYTES)
            stats = await switch.stats("tunnel")
            assert stats["rx_errors"] == stats["tx_errors"] == 0
            fields = {
                "length": "frame.len",
                "protocols": "frame.protocols",
                "ip": "ip.checksum.status",
                "tcp": "tcp.checksum.status",
                "udp": "udp.checksum.status",
                "vxlan": "vxlan.vni",
                "geneve": "geneve.vni",
                "gre": "gre.key",
            }
            packets = [
                packet
                for packet in await explained(tmp_path / "seen", fields, inner=True)
                if packet["protocols"].count(":eth:") == 1 or packet[kind]
            ]
            assert len(packets) > 2 * (MEGABYTES << 20) / room
            assert {int(packet[kind], 0) for packet in packets} == {100}
            assert max(int(packet["length"]) for packet in packets) <= underlay.MTU + 14
            sums = [set(f"{packet['ip']},{packet['tcp']},{packet['udp']}".split(",")) for packet in packets]
            assert all(found <= {GOOD, ""} for found in sums), next(
                p for p, s in zip(packets, sums, strict=True) if s - {GOOD, ""}
            )


# ---- packets made by hand


@dataclass(frozen=True)
class Lab:
    """The switch on host 1, its guest's interface, and host 2."""

    switch: HostedSwitch
    wire: RawSocket
    vtep: Vtep

    async def arrives(self, packet: Packet, wanted: bytes | None, reason: str = "", name: str = "a packet") -> None:
        """Send a packet: this frame must come of it, or none, which is counted for the reason."""
        before = await self.switch.counted(reason) if reason else 0
        await self.vtep.send(packet)
        if wanted is not None:
            assert await self.next() == wanted
            return

        async def reached() -> bool:
            return await self.switch.counted(reason) == before + 1

        if reason:
            await self.switch.wait_until(reached, f"{name} to be counted as {reason}", 5)

    async def next(self) -> bytes:
        """The next of our frames that comes to the guest."""
        while FAR.replace(":", "") not in (data := await self.wire.receive())[6:12].hex():
            pass
        return data


@contextlib.asynccontextmanager
async def running(root: Path, family: str, **keys: Any) -> AsyncIterator[Lab]:
    async with Fabric() as fabric, Namespace() as host, Host("guest", root) as guest, Namespace() as peer:
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        tunnel = underlay.tunnel(1, [2], family, **keys)
        config = underlay.one_bridge(guest=underlay.tap(guest, GUEST), tunnel=tunnel)
        async with (
            underlay.hosted(host, config) as switch,
            RawSocket(guest.path, "up0") as wire,
            Vtep(peer, 2, 1, family) as vtep,
        ):
            yield Lab(switch, wire, vtep)


def frame(number: int = 0, src: str = FAR, dst: str = EVERYBODY) -> bytes:
    """A frame that is told apart by its number."""
    ends = IP(src=PEER["IPv4"], dst=GUEST["IPv4"])
    return bytes(Ether(src=src, dst=dst) / ends / UDP(sport=number, dport=9) / Raw(bytes(60)))


def option(kind: int, data: bytes, group: int = 0x0102) -> bytes:
    """A Geneve option."""
    assert len(data) % 4 == 0
    return group.to_bytes(2, "big") + bytes([kind, len(data) // 4]) + data


def geneve(
    inner: bytes,
    vni: int = 100,
    options: bytes = b"",
    *,
    version: int = 0,
    flags: int = 0,
    protocol: bytes = BRIDGED,
    words: int | None = None,
) -> bytes:
    """A Geneve header, options and a frame (RFC 8926, 3.4)."""
    length = len(options) // 4 if words is None else words
    return bytes([version << 6 | length, flags]) + protocol + vni.to_bytes(3, "big") + b"\0" + options + inner


CRITICAL, CONTROL = 0x40, 0x80
TAKEN = {
    "plain": geneve(frame(1)),
    "reserved bits": geneve(frame(2), flags=0x3F)[:7] + b"\xff" + frame(2),
    "an option": geneve(frame(3), options=option(1, bytes(4))),
    "options": geneve(frame(4), options=option(1, b"") + option(2, bytes(124)) + option(3, bytes(116))),
    "options of all 252 bytes": geneve(frame(5), options=option(1, bytes(124)) + option(2, bytes(120))),
}
REFUSED = {
    "another VNI": ("unknown_vni", geneve(frame(), 101)),
    "a critical option": ("tunnel_malformed", geneve(frame(), options=option(0x81, bytes(4)), flags=CRITICAL)),
    "a control packet": ("tunnel_malformed", geneve(frame(), flags=CONTROL)),
    "another protocol": ("tunnel_malformed", geneve(frame(), protocol=b"\x08\x00")),
    "another version": ("tunnel_malformed", geneve(frame(), version=1)),
    "options that aren't there": ("tunnel_malformed", geneve(bytes(20), words=63)),
    "options and nothing else": ("malformed", geneve(b"", options=option(1, bytes(4)))),
    "half a header": ("tunnel_malformed", geneve(b"")[:7]),
    "nothing": ("tunnel_malformed", b""),
    "half an Ethernet header": ("malformed", geneve(frame()[:13])),
}


@pytest.mark.parametrize("family", FAMILIES)
async def test_geneve(host_root: Path, family: str) -> None:
    async with running(host_root, family, **KINDS["geneve"]) as lab:
        for name, payload in TAKEN.items():
            inner = payload[8 + 4 * (payload[0] & 63) :]
            packet = lab.vtep.udp(payload, GENEVE_PORT)
            try:
                await lab.arrives(packet, inner)
            except TimeoutError:
                pytest.fail(f"{name}: nothing came")
        for name, (reason, payload) in REFUSED.items():
            await lab.arrives(lab.vtep.udp(payload, GENEVE_PORT), None, reason, name)
        # None of them has come.
        await lab.arrives(lab.vtep.udp(geneve(frame(99)), GENEVE_PORT), frame(99))
        sent = frame(7, src=NEAR)
        await lab.wire.send(sent)
        while (packet := await lab.vtep.next(GENEVE_PORT)) and not bytes(packet).endswith(sent):
            pass
        assert bytes(packet[UDP].payload) == geneve(sent)
        assert packet[UDP].sport in underlay.SOURCE_PORTS


def gre(
    inner: bytes, flags: int = 0x2000, key: int | None = 100, rest: bytes = b"", protocol: bytes = BRIDGED
) -> bytes:
    """A GRE header and a frame (RFC 2890); with the flag for it, a checksum."""
    fields = (b"" if key is None else key.to_bytes(4, "big")) + rest
    if not flags & 0x8000:
        return flags.to_bytes(2, "big") + protocol + fields + inner
    packet = flags.to_bytes(2, "big") + protocol + bytes(4) + fields + inner
    total = sum(int.from_bytes(packet[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(packet), 2))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return packet[:4] + (~total & 0xFFFF).to_bytes(2, "big") + packet[6:]


def by_gre(vtep: Vtep, payload: bytes) -> Packet:
    head = vtep.ip(**({"nh": GRE} if vtep.family == "IPv6" else {"proto": GRE}))
    return head / Raw(payload)


async def next_gre(lab: Lab, sent: bytes) -> bytes:
    """The GRE packet that carries this frame, from its own header on."""
    while not bytes(packet := await lab.vtep.next_of(GRE)).endswith(sent):
        pass
    return bytes(packet[IPv6 if lab.vtep.family == "IPv6" else IP].payload)


@pytest.mark.parametrize("family", FAMILIES)
async def test_gre_with_a_key(host_root: Path, family: str) -> None:
    async with running(host_root, family, **KINDS["gre"]) as lab:
        odd = frame(5) + b"\x01"
        for inner, payload in (
            (frame(1), gre(frame(1))),
            (frame(2), gre(frame(2), 0xA000)),
            (odd, gre(odd, 0xA000)),
            (frame(3), gre(frame(3), 0x3000, rest=bytes(4))),
            (frame(4), gre(frame(4), 0xB000, rest=b"\0\0\0\7")),
        ):
            await lab.arrives(by_gre(lab.vtep, payload), inner)
        wrong = bytearray(gre(frame(), 0xA000))
        wrong[-1] ^= 1
        for name, (reason, payload) in {
            "another key": ("unknown_vni", gre(frame(), key=101)),
            "no key": ("unknown_vni", gre(frame(), 0, None)),
            "a wrong checksum": ("tunnel_malformed", bytes(wrong)),
            "another version": ("tunnel_malformed", gre(frame(), 0x2001)),
            "routing": ("tunnel_malformed", gre(frame(), 0x6000)),
            "half a key": ("tunnel_malformed", gre(b"")[:7]),
            "half a header": ("tunnel_malformed", gre(b"")[:3]),
            "half an Ethernet header": ("malformed", gre(frame()[:13])),
        }.items():
            await lab.arrives(by_gre(lab.vtep, payload), None, reason, name)
        await lab.arrives(by_gre(lab.vtep, gre(frame(), protocol=b"\x08\x00")), None)
        await lab.arrives(by_gre(lab.vtep, gre(frame(99))), frame(99))
        sent = frame(7, src=NEAR)
        await lab.wire.send(sent)
        assert await next_gre(lab, sent) == gre(sent)


async def test_gre_without_a_key(host_root: Path) -> None:
    async with running(host_root, "IPv4", type="gre", key=None) as lab:
        await lab.arrives(by_gre(lab.vtep, gre(frame(1), 0, None)), frame(1))
        await lab.arrives(by_gre(lab.vtep, gre(frame(2), 0x8000, None)), frame(2))
        await lab.arrives(by_gre(lab.vtep, gre(frame())), None, "unknown_vni")
        await lab.arrives(by_gre(lab.vtep, gre(frame(99), 0, None)), frame(99))
        sent = frame(7, src=NEAR)
        await lab.wire.send(sent)
        assert await next_gre(lab, sent) == gre(sent, 0, None)


async def test_vlans_are_keys(host_root: Path) -> None:
    """GRE's keys and Geneve's VNIs of a map: each VLAN in its own."""
    tunnels: tuple[tuple[dict[str, Any], Callable[..., bytes]], ...] = (
        ({"type": "gre", "key": {10: 4000000000}}, gre),
        ({"type": "geneve", "vni": {10: 16777215}}, geneve),
    )
    for keys, wrap in tunnels:
        number = next(iter((keys.get("key") or keys["vni"]).values()))
        async with running(host_root, "IPv4", **keys) as lab:
            tagged = frame(1, src=NEAR)[:12] + b"\x81\x00\x00\x0a" + frame(1, src=NEAR)[12:]
            await lab.wire.send(tagged)
            inner = frame(1, src=NEAR)
            if wrap is gre:
                assert await next_gre(lab, inner) == gre(inner, key=number)
                packet = by_gre(lab.vtep, gre(frame(2), key=number))
            else:
                while not bytes(got := await lab.vtep.next(GENEVE_PORT)).endswith(inner):
                    pass
                assert bytes(got[UDP].payload) == geneve(inner, number)
                packet = lab.vtep.udp(geneve(frame(2), number), GENEVE_PORT)
            await lab.arrives(packet, frame(2)[:12] + b"\x81\x00\x00\x0a" + frame(2)[12:])
