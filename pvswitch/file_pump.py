# SPDX-License-Identifier: Apache-2.0
"""The threads between a file and the socket whose other end the core serves: one plays a capture, one records.

A disk may take its time, so neither the poll threads nor the event loop touch the files: each direction of a port has a
thread of its own, which `Pump.close` ends and waits for. A `Player` sends each frame when its time has come, behind a
virtio-net header of zeros; while the socket is full it waits, so that none is lost on the way to the core. A `Recorder`
takes frames from the socket and appends them to its file as soon as there are no more, many at once when there are.
While its file takes nothing it takes nothing either: then the socket fills, and the core drops and counts. What is left
to write is tried again each second.

What the threads tell is plain text, read from the event loop at any time. Used by `file_port.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO

import structlog

from pvswitch.capture_file import (
    CaptureError,
    packets,
    pcap_header,
    pcap_record_header,
    pcap_record_size,
)

HEADER = bytes(10)  # struct virtio_net_hdr: nothing is asked for
MIN_FRAME, MAX_FRAME = 14, 65_564  # what the core takes: an Ethernet header; PVS_MAX_FRAME without a tag
BATCH = 256 * 1024
"""Bytes that are written at once, when there are so many."""
RETRY_MS = 1000
LONGEST_WAIT_MS = 60_000
LONGEST_MESSAGE = 1 << 17  # beyond all that the core sends
END_SECONDS = 5.0
"""How long the end of a thread is waited for; it takes longer only where a disk hangs."""
_SO_SNDBUFFORCE = 32
_SOCKET_BUFFER = 8 << 20

log = structlog.get_logger(__name__)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of what stands between the core and the threads. They keep the order, and lose nothing."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    for end in ends:
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BUFFER)
        except PermissionError:  # the system's limit holds for those without CAP_NET_ADMIN
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
    return ends


class _Ended(Exception):
    """The thread is told to end."""


class _Restarted(Exception):
    """The thread is told to begin anew."""


class Pump(ABC):
    """A thread that moves frames, from `start` to `close`. It owns its file. Its methods are for the event loop."""

    def __init__(self, port: str, path: Path, sock: socket.socket) -> None:
        """`sock` is the threads' end, which stays open until they have been closed."""
        self.message = ""
        """What there is to say of it."""
        self._port, self._path, self._sock = port, path, sock
        self._ending = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._over = asyncio.Event()
        self._bell: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.get_running_loop()
        # a daemon: a disk that hangs must not keep the process from its end
        self._thread = threading.Thread(target=self._run, name=f"{type(self).__name__} {self._port}", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """End the thread, which closes its file, and wait for that; not for ever where a disk hangs."""
        if self._thread is None:
            self._close_file()
            self._ended()
            return
        self._ending = True
        self._wake()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._over.wait()
            self._thread.join()
        except TimeoutError:
            log.error("file not closed: a call on it does not return", port=self._port, file=str(self._path))

    def _wake(self) -> None:
        """Have the thread look at what it is told."""
        if self._bell is not None:
            os.eventfd_write(self._bell, 1)

    def _ended(self) -> None:
        """Nobody waits for the bell any more."""
        if self._bell is not None:
            os.close(self._bell)
        self._bell = None
        self._over.set()

    # ---- in the thread

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._work()
        except _Ended:
            pass
        except Exception as error:  # nobody else would see it
            self.message = f"{self._path} was given up: {error}"
            log.exception("file given up", port=self._port, file=str(self._path))
        finally:
            self._close_file()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._ended)

    def _wait(self, timeout_ms: int | None, events: int = 0) -> None:
        """Wait until the socket is as wanted, the bell rings or time is up."""
        assert self._bell is not None
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if events:
            poll.register(self._sock, events)
        if any(fd == self._bell for fd, _ in poll.poll(timeout_ms)):
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)

    @abstractmethod
    def _work(self) -> None:
        """Move frames until told to end."""

    @abstractmethod
    def _close_file(self) -> None:
        """Close the file; nobody uses it any more."""


class Player(Pump):
    """Sends the frames of a capture, in their time divided by `speed` (0: at once); in a loop again and again."""

    def __init__(
        self, port: str, path: Path, sock: socket.socket, file: BinaryIO, *, speed: float, loop: bool, paused: bool
    ) -> None:
        """Nothing is sent before `start`, nor while it is paused."""
        super().__init__(port, path, sock)
        self._file = file
        self._speed, self._endless = speed, loop
        self._paused = paused
        self._restart = False
        self._played = self._skipped = 0
        self._trouble = ""  # why the file was not played to its end
        self._due_ns = 0.0
        self._last_ns: int | None = None

    def pause(self, paused: bool) -> None:
        """Stop where it is, or go on."""
        if paused != self._paused:
            self._paused = paused
            self._wake()

    def restart(self, speed: float, loop: bool) -> None:
        """Begin anew, in this way."""
        self._speed, self._endless, self._restart = speed, loop, True
        self._wake()

    # ---- in the thread

    def _work(self) -> None:
        while True:
            self.message, self._trouble, self._played, self._skipped = "", "", 0, 0
            with contextlib.suppress(_Restarted):
                self._play_all()
                while True:
                    self._look()
                    self._wait(None)

    def _play_all(self) -> None:
        before, goes_on = -1, True
        while goes_on and before < self._played and (self._endless or before < 0):  # one without frames is no loop
            before = self._played
            goes_on = self._play()
        left_out = f"; {self._skipped} were left out: cut, too long or too short" if self._skipped else ""
        ended = f"then stopped: {self._trouble}" if self._trouble else "finished"
        self.message = f"played {self._played} frames, {ended}{left_out}"
        log.info("capture played", port=self._port, file=str(self._path), frames=self._played, left_out=self._skipped)

    def _play(self) -> bool:
        """Play the file once; return whether it could be played again."""
        self._last_ns, self._due_ns = None, time.monotonic_ns()
        try:
            self._file.seek(0)
            for packet in packets(self._file):
                if len(packet.data) == packet.length and MIN_FRAME <= packet.length <= MAX_FRAME:
                    self._await_time(packet.time_ns)
                    self._send(HEADER + packet.data)
                    self._played += 1
                else:
                    self._skip(packet.length)
        except CaptureError as error:
            self._tell(f"the file {error}")
        except OSError as error:
            self._tell(f"{error.strerror or error}")
            return False
        return True

    def _tell(self, words: str) -> None:
        if words != self._trouble:  # once, also in a loop
            self._trouble = words
            log.warning("capture not played to its end", port=self._port, file=str(self._path), error=words)

    def _skip(self, length: int) -> None:
        self._look()
        self._skipped += 1
        if self._skipped == 1:
            log.warning(
                "frames of the capture are left out: cut by a snap length, too long or too short",
                port=self._port,
                file=str(self._path),
                first_length=length,
            )

    def _look(self) -> None:
        """Heed what it is told; a pause counts as no time."""
        while self._paused and not (self._ending or self._restart):
            begin = time.monotonic_ns()
            self._wait(None)
            self._due_ns += time.monotonic_ns() - begin
        if self._ending:
            raise _Ended
        if self._restart:
            self._restart = False
            raise _Restarted

    def _await_time(self, time_ns: int) -> None:
        """Wait until a frame is due: its distance from the one before, none where times go backwards."""
        self._look()
        last, self._last_ns = self._last_ns, time_ns
        if self._speed == 0 or last is None:
            return
        self._due_ns += max(0, time_ns - last) / self._speed
        while (left_ms := (self._due_ns - time.monotonic_ns()) / 1e6) > 0:
            if left_ms >= 1:
                self._wait(int(min(left_ms, LONGEST_WAIT_MS)))
            else:  # finer than poll() can wait
                time.sleep(left_ms / 1e3)
            self._look()

    def _send(self, message: bytes) -> None:
        """Send when there is room: the core may take its time, and so may the kernel with its memory."""
        while True:
            try:
                self._sock.send(message)
                return
            except BlockingIOError:
                self._wait(None, select.POLLOUT)
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._wait(10)
            self._look()

    def _close_file(self) -> None:
        self._file.close()


class Recorder(Pump):
    """Appends what comes to a pcap file, which it empties at its start."""

    def __init__(self, port: str, path: Path, sock: socket.socket, fd: int) -> None:
        """`fd` may be written to; nothing is before `start`."""
        super().__init__(port, path, sock)
        self._fd = fd
        self._size = 0  # of the file, in whole records
        self._pending = bytearray()
        self._frames = 0  # pending
        self._buffer = memoryview(bytearray(len(HEADER) + LONGEST_MESSAGE))

    # ---- in the thread

    def _work(self) -> None:
        while not self._ours():
            self._wait(RETRY_MS)
            if self._ending:
                return
        self._pending += pcap_header()
        with contextlib.suppress(OSError):  # what is wrong is told by the first write
            os.ftruncate(self._fd, 0)
        while True:
            ending = self._ending  # looked at first: all that is to be written was there when it was set
            more = self._collect()
            written = self._write()
            if ending and not (more and written):
                break
            if not written:
                self._wait(RETRY_MS)
            elif not more:
                self._wait(None, select.POLLIN)
        if self._frames:
            log.warning("frames were not written", port=self._port, file=str(self._path), frames=self._frames)

    def _ours(self) -> bool:
        """Take the file for us; not while another switch, or a port that knows it by another name, writes to it."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not self.message:
                log.warning("file is written by another", port=self._port, file=str(self._path))
            self.message = f"{self._path} is written by another port or program: stop that one, or set another `write`"
            return False
        except OSError as error:  # a file system without locks
            log.debug("file not locked", port=self._port, file=str(self._path), error=error.strerror)
        return True

    def _collect(self) -> bool:
        """Take what is there, as much as is written at once; return whether there may be more."""
        while len(self._pending) < BATCH:
            try:
                size = self._sock.recv_into(self._buffer) - len(HEADER)
            except BlockingIOError:
                return False
            self._pending += pcap_record_header(time.time_ns(), size)
            self._pending += self._buffer[len(HEADER) : len(HEADER) + size]
            self._frames += 1
        return True

    def _write(self) -> bool:
        """Write what is pending; return whether all of it could be."""
        at = 0
        try:
            with memoryview(self._pending) as view:
                while at < len(view):
                    at += os.pwrite(self._fd, view[at:], self._size + at)
        except OSError as error:
            self._keep_whole_records(at)
            self._tell(error)
            return False
        self._size += at
        self._pending.clear()
        self._frames = 0
        if self.message:
            self.message = ""
            log.info("file is written again", port=self._port, file=str(self._path))
        return True

    def _keep_whole_records(self, written: int) -> None:
        """Of what is pending so much is written: end the file behind the last record that is whole."""
        end = len(pcap_header()) if self._size == 0 else 0
        if written < end:
            end = 0
        else:
            while (next_end := end + pcap_record_size(self._pending, end)) <= written:
                end = next_end
                self._frames -= 1
        self._size += end
        del self._pending[:end]
        with contextlib.suppress(OSError):  # what is behind is written over as soon as there is room
            os.ftruncate(self._fd, self._size)

    def _tell(self, error: OSError) -> None:
        words = f"{self._path} cannot be written: {error.strerror}; make room for it, or set another `write`"
        if self.message != words:  # once
            log.warning("file cannot be written", port=self._port, file=str(self._path), error=error.strerror)
        self.message = words

    def _close_file(self) -> None:
        os.close(self._fd)
