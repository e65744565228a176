# SPDX-License-Identifier: Apache-2.0
"""What the service manager is told (sd_notify): ready, reloading, stopping, and that the switch is alive.

How it works. systemd, and whoever speaks its protocol, names a datagram socket in $NOTIFY_SOCKET; a message is lines
of NAME=VALUE. $WATCHDOG_USEC asks for a sign of life within that time: `watch` sends one at half of it, which shows
that the event loop turns, but only if each worker has turned too, or sleeps. Without these variables nothing is
sent. A manager that can't be reached is logged once and is no reason to stop.

Called by `pvswitch.daemon` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import structlog

log = structlog.get_logger(__name__)

Pulse = int | None  # rounds that a worker has done; None: it sleeps until there is work


class Notifier:
    """The way to the service manager; does nothing where there is none."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        """`address`: a path, or a name after "@". `watchdog_seconds`: within which a sign of life is expected."""
        self.watchdog_seconds = watchdog_seconds
        self._socket: socket.socket | None = None
        self._watch: asyncio.Task[None] | None = None
        if not address:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            self._give_up(error)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return what the environment asks for; a watchdog that is meant for another process is not ours."""
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        ours = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(environment.get("NOTIFY_SOCKET"), int(usec) / 1e6 if ours else None)

    async def close(self) -> None:
        """End the signs of life and close the socket; may be called again."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        self._hang_up()

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is over; `status` is a line for people."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the end begins."""
        self._send("STOPPING=1")

    def watch(self, pulses: Callable[[], Sequence[Pulse]]) -> None:
        """Send signs of life from now on if they are asked for: each only if every worker moved since the last look."""
        if self.watchdog_seconds is not None:
            self._watch = asyncio.create_task(self._live(pulses, self.watchdog_seconds / 2))

    async def _live(self, pulses: Callable[[], Sequence[Pulse]], pause: float) -> None:
        before: Sequence[Pulse] = ()
        while True:
            now = pulses()
            stuck = [i for i, (old, new) in enumerate(zip(before, now, strict=False)) if new is not None and old == new]
            if stuck:
                log.error("no sign of life: workers make no progress", workers=stuck)
            else:
                self._send("WATCHDOG=1")
            before = now
            await asyncio.sleep(pause)

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send("\n".join(lines).encode())
        except BlockingIOError:
            log.warning("the service manager takes no messages", lost=lines[0])
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("the service manager can't be reached: see $NOTIFY_SOCKET", error=error.strerror or str(error))
        self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
