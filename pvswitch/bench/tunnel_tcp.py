# SPDX-License-Identifier: Apache-2.0
"""Labs of two QEMU guests on two hosts with a VXLAN between: pvswitch, OVS-DPDK's userspace tunnel, the kernel's vxlan.

Each host has a switch of its own and a guest with an MTU of 1450; the underlay is that of `underlay`, with the veths'
own offloads. The kernel's vxlan is a port of a Linux bridge with QEMU's own tap. OVS-DPDK has a bridge `br-phy` with
the host's address and, as its network card, DPDK's af_packet device on the veth, which its poll thread serves. It
offers its guests no offloads, as always without `userspace-tso-enable`; since it takes packets from a veth as from a
wire, its veths have none either. Its two poll threads pin themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pvswitch.bench.errors import MissingPeer
from pvswitch.bench.linux_bridge import make_bridge
from pvswitch.bench.ovs_tunnel import OvsHost
from pvswitch.bench.streams import BOOT_SECONDS, Boot, Lab, Labs, machine, tap, vhost_user
from pvswitch.bench.switches import require_hugepages
from pvswitch.bench.underlay import INNER_MTU, VNI, Hosts, address, joined, tunnel
from pvswitch.bench.work import KERNEL, OVS, PVSWITCH
from pvswitch.namespace import NamespaceMissing
from pvswitch.process import SwitchProcess

ADDRESSES = {"vm1": "10.0.0.1", "vm2": "10.0.0.2"}
OTHER = {1: 2, 2: 1}


@asynccontextmanager
async def _guests(
    boot: Boot, netdevs: Sequence[Sequence[str]], *, hosts: Hosts | None = None, pids: Sequence[int] = ()
) -> AsyncIterator[Lab]:
    """Boot both guests on their netdevs, each on its host where that matters."""
    async with AsyncExitStack() as stack:
        guests = [
            await stack.enter_async_context(
                machine(name, found, boot, netdev, () if hosts is None else hosts[place].launcher, mtu=INNER_MTU)
            )
            for place, ((name, found), netdev) in enumerate(zip(ADDRESSES.items(), netdevs, strict=True))
        ]
        await asyncio.gather(*(guest.boot(BOOT_SECONDS) for guest in guests))
        yield Lab(dict(zip(ADDRESSES.values(), guests, strict=True)), guests, pids)


@asynccontextmanager
async def _pvswitch(boot: Boot) -> AsyncIterator[Lab]:
    """Run pvswitch as it is without further configuration: one worker on each host, adaptive polling."""

    def config(number: int) -> dict[str, Any]:
        return {"bridges": {"br0": {}}, "ports": {"vm": {}, "tunnel": tunnel(number, [address(OTHER[number])])}}

    async with (
        joined() as hosts,
        SwitchProcess(config(1), hosts.near.launcher) as near,
        SwitchProcess(config(2), hosts.far.launcher) as far,
    ):
        netdevs = [vhost_user(switch.port_socket("vm")) for switch in (near, far)]
        async with _guests(boot, netdevs, pids=(near.pid, far.pid)) as lab:
            yield lab


@asynccontextmanager
async def _ovs(boot: Boot) -> AsyncIterator[Lab]:
    require_hugepages(OVS, boot.huge)
    async with (
        joined(single=True, gro=False) as hosts,
        OvsHost(hosts.near, 1, [address(2)], ["vm"], pmd_cpu=0) as near,
        OvsHost(hosts.far, 2, [address(1)], ["vm"], pmd_cpu=1) as far,
    ):
        netdevs = [vhost_user(path) for switch in (near, far) for path in switch.sockets]
        async with _guests(boot, netdevs, pids=(near.pid, far.pid)) as lab:
            yield lab


@asynccontextmanager
async def _kernel(boot: Boot) -> AsyncIterator[Lab]:
    """Make a Linux bridge on each host; QEMU itself copies between guest and tap."""
    async with joined() as hosts:
        for number, host in enumerate(hosts, 1):
            try:
                await make_bridge(host, ["tap0"])
            except NamespaceMissing as error:
                raise MissingPeer(str(error)) from error
            ends = f"local {address(number)} remote {address(OTHER[number])}"
            await host.ip(f"link add vx0 type vxlan id {VNI} {ends} dstport 4789")
            await host.ip("link set vx0 master br0 up")
        async with _guests(boot, [tap("tap0"), tap("tap0")], hosts=hosts) as lab:
            yield lab


LABS: Labs = {PVSWITCH: _pvswitch, OVS: _ovs, KERNEL: _kernel}
