# SPDX-License-Identifier: Apache-2.0
"""Verdicts: next to a peer, against another case, within a limit; and whether two runs agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.bench.judge import claims, repeats, standings
from pvswitch.bench.stats import Verdict
from pvswitch.bench.work import OVS, PVSWITCH, Against
from tests.bench.samples import case, results, samples, two

RATES = st.lists(st.floats(0.1, 100), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("ours", "verdict", "met"),
    [
        ([5.0, 5.0, 5.2], Verdict.AHEAD, Verdict.MET),
        ([5.0, 4.6, 5.2], Verdict.AHEAD, Verdict.UNDECIDED),
        ([4.0, 4.0, 4.0], Verdict.AHEAD, Verdict.MISSED),
        ([4.0, 1.9, 4.0], Verdict.UNDECIDED, Verdict.MISSED),
        ([1.0, 1.0, 1.9], Verdict.BEHIND, Verdict.MISSED),
    ],
)
def test_standing_next_to_a_peer(ours: list[float], verdict: Verdict, met: Verdict) -> None:
    (found,) = standings(two("one", ours, [2.0, 2.0, 2.0]), case(targets={OVS: 2.4}))
    assert (found.peer, found.verdict, found.met) == (OVS, verdict, met)


def test_fewer_cycles_are_better() -> None:
    (found,) = standings(two("one", [50, 50], [400, 300], "cycles"), case(figure="cycles", targets={OVS: 5.0}))
    assert (found.ratio.low, found.ratio.high, found.met) == (6.0, 8.0, Verdict.MET)


def test_ratios_are_within_the_direction_of_a_stream() -> None:
    parts = [("from vm1", [4.0], [1.0]), ("from vm2", [6.0], [2.0])]
    found = results(
        *(samples("one", PVSWITCH, "gbits", ours, part) for part, ours, _ in parts),
        *(samples("one", OVS, "gbits", theirs, part) for part, _, theirs in parts),
    )
    (standing,) = standings(found, case(figure="gbits"))
    assert (standing.ratio.low, standing.ratio.high) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("back", "each", "wanted"), [(4.0, True, "met"), (2.0, True, "missed"), (2.0, False, "undecided")]
)
def test_a_direction_may_miss_what_both_together_do_not(back: float, each: bool, wanted: str) -> None:
    found = results(
        samples("one", PVSWITCH, "gbits", [4.0, 4.0], "there"),
        samples("one", PVSWITCH, "gbits", [back, back], "back"),
        *(samples("one", OVS, "gbits", [1.0, 1.0], part) for part in ("there", "back")),
    )
    (standing,) = standings(found, case(figure="gbits", targets={OVS: 3.0}, each_part=each))
    assert standing.met == wanted


def test_a_peer_without_samples_has_no_standing() -> None:
    assert standings(two("one", [1.0], []), case(targets={OVS: 2.0})) == []
    assert standings(two("one", [], [1.0]), case(targets={OVS: 2.0})) == []


def test_a_case_is_held_against_another_on_the_same_switch() -> None:
    subject = case("many", against=Against("few", "cycles", 1.05))
    found = results(
        samples("few", PVSWITCH, "cycles", [100, 200]),
        samples("many", PVSWITCH, "cycles", [104, 208]),
        samples("few", OVS, "cycles", [100]),
        samples("many", OVS, "cycles", [120]),
    )
    ours, theirs = claims(found, subject)
    assert (ours.switch, ours.verdict) == (PVSWITCH, Verdict.MET)
    assert ours.text == "1.04 (1.04 to 1.04) times few in cycles/packet, at most 1.05"
    assert (theirs.switch, theirs.verdict) == (OVS, Verdict.MISSED)


@pytest.mark.parametrize(
    ("figure", "values", "wanted"),
    [
        ("cpu", [0.5, 0.9], Verdict.MET),
        ("cpu", [0.5, 1.1], Verdict.UNDECIDED),
        ("gbits", [0.5, 0.9], Verdict.MISSED),
        ("gbits", [1.0, 1.1], Verdict.MET),
    ],
)
def test_a_limit_is_a_maximum_where_less_is_better(figure: str, values: list[float], wanted: Verdict) -> None:
    found = results(samples("one", PVSWITCH, figure, values), samples("one", OVS, figure, [9.0]))
    (claim,) = claims(found, case(figure=figure, limit=1.0))
    assert (claim.switch, claim.verdict) == (PVSWITCH, wanted)


# ---- two runs


@pytest.mark.parametrize(
    ("second", "word"),
    [
        ([10.0, 10.9, 10.9], "agrees"),
        ([9.0, 9.0, 9.0], "agrees"),
        ([10.5, 12.0, 13.0], "noise"),
        ([12.0, 13.0], "noise"),
        ([12.0, 13.0, 14.0, 15.0], "noise"),
        ([12.0, 13.0, 14.0, 15.0, 16.0], "differs"),
    ],
)
def test_runs_agree_within_ten_percent_or_say_noise(second: list[float], word: str) -> None:
    (found,) = repeats(
        results(samples("one", PVSWITCH, "mpps", [9.9, 10.0, 11.0])),
        results(samples("one", PVSWITCH, "mpps", second)),
        [case()],
    )
    assert found.word == word


def test_ratios_to_peers_are_compared_too() -> None:
    """Both are slower in the second run, and pvswitch is still twice as fast as the peer."""
    first, second = two("one", [10.0] * 4, [5.0] * 4), two("one", [6.0] * 4, [3.0] * 4)
    found = [(item.switch, item.peer, item.word) for item in repeats(first, second, [case()])]
    assert found == [(PVSWITCH, "", "differs"), (OVS, "", "differs"), (PVSWITCH, OVS, "agrees")]


@given(RATES, RATES)
def test_a_run_agrees_with_itself(ours: list[float], theirs: list[float]) -> None:
    run = two("one", ours, theirs)
    found = repeats(run, run, [case(), case("another")])
    assert len(found) == 3
    assert all(item.word == "agrees" and item.change == 1 for item in found)


@given(RATES, RATES)
def test_what_is_said_of_two_runs_does_not_depend_on_their_scale(first: list[float], second: list[float]) -> None:
    def word(factor: float) -> str:
        one, other = (
            results(samples("one", PVSWITCH, "mpps", [v * factor for v in values])) for values in (first, second)
        )
        return repeats(one, other, [case()])[0].word

    assert word(1.0) == word(1024.0)
