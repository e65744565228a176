# SPDX-License-Identifier: Apache-2.0
"""Results made up for the tests."""

from __future__ import annotations

from collections.abc import Sequence

from pvswitch.bench.results import Results, Sample
from pvswitch.bench.work import OVS, PVSWITCH, Case, Circle


def case(name: str = "one", **more: object) -> Case:
    """A case whose work doesn't matter."""
    return Case(name, f"what {name} is about", Circle(64), **more)  # type: ignore[arg-type]  # to mypy `more` is one type


def samples(name: str, switch: str, figure: str, values: Sequence[float], part: str = "") -> list[Sample]:
    """One sample for each value, round by round."""
    return [Sample(name, switch, number, {figure: value}, part=part) for number, value in enumerate(values, 1)]


def results(*groups: Sequence[Sample]) -> Results:
    """All of these samples."""
    return Results(samples=[sample for group in groups for sample in group])


def two(name: str, ours: Sequence[float], theirs: Sequence[float], figure: str = "mpps") -> Results:
    """A case of pvswitch and OVS-DPDK."""
    return results(samples(name, PVSWITCH, figure, ours), samples(name, OVS, figure, theirs))
