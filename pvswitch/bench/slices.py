# SPDX-License-Identifier: Apache-2.0
"""Measuring while the two processors are near each other, on machines whose host moves them about.

Switch and generator share rings and frames, so what each cache line takes from one processor to the other is part of
every figure. On a virtual machine that changes under way. So a turn is measured in slices, the distance before and
after each, and a slice with far processors is done again, for all switches alike: the distance decides, never the
figure.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pvswitch.driver import DriverError
from pvswitch.generator import line_trip

FAR = 2.0
"""Processors are far from each other when a line takes so many times as long as it did when it was fastest."""
SLICE_SECONDS = 0.25
# How long the slices of one turn that count for nothing may last together, waiting included.
PATIENCE_SECONDS = 6.0
PAUSE_SECONDS = 0.1

Found = TypeVar("Found")


class Distance:
    """How far the processors of switch and generator are apart: the round trip of a cache line."""

    def __init__(self, cpus: tuple[int, int], trip: Callable[[int, int], float] = line_trip) -> None:
        """Nothing is measured yet; `trip` is what measures, in ns."""
        self._cpus, self._trip = cpus, trip
        self.nearest = math.inf

    async def settle(self, seconds: float = 1.0) -> None:
        """Look for a while, to know what near is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.near()
            await asyncio.sleep(PAUSE_SECONDS / 2)

    async def near(self) -> bool:
        """Measure, and say whether they are near; it isn't known, as good as far, when both are too busy to tell."""
        try:
            now = await asyncio.to_thread(self._trip, *self._cpus)
        except DriverError as error:
            if error.errno != errno.ETIME:
                raise
            return False
        self.nearest = min(self.nearest, now)
        return now <= FAR * self.nearest


@dataclass
class Slices(Generic[Found]):
    """What a turn found. `near` are those that count; `far` were measured with far processors, or in between."""

    near: list[Found] = field(default_factory=list)
    far: list[Found] = field(default_factory=list)

    @property
    def counting(self) -> list[Found]:
        """Those to take the figures from: all of them where the processors never were near."""
        return self.near or self.far

    @property
    def all(self) -> list[Found]:
        """Those to take faults from."""
        return self.near + self.far

    @property
    def seen(self) -> dict[str, int]:
        """Words for a sample."""
        return {"far": len(self.far), "near": len(self.near)}


async def measure_near(
    distance: Distance, measure: Callable[[float], Awaitable[Found]], seconds: float, longest: float = SLICE_SECONDS
) -> Slices[Found]:
    """Measure in slices of `longest` seconds or less until near ones last for `seconds`, or patience is at its end.

    There is at least one slice, whatever the distance.
    """
    found: Slices[Found] = Slices()
    wanted = max(1, round(seconds / longest))
    end = time.monotonic() + seconds + PATIENCE_SECONDS
    near = await distance.near()
    while len(found.near) < wanted:
        late = time.monotonic() > end
        if late and found.all:
            break
        if not near and not late:
            await asyncio.sleep(PAUSE_SECONDS)
            near = await distance.near()
            continue
        one = await measure(seconds / wanted)
        before, near = near, await distance.near()
        (found.near if before and near else found.far).append(one)
    return found
