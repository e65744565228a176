# SPDX-License-Identifier: Apache-2.0
"""The tokens that open the API on TCP: the file that lists them, and who a token belongs to.

One token a line: its name, its role (`read` or `write`) and the SHA-256 of the token in hex; `#` begins a comment. The
file holds no token, so that a copy of it opens nothing; it is refused all the same when others may read it, or any
but its owner may write it. A token is made of 256 random bits, so a plain hash is as good as a slow one: there is
nothing to guess. Used by `api.access` at each request; the daemon reads the file at the start and at each SIGHUP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pvswitch.errors import PvswitchError
from pvswitch.values import is_name

Role = Literal["read", "write"]

MAX_FILE = 1 << 20
MAX_SHOWN = 5  # wrong lines named in one message


@dataclass(frozen=True)
class Token:
    """One line of the file."""

    name: str
    role: Role
    digest: bytes


class Tokens:
    """The tokens that are known; `read` makes one from a file."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        """Know these."""
        self._tokens = tuple(tokens)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._tokens)

    def find(self, text: str) -> Token | None:
        """Return the token whose secret is `text`. Takes as long for a wrong one as for a right one."""
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def read(path: Path) -> Tokens:
    """Return the tokens of a file; PvswitchError when it can't be read, is open to others, or has a wrong line."""
    try:
        with path.open("rb") as file:
            _check_access(path, os.fstat(file.fileno()))
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise PvswitchError(
            f"api.tokens_file: {path} can't be read: {error.strerror}; make it, or name another"
        ) from error
    if len(raw) > MAX_FILE:
        raise PvswitchError(f"api.tokens_file: {path} is larger than 1 MiB: is it the right file?")
    tokens: dict[str, Token] = {}
    errors: list[str] = []
    for number, line in enumerate(raw.decode(errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        fault = _fault(words, tokens)
        if fault is None:
            name, role, digest = words
            tokens[name] = Token(name, cast(Role, role), bytes.fromhex(digest))
        else:
            errors.append(f"{path}:{number}: {fault}")
    if errors:
        more = [f"and {len(errors) - MAX_SHOWN} more lines are wrong"] if len(errors) > MAX_SHOWN else []
        raise PvswitchError("\n".join(errors[:MAX_SHOWN] + more))
    return Tokens(tokens.values())


def _check_access(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise PvswitchError(f"api.tokens_file: {path} is no file: name the file that lists the tokens")
    if info.st_uid not in (0, os.geteuid()):
        raise PvswitchError(
            f"api.tokens_file: {path} belongs to user {info.st_uid}, who could change it: "
            f"give it to root or to the user of the switch (chown {os.geteuid()} {path})"
        )
    if info.st_mode & 0o027:
        raise PvswitchError(
            f"api.tokens_file: {path} has mode {stat.S_IMODE(info.st_mode):04o}: others must not read it, nor its "
            f"group write it (chmod 640 {path})"
        )


def _fault(words: list[str], known: dict[str, Token]) -> str | None:
    """Return what is wrong with a line; None when nothing is."""
    if len(words) != 3:
        return "must have three words: NAME, read or write, and the SHA-256 of the token"
    name, role, digest = words
    if not is_name(name):
        return "the name must be 1 to 63 of A-Z a-z 0-9 _ . - with a letter or a digit first"
    if role not in get_args(Role):
        return f"the role of {name!r} must be read or write"
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        return f"the SHA-256 of {name!r} must have 64 hexadecimal digits: printf %s TOKEN | sha256sum"
    if name in known:
        return f"{name!r} is there twice: keep one"
    if any(token.digest == bytes.fromhex(digest) for token in known.values()):
        return f"{name!r} has the token of another: each needs its own"
    return None
