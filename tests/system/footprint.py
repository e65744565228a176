# SPDX-License-Identifier: Apache-2.0
"""What a process holds, as /proc tells it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Footprint:
    """Counts that must be as before when a front end is gone. `guest_maps` are the mappings of memfds.

    `threads` are those but for the switch's helpers, a pool that grows when it likes and has its bound.
    """

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
        threads=_threads(process),
        maps=len(maps),
        guest_maps=sum("/memfd:" in line for line in maps),
    )


def _threads(process: Path) -> int:
    found = 0
    for task in (process / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += (task / "comm").read_text() != "pvs-helper\n"
    return found


def leftovers(folder: Path) -> list[str]:
    """Return what is left of a program that ran with TMPDIR=`folder`: processes that it or others started, and folders.

    Processes are shown by their command lines. Where there is none there is no network namespace either.
    """
    found = [str(path) for path in folder.glob("pvswitch-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={folder}" in (process / "environ").read_text(errors="replace").split("\0"):
                found.append((process / "cmdline").read_text(errors="replace").replace("\0", " "))
        except OSError:  # gone, or not ours to look at
            continue
    return found
