# SPDX-License-Identifier: Apache-2.0
"""Idle costs nothing: many connected guests with started rings, no traffic, and a switch that sleeps.

What is asserted is how often its threads run at all, which no other load of the machine changes; the share of a
processor that this takes is a measurement (`pvswitch bench --cases idle-cpu`).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from pvswitch.guest import Guest
from tests.system.conftest import StartSwitch, from_environment

pytestmark = pytest.mark.timeout(300)

GUESTS = 64
SECONDS = from_environment("PVSWITCH_TEST_IDLE_SECONDS", 10)
LOOP_WAKE_UPS = 10  # per second, of the thread that serves sockets: its housekeeping
NAMES = [f"vm{number}" for number in range(GUESTS)]
CONFIG: dict[str, Any] = {
    "datapath": {"polling": "adaptive"},
    "bridges": {"br0": {}},
    "ports": {name: {} for name in NAMES},
}


def threads(pid: int) -> dict[str, tuple[int, int]]:
    """Return, per thread of the process, how often it went to sleep and the nanoseconds for which it ran (proc(5))."""
    found = {}
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        slept = next(line for line in (task / "status").read_text().splitlines() if line.startswith("voluntary"))
        ran = (task / "schedstat").read_text().split()[0]
        found[f"{(task / 'comm').read_text().strip()}/{task.name}"] = (int(slept.split()[1]), int(ran))
    return found


async def test_idle_switch_sleeps(start_switch: StartSwitch) -> None:
    async with start_switch(CONFIG) as switch, contextlib.AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(Guest(switch.port_socket(name))) for name in NAMES]
        for name in NAMES:
            await switch.wait_link(name)

        await asyncio.sleep(1)  # what the last connection brought is done
        before = threads(switch.pid)
        await asyncio.sleep(SECONDS)
        after = threads(switch.pid)
        assert after.keys() == before.keys()
        workers = [name for name in after if name.startswith("pvs-worker")]
        assert workers
        for name in workers:
            assert after[name] == before[name], f"{name} ran although nothing was to be done"
        wake_ups = sum(after[name][0] - before[name][0] for name in after)
        assert wake_ups <= LOOP_WAKE_UPS * SECONDS

        # The switch wakes up for the first frame after the silence.
        first, last = guests[0], guests[-1]
        frame = last.mac + first.mac + b"\x88\xb5" + bytes(46)
        await first.send(frame)
        assert await last.recv(timeout=10) == frame
