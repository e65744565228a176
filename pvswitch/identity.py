# SPDX-License-Identifier: Apache-2.0
"""What makes this switch this one: 16 random bytes, drawn once and kept in `state_dir`.

From them follow the hardware addresses of the taps that the switch makes: the same after every restart, so that no
neighbour has to learn them anew, and others on every other switch, whatever its taps are called. (A machine's id would
not do: containers of one image share it.)

`daemon.py` loads it, in the folder that `Revisions` has locked; `ports.py` gives each tap its address.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Self

import structlog

log = structlog.get_logger(__name__)

_FILE = "identity"
_TEMPORARY = ".identity.tmp"
_BYTES = 16


class Identity:
    """A switch among others."""

    def __init__(self, seed: bytes) -> None:
        """`seed` is 16 random bytes."""
        self._seed = seed

    @classmethod
    def drawn(cls) -> Self:
        """Return a new one, which nobody keeps."""
        return cls(os.urandom(_BYTES))

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """Return the one kept in `folder`; a new one, kept from now on, where there is none.

        One that can't be read or kept is logged and drawn anew: a switch with other addresses is better than none.
        """
        path = folder / _FILE
        try:
            seed = bytes.fromhex(path.read_text("ascii"))
            if len(seed) == _BYTES:
                return cls(seed)
            raise ValueError(f"it has {len(seed)} bytes")
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("identity of the switch drawn anew, made taps get other addresses", file=str(path), why=error)
        seed = os.urandom(_BYTES)
        try:
            _write(folder, f"{seed.hex()}\n")
        except OSError as error:
            log.warning(
                "identity of the switch not kept, made taps get other addresses at the next start: make the folder "
                "writable, with space left",
                folder=str(folder),
                why=error.strerror,
            )
        return cls(seed)

    def mac(self, *names: str) -> str:
        """Return the address of what is called so: unicast, locally administered (IEEE 802, section 8.4)."""
        drawn = bytearray(hashlib.blake2b("\0".join(names).encode(), key=self._seed, digest_size=6).digest())
        drawn[0] = drawn[0] & 0xFC | 0x02
        return drawn.hex(":")


def _write(folder: Path, text: str) -> None:
    """Put it there as a whole or not at all; OSError."""
    temporary = folder / _TEMPORARY
    try:
        with temporary.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / _FILE)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
