# SPDX-License-Identifier: Apache-2.0
"""TCP between two QEMU guests: pvswitch next to OVS-DPDK and a Linux bridge with QEMU taps, in turns (A/B/A/B...).

Every round boots the same two guests (image, QEMU, memory, device) on each switch in turn, and iperf3 sends one TCP
stream from vm1 to vm2 and then one back. Nothing is pinned, except OVS-DPDK's poll thread, which pins itself; only
one switch runs at a time. OVS-DPDK has its defaults, without `userspace-tso-enable`, with which TCP between these
guests hangs. The bridge's taps carry the virtio header (TSO and checksum offload), `vhost=off`, in a network namespace
without any rule.

A figure is the median of all streams of a switch, and its interval holds the true median with 95 % (from the order of
the samples alone; with fewer than six it is from lowest to highest). Ratios are taken within a round and direction. A
target is met or missed when the ratio's whole interval is; otherwise it is undecided.

    python -m bench.tcp [--rounds 5] [--seconds 5] [--json FILE] [--only NAME ...]

A peer that can't run here is named and left out. Needs root for both peers, and hugepages for OVS-DPDK.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.bridge import Bridge, BridgeError
from bench.ovs import Ovs, OvsError
from pvswitch.attach import TCG_MSIX_SINCE
from pvswitch.errors import PvswitchError
from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine, Nic, accelerator, build_image, find_qemu, qemu_version
from tests.system.footprint import cpu_seconds
from tests.system.testpmd import hugepages

GUESTS = ("vm1", "vm2")
ADDRESSES = {"vm1": "10.0.0.1", "vm2": "10.0.0.2"}
HUGEPAGES = 1500
WARM_UP_SECONDS = 2
CONFIDENCE = 0.95
# How many times as fast as this peer pvswitch has to be.
TARGETS = {"OVS-DPDK": 4.0, "bridge": 0.95}


class MissingPeer(Exception):
    """A switch can't run here; the message says why."""


@dataclass(frozen=True)
class Sample:
    """One stream: its rate as the receiver saw it, and CPU time per second of it (cores).

    That of the switch's process, of both QEMUs, and of everything else on the machine (for a bridge: its kernel part).
    """

    round: int
    source: str
    gbits: float
    retransmits: int
    switch_cores: float
    qemu_cores: float
    other_cores: float


@dataclass(frozen=True)
class Lab:
    """A running switch: QEMU's words for each guest's netdev `n0`, what starts QEMU, the switch's process if any."""

    netdevs: Mapping[str, Sequence[str]]
    launcher: Sequence[str] = ()
    pid: int | None = None


@dataclass(frozen=True)
class Summary:
    """A median with the interval that holds the true one."""

    median: float
    low: float
    high: float


def vhost_user(socket: Path) -> list[str]:
    """QEMU's words for a netdev on a vhost-user socket where the switch listens."""
    return ["-chardev", f"socket,id=c0,path={socket}", "-netdev", "vhost-user,id=n0,chardev=c0"]


@asynccontextmanager
async def pvswitch() -> AsyncIterator[Lab]:
    """Run pvswitch as it is without further configuration: one worker, adaptive polling, nothing pinned."""
    config: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {name: {} for name in GUESTS}}
    async with SwitchProcess(config) as switch:
        yield Lab({name: vhost_user(switch.port_socket(name)) for name in GUESTS}, pid=switch.pid)


@asynccontextmanager
async def ovs() -> AsyncIterator[Lab]:
    """Run OVS-DPDK with one poll thread."""
    with hugepages(HUGEPAGES) as huge:
        if not huge:
            raise MissingPeer(f"{HUGEPAGES} hugepages of 2 MiB can't be had: run this as root")
        async with Ovs([*GUESTS]) as switch:
            yield Lab({name: vhost_user(socket) for name, socket in switch.sockets.items()}, pid=switch.pid)


@asynccontextmanager
async def bridge() -> AsyncIterator[Lab]:
    """Make a Linux bridge; QEMU itself copies between guest and tap."""
    taps = {name: f"tap-{name}" for name in GUESTS}
    async with Bridge([*taps.values()]) as switch:
        words = "tap,id=n0,script=no,downscript=no,vhost=off,ifname="
        yield Lab({name: ["-netdev", words + tap] for name, tap in taps.items()}, switch.launcher)


SWITCHES: dict[str, Callable[[], AbstractAsyncContextManager[Lab]]] = {
    "pvswitch": pvswitch,
    "OVS-DPDK": ovs,
    "bridge": bridge,
}


def machine(name: str, image: Image, qemu: str, lab: Lab) -> Machine:
    """Return a guest, the same on every switch but for its netdev."""
    device = f"virtio-net-pci,netdev=n0,mac=02:00:00:00:00:{GUESTS.index(name) + 1:02x}"
    if accelerator().startswith("tcg") and qemu_version(qemu) < TCG_MSIX_SINCE:
        device += ",vectors=0"
    memory = ("-m", "256M", "-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-numa", "node,memdev=mem")
    words = [*memory, *lab.netdevs[name], "-device", device]
    nics = [Nic("eth0", f"{ADDRESSES[name]}/24")]
    return Machine(name, image, words, nics=nics, qemu=qemu, launcher=lab.launcher)


async def stream(source: Machine, target: Machine, seconds: int) -> dict[str, Any]:
    """Send one TCP stream; return iperf3's own account of it."""
    await target.check(
        "while pidof iperf3; do sleep 0.1; done; iperf3 --server --one-off --daemon;"
        "until netstat -ltn | grep -q :5201; do sleep 0.1; done"
    )
    command = f"iperf3 --client {ADDRESSES[target.name]} --time {seconds} --json"
    answer: dict[str, Any] = json.loads(await source.check(command, seconds=seconds + 60))
    return answer


def machine_seconds() -> float:
    """CPU seconds that all of the machine has spent, not idle (proc(5): user, nice, system, irq, softirq)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")


def cpu(lab: Lab, machines: Sequence[Machine]) -> tuple[float, float, float]:
    """CPU seconds so far of the switch's process (0 without one), of the QEMUs, and of all others."""
    switch = cpu_seconds(lab.pid) if lab.pid else 0.0
    qemus = sum(cpu_seconds(machine.pid) for machine in machines)
    return switch, qemus, machine_seconds() - switch - qemus


async def measure(name: str, number: int, image: Image, qemu: str, seconds: int) -> list[Sample]:
    """Start a switch and both guests afresh, and measure each direction once."""
    samples = []
    async with (
        SWITCHES[name]() as lab,
        machine("vm1", image, qemu, lab) as vm1,
        machine("vm2", image, qemu, lab) as vm2,
    ):
        await asyncio.gather(vm1.boot(120), vm2.boot(120))
        await stream(vm1, vm2, WARM_UP_SECONDS)
        for source, target in ((vm1, vm2), (vm2, vm1)):
            before, began = cpu(lab, (vm1, vm2)), time.monotonic()
            answer = await stream(source, target, seconds)
            after, elapsed = cpu(lab, (vm1, vm2)), time.monotonic() - began
            end = answer["end"]
            switch, qemus, others = ((new - old) / elapsed for old, new in zip(before, after, strict=True))
            samples.append(
                Sample(
                    round=number,
                    source=source.name,
                    gbits=end["sum_received"]["bits_per_second"] / 1e9,
                    retransmits=end["sum_sent"]["retransmits"],
                    switch_cores=switch,
                    qemu_cores=qemus,
                    other_cores=others,
                )
            )
    return samples


def summary(values: Sequence[float]) -> Summary:
    """Return the median and the interval that holds the true one with `CONFIDENCE`, or all samples if they are few.

    Leaving out the k lowest and k highest of n is wrong as often as k or fewer of n coins show heads, or tails.
    """
    ordered = sorted(values)
    count = len(ordered)
    heads = [math.comb(count, number) / 2**count for number in range(count)]
    skip = max((k for k in range(count // 2) if 2 * sum(heads[: k + 1]) <= 1 - CONFIDENCE), default=0)
    return Summary(statistics.median(ordered), ordered[skip], ordered[-1 - skip])


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[float]:
    """Return how many times as fast each stream was as the peer's of the same round and direction."""
    peers = {(sample.round, sample.source): sample.gbits for sample in theirs}
    return [sample.gbits / peers[sample.round, sample.source] for sample in ours]


def verdict(ratio: Summary, target: float) -> str:
    """Return "met", "missed" or "undecided"."""
    if ratio.low >= target:
        return "met"
    return "missed" if ratio.high < target else "undecided"


def line(name: str, samples: Sequence[Sample]) -> str:
    """Return one line: a switch's rate, overall and by direction, and what it cost."""
    rate = summary([sample.gbits for sample in samples])
    by_source = {
        source: statistics.median(sample.gbits for sample in samples if sample.source == source) for source in GUESTS
    }
    switch = statistics.median(sample.switch_cores for sample in samples)
    qemus = statistics.median(sample.qemu_cores for sample in samples)
    others = statistics.median(sample.other_cores for sample in samples)
    return (
        f"{name:<10} {rate.median:6.3f} Gbit/s ({rate.low:.3f} to {rate.high:.3f})"
        f"   from vm1 {by_source['vm1']:.3f}, from vm2 {by_source['vm2']:.3f}"
        f"   cores: switch {switch:.2f}, QEMUs {qemus:.2f}, others {others:.2f}"
    )


def report(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Print medians and ratios; return them for JSON."""
    for name, measured in samples.items():
        print(line(name, measured))
    compared = {}
    for peer, target in TARGETS.items():
        if samples.get("pvswitch") and samples.get(peer):
            ratio = summary(ratios(samples["pvswitch"], samples[peer]))
            found = verdict(ratio, target)
            compared[peer] = {**asdict(ratio), "target": target, "verdict": found}
            interval = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            print(f"pvswitch / {peer}: {interval}, at least {target}: {found}")
    return {
        "gbits": {name: asdict(summary([sample.gbits for sample in measured])) for name, measured in samples.items()},
        "ratios": compared,
    }


async def run(names: Sequence[str], rounds: int, seconds: int) -> dict[str, Any]:
    """Measure the switches in turns and print each stream; return all for JSON."""
    qemu = find_qemu()
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pvswitch-bench-") as folder:
        image = build_image(Path(folder), extra_binaries=("iperf3",))
        for number in range(1, rounds + 1):
            for name in [*samples]:
                try:
                    measured = await measure(name, number, image, qemu, seconds)
                except (MissingPeer, OvsError, BridgeError) as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    missing[name] = str(error)
                    del samples[name]
                    continue
                samples[name] += measured
                print(f"round {number} {line(name, measured)}", flush=True)
    version = ".".join(str(part) for part in qemu_version(qemu))
    print(f"\nTCP, {rounds} rounds of {seconds} s each way, QEMU {version}, {accelerator()}, {os.cpu_count()} CPUs:")
    return {
        "rounds": rounds,
        "seconds": seconds,
        "qemu": version,
        "accelerator": accelerator(),
        "cpus": os.cpu_count(),
        **report(samples),
        "missing": missing,
        "samples": {name: [asdict(sample) for sample in measured] for name, measured in samples.items()},
    }


def main() -> int:
    """Parse the command line and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.tcp", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each stream")
    parser.add_argument("--only", nargs="+", choices=[*SWITCHES], default=[*SWITCHES], help="switches to measure")
    parser.add_argument("--json", type=Path, help="file for all samples and results")
    arguments = parser.parse_args()
    try:
        result = asyncio.run(run(arguments.only, arguments.rounds, arguments.seconds))
    except PvswitchError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
