# SPDX-License-Identifier: Apache-2.0
"""The Python client of the HTTP API: `AsyncClient`, and `Client` for programs without an event loop.

An address is "unix:PATH" or "http://HOST:PORT". Answers are the API's JSON as plain dicts and lists.
Errors are one clear sentence each: `NotRunning`, `NotAllowed`, and `ApiError` with the problem+json.
"""

from __future__ import annotations

import asyncio
import grp
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp

from pvswitch.errors import PvswitchError

ROOT = "/api/v1"
TIMEOUT_SECONDS = 60.0

Json = dict[str, Any]
R = TypeVar("R")


class ApiError(PvswitchError):
    """The switch refused: `status`, and `problem` as in RFC 9457."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """`problem` is the body of the answer."""
        self.status = status
        self.problem = dict(problem)
        super().__init__(str(self.problem.get("detail") or f"the switch answered {status}"))

    @property
    def errors(self) -> list[Json]:
        """Every wrong value: {"pointer", "detail"}."""
        return list(self.problem.get("errors") or [])


class NotRunning(PvswitchError):
    """No switch answers at the address."""


class NotAllowed(PvswitchError):
    """The user may not open the switch's socket."""


class AsyncClient:
    """A client for programs with an event loop; use it with `async with`."""

    def __init__(self, address: str) -> None:
        """`address` is "unix:PATH" or "http://HOST:PORT"; PvswitchError when it is neither."""
        self.address = address
        kind, _, rest = address.partition(":")
        if kind == "unix" and rest:
            self._socket: Path | None = Path(rest)
            self._base = "http://localhost"
        elif address.startswith("http://") and len(address) > len("http://"):
            self._socket = None
            self._base = address.rstrip("/")
        else:
            raise PvswitchError(f"{address!r} is no address of a switch: use unix:PATH or http://HOST:PORT")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open a session; connects at the first request."""
        connector = None if self._socket is None else aiohttp.UnixConnector(path=str(self._socket))
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, str | int] | None = None,
        if_match: str | None = None,
    ) -> tuple[Any, str | None]:
        """Return the JSON answer (None for 204) and its ETag; raises ApiError, NotRunning, NotAllowed."""
        assert self._session is not None, "use the client with `async with`"
        try:
            async with self._session.request(
                method,
                self._base + path,
                json=body,
                params=dict(query or {}),
                headers={} if if_match is None else {"If-Match": if_match},
            ) as response:
                answer = None if response.status == 204 else await response.json(content_type=None)
                if response.status >= 400:
                    raise ApiError(response.status, answer if isinstance(answer, dict) else {})
                return answer, response.headers.get("ETag")
        except aiohttp.ClientConnectorError as error:
            raise self._no_connection(error.os_error) from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise NotRunning(f"no switch answers at {self.address}: {reason}") from None

    def _no_connection(self, error: OSError) -> PvswitchError:
        if isinstance(error, PermissionError) and self._socket is not None:
            return NotAllowed(not_allowed_message(self._socket))
        return NotRunning(
            f"no switch is running at {self.address}: start one with `pvswitch run`, or name another with --api"
        )

    async def get(self, path: str, **query: str | int) -> Any:
        """Return what is at a path."""
        return (await self.request("GET", path, query=query))[0]

    async def items(self, path: str, **query: str | int) -> list[Json]:
        """Return a whole collection, page by page."""
        items: list[Json] = []
        while True:
            page = await self.get(path, **query)
            items += page["items"]
            if page["next"] is None:
                return items
            query["cursor"] = page["next"]

    async def config(self) -> tuple[Json, str]:
        """Return the configuration and its ETag."""
        document, etag = await self.request("GET", f"{ROOT}/config")
        return document, etag or "*"

    async def put_config(self, document: object, *, if_match: str = "*", dry_run: bool = False) -> Json:
        """Replace the configuration; return the difference: {"changes", "disruptive"}."""
        query = {"dry_run": "true"} if dry_run else {}
        answer, _ = await self.request("PUT", f"{ROOT}/config", body=document, query=query, if_match=if_match)
        return dict(answer)

    async def put(self, path: str, body: object, *, if_match: str | None = None) -> Json:
        """Make or replace a resource; `if_match` is the configuration's ETag."""
        return dict((await self.request("PUT", path, body=body, if_match=if_match))[0])

    async def delete(self, path: str, **query: str | int) -> None:
        """Remove a resource, or what the query names."""
        await self.request("DELETE", path, query=query)


class Client:
    """The same for programs without an event loop: each call opens a session of its own."""

    def __init__(self, address: str) -> None:
        """`address` is "unix:PATH" or "http://HOST:PORT"; PvswitchError when it is neither."""
        AsyncClient(address)
        self.address = address

    def call(self, use: Callable[[AsyncClient], Awaitable[R]]) -> R:
        """Run `use` with an open client."""

        async def run() -> R:
            async with AsyncClient(self.address) as client:
                return await use(client)

        return asyncio.run(run())

    def get(self, path: str, **query: str | int) -> Any:
        """Return what is at a path."""
        return self.call(lambda client: client.get(path, **query))

    def items(self, path: str, **query: str | int) -> list[Json]:
        """Return a whole collection."""
        return self.call(lambda client: client.items(path, **query))

    def config(self) -> tuple[Json, str]:
        """Return the configuration and its ETag."""
        return self.call(lambda client: client.config())

    def put_config(self, document: object, *, if_match: str = "*", dry_run: bool = False) -> Json:
        """Replace the configuration; return the difference."""
        return self.call(lambda client: client.put_config(document, if_match=if_match, dry_run=dry_run))

    def put(self, path: str, body: object, *, if_match: str | None = None) -> Json:
        """Make or replace a resource; `if_match` is the configuration's ETag."""
        return self.call(lambda client: client.put(path, body, if_match=if_match))

    def delete(self, path: str, **query: str | int) -> None:
        """Remove a resource, or what the query names."""
        self.call(lambda client: client.delete(path, **query))


def bridge_path(name: str) -> str:
    """Return the path of a bridge."""
    return f"{ROOT}/bridges/{quote(name, safe='')}"


def port_path(name: str) -> str:
    """Return the path of a port."""
    return f"{ROOT}/ports/{quote(name, safe='')}"


def fdb_path(bridge: str, mac: str | None = None, vid: int = 0) -> str:
    """Return the path of a bridge's addresses, or of one of them."""
    collection = f"{bridge_path(bridge)}/fdb"
    return collection if mac is None else f"{collection}/{vid}/{quote(mac, safe=':')}"


def not_allowed_message(socket: Path) -> str:
    """Return why this user can't open a socket, with the group to join."""
    try:
        gid = socket.stat().st_gid
    except OSError:
        return f"no permission to reach {socket}: ask for access to its folder, or run as root"
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return f"no permission on {socket}: join the group {group} (`sudo usermod -aG {group} $USER`, then log in again)"
