# SPDX-License-Identifier: Apache-2.0
"""How a request gets to a switch: its address, token and certificate; what goes wrong, in one sentence each.

A `Transport` belongs to one event loop. It connects at the first request and keeps the connection until it is
closed. Used by the clients of this package only.
"""

from __future__ import annotations

import grp
import json
import os
import re
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from pvswitch.errors import PvswitchError

TIMEOUT_SECONDS = 60.0
ANY = "*"  # If-Match of an edit that takes whatever configuration is in force

Json = dict[str, Any]
Query = Mapping[str, str | int | None]


class ApiError(PvswitchError):
    """The switch refused: `status`, `detail`, and `problem` as in RFC 9457."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """`problem` is the body of the answer."""
        self.status = status
        self.problem = dict(problem)
        self.detail = str(self.problem.get("detail") or f"the switch answered {status}")
        super().__init__(self.detail)

    @property
    def errors(self) -> list[Json]:
        """Every wrong value: {"pointer", "detail"}."""
        return list(self.problem.get("errors") or [])


class NotRunning(PvswitchError):
    """No switch answers at the address."""


class NotAllowed(PvswitchError):
    """The user may not open the switch's socket."""


@dataclass(frozen=True)
class Reply:
    """An answer below 400: its body, and the configuration's ETag where it has one."""

    address: str
    content: bytes
    etag: str | None

    def json(self) -> Any:
        """Return the body's value; NotRunning when it is no JSON."""
        try:
            return json.loads(self.content)
        except ValueError as error:
            raise NotRunning(f"no switch answers at {self.address}: what came is not JSON: {error}") from None


class Transport:
    """One switch, as seen from one event loop."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: Path | str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """See `pvswitch.client.AsyncClient`."""
        self.address = address or os.environ.get("PVSWITCH_API") or _default_address()
        self.timeout = timeout
        self._token = _checked(token or os.environ.get("PVSWITCH_TOKEN"))
        self._ca = ca or os.environ.get("PVSWITCH_CA")
        self._socket: Path | None = None
        self._base = self.address.rstrip("/")
        kind, _, rest = self.address.partition(":")
        if kind == "unix" and rest:
            self._socket = Path(rest)
            self._base = "http://localhost"
        elif kind not in ("http", "https") or not rest.startswith("//") or len(rest) == len("//"):
            raise PvswitchError(
                f"{self.address!r} is no address of a switch: use unix:PATH, http://HOST:PORT or https://HOST:PORT"
            )
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Return the answer; raises ApiError, NotRunning, NotAllowed."""
        data = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        limit = aiohttp.ClientTimeout(total=self.timeout)
        async with self.open(method, path, data, query, {**kind, **(headers or {})}, limit) as response:
            return Reply(self.address, await response.read(), response.headers.get("ETag"))

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        data: str | None,
        query: Query | None,
        headers: Mapping[str, str],
        limit: aiohttp.ClientTimeout,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send a request and give its answer, whose body is still to be read; the same errors as `request`."""
        params = {key: value for key, value in (query or {}).items() if value is not None}
        try:
            session = self._connect()
            async with session.request(
                method, self._base + path, data=data, params=params, headers=headers, timeout=limit
            ) as response:
                if response.status >= 400:
                    raise ApiError(response.status, _problem(await response.read()))
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise PvswitchError(
                f"the certificate of {self.address} is not trusted ({error.certificate_error}): name the file of its"
                " authority with --ca or PVSWITCH_CA"
            ) from None
        except aiohttp.ClientConnectorSSLError as error:
            raise NotRunning(
                f"no switch answers at {self.address} with TLS ({error.strerror}): use http:// where it has none"
            ) from None
        except aiohttp.ClientConnectorError as error:
            raise self._no_connection(error.os_error) from None
        except TimeoutError:
            raise NotRunning(f"no switch answers at {self.address}: nothing came for {self.timeout:g} s") from None
        except aiohttp.ClientError as error:
            reason = str(error) or type(error).__name__
            raise NotRunning(f"no switch answers at {self.address}: {reason}") from None

    async def close(self) -> None:
        """Close the connections; the next request opens one again."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _connect(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._socket is not None:
                connector = aiohttp.UnixConnector(path=str(self._socket))
            else:
                connector = aiohttp.TCPConnector(ssl=_trust(self._ca))
            token = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
            self._session = aiohttp.ClientSession(connector=connector, headers=token)
        return self._session

    def _no_connection(self, error: OSError) -> PvswitchError:
        if isinstance(error, PermissionError) and self._socket is not None:
            return NotAllowed(not_allowed_message(self._socket))
        return NotRunning(
            f"no switch is running at {self.address}: start one with `pvswitch run`, or name another with --api"
        )


def _default_address() -> str:
    from pvswitch.model import default_api_socket

    return f"unix:{default_api_socket()}"


def _checked(token: str | None) -> str | None:
    """Return a token that fits into a header, PvswitchError for another."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise PvswitchError("the token is not one word of plain characters: look at PVSWITCH_TOKEN or its file")
    return token or None


def _trust(ca: Path | str | None) -> ssl.SSLContext:
    """Return whom to believe: the authority in the file `ca`, else those of this machine."""
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as error:
        raise PvswitchError(f"{ca} is no file of certificates to trust: {error.strerror or error}") from None


def _problem(content: bytes) -> Json:
    """Return the problem+json of an answer; empty when it is something else."""
    try:
        problem = json.loads(content)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


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
