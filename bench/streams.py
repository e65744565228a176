# SPDX-License-Identifier: Apache-2.0
"""TCP between two ends over different switches in turns (A/B/A/B...): what `bench.tcp` and `bench.uplink` share.

Every round sets up the same two ends on each switch in turn, afresh, and iperf3 sends one TCP stream from the first to
the second and then one back. Only one switch runs at a time.

A figure is the median of all streams of a switch, and its interval holds the true median with 95 % (from the order of
the samples alone; with fewer than six it is from lowest to highest). Ratios are taken within a round and direction. A
target is met or missed when the ratio's whole interval is; otherwise it is undecided.

A switch that can't run here is named and left out.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pvswitch.attach import TCG_MSIX_SINCE
from pvswitch.errors import PvswitchError
from pvswitch.vm import Image, Machine, Nic, accelerator, build_image, find_qemu, qemu_version
from tests.system.footprint import cpu_seconds

WARM_UP_SECONDS = 2
CONFIDENCE = 0.95


class MissingPeer(PvswitchError):
    """A switch can't run here; the message says why."""


@dataclass(frozen=True)
class Sample:
    """One stream: its rate as the receiver saw it, and CPU time per second of it (cores).

    That of the switch's process, of the QEMUs, and of everything else on the machine (for a bridge: its kernel part).
    """

    round: int
    source: str
    gbits: float
    retransmits: int
    switch_cores: float
    qemu_cores: float
    other_cores: float


class End(Protocol):
    """What sends and receives: a guest, or a host without one. It has busybox and iperf3."""

    name: str

    async def check(self, command: str, seconds: float = ...) -> str:
        """Run a command that must succeed; return its output."""


@dataclass(frozen=True)
class Lab:
    """Two ends on a running switch, with their addresses, the guests among them, and the switch's process if any."""

    ends: Mapping[str, End]
    guests: Sequence[Machine]
    pid: int | None = None


@dataclass(frozen=True)
class Contest:
    """Switches by name, each of which sets up a lab for an image and a QEMU; the first is held against the others.

    `targets` say how many times as fast as each of the others it has to be: over both directions together, or in each.
    """

    title: str
    switches: Mapping[str, Callable[[Image, str], AbstractAsyncContextManager[Lab]]]
    targets: Mapping[str, float]
    each_direction: bool = False

    @property
    def ours(self) -> str:
        """The name of the first switch."""
        return next(iter(self.switches))


@dataclass(frozen=True)
class Summary:
    """A median with the interval that holds the true one."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


# ---- the guests


def vhost_user(socket: Path) -> list[str]:
    """QEMU's words for a netdev on a vhost-user socket where the switch listens."""
    return ["-chardev", f"socket,id=c0,path={socket}", "-netdev", "vhost-user,id=n0,chardev=c0"]


def tap(ifname: str) -> list[str]:
    """QEMU's words for a netdev on a tap that is there."""
    return ["-netdev", f"tap,id=n0,script=no,downscript=no,vhost=off,ifname={ifname}"]


def machine(
    name: str, address: str, image: Image, qemu: str, netdev: Sequence[str], launcher: Sequence[str] = ()
) -> Machine:
    """Return a guest, the same on every switch but for its netdev `n0` and for what starts QEMU."""
    device = f"virtio-net-pci,netdev=n0,mac=02:00:00:00:00:{int(address.rpartition('.')[2]):02x}"
    if accelerator().startswith("tcg") and qemu_version(qemu) < TCG_MSIX_SINCE:
        device += ",vectors=0"
    memory = ("-m", "256M", "-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-numa", "node,memdev=mem")
    words = [*memory, *netdev, "-device", device]
    return Machine(name, image, words, nics=[Nic("eth0", f"{address}/24")], qemu=qemu, launcher=launcher)


# ---- one measurement


async def stream(source: End, target: End, address: str, seconds: int) -> dict[str, Any]:
    """Send one TCP stream to the target's address; return iperf3's own account of it."""
    await target.check(
        "while pidof iperf3; do sleep 0.1; done; iperf3 --server --one-off --daemon;"
        "until netstat -ltn | grep -q :5201; do sleep 0.1; done"
    )
    command = f"iperf3 --client {address} --time {seconds} --json"
    answer: dict[str, Any] = json.loads(await source.check(command, seconds=seconds + 60))
    return answer


def machine_seconds() -> float:
    """CPU seconds that all of the machine has spent, not idle (proc(5): user, nice, system, irq, softirq)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")


def cpu(lab: Lab) -> tuple[float, float, float]:
    """CPU seconds so far of the switch's process (0 without one), of the QEMUs, and of all others."""
    switch = cpu_seconds(lab.pid) if lab.pid else 0.0
    qemus = sum(cpu_seconds(guest.pid) for guest in lab.guests)
    return switch, qemus, machine_seconds() - switch - qemus


async def measure(lab: Lab, number: int, seconds: int) -> list[Sample]:
    """Measure each direction once, after a short stream that isn't counted."""
    samples = []
    (first, one), (second, other) = lab.ends.items()
    await stream(one, other, second, WARM_UP_SECONDS)
    for source, target, address in ((one, other, second), (other, one, first)):
        before, began = cpu(lab), time.monotonic()
        answer = await stream(source, target, address, seconds)
        after, elapsed = cpu(lab), time.monotonic() - began
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


# ---- what the samples say


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


def by_source(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Sort samples by direction."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.source, []).append(sample)
    return found


def line(name: str, samples: Sequence[Sample]) -> str:
    """Return one line: a switch's rate, overall and by direction, and what it cost."""
    rate = summary([sample.gbits for sample in samples])
    directions = ", ".join(
        f"from {source} {statistics.median(sample.gbits for sample in sent):.3f}"
        for source, sent in by_source(samples).items()
    )
    switch = statistics.median(sample.switch_cores for sample in samples)
    qemus = statistics.median(sample.qemu_cores for sample in samples)
    others = statistics.median(sample.other_cores for sample in samples)
    return (
        f"{name:<10} {rate.median:6.3f} Gbit/s ({rate.low:.3f} to {rate.high:.3f})   {directions}"
        f"   cores: switch {switch:.2f}, QEMUs {qemus:.2f}, others {others:.2f}"
    )


def compare(ours: Sequence[Sample], theirs: Sequence[Sample], target: float, *, each: bool) -> dict[str, Any]:
    """Return the ratio over both directions and in each, with the verdict on the one, or the other with `each`."""
    ratio = summary(ratios(ours, theirs))
    found: dict[str, Any] = {**asdict(ratio), "target": target, "directions": {}}
    verdicts = []
    for source, sent in by_source(ours).items():
        direction = summary(ratios(sent, theirs))
        verdicts.append(verdict(direction, target))
        found["directions"][source] = asdict(direction)
    for word in ("missed", "undecided", "met") if each else (verdict(ratio, target),):
        if not each or word in verdicts:
            return {**found, "verdict": word}
    raise AssertionError(verdicts)


def report(contest: Contest, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Print medians and ratios; return them for JSON."""
    for name, measured in samples.items():
        print(line(name, measured))
    compared = {}
    for peer, target in contest.targets.items():
        if samples.get(contest.ours) and samples.get(peer):
            found = compare(samples[contest.ours], samples[peer], target, each=contest.each_direction)
            compared[peer] = found
            directions = "; ".join(f"from {source} {Summary(**ratio)}" for source, ratio in found["directions"].items())
            overall = Summary(found["median"], found["low"], found["high"])
            where = " in each direction" if contest.each_direction else ""
            print(f"{contest.ours} / {peer}: {overall}; {directions}; at least {target}{where}: {found['verdict']}")
    return {
        "gbits": {name: asdict(summary([sample.gbits for sample in measured])) for name, measured in samples.items()},
        "ratios": compared,
    }


async def run(contest: Contest, names: Sequence[str], rounds: int, seconds: int) -> dict[str, Any]:
    """Measure the switches in turns and print each stream; return all for JSON."""
    qemu = find_qemu()
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pvswitch-bench-") as folder:
        image = build_image(Path(folder), extra_binaries=("iperf3",))
        for number in range(1, rounds + 1):
            for name in [*samples]:
                try:
                    async with contest.switches[name](image, qemu) as lab:
                        measured = await measure(lab, number, seconds)
                except MissingPeer as error:
                    print(f"{name} is left out: {error}", file=sys.stderr)
                    missing[name] = str(error)
                    del samples[name]
                    continue
                samples[name] += measured
                print(f"round {number} {line(name, measured)}", flush=True)
    version = ".".join(str(part) for part in qemu_version(qemu))
    how = f"{rounds} rounds of {seconds} s each way, QEMU {version}, {accelerator()}, {os.cpu_count()} CPUs"
    print(f"\n{contest.title}, {how}:")
    return {
        "rounds": rounds,
        "seconds": seconds,
        "qemu": version,
        "accelerator": accelerator(),
        "cpus": os.cpu_count(),
        **report(contest, samples),
        "missing": missing,
        "samples": {name: [asdict(sample) for sample in measured] for name, measured in samples.items()},
    }


def main(contest: Contest, module: str, description: str) -> int:
    """Parse the command line and run; return the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each stream")
    switches = [*contest.switches]
    parser.add_argument("--only", nargs="+", choices=switches, default=switches, help="switches to measure")
    parser.add_argument("--json", type=Path, help="file for all samples and results")
    arguments = parser.parse_args()
    try:
        result = asyncio.run(run(contest, arguments.only, arguments.rounds, arguments.seconds))
    except PvswitchError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0
