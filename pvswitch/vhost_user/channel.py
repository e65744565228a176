# SPDX-License-Identifier: Apache-2.0
"""Reads and writes whole vhost-user messages on a non-blocking unix socket, with their descriptors.

Sockets are watched with `loop.add_reader`, because the transports of asyncio and uvloop drop SCM_RIGHTS.
A message once begun must be complete after `message_timeout` seconds, a reply be taken after
`send_timeout`; an idle peer may stay silent for ever. Descriptors may only come with the first bytes of a
header (QEMU docs/interop/vhost-user.rst, and unix(7) for SCM_RIGHTS); whatever comes elsewhere, or was
cut off by the kernel, ends the connection, and is closed.

Used by `connection.py`, one task per channel, on the event loop only.
"""

from __future__ import annotations

import array
import asyncio
import socket
from collections.abc import Callable

from pvswitch.vhost_user.fds import FdBag
from pvswitch.vhost_user.messages import HEADER_SIZE, MAX_FDS, Header
from pvswitch.vhost_user.session import Message, ProtocolError, check_header

_FD_SIZE = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)


class Channel:
    """One connected socket, which it owns."""

    def __init__(self, sock: socket.socket, *, message_timeout: float, send_timeout: float) -> None:
        """Take over `sock`; timeouts in seconds."""
        sock.setblocking(False)
        self.sock = sock
        self._message_timeout = message_timeout
        self._send_timeout = send_timeout

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    async def receive(self) -> Message | None:
        """The next message, or None when the peer has hung up between two.

        Raises ProtocolError for what can't be a message, one that stops half-way, or descriptors out of
        place. OSError is the socket's.
        """
        fds = FdBag()
        try:
            data = await self._read(HEADER_SIZE, fds)
            if not data:
                return None
            try:
                async with asyncio.timeout(self._message_timeout):
                    data = await self._complete(data, HEADER_SIZE)
                    header = Header.unpack(data)
                    check_header(header)
                    payload = await self._complete(b"", header.size)
            except TimeoutError as error:
                raise ProtocolError(f"a message was not complete after {self._message_timeout:g} s") from error
        except BaseException:
            fds.close()
            raise
        return Message(header, payload, fds)

    async def send(self, data: bytes) -> None:
        """Write a reply; raises ProtocolError when the peer doesn't take it."""
        try:
            async with asyncio.timeout(self._send_timeout):
                while data:
                    try:
                        data = data[self.sock.send(data, socket.MSG_NOSIGNAL) :]
                    except (BlockingIOError, InterruptedError):
                        loop = asyncio.get_running_loop()
                        await self._ready(loop.add_writer, loop.remove_writer)
        except TimeoutError as error:
            raise ProtocolError(f"a reply was not read within {self._send_timeout:g} s") from error

    async def _complete(self, data: bytes, size: int) -> bytes:
        """Read on until `data` has `size` bytes; no descriptor may come now."""
        while len(data) < size:
            with FdBag() as strays:
                more = await self._read(size - len(data), strays)
                if len(strays):
                    raise ProtocolError("file descriptors came in the middle of a message")
            if not more:
                raise ProtocolError("the front end hung up in the middle of a message")
            data += more
        return data

    async def _read(self, size: int, fds: FdBag) -> bytes:
        """Wait for 1 to `size` bytes; empty at the end. Descriptors that come go into `fds`."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(size, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
                break
            except (BlockingIOError, InterruptedError):
                await self._ready(loop.add_reader, loop.remove_reader)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % _FD_SIZE])
                fds.extend(numbers)
        if flags & socket.MSG_CTRUNC:
            fds.close()
            raise ProtocolError(f"more than {MAX_FDS} file descriptors came, or more than may be open")
        return data

    async def _ready(self, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
        """Wait until the socket can be read, or written."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        fd = self.sock.fileno()
        watch(fd, _settle, ready)
        try:
            await ready
        finally:
            unwatch(fd)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
