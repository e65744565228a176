# SPDX-License-Identifier: Apache-2.0
"""TCP between two QEMU guests: pvswitch next to OVS-DPDK and a Linux bridge with QEMU taps, in turns (A/B/A/B...).

Every round boots the same two guests (image, QEMU, memory, device) on each switch in turn; `bench.streams` says how
is measured and what the figures mean. Nothing is pinned, except OVS-DPDK's poll thread, which pins itself. OVS-DPDK has
its defaults, without `userspace-tso-enable`, with which TCP between these guests hangs. The bridge's taps carry the
virtio header (TSO and checksum offload), `vhost=off`, in a network namespace without any rule.

    python -m bench.tcp [--rounds 5] [--seconds 5] [--json FILE] [--only NAME ...]

Needs root for both peers, and hugepages for OVS-DPDK.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bench.bridge import make_bridge
from bench.ovs import Ovs, OvsError
from bench.streams import Contest, Lab, MissingPeer, machine, main, tap, vhost_user
from pvswitch.namespace import Namespace, NamespaceMissing
from pvswitch.process import SwitchProcess
from pvswitch.vm import Image
from tests.system.testpmd import hugepages

ADDRESSES = {"vm1": "10.0.0.1", "vm2": "10.0.0.2"}
HUGEPAGES = 1500


@asynccontextmanager
async def guests(
    image: Image,
    qemu: str,
    netdevs: Mapping[str, Sequence[str]],
    *,
    launcher: Sequence[str] = (),
    pid: int | None = None,
) -> AsyncIterator[Lab]:
    """Boot both guests on their netdevs."""
    vm1, vm2 = (machine(name, address, image, qemu, netdevs[name], launcher) for name, address in ADDRESSES.items())
    async with vm1, vm2:
        await asyncio.gather(vm1.boot(120), vm2.boot(120))
        yield Lab({ADDRESSES["vm1"]: vm1, ADDRESSES["vm2"]: vm2}, (vm1, vm2), pid)


@asynccontextmanager
async def pvswitch(image: Image, qemu: str) -> AsyncIterator[Lab]:
    """Run pvswitch as it is without further configuration: one worker, adaptive polling, nothing pinned."""
    config: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {name: {} for name in ADDRESSES}}
    async with SwitchProcess(config) as switch:
        netdevs = {name: vhost_user(switch.port_socket(name)) for name in ADDRESSES}
        async with guests(image, qemu, netdevs, pid=switch.pid) as lab:
            yield lab


@asynccontextmanager
async def ovs(image: Image, qemu: str) -> AsyncIterator[Lab]:
    """Run OVS-DPDK with one poll thread."""
    with hugepages(HUGEPAGES) as huge:
        if not huge:
            raise MissingPeer(f"{HUGEPAGES} hugepages of 2 MiB can't be had: run this as root")
        try:
            async with Ovs([*ADDRESSES]) as switch:
                netdevs = {name: vhost_user(socket) for name, socket in switch.sockets.items()}
                async with guests(image, qemu, netdevs, pid=switch.pid) as lab:
                    yield lab
        except OvsError as error:
            raise MissingPeer(str(error)) from error


@asynccontextmanager
async def bridge(image: Image, qemu: str) -> AsyncIterator[Lab]:
    """Make a Linux bridge; QEMU itself copies between guest and tap."""
    try:
        async with Namespace() as namespace:
            taps = {name: f"tap-{name}" for name in ADDRESSES}
            await make_bridge(namespace, [*taps.values()])
            netdevs = {name: tap(ifname) for name, ifname in taps.items()}
            async with guests(image, qemu, netdevs, launcher=namespace.launcher) as lab:
                yield lab
    except NamespaceMissing as error:
        raise MissingPeer(str(error)) from error


CONTEST = Contest(
    title="TCP between guests",
    switches={"pvswitch": pvswitch, "OVS-DPDK": ovs, "bridge": bridge},
    targets={"OVS-DPDK": 4.0, "bridge": 0.95},
)

if __name__ == "__main__":
    sys.exit(main(CONTEST, "bench.tcp", __doc__ or ""))
