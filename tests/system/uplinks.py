# SPDX-License-Identifier: Apache-2.0
"""Two QEMU guests on one switch with uplinks of both kinds, and what is on their far sides.

    tap        vm1 eth0 | br-tap  | up0, a tap in `host`, with addresses; `host` routes to `beyond` by veth
    af_packet  vm1 eth1 | br-pkt  | wire0, veth in `wire`, its other end far0 in `peer`
    tap        vm1 eth2 | br-tap1 | tap1 - Linux bridge in `middle` - tap2 | br-tap2 | vm2 eth0
    af_packet  vm1 eth3 | br-pkt1 | pkt1 ---- veth in `middle` ----- pkt2 | br-pkt2 | vm2 eth1

All namespaces are the lab's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvswitch.bench.far import FarHost, build_root
from pvswitch.namespace import Namespace
from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine, Nic, accelerator, qemu_version
from tests.system.conftest import StartSwitch

FAMILIES = ("IPv4", "IPv6")
KINDS = ("tap", "af_packet")
OFFLOADS = ("rx", "tx", "sg", "tso", "gso", "gro")
# Far hosts: addresses at once, echo requests to all answered, and the network told of an address that is new.
SETTINGS = {
    "ipv6/conf/default/accept_dad": 0,
    "ipv4/icmp_echo_ignore_broadcasts": 0,
    "ipv4/conf/default/arp_notify": 1,
}


@dataclass(frozen=True)
class Side:
    """One guest's way to a far host by an uplink: addresses by family, and where frames can be seen on the wire."""

    guest: Machine
    interface: str  # the guest's
    port: str  # the guest's
    uplink: str
    far: FarHost
    near_addresses: dict[str, str]
    far_addresses: dict[str, str]
    wire: Namespace
    device: str  # of the far side, in `wire`


@dataclass(frozen=True)
class Lab:
    """All of it, running."""

    switch: SwitchProcess
    vm1: Machine
    vm2: Machine
    host: FarHost
    beyond: FarHost
    wire: Namespace
    peer: FarHost
    middle: Namespace

    def side(self, kind: str) -> Side:
        """The way by an uplink of this kind."""
        if kind == "tap":
            near, far = addresses(1, 1), addresses(1, 2)
            return Side(self.vm1, "eth0", "vm1-tap", "tap", self.host, near, far, self.host, "up0")
        near, far = addresses(3, 1), addresses(3, 2)
        return Side(self.vm1, "eth1", "vm1-pkt", "pkt", self.peer, near, far, self.peer, "far0")

    async def stats(self, port: str) -> dict[str, Any]:
        """A port's counters."""
        stats: dict[str, Any] = await self.switch.get(f"/ports/{port}/stats")
        return stats


def addresses(net: int, host: int) -> dict[str, str]:
    """A host's address in one of the networks, by family."""
    return {"IPv4": f"10.{net}.0.{host}", "IPv6": f"fd00:{net}::{host}"}


def with_prefix(found: dict[str, str]) -> list[str]:
    """Addresses with the length of their prefix."""
    return [f"{found['IPv4']}/24", f"{found['IPv6']}/64"]


def config(host: FarHost, wire: Namespace, middle: Namespace) -> dict[str, Any]:
    """The switch: a bridge for each uplink."""

    def tap(bridge: str, ifname: str, namespace: Namespace, found: Sequence[str] = ()) -> dict[str, Any]:
        words = {"type": "tap", "bridge": bridge, "ifname": ifname, "netns": str(namespace.path)}
        return {**words, "addresses": [*found]}

    def packet(bridge: str, ifname: str, namespace: Namespace) -> dict[str, Any]:
        return {"type": "af_packet", "bridge": bridge, "ifname": ifname, "netns": str(namespace.path)}

    return {
        "bridges": {name: {} for name in ("br-tap", "br-pkt", "br-tap1", "br-tap2", "br-pkt1", "br-pkt2")},
        "ports": {
            "vm1-tap": {"bridge": "br-tap"},
            "vm1-pkt": {"bridge": "br-pkt"},
            "vm1-tap1": {"bridge": "br-tap1"},
            "vm1-pkt1": {"bridge": "br-pkt1"},
            "vm2-tap2": {"bridge": "br-tap2"},
            "vm2-pkt2": {"bridge": "br-pkt2"},
            "tap": tap("br-tap", "up0", host, with_prefix(addresses(1, 2))),
            "pkt": packet("br-pkt", "wire0", wire),
            "tap1": tap("br-tap1", "tap1", middle),
            "tap2": tap("br-tap2", "tap2", middle),
            "pkt1": packet("br-pkt1", "pkt1", middle),
            "pkt2": packet("br-pkt2", "pkt2", middle),
        },
    }


async def veth(near: Namespace, name: str, far: Namespace, far_name: str) -> None:
    """Make a pair of interfaces, both up."""
    pair = f"link add {name} address {mac(name)} type veth peer name {far_name} address {mac(far_name)}"
    await near.ip(pair + (f" netns {far.holder}" if far is not near else ""))
    await near.ip(f"link set {name} up")
    await far.ip(f"link set {far_name} up")


def mac(name: str) -> str:
    """A local address made of a name, so that an interface that is made again has it again."""
    return ":".join(f"{byte:02x}" for byte in b"\x02" + name.encode().ljust(5, b"\0")[:5])


async def make_wire(wire: Namespace, peer: FarHost) -> None:
    """Make the interface of the af_packet port, with addresses on its far end."""
    await veth(wire, "wire0", peer, "far0")
    for address in with_prefix(addresses(3, 2)):
        await peer.ip(f"address add {address} dev far0")


async def make_route(host: FarHost, beyond: FarHost) -> None:
    """Let `host` route between its tap and `beyond`, on a veth where every frame is finished before it leaves."""
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        await host.check(f"echo 1 > /proc/sys/net/{setting}")
    await veth(host, "out0", beyond, "far0")
    for far_host, device, number in ((host, "out0", 1), (beyond, "far0", 2)):
        for address in with_prefix(addresses(2, number)):
            await far_host.ip(f"address add {address} dev {device}")
        await offload(far_host, device, False)
    for family, gateway in addresses(2, 1).items():
        await beyond.ip(f"{'-6' if family == 'IPv6' else '-4'} route add default via {gateway}")


async def offload(namespace: Namespace, device: str, on: bool) -> None:
    """Switch all offloads of an interface on or off: without them it sends and gets finished frames only."""
    words = [word for name in OFFLOADS for word in (name, "on" if on else "off")]
    await namespace.command("ethtool", "-K", device, *words)


async def machine(switch: SwitchProcess, name: str, nics: dict[str, Nic], image: Image, program: str) -> Machine:
    """A guest with an interface on each of the ports."""
    devices: list[str] = []
    for port in nics:
        words = await switch.qemu_args(port, qemu_version(program), accelerator())
        devices += words[words.index("-chardev") :] if devices else words
    return Machine(name, image, devices, nics=[*nics.values()], qemu=program)


def nic(name: str, net: int, host: int) -> Nic:
    """An interface with its addresses in one of the networks."""
    v4, v6 = with_prefix(addresses(net, host))
    return Nic(name, v4, address6=v6)


@contextlib.asynccontextmanager
async def running_lab(
    start_switch: StartSwitch, image: Image, program: str, tools: Sequence[str | Path], folder: Path
) -> AsyncIterator[Lab]:
    """Make the namespaces, start the switch and boot the guests."""
    roots = []
    for name in ("host", "beyond", "peer"):
        (folder / name).mkdir()
        roots.append(build_root(folder / name, tools))
    async with (
        FarHost("host", roots[0]) as host,
        FarHost("beyond", roots[1]) as beyond,
        FarHost("peer", roots[2]) as peer,
        Namespace() as wire,
        Namespace() as middle,
    ):
        for far in (host, beyond, peer):
            for key, value in SETTINGS.items():
                await far.check(f"echo {value} > /proc/sys/net/{key}")
        await make_route(host, beyond)
        await make_wire(wire, peer)
        await veth(middle, "pkt1", middle, "pkt2")
        async with start_switch(config(host, wire, middle)) as switch:
            await middle.ip("link add br0 type bridge forward_delay 0")
            await middle.ip("link set br0 up")
            for tap in ("tap1", "tap2"):
                await middle.ip(f"link set {tap} master br0")
            nics1 = {
                "vm1-tap": nic("eth0", 1, 1),
                "vm1-pkt": nic("eth1", 3, 1),
                "vm1-tap1": nic("eth2", 4, 1),
                "vm1-pkt1": nic("eth3", 5, 1),
            }
            nics2 = {"vm2-tap2": nic("eth0", 4, 2), "vm2-pkt2": nic("eth1", 5, 2)}
            async with (
                await machine(switch, "vm1", nics1, image, program) as vm1,
                await machine(switch, "vm2", nics2, image, program) as vm2,
            ):
                await asyncio.gather(vm1.boot(120), vm2.boot(120))
                for port in (*nics1, *nics2, "tap", "pkt", "tap1", "tap2", "pkt1", "pkt2"):
                    await switch.wait_link(port)
                await vm1.check("echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts")
                for prefix, gateway in (("10.2.0.0/24", "10.1.0.2"), ("fd00:2::/64", "fd00:1::2")):
                    await vm1.check(f"ip route add {prefix} via {gateway}")
                yield Lab(switch, vm1, vm2, host, beyond, wire, peer, middle)
