# SPDX-License-Identifier: Apache-2.0
"""Slices with far processors are measured again, within bounds; the clock stands still but for what is slept here."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pvswitch.bench import slices
from pvswitch.bench.machine import pick_cpus
from pvswitch.bench.slices import PATIENCE_SECONDS, Distance, Slices, measure_near
from pvswitch.driver import DriverError
from pvswitch.generator import line_trip

NEAR, FAR = 60.0, 300.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Time passes in sleeps only, and takes none."""
    time = SimpleNamespace(now=0.0)

    async def sleep(seconds: float) -> None:
        time.now += seconds

    monkeypatch.setattr(slices, "time", SimpleNamespace(monotonic=lambda: time.now))
    monkeypatch.setattr(slices, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    return time


def distance(*trips: float) -> Distance:
    """What is measured one after the other, the last one for ever; 0 is not known."""
    left = list(trips)

    def trip(*_: int) -> float:
        found = left.pop(0) if len(left) > 1 else left[0]
        if not found:
            raise DriverError("too busy", errno.ETIME)
        return found

    return Distance((0, 1), trip)


async def measured(distance: Distance, clock: SimpleNamespace, seconds: float = 1.0) -> Slices[float]:
    """Slices that last as long as they should; each is the time when it ended."""

    async def one(lasts: float) -> float:
        clock.now += lasts
        return float(clock.now)

    return await measure_near(distance, one, seconds)


async def test_near_all_the_time(clock: SimpleNamespace) -> None:
    found = await measured(distance(NEAR, NEAR * 1.9), clock)
    assert found.near == [0.25, 0.5, 0.75, 1.0]
    assert found.far == []
    assert found.seen == {"near": 4, "far": 0}


@pytest.mark.parametrize("elsewhere", [FAR, 0.0])
async def test_a_slice_that_ends_or_begins_far_is_measured_again(clock: SimpleNamespace, elsewhere: float) -> None:
    found = await measured(distance(NEAR, NEAR, elsewhere, elsewhere, elsewhere, NEAR), clock)
    assert found.far == [0.5]
    assert found.near == pytest.approx([0.25, 1.05, 1.3, 1.55])
    assert found.counting == found.near
    assert sorted(found.all) == pytest.approx([0.25, 0.5, 1.05, 1.3, 1.55])


async def test_patience_has_an_end(clock: SimpleNamespace) -> None:
    found = await measured(distance(NEAR, NEAR, FAR), clock)
    assert len(found.near) == 1
    assert clock.now == pytest.approx(1 + PATIENCE_SECONDS, abs=0.2)
    never = await measured(distance(0.0), clock)
    assert len(never.far) == 1
    assert never.counting == never.far
    assert never.seen == {"near": 0, "far": 1}


async def test_short_measurements_are_one_slice(clock: SimpleNamespace) -> None:
    assert (await measured(distance(NEAR), clock, seconds=0.1)).near == [0.1]


async def test_settling_learns_what_near_is(clock: SimpleNamespace) -> None:
    found = distance(FAR, FAR, NEAR)
    await found.settle()
    assert found.nearest == NEAR
    assert await found.near()


async def test_a_processor_that_isn_t_there_is_an_error() -> None:
    with pytest.raises(DriverError, match=r"the distance of processors 0 and 4095 can't be measured: Invalid argument"):
        await Distance((0, 4095)).near()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_line_goes_there_and_back() -> None:
    assert 1 < line_trip(*pick_cpus(os.sched_getaffinity(0)), patience=10.0) < 100_000
