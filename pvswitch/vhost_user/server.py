# SPDX-License-Identifier: Apache-2.0
"""A vhost-user port's server: one front end at a time on a unix socket, whatever that front end does.

A second front end is closed at once. But when the first has hung up already and is only being cleaned up
after, nothing is accepted until that is done: the newcomer waits in the socket's queue, and a restarted
VM never loses against its own past.

How a connection is served is in `connection.py`. Used by `pvswitch.vhost_port`, on the event loop only.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from pathlib import Path

import structlog

from pvswitch.vhost_user.backend import Backend
from pvswitch.vhost_user.connection import Endpoint, Peer, peer_of
from pvswitch.vhost_user.listener import SocketFile
from pvswitch.vhost_user.session import Offer

ACCEPT_RETRY = 1.0
"""Seconds without accepting after the process ran out of descriptors or memory."""

_HUNG_UP = select.POLLHUP | select.POLLRDHUP | select.POLLERR

log = structlog.get_logger(__name__)


class VhostUserServer(Endpoint):
    """Listens on `path`, where front ends connect."""

    def __init__(
        self,
        path: str | Path,
        *,
        offer: Offer,
        backend: Backend,
        mode: int = 0o660,
        gid: int | None = None,
        on_change: Callable[[], None] = lambda: None,
        message_timeout: float = 10.0,
        send_timeout: float = 5.0,
    ) -> None:
        """Nothing happens yet. `mode` and `gid` are the socket file's; the rest as of `Endpoint`."""
        super().__init__(
            path,
            offer=offer,
            backend=backend,
            on_change=on_change,
            message_timeout=message_timeout,
            send_timeout=send_timeout,
        )
        self._mode = mode
        self._gid = gid
        self._file: SocketFile | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._turned_away = 0

    # ---- life

    def bind(self) -> None:
        """Make the socket file; nobody can connect yet. Raises PvswitchError."""
        self._file = SocketFile(self.path, self._mode, self._gid)

    def listen(self) -> None:
        """Let front ends connect; `bind()` came before, and the loop runs."""
        if self._file is None:
            raise RuntimeError("bind() comes before listen()")
        self._file.listen()
        self._accept_again()

    async def close(self) -> None:
        """Stop listening, remove the socket file and end the connection; then nothing is left."""
        if self._file is not None:
            self._stop_accepting()
            file, self._file = self._file, None
            file.close()
        await self.hang_up()

    # ---- accepting

    def _accept_again(self) -> None:
        self._retry = None
        if self._file is not None:
            asyncio.get_running_loop().add_reader(self._file.sock.fileno(), self._accept)

    def _stop_accepting(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._file is not None:
            asyncio.get_running_loop().remove_reader(self._file.sock.fileno())

    def _accept(self) -> None:
        """One newcomer is waiting."""
        if self._file is None:
            return
        if self._channel is not None and _hung_up(self._channel.sock):
            self._stop_accepting()  # until _free()
            return
        try:
            sock, _ = self._file.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("no front end can be accepted", socket=str(self.path), error=str(error))
            self._stop_accepting()
            self._retry = asyncio.get_running_loop().call_later(ACCEPT_RETRY, self._accept_again)
            return
        if self._channel is not None:
            peer = peer_of(sock)
            sock.close()
            self._turn_away(peer)
        else:
            self._turned_away = 0
            self._begin(sock)

    def _turn_away(self, peer: Peer) -> None:
        """Log the first of the front ends that came while another was there; the others are only counted."""
        self._turned_away += 1
        if self._turned_away == 1:
            present = self.peer.pid if self.peer is not None else None
            log.warning("second front end refused", socket=str(self.path), pid=peer.pid, present_pid=present)

    # ---- of a connection

    def _ending(self) -> None:
        """Newcomers wait in the socket's queue while the old one is cleaned up after."""
        self._stop_accepting()

    def _free(self) -> None:
        """Let the next front end in."""
        if self._turned_away > 1:
            log.info("front ends refused meanwhile", socket=str(self.path), count=self._turned_away)
        self._accept_again()


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer has closed its end, even if bytes of it are still to be read."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return any(event & _HUNG_UP for _, event in poller.poll(0))
