# SPDX-License-Identifier: Apache-2.0
"""What people read: the list of cases, the table of a run with its verdicts, the comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pvswitch.bench.judge import AGREEMENT, Repeat, claims, standings
from pvswitch.bench.results import Results
from pvswitch.bench.stats import Verdict
from pvswitch.bench.work import FIGURES, PVSWITCH, Case

COLOURS = {
    Verdict.MET: "green",
    Verdict.AHEAD: "green",
    Verdict.MISSED: "red",
    Verdict.BEHIND: "red",
    Verdict.UNDECIDED: "yellow",
}
WORDS = {"agrees": "green", "noise": "yellow", "differs": "red"}
MAX_FAULTS = 20
# What may run besides, without a word about it.
QUIET_CORES = 0.1


def listing(cases: Sequence[Case], console: Console) -> None:
    """Print the cases, with what pvswitch has to reach in each."""
    table = Table("case", "what", "compared by", "switches", "expected", box=None, pad_edge=False)
    for case in cases:
        table.add_row(case.name, case.text, FIGURES[case.figure].unit, ", ".join(case.switches), _expected(case))
    console.print(table)


def _expected(case: Case) -> str:
    found = [f"{times:g} x {peer}" for peer, times in case.targets.items()]
    if case.against is not None:
        found.append(f"{FIGURES[case.against.figure].unit} at most {case.against.times:g} x {case.against.case}")
    if case.limit is not None:
        bound = "at least" if FIGURES[case.figure].more_is_better else "at most"
        found.append(f"{bound} {case.limit:g} {FIGURES[case.figure].unit}")
    return "; ".join(found)


def table(results: Results, cases: Sequence[Case], console: Console) -> None:
    """Print every case's figures, switch by switch, and how pvswitch stands next to each."""
    made = Table(
        "case", "switch", "median (interval)", "besides, medians", "pvswitch is, times", "", box=None, pad_edge=False
    )
    for case in cases:
        ratios = {item.peer: item for item in standings(results, case)}
        name = case.name
        for switch in results.switches(case.name):
            item = ratios.get(switch)
            words = "" if item is None else str(item.ratio)
            said = "" if item is None else _coloured(item.verdict)
            if item is not None and item.met is not None:
                said += f"; {item.target:g}: {_coloured(item.met)}"
            made.add_row(name, switch, _main(results, case, switch), _others(results, case, switch), words, said)
            name = ""
        for switch, reason in results.left_out.get(case.name, {}).items():
            made.add_row(name, switch, "-", reason.splitlines()[0], "", "")
            name = ""
    console.print(made)
    _notes(results, cases, console)


def _coloured(verdict: Verdict) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"


def _main(results: Results, case: Case, switch: str) -> str:
    figure = FIGURES[case.figure]
    value = results.summary(case.name, switch, case.figure)
    return "-" if value is None else f"{value.show(figure.digits)} {figure.unit}"


def _others(results: Results, case: Case, switch: str) -> str:
    """Return the medians of all other figures; where there is none at all, what failed."""
    if not any(sample.figures for sample in results.samples if (sample.case, sample.switch) == (case.name, switch)):
        return results.failures(case.name, switch)[0].splitlines()[0]
    words = []
    for name, figure in FIGURES.items():
        value = None if name == case.figure else results.summary(case.name, switch, name)
        if value is not None:
            words.append(f"{value.median:,.{figure.digits}f} {figure.unit}")
    return ", ".join(words)


def _notes(results: Results, cases: Sequence[Case], console: Console) -> None:
    found = [claim for case in cases for claim in claims(results, case)]
    if found:
        console.print()
    for claim in found:
        console.print(f"{claim.case}, {claim.switch}: {claim.text}: {_coloured(claim.verdict)}")
    for switch, reason in results.missing.items():
        console.print(f"{switch} is not in here: {reason}", soft_wrap=True, markup=False)
    disturbed = [sample for sample in results.samples if sample.seen.get("others", 0) > QUIET_CORES]
    if disturbed:
        console.print(
            f"{len(disturbed)} turns shared the machine with others, which took more than {QUIET_CORES:g} cores: "
            "measure again when nothing else runs",
            soft_wrap=True,
        )
    _disturbed(results, console)
    wrong = results.faults()
    if wrong:
        console.print("\n[red bold]FAULTS[/]: frames were not delivered as they have to be")
    for sample, fault in wrong[:MAX_FAULTS]:
        where = f"round {sample.round}, {sample.case} {sample.part}".strip()
        console.print(f"{sample.switch}, {where}: {fault.splitlines()[0]}", soft_wrap=True, markup=False)
    if len(wrong) > MAX_FAULTS:
        console.print(f"and {len(wrong) - MAX_FAULTS} more: see the JSON document")


def _disturbed(results: Results, console: Console) -> None:
    """Say how often the processors weren't at their best."""
    again = [sample for sample in results.samples if sample.seen.get("disturbed")]
    always = [sample for sample in again if not sample.seen["steady"]]
    if again:
        console.print(
            f"{len(again)} turns met processors that were far from each other, or shared with a neighbour, and "
            f"measured those slices again; {len(always)} met no others, and count only where there is nothing else",
            soft_wrap=True,
        )


def comparison(found: Sequence[Repeat], console: Console) -> None:
    """Print how far two runs agree."""
    made = Table("case", "switch", "figure", "first run", "second run", "second / first", "", box=None, pad_edge=False)
    for item in found:
        figure = FIGURES[item.figure]
        unit, digits = (f"times {item.peer}", 2) if item.peer else (figure.unit, figure.digits)
        made.add_row(
            item.case,
            item.switch,
            unit,
            item.first.show(digits),
            item.second.show(digits),
            f"{item.change:.2f}",
            f"[{WORDS[item.word]}]{item.word}[/]",
        )
    console.print(made)
    counts = {word: sum(item.word == word for item in found) for word in WORDS}
    console.print(
        f"\n{len(found)} figures: {counts['agrees']} agree within {AGREEMENT:.0%}; {counts['noise']} are apart by "
        f"no more than so few and so different rounds may be by chance: noise; {counts['differs']} differ.",
        soft_wrap=True,
        highlight=False,
    )


def show(results: Results, cases: Sequence[Case], console: Console) -> None:
    """Print what was measured where, and what was found."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    machine = ", ".join(f"{key} {value}" for key, value in results.machine.items())
    options = ", ".join(f"{key} {value}" for key, value in results.options.items())
    console.print(f"\n{versions}\n{machine}\n{options}\n", soft_wrap=True, markup=False, highlight=False)
    table(results, cases, console)


def ours_at_fault(results: Results) -> bool:
    """Whether pvswitch itself has a fault."""
    return bool(results.faults(PVSWITCH))
