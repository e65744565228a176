# SPDX-License-Identifier: Apache-2.0
"""Measuring while the two processors are at their best, on machines whose host moves them about or shares their cores.

Switch and generator share rings and frames, so what a cache line takes from one processor to the other is part of
every figure; and a neighbour on the other hardware thread of a core takes up to half of its speed. On a virtual machine
both change under way, several times a second. So a turn is measured in short slices, with a look at the processors
before and after each, and only those between two good looks count, for all switches alike: the processors decide,
never the figure.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pvswitch.driver import DriverError
from pvswitch.generator import Pace, pace

SHARED, FAR = 1.1, 2.0
"""A processor is shared, and two are far from each other, from so many times the shortest of this run on."""
SLICE_SECONDS = 0.05
# How many times as long a turn may last beyond what it has to measure.
PATIENCE = 4.0
PAUSE_SECONDS = 0.01

Found = TypeVar("Found")


class Processors:
    """How fast those of switch and generator are at the moment, and at their best."""

    def __init__(self, cpus: tuple[int, int], look: Callable[[int, int], Pace] = pace) -> None:
        """Nothing is measured yet; `look` is what measures."""
        self._cpus, self._look = cpus, look
        self.best = Pace(*[float("inf")] * 3)

    async def settle(self, seconds: float = 1.0) -> None:
        """Look for a while, to know their best."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.at_best()
            await asyncio.sleep(PAUSE_SECONDS)

    async def at_best(self) -> bool:
        """Measure, and say whether they are at their best: not when they are too busy to tell."""
        try:
            now = await asyncio.to_thread(self._look, *self._cpus)
        except DriverError as error:
            if error.errno != errno.ETIME:
                raise
            return False
        self.best = best = Pace(*map(min, now, self.best))
        return now.one <= SHARED * best.one and now.other <= SHARED * best.other and now.line <= FAR * best.line


@dataclass
class Slices(Generic[Found]):
    """What a turn found: while the processors were at their best before and after, and otherwise."""

    steady: list[Found] = field(default_factory=list)
    disturbed: list[Found] = field(default_factory=list)

    @property
    def counting(self) -> list[Found]:
        """Those to take the figures from: all of them where none was steady."""
        return self.steady or self.disturbed

    @property
    def all(self) -> list[Found]:
        """Those to take faults from."""
        return self.steady + self.disturbed

    @property
    def seen(self) -> dict[str, int]:
        """Words for a sample."""
        return {"steady": len(self.steady), "disturbed": len(self.disturbed)}


async def measure_steady(
    processors: Processors,
    measure: Callable[[float], Awaitable[Found]],
    seconds: float,
    longest: float = SLICE_SECONDS,
) -> Slices[Found]:
    """Measure in slices of `longest` seconds or less until steady ones last for `seconds`, or patience is at its end.

    There is at least one slice, whatever the processors do.
    """
    found: Slices[Found] = Slices()
    wanted = max(1, round(seconds / longest))
    end = time.monotonic() + seconds * (1 + PATIENCE)
    good = await processors.at_best()
    while len(found.steady) < wanted:
        late = time.monotonic() > end
        if late and found.all:
            break
        if not good and not late:
            await asyncio.sleep(PAUSE_SECONDS)
            good = await processors.at_best()
            continue
        one = await measure(seconds / wanted)
        before, good = good, await processors.at_best()
        (found.steady if before and good else found.disturbed).append(one)
    return found
