# SPDX-License-Identifier: Apache-2.0
"""What every test may use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

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
