# SPDX-License-Identifier: Apache-2.0
"""What the doctor sees from outside."""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pvswitch.doctor import diagnose, socket_problem


def port(path: Path, **state: Any) -> dict[str, Any]:
    return {"name": "vm1", "socket": str(path), "state": {"link": "down", **state}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "vm1.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(made))
    return made


def test_a_link_that_is_up_needs_nothing(path: Path) -> None:
    (finding,) = diagnose([port(path) | {"state": {"link": "up", "features": ["VERSION_1"]}}])
    assert finding.ok
    assert "VERSION_1" in finding.message


def test_a_tap_has_an_interface_and_no_socket() -> None:
    tap = {"name": "up0", "type": "tap", "ifname": "tap0"}
    (finding,) = diagnose([tap | {"state": {"link": "up"}}])
    assert finding.message == "link up; interface: tap0"
    (finding,) = diagnose([tap | {"state": {"link": "down", "reason": "interface_missing", "message": "no tap0: x"}}])
    assert (finding.ok, finding.message) == (False, "interface_missing: no tap0: x")


def test_a_pcap_port_has_files_and_tells_how_far_it_is() -> None:
    replay = {"name": "r", "type": "pcap", "read": "/a.pcap", "write": None}
    (finding,) = diagnose([replay | {"state": {"link": "up", "message": None}}])
    assert finding.message == "link up; read: /a.pcap"
    both = replay | {"write": "/b.pcap", "state": {"link": "up", "message": "played 3 frames, finished"}}
    (finding,) = diagnose([both])
    assert finding.message == "link up; read: /a.pcap; write: /b.pcap; played 3 frames, finished"


def test_the_switchs_own_sentence_comes_first(path: Path) -> None:
    path.unlink()
    first, second = diagnose([port(path, reason="waiting_for_frontend", message="no VM: start one")])
    assert first.message == "waiting_for_frontend: no VM: start one"
    assert "is gone" in second.message
    assert len(diagnose([port(path, reason="waiting_for_frontend", message="x")], local=False)) == 1
    assert len(diagnose([port(path, reason="broken", message="x")])) == 1


def test_the_socket_of_a_vm_is_not_looked_at(path: Path) -> None:
    path.unlink()
    down = port(path, reason="waiting_for_frontend", message="x")
    assert len(diagnose([down | {"mode": "client"}])) == 1
    assert len(diagnose([down | {"mode": "server"}])) == 2


def test_sockets_that_let_nobody_in(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o600)
    assert "socket_mode" in str(socket_problem(path))
    path.chmod(0o660)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: type("G", (), {"gr_name": "root"}))
    assert "socket_group" in str(socket_problem(path))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: type("G", (), {"gr_name": "kvm"}))
    assert socket_problem(path) is None
    path.chmod(0o666)
    assert socket_problem(path) is None
    path.unlink()
    path.touch()
    assert "no socket" in str(socket_problem(path))


def test_a_folder_that_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> os.stat_result:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", refuse)
    assert "as root" in str(socket_problem(path))
