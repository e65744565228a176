# SPDX-License-Identifier: Apache-2.0
"""The socket file: paths that can't be, and files that aren't ours."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.server import VhostUserServer

from .fakes import OFFER, FakeBackend, FrontEnd, open_fds


async def test_someone_elses_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    server = VhostUserServer(path, offer=OFFER, backend=FakeBackend())
    await server.start()
    path.unlink()
    path.write_text("theirs")
    await server.close()
    assert path.read_text() == "theirs"
    with pytest.raises(PvswitchError, match="not a socket"):
        server.bind()


def test_nobody_can_connect_between_bind_and_listen(tmp_path: Path) -> None:
    server = VhostUserServer(tmp_path / "vm1.sock", offer=OFFER, backend=FakeBackend())
    server.bind()
    with pytest.raises(ConnectionRefusedError):
        FrontEnd(server.path)
    asyncio.run(server.close())
    assert not server.path.exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [("x" * 108, "107"), ("missing/vm1.sock", "doesn't exist"), (".", "not a socket"), ("é" * 60, "107")],
)
def test_bad_paths(tmp_path: Path, name: str, match: str) -> None:
    before = open_fds()
    with pytest.raises(PvswitchError, match=match):
        VhostUserServer(tmp_path / name, offer=OFFER, backend=FakeBackend()).bind()
    assert open_fds() == before


def test_107_bytes_are_enough(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - 1
    server = VhostUserServer(tmp_path / ("x" * room), offer=OFFER, backend=FakeBackend())
    server.bind()
    asyncio.run(server.close())
