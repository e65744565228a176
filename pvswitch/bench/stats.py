# SPDX-License-Identifier: Apache-2.0
"""Medians with the interval that holds the true one, ratios of samples taken in turns, and what they allow to say.

An interval follows from the order of the samples alone: nothing is assumed of how they are spread. With fewer than six
samples it is from the lowest to the highest. Pure functions; anyone may call them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

CONFIDENCE = 0.95

Key = TypeVar("Key", bound=Hashable)


class Verdict(StrEnum):
    """What a ratio's interval says about a target, or about who is ahead."""

    MET = "met"
    MISSED = "missed"
    AHEAD = "ahead"
    BEHIND = "behind"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Summary:
    """A median with the interval that holds the true one."""

    median: float
    low: float
    high: float
    count: int = field(default=0, compare=False)
    """Of how many samples it is."""

    def __str__(self) -> str:
        """As in "2.41 (2.38 to 2.50)"."""
        return self.show(2)

    def show(self, digits: int) -> str:
        """Return it with so many digits after the point."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"

    def overlaps(self, other: Summary) -> bool:
        """Whether the two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high

    def differs(self, other: Summary) -> bool:
        """Whether they are of different things, with `CONFIDENCE`.

        So few samples may all lie on one side of the others by chance: two against three do so once in five times.
        """
        by_chance = 2 / math.comb(self.count + other.count, self.count)
        return not self.overlaps(other) and by_chance <= 1 - CONFIDENCE


def summary(values: Sequence[float]) -> Summary:
    """Return the median and the interval that holds the true one with `CONFIDENCE`, or all samples if they are few.

    Leaving out the k lowest and k highest of n is wrong as often as k or fewer of n coins show heads, or tails.
    """
    ordered = sorted(values)
    count = len(ordered)
    heads = [math.comb(count, number) / 2**count for number in range(count)]
    skip = max((k for k in range(count // 2) if 2 * sum(heads[: k + 1]) <= 1 - CONFIDENCE), default=0)
    return Summary(statistics.median(ordered), ordered[skip], ordered[-1 - skip], count)


def ratios(ours: Mapping[Key, float], theirs: Mapping[Key, float], *, more_is_better: bool = True) -> dict[Key, float]:
    """Return how many times as good as theirs each of ours was, taken in pairs of the same turn (the key).

    Above 1 is better, whether more of the figure is better or less of it.
    """
    both = [key for key in ours if key in theirs]
    if more_is_better:
        return {key: _ratio(ours[key], theirs[key]) for key in both}
    return {key: _ratio(theirs[key], ours[key]) for key in both}


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.inf


def at_least(ratio: Summary, target: float) -> Verdict:
    """Say whether the whole interval reaches the target, misses it, or neither."""
    if ratio.low >= target:
        return Verdict.MET
    return Verdict.MISSED if ratio.high < target else Verdict.UNDECIDED


def at_most(value: Summary, limit: float) -> Verdict:
    """Say whether the whole interval stays within the limit, exceeds it, or neither."""
    if value.high <= limit:
        return Verdict.MET
    return Verdict.MISSED if value.low > limit else Verdict.UNDECIDED


def standing(ratio: Summary) -> Verdict:
    """Say who is ahead, when the interval is clear of 1; undecided where it is wider than the difference."""
    if ratio.low > 1:
        return Verdict.AHEAD
    return Verdict.BEHIND if ratio.high < 1 else Verdict.UNDECIDED
