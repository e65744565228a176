# SPDX-License-Identifier: Apache-2.0
"""A front end that is killed (-9) again and again: traffic comes back each time, and the switch keeps nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import StartSwitch, from_environment
from tests.system.footprint import Footprint, footprint

pytestmark = pytest.mark.timeout(600)

CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"victim": {}, "partner": {}}}
KILLS = from_environment("PVSWITCH_TEST_KILLS", 20)
# The first rounds fill caches (allocator, imports) of the switch; after them nothing may grow any more.
WARM_UP = 3
MAC = bytes.fromhex("020000000001")
# Sends each frame back to where it came from, until killed.
ECHO = """
import asyncio, sys
from pvswitch.guest import Guest

async def main():
    async with Guest(sys.argv[1], mac=bytes.fromhex(sys.argv[2])) as guest:
        print("started", flush=True)
        while True:
            frame = await guest.recv(timeout=3600)
            await guest.send(frame[6:12] + guest.mac + frame[12:])

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def echo_process(socket: str) -> AsyncIterator[None]:
    """A front end in a process of its own, killed at the end of the body."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-c", ECHO, socket, MAC.hex()),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"started\n"
        yield
    finally:
        process.kill()
        await process.communicate()


async def exchange(partner: Guest, number: int) -> None:
    """Send a frame to the victim and see it come back."""
    payload = number.to_bytes(4) * 12
    await partner.send(MAC + partner.mac + b"\x88\xb5" + payload)
    assert await partner.recv(timeout=10) == partner.mac + MAC + b"\x88\xb5" + payload


async def one_round(switch: SwitchProcess, partner: Guest, number: int) -> Footprint:
    """Start the victim, talk to it, kill it; return what the switch holds when it has noticed."""
    async with echo_process(str(switch.port_socket("victim"))):
        await switch.wait_link("victim")
        await exchange(partner, number)
    await switch.wait_link("victim", "waiting_for_frontend")
    return footprint(switch.pid)


async def test_kills_leave_nothing_behind(start_switch: StartSwitch) -> None:
    async with start_switch(CONFIG) as switch, Guest(switch.port_socket("partner")) as partner:
        await switch.wait_link("partner")
        for number in range(WARM_UP):
            before = await one_round(switch, partner, number)
        for number in range(KILLS):
            after = await one_round(switch, partner, number)
        assert after == before
        assert after.guest_maps == len(partner.low.regions())
