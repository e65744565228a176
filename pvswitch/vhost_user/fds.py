# SPDX-License-Identifier: Apache-2.0
"""Ownership of received file descriptors: each has exactly one owner, who closes it exactly once.

`FdBag` owns what came with a message until somebody takes it out; `OwnedFd` is a descriptor kept for
longer (a ring's kick or call). Both may be closed again without harm. Used by the session and the channel,
on the event loop only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class OwnedFd:
    """One descriptor, or the knowledge that none will come (`fd` None: the peer set the no-fd bit)."""

    __slots__ = ("fd",)

    def __init__(self, fd: int | None) -> None:
        """Take over `fd`."""
        self.fd = fd

    def close(self) -> None:
        """Close it, once."""
        if self.fd is not None:
            fd, self.fd = self.fd, None
            os.close(fd)


class FdBag:
    """The descriptors of one message, in order; the end of the `with` block closes what is left."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        """Take over `fds`."""
        self._fds = list(fds)

    def __len__(self) -> int:
        """How many are left."""
        return len(self._fds)

    def __enter__(self) -> Self:
        """Own the descriptors for the length of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is left."""
        self.close()

    def extend(self, fds: Iterable[int]) -> None:
        """Own these too."""
        self._fds.extend(fds)

    def peek(self, index: int = 0) -> int | None:
        """The descriptor at `index`, still owned by the bag; None where there is none."""
        return self._fds[index] if index < len(self._fds) else None

    def take(self) -> OwnedFd:
        """Hand the first descriptor over, or `OwnedFd(None)` when the bag is empty."""
        return OwnedFd(self._fds.pop(0) if self._fds else None)

    def close(self) -> None:
        """Close all that is left."""
        while self._fds:
            os.close(self._fds.pop())
