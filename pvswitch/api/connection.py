# SPDX-License-Identifier: Apache-2.0
"""One client's connection: who is at its other end, and how long it may take.

aiohttp speaks HTTP; `Connection` adds what it leaves open. A sender of headers that trickle in, a client that sits idle
and a reader that doesn't read are cut off. What isn't HTTP, or has more headers than fit, is answered as problem+json
like every other error. `api.server` makes one for each client it has accepted.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import structlog
from aiohttp import http_exceptions, web

from pvswitch.api.problem import ApiProblem, body_of, response

_log = structlog.get_logger(__name__)

HEADER_SECONDS = 10.0  # from the first byte of a request to the end of its headers
IDLE_SECONDS = 75.0  # between two requests
WRITE_SECONDS = 60.0  # until the client has taken the answer
LINGER_SECONDS = 5.0  # to read the rest of a body that was refused
MAX_LINE = 8190  # bytes of the request line, and of one header
MAX_HEADERS = 100
HEADERS = {
    "Server": "pvswitch",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer that doesn't say otherwise."""


@dataclass(frozen=True)
class Peer:
    """Who is at the other end: a process of this machine (unix socket), or an address (TCP)."""

    address: str | None = None
    uid: int | None = None
    pid: int | None = None

    @classmethod
    def of(cls, sock: socket.socket) -> Self:
        """Return the peer of a connection that was accepted; OSError when it has gone."""
        if sock.family == socket.AF_UNIX:
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return cls(uid=uid, pid=pid)
        return cls(address=sock.getpeername()[0])


class Connection(web.RequestHandler):
    """The protocol of one connection; `closed` is done when it has ended."""

    __slots__ = ("_busy", "_late", "closed", "peer")

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, peer: Peer) -> None:
        """`server` hands the requests to the application."""
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as AppRunner says it; `audit` logs instead
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
        )
        self.peer = peer
        self.closed: asyncio.Future[None] = loop.create_future()
        self._busy = False
        self._late: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the end."""
        self._stop_clock()
        super().connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first byte of a request."""
        if self._late is None and not self._busy:
            self._late = self._loop.call_later(HEADER_SECONDS, self._cut_off)
        super().data_received(data)

    def began(self) -> None:
        """Note that the headers of a request are complete."""
        self._stop_clock()
        self._busy = True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, to a client that takes it in time."""
        self._stop_clock()
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            if self.transport is not None:
                self.transport.abort()
            return resp, True
        finally:
            self._busy = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be read as a request, and what failed outside the application."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: no other can be sent")
        if status >= 500:
            _log.error("answer failed", error=repr(exc))
            problem = ApiProblem(500, "the switch failed to answer: see its log")
        elif isinstance(exc, http_exceptions.LineTooLong) or "Too many headers" in str(message):
            problem = ApiProblem(
                431,
                f"the request line or a header is longer than {MAX_LINE} bytes, or more than {MAX_HEADERS} are sent",
            )
        else:
            problem = ApiProblem(400, "this is not an HTTP request that can be read")
        answer = response(problem)
        answer.headers.update(HEADERS)
        answer.force_close()
        return answer

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _cut_off(self) -> None:
        self._late = None
        if self.transport is not None:
            problem = ApiProblem(408, f"the headers took longer than {HEADER_SECONDS:.0f} s: send them faster")
            self.transport.write(raw_answer(problem))
        self.force_close()


def raw_answer(problem: ApiProblem) -> bytes:
    """Return a whole HTTP answer, for where there is no request to answer; the connection ends with it."""
    body = body_of(problem).encode()
    headers: dict[str, Any] = {
        "Content-Type": "application/problem+json; charset=utf-8",
        "Content-Length": len(body),
        "Connection": "close",
        **HEADERS,
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
