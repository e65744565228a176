# SPDX-License-Identifier: Apache-2.0
"""Disturbed slices are measured again, within bounds; the clock stands still but for what is slept here."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pvswitch.bench import steady
from pvswitch.bench.machine import pick_cpus
from pvswitch.bench.steady import PATIENCE, Processors, Slices, measure_steady
from pvswitch.driver import DriverError
from pvswitch.generator import Pace, pace

BEST = Pace(0.88, 0.9, 60.0)
GOOD = Pace(0.95, 0.98, 115.0)
FAR, SHARED, OTHER_SHARED = BEST._replace(line=130.0), BEST._replace(one=1.2), BEST._replace(other=1.2)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Time passes in sleeps only, and takes none."""
    time = SimpleNamespace(now=0.0)

    async def sleep(seconds: float) -> None:
        time.now += seconds

    monkeypatch.setattr(steady, "time", SimpleNamespace(monotonic=lambda: time.now))
    monkeypatch.setattr(steady, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    return time


def processors(*looks: Pace | None) -> Processors:
    """What is seen one after the other, the last one for ever; None when they are too busy to tell."""
    left = list(looks)

    def look(*_: int) -> Pace:
        found = left.pop(0) if len(left) > 1 else left[0]
        if found is None:
            raise DriverError("too busy", errno.ETIME)
        return found

    return Processors((0, 1), look)


async def measured(seen: Processors, clock: SimpleNamespace, seconds: float = 0.2) -> Slices[float]:
    """Slices that last as long as they should; each is the time when it ended."""

    async def one(lasts: float) -> float:
        clock.now += lasts
        return float(clock.now)

    return await measure_steady(seen, one, seconds)


async def test_at_their_best_all_the_time(clock: SimpleNamespace) -> None:
    found = await measured(processors(BEST, GOOD), clock)
    assert found.steady == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert found.disturbed == []
    assert found.seen == {"steady": 4, "disturbed": 0}


@pytest.mark.parametrize("bad", [FAR, SHARED, OTHER_SHARED, None])
async def test_a_slice_that_begins_or_ends_badly_is_measured_again(clock: SimpleNamespace, bad: Pace | None) -> None:
    found = await measured(processors(BEST, BEST, bad, bad, bad, BEST), clock)
    assert found.disturbed == pytest.approx([0.1])
    assert found.steady == pytest.approx([0.05, 0.18, 0.23, 0.28])
    assert found.counting == found.steady
    assert sorted(found.all) == pytest.approx([0.05, 0.1, 0.18, 0.23, 0.28])


async def test_patience_has_an_end(clock: SimpleNamespace) -> None:
    found = await measured(processors(BEST, BEST, FAR), clock)
    assert len(found.steady) == 1
    assert clock.now == pytest.approx(0.2 * (1 + PATIENCE), abs=0.1)
    never = await measured(processors(None), clock)
    assert len(never.disturbed) == 1
    assert never.counting == never.disturbed
    assert never.seen == {"steady": 0, "disturbed": 1}


async def test_short_measurements_are_one_slice(clock: SimpleNamespace) -> None:
    assert (await measured(processors(BEST), clock, seconds=0.03)).steady == [0.03]


async def test_settling_learns_what_their_best_is() -> None:
    found = processors(FAR, SHARED, OTHER_SHARED)
    await found.settle()
    assert found.best == BEST
    assert not await found.at_best()


async def test_a_processor_that_isn_t_there_is_an_error() -> None:
    with pytest.raises(DriverError, match=r"the pace of processors 0 and 4095 can't be measured: Invalid argument"):
        await Processors((0, 4095)).at_best()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_two_processors_have_a_pace() -> None:
    found = pace(*pick_cpus(os.sched_getaffinity(0)), patience=10.0)
    assert all(0.1 < ns < 100_000 for ns in found)
