# SPDX-License-Identifier: Apache-2.0
"""Labs of a QEMU guest and the host's network stack: by pvswitch with a tap, and by QEMU's own tap on a Linux bridge.

The host is a network namespace without any rule: its stack is the kernel's own, and iperf3 runs in it. Under pvswitch
the host's address is on the tap of an uplink port; next to it QEMU itself copies between the guest and a tap with the
virtio header (TSO and checksum offload, `vhost=off`) on a bridge that has the address. Needs root.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pvswitch.bench.errors import NotOffered
from pvswitch.bench.far import FarHost, build_root
from pvswitch.bench.linux_bridge import make_bridge
from pvswitch.bench.streams import BOOT_SECONDS, Boot, Lab, Labs, machine, tap, vhost_user
from pvswitch.bench.work import PVSWITCH, QEMU_TAP
from pvswitch.namespace import NamespaceMissing
from pvswitch.process import SwitchProcess

GUEST, HOST = "10.0.0.1", "10.0.0.2"


@asynccontextmanager
async def _far_host() -> AsyncIterator[FarHost]:
    """Make the host, in which nothing is yet."""
    with tempfile.TemporaryDirectory(prefix="pvswitch-bench-") as folder:
        try:
            async with FarHost("host", build_root(Path(folder), ["iperf3"])) as host:
                yield host
        except NamespaceMissing as error:
            raise NotOffered(str(error)) from error


@asynccontextmanager
async def _guest(
    host: FarHost, boot: Boot, netdev: Sequence[str], *, launcher: Sequence[str] = (), pids: Sequence[int] = ()
) -> AsyncIterator[Lab]:
    """Boot the guest on its netdev."""
    async with machine("vm1", GUEST, boot, netdev, launcher) as vm1:
        await vm1.boot(BOOT_SECONDS)
        yield Lab({GUEST: vm1, HOST: host}, [vm1], pids)


@asynccontextmanager
async def _pvswitch(boot: Boot) -> AsyncIterator[Lab]:
    """Run pvswitch as it is without further configuration: one worker, adaptive polling, one queue of the tap."""
    async with _far_host() as host:
        uplink = {"type": "tap", "ifname": "uplink0", "netns": str(host.path), "addresses": [f"{HOST}/24"]}
        config: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "uplink": uplink}}
        async with (
            SwitchProcess(config) as switch,
            _guest(host, boot, vhost_user(switch.port_socket("vm1")), pids=[switch.pid]) as lab,
        ):
            yield lab


@asynccontextmanager
async def _qemu_tap(boot: Boot) -> AsyncIterator[Lab]:
    """Let QEMU itself copy between guest and tap, on a bridge that has the host's address."""
    async with _far_host() as host:
        await make_bridge(host, ["tap-vm1"], f"{HOST}/24")
        async with _guest(host, boot, tap("tap-vm1"), launcher=host.launcher) as lab:
            yield lab


LABS: Labs = {PVSWITCH: _pvswitch, QEMU_TAP: _qemu_tap}
