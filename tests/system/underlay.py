# SPDX-License-Identifier: Apache-2.0
"""Hosts on a network of their own, between which tunnels are: switches, the kernel's `vxlan`, and makers of packets.

    fabric    a Linux bridge br0, and on it v1, v2, ... to eth0 of host 1, 2, ...
    host N    192.0.2.N and 2001:db8::N on its eth0; runs a switch, or has devices of kind `vxlan`
    guest     an interface up0, a tap of the switch, with addresses

On eth0 packets are finished: the kernel's vxlan would send inner checksums by a veth that are still to be made, as the
veth promises to make them, and nobody beyond the kernel could tell. All namespaces are the tests' own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from pvswitch.bench.far import FarHost
from pvswitch.namespace import Namespace
from pvswitch.netlink import run_in_namespace
from pvswitch.process import SwitchProcess
from tests.system.conftest import orderly
from tests.system.raw import RawSocket
from tests.system.uplinks import addresses, offload, with_prefix

VXLAN_PORT = 4789
GENEVE_PORT = 6081
MTU = 1500
ROOM = {"IPv4": MTU - 20 - 8 - 8 - 14, "IPv6": MTU - 40 - 8 - 8 - 14}
"""The inner MTU over a VXLAN or Geneve (without options) underlay of 1500 bytes."""
HEADERS = {"IPv4": 20 + 8, "IPv6": 40 + 8}  # of IP and ICMP
GUEST, PEER = addresses(1, 1), addresses(1, 2)
"""What is said inside."""
SOURCE_PORTS = range(49152, 65536)


def underlay(number: int) -> dict[str, str]:
    """A host's addresses in the underlay, by family."""
    return {"IPv4": f"192.0.2.{number}", "IPv6": f"2001:db8::{number}"}


def hardware(number: int) -> str:
    """The address of a host's eth0."""
    return f"02:00:00:00:ee:{number:02x}"


class Fabric(Namespace):
    """The network between hosts."""

    def __init__(self, mtu: int = MTU) -> None:
        super().__init__()
        self.mtu = mtu

    async def plug(self, host: Namespace, number: int) -> None:
        """Give a host an eth0 on the bridge, with addresses."""
        name = f"v{number}"
        pair = f"link add {name} mtu {self.mtu} type veth peer name eth0 address {hardware(number)} mtu {self.mtu}"
        await self.ip(f"{pair} netns {host.holder}")
        await self.ip(f"link set {name} master br0 up")
        await host.command("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")
        for address in with_prefix(underlay(number)):
            await host.ip(f"address add {address} dev eth0")
        await host.ip("link set eth0 up")
        await offload(host, "eth0", False)

    async def _start(self) -> None:
        await super()._start()
        await self.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0")
        await self.ip("link set br0 up")


class Host(FarHost):
    """A guest's host, or a peer: it has its addresses of IPv6 at once."""

    async def _start(self) -> None:
        await super()._start()
        await self.check("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad")


class HostedSwitch(SwitchProcess):
    """A switch whose underlay is a host's network."""

    def __init__(self, host: Namespace, config: Mapping[str, Any]) -> None:
        super().__init__(config, host.launcher)

    async def ended(self, seconds: float = 20.0) -> int:
        """Wait until it has ended by itself; return its status."""
        assert self._process is not None
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def stats(self, port: str) -> dict[str, Any]:
        """A port's counters."""
        stats: dict[str, Any] = await self.get(f"/ports/{port}/stats")
        return stats

    async def dropped(self, port: str, reason: str) -> int:
        """How many frames it has dropped at a port for a reason, both ways."""
        stats = await self.stats(port)
        return int(stats["rx_drops"].get(reason, 0)) + int(stats["tx_drops"].get(reason, 0))

    async def counted(self, reason: str, tunnel: str = "tunnel") -> int:
        """How many packets for a tunnel were dropped for a reason: by its endpoint, or as frames of its own."""
        drops = (await self.get(f"/tunnels/{tunnel}"))["endpoint"]["drops"]
        return int(drops.get(reason, 0)) + int((await self.stats(tunnel))["rx_drops"].get(reason, 0))

    async def learned(self, mac: str, bridge: str = "br0") -> dict[str, Any]:
        """Its entry of an address; empty when it doesn't know it."""
        items = (await self.get(f"/bridges/{bridge}/fdb?limit=1000"))["items"]
        return next((item for item in items if item["mac"] == mac), {})


@contextlib.asynccontextmanager
async def hosted(host: Namespace, config: Mapping[str, Any]) -> AsyncIterator[HostedSwitch]:
    """A switch on a host for the body, all of whose links come up; it must end as it should."""
    async with orderly(HostedSwitch(host, config)) as switch:
        for port, keys in config["ports"].items():
            if keys.get("type") == "tap":
                await switch.wait_link(port)
        yield switch


def tap(guest: Namespace, found: Mapping[str, str], ifname: str = "up0", **keys: Any) -> dict[str, Any]:
    """A port to a guest, which has these addresses."""
    where = {"ifname": ifname, "netns": str(guest.path), "addresses": with_prefix(dict(found)) if found else []}
    return {"type": "tap", **where, **keys}


def tunnel(number: int, remotes: Sequence[int], family: str = "IPv4", **keys: Any) -> dict[str, Any]:
    """A port from a host to others, of VXLAN with VNI 100 where nothing else is given."""
    found = {"local": underlay(number)[family], "remotes": [underlay(remote)[family] for remote in remotes]}
    return {"type": "vxlan", **({} if "key" in keys else {"vni": 100}), **found, **keys}


def one_bridge(**ports: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of these ports."""
    return {"bridges": {"br0": {}}, "ports": ports}


def checksum_words(family: str, on: bool) -> str:
    """How the kernel's vxlan is told whether its UDP has checksums."""
    if family == "IPv4":
        return "udpcsum" if on else "noudpcsum"
    return "noudpcsum" if on else "udp6zerocsumtx udp6zerocsumrx"


async def add_vxlan(
    host: Namespace,
    number: int,
    remotes: Sequence[int],
    *,
    name: str = "vx",
    vni: int = 100,
    family: str = "IPv4",
    words: str = "udpcsum",
    mtu: int | None = None,
    found: Mapping[str, str] | None = None,
    mac: str | None = None,
) -> None:
    """Give a host a device of the kernel's vxlan, up, with addresses, that floods to the remotes."""
    where = f"local {underlay(number)[family]} dstport {VXLAN_PORT}"
    await host.ip(f"link add {name} {f'address {mac}' if mac else ''} type vxlan id {vni} {where} {words}")
    await host.ip(f"link set {name} mtu {mtu or ROOM[family]}")
    for remote in remotes:
        flood = ("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", name, "dst", underlay(remote)[family])
        await host.command(*flood)
    for address in with_prefix(dict(found)) if found else ():
        await host.ip(f"address add {address} dev {name}")
    await host.ip(f"link set {name} up")


async def mac_of(host: Namespace, device: str) -> str:
    """An interface's address."""
    line = await host.command("ip", "-o", "link", "show", device)
    return line.split("link/ether ")[1].split()[0]


async def reaches(source: Host, address: str, seconds: float = 20.0) -> None:
    """Wait until an address answers."""
    command = f"until ping -c 1 -W 1 {address} > /dev/null 2>&1; do sleep 0.1; done"
    await source.check(command, seconds)


class Vtep:
    """A maker of packets on a host: what it sends leaves as it is, and it hears all that comes to the host's eth0.

    The host's kernel answers for its addresses (ARP, ND), and tells nobody that no VTEP is there. Use it as
    `async with`.
    """

    def __init__(
        self, host: Namespace, number: int, target: int, family: str = "IPv4", sinks: Sequence[int] = ()
    ) -> None:
        """It is host `number`, and sends to host `target`."""
        self._host = host
        self._raw = RawSocket(host.path, "eth0")
        self._open: list[socket.socket] = []
        self._ether = Ether(src=hardware(number), dst=hardware(target))
        self._source, self._target = underlay(number)[family], underlay(target)[family]
        self.family = family

    async def __aenter__(self) -> Vtep:
        await self._raw.__aenter__()
        try:
            self._open = await run_in_namespace(self._host.path, self._sink)
        except BaseException:
            await self._raw.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for sock in self._open:
            sock.close()
        await self._raw.__aexit__()

    def ip(self, **fields: Any) -> Packet:
        """An Ethernet and IP header to the target; `tos` is IPv6's traffic class as well."""
        if self.family == "IPv6":
            tos = fields.pop("tos", 0)
            return self._ether / IPv6(src=self._source, dst=self._target, tc=tos, **fields)
        return self._ether / IP(src=self._source, dst=self._target, **fields)

    def udp(self, payload: bytes | Packet, port: int = VXLAN_PORT, sport: int = 50000, **fields: Any) -> Packet:
        """A datagram to the target."""
        return self.ip(**fields) / UDP(sport=sport, dport=port) / payload

    async def send(self, packet: bytes | Packet) -> None:
        """Send a packet with its Ethernet header."""
        await self._raw.send(bytes(packet))

    async def next(self, port: int = VXLAN_PORT, seconds: float = 10.0) -> Packet:
        """The next packet for one of its UDP ports, from Ethernet on; TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                packet = Ether(await self._raw.receive(seconds))
                if UDP in packet and packet[UDP].dport == port:
                    return packet

    async def next_of(self, protocol: int, seconds: float = 10.0) -> Packet:
        """The next packet of an IP protocol; TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                packet = Ether(await self._raw.receive(seconds))
                if (IP in packet and packet[IP].proto == protocol) or (IPv6 in packet and packet[IPv6].nh == protocol):
                    return packet

    def _sink(self) -> list[socket.socket]:
        found = []
        kind = socket.AF_INET6 if self.family == "IPv6" else socket.AF_INET
        for port in (VXLAN_PORT, GENEVE_PORT):
            sock = socket.socket(kind, socket.SOCK_DGRAM)
            found.append(sock)
            sock.bind(("", port))
        raw = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_GRE)
        return [*found, raw]


def vxlan(inner: bytes | Packet, vni: int = 100, flags: int = 0x08) -> bytes:
    """VXLAN's header and a frame."""
    return bytes([flags, 0, 0, 0]) + vni.to_bytes(3, "big") + b"\0" + bytes(inner)


@dataclass(frozen=True)
class Lab:
    """A switch on host 1 with a guest; host 2 is nobody in particular."""

    fabric: Fabric
    host: Namespace
    guest: Host
    peer: Host
    switch: HostedSwitch
    family: str

    def vtep(self) -> Vtep:
        """Host 2, packets made by hand."""
        return Vtep(self.peer, 2, 1, self.family)

    def wire(self) -> RawSocket:
        """What the guest's interface has to say and hears."""
        return RawSocket(self.guest.path, "up0")


@contextlib.asynccontextmanager
async def running(
    root: Path,
    *,
    family: str = "IPv4",
    mtu: int = MTU,
    guest_keys: Mapping[str, Any] | None = None,
    **keys: Any,
) -> AsyncIterator[Lab]:
    """The lab, its tunnel with these keys, and its guest's port."""
    async with (
        Fabric(mtu) as fabric,
        Namespace() as host,
        Host("guest", root) as guest,
        Host("peer", root) as peer,
    ):
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        ports = {"guest": tap(guest, GUEST, **guest_keys or {}), "tunnel": {**tunnel(1, [2], family), **keys}}
        async with hosted(host, one_bridge(**ports)) as switch:
            yield Lab(fabric, host, guest, peer, switch, family)
