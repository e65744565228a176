# SPDX-License-Identifier: Apache-2.0
"""One switch process for each module and polling mode, and guests on its ports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess

pytest.register_assert_rewrite("tests.wire.lab")

from tests.system.conftest import running_switch  # noqa: E402
from tests.wire.lab import POLLING  # noqa: E402

CONFIG = {
    "bridges": {"br0": {}},
    "ports": {"a": {}, "b": {}, "c": {}, "m": {"mtu": 1500}},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=POLLING)
async def polled_switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    """A switch in each of the polling modes."""
    async with running_switch({**CONFIG, "datapath": {"polling": request.param}}) as switch:
        yield switch


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def switch() -> AsyncIterator[SwitchProcess]:
    """A switch as it comes."""
    async with running_switch(CONFIG) as switch:
        yield switch


@pytest_asyncio.fixture(loop_scope="module")
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    """Closes the guests of a test."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack
