# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 (a look at a file between two awaits holds nobody up here)
"""Where the API listens: sockets made, replaced, refused and removed."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from aiohttp import web

from pvswitch.api.server import ApiServer
from pvswitch.errors import PvswitchError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


async def test_the_socket_has_its_mode_and_group_and_goes_at_the_end(path: Path) -> None:
    gid = 4242 if os.geteuid() == 0 else os.getegid()
    server = ApiServer(web.Application(), path, mode=0o660, gid=gid)
    await server.start()
    info = path.stat()
    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o660
    assert info.st_gid == gid
    await server.close()
    assert not path.exists()


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ApiServer(web.Application(), path)
    await server.start()
    await server.close()
    assert not path.exists()


async def test_a_live_socket_is_refused_and_left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(PvswitchError, match="running"):
            await ApiServer(web.Application(), path).start()
        assert path.exists()


async def test_a_file_in_the_way_is_refused_and_left(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(PvswitchError, match="no socket"):
        await ApiServer(web.Application(), path).start()
    assert path.read_text() == "precious"


async def test_a_missing_folder_is_one_sentence(path: Path) -> None:
    with pytest.raises(PvswitchError, match="cannot listen"):
        await ApiServer(web.Application(), path / "below" / "api.sock").start()


async def test_a_busy_port_leaves_no_socket(path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(PvswitchError, match=r"api\.listen"):
            await ApiServer(web.Application(), path, listen=f"127.0.0.1:{port}").start()
    assert not path.exists()


async def test_ipv6_loopback(path: Path) -> None:
    server = ApiServer(web.Application(), path, listen="[::1]:0")
    await server.start()
    try:
        assert server.tcp_address is not None
        assert server.tcp_address[0] == "::1"
    finally:
        await server.close()


async def test_the_end_leaves_the_socket_of_a_successor(path: Path) -> None:
    server = ApiServer(web.Application(), path)
    await server.start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        await server.close()
        assert path.exists()
