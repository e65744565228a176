# SPDX-License-Identifier: Apache-2.0
"""TCP between two ends over a switch: what `tcp`, `uplink` and `tunnel_tcp` share.

A lab is two ends on a running switch. After a short stream that isn't counted iperf3 sends one TCP stream from the
first end to the second and then one back. Nothing is pinned. What a figure cost is told in cores: CPU time per second
of the switch's processes, of the QEMUs, and of everything else on the machine (for a bridge: its kernel part).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pvswitch.attach import TCG_MSIX_SINCE
from pvswitch.bench.machine import cpu_seconds, machine_seconds
from pvswitch.bench.results import Sample
from pvswitch.vm import Image, Machine, Nic, accelerator, qemu_version

WARM_UP_SECONDS = 2
BOOT_SECONDS = 120


class End(Protocol):
    """What sends and receives: a guest, or a host without one. It has busybox and iperf3."""

    name: str

    async def check(self, command: str, seconds: float = ...) -> str:
        """Run a command that must succeed; return its output."""


@dataclass(frozen=True)
class Lab:
    """Two ends on a running switch, with their addresses, the guests among them, and the switch's processes if any."""

    ends: Mapping[str, End]
    guests: Sequence[Machine]
    pids: Sequence[int] = ()


@dataclass(frozen=True)
class Boot:
    """What guests boot, and on which QEMU; whether there are hugepages for a switch that needs them."""

    image: Image
    qemu: str
    huge: bool


Labs = Mapping[str, Callable[[Boot], AbstractAsyncContextManager[Lab]]]


# ---- the guests


def vhost_user(socket: Path) -> list[str]:
    """QEMU's words for a netdev on a vhost-user socket where the switch listens."""
    return ["-chardev", f"socket,id=c0,path={socket}", "-netdev", "vhost-user,id=n0,chardev=c0"]


def tap(ifname: str) -> list[str]:
    """QEMU's words for a netdev on a tap that is there."""
    return ["-netdev", f"tap,id=n0,script=no,downscript=no,vhost=off,ifname={ifname}"]


@asynccontextmanager
async def machine(
    name: str,
    address: str,
    boot: Boot,
    netdev: Sequence[str],
    launcher: Sequence[str] = (),
    *,
    mtu: int | None = None,
) -> AsyncIterator[Machine]:
    """Start a guest, the same on every switch but for its netdev `n0` and for what starts QEMU. It isn't booted yet."""
    device = f"virtio-net-pci,netdev=n0,mac=02:00:00:00:00:{int(address.rpartition('.')[2]):02x}"
    if accelerator().startswith("tcg") and qemu_version(boot.qemu) < TCG_MSIX_SINCE:
        device += ",vectors=0"
    memory = ("-m", "256M", "-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-numa", "node,memdev=mem")
    words = [*memory, *netdev, "-device", device]
    nics = [Nic("eth0", f"{address}/24", mtu)]
    async with Machine(name, boot.image, words, nics=nics, qemu=boot.qemu, launcher=launcher) as made:
        yield made


# ---- one measurement


async def measure(lab: Lab, case: str, switch: str, number: int, seconds: float) -> list[Sample]:
    """Measure each direction once."""
    samples = []
    (first, one), (second, other) = lab.ends.items()
    await _stream(one, other, second, WARM_UP_SECONDS)
    for source, target, address in ((one, other, second), (other, one, first)):
        before, began = _spent(lab), time.monotonic()
        answer = await _stream(source, target, address, max(1, round(seconds)))
        after, elapsed = _spent(lab), time.monotonic() - began
        end = answer["end"]
        cores = [(new - old) / elapsed for old, new in zip(before, after, strict=True)]
        figures = dict(zip(("switch_cores", "qemu_cores", "other_cores"), cores, strict=True))
        figures["gbits"] = end["sum_received"]["bits_per_second"] / 1e9
        seen = {"retransmits": end["sum_sent"]["retransmits"]}
        samples.append(Sample(case, switch, number, figures, part=f"from {source.name}", seen=seen))
    return samples


async def _stream(source: End, target: End, address: str, seconds: int) -> dict[str, Any]:
    """Send one TCP stream to the target's address; return iperf3's own account of it."""
    await target.check(
        "while pidof iperf3; do sleep 0.1; done; iperf3 --server --one-off --daemon;"
        "until netstat -ltn | grep -q :5201; do sleep 0.1; done"
    )
    command = f"iperf3 --client {address} --time {seconds} --json"
    answer: dict[str, Any] = json.loads(await source.check(command, seconds=seconds + 60))
    return answer


def _spent(lab: Lab) -> tuple[float, float, float]:
    """CPU seconds so far of the switch's processes (0 without), of the QEMUs, and of all others."""
    switch = sum(cpu_seconds(pid) for pid in lab.pids)
    qemus = sum(cpu_seconds(guest.pid) for guest in lab.guests)
    return switch, qemus, machine_seconds() - switch - qemus
