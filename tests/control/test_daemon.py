# SPDX-License-Identifier: Apache-2.0
"""How a start fails: one clear line, exit status 1; and what signals do meanwhile."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

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


@pytest.mark.parametrize("signals", [("SIGTERM",), ("SIGHUP", "SIGTERM")])
def test_signals_during_the_start(tmp_path: Path, signals: tuple[str, ...]) -> None:
    """They are heeded when it is over. The folders are open to all to enter, whatever the umask."""
    lab = tmp_path / "lab.yaml"
    lab.write_text(f"runtime_dir: {tmp_path}/run\nstate_dir: {tmp_path}/state\nports: {{vm1: {{}}}}\n")
    code = f"""
import os, signal, sys
from pvswitch import cli, daemon
start = daemon.Ports.start
def interrupted(self):
    for name in {signals!r}:
        os.kill(os.getpid(), signal.Signals[name])
    start(self)
daemon.Ports.start = interrupted
sys.exit(cli.main())
"""
    words = [sys.executable, "-c", code, "run", "-c", str(lab)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, umask=0o077)
    assert done.returncode == 0
    assert "switch ending" in done.stderr
    left = list((tmp_path / "run").rglob("*"))
    assert left == [tmp_path / "run" / "ports"]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "run", *left)} == {0o755}


def test_a_fault_in_the_log_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    def handle(token: str) -> None:
        raise RuntimeError(f"a fault of {len(token)}")

    daemon._set_up_logging(verbose=False)
    try:
        handle("verysecret")
    except RuntimeError:
        structlog.get_logger().exception("request failed")
    finally:
        structlog.reset_defaults()
    log = capsys.readouterr().err
    assert "RuntimeError: a fault of 10" in log
    assert log.count("verysecret") == log.count('handle("verysecret")')


async def test_a_fault_in_a_reload_does_not_end_the_switch(tmp_path: Path) -> None:
    class Faulty:
        async def apply(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("a fault")

    lab = tmp_path / "lab.yaml"
    lab.write_text("{}")
    with capture_logs() as logs:
        await daemon._reload(cast(Any, Faulty()), lab)
    assert [entry["event"] for entry in logs] == ["reload failed"]


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
