# SPDX-License-Identifier: Apache-2.0
"""What comes and goes leaves nothing behind: truncated memory, reloads, the end of the switch inside a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from pvswitch.datapath import Datapath
from pvswitch.guest import Guest, GuestError
from pvswitch.model import SwitchConfig
from pvswitch.ports import Ports
from pvswitch.process import SwitchProcess
from tests.wire.lab import PATIENCE, expect, frame, held, until, until_holds

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack


async def ping(a: Guest, b: Guest, number: int) -> None:
    """A frame there and one back, whatever else comes in between."""
    for sender, receiver in ((a, b), (b, a)):
        sent = frame(receiver.mac, sender.mac, seed=number)
        await sender.send(sent)
        while await receiver.recv(PATIENCE) != sent:
            pass


@pytest.mark.parametrize("region", range(3))
async def test_memory_file_truncated_under_traffic(switch: SwitchProcess, stack: Stack, region: int) -> None:
    """Whichever part of its memory goes: this port is broken and names the cause, the others notice nothing."""
    a, b = [await stack.enter_async_context(Guest(switch.port_socket(port))) for port in "ab"]
    victim = Guest(switch.port_socket("c"), regions=3)
    stack.callback(victim.kill)
    await victim.connect()
    await switch.wait_link("c")
    for i in range(64):
        victim.low.tx(frame(b"\xff" * 6, victim.mac, 500, seed=i))
    victim.low.kick(1)
    victim.low.truncate(region)

    async def noticed() -> bool:
        # A flood makes the switch write into every receiver's memory.
        await a.send(frame(b"\xff" * 6, a.mac, 1000))
        os.eventfd_write(kick, 1)
        await ping(a, b, 1)
        return await switch.link("c") == "broken"

    kick = victim.low.vring(1).kick_fd
    await until(noticed, "the port to be broken")
    assert "truncated" in (await switch.get("/ports/c"))["state"]["message"]
    for number in range(100):
        await ping(a, b, number)
    victim.kill()
    await switch.wait_link("c", "waiting_for_frontend")
    c = await stack.enter_async_context(Guest(switch.port_socket("c")))
    await switch.wait_link("c")
    await ping(a, c, 7)


async def test_reloads_leave_nothing(switch: SwitchProcess, stack: Stack) -> None:
    """Ports with guests on them come and go by SIGHUP: sockets, descriptors, maps and threads are as before."""
    original = switch.config_file.read_text()
    names = [f"extra{i}" for i in range(5)]
    wider = json.loads(original)
    wider["ports"] |= {name: {} for name in names}
    wider["bridges"]["br1"] = {}
    for name, port in wider["ports"].items():
        port["bridge"] = "br1" if name in names[:2] else "br0"
    pid = switch.pid
    a = await stack.enter_async_context(Guest(switch.port_socket("a")))
    sockets = sorted(path.name for path in switch.port_socket("a").parent.iterdir())
    before = (0, 0, 0)
    for number in range(4):
        switch.config_file.write_text(json.dumps(wider))
        os.kill(pid, signal.SIGHUP)
        await until_shown(switch, names, True)
        guests = [Guest(switch.port_socket(name)) for name in names]
        for guest in guests:
            stack.callback(guest.kill)
            await guest.connect()
        await ping(guests[0], guests[1], number)
        await ping(a, guests[2], number)
        switch.config_file.write_text(original)
        os.kill(pid, signal.SIGHUP)
        for guest in guests:
            await guest.wait_hang_up()
            guest.kill()
        await until(lambda: not any(switch.port_socket(name).exists() for name in names), "the sockets to go")
        await until_shown(switch, names, False)
        if number == 0:  # what caches keep is there after the first round
            await until(lambda: held(pid)[2] == len(a.low.regions()), "the memory of the guests to be unmapped")
            before = held(pid)
        await until_holds(pid, before)
    assert sorted(path.name for path in switch.port_socket("a").parent.iterdir()) == sockets
    assert a.started
    assert await switch.link("a") == "up"


async def until_shown(switch: SwitchProcess, names: list[str], wanted: bool) -> None:
    """Wait until the API shows all of these ports, or none of them."""

    async def as_wanted() -> bool:
        shown = {port["name"] for port in (await switch.get("/ports"))["items"]}
        return set(names) <= shown if wanted else not set(names) & shown

    await until(as_wanted, f"the ports to {'come' if wanted else 'go'}")


async def test_closing_with_guests_connected_leaves_no_socket_thread_or_descriptor(tmp_path: Path) -> None:
    config = SwitchConfig.model_validate({"runtime_dir": str(tmp_path), "ports": {"a": {}, "b": {}}})
    (tmp_path / "ports").mkdir()

    async def live() -> None:
        datapath = Datapath()
        datapath.start()
        ports = Ports(datapath)
        ports.start()
        prepared = await ports.prepare(config)
        await ports.commit(prepared)
        await ports.retire(prepared)
        a, b = (Guest(config.port_socket(name)) for name in "ab")
        for guest in (a, b):
            await guest.connect()
        sent = frame(b.mac, a.mac)
        await a.send(sent)
        await expect(b, [sent])
        await ports.close()
        datapath.close()
        with pytest.raises(GuestError, match="hung up"):
            await a.set_enabled(True)
        a.kill()
        b.kill()

    await live()
    tasks, before = asyncio.all_tasks(), held(os.getpid())
    await live()
    assert held(os.getpid()) == before
    assert asyncio.all_tasks() == tasks
    assert not list((tmp_path / "ports").iterdir())
