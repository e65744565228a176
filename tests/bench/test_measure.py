# SPDX-License-Identifier: Apache-2.0
"""Turns: who is measured when, what is left out, and what goes on all the same. Nothing is started here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pvswitch.bench import measure
from pvswitch.bench.cases import CASES
from pvswitch.bench.errors import BenchError, MissingPeer, NotOffered
from pvswitch.bench.measure import Bench, Turn
from pvswitch.bench.results import Results, Sample
from pvswitch.bench.switches import SWITCHES, Wanted
from pvswitch.bench.work import BRIDGE, OVS, PVSWITCH, TESTPMD, Case
from tests.bench.samples import case

Behave = Callable[[Turn], None]
ALL = (PVSWITCH, OVS, TESTPMD)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench((0, 1), huge=False, folder=tmp_path, say=lambda _: None)


async def turns(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    cases: Sequence[Case],
    behave: Behave = lambda _: None,
    *,
    rounds: int = 2,
    switches: Sequence[str] = ALL,
    budget: float | None = None,
) -> tuple[list[str], Results]:
    """Run with `behave` in the place of a measurement; return the turns as "1 one pvswitch", and the results."""
    seen = []

    async def pretend(turn: Turn) -> list[Sample]:
        seen.append(f"{turn.number} {turn.case.name} {turn.switch}")
        behave(turn)
        return [turn.sample({"mpps": 1.0})]

    monkeypatch.setattr(measure, "_measure", pretend)
    results = Results()
    await measure.run(cases, switches, bench, results, rounds=rounds, budget=budget)
    return seen, results


async def test_switches_take_turns_in_each_case_of_each_round(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(), case("two", switches=(PVSWITCH, BRIDGE, OVS))]
    seen, results = await turns(bench, monkeypatch, cases, switches=(PVSWITCH, OVS))
    names = ["one pvswitch", "one OVS-DPDK", "two pvswitch", "two OVS-DPDK"]
    assert seen == [f"{number} {name}" for number in (1, 2) for name in names]
    assert [f"{each.round} {each.case} {each.switch}" for each in results.samples] == seen


async def test_a_missing_peer_is_named_once_and_the_rest_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(turn: Turn) -> None:
        if turn.switch == OVS:
            raise MissingPeer("OVS-DPDK not found: apt-get install it")

    seen, results = await turns(bench, monkeypatch, [case(), case("two")], behave)
    assert [turn for turn in seen if OVS in turn] == ["1 one OVS-DPDK"]
    assert results.missing == {OVS: "OVS-DPDK not found: apt-get install it"}
    assert len(results.samples) == 8


async def test_what_a_switch_does_not_offer_is_left_out_in_that_case(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(turn: Turn) -> None:
        if (turn.switch, turn.case.name) == (OVS, "one"):
            raise NotOffered("not offered: RING_PACKED")

    seen, results = await turns(bench, monkeypatch, [case(), case("two")], behave)
    assert [turn for turn in seen if OVS in turn] == ["1 one OVS-DPDK", "1 two OVS-DPDK", "2 two OVS-DPDK"]
    assert results.left_out == {"one": {OVS: "not offered: RING_PACKED"}}


@pytest.mark.parametrize(("switch", "attempts"), [(OVS, 2), (PVSWITCH, 4)])
async def test_a_peer_that_fails_twice_is_not_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, switch: str, attempts: int
) -> None:
    def behave(turn: Turn) -> None:
        if turn.switch == switch:
            raise BenchError("it hung")

    seen, results = await turns(bench, monkeypatch, [case()], behave, rounds=4)
    assert len([turn for turn in seen if switch in turn]) == attempts
    assert results.failures("one", switch) == ["it hung"] * attempts


async def test_a_mistake_of_our_own_is_not_swallowed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(_: Turn) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await turns(bench, monkeypatch, [case()], behave)


async def test_no_round_begins_that_would_end_after_the_budget(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def behave(turn: Turn) -> None:
        nonlocal clock
        clock += 10 if turn.number == 1 else 5

    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: clock))
    seen, _ = await turns(bench, monkeypatch, [case()], behave, rounds=9, budget=75)
    assert seen[-1] == "3 one testpmd io"


async def test_a_turn_without_a_steady_slice_is_taken_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of its round, twice at most; the figures are those of the last try, faults are those of all."""
    tries = {OVS: 0, TESTPMD: 0}

    async def pretend(turn: Turn) -> list[Sample]:
        if turn.switch == PVSWITCH:
            return [turn.sample({"mpps": 1.0}, steady=1)]
        tries[turn.switch] += 1
        steady = int(turn.switch == OVS and tries[OVS] == 2)
        return [
            replace(turn.sample({"mpps": tries[turn.switch]}, steady=steady), faults=(f"try {tries[turn.switch]}",))
        ]

    monkeypatch.setattr(measure, "_measure", pretend)
    said: list[str] = []
    bench.say = said.append
    results = Results()
    await measure.run([case(), case("two", switches=(PVSWITCH,))], ALL, bench, results, rounds=1)
    order = [line.split()[2:4] for line in said]
    assert order == [
        ["one", "pvswitch"],
        ["one", "OVS-DPDK"],
        ["one", "testpmd"],
        ["two", "pvswitch"],
        ["one", "OVS-DPDK"],
        ["one", "testpmd"],
        ["one", "testpmd"],
    ]
    assert [(sample.switch, sample.figures["mpps"]) for sample in results.samples[:3]] == [
        (PVSWITCH, 1.0),
        (OVS, 2),
        (TESTPMD, 3),
    ]
    assert results.samples[1].faults == ("try 1", "try 2")


def test_a_turn_lasts_as_long_as_its_case_or_the_command_says(bench: Bench) -> None:
    assert Turn(case(seconds=5.0), PVSWITCH, 1, bench).seconds == 5.0
    bench.seconds = 0.5
    assert Turn(case(seconds=5.0), PVSWITCH, 1, bench).seconds == 0.5


@pytest.mark.parametrize("switch", [OVS, TESTPMD])
async def test_peers_without_hugepages_are_missing(switch: str) -> None:
    with pytest.raises(MissingPeer, match=f"{switch} needs 1500 hugepages of 2 MiB.*run this as root"):
        async with SWITCHES[switch](Wanted(ports=2, cpu=0)):
            pass


def test_every_switch_of_a_frame_case_can_be_started() -> None:
    special = {"tcp", "uplink"} | {each.name for each in CASES if each.name.startswith("tunnel-")}
    names = {switch for each in CASES if each.name not in special for switch in each.switches}
    assert names == set(SWITCHES)
