# SPDX-License-Identifier: Apache-2.0
"""Labs of two QEMU guests: on pvswitch, on OVS-DPDK, and on a Linux bridge with QEMU's own taps.

Every lab boots the same two guests (image, QEMU, memory, device). OVS-DPDK has its defaults, without
`userspace-tso-enable`, with which TCP between these guests hangs; its poll thread pins itself. The bridge's taps carry
the virtio header (TSO and checksum offload), `vhost=off`, in a network namespace without any rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pvswitch.bench.errors import MissingPeer
from pvswitch.bench.linux_bridge import make_bridge
from pvswitch.bench.streams import BOOT_SECONDS, Boot, Lab, Labs, machine, tap, vhost_user
from pvswitch.bench.switches import SWITCHES, Wanted
from pvswitch.bench.work import BRIDGE, OVS, PVSWITCH
from pvswitch.namespace import Namespace, NamespaceMissing

ADDRESSES = {"vm1": "10.0.0.1", "vm2": "10.0.0.2"}


@asynccontextmanager
async def _guests(
    boot: Boot, netdevs: Sequence[Sequence[str]], *, launcher: Sequence[str] = (), pids: Sequence[int] = ()
) -> AsyncIterator[Lab]:
    """Boot both guests on their netdevs."""
    (name1, address1), (name2, address2) = ADDRESSES.items()
    async with (
        machine(name1, address1, boot, netdevs[0], launcher) as vm1,
        machine(name2, address2, boot, netdevs[1], launcher) as vm2,
    ):
        await asyncio.gather(vm1.boot(BOOT_SECONDS), vm2.boot(BOOT_SECONDS))
        yield Lab({address1: vm1, address2: vm2}, (vm1, vm2), pids)


@asynccontextmanager
async def _on_sockets(name: str, boot: Boot) -> AsyncIterator[Lab]:
    """Run a switch as it is without further configuration: adaptive polling, nothing pinned."""
    wanted = Wanted(ports=len(ADDRESSES), cpu=None, polling="adaptive", huge=boot.huge)
    async with (
        SWITCHES[name](wanted) as switch,
        _guests(boot, [vhost_user(path) for path in switch.sockets], pids=[switch.pid]) as lab,
    ):
        yield lab


@asynccontextmanager
async def _pvswitch(boot: Boot) -> AsyncIterator[Lab]:
    async with _on_sockets(PVSWITCH, boot) as lab:
        yield lab


@asynccontextmanager
async def _ovs(boot: Boot) -> AsyncIterator[Lab]:
    async with _on_sockets(OVS, boot) as lab:
        yield lab


@asynccontextmanager
async def _bridge(boot: Boot) -> AsyncIterator[Lab]:
    """Make a Linux bridge; QEMU itself copies between guest and tap."""
    try:
        async with Namespace() as namespace:
            taps = [f"tap-{name}" for name in ADDRESSES]
            await make_bridge(namespace, taps)
            async with _guests(boot, [tap(ifname) for ifname in taps], launcher=namespace.launcher) as lab:
                yield lab
    except NamespaceMissing as error:
        raise MissingPeer(str(error)) from error


LABS: Labs = {PVSWITCH: _pvswitch, OVS: _ovs, BRIDGE: _bridge}
