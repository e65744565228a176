# SPDX-License-Identifier: Apache-2.0
"""The document that a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvswitch.bench.errors import BenchError
from pvswitch.bench.results import Results, Sample
from pvswitch.bench.stats import Summary
from pvswitch.bench.work import OVS, PVSWITCH
from tests.bench.samples import results, samples

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SAMPLES = st.builds(
    Sample,
    case=TEXTS,
    switch=TEXTS,
    round=st.integers(1, 9),
    figures=st.dictionaries(TEXTS, st.floats(-1e9, 1e9), max_size=3),
    part=TEXTS,
    faults=st.lists(TEXTS, max_size=2).map(tuple),
    seen=st.dictionaries(TEXTS, st.integers(0, 2**63), max_size=2),
)
RESULTS = st.builds(
    Results,
    machine=st.dictionaries(TEXTS, TEXTS, max_size=2),
    versions=st.dictionaries(TEXTS, TEXTS, max_size=2),
    options=st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=2),
    samples=st.lists(SAMPLES, max_size=5),
    missing=st.dictionaries(TEXTS, TEXTS, max_size=2),
    left_out=st.dictionaries(TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=2),
)


@given(RESULTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_document_is_read_as_it_was_written(tmp_path: Path, found: Results) -> None:
    path = tmp_path / "results.json"
    found.save(path)
    assert Results.load(path) == found


def test_the_document_has_every_sample_and_its_summaries(tmp_path: Path) -> None:
    found = results(samples("one", PVSWITCH, "mpps", [3.0, 1.0, 2.0]), samples("one", OVS, "mpps", [1.0]))
    found.save(tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["format"] == 1
    assert len(document["samples"]) == 4
    assert document["summaries"]["one"][PVSWITCH]["mpps"] == {"median": 2.0, "low": 1.0, "high": 3.0, "count": 3}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "samples": [{"x": 1}]}', "ports: {}"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(BenchError, match="is no result of `pvswitch bench --json`"):
        Results.load(path)


def test_another_format_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": 2}')
    with pytest.raises(BenchError, match="has format 2, this pvswitch reads 1: measure anew"):
        Results.load(path)
    with pytest.raises(BenchError, match="cannot be read: No such file"):
        Results.load(tmp_path / "none.json")
    with pytest.raises(BenchError, match="cannot be written: Is a directory"):
        Results().save(tmp_path)


def test_faults_and_failures_are_found_by_switch() -> None:
    lost = Sample("one", PVSWITCH, 1, {"mpps": 1.0}, faults=("3 frames were lost",))
    failed = Sample("one", OVS, 1, {}, faults=("it ended",))
    found = Results(samples=[lost, failed])
    assert found.faults() == [(lost, "3 frames were lost"), (failed, "it ended")]
    assert found.faults(PVSWITCH) == [(lost, "3 frames were lost")]
    assert (found.failures("one", OVS), found.failures("one", PVSWITCH)) == (["it ended"], [])
    assert found.summary("one", PVSWITCH, "mpps") == Summary(1.0, 1.0, 1.0)
    assert found.summary("one", OVS, "mpps") is None


def test_turns_without_a_steady_slice_count_only_where_there_are_no_others() -> None:
    seen = [{"steady": 5}, {"steady": 0}, {}]
    found = Results(samples=[Sample("one", PVSWITCH, n, {"mpps": n}, seen=words) for n, words in enumerate(seen)])
    assert found.values("one", PVSWITCH, "mpps") == {(0, ""): 0, (2, ""): 2}
    del found.samples[2], found.samples[0]
    assert found.values("one", PVSWITCH, "mpps") == {(1, ""): 1}
