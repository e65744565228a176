# SPDX-License-Identifier: Apache-2.0
"""The revisions: every configuration that was in force, on disk before anybody is told that it is.

One file in `state_dir` for each revision, never changed once it is there: a line of JSON that says which and why, a
line with the whole document, and the SHA-256 of both. A file is written under another name, flushed (fsync), renamed
and its folder flushed, so that it is there as a whole or not at all, whatever ends the process or the machine. Numbers
only grow; the last 100 files are kept, fewer where these would take more than 256 MiB, but never fewer than 10. The
folder is locked as long as a switch uses it. A file that is damaged all the same is left out, and named in the log.

`Controller` writes, the API reads, the daemon opens and closes. `write` and `read` wait for the disk: on the event loop
call them through `asyncio.to_thread`. Only one write may be under way at a time; the controller's lock sees to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
from pydantic import ValidationError

from pvswitch.errors import PvswitchError
from pvswitch.model import Revision, SwitchConfig
from pvswitch.validation import parse

log = structlog.get_logger(__name__)

KEPT = 100
KEPT_BYTES = 256 << 20
KEPT_ANYWAY = 10
MAX_SUMMARY = 20  # lines of a summary
MAX_LINE = 200  # characters of each

_FILE = re.compile(r"revision-(\d{10})\.json")
_TEMPORARY = ".revision.tmp"
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.ENOENT: "the folder was removed: restart the switch",
}


class StorageError(PvswitchError):
    """A revision can't be kept; nothing was changed (HTTP 507)."""


class Revisions:
    """The revisions of one switch, and the lock on their folder."""

    def __init__(self, folder: Path) -> None:
        """Lock `folder`, made where it is missing, and find what is in it. PvswitchError with the remedy."""
        self.folder = folder
        self._fd = _open_locked(folder)
        self._known: dict[int, Revision] = {}  # in the order of their numbers
        self._next = 1
        try:
            self._find()
        except OSError as error:
            self.close()
            raise PvswitchError(
                f"the revisions in {folder} can't be read: {error.strerror}; let user {os.geteuid()} read them, or set "
                "another `state_dir`"
            ) from error

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the folder."""
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---- what there is

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._known)

    def all(self) -> list[Revision]:
        """Return the revisions, oldest first."""
        return list(self._known.values())

    def last(self) -> Revision | None:
        """Return the revision that is in force, or was when the switch ended; None where there never was one."""
        return next(reversed(self._known.values()), None)

    def get(self, number: int) -> Revision | None:
        """Return a revision, or None when it isn't, or no longer, there."""
        return self._known.get(number)

    def read(self, number: int) -> dict[str, Any]:
        """Return the document of a revision, not validated; KeyError when there is none, StorageError."""
        path = self._path(number)
        try:
            _, document = _parts(path.read_bytes())
            return dict(json.loads(document))
        except FileNotFoundError:
            raise KeyError(number) from None
        except OSError as error:
            raise StorageError(f"revision {number} can't be read from {path}: {error.strerror}") from error
        except ValueError as error:
            raise StorageError(f"revision {number} is damaged: {path}: {error}; use another one") from error

    def _find(self) -> None:
        """Read what each file says of itself; the first number to give is beyond all of them, damaged ones too."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / _TEMPORARY).unlink()
        for number, path in self._files():
            self._next = number + 1
            try:
                head, _ = _parts(path.read_bytes())
                revision = Revision.model_validate_json(head)
                if revision.number != number:
                    raise ValueError(f"it says that it is revision {revision.number}")
            except ValidationError:
                log.warning(
                    "revision left out, it is damaged", file=str(path), error="its first line is not understood"
                )
            except ValueError as error:
                log.warning("revision left out, it is damaged", file=str(path), error=str(error))
            else:
                self._known[number] = revision

    def _files(self) -> list[tuple[int, Path]]:
        matches = ((_FILE.fullmatch(name), name) for name in os.listdir(self._fd))  # noqa: PTH208 (by the locked descriptor)
        return sorted((int(match[1]), self.folder / name) for match, name in matches if match is not None)

    def _path(self, number: int) -> Path:
        return self.folder / f"revision-{number:010}.json"

    # ---- a new one

    def write(self, config: SwitchConfig, etag: str, actor: str, summary: Iterable[str]) -> Revision:
        """Keep `config` as a new revision. When this returns it is on disk; StorageError when it is not."""
        number = self._next
        revision = Revision(
            name=str(number),
            number=number,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            etag=etag,
            actor=actor,
            summary=_short(summary),
        )
        head = json.dumps(revision.model_dump())
        try:
            self._put(number, f"{head}\n{config.text()}\n".encode())
        except OSError as error:
            raise StorageError(
                f"the revision can't be written to {self.folder}: {error.strerror}; nothing was changed: "
                f"{_remedy(error)}, then repeat the change"
            ) from error
        self._known = {**self._known, number: revision}  # a new one: the event loop may be reading the old one
        self._forget_old()
        return revision

    def _put(self, number: int, content: bytes) -> None:
        """Make the file, as a whole or not at all; OSError."""
        target = self._path(number).name
        content += f"{hashlib.sha256(content).hexdigest()}\n".encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(_TEMPORARY, flags, 0o600, dir_fd=self._fd), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(_TEMPORARY, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(_TEMPORARY, dir_fd=self._fd)
            raise
        self._next = number + 1  # whoever saw the file saw the number
        try:
            os.fsync(self._fd)
        except OSError:
            self._take_back(target)
            raise

    def _take_back(self, name: str) -> None:
        """Remove a file that may or may not outlast the machine: what was refused must not come back."""
        try:
            os.unlink(name, dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            log.error(
                "a refused change may come back with --resume: its revision can't be removed",
                file=str(self.folder / name),
                error=error.strerror,
            )

    def _forget_old(self) -> None:
        """Remove what is older than those to keep; what can't be removed now is tried again with the next one."""
        files = self._files()
        old = files[: len(files) - _how_many(path for _, path in reversed(files))]
        numbers = {number for number, _ in old}
        self._known = {number: revision for number, revision in self._known.items() if number not in numbers}
        for _, path in old:
            try:
                path.unlink()
            except OSError as error:
                log.warning("old revision can't be removed", file=str(path), error=error.strerror)


def adopted(document: Mapping[str, Any], process: SwitchConfig, keys: Iterable[str]) -> SwitchConfig:
    """Return the configuration of a revision with `keys`, which belong to the process, as `process` has them.

    Sockets that were at their default place are at that of `socket_dir` now. Raises InvalidDocument: a newer version
    may know better.
    """
    own = process.document()
    rest = {key: value for key, value in document.items() if key not in keys}
    ports = {name: _moved(name, port, document.get("socket_dir")) for name, port in document.get("ports", {}).items()}
    return parse({**{key: own[key] for key in keys if key in own}, **rest, "ports": ports})


def _moved(name: str, port: Mapping[str, Any], socket_dir: object) -> dict[str, Any]:
    """Return a port without the socket that follows from where `socket_dir` was."""
    default = str(Path(str(socket_dir)) / f"{name}.sock")
    return {key: value for key, value in port.items() if (key, value) != ("socket", default)}


def _open_locked(folder: Path) -> int:
    """Return a descriptor of the folder that holds the lock on it; the lock goes with the process."""
    try:
        _make(folder)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(folder, error.strerror) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise _unusable(folder, "it is not writable")
    except BlockingIOError:
        os.close(fd)
        raise PvswitchError(
            f"another switch keeps its revisions in {folder}: stop it, or set another `state_dir`"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make(folder: Path) -> None:
    """Make the folder and those above it, each on disk in its own."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        _make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _unusable(folder: Path, why: str | None) -> PvswitchError:
    return PvswitchError(
        f"revisions can't be kept in {folder}: {why}; set `state_dir` to a folder that user {os.geteuid()} may write"
    )


def _how_many(files: Iterable[Path]) -> int:
    """Return how many of the files, newest first, are kept."""
    taken = count = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            taken += path.stat().st_size
        if count >= KEPT or (count >= KEPT_ANYWAY and taken > KEPT_BYTES):
            break
        count += 1
    return count


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "look at its disk")


def _parts(content: bytes) -> tuple[bytes, bytes]:
    """Return the two lines of a file, whose checksum is right; ValueError."""
    head, _, rest = content.partition(b"\n")
    document, _, checksum = rest.partition(b"\n")
    if hashlib.sha256(head + b"\n" + document + b"\n").hexdigest().encode() + b"\n" != checksum:
        raise ValueError("its checksum is wrong")
    return head, document


def _short(summary: Iterable[str]) -> list[str]:
    lines = [line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…" for line in summary]
    more = len(lines) - MAX_SUMMARY
    return lines if more <= 0 else [*lines[: MAX_SUMMARY - 1], f"and {more + 1} more"]
