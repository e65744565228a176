# SPDX-License-Identifier: Apache-2.0
"""What passes of a load that is far above a limit: storm control, policing and shaping, all at once on one switch.

Each limit has a bridge of its own, with guests that send several times as much as may pass. The switch's counters are
read once a second, and between two looks so much passed in so much time. The median of these seconds is the rate: a
second in which this machine gave no turn to the senders, or none to the switch, is one of many. The loads are small
(large frames, few of them), and a limit's burst is over before the first look.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import pytest

from pvswitch.driver import RingFull
from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import from_environment, running_switch
from tests.wire.lab import frame, stats, until

SECONDS = from_environment("PVSWITCH_TEST_RATE_SECONDS", 10)
"""Looks at each rate, a second apart."""
AGAIN = max(3, SECONDS // 3)
"""The same, after a rate was changed."""
TOLERANCE = 0.05
EXCESS = 3.0
"""How much is sent, of what may pass. A second in which only half of that came counts for nothing."""
LENGTH = 9000
BROADCAST, GROUP, NOBODY = b"\xff" * 6, bytes.fromhex("01005e000001"), bytes.fromhex("02000000ffff")
DESTINATIONS = {"broadcast": BROADCAST, "multicast": GROUP, "unknown": NOBODY}
STORM_PPS = 300
OTHERS_PPS = 50
"""Of each class that has no limit."""


class Look(NamedTuple):
    """Counters, and when they were read."""

    time: float
    passed: int
    offered: int


@dataclass
class Limit:
    """A limit and what it is tried with: `rate` and `after` (once changed) in bytes or frames a second.

    `port` has it, `senders` send; `stream` are (destination, bytes, how many of `rate`) in turn.
    """

    name: str
    port: str
    senders: Sequence[str]
    receiver: str
    reason: str
    keys: dict[str, Any]
    rate: float
    changed: dict[str, Any]
    after: float
    looks: list[Look] = field(default_factory=list)

    @property
    def storm(self) -> str | None:
        """The class of frames that it is about, if it is a storm control."""
        return self.name if self.reason == "storm_control" else None

    @property
    def bytes_each(self) -> int:
        """How much a frame counts."""
        return 1 if self.storm else LENGTH

    @property
    def ports(self) -> dict[str, dict[str, Any]]:
        """Its ports, on a bridge of their own."""
        names = {*self.senders, self.receiver}
        return {name: {"bridge": self.name, **(self.keys if name == self.port else {})} for name in sorted(names)}

    async def look(self, switch: SwitchProcess) -> Look:
        """Read what has come and what has passed since the beginning, in the limit's unit."""
        before = time.monotonic()
        seen = await stats(switch, self.port)
        now = (before + time.monotonic()) / 2
        if self.reason == "shaped":
            dropped = seen["tx_drops"].get("shaped", 0)
            passed = seen["tx_packets"] + seen["tx_drops"].get("guest_rx_full", 0)
            return Look(now, passed * LENGTH, (passed + dropped) * LENGTH)
        came = seen["rx_packets"]
        if self.storm:
            groups = {key: seen[f"rx_{key}_packets"] for key in ("broadcast", "multicast")}
            came = {**groups, "unknown": came - sum(groups.values())}[self.storm]
        return Look(now, (came - seen["rx_drops"].get(self.reason, 0)) * self.bytes_each, came * self.bytes_each)

    def check(self, rate: float) -> None:
        """The looks so far agree with this rate."""
        pairs = list(itertools.pairwise(self.looks))
        times = [after.time - before.time for before, after in pairs]
        offered = [(after.offered - before.offered) / t for (before, after), t in zip(pairs, times, strict=True)]
        passed = [(after.passed - before.passed) / t for (before, after), t in zip(pairs, times, strict=True)]
        usable = [p for p, o in zip(passed, offered, strict=True) if o > EXCESS / 2 * rate]
        if len(usable) < (len(pairs) + 1) // 2:
            pytest.skip(f"{self.name}: this machine sent enough in {len(usable)} of {len(pairs)} seconds only")
        found = median(usable)
        assert abs(found / rate - 1) <= TOLERANCE, f"{self.name}: {found:.0f} for {rate:.0f}, of {sorted(passed)}"


def storm(kind: str) -> Limit:
    return Limit(
        name=kind,
        port=f"{kind}-in",
        senders=[f"{kind}-in"],
        receiver=f"{kind}-out",
        reason="storm_control",
        keys={"storm_control": {f"{kind}_pps": STORM_PPS}},
        rate=STORM_PPS,
        changed={"storm_control": {f"{kind}_pps": 2 * STORM_PPS}},
        after=2 * STORM_PPS,
    )


def policing(mbps: int, after: int) -> Limit:
    name = f"policing{mbps}"
    return Limit(
        name=name,
        port=f"{name}-in",
        senders=[f"{name}-in"],
        receiver=f"{name}-out",
        reason="policed",
        keys={"policing": {"rate_kbps": mbps * 1000, "burst_bytes": 500_000}},
        rate=mbps * 125_000,
        changed={"policing": {"rate_kbps": after * 1000}},
        after=after * 125_000,
    )


def shaping(mbps: int, after: int) -> Limit:
    """Two guests send to the one whose port is shaped: by two workers, if there are two."""
    name = f"shaping{mbps}"
    return Limit(
        name=name,
        port=f"{name}-out",
        senders=[f"{name}-in1", f"{name}-in2"],
        receiver=f"{name}-out",
        reason="shaped",
        keys={"shaping": {"rate_kbps": mbps * 1000}},
        rate=mbps * 125_000,
        changed={"shaping": {"rate_kbps": after * 1000}},
        after=after * 125_000,
    )


def limits() -> list[Limit]:
    return [
        *(storm(kind) for kind in DESTINATIONS),
        policing(5, after=20),
        policing(50, after=25),
        shaping(5, after=10),
        shaping(50, after=20),
    ]


class Stream:
    """Frames at a pace, from both queue pairs of a guest in turn."""

    def __init__(self, guest: Guest, data: bytes, pps: float) -> None:
        self._guest, self._data, self._pps = guest, data, pps
        self._due = time.monotonic()
        self._sent = 0

    def tick(self) -> None:
        """Send what is due; what finds the ring full, or is overdue for long, is not sent."""
        now, low = time.monotonic(), self._guest.low
        self._due = max(self._due, now - 0.1)
        while self._due <= now:
            self._due += 1 / self._pps
            self._sent += 1
            pair = self._sent % self._guest.pairs
            low.tx_reap(pair)
            with contextlib.suppress(RingFull):
                low.tx(self._data, pair=pair)
        for pair in range(self._guest.pairs):
            low.kick(2 * pair + 1)


def streams(limit: Limit, guests: dict[str, Guest]) -> list[Stream]:
    """What its guests send: enough for both of its rates."""
    most = max(limit.rate, limit.after) / limit.bytes_each * EXCESS / len(limit.senders)
    found = []
    for name in limit.senders:
        guest = guests[name]
        if limit.storm:
            for kind, dst in DESTINATIONS.items():
                found.append(Stream(guest, frame(dst, guest.mac), most if kind == limit.storm else OTHERS_PPS))
        else:
            found.append(Stream(guest, frame(guests[limit.receiver].mac, guest.mac, LENGTH), most))
    return found


@contextlib.asynccontextmanager
async def load(found: list[Limit], guests: dict[str, Guest]) -> AsyncIterator[None]:
    """All guests send, and those who receive take what there is."""
    sending = [stream for limit in found for stream in streams(limit, guests)]
    over = asyncio.Event()

    async def run() -> None:
        while not over.is_set():
            for stream in sending:
                stream.tick()
            for guest in guests.values():
                for _ in range(200):
                    if guest.recv_nowait() is None:
                        break
            await asyncio.sleep(0.004)

    running = asyncio.create_task(run())
    try:
        yield
        assert not running.done()
    finally:
        over.set()
        await running


async def measure(switch: SwitchProcess, found: list[Limit], seconds: int) -> None:
    """Look at all limits once a second; the first time when each of them drops what is too much."""

    for limit in found:
        first = await limit.look(switch)

        async def at_its_limit(limit: Limit = limit, first: Look = first) -> bool:
            now = await limit.look(switch)
            return now.offered - first.offered > now.passed - first.passed + limit.bytes_each

        await until(at_its_limit, f"{limit.name} to drop something")
    await asyncio.sleep(0.5)
    for limit in found:
        limit.looks.clear()
    start = time.monotonic()
    for i in range(seconds + 1):
        await asyncio.sleep(max(0.0, start + i - time.monotonic()))
        for limit in found:
            limit.looks.append(await limit.look(switch))


@pytest.mark.parametrize("workers", [1, 2])
async def test_rates(workers: int) -> None:
    """As configured, then as changed under the same load; and everything is counted where it was dropped."""
    found = limits()
    config: dict[str, Any] = {
        "bridges": {limit.name: {} for limit in found},
        "ports": {name: keys for limit in found for name, keys in limit.ports.items()},
        "datapath": {"workers": workers},
    }
    async with running_switch(config) as switch, contextlib.AsyncExitStack() as stack:
        guests = {
            name: await stack.enter_async_context(
                Guest(switch.port_socket(name), tx_buf_size=LENGTH + 12, queue_size=1024, queue_pairs=2)
            )
            for name in config["ports"]
        }
        for limit in found:
            if not limit.storm:
                await guests[limit.receiver].announce()
        async with load(found, guests):
            await measure(switch, found, SECONDS)
            for limit in found:
                limit.check(limit.rate)
            for limit in found:
                status, answer = await switch.request("PATCH", f"/api/v1/ports/{limit.port}", limit.changed)
                assert status == 200, answer
            await measure(switch, found, AGAIN)
            for limit in found:
                limit.check(limit.after)
        for guest in guests.values():
            await guest.drain()
        for limit in found:
            await counted(switch, limit)


async def counted(switch: SwitchProcess, limit: Limit) -> None:
    """Everything that was sent has passed, or was dropped for the one reason at the one port."""
    sent = [await stats(switch, name) for name in limit.senders]
    came = sum(seen["rx_packets"] - seen["rx_dropped"] for seen in sent)
    for name, seen in zip(limit.senders, sent, strict=True):
        assert set(seen["rx_drops"]) == ({limit.reason} if name == limit.port else set()), name

    async def all_there() -> bool:
        seen = await stats(switch, limit.receiver)
        assert set(seen["tx_drops"]) <= {"guest_rx_full", *(["shaped"] if limit.receiver == limit.port else [])}
        return bool(seen["tx_packets"] + seen["tx_dropped"] == came)

    await until(all_there, f"what passed for {limit.name} to be counted at its receiver")
