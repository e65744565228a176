# SPDX-License-Identifier: Apache-2.0
"""What results say about pvswitch: next to each peer, against another case, within a limit; and two runs compared.

A verdict needs the whole interval: where it is wider than the difference, nothing is decided. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pvswitch.bench.results import Results, Turn
from pvswitch.bench.stats import Summary, Verdict, at_least, at_most, ratios, standing, summary
from pvswitch.bench.work import FIGURES, PVSWITCH, Case

AGREEMENT = 0.10
"""Two runs agree where their medians differ by no more than this."""


@dataclass(frozen=True)
class Standing:
    """How many times as good as a peer pvswitch was, within a turn; with a target, whether that is enough."""

    case: str
    peer: str
    figure: str
    ratio: Summary
    verdict: Verdict
    target: float | None = None
    met: Verdict | None = None


@dataclass(frozen=True)
class Claim:
    """One statement of a case about one switch alone, as a sentence without its verdict."""

    case: str
    switch: str
    text: str
    verdict: Verdict


def standings(results: Results, case: Case) -> list[Standing]:
    """Hold pvswitch against each peer in the case's own figure."""
    found = []
    for peer in results.switches(case.name):
        pairs = _pairs(results, case, peer)
        if peer != PVSWITCH and pairs:
            ratio, target = summary([*pairs.values()]), case.targets.get(peer)
            met = None if target is None else _met(pairs, target, each_part=case.each_part)
            found.append(Standing(case.name, peer, case.figure, ratio, standing(ratio), target, met))
    return found


def _pairs(results: Results, case: Case, peer: str) -> dict[Turn, float]:
    """Return how many times as good as a peer pvswitch was, turn by turn."""
    ours, theirs = (results.values(case.name, switch, case.figure) for switch in (PVSWITCH, peer))
    return ratios(ours, theirs, more_is_better=FIGURES[case.figure].more_is_better)


def _met(pairs: Mapping[Turn, float], target: float, *, each_part: bool) -> Verdict:
    """Say whether the target is reached over all turns, or in each part of them: the worst verdict counts."""
    parts = {part for _, part in pairs} if each_part else {None}
    found = {
        at_least(summary([ratio for (_, part), ratio in pairs.items() if only in (None, part)]), target)
        for only in parts
    }
    return next(verdict for verdict in (Verdict.MISSED, Verdict.UNDECIDED, Verdict.MET) if verdict in found)


def claims(results: Results, case: Case) -> Iterator[Claim]:
    """Say what a case promises of a switch by itself: against another case, and within a limit."""
    against = case.against
    for switch in results.switches(case.name):
        if against is not None:
            here = results.values(case.name, switch, against.figure)
            there = results.values(against.case, switch, against.figure)
            pairs = ratios(here, there)
            if pairs:
                times = summary([*pairs.values()])
                text = f"{times} times {against.case} in {FIGURES[against.figure].unit}, at most {against.times:g}"
                yield Claim(case.name, switch, text, at_most(times, against.times))
        value = results.summary(case.name, switch, case.figure)
        if case.limit is not None and value is not None and switch == PVSWITCH:
            figure = FIGURES[case.figure]
            bound, judge = ("at least", at_least) if figure.more_is_better else ("at most", at_most)
            text = f"{value.show(figure.digits)} {figure.unit}, {bound} {case.limit:g}"
            yield Claim(case.name, switch, text, judge(value, case.limit))


# ---- two runs


@dataclass(frozen=True)
class Repeat:
    """A figure of two runs: `change` is the second median over the first. For a ratio `peer` is the other switch."""

    case: str
    switch: str
    figure: str
    first: Summary
    second: Summary
    peer: str = ""

    @property
    def change(self) -> float:
        """The second median as a multiple of the first."""
        return self.second.median / self.first.median if self.first.median else float("inf")

    @property
    def word(self) -> str:
        """Whether the medians agree; where they don't, whether that is more than noise."""
        if abs(self.second.median - self.first.median) <= AGREEMENT * abs(self.first.median):
            return "agrees"
        return "differs" if self.first.differs(self.second) else "noise"


def repeats(first: Results, second: Results, cases: Sequence[Case]) -> list[Repeat]:
    """Compare two runs in each case's own figure, switch by switch, then in the ratios to the peers."""
    found = []
    for case in cases:
        for switch in first.switches(case.name):
            one, other = (run.summary(case.name, switch, case.figure) for run in (first, second))
            if one and other:
                found.append(Repeat(case.name, switch, case.figure, one, other))
        later = {item.peer: item for item in standings(second, case)}
        for item in standings(first, case):
            if item.peer in later:
                ratio = later[item.peer].ratio
                found.append(Repeat(case.name, PVSWITCH, case.figure, item.ratio, ratio, item.peer))
    return found
