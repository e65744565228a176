# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of TCP make of their samples, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.streams import Sample, Summary, compare, ratios, summary, verdict
from tests.conftest import RequirePeer, missing_peer
from tests.system.footprint import leftovers


def sample(number: int, source: str, gbits: float) -> Sample:
    return Sample(number, source, gbits, retransmits=0, switch_cores=0, qemu_cores=0, other_cores=0)


def test_interval_is_the_widest_for_few_samples() -> None:
    assert summary([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0)
    assert summary([5.0]) == Summary(5.0, 5.0, 5.0)


def test_interval_leaves_out_what_coins_allow() -> None:
    """Tables of the sign test: the second of 9 from either end bounds the median with 96 %, the third of 12 too."""
    assert summary([float(value) for value in range(8)]) == Summary(3.5, 0.0, 7.0)
    assert summary([float(value) for value in range(9)]) == Summary(4.0, 1.0, 7.0)
    assert summary([float(value) for value in range(12)]) == Summary(5.5, 2.0, 9.0)


def test_ratios_are_within_round_and_direction() -> None:
    ours = [sample(1, "vm1", 4.0), sample(1, "vm2", 6.0), sample(2, "vm1", 1.0)]
    theirs = [sample(2, "vm1", 2.0), sample(1, "vm2", 2.0), sample(1, "vm1", 1.0)]
    assert ratios(ours, theirs) == [4.0, 3.0, 0.5]


@pytest.mark.parametrize(
    ("back", "each", "wanted"),
    [(4.0, True, "met"), (2.0, True, "missed"), (2.0, False, "undecided"), (4.0, False, "met")],
)
def test_a_direction_may_miss_what_both_together_do_not(back: float, each: bool, wanted: str) -> None:
    ours = [sample(number, source, gbits) for number in (1, 2) for source, gbits in (("vm1", 4.0), ("vm2", back))]
    theirs = [sample(number, source, 1.0) for number in (1, 2) for source in ("vm1", "vm2")]
    found = compare(ours, theirs, 3.0, each=each)
    assert found["verdict"] == wanted
    assert found["directions"]["vm2"]["median"] == back


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [((4.0, 5.0), "met"), ((3.9, 5.0), "undecided"), ((3.0, 4.0), "undecided"), ((3.0, 3.9), "missed")],
)
def test_verdict_needs_the_whole_interval(interval: tuple[float, float], wanted: str) -> None:
    assert verdict(Summary(4.5, *interval), 4.0) == wanted


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("module", "names"), [("bench.tcp", ["pvswitch", "bridge"]), ("bench.uplink", ["pvswitch", "QEMU tap"])]
)
async def test_a_short_run_measures_and_leaves_nothing(
    require_peer: RequirePeer, qemu: str, tmp_path: Path, module: str, names: list[str]
) -> None:
    require_peer("iperf3", package="iperf3")
    if os.geteuid() != 0:
        missing_peer("the peers' taps need a network namespace: run the tests as root")
    result = tmp_path / "result.json"
    words = ("-m", module, "--rounds", "1", "--seconds", "1", "--only", *names, "--json", str(result))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(result.read_text())
    assert not found["missing"]
    assert [len(found["samples"][name]) for name in names] == [2, 2]
    assert all(sample["gbits"] > 0 for samples in found["samples"].values() for sample in samples)
    assert f"pvswitch / {names[1]}: " in output.decode()
    assert not leftovers(tmp_path)
