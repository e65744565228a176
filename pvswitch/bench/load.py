# SPDX-License-Identifier: Apache-2.0
"""The process that plays all guests of a measurement: our C driver on real vhost-user sockets.

It runs as `python -m pvswitch.bench.load CPU`, pinned to that processor, for `generator`: one JSON request a line on
its standard input, one JSON answer a line on its standard output, and it ends when its input does. While frames flow
nothing else runs in it. This is the only module of the benchmarks that knows the driver's options.

Guest i has the MACs 02:ii:00:00:00:00 and up, as many as a request says. Guests send in pairs, 0 to 1, 2 to 3 and so
on, or all that 0 sends is for everybody else.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from pvswitch.driver import DriverError
from pvswitch.errors import PvswitchError
from pvswitch.generator import Load, LoadFlow, LoadResult, generate, generate_many, pingpong
from pvswitch.guest import Guest

BROADCAST = b"\xff" * 6
COUNTED = ("sent", "received", "lost", "reordered", "corrupted", "foreign", "errors", "measured", "measured_ns")
CONNECT_SECONDS = 30.0
# While a switch is still getting ready, little patience with a frame.
_PRIMING: dict[str, Any] = {"window": 32, "stall": 0.05}


class Flow(NamedTuple):
    """Who sends to whom, by number."""

    sender: int
    receivers: tuple[int, ...]


def mac(guest: int) -> bytes:
    """Return the first address of a guest."""
    return bytes((2, guest, 0, 0, 0, 0))


def flows(active: int, *, flood: bool) -> list[Flow]:
    """Return who sends to whom."""
    if flood:
        return [Flow(0, tuple(range(1, active)))]
    return [Flow(number, (number + 1,)) for number in range(0, active, 2)]


class Player:
    """The guests, and what can be asked of them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        """There are no guests yet; those to come belong to `stack`."""
        self._stack = stack
        self._guests: list[Guest] = []

    async def answer(self, request: dict[str, Any]) -> Any:
        """Do what a request says; its `call` names the method."""
        call = request.pop("call")
        if call == "connect":
            return await self.connect(**request)
        calls: dict[str, Callable[..., Any]] = {
            "prime": self.prime,
            "run": self.run,
            "round_trips": self.round_trips,
        }
        return calls[call](**request)

    async def connect(
        self,
        sockets: Sequence[str],
        features: int,
        queue_size: int,
        rx_buffer: int,
        tx_buffer: int,
        shuffle: bool,
        listen: bool,
    ) -> list[int]:
        """Bring up a guest on every socket; return the features that each has.

        DPDK leaves num_buffers unwritten where buffers aren't merged; it isn't measured how right a switch is.
        """
        for number, path in enumerate(sockets):
            guest = Guest(
                path,
                mac=mac(number),
                features=features,
                queue_size=queue_size,
                rx_buf_size=rx_buffer,
                tx_buf_size=tx_buffer,
                shuffle=shuffle,
                preset=True,
                timeout=CONNECT_SECONDS,
            )
            self._guests.append(guest)
            self._stack.push_async_callback(guest.close)
            if listen:
                guest.listen()
        for guest in self._guests:
            await guest.connect()
        return [guest.features for guest in self._guests]

    def prime(self, active: int, macs: int, flood: bool, size: int, gso_size: int, watchers: int) -> dict[str, int]:
        """Let every receiver send from each of its addresses, and every sender send to each; return what went wrong.

        The last `watchers` guests of a flood are never heard, and send nothing.
        A switch that isn't ready may leave frames where they are: they count as lost.
        """
        found = []
        for flow in flows(active, flood=flood):
            for receiver in flow.receivers[: len(flow.receivers) - watchers]:
                back = Load(dst=mac(flow.sender), src=mac(receiver), n_src=macs, frames=macs, **_PRIMING)
                found.append(self._try(receiver, (flow.sender,), back))
            there = _load(macs=macs, flood=flood, size=size, gso_size=gso_size, frames=macs, **_PRIMING)
            found.append(self._try(flow.sender, flow.receivers, replace(there, **_macs(flow, flood=flood))))
        return {"lost": sum(lost for lost, _ in found), "errors": sum(errors for _, errors in found)}

    def run(self, active: int, flood: bool, **traffic: Any) -> dict[str, Any]:
        """Let all flows run for a time; return what became of their frames, all together."""
        ways = flows(active, flood=flood)
        load = _load(flood=flood, **traffic)
        if len(ways) == 1:
            (flow,) = ways
            found = self._send(flow.sender, flow.receivers, replace(load, **_macs(flow, flood=flood)))
        else:
            drivers = [guest.low for guest in self._guests]
            many = [LoadFlow(drivers[way.sender], drivers[way.receivers[0]], **_macs(way, flood=False)) for way in ways]
            found = generate_many(many, load)
        counted = {name: getattr(found, name) for name in COUNTED}
        latencies = {"p50_ns": found.latency_ns(0.5), "p99_ns": found.latency_ns(0.99)}
        return {**counted, **latencies, "copies": active - 1 if flood else 1}

    def round_trips(self, count: int) -> list[int | None]:
        """Return the times in ns of so many frames from the first guest to the last and back; None for a loss."""
        first, last = self._guests[0], self._guests[-1]
        return pingpong(first.low, last.low, Load(dst=last.mac, src=first.mac, stall=1.0), count)

    def _send(self, sender: int, receivers: Sequence[int], load: Load) -> LoadResult:
        return generate(self._guests[sender].low, [self._guests[number].low for number in receivers], load)

    def _try(self, sender: int, receivers: Sequence[int], load: Load) -> tuple[int, int]:
        """Send; return how many frames were lost, and how often the switch broke the virtio protocol.

        When it doesn't even take those from before, that is one frame lost.
        """
        try:
            result = self._send(sender, receivers, load)
        except DriverError as error:
            if error.errno != errno.EBUSY:
                raise
            return 1, 0
        return result.lost, result.errors


def _macs(flow: Flow, *, flood: bool) -> dict[str, Any]:
    return {"dst": BROADCAST if flood else mac(flow.receivers[0]), "src": mac(flow.sender)}


def _load(*, macs: int, size: int, gso_size: int, tuples: int = 0, **rest: Any) -> Load:
    return Load(n_dst=macs, n_tuples=tuples, len=size, gso=gso_size > 0, gso_size=gso_size, **rest)


async def serve() -> None:
    """Answer requests until there are no more."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        player = Player(stack)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                reply = {"answer": await player.answer(json.loads(line))}
            except (PvswitchError, OSError, TimeoutError) as error:
                reply = {"error": str(error) or type(error).__name__}
            print(json.dumps(reply), flush=True)


def main() -> int:
    """Pin this process and serve; return the exit status."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
