# SPDX-License-Identifier: Apache-2.0
"""Opens the files of a pcap port, and leaves them as they are: they are played and emptied when the port begins.

All that can be known to be wrong is said here, in one sentence with the remedy: whether there is a file, of the right
kind, that may be read or written, and that begins as a capture. It blocks, and so belongs into a thread. Used by
`file_port.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pvswitch.capture_file import CaptureError, CaptureTruncated, packets, starts_as_capture
from pvswitch.errors import PvswitchError

BUFFER = 256 * 1024
"""Bytes that are read at once."""


class CaptureFileError(PvswitchError):
    """A port's file can't be used; the sentence says what to do."""


@dataclass(slots=True)
class CaptureFiles:
    """A port's files, open, and not yet touched; whoever holds it closes it."""

    source: BinaryIO | None = None
    target: int | None = None
    made: Path | None = None  # the target's path, if it was not there before

    def close(self) -> None:
        """Let go of them; a file that was made and stayed empty is removed."""
        source, target, made = self.source, self.target, self.made
        self.source = self.target = self.made = None
        if source is not None:
            source.close()
        if target is not None:
            if made is not None and os.fstat(target).st_size == 0:
                with contextlib.suppress(OSError):
                    made.unlink()
            os.close(target)


def open_files(read: Path | None, write: Path | None) -> CaptureFiles:
    """Open a port's files. Raises CaptureFileError, and then nothing is left. What is in them stays."""
    files = CaptureFiles()
    try:
        if read is not None:
            files.source = _open_source(read)
        if write is not None:
            _open_target(files, write)
    except BaseException:
        files.close()
        raise
    return files


def _open_source(path: Path) -> BinaryIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold us up
    except OSError as error:
        raise CaptureFileError(_refusal(path, error, "read")) from error
    try:
        _check_regular(path, fd)
    except BaseException:
        os.close(fd)
        raise
    file = os.fdopen(fd, "rb", buffering=BUFFER)
    try:
        with contextlib.suppress(CaptureTruncated):  # it is played as far as it goes
            next(packets(file), None)
    except BaseException as error:
        file.close()
        if isinstance(error, CaptureError):
            raise CaptureFileError(f"{path} {error}") from error
        if isinstance(error, OSError):
            raise CaptureFileError(_refusal(path, error, "read")) from error
        raise
    return file


def _open_target(files: CaptureFiles, path: Path) -> None:
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            files.target = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
            files.made = path
        except FileExistsError:
            files.target = os.open(path, flags)
        _check_regular(path, files.target)
        head = os.pread(files.target, 4, 0)
        if files.source is not None and os.path.samestat(os.fstat(files.source.fileno()), os.fstat(files.target)):
            raise CaptureFileError(f"{path} is the very file that is read: `write` to another one")
    except OSError as error:
        raise CaptureFileError(_refusal(path, error, "write")) from error
    if head and not starts_as_capture(head):  # a mistaken path must not cost anyone a file
        raise CaptureFileError(f"{path} is there and is no capture: remove it, or `write` to another file")


def _check_regular(path: Path, fd: int) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise CaptureFileError(f"{path} is a folder: name a file in it")
    if not stat.S_ISREG(mode):
        raise CaptureFileError(f"{path} is no regular file: name one")


def _refusal(path: Path, error: OSError, key: str) -> str:
    match error.errno:
        case errno.ENOENT if key == "read":
            return f"there is no file {path}: correct `read`; it is looked for where the switch runs"
        case errno.ENOENT:
            return f"there is no folder {path.parent} to write {path.name} to: make it, or correct `write`"
        case errno.EISDIR:
            return f"{path} is a folder: name a file in it"
        case errno.ENXIO:
            return f"{path} is no regular file: name one"
        case errno.EACCES | errno.EPERM:
            return f"the switch may not {key} {path}: give its user permission to do so"
        case errno.EROFS:
            return f"{path} is on a file system that the switch can only read (a service: set ReadWritePaths=)"
        case _:
            return f"{path} cannot be opened to {key} it: {error.strerror or error}"
