# SPDX-License-Identifier: Apache-2.0
"""A switch without a data plane: the real controller and API on a real unix socket and TCP port."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
import uvloop

from pvswitch.api.app import make_app
from pvswitch.api.schemas import Info
from pvswitch.api.server import ApiServer
from pvswitch.api.tls import Tls
from pvswitch.controller import Controller
from pvswitch.events import Events
from pvswitch.revisions import Revisions
from pvswitch.validation import parse
from tests.control.command import Command, Result, run
from tests.control.fake import FakeDataplane
from tests.control.served import Api, Start, running

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
    revisions: Revisions
    events: Events
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
def revisions(tmp_path: Path) -> Iterator[Revisions]:
    with Revisions(tmp_path / "state") as revisions:
        yield revisions


@pytest.fixture
async def switch(tmp_path: Path, revisions: Revisions) -> AsyncIterator[Switch]:
    config = parse(
        {
            "runtime_dir": str(tmp_path),
            "state_dir": str(tmp_path / "state"),
            "api": {"listen": "127.0.0.1:0"},
            "bridges": {"br0": {}, "lan": {}},
            "ports": {"vm1": {"bridge": "br0"}, "vm2": {"bridge": "br0", "mtu": 1500}},
        }
    )
    dataplane = FakeDataplane()
    events = Events()
    controller = Controller(dataplane, config, revisions, events)
    await controller.start()
    info = Info(version="0.1.0", pid=1, started="2025-01-01T00:00:00Z")
    server = ApiServer(
        make_app(controller, dataplane, revisions, events, info),
        config.api.socket,
        listen=config.api.listen,
        mode=0o660,
    )
    await server.start()
    try:
        async with aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(config.api.socket)), timeout=aiohttp.ClientTimeout(total=20)
        ) as session:
            yield Switch(dataplane, controller, revisions, events, server, config.api.socket, session)
    finally:
        await server.close()


@pytest.fixture
def pv(switch: Switch) -> Iterator[Command]:
    """Give the command, on the running switch; it has a thread of its own, as the API has the event loop.

    The log of the API, which shares the process, must not come between what the command prints.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))

    async def command(*arguments: str) -> Result:
        return await asyncio.to_thread(run, "--api", f"unix:{switch.socket}", *arguments)

    yield command
    structlog.reset_defaults()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start an API with a tokens file and a certificate, or without; it ends with the test."""
    async with AsyncExitStack() as stack:

        async def begin(tokens_file: Path | None = None, tls: Tls | None = None) -> Api:
            return await stack.enter_async_context(running(tmp_path, tokens_file, tls))

        yield begin


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The switch runs on uvloop, which has sockets and TLS of its own: so do the tests of those."""
    own = item.path.name in ("test_access.py", "test_limits.py")
    return {"loop": uvloop.new_event_loop if own else asyncio.new_event_loop}
