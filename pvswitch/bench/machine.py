# SPDX-License-Identifier: Apache-2.0
"""What the machine has and spends: processors to pin to, CPU time from /proc, hugepages, and words that describe it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Self

from pvswitch.bench.errors import BenchError

NR_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
CPUINFO = Path("/proc/cpuinfo")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that all threads of the process have used, to the nanosecond (schedstat of proc(5))."""
    total = 0
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Return how much memory the process has in use."""
    return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine_seconds() -> float:
    """Return the CPU seconds that all of the machine has spent (proc(5): user, nice, system, irq, softirq)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(ticks[:3]) + sum(ticks[5:7])) / os.sysconf("SC_CLK_TCK")


class Others:
    """How much of the machine is used by others than this process and the given ones, while the body of `with` runs.

    It may be entered again and again: all times count together, so that the kernel's ticks even out.
    """

    def __init__(self, *pids: int) -> None:
        """Nothing is counted yet."""
        self._pids = pids
        self._spent = self._lasted = 0.0

    def __enter__(self) -> Self:
        """Begin to count."""
        self._count(-1)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self._count(1)

    def _count(self, sign: int) -> None:
        own = time.process_time() + sum(cpu_seconds(pid) for pid in self._pids)
        self._spent += sign * (machine_seconds() - own)
        self._lasted += sign * time.monotonic()

    def cores(self) -> float:
        """Return the processors that others have used, to the kernel's tick: never less than 0."""
        return max(0.0, self._spent / self._lasted) if self._lasted else 0.0


def siblings(cpu: int) -> str:
    """Return the list of hardware threads that share this one's core, as the kernel writes it."""
    try:
        return Path(TOPOLOGY.format(cpu)).read_text().strip()
    except OSError:
        return str(cpu)


def pick_cpus(allowed: Collection[int], core: Callable[[int], str] = siblings) -> tuple[int, int]:
    """Return a processor for the switch and one for the generator, on two cores where there are two."""
    ordered = sorted(allowed)
    if len(ordered) < 2:
        raise BenchError("Two processors are needed, one for the switch and one for the generator.")
    switch = ordered[0]
    return switch, next((cpu for cpu in ordered[1:] if core(cpu) != core(switch)), ordered[1])


@contextlib.contextmanager
def hugepages(wanted: int) -> Iterator[bool]:
    """Reserve at least `wanted` pages of 2 MiB for the body; yield whether they are there. Only root can."""
    try:
        before = int(NR_HUGEPAGES.read_text())
    except OSError:
        yield False
        return
    changed = before < wanted and os.access(NR_HUGEPAGES, os.W_OK)
    try:
        if changed:
            NR_HUGEPAGES.write_text(str(wanted))
        yield int(NR_HUGEPAGES.read_text()) >= wanted
    finally:
        if changed:
            NR_HUGEPAGES.write_text(str(before))


def description() -> dict[str, str]:
    """Return what a reader of results has to know of the machine."""
    models = [line.partition(":")[2].strip() for line in _lines(CPUINFO) if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cpus": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
