# SPDX-License-Identifier: Apache-2.0
"""A vhost-user port's server: one front end at a time on a unix socket, whatever that front end does.

One task per connection has the channel read a message, the session work on it and the back end carry out
the effects, writes the reply, and only then reads on: so one message is in work at a time and memory is
bounded by one message. The loop gets a turn after each message, so that a flood starves nobody. The
channel bounds how long a message may take to arrive, and a reply to be taken.

A second front end is closed at once. But when the first has hung up already and is only being cleaned up
after, nothing is accepted until that is done: the newcomer waits in the socket's queue, and a restarted
VM never loses against its own past.

No failure leaves this module: a peer's error, a refusing back end or a bug in it end the connection, are
logged, and stay in `last_error` until a later front end has negotiated. Used by `pvswitch.ports`, on the
event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pvswitch.vhost_user.backend import BACKEND_ERRORS, Backend, RingNotReady, perform
from pvswitch.vhost_user.channel import Channel
from pvswitch.vhost_user.listener import SocketFile
from pvswitch.vhost_user.session import Message, Offer, Phase, ProtocolError, Session, SessionState

ACCEPT_RETRY = 1.0
"""Seconds without accepting after the process ran out of descriptors or memory."""

_UCRED = struct.Struct("3i")
_HUNG_UP = select.POLLHUP | select.POLLRDHUP | select.POLLERR

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as the kernel saw it then (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class VhostUserServer:
    """Listens on `path` and serves front ends with `backend`, one after the other.

    `bind()` can fail; `listen()` and `close()` can't. `offer` may be assigned: the next front end gets it.
    """

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
        """Nothing happens yet. `on_change` is called after a change of anything shown here.

        `mode` and `gid` are the socket file's; timeouts are in seconds.
        """
        self.path = Path(path)
        self.offer = offer
        self.peer: Peer | None = None
        self.last_error: str | None = None
        self.refused_features = 0
        self._backend = backend
        self._mode = mode
        self._gid = gid
        self._on_change = on_change
        self._message_timeout = message_timeout
        self._send_timeout = send_timeout
        self._file: SocketFile | None = None
        self._channel: Channel | None = None
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._hanging_up = False
        self._turned_away = 0
        self._shown: tuple[object, ...] = ()

    # ---- what there is to show

    @property
    def state(self) -> SessionState | None:
        """The session's snapshot; None without a front end."""
        return self._session.state if self._session is not None else None

    @property
    def phase(self) -> Phase:
        """How far the front end has come; FEATURES_REFUSED lasts beyond its connection."""
        session = self._session
        if self.refused_features and (session is None or session.features is None):
            return Phase.FEATURES_REFUSED
        return session.phase if session is not None else Phase.WAITING_FOR_FRONTEND

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

    async def start(self) -> None:
        """`bind()` and `listen()`. Raises PvswitchError."""
        self.bind()
        self.listen()

    async def hang_up(self) -> None:
        """End the present connection, if any, and wait until the back end has let go of it."""
        task = self._task
        if task is None or self._channel is None:
            return
        self._hanging_up = True
        with contextlib.suppress(OSError):
            self._channel.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({task})

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
            self._stop_accepting()  # until _end()
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
        peer = Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
        if self._channel is not None:
            sock.close()
            self._turn_away(peer)
        else:
            self._begin(sock, peer)

    def _turn_away(self, peer: Peer) -> None:
        """Log the first of the front ends that came while another was there; the others are only counted."""
        self._turned_away += 1
        if self._turned_away == 1:
            present = self.peer.pid if self.peer is not None else None
            log.warning("second front end refused", socket=str(self.path), pid=peer.pid, present_pid=present)

    def _begin(self, sock: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self._turned_away = 0
        self._hanging_up = False
        self._channel = Channel(sock, message_timeout=self._message_timeout, send_timeout=self._send_timeout)
        self._session = Session(self.offer)
        log.info("front end connected", socket=str(self.path), pid=peer.pid, uid=peer.uid)
        self._changed()
        self._task = asyncio.get_running_loop().create_task(
            self._serve(self._channel, self._session), name=f"vhost-user {self.path}"
        )

    # ---- serving

    async def _serve(self, channel: Channel, session: Session) -> None:
        """A connection's whole life."""
        try:
            while (message := await channel.receive()) is not None:
                with message.fds:
                    if self._hanging_up:
                        break
                    reply = await self._handle(session, message)
                self._note(session)
                if reply is not None:
                    await channel.send(reply)
                await asyncio.sleep(0)
        except (ProtocolError, OSError) as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("the back end failed", socket=str(self.path))
            self._failed(f"internal error: {error!r}")
        finally:
            await self._end(channel, session)

    async def _handle(self, session: Session, message: Message) -> bytes | None:
        """Have one message worked on, and carry out what follows from it."""
        work = session.handle(message)
        try:
            effect = next(work)
            while True:
                try:
                    result = await perform(effect, self._backend)
                except (RingNotReady, *BACKEND_ERRORS) as error:
                    effect = work.throw(error)
                else:
                    effect = work.send(result)
        except StopIteration as done:
            reply: bytes | None = done.value
            return reply
        finally:
            work.close()

    def _failed(self, reason: str) -> None:
        if self._hanging_up:
            return
        self.last_error = reason
        pid = self.peer.pid if self.peer is not None else None
        log.warning("front end disconnected by an error", socket=str(self.path), pid=pid, error=reason)

    async def _end(self, channel: Channel, session: Session) -> None:
        """Leave nothing behind; then the next front end may come."""
        self._stop_accepting()
        try:
            await self._backend.disconnected()
        except Exception:
            log.exception("the back end failed to let go of a front end", socket=str(self.path))
        finally:
            if session.refused_features:
                self.refused_features = session.refused_features
            session.close()
            channel.close()
            pid = self.peer.pid if self.peer is not None else None
            log.info("front end gone", socket=str(self.path), pid=pid, turned_away=self._turned_away)
            self._channel = self._session = self._task = self.peer = None
            self._accept_again()
            self._changed()

    def _note(self, session: Session) -> None:
        """Forget earlier troubles once a front end has negotiated, and report a change."""
        if session.features is not None and not session.refused_features:
            self.refused_features = 0
            self.last_error = None
        self._changed()

    def _changed(self) -> None:
        """Call `on_change` if anything differs from the last time; its failures are its own."""
        shown = (self.peer, self.state, self.refused_features, self.last_error)
        if shown == self._shown:
            return
        self._shown = shown
        try:
            self._on_change()
        except Exception:
            log.exception("on_change failed", socket=str(self.path))


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer has closed its end, even if bytes of it are still to be read."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return any(event & _HUNG_UP for _, event in poller.poll(0))
