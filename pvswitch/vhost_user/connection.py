# SPDX-License-Identifier: Apache-2.0
"""One front end's connection, served from its first byte to its end, whichever side has connected.

One task per connection has the channel read a message, the session work on it and the back end carry out
the effects, writes the reply, and only then reads on: so one message is in work at a time and memory is
bounded by one message. The loop gets a turn after each message, so that a flood starves nobody. The
channel bounds how long a message may take to arrive, and a reply to be taken.

No failure leaves this module: a peer's error, a refusing back end or a bug in it end the connection, are
logged, and stay in `last_error` until a later front end has negotiated.

`Endpoint` is what `server.py` and `client.py` have in common and what `pvswitch.vhost_port` sees of them;
how a connection comes about is theirs. On the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pvswitch.vhost_user.backend import BACKEND_ERRORS, Backend, RingNotReady, perform
from pvswitch.vhost_user.channel import Channel
from pvswitch.vhost_user.session import Message, Offer, Phase, ProtocolError, Session, SessionState

_UCRED = struct.Struct("3i")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end (SO_PEERCRED): who connected, or who listened, as the kernel saw it then."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return who is at the other end of a connected unix socket."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


class Endpoint(ABC):
    """The switch's end of the socket at `path`: serves front ends with `backend`, one after the other.

    `bind()` can fail; `listen()` and `close()` can't. `offer` may be assigned: the next front end gets it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        offer: Offer,
        backend: Backend,
        on_change: Callable[[], None] = lambda: None,
        message_timeout: float = 10.0,
        send_timeout: float = 5.0,
    ) -> None:
        """Nothing happens yet. `on_change` is called after a change of anything shown here.

        Timeouts are in seconds.
        """
        self.path = Path(path)
        self.offer = offer
        self.peer: Peer | None = None
        self.last_error: str | None = None
        self.refused_features = 0
        self._backend = backend
        self._on_change = on_change
        self._message_timeout = message_timeout
        self._send_timeout = send_timeout
        self._channel: Channel | None = None
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._hanging_up = False
        self._negotiated = False  # the present front end, or the last one, took features
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

    @abstractmethod
    def bind(self) -> None:
        """Do what can fail. Raises PvswitchError; nobody is connected yet."""

    @abstractmethod
    def listen(self) -> None:
        """Begin to serve front ends; `bind()` came before, and the loop runs."""

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

    @abstractmethod
    async def close(self) -> None:
        """End the connection and serve no other one; then nothing is left."""

    # ---- for server and client

    @abstractmethod
    def _ending(self) -> None:
        """The connection is over, and is going to be cleaned up after."""

    @abstractmethod
    def _free(self) -> None:
        """Nothing of the last connection is left: the next one may come."""

    def _begin(self, sock: socket.socket) -> None:
        """Serve a connected socket, which is taken over; nobody else is being served."""
        self.peer = peer_of(sock)
        self._hanging_up = self._negotiated = False
        self._channel = Channel(sock, message_timeout=self._message_timeout, send_timeout=self._send_timeout)
        self._session = Session(self.offer)
        log.info("front end connected", socket=str(self.path), pid=self.peer.pid, uid=self.peer.uid)
        self._changed()
        self._task = asyncio.get_running_loop().create_task(
            self._serve(self._channel, self._session), name=f"vhost-user {self.path}"
        )

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
        self._ending()
        try:
            await self._backend.disconnected()
        except Exception:
            log.exception("the back end failed to let go of a front end", socket=str(self.path))
        finally:
            self._remember_refusal(session)
            session.close()
            channel.close()
            pid = self.peer.pid if self.peer is not None else None
            log.info("front end gone", socket=str(self.path), pid=pid)
            self._channel = self._session = self._task = self.peer = None
            self._free()
            self._changed()

    def _remember_refusal(self, session: Session) -> None:
        """Keep what was asked for in vain: it is shown beyond the connection that asked."""
        if session.refused_features:
            self.refused_features = session.refused_features

    def _note(self, session: Session) -> None:
        """Forget earlier troubles once a front end has negotiated, and report a change."""
        if session.features is not None and not session.refused_features:
            self.refused_features = 0
            self.last_error = None
            self._negotiated = True
        self._remember_refusal(session)
        self._changed()
