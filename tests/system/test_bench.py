# SPDX-License-Identifier: Apache-2.0
"""`pvswitch bench` as a user runs it: whole runs, short ones. How fast anything is, is not asked here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pvswitch.bench.ovs import VSWITCHD
from pvswitch.bench.work import BRIDGE, OVS, PVSWITCH, QEMU_TAP, TESTPMD
from pvswitch.process import command
from tests.conftest import RequirePeer, missing_peer
from tests.system.footprint import leftovers

pytestmark = pytest.mark.timeout(300)
DOCUMENT = {"format", "machine", "versions", "options", "samples", "missing", "left_out", "summaries"}
LOSSLESS = ("lost", "reordered", "corrupted", "foreign", "errors")


@dataclass(frozen=True)
class Run:
    """How a run ended, what it printed, and its document."""

    status: int
    output: str
    document: dict[str, Any]

    def samples(self, case: str, switch: str) -> list[dict[str, Any]]:
        return [each for each in self.document["samples"] if (each["case"], each["switch"]) == (case, switch)]


async def bench(folder: Path, cases: Sequence[str], switches: Sequence[str] = (), *, seconds: float = 0.3) -> Run:
    """Run each case once; nothing may be left of it."""
    words = [word for name in cases for word in ("--cases", name)]
    words += [word for name in switches for word in ("--switch", name)]
    files = ("--json", str(folder / "results.json"), "--svg", str(folder / "plot.svg"))
    process = await asyncio.create_subprocess_exec(
        *(*command(), "bench", "--rounds", "1", "--seconds", str(seconds), *words, *files),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    text = output.decode()
    assert (folder / "results.json").exists(), text
    assert not leftovers(folder)
    ElementTree.parse(folder / "plot.svg")
    return Run(process.returncode, text, json.loads((folder / "results.json").read_text()))


def require_two_cpus() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        missing_peer("one processor for the switch and one for the generator are needed")


def require_hugepages() -> None:
    if os.geteuid() != 0:
        missing_peer("hugepages are reserved by root: run the tests as root")


async def test_pvswitch_alone_loses_nothing(short_path: Path) -> None:
    require_two_cpus()
    run = await bench(short_path, ["64-split-mrg"], [PVSWITCH])
    assert run.status == 0, run.output
    assert set(run.document) == DOCUMENT
    assert "64-split-mrg" in run.output
    (sample,) = run.samples("64-split-mrg", PVSWITCH)
    assert sample["faults"] == []
    assert {sample["seen"][key] for key in LOSSLESS} == {0}
    assert sample["seen"]["sent"] > 1000
    assert {"mpps", "gbits", "cycles"} <= set(sample["figures"])
    assert all(value > 0 for value in sample["figures"].values())


@pytest.mark.parametrize(
    "case",
    ["64-packed-mrg", "1518-split-mrg-L2", "9000-split-mrg-L2", "gso-split-mrg", "ports-8", "flood-7", "macs-1024"],
)
async def test_every_kind_of_frame_case_loses_nothing(short_path: Path, case: str) -> None:
    require_two_cpus()
    run = await bench(short_path, [case], [PVSWITCH], seconds=0.2)
    assert run.status == 0, run.output
    (sample,) = run.samples(case, PVSWITCH)
    assert sample["faults"] == []
    assert {sample["seen"][key] for key in LOSSLESS} == {0}


async def test_latency_is_told_at_a_share_of_the_full_rate(short_path: Path) -> None:
    require_two_cpus()
    run = await bench(short_path, ["latency-10"], [PVSWITCH])
    assert run.status == 0, run.output
    (sample,) = run.samples("latency-10", PVSWITCH)
    assert 0 < sample["figures"]["p50_us"] <= sample["figures"]["p99_us"]


async def test_peers_take_their_turns(short_path: Path, require_peer: RequirePeer) -> None:
    require_two_cpus()
    require_hugepages()
    require_peer("dpdk-testpmd", package="dpdk-dev")
    require_peer(VSWITCHD, package="openvswitch-switch-dpdk")
    run = await bench(short_path, ["64-split-mrg", "testpmd-64-split"])
    assert not run.document["missing"]
    for case in ("64-split-mrg", "testpmd-64-split"):
        rates = [run.samples(case, switch)[0]["figures"]["mpps"] for switch in (PVSWITCH, OVS, TESTPMD)]
        assert all(rate > 0 for rate in rates)
    assert run.samples("64-split-mrg", OVS)[0]["figures"]["cycles"] > 0
    assert OVS in run.document["versions"] or "ovs-vswitchd" in str(run.document["versions"])


async def test_a_missing_peer_is_named_and_the_rest_runs(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path on which there is neither testpmd nor Open vSwitch, only what any switch needs."""
    require_two_cpus()
    tools = short_path / "tools"
    tools.mkdir()
    for name in ("setpriv", "ip"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}")
    run = await bench(short_path, ["64-split-mrg"], [PVSWITCH, TESTPMD], seconds=0.1)
    assert run.status == 0, run.output
    assert [*run.document["missing"]] == [TESTPMD]
    assert f"{TESTPMD} is not in here: " in run.output
    assert len(run.samples("64-split-mrg", PVSWITCH)) == 1


@pytest.mark.parametrize(("case", "peer"), [("tcp", BRIDGE), ("uplink", QEMU_TAP)])
async def test_streams_between_guests_and_to_the_host(
    require_peer: RequirePeer, qemu: str, short_path: Path, case: str, peer: str
) -> None:
    require_peer("iperf3", package="iperf3")
    if os.geteuid() != 0:
        missing_peer("the peers' taps need a network namespace: run the tests as root")
    run = await bench(short_path, [case], [PVSWITCH, peer], seconds=1)
    assert run.status == 0, run.output
    for switch in (PVSWITCH, peer):
        both = run.samples(case, switch)
        assert len({sample["part"] for sample in both}) == 2
        assert all(sample["figures"]["gbits"] > 0 for sample in both)
    assert peer in run.output


async def test_an_idle_switch_and_its_first_frame(short_path: Path) -> None:
    require_two_cpus()
    run = await bench(short_path, ["idle-cpu", "silence-*"], seconds=1)
    assert run.status == 0, run.output
    assert run.samples("idle-cpu", PVSWITCH)[0]["figures"]["cpu"] >= 0
    for polling in ("busy", "adaptive"):
        assert run.samples(f"silence-{polling}", PVSWITCH)[0]["figures"]["first_us"] > 0
