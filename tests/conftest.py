# SPDX-License-Identifier: Apache-2.0
"""What every test may use."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A shell that starts this in the background has it ignore Ctrl-C, and all programs that tests end by it with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Here, since a test of any folder may be the first to import them.
pytest.register_assert_rewrite("tests.wire.lab", "tests.wire.offloads", "tests.wire.tunnels")

RequirePeer = Callable[..., str]


def missing_peer(sentence: str) -> None:
    """Skip the test with what to install; in CI (CI=true) fail it: there every peer must be present."""
    if os.environ.get("CI") == "true":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def require_peer() -> RequirePeer:
    """Give a function that returns a program's path, or skips (in CI: fails) with the package to install."""

    def require(program: str, *, package: str) -> str:
        found = shutil.which(program)
        if found is None:
            missing_peer(f"{program} not found: apt-get install {package}")
        assert found is not None
        return found

    return require


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a folder for programs that make sockets in folders of their own there: a path of theirs has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pvt-") as folder:
        yield Path(folder)
