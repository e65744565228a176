# SPDX-License-Identifier: Apache-2.0
"""What bench.tcp makes of its samples, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.tcp import Sample, Summary, ratios, summary, verdict
from tests.conftest import RequirePeer


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
    ("interval", "wanted"),
    [((4.0, 5.0), "met"), ((3.9, 5.0), "undecided"), ((3.0, 4.0), "undecided"), ((3.0, 3.9), "missed")],
)
def test_verdict_needs_the_whole_interval(interval: tuple[float, float], wanted: str) -> None:
    assert verdict(Summary(4.5, *interval), 4.0) == wanted


@pytest.mark.timeout(300)
async def test_a_short_run_measures_and_leaves_nothing(require_peer: RequirePeer, qemu: str, tmp_path: Path) -> None:
    require_peer("iperf3", package="iperf3")
    result = tmp_path / "result.json"
    before = namespaces()
    words = (
        "-m",
        "bench.tcp",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--only",
        "pvswitch",
        "bridge",
        "--json",
        str(result),
    )
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(result.read_text())
    assert not found["missing"]
    assert [len(found["samples"][name]) for name in ("pvswitch", "bridge")] == [2, 2]
    assert all(sample["gbits"] > 0 for samples in found["samples"].values() for sample in samples)
    assert "pvswitch / bridge" in output.decode()
    assert namespaces() == before


def namespaces() -> set[str]:
    """The network namespaces in which processes live."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(link.readlink()))
        except OSError:  # gone, or not ours to look at
            continue
    return found
