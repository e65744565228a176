# SPDX-License-Identifier: Apache-2.0
"""A pvswitch somebody looks on at: readers of captures, and of the flight recorder, while frames flow.

Readers run in this process, and only between `begin` and `spent`: in between, the processors are looked at, and must
not be busy. All that isn't the poll thread is kept off its processor, so that cycles are those of its own work; what a
reader does is taken from the generator. What was seen is checked: a capture that is read by somebody fast enough loses
nothing, one that isn't read counts what it loses, and the recorder has a record of each drop that was counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from pvswitch.bench.errors import BenchError
from pvswitch.bench.rules import FIRST_PORT
from pvswitch.bench.switches import Running, Spent, Wanted, pvswitch_config, pvswitch_running
from pvswitch.bench.work import Watched
from pvswitch.process import SwitchProcess

READS_PER_SECOND = 10
FILTERS = {"some": f"udp dst port {FIRST_PORT}", "all": "", "unread": ""}
SETTLE_SECONDS = 10.0


class Watch:
    """The switch and its reader."""

    client = False
    beside: Sequence[int] = ()

    def __init__(self, switch: SwitchProcess, running: Running, watcher: str) -> None:
        """Nothing is read yet."""
        self._switch = switch
        self._running = running
        self._watcher = watcher
        self._capture = ""
        self._stream: aiohttp.ClientResponse | None = None
        self._reader: asyncio.Task[None] | None = None
        self._next_read = 0.0
        self._reads = self._bytes = 0
        self.seen: dict[str, float] = {}
        self.sockets = running.sockets

    @property
    def pid(self) -> int:
        """The process that forwards."""
        return self._switch.pid

    async def addresses(self) -> int | None:
        """How many addresses it has learned."""
        return await self._running.addresses()

    async def watch(self, stack: AsyncExitStack) -> None:
        """Begin the capture, if there is to be one; it ends with `stack`."""
        if self._watcher not in FILTERS:
            return
        status, made = await self._switch.request("POST", "/api/v1/captures", {"filter": FILTERS[self._watcher]})
        if status != 201:
            raise BenchError(f"a capture was refused with {status}: {made}")
        self._capture = made["id"]
        connector = aiohttp.UnixConnector(str(self._switch.api))
        timeout = aiohttp.ClientTimeout(total=None)
        session = await stack.enter_async_context(
            aiohttp.ClientSession("http://switch", connector=connector, timeout=timeout)
        )
        self._stream = await session.get(f"/api/v1/captures/{self._capture}/stream")
        stack.callback(self._stream.close)

    async def begin(self) -> None:
        """Begin to count, and to read."""
        if self._watcher == "drops":
            self._reader = asyncio.create_task(self._read_drops())
        elif self._watcher in ("some", "all"):
            self._reader = asyncio.create_task(self._read_stream())
        await self._running.begin()

    async def spent(self) -> Spent:
        """What the poll thread has spent since then; nobody reads any more."""
        spent = await self._running.spent()
        assert spent is not None
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        return spent

    async def _read_drops(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._next_read - time.monotonic()))
            self._next_read = time.monotonic() + 1 / READS_PER_SECOND
            await self._switch.get("/drops")
            self._reads += 1

    async def _read_stream(self) -> None:
        assert self._stream is not None
        async for chunk in self._stream.content.iter_any():
            self._bytes += len(chunk)

    async def faults(self) -> list[str]:
        """Return what is wrong with what was seen, as sentences; `seen` has the numbers."""
        if self._capture:
            return await self._capture_faults()
        drops = await self._drops()
        records: list[dict[str, Any]] = (await self._switch.get("/drops?limit=1"))["items"]
        recorded = int(records[0]["name"].rpartition("-")[2]) + 1 if records else 0
        self.seen = {"drops": drops, "records": recorded, "reads": self._reads}
        if recorded != drops:
            return [f"{drops:,} drops were counted and {recorded:,} recorded"]
        return []

    async def _capture_faults(self) -> list[str]:
        info = await self._switch.get(f"/captures/{self._capture}")
        self.seen = {"captured": info["packets"], "capture_lost": info["lost"], "read_bytes": self._bytes}
        if self._watcher == "some" and (info["lost"] or not self._bytes):
            return [f"a capture that was read has {info['packets']:,} frames, and lost {info['lost']:,}"]
        if self._watcher == "unread" and not info["lost"]:
            return ["a capture that nobody reads has counted no loss"]
        return []

    async def _drops(self) -> int:
        ports = (await self._switch.get("/ports?limit=1000"))["items"]
        stats = [await self._switch.get(f"/ports/{port['name']}/stats") for port in ports]
        return sum(each["rx_dropped"] + each["tx_dropped"] for each in stats)


def keep_off(pid: int, cpu: int) -> None:
    """Take all threads of a process off a processor, but those that are pinned to it."""
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        with contextlib.suppress(OSError):  # one that has ended meanwhile
            rest = os.sched_getaffinity(int(task.name)) - {cpu}
            if rest:
                os.sched_setaffinity(int(task.name), rest)


def start(work: Watched) -> Callable[[Wanted], AbstractAsyncContextManager[Watch]]:
    """Return what starts a switch with its flows, and who looks on."""

    @asynccontextmanager
    async def started(wanted: Wanted) -> AsyncIterator[Watch]:
        config = pvswitch_config(wanted)
        config["bridges"]["br0"]["flows"] = {f"f{number}": flow for number, flow in enumerate(work.flows)}
        allowed = os.sched_getaffinity(0)
        async with AsyncExitStack() as stack:
            switch = await stack.enter_async_context(SwitchProcess(config))
            for pid in (switch.pid, os.getpid()):
                keep_off(pid, wanted.cpu or 0)
            stack.callback(os.sched_setaffinity, 0, allowed)
            watch = Watch(switch, pvswitch_running(switch, wanted.names), work.watcher)
            await watch.watch(stack)
            yield watch

    return started
