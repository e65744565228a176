# SPDX-License-Identifier: Apache-2.0
"""A switch without a data plane: the real controller and API on a real unix socket and TCP port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pvswitch.api.app import make_app
from pvswitch.api.schemas import Info
from pvswitch.api.server import ApiServer
from pvswitch.controller import Controller
from pvswitch.validation import parse
from tests.control.fake import FakeDataplane

MAC = "52:54:00:00:00:01"


@dataclass
class Answer:
    """What the API said."""

    status: int
    type: str
    body: Any
    headers: Any

    @property
    def pointers(self) -> list[str]:
        return [error["pointer"] for error in self.body["errors"]]


@dataclass
class Switch:
    """The running API, and what is behind it."""

    dataplane: FakeDataplane
    controller: Controller
    server: ApiServer
    socket: Path
    session: aiohttp.ClientSession

    @property
    def tcp(self) -> str:
        assert self.server.tcp_address is not None
        return "http://{}:{}".format(*self.server.tcp_address)

    async def ask(self, method: str, path: str, base: str = "http://switch", **options: Any) -> Answer:
        async with self.session.request(method, base + path, **options) as response:
            body = await response.json(content_type=None) if await response.read() else None
            return Answer(response.status, response.content_type, body, response.headers)


@pytest.fixture
async def switch(tmp_path: Path) -> AsyncIterator[Switch]:
    config = parse(
        {
            "runtime_dir": str(tmp_path),
            "api": {"listen": "127.0.0.1:0"},
            "bridges": {"br0": {}, "lan": {}},
            "ports": {"vm1": {"bridge": "br0"}, "vm2": {"bridge": "br0", "mtu": 1500}},
        }
    )
    dataplane = FakeDataplane()
    controller = Controller(dataplane, config)
    await controller.start()
    info = Info(version="0.1.0", pid=1, started="2025-01-01T00:00:00Z")
    server = ApiServer(make_app(controller, dataplane, info), config.api.socket, listen=config.api.listen, mode=0o660)
    await server.start()
    try:
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(config.api.socket)), timeout=aiohttp.ClientTimeout(total=20)
        ) as session:
            yield Switch(dataplane, controller, server, config.api.socket, session)
    finally:
        await server.close()
