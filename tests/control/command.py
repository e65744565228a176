# SPDX-License-Identifier: Apache-2.0
"""The `pvswitch` command, run in the process of the test as its entry point runs it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from pvswitch import cli


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Awaitable[Result]]


def run(*arguments: str) -> Result:
    """Run a command to its end."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pvswitch", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main()
    return Result(status, out.getvalue(), err.getvalue())
