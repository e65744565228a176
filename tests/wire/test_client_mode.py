# SPDX-License-Identifier: Apache-2.0
"""Ports that connect to their guests (mode `client`): guests that come late, hang up, come back; the switch too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, expect, expect_only, flush_frames, frame, held, stats, until_holds

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def setup(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[SwitchProcess, Path]]:
    """A switch whose ports x and y connect to sockets in a folder of the test's."""
    folder = tmp_path_factory.mktemp("guests")
    async with running_switch(config(folder, request.param)) as switch:
        yield switch, folder


def config(folder: Path, workers: int) -> dict[str, Any]:
    clients = {name: {"mode": "client", "socket": str(folder / f"{name}.sock")} for name in "xy"}
    return {"ports": {"a": {}, "b": {}, "c": {}, **clients}, "datapath": {"workers": workers}}


async def listening(stack: Stack, folder: Path, port: str) -> Guest:
    """A guest that the switch has found."""
    guest = Guest(folder / f"{port}.sock")
    stack.push_async_callback(guest.close)
    guest.listen()
    await guest.connect()
    return guest


async def exchange(one: Guest, other: Guest, number: int = 0) -> None:
    """A frame each way."""
    for sender, receiver in ((one, other), (other, one)):
        sent = frame(receiver.mac, sender.mac, seed=number)
        await sender.send(sent)
        while await receiver.recv(PATIENCE) != sent:
            pass


class Undisturbed:
    """Two guests that ping each other all the time; leaving the block tells whether a frame was lost."""

    def __init__(self, a: Guest, b: Guest) -> None:
        self.guests = a, b
        self.count = 0
        self._done = asyncio.Event()

    async def __aenter__(self) -> Undisturbed:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        await self._task
        assert self.count > 0

    async def _run(self) -> None:
        while not self._done.is_set():
            await exchange(*self.guests, self.count)
            self.count += 1
            await asyncio.sleep(0.001)


async def known(a: Guest, b: Guest) -> None:
    for one, other in ((a, b), (b, a)):
        await one.announce()
        await flush_frames([other], one)


async def test_a_guest_that_listens_late_hangs_up_and_comes_back(
    setup: tuple[SwitchProcess, Path], stack: Stack
) -> None:
    """Its link follows, its rings go on where they were, and the other ports notice nothing."""
    switch, folder = setup
    a, b, c = [await stack.enter_async_context(Guest(switch.port_socket(port))) for port in "abc"]
    await known(a, b)
    state = (await switch.get("/ports/x"))["state"]
    assert (state["link"], state["reason"]) == ("down", "waiting_for_frontend")
    assert not (folder / "x.sock").exists(), "the switch made a file that isn't its own to make"
    async with Undisturbed(a, b):
        x = await listening(stack, folder, "x")
        await switch.wait_link("x")
        await exchange(x, c)
        before = None
        for number in range(4):
            await x.reconnect()
            await switch.wait_link("x")
            await exchange(x, c, number)
            if number == 1:
                before = held(switch.pid)
        assert before is not None
        await until_holds(switch.pid, before)
        await x.restart()
        await switch.wait_link("x")
        await exchange(x, c)
    for port in "ab":
        assert (await stats(switch, port))["tx_dropped"] == 0
    await x.close()
    await switch.wait_link("x", "waiting_for_frontend")


async def test_two_listening_guests_talk(setup: tuple[SwitchProcess, Path], stack: Stack) -> None:
    switch, folder = setup
    x, y = [await listening(stack, folder, port) for port in "xy"]
    for port in "xy":
        await switch.wait_link(port)
    await exchange(x, y)
    await expect_only(y, x)


async def test_a_guest_that_dies_and_one_in_its_place(setup: tuple[SwitchProcess, Path], stack: Stack) -> None:
    """A stale socket file, and one who hangs up without a word, are nothing but waits."""
    switch, folder = setup
    a = await stack.enter_async_context(Guest(switch.port_socket("a")))
    (folder / "x.sock").touch()
    for _ in range(3):
        x = await listening(stack, folder, "x")
        await switch.wait_link("x")
        await exchange(x, a)
        x.kill()
    rude = await asyncio.start_unix_server(lambda _, writer: writer.close(), folder / "x.sock")
    await asyncio.sleep(0.5)
    rude.close()
    await rude.wait_closed()
    x = await listening(stack, folder, "x")
    await exchange(x, a)


async def test_changes_drop_only_their_port(setup: tuple[SwitchProcess, Path], stack: Stack) -> None:
    """A change that needs a new connection: the switch hangs up and connects again by itself."""
    switch, folder = setup
    a, b = [await stack.enter_async_context(Guest(switch.port_socket(port))) for port in "ab"]
    await known(a, b)
    x, y = [await listening(stack, folder, port) for port in "xy"]
    async with Undisturbed(a, b):
        for queues in (1, 4, 8):
            await switch.cli("port", "set", "x", f"queues={queues}")
            await x.wait_hang_up()
            await x.reconnect()
            assert x.max_pairs == queues
            await switch.wait_link("x")
            await exchange(x, y, queues)
        await switch.cli("port", "set", "x", "enabled=false")
        await switch.wait_link("x", "admin_down")
        await switch.cli("port", "set", "x", "enabled=true")
        await switch.wait_link("x")
        await exchange(x, y)
    assert y.started


async def test_a_switch_that_is_killed_comes_back_to_its_guests(tmp_path: Path, stack: Stack) -> None:
    """Guests of both modes keep their memory and rings over kill -9; every frame sent afterwards arrives."""
    async with SwitchProcess(config(tmp_path, 2)) as switch:
        x = Guest(tmp_path / "x.sock")
        stack.push_async_callback(x.close)
        x.listen()
        connecting = asyncio.create_task(x.connect())
        a = await stack.enter_async_context(Guest(switch.port_socket("a")))
        await connecting
        await known(a, x)
        await exchange(a, x)
        for number in range(3):
            await switch.kill()
            await a.wait_hang_up()
            await x.wait_hang_up()
            waiting = frame(a.mac, x.mac, 300, seed=number)
            x.low.tx(waiting)  # while there is no switch
            await switch.start()
            for guest, port in ((a, "a"), (x, "x")):
                await guest.reconnect()
                await switch.wait_link(port)
            while await a.recv(PATIENCE) != waiting:
                pass
            await exchange(a, x, number)
            await x.drain()
            assert x.low.counters(1).errors == a.low.counters(1).errors == 0
        sent = [frame(x.mac, a.mac, seed=i) for i in range(50)]
        for one in sent:
            await a.send(one)
        await expect(x, sent)
