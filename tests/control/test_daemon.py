# SPDX-License-Identifier: Apache-2.0
"""How a start fails: one clear line, exit status 1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pvswitch import daemon
from pvswitch.errors import PvswitchError


def test_a_processor_that_is_not_there(tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text(
        f"runtime_dir: {tmp_path}/run\nstate_dir: {tmp_path}/state\ndatapath: {{workers: 2, cpus: [0, 1023]}}\n"
    )
    code = "import sys; from pvswitch.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "run", "-c", str(lab)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("datapath.cpus: this process can't run on processor")
    assert done.stderr.count("\n") == 1


def test_what_counts_is_what_the_kernel_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow affinity of the process itself, as from taskset, is no reason to refuse; and it stays as it was."""
    own = os.sched_getaffinity(0)
    try:
        possible = daemon._possible_cpus()
        assert possible >= own
        os.sched_setaffinity(0, {min(own)})
        assert daemon._possible_cpus() == possible
        assert os.sched_getaffinity(0) == {min(own)}
    finally:
        os.sched_setaffinity(0, own)
    monkeypatch.setattr(daemon, "_possible_cpus", lambda: {0, 1, 2, 3, 8, 10, 11})
    daemon._check_cpus([])
    daemon._check_cpus([3, 8, 3])
    with pytest.raises(PvswitchError, match=r"processor 9: name some of 0-3,8,10-11, or"):
        daemon._check_cpus([3, 9])
