# SPDX-License-Identifier: Apache-2.0
"""What a process holds and spends, as /proc tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """Counts that must be as before when a front end is gone. `guest_maps` are the mappings of memfds."""

    fds: int
    threads: int
    maps: int
    guest_maps: int


def footprint(pid: int) -> Footprint:
    """Return what the process holds now."""
    process = Path("/proc") / str(pid)
    maps = (process / "maps").read_text().splitlines()
    return Footprint(
        fds=sum(1 for _ in (process / "fd").iterdir()),
        threads=sum(1 for _ in (process / "task").iterdir()),
        maps=len(maps),
        guest_maps=sum("/memfd:" in line for line in maps),
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that all threads of the process have used, to the nanosecond (schedstat of proc(5))."""
    tasks = (Path("/proc") / str(pid) / "task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
