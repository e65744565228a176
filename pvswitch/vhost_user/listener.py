# SPDX-License-Identifier: Apache-2.0
"""The listening unix socket of a port, from its path: with the right mode and group, never on top of a
live one.

A socket file that nobody listens on is left over from a process that was killed, and is replaced. Every
failure is a `PvswitchError` in one sentence. Used by `server.py`; blocking calls here are local and
short.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from pvswitch.errors import PvswitchError

PATH_MAX = 107
"""Bytes: sun_path of struct sockaddr_un without its terminating zero (unix(7))."""


class SocketFile:
    """A bound, non-blocking unix stream socket, and its file as long as that is still ours."""

    def __init__(self, path: Path, mode: int, gid: int | None) -> None:
        """Bind `path` with permissions `mode` and, if given, group `gid`; raises PvswitchError.

        Nobody can connect before `listen()`.
        """
        self.path = path
        check_length(path)
        _clear_stale(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._identity: tuple[int, int] | None = None
        try:
            self.sock.bind(str(path))
            self._identity = _identify(path)
            path.chmod(mode)
            if gid is not None:
                os.chown(path, -1, gid)
        except OSError as error:
            self.close()
            raise PvswitchError(_bind_failure(path, error, gid)) from error

    def listen(self) -> None:
        """Let front ends connect."""
        self.sock.listen(16)

    def close(self) -> None:
        """Close the socket and remove its file, unless somebody has put another one in its place."""
        self.sock.close()
        if self._identity is not None and _identify(self.path) == self._identity:
            self.path.unlink(missing_ok=True)
        self._identity = None


def check_length(path: Path) -> None:
    """Raise PvswitchError for a path that no socket can have."""
    size = len(os.fsencode(path))
    if size > PATH_MAX:
        raise PvswitchError(f"socket path {path} has {size} bytes, {PATH_MAX} are possible: use a shorter one")


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _clear_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on; raises PvswitchError for anything else at that path."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise PvswitchError(f"{path} exists and is not a socket: remove it, or choose another socket path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            result = probe.connect_ex(str(path))
        if result in (0, errno.EAGAIN):
            raise PvswitchError(f"another process listens on {path}: stop it, or choose another socket path")
        if result not in (errno.ECONNREFUSED, errno.ENOENT):
            raise PvswitchError(f"can't replace the socket {path}: {os.strerror(result)}")
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PvswitchError(f"can't use the socket path {path}: {error.strerror}") from error


def _bind_failure(path: Path, error: OSError, gid: int | None) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"the folder {path.parent} doesn't exist: create it, or set socket_dir to one that does"
        case errno.EPERM if gid is not None:
            return f"socket {path} can't be given to group {gid}: join it, or set socket_group to one of yours"
        case _:
            return f"can't listen on {path}: {error.strerror}"
