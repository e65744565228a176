# SPDX-License-Identifier: Apache-2.0
"""A vhost-user port's client: the switch connects to a socket on which a front end listens, again and again.

The first attempt comes at once. After each that failed, and after each connection that ended, the next one
waits: 0.1 s, then twice as long each time, 2 s at most. Once a front end has negotiated features, the next
wait is 0.1 s again. So one that comes late or restarts is found soon, and one that hangs up at once costs
little. A missing or refusing socket is nothing unusual: it is logged once for each cause, and stands in
`last_error` as long as it lasts.

A non-blocking connect() to a unix socket succeeds or fails immediately (unix(7)), so nothing has to wait for
it. How a connection is served is in `connection.py`. Used by `pvswitch.vhost_port`, on the event loop only.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from pvswitch.vhost_user.backend import Backend
from pvswitch.vhost_user.connection import Endpoint
from pvswitch.vhost_user.listener import check_length
from pvswitch.vhost_user.session import Offer

FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0
"""Seconds between two attempts."""

Schedule = Callable[[float, Callable[[], None]], asyncio.TimerHandle]

log = structlog.get_logger(__name__)


def _call_later(seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, call)


class VhostUserClient(Endpoint):
    """Connects to `path`, where front ends listen."""

    def __init__(
        self,
        path: str | Path,
        *,
        offer: Offer,
        backend: Backend,
        on_change: Callable[[], None] = lambda: None,
        message_timeout: float = 10.0,
        send_timeout: float = 5.0,
        schedule: Schedule = _call_later,
    ) -> None:
        """Nothing happens yet. `schedule` is the running loop's call_later(); the rest as of `Endpoint`."""
        super().__init__(
            path,
            offer=offer,
            backend=backend,
            on_change=on_change,
            message_timeout=message_timeout,
            send_timeout=send_timeout,
        )
        self._schedule = schedule
        self._timer: asyncio.TimerHandle | None = None
        self._wait = FIRST_WAIT
        self._obstacle: str | None = None  # what the last attempt failed of
        self._closed = False

    # ---- life

    def bind(self) -> None:
        """Refuse a path that can't be a socket's. Raises PvswitchError; nothing is made."""
        check_length(self.path)

    def listen(self) -> None:
        """Begin to connect; the loop runs."""
        self._connect()

    async def close(self) -> None:
        """Connect no more and end the connection; then nothing is left."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.hang_up()

    # ---- connecting

    def _connect(self) -> None:
        """Try once; what follows, follows from the result."""
        self._timer = None
        try:
            sock = _connected(self.path)
        except OSError as error:
            self._failed_to_connect(error.strerror or str(error))
            return
        if self._obstacle is not None:
            self._obstacle = self.last_error = None
        self._begin(sock)

    def _failed_to_connect(self, cause: str) -> None:
        if cause != self._obstacle:
            log.info("no front end listens yet", socket=str(self.path), cause=cause)
        self._obstacle = self.last_error = cause
        self._connect_later()
        self._changed()

    def _connect_later(self) -> None:
        self._timer = self._schedule(self._wait, self._connect)
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    # ---- of a connection

    def _ending(self) -> None:
        """Nothing to hold back: nobody comes by themselves."""

    def _free(self) -> None:
        """Connect again, after a wait."""
        if self._closed:
            return
        if self._negotiated:
            self._wait = FIRST_WAIT
        self._connect_later()


def _connected(path: Path) -> socket.socket:
    """Return a socket connected to `path`, or raise OSError at once."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(os.fspath(path))
    except OSError:
        sock.close()
        raise
    return sock
