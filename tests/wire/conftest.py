# SPDX-License-Identifier: Apache-2.0
"""One switch process for each module, polling mode and number of workers, and guests on its ports."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import POLLING

CONFIG = {
    "bridges": {"br0": {}},
    "ports": {"a": {}, "b": {}, "c": {}, "m": {"mtu": 1500}},
}


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[*((polling, 1) for polling in POLLING), ("adaptive", 2)],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
async def polled_switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    """A switch in each of the polling modes, and one with two workers."""
    polling, workers = request.param
    async with running_switch({**CONFIG, "datapath": {"polling": polling, "workers": workers}}) as switch:
        yield switch


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    """A switch as it comes, and one with two workers."""
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


@pytest_asyncio.fixture(loop_scope="module")
async def stack() -> AsyncIterator[contextlib.AsyncExitStack]:
    """Closes the guests of a test."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack
