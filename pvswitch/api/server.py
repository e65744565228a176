# SPDX-License-Identifier: Apache-2.0
"""Listens for the API: always on a unix socket, and on a TCP port where asked, with TLS where asked.

A stale socket is replaced and a live one is refused. The socket has its mode and group before anybody can
connect: it is bound under an umask and only then listens.

Connections are counted from the moment they are accepted, a TLS handshake included: who comes when there are too many
is told so (503) and sent away. The two sockets count apart, so that nobody on the network can lock out the machine's
own users. Each connection is a task of the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import stat
from collections import Counter
from pathlib import Path

import structlog
from aiohttp import web

from pvswitch.api.connection import Connection, Peer, raw_answer
from pvswitch.api.problem import ApiProblem
from pvswitch.api.tls import Tls
from pvswitch.errors import PvswitchError

_log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256  # on each socket
MAX_PER_ADDRESS = 64  # of them from one TCP address
HANDSHAKE_SECONDS = 10.0
BACKLOG = 128
RETRY_SECONDS = 1.0  # after an accept that failed, as with no descriptors left


class ApiServer:
    """Serves one application from `start` to `close`."""

    def __init__(
        self,
        app: web.Application,
        path: Path,
        *,
        mode: int = 0o660,
        gid: int | None = None,
        listen: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        """`listen` is "ADDRESS:PORT" as `api.listen` has it; `gid` None leaves the socket's group alone."""
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        self._path = path
        self._mode = mode
        self._gid = gid
        self._listen = listen
        self._tls = tls
        self._inode: int | None = None
        self._listeners: list[_Listener] = []
        self.tcp_address: tuple[str, int] | None = None

    @property
    def tcp_name(self) -> str | None:
        """Where TCP listens, as people write it, with the port that the kernel chose for 0; None when it doesn't."""
        if self.tcp_address is None:
            return None
        host, port = self.tcp_address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Listen; PvswitchError, with nothing left behind, when that is impossible."""
        try:
            await self._runner.setup()
            server = self._runner.server
            assert server is not None
            self._listeners.append(_Listener(self._bind_unix(), server, None))
            if self._listen is not None:
                tcp = _bind_tcp(self._listen)
                self.tcp_address = tcp.getsockname()[:2]
                self._listeners.append(_Listener(tcp, server, self._tls))
            for listener in self._listeners:
                listener.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening, end the connections, remove the socket."""
        for listener in self._listeners:
            await listener.stop()
        await self._runner.cleanup()
        for listener in self._listeners:
            await listener.end()
        self._listeners = []
        try:
            if self._inode is not None and self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass
        self._inode = None

    def _bind_unix(self) -> socket.socket:
        _remove_stale(self._path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        umask = os.umask(0o177)
        try:
            sock.bind(str(self._path))
            self._inode = self._path.stat().st_ino
            if self._gid is not None:
                os.chown(self._path, -1, self._gid)
            self._path.chmod(self._mode)
        except OSError as error:
            sock.close()
            raise PvswitchError(
                f"the API cannot listen on {self._path}: {error.strerror}; make its folder writable, or set"
                " `api.socket`"
            ) from error
        finally:
            os.umask(umask)
        return sock


class _Listener:
    """One bound socket, and the connections that came by it."""

    def __init__(self, sock: socket.socket, server: web.Server, tls: Tls | None) -> None:
        self._sock = sock
        self._server = server
        self._tls = tls
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._addresses: Counter[str | None] = Counter()

    def start(self) -> None:
        """Listen."""
        self._sock.listen(BACKLOG)
        self._accepting = asyncio.create_task(self._accept(), name="api accept")

    async def stop(self) -> None:
        """Accept nobody any more; the connections go on."""
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        self._sock.close()

    async def end(self) -> None:
        """End what is left of the connections."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                _log.warning("the API cannot accept a connection", error=error.strerror)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                peer = Peer.of(sock)
            except OSError:
                sock.close()
                continue
            if len(self._connections) >= MAX_CONNECTIONS or self._addresses[peer.address] >= self._allowance(peer):
                self._send_away(sock)
                continue
            task = asyncio.create_task(self._serve(sock, peer), name="api connection")
            self._connections.add(task)
            self._addresses[peer.address] += 1
            task.add_done_callback(functools.partial(self._ended, peer.address))

    def _allowance(self, peer: Peer) -> int:
        return MAX_CONNECTIONS if peer.address is None else MAX_PER_ADDRESS

    def _ended(self, address: str | None, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection of the API failed", error=repr(error))

    async def _serve(self, sock: socket.socket, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(self._server, loop, peer)
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=None if self._tls is None else self._tls.context,
                ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_SECONDS,
            )
        except OSError:  # it has gone, or what it speaks is not TLS
            sock.close()
            return
        await connection.closed

    def _send_away(self, sock: socket.socket) -> None:
        """Say that there are too many, as far as that can be said without waiting."""
        with sock, contextlib.suppress(OSError):
            if self._tls is None:
                problem = ApiProblem(503, "too many connections are open: close some", headers={"Retry-After": "1"})
                sock.send(raw_answer(problem))
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1 << 16)  # what is unread would reset the connection, and the answer with it


def _remove_stale(path: Path) -> None:
    """Remove the socket of a switch that has gone; PvswitchError when it is alive, or no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise PvswitchError(f"{path} is in the way and is no socket: remove it, or set `api.socket`")
    except FileNotFoundError:
        return
    except OSError as error:
        raise PvswitchError(f"the API cannot listen on {path}: {error.strerror}") from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # its backlog is full: alive
            pass
        except OSError as error:
            raise PvswitchError(f"the API cannot listen on {path}: {error.strerror}") from error
    raise PvswitchError(f"a switch is running on {path} already: stop it, or set another `runtime_dir`")


def _bind_tcp(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
    except OSError as error:
        sock.close()
        raise PvswitchError(f"the API cannot listen on {listen}: {error.strerror}; set another `api.listen`") from error
    sock.setblocking(False)
    return sock
