# SPDX-License-Identifier: Apache-2.0
"""Events of a running switch: what guests and clients do is told to who listens, and the end of the switch ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, frame

CONFIG = {"bridges": {"br0": {"aging_time": 1}}, "ports": {"a": {}, "b": {}}}
BROADCAST = b"\xff" * 6


class Stream:
    """The events of one switch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._lines = response.content
        self._others: list[dict[str, Any]] = []  # that came while another was expected

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event like this one that was not expected yet."""
        wanted = {"type": kind, **fields}.items()
        for event in self._others:
            if all(item in event.items() for item in wanted):
                self._others.remove(event)
                return event
        async with asyncio.timeout(PATIENCE):
            while line := await self._lines.readline():
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if all(item in event.items() for item in wanted):
                    return event
                self._others.append(event)
        raise AssertionError(f"the stream ended before {kind} {fields}; it told {self._others}")

    async def end(self) -> None:
        """Wait until the switch has ended the stream."""
        async with asyncio.timeout(PATIENCE):
            while await self._lines.readline():
                pass


@asynccontextmanager
async def events(switch: SwitchProcess, query: str = "") -> AsyncIterator[Stream]:
    connector = aiohttp.UnixConnector(str(switch.api))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(f"http://switch/api/v1/events{query}") as response,
    ):
        assert response.status == 200
        yield Stream(response)


async def test_what_guests_do_is_told() -> None:
    async with running_switch(CONFIG) as switch, events(switch) as stream, contextlib.AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(Guest(switch.port_socket(name))) for name in "ab"]
        await stream.expect("link", port="a", link="up", bridge="br0")
        await stream.expect("link", port="b", link="up")
        mac = a.mac.hex(":")
        await a.send(frame(BROADCAST, a.mac))
        await stream.expect("learned", port="a", mac=mac, vid=0, bridge="br0", suppressed=0)
        await b.send(frame(BROADCAST, a.mac))
        await stream.expect("moved", port="b", old_port="a", mac=mac)
        await stream.expect("aged", port="b", mac=mac, bridge="br0")
        await switch.request("PATCH", "/api/v1/ports/b", {"enabled": False})
        changed = await stream.expect("config", revision=2)
        assert [change["keys"] for change in changed["changes"]] == [["enabled"]]
        a.low.raw_post(1, 60000)  # a head beyond the ring
        a.low.kick(1, force=True)
        await stream.expect("broken", port="a")
        down = await stream.expect("link", port="a", link="down", reason="broken")
        assert "restart the VM" in down["message"]


async def test_a_flood_of_addresses_is_counted_not_told() -> None:
    async with (
        running_switch(CONFIG) as switch,
        events(switch, "?types=learned") as stream,
        contextlib.AsyncExitStack() as stack,
    ):
        a = await stack.enter_async_context(Guest(switch.port_socket("a")))
        await switch.wait_link("a")
        for i in range(2000):
            await a.send(frame(BROADCAST, b"\x02\x00\x00\x00" + i.to_bytes(2, "big")))
        told = suppressed = 0
        while not suppressed:
            event = await stream.expect("learned", port="a")
            told, suppressed = told + 1, event["suppressed"]
        assert told < 1000
        assert told + suppressed <= 2000


async def test_the_end_of_the_switch_ends_the_streams() -> None:
    async with running_switch(CONFIG) as switch, events(switch) as one, events(switch, "?types=link") as two:
        assert await switch.stop() == 0
        await one.end()
        await two.end()
        await switch.start()
