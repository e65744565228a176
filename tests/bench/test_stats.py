# SPDX-License-Identifier: Apache-2.0
"""Medians, intervals and what they allow to say."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.bench.stats import Summary, Verdict, at_least, at_most, ratios, standing, summary

VALUES = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=40)


def test_interval_is_the_widest_for_few_samples() -> None:
    assert summary([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0)
    assert summary([5.0]) == Summary(5.0, 5.0, 5.0)


def test_interval_leaves_out_what_coins_allow() -> None:
    """Tables of the sign test: the second of 9 from either end bounds the median with 96 %, the third of 12 too."""
    assert summary([float(value) for value in range(8)]) == Summary(3.5, 0.0, 7.0)
    assert summary([float(value) for value in range(9)]) == Summary(4.0, 1.0, 7.0)
    assert summary([float(value) for value in range(12)]) == Summary(5.5, 2.0, 9.0)


@pytest.mark.parametrize("count", [6, 9, 15])
def test_interval_holds_the_true_median(count: int) -> None:
    source = random.Random(count)
    true = math.log(2)  # of the exponential distribution
    runs = [summary([source.expovariate(1) for _ in range(count)]) for _ in range(4000)]
    assert sum(run.low <= true <= run.high for run in runs) / len(runs) > 0.94


@given(VALUES)
def test_interval_is_around_the_median_and_among_the_samples(values: list[float]) -> None:
    found = summary(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found.median == statistics.median(values)
    assert {found.low, found.high} <= set(values)
    assert summary(sorted(values, reverse=True)) == found


@given(VALUES, st.floats(0.01, 100))
def test_ratios_cancel_what_both_have_in_common(values: list[float], factor: float) -> None:
    """A machine that is slower for a while is so for both: pairs of the same turn don't see it."""
    ours = {(turn, ""): value * factor for turn, value in enumerate(values)}
    theirs = {(turn, ""): value for turn, value in enumerate(values)}
    assert ratios(ours, theirs) == pytest.approx(dict.fromkeys(ours, factor))
    assert ratios(ours, theirs, more_is_better=False) == pytest.approx(dict.fromkeys(ours, 1 / factor))


def test_ratios_leave_out_turns_that_one_has_missed() -> None:
    assert ratios({1: 4.0, 2: 6.0, 3: 1.0}, {3: 2.0, 2: 2.0}) == {2: 3.0, 3: 0.5}
    assert ratios({1: 4.0}, {1: 0.0}) == {1: math.inf}


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [((4.0, 5.0), "met"), ((3.9, 5.0), "undecided"), ((3.0, 4.0), "undecided"), ((3.0, 3.9), "missed")],
)
def test_a_target_needs_the_whole_interval(interval: tuple[float, float], wanted: str) -> None:
    assert at_least(Summary(4.5, *interval), 4.0) == wanted


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [((3.0, 4.0), "met"), ((3.0, 4.1), "undecided"), ((4.0, 5.0), "undecided"), ((4.1, 5.0), "missed")],
)
def test_a_limit_needs_the_whole_interval(interval: tuple[float, float], wanted: str) -> None:
    assert at_most(Summary(4.0, *interval), 4.0) == wanted


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [
        ((1.01, 2.0), Verdict.AHEAD),
        ((1.0, 2.0), Verdict.UNDECIDED),
        ((0.5, 1.0), Verdict.UNDECIDED),
        ((0.5, 0.9), Verdict.BEHIND),
    ],
)
def test_an_interval_that_holds_1_decides_nothing(interval: tuple[float, float], wanted: Verdict) -> None:
    assert standing(Summary(1.2, *interval)) is wanted


def test_a_summary_is_shown_with_its_interval() -> None:
    assert str(Summary(2.411, 2.38, 2.5)) == "2.41 (2.38 to 2.50)"
    assert Summary(10500, 10000, 11000).show(0) == "10,500 (10,000 to 11,000)"
