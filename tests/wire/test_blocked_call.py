# SPDX-License-Identifier: Apache-2.0
"""A front end whose call descriptor blocks: its own port is broken at once, the others lose nothing.

O_NONBLOCK is a flag of the open file, which both sides share: the front end can clear it whenever it likes, and an
eventfd that holds 0xfffffffffffffffe makes the next blocking write wait for ever (eventfd(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, expect_only, flush_frames, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
FULL = 0xFFFF_FFFF_FFFF_FFFE
REASON = "call descriptor blocks"
PINGS = 400


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    config = {"ports": {"a": {}, "b": {}, "c": {}, "evil": {}}, "datapath": {"workers": request.param}}
    async with running_switch(config) as switch:
        yield switch


def fill(fd: int) -> None:
    """Make the next write to it block, whatever the switch writes meanwhile."""
    while True:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, FULL)
            break
    os.set_blocking(fd, True)


@pytest.mark.parametrize("own", [True, False], ids=["the_guest_s_own", "another_one"])
@pytest.mark.parametrize("ring", [0, 1], ids=["receive", "transmit"])
async def test_a_call_that_blocks_breaks_its_port_only(
    switch: SwitchProcess, stack: Stack, ring: int, own: bool
) -> None:
    a, b, c, evil = [await stack.enter_async_context(Guest(switch.port_socket(port))) for port in (*"abc", "evil")]
    for guest in (a, b):
        await guest.announce()
        await flush_frames([other for other in (a, b) if other is not guest], guest)
    fd = evil.low.vring(ring).call_fd
    asyncio.get_running_loop().remove_reader(fd)
    if not own:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, fd)
        await evil.set_call(ring, fd)
        os.set_blocking(fd, False)
    pings = asyncio.create_task(a.pingpong(b, PINGS, interval=0.005))
    try:
        fill(fd)
        start = time.monotonic()
        while evil.low.arm(ring):  # it wants a call for the next frame: so nothing older may be left
            evil.low.tx_reap()
            evil.recv_nowait()
        sender = c if ring == 0 else evil
        sender.low.tx(frame(b"\xff" * 6, sender.mac))
        sender.low.kick(1)
        await switch.wait_link("evil", "broken", PATIENCE)
        print(f"broken after {time.monotonic() - start:.2f} s")
        assert REASON in (await switch.get("/ports/evil"))["state"]["message"]
        assert [await switch.link(port) for port in "abc"] == ["up"] * 3
        assert not pings.done()
    finally:
        times = await pings
    assert None not in times, f"{times.count(None)} of {len(times)} pings were lost"

    await flush_frames([b], a)
    await expect_only(b, c)
    evil.kill()
    await switch.wait_link("evil", "waiting_for_frontend")
    again = await stack.enter_async_context(Guest(switch.port_socket("evil")))
    await switch.wait_link("evil")
    await expect_only(again, b)
