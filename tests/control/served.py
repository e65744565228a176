# SPDX-License-Identifier: Apache-2.0
"""A running API with tokens and TLS as a test wants them, and both ways to it; `start` of conftest makes one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from pvswitch.api.access import Access
from pvswitch.api.app import make_app
from pvswitch.api.schemas import Info
from pvswitch.api.server import ApiServer
from pvswitch.api.tls import Tls
from pvswitch.controller import Controller
from pvswitch.events import Events
from pvswitch.revisions import Revisions
from pvswitch.validation import parse
from tests.control.fake import FakeDataplane


@dataclass
class Api:
    """A running API and both ways to it."""

    server: ApiServer
    access: Access
    socket: Path
    dataplane: FakeDataplane
    revisions: Revisions

    @property
    def port(self) -> int:
        assert self.server.tcp_address is not None
        return self.server.tcp_address[1]

    async def ask(
        self, method: str, path: str, *, unix: bool = False, scheme: str = "http", **options: Any
    ) -> tuple[int, Any, Any]:
        connector = aiohttp.UnixConnector(str(self.socket)) if unix else None
        base = "http://switch" if unix else f"{scheme}://127.0.0.1:{self.port}"
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session,
            session.request(method, base + path, **options) as answer,
        ):
            text = await answer.text()
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json"
                assert json.loads(text)["status"] == answer.status
            return answer.status, json.loads(text) if "json" in answer.content_type else text, answer.headers

    async def raw(self, *parts: bytes, unix: bool = False) -> bytes:
        """Send bytes as they are; return all that comes until the end."""
        if unix:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(20):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                return await reader.read()
        finally:
            writer.close()


Start = Callable[..., Awaitable[Api]]


@asynccontextmanager
async def running(folder: Path, tokens_file: Path | None, tls: Tls | None) -> AsyncIterator[Api]:
    config = parse({"runtime_dir": str(folder), "ports": {"vm1": {}}})
    dataplane = FakeDataplane()
    access = Access(tokens_file)
    events = Events()
    with Revisions(folder / "state") as revisions:
        controller = Controller(dataplane, config, revisions, events)
        await controller.start()
        app = make_app(controller, dataplane, revisions, events, Info(version="0", pid=1, started=""), access)
        server = ApiServer(app, config.api.socket, listen="127.0.0.1:0", tls=tls)
        await server.start()
        try:
            yield Api(server, access, config.api.socket, dataplane, revisions)
        finally:
            await server.close()


def problem_of(answer: bytes) -> tuple[int, Any]:
    """Return status and body of a raw answer, which must be problem+json and the last on its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert head.startswith(b"HTTP/1.0 ") or b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)
