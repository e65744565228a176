# SPDX-License-Identifier: Apache-2.0
"""The exceptions every room may raise.

A message is one sentence that says what is wrong and what to do about it: it is shown to the user
as it is, by the command, by `state.message` and by problem+json. This module imports nothing of
pvswitch, so that every room can import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class PvswitchError(Exception):
    """Something the user should read: one sentence, with the remedy."""


class ApplyError(PvswitchError):
    """A configuration is valid but cannot be put to work now; nothing was changed (HTTP 409).

    `pointer` names the resource that failed, as a JSON pointer: "#/ports/vm1".
    """

    def __init__(self, message: str, pointer: str = "#") -> None:
        """`message` is one sentence with the remedy."""
        super().__init__(message)
        self.pointer = pointer


def printable(text: str) -> str:
    """Return text that can be encoded: JSON and YAML may hold half of a surrogate pair, which becomes its escape."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class FieldError:
    """One wrong value of a document: where it is, and what is wrong with it."""

    loc: tuple[str | int, ...]
    message: str

    def __post_init__(self) -> None:
        """See that it can be said, whatever the document has."""
        object.__setattr__(self, "loc", tuple(printable(x) if isinstance(x, str) else x for x in self.loc))
        object.__setattr__(self, "message", printable(self.message))

    @property
    def pointer(self) -> str:
        """The place as a JSON pointer (RFC 6901) in a URI fragment: "#/ports/vm1/mtu"."""
        parts = (str(part).replace("~", "~0").replace("/", "~1") for part in self.loc)
        return "#" + "".join(f"/{part}" for part in parts)

    @property
    def place(self) -> str:
        """The place as people write it: "ports.vm1.mtu", "bridges.br0.fdb[2].mac"."""
        text = ""
        for part in self.loc:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        return text


class InvalidDocument(PvswitchError):
    """A document is not a valid configuration (HTTP 422); `errors` names every wrong value at once.

    Only the first ones where there are too many to name; `omitted` is how many there are beyond.
    """

    def __init__(self, errors: Sequence[FieldError], omitted: int = 0) -> None:
        """`errors` is not empty."""
        words = [f"{e.place}: {e.message}" if e.place else e.message for e in errors]
        super().__init__("; ".join([*words, f"and {omitted} more"] if omitted else words))
        self.errors = tuple(errors)
        self.omitted = omitted


@dataclass(frozen=True)
class ConfigProblem:
    """One error of a configuration file. `line` and `column` count from 1; 0 where there is none to name."""

    line: int
    column: int
    place: str
    message: str


class ConfigError(PvswitchError):
    """A configuration file cannot be used; `str()` gives every error, one per line, as path:line:column."""

    def __init__(self, path: str, problems: Sequence[ConfigProblem]) -> None:
        """`problems` is not empty."""
        super().__init__("\n".join(self._line(path, problem) for problem in problems))
        self.path = path
        self.problems = tuple(problems)

    @staticmethod
    def _line(path: str, problem: ConfigProblem) -> str:
        where = f"{path}:{problem.line}:{problem.column}" if problem.line else path
        return f"{where}: {problem.place}: {problem.message}" if problem.place else f"{where}: {problem.message}"
