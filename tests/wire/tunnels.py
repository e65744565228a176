# SPDX-License-Identifier: Apache-2.0
"""What the tests of tunnels share: a switch in a namespace, whose underlay is a wire that the test holds.

The switch's kernel has one end of a veth pair (v0), the test has the other (v1), by a packet socket: it sees every
packet as it is on the wire, checksums and fragments too, and plays all other hosts, whatever addresses they have. All
of them are behind one gateway. Packets are built and judged by scapy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from pvswitch.guest import Guest
from pvswitch.namespace import Namespace
from pvswitch.netlink import run_in_namespace
from pvswitch.process import SwitchProcess
from tests.system.conftest import orderly
from tests.wire.lab import PATIENCE, SENTINEL_TYPE, stats
from tests.wire.uplinks import namespace

KINDS = ("vxlan", "geneve", "gre")
FAMILIES = (4, 6)
PORTS = {"vxlan": 4789, "geneve": 6081, "gre": 0}
OUTER = {"vxlan": 36, "geneve": 36, "gre": 28}
"""Bytes before the inner frame, over IPv4; GRE with a key."""
MTUS = {1: 9000, 2: 1500, 3: 1000, 4: 1280}
"""Of the path to the hosts of each network."""
OWN_MAC, GATEWAY_MAC = "02:aa:00:00:00:01", "02:aa:00:00:00:02"
ALL_ONES = b"\xff" * 6
SOL_SOCKET, SO_RCVBUFFORCE, SOL_PACKET, PACKET_IGNORE_OUTGOING = 1, 33, 263, 23
SETTLED = 0.05
"""Seconds after which what must not come would have come."""


def local(family: int = 4, number: int = 1) -> str:
    """An address of the switch's host."""
    return f"10.9.0.{number}" if family == 4 else f"fd09::{number}"


def remote(number: int, family: int = 4, network: int = 1) -> str:
    """An address of another host; `network` says the MTU of the path there."""
    return f"10.9.{network}.{number}" if family == 4 else f"fd09:0:0:{network}::{number:x}"


def mac(number: int) -> bytes:
    """An address of a machine behind another host."""
    return bytes.fromhex("02bb") + number.to_bytes(4, "big")


def inner(dst: bytes, src: bytes, length: int = 100, seed: int = 0) -> bytes:
    """A frame that isn't IP, recognised by its seed."""
    body = seed.to_bytes(4, "big") + bytes((seed + i) & 0xFF for i in range(length - 18))
    return dst + src + b"\x88\xb5" + body


def udp(
    dst: bytes, src: bytes, *, size: int = 100, flow: int = 1, seed: int = 0, tos: int = 0, family: int = 4
) -> bytes:
    """A frame of UDP of one flow."""
    ip = (
        IP(src="192.0.2.1", dst="192.0.2.2", tos=tos, id=seed & 0xFFFF, flags="DF")
        if family == 4
        else IPv6(src="2001:db8::1", dst="2001:db8::2", tc=tos)
    )
    ether = Ether(dst=dst.hex(":"), src=src.hex(":"))
    return bytes(ether / ip / UDP(sport=flow, dport=53) / Raw(seed.to_bytes(4, "big").ljust(size, b"\x5a")))


def header(kind: str, vni: int | None) -> Packet:
    """What stands before the frame; of GRE without a key `vni` is None."""
    if kind == "vxlan":
        return VXLAN(vni=vni, flags="Instance")
    if kind == "geneve":
        return GENEVE(vni=vni, proto=0x6558)
    return GRE(proto=0x6558) if vni is None else GRE(proto=0x6558, key_present=1, key=vni)


def ip(src: str, dst: str, **words: Any) -> Packet:
    """An outer header as the switch's host writes it, but for the ID and flow label."""
    if ":" in src:
        return IPv6(src=src, dst=dst, **{"hlim": 64, **words})
    return IP(src=src, dst=dst, **{"ttl": 64, "id": 0, "flags": "DF", **words})


def wrap(
    kind: str, vni: int | None, frame: bytes, src: str, dst: str, *, sport: int = 50_000, dport: int = 0, **words: Any
) -> bytes:
    """What another host sends to the switch."""
    outer = Ether(dst=OWN_MAC, src=GATEWAY_MAC) / ip(src, dst, **words)
    if kind != "gre":
        outer /= UDP(sport=sport, dport=dport or PORTS[kind])
    return bytes(outer / header(kind, vni) / Raw(frame))


@dataclass(frozen=True)
class Datagram:
    """A packet of a tunnel that the switch has sent."""

    raw: bytes
    kind: str
    src: str
    dst: str
    sport: int
    dport: int
    tos: int
    vni: int | None
    inner: bytes

    def exact(self, **words: Any) -> None:
        """Every byte is as scapy would have written it, but for what the kernel chooses: ID, label, source port."""
        seen = Ether(self.raw)
        own = {"id": seen[IP].id, "tos": self.tos} if seen.type == 0x0800 else {"fl": seen[IPv6].fl, "tc": self.tos}
        packet = Ether(dst=GATEWAY_MAC, src=OWN_MAC) / ip(self.src, self.dst, **{**own, **words})
        if self.kind != "gre":
            packet /= UDP(sport=self.sport, dport=self.dport)
        assert self.raw == bytes(packet / header(self.kind, self.vni) / Raw(self.inner))


def read(raw: bytes) -> Datagram | None:
    """A packet taken apart, quickly; None: it is none of a tunnel."""
    ethertype = raw[12:14]
    if ethertype == b"\x08\x00":
        src, dst = socket.inet_ntoa(raw[26:30]), socket.inet_ntoa(raw[30:34])
        protocol, tos, at, end = raw[23], raw[15], 14 + (raw[14] & 15) * 4, 14 + int.from_bytes(raw[16:18], "big")
        if int.from_bytes(raw[20:22], "big") & 0x3FFF:
            return None  # a fragment
    elif ethertype == b"\x86\xdd":
        src, dst = (socket.inet_ntop(socket.AF_INET6, raw[i : i + 16]) for i in (22, 38))
        protocol, tos, at = raw[20], (raw[14] & 15) << 4 | raw[15] >> 4, 54
        end = 54 + int.from_bytes(raw[18:20], "big")
    else:
        return None
    if protocol == 47:
        keyed = bool(raw[at] & 0x20)
        vni = int.from_bytes(raw[at + 4 : at + 8], "big") if keyed else None
        return Datagram(raw, "gre", src, dst, 0, 0, tos, vni, raw[at + 4 + 4 * keyed : end])
    if protocol != 17:
        return None
    sport, dport = int.from_bytes(raw[at : at + 2], "big"), int.from_bytes(raw[at + 2 : at + 4], "big")
    kind = "geneve" if raw[at + 10 : at + 12] == b"\x65\x58" else "vxlan"
    vni = int.from_bytes(raw[at + 12 : at + 15], "big")
    return Datagram(raw, kind, src, dst, sport, dport, tos, vni, raw[at + 16 : end])


class Underlay:
    """The test's end of the wire."""

    def __init__(self, where: Namespace, sock: socket.socket) -> None:
        self.namespace, self._sock = where, sock

    def send(self, *packets: bytes) -> None:
        for packet in packets:
            self._sock.send(packet)

    def poll(self) -> bytes | None:
        """The next packet, whatever it is."""
        try:
            return self._sock.recv(65_600)
        except BlockingIOError:
            return None

    def poll_datagram(self) -> Datagram | None:
        """The next packet of a tunnel."""
        while (raw := self.poll()) is not None:
            if (found := read(raw)) is not None:
                return found
        return None

    async def packet(self) -> bytes:
        """The next packet, waited for."""
        async with asyncio.timeout(PATIENCE):
            while (raw := self.poll()) is None:  # noqa: ASYNC110 (another process does it)
                await asyncio.sleep(0.002)
        return raw

    async def receive(self, count: int) -> list[Datagram]:
        """So many packets of tunnels."""
        found: list[Datagram] = []
        try:
            async with asyncio.timeout(PATIENCE):
                while len(found) < count:
                    one = self.poll_datagram()
                    if one is None:
                        await asyncio.sleep(0.002)
                    else:
                        found.append(one)
        except TimeoutError:
            raise AssertionError(f"{len(found)} packets instead of {count}") from None
        return found

    async def nothing(self) -> None:
        """No packet of a tunnel comes."""
        await asyncio.sleep(SETTLED)
        assert self.poll_datagram() is None

    def forget(self) -> None:
        while self.poll() is not None:
            pass


@contextlib.asynccontextmanager
async def underlay(gro: bool = False) -> AsyncIterator[Underlay]:
    """A namespace with a host's side of a wire, and the wire's other end."""
    async with namespace() as made:
        await made.command("sh", "-ec", SETUP + ("ethtool -K v0 gro on" if gro else ""))

        def open_wire() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            sock.setsockopt(SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            sock.bind(("v1", 3))
            return sock

        sock = await run_in_namespace(made.path, open_wire)
        try:
            yield Underlay(made, sock)
        finally:
            sock.close()


def _setup() -> str:
    lines = [
        "for i in all default; do echo 0 > /proc/sys/net/ipv4/conf/$i/rp_filter; done",
        "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6",
        "ip link add v0 type veth peer name v1",
        "echo 0 > /proc/sys/net/ipv6/conf/v0/disable_ipv6",
        f"ip link set v0 address {OWN_MAC} mtu 9000",
        f"ip link set v1 address {GATEWAY_MAC} mtu 9000 arp off",
        "ethtool -K v0 tx off >/dev/null",
        "ip link set v0 up",
        "ip link set v1 up",
        "ip route add 10.9.255.254 dev v0",
        "ip -6 route add fd09::fffe dev v0",
        f"ip neigh add 10.9.255.254 lladdr {GATEWAY_MAC} dev v0 nud permanent",
        f"ip neigh add fd09::fffe lladdr {GATEWAY_MAC} dev v0 nud permanent",
    ]
    for number in (1, 2, 3):
        lines.append(f"ip addr add {local(4, number)}/32 dev v0")
        lines.append(f"ip addr add {local(6, number)}/128 dev v0 nodad")
    lines += ["ip route add default via 10.9.255.254", "ip -6 route add default via fd09::fffe dev v0"]
    for number, mtu in MTUS.items():
        lines.append(f"ip route add 10.9.{number}.0/24 via 10.9.255.254 mtu {mtu}")
        if mtu >= 1280:
            lines.append(f"ip -6 route add fd09:0:0:{number}::/64 via fd09::fffe dev v0 mtu {mtu}")
    return "\n".join(lines) + "\n"


SETUP = _setup()

CONFIG: dict[str, Any] = {
    "bridges": {"br0": {}, "quick": {"aging_time": 2}},
    "ports": {
        **{name: {"bridge": "br0"} for name in "abcd"},
        "access10": {"bridge": "br0", "tag": 10},
        "access20": {"bridge": "br0", "tag": 20},
        "q": {"bridge": "quick"},
    },
}


@dataclass
class Lab:
    """A switch, the wire, and what a test has added to them."""

    switch: SwitchProcess
    wire: Underlay
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    ports: set[str] = field(default_factory=set)

    async def call(self, method: str, path: str, body: object = None, *, status: int | tuple[int, ...] = 200) -> Any:
        """Ask the API; the answer's status must be as given."""
        got, answer = await self.switch.request(method, f"/api/v1{path}", body)
        assert got in (status if isinstance(status, tuple) else (status,)), (got, answer)
        return answer

    async def put(self, name: str, **settings: Any) -> None:
        """Add or change a port; it goes with the test."""
        await self.call("PUT", f"/ports/{name}", {"bridge": "br0", **settings}, status=(200, 201))
        self.ports.add(name)

    async def tunnel(
        self, name: str, kind: str = "vxlan", *, family: int = 4, remotes: Any = None, **settings: Any
    ) -> None:
        """Add or change a tunnel, to hosts 1 and 2 where nothing else is said; it is up then."""
        where = [remote(1, family), remote(2, family)] if remotes is None else list(remotes)
        number = "key" if kind == "gre" else "vni"
        if "vni" in settings:
            settings[number] = settings.pop("vni")
        elif "key" not in settings:
            settings[number] = 100
        await self.put(name, **{"type": kind, "local": local(family), "remotes": where, **settings})
        if settings.get("enabled", True):
            await self.switch.wait_link(name)

    async def delete(self, name: str) -> None:
        self.ports.discard(name)
        await self.call("DELETE", f"/ports/{name}", status=204)

    async def plug(self, port: str, **conf: Any) -> Guest:
        """A guest on a port."""
        guest = await self.stack.enter_async_context(Guest(self.switch.port_socket(port), **conf))
        await self.switch.wait_link(port)
        return guest

    async def stats(self, port: str) -> dict[str, Any]:
        return await stats(self.switch, port)

    async def endpoint(self, port: str) -> dict[str, Any]:
        """What came to a tunnel's endpoint."""
        found: dict[str, Any] = (await self.switch.get(f"/tunnels/{port}"))["endpoint"]
        return found

    async def fdb(self, bridge: str = "br0") -> dict[str, dict[str, Any]]:
        """The addresses that a bridge knows."""
        page = await self.switch.get(f"/bridges/{bridge}/fdb?limit=1000")
        return {item["mac"]: item for item in page["items"]}

    async def knows(self, guest: Guest, port: str, vid: int = 0, bridge: str = "br0") -> None:
        """Have the switch know where a guest is, without a frame."""
        path = f"/bridges/{bridge}/fdb/{vid}/{guest.mac.hex(':')}"
        await self.call("PUT", path, {"port": port}, status=(200, 201))

    def come(self, kind: str, vni: int | None, frame: bytes, host: str, *, to: str = "", **words: Any) -> None:
        """Have a host send a frame to the switch."""
        family = 6 if ":" in host else 4
        self.wire.send(wrap(kind, vni, frame, host, to or local(family), **words))

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """The switch stands still, so that what comes meanwhile is one burst."""
        os.kill(self.switch.pid, signal.SIGSTOP)
        try:
            while any(thread.read_text().rpartition(")")[2].split()[0] != "T" for thread in self._threads()):
                time.sleep(0.001)
            yield
        finally:
            os.kill(self.switch.pid, signal.SIGCONT)

    def _threads(self) -> list[Path]:
        return [*Path(f"/proc/{self.switch.pid}/task").glob("*/stat")]

    async def close(self) -> None:
        """Take away what the test has added."""
        await self.stack.aclose()
        self.stack = contextlib.AsyncExitStack()
        for bridge, keys in CONFIG["bridges"].items():  # its mirrors name ports
            await self.call("PUT", f"/bridges/{bridge}", keys)
        for name in sorted(self.ports):
            await self.delete(name)
        for bridge in CONFIG["bridges"]:
            await self.call("DELETE", f"/bridges/{bridge}/fdb", status=(200, 204))
        self.wire.forget()


@contextlib.asynccontextmanager
async def tunnel_lab(workers: int = 1, config: Mapping[str, Any] = CONFIG, *, gro: bool = False) -> AsyncIterator[Lab]:
    """A switch in a namespace with its wire."""
    async with underlay(gro) as wire:
        process = SwitchProcess({**config, "datapath": {"workers": workers}}, wire.namespace.launcher)
        async with orderly(process) as switch:
            yield Lab(switch, wire)


async def only(guest: Guest, sender: Guest, frames: list[bytes]) -> None:
    """A guest gets these frames and nothing more, as a broadcast of another one right behind them shows."""
    sentinel = ALL_ONES + sender.mac + SENTINEL_TYPE + os.urandom(46)
    await sender.send(sentinel)
    for wanted in [*frames, sentinel]:
        assert await guest.recv(PATIENCE) == wanted
