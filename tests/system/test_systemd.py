# SPDX-License-Identifier: Apache-2.0
"""The service unit, judged by systemd itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import RequirePeer

UNIT = Path(__file__).parents[2] / "configs/systemd/pvswitch.service"
MAX_EXPOSURE = 25  # tenths; systemd says OK to 5.0


@pytest.fixture
def analyze(require_peer: RequirePeer, tmp_path: Path) -> list[str]:
    """The command, and in its last word's place a unit whose programs are on this machine."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/pvswitch", "/bin/true"))
    return [require_peer("systemd-analyze", package="systemd"), str(unit)]


def judged(program: str, *words: str) -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def test_unit_has_no_unknown_or_wrong_line(analyze: list[str]) -> None:
    program, unit = analyze
    assert judged(program, "verify", unit) == ""


def test_unit_gives_the_switch_little(analyze: list[str]) -> None:
    program, unit = analyze
    judged(program, "security", "--no-pager", "--offline=true", f"--threshold={MAX_EXPOSURE}", unit)
