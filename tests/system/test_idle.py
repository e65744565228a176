# SPDX-License-Identifier: Apache-2.0
"""Idle costs nothing: many connected guests with started rings, no traffic, and a switch that sleeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from pvswitch.bench.machine import cpu_seconds
from pvswitch.guest import Guest
from tests.system.conftest import StartSwitch, from_environment

pytestmark = pytest.mark.timeout(300)

GUESTS = 64
SECONDS = from_environment("PVSWITCH_TEST_IDLE_SECONDS", 10)
NAMES = [f"vm{number}" for number in range(GUESTS)]
CONFIG: dict[str, Any] = {
    "datapath": {"polling": "adaptive"},
    "bridges": {"br0": {}},
    "ports": {name: {} for name in NAMES},
}


async def test_idle_guests_cost_under_one_percent(
    start_switch: StartSwitch, record_property: Callable[[str, object], None]
) -> None:
    async with start_switch(CONFIG) as switch, contextlib.AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(Guest(switch.port_socket(name))) for name in NAMES]
        for name in NAMES:
            await switch.wait_link(name)

        before = cpu_seconds(switch.pid)
        await asyncio.sleep(SECONDS)
        share = (cpu_seconds(switch.pid) - before) / SECONDS
        record_property("idle_cpu_share", share)
        assert share < 0.01

        # The switch wakes up for the first frame after the silence.
        first, last = guests[0], guests[-1]
        frame = last.mac + first.mac + b"\x88\xb5" + bytes(46)
        began = asyncio.get_running_loop().time()
        await first.send(frame)
        assert await last.recv(timeout=10) == frame
        record_property("first_frame_seconds", asyncio.get_running_loop().time() - began)
