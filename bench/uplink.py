# SPDX-License-Identifier: Apache-2.0
"""TCP between a QEMU guest and the host's network stack: pvswitch with a tap next to QEMU's own tap on a Linux bridge.

The host is a network namespace without any rule: its stack is the kernel's own, and iperf3 runs in it. Under pvswitch
the host's address is on the tap of an uplink port; next to it QEMU itself copies between the guest and a tap with the
virtio header (TSO and checksum offload, `vhost=off`) on a bridge that has the address. `bench.streams` says how is
measured and what the figures mean. Nothing is pinned.

    python -m bench.uplink [--rounds 5] [--seconds 5] [--json FILE] [--only NAME ...]

Needs root.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.bridge import make_bridge
from bench.streams import Contest, Lab, MissingPeer, machine, main, tap, vhost_user
from pvswitch.namespace import NamespaceMissing
from pvswitch.process import SwitchProcess
from pvswitch.vm import Image
from tests.system.far import FarHost, build_root

GUEST, HOST = "10.0.0.1", "10.0.0.2"


@asynccontextmanager
async def far_host() -> AsyncIterator[FarHost]:
    """Make the host, in which nothing is yet."""
    with tempfile.TemporaryDirectory(prefix="pvswitch-bench-") as folder:
        try:
            async with FarHost("host", build_root(Path(folder), ["iperf3"])) as host:
                yield host
        except NamespaceMissing as error:
            raise MissingPeer(str(error)) from error


@asynccontextmanager
async def guest(
    host: FarHost,
    image: Image,
    qemu: str,
    netdev: Sequence[str],
    *,
    launcher: Sequence[str] = (),
    pid: int | None = None,
) -> AsyncIterator[Lab]:
    """Boot the guest on its netdev."""
    async with machine("vm1", GUEST, image, qemu, netdev, launcher) as vm1:
        await vm1.boot(120)
        yield Lab({GUEST: vm1, HOST: host}, [vm1], pid)


@asynccontextmanager
async def pvswitch(image: Image, qemu: str) -> AsyncIterator[Lab]:
    """Run pvswitch as it is without further configuration: one worker, adaptive polling, one queue of the tap."""
    async with far_host() as host:
        uplink = {"type": "tap", "ifname": "uplink0", "netns": str(host.path), "addresses": [f"{HOST}/24"]}
        config: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "uplink": uplink}}
        async with (
            SwitchProcess(config) as switch,
            guest(host, image, qemu, vhost_user(switch.port_socket("vm1")), pid=switch.pid) as lab,
        ):
            yield lab


@asynccontextmanager
async def qemu_tap(image: Image, qemu: str) -> AsyncIterator[Lab]:
    """Let QEMU itself copy between guest and tap, on a bridge that has the host's address."""
    async with far_host() as host:
        await make_bridge(host, ["tap-vm1"], f"{HOST}/24")
        async with guest(host, image, qemu, tap("tap-vm1"), launcher=host.launcher) as lab:
            yield lab


CONTEST = Contest(
    title="TCP between guest and host",
    switches={"pvswitch": pvswitch, "QEMU tap": qemu_tap},
    targets={"QEMU tap": 0.95},
    each_direction=True,
)

if __name__ == "__main__":
    sys.exit(main(CONTEST, "bench.uplink", __doc__ or ""))
