# SPDX-License-Identifier: Apache-2.0
"""Listens for the API: always on a unix socket, and on a loopback TCP port where asked.

A stale socket is replaced and a live one is refused. The socket has its mode and group before anybody can
connect: it is bound under an umask and only then listens.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from aiohttp import web

from pvswitch.errors import PvswitchError


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
    ) -> None:
        """`listen` is "ADDRESS:PORT" as `api.listen` has it; `gid` None leaves the socket's group alone."""
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        self._path = path
        self._mode = mode
        self._gid = gid
        self._listen = listen
        self._inode: int | None = None
        self.tcp_address: tuple[str, int] | None = None

    async def start(self) -> None:
        """Listen; PvswitchError, with nothing left behind, when that is impossible."""
        try:
            await self._runner.setup()
            await web.SockSite(self._runner, self._bind_unix()).start()
            if self._listen is not None:
                tcp = _bind_tcp(self._listen)
                self.tcp_address = tcp.getsockname()[:2]
                await web.SockSite(self._runner, tcp).start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening, end the connections, remove the socket."""
        await self._runner.cleanup()
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
