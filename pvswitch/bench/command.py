# SPDX-License-Identifier: Apache-2.0
"""What `pvswitch bench` does with its options: list, measure and report, or compare two runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pvswitch import __version__
from pvswitch.bench import judge, plot, report
from pvswitch.bench.cases import CASES, select
from pvswitch.bench.errors import BenchError
from pvswitch.bench.machine import description, hugepages, pick_cpus
from pvswitch.bench.measure import Bench, run
from pvswitch.bench.ovs import VSWITCHD
from pvswitch.bench.results import Results
from pvswitch.bench.switches import HUGEPAGES
from pvswitch.bench.work import OVS, PVSWITCH, Case, Circle

ROUNDS = 5
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.3
# A quick run ends within two minutes: the last round begins only if one as long as the longest so far still fits.
QUICK_BUDGET_SECONDS = 105.0
WIDTH = 200


@dataclass(frozen=True)
class Options:
    """What was asked for. None and nothing are the defaults: all cases, all switches, each case's own time."""

    patterns: Sequence[str] = ()
    switches: Sequence[str] = ()
    quick: bool = False
    rounds: int | None = None
    seconds: float | None = None
    cpus: tuple[int, int] | None = None
    json: Path | None = None
    svg: Path | None = None
    table: Path | None = None


def main(options: Options) -> int:
    """Measure and report; return the exit status: 1 when pvswitch lost, changed or reordered a frame."""
    cases = _chosen(options)
    names = _switches(cases, options.switches)
    console = _console()
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else None)
    cpus = options.cpus or pick_cpus(os.sched_getaffinity(0))
    wants_pages = any(name != PVSWITCH for name in names) or any(isinstance(case.work, Circle) for case in cases)
    results = Results(
        machine=description(),
        versions={"pvswitch": __version__, **(_ovs_version() if OVS in names else {})},
        options={"rounds": rounds, "seconds": seconds or "by case", "cpus": list(cpus)},
    )
    with (
        tempfile.TemporaryDirectory(prefix="pvswitch-bench-") as folder,
        hugepages(HUGEPAGES) if wants_pages else contextlib.nullcontext(False) as huge,
    ):
        bench = Bench(cpus, huge, Path(folder), seconds, lambda line: console.print(line, soft_wrap=True, markup=False))
        budget = QUICK_BUDGET_SECONDS if options.quick else None
        try:
            asyncio.run(run(cases, names, bench, results, rounds=rounds, budget=budget))
        except KeyboardInterrupt:
            console.print("interrupted: what is there so far")
    _write(results, cases, options)
    report.show(results, cases, console)
    return 1 if report.ours_at_fault(results) or not results.samples else 0


def show_cases(patterns: Sequence[str]) -> int:
    """Print the cases; return the exit status."""
    report.listing(select(patterns), _console())
    return 0


def compare(first: Path, second: Path) -> int:
    """Print how far two runs agree; return the exit status."""
    found = judge.repeats(Results.load(first), Results.load(second), CASES)
    if not found:
        raise BenchError(f"{first} and {second} have no case in common.")
    report.comparison(found, _console())
    return 0


def _chosen(options: Options) -> list[Case]:
    cases = select(options.patterns)
    if options.quick and not options.patterns:
        cases = [case for case in cases if case.quick]
    return cases


def _switches(cases: Sequence[Case], wanted: Sequence[str]) -> list[str]:
    known = [*dict.fromkeys(switch for case in cases for switch in case.switches)]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise BenchError(f"No such switch in these cases: {', '.join(unknown)}; there are {', '.join(known)}.")
    return [name for name in known if not wanted or name in wanted]


def _console() -> Console:
    """Return where to print: on a pipe tables are as wide as they need."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(WIDTH, console.width))


def _ovs_version() -> dict[str, str]:
    try:
        answer = subprocess.run([VSWITCHD, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return {}
    lines = [line.replace(")", "").split() for line in answer.stdout.splitlines()]
    return {words[0]: words[-1] for words in lines if len(words) > 1}


def _write(results: Results, cases: Sequence[Case], options: Options) -> None:
    if options.json is not None:
        results.save(options.json)
    if options.svg is not None:
        _save(options.svg, plot.svg(results, cases))
    if options.table is not None:
        text = io.StringIO()
        report.show(results, cases, Console(file=text, width=WIDTH, highlight=False))
        _save(options.table, text.getvalue())


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from error
