# SPDX-License-Identifier: Apache-2.0
"""What people get to read: tables and the plot."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pvswitch.bench import plot, report
from pvswitch.bench.cases import CASES
from pvswitch.bench.judge import repeats
from pvswitch.bench.results import Results, Sample
from pvswitch.bench.work import OVS, PVSWITCH, TESTPMD, Against
from tests.bench.samples import case, results, samples, two


def printed(draw: Callable[[Console], None]) -> str:
    """What goes to a wide terminal without colours, one space for many."""
    text = io.StringIO()
    draw(Console(file=text, width=300, highlight=False))
    return re.sub(" +", " ", text.getvalue())


def test_every_case_is_listed_with_what_is_expected() -> None:
    text = printed(lambda console: report.listing(CASES, console))
    for each in CASES:
        assert f"\n{each.name} {each.text} " in text
    assert "2.4 x OVS-DPDK; 1 x testpmd io" in text
    assert "cycles/packet at most 1.05 x ports-2" in text
    assert "at most 1 % of a core" in text


def test_a_table_has_medians_intervals_ratios_and_verdicts() -> None:
    found = two("one", [5.0, 4.0, 6.0], [2.0, 2.0, 2.0])
    found.samples += samples("one", TESTPMD, "mpps", [5.0, 5.0, 4.0])
    found.samples += samples("two", PVSWITCH, "mpps", [1.0])
    found.leave_out("two", OVS, "not offered: RING_PACKED")
    found.missing[TESTPMD] = "dpdk-testpmd not found: apt-get install dpdk-dev"
    cases = [case(targets={OVS: 2.0}), case("two", against=Against("one", "mpps", 0.5))]
    text = printed(lambda console: report.show(found, cases, console))
    assert "one pvswitch 5.000 (4.000 to 6.000) Mpps" in text
    assert " OVS-DPDK 2.000 (2.000 to 2.000) Mpps 2.50 (2.00 to 3.00) ahead; 2: met" in text
    assert " testpmd io 5.000 (4.000 to 5.000) Mpps 1.00 (0.80 to 1.50) undecided" in text
    assert " OVS-DPDK - not offered: RING_PACKED" in text
    assert "two, pvswitch: 0.20 (0.20 to 0.20) times one in Mpps, at most 0.5: met" in text
    assert "testpmd io is not in here: dpdk-testpmd not found: apt-get install dpdk-dev" in text
    assert "FAULTS" not in text


def test_faults_are_shouted() -> None:
    lost = [Sample("one", PVSWITCH, n, {"mpps": 1.0}, faults=("[3] of 9 frames were lost",)) for n in range(1, 31)]
    found = Results(samples=[*lost, Sample("one", OVS, 1, {}, faults=("it ended:\nlong story",))])
    text = printed(lambda console: report.show(found, [case()], console))
    assert "FAULTS: frames were not delivered as they have to be" in text
    assert "pvswitch, round 1, one: [3] of 9 frames were lost" in text
    assert "and 11 more: see the JSON document" in text
    assert " OVS-DPDK - it ended:" in text
    assert report.ours_at_fault(found)
    assert not report.ours_at_fault(Results(samples=found.samples[-1:]))


def test_turns_beside_others_are_counted() -> None:
    found = Results(samples=[Sample("one", PVSWITCH, n, {"mpps": 1.0}, seen={"others": n / 10}) for n in range(4)])
    text = printed(lambda console: report.show(found, [case()], console))
    assert "2 turns shared the machine with others, which took more than 0.1 cores: measure again" in text


def test_turns_with_disturbed_slices_are_counted() -> None:
    seen = [{"steady": 4, "disturbed": 0}, {"steady": 4, "disturbed": 2}, {"steady": 0, "disturbed": 1}]
    found = Results(samples=[Sample("one", PVSWITCH, n, {"mpps": 1.0}, seen=words) for n, words in enumerate(seen)])
    text = printed(lambda console: report.show(found, [case()], console))
    assert "2 turns met processors that were far from each other" in text
    assert "1 met no others" in text
    del found.samples[1:]
    assert "far from each other" not in printed(lambda console: report.show(found, [case()], console))


def test_a_comparison_says_noise() -> None:
    first = results(samples("one", PVSWITCH, "mpps", [1.0, 2.0, 3.0]))
    second = results(samples("one", PVSWITCH, "mpps", [2.0, 3.0, 4.0]))
    text = printed(lambda console: report.comparison(repeats(first, second, [case()]), console))
    assert "one pvswitch Mpps 2.000 (1.000 to 3.000) 3.000 (2.000 to 4.000) 1.50 noise" in text
    assert "1 figures: 0 agree within 10%; 1 are apart by no more than so few and so different rounds may be" in text
    assert "noise; 0 differ." in text


# ---- the plot

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=5)


@given(VALUES, VALUES, st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=12))
def test_bars_and_whiskers_stay_in_the_picture(ours: list[float], theirs: list[float], name: str) -> None:
    root = ElementTree.fromstring(plot.svg(two(name, ours, theirs), [case(name)]))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.iter(f"{SVG}rect"):
        right = float(rect.get("x", "0")) + float(rect.attrib["width"])
        bottom = float(rect.get("y", "0")) + float(rect.attrib["height"])
        assert (0 <= right <= width, 0 <= bottom <= height) == (True, True)
    for path in root.iter(f"{SVG}path"):
        assert max(float(x) for x in re.findall(r"[MH]([\d.]+)", path.attrib["d"])) <= width


def test_a_bar_is_as_long_as_its_median() -> None:
    root = ElementTree.fromstring(plot.svg(two("one", [10.0], [2.5]), [case(), case("nothing")]))
    bars = [rect for group in root.iter(f"{SVG}g") for rect in group.iter(f"{SVG}rect")]
    lengths = [float(bar.attrib["width"]) for bar in bars]
    assert lengths == [plot.BAR_WIDTH, plot.BAR_WIDTH / 4]
    assert [bar.attrib["fill"] for bar in bars] == [plot.COLOURS[PVSWITCH], plot.COLOURS[OVS]]
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts == [PVSWITCH, OVS, "one", "10.000 (10.000 to 10.000) Mpps", "2.500 (2.500 to 2.500) Mpps"]
