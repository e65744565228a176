# SPDX-License-Identifier: Apache-2.0
"""scripts/instruction-counts: what it says of a table that is no longer true, and how it reads callgrind's files."""

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "instruction-counts"


def load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("instruction_counts", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


counts = load()


@pytest.mark.parametrize("now", [97.1, 100.0, 102.9])
def test_a_small_difference_is_none(now: float) -> None:
    assert counts.compare({"split": now}, {"split": 100.0}) == []


def test_a_case_that_got_worse_is_named_with_both_figures() -> None:
    (said,) = counts.compare({"split": 104.0, "other": 5.0}, {"split": 100.0, "other": 5.0})
    assert said == "split: 104.0 instructions, 100.0 in the table: +4.0%, worse"


def test_a_case_that_got_better_has_to_be_written_down() -> None:
    (said,) = counts.compare({"split": 90.0}, {"split": 100.0})
    assert "90.0 instructions, 100.0 in the table: -10.0%, better" in said
    assert "--update" in said


def test_a_case_that_only_one_side_has_is_named() -> None:
    said = counts.compare({"new": 1.0}, {"gone": 1.0})
    assert [line.split(";")[0] for line in said] == [
        "gone: in the table but no longer counted",
        "new: not in the table",
    ]
    assert all("--update" in line for line in said)


def test_the_flags_are_the_products() -> None:
    flags = counts.product_flags()
    assert "-O3" in flags
    assert "-flto" in flags


def test_lines_are_read_as_callgrind_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "out.1"
    path.write_text(
        "version: 1\n"
        "desc: Trigger: Client Request: a case\n"
        "fl=(1) src/a.c\n"
        "fn=(1) f\n"
        "10 3\n"  # absolute
        "+2 4\n"  # relative to the line before
        "* 5\n"  # the same again
        "cfi=(2) src/b.h\n"
        "cfn=(2) g\n"
        "calls=1 7\n"
        "-1 100\n"  # what the call cost: it is counted in g
        "+3 2\n"
        "fe=(2)\n"
        "7 60\n"
        "fi=(1)\n"
        "11 1\n"
        "totals: 175\n"
    )
    assert list(counts.by_line(path)) == [
        ("src/a.c", 10, 3),
        ("src/a.c", 12, 4),
        ("src/a.c", 12, 5),
        ("src/a.c", 14, 2),
        ("src/b.h", 7, 60),
        ("src/a.c", 11, 1),
    ]
    assert counts.total(path) == 175
