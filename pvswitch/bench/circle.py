# SPDX-License-Identifier: Apache-2.0
"""The generator that isn't ours: testpmd with virtio-user ports, whose frames circle through the switch for ever.

The rate is testpmd's own. It doesn't look into frames, so what can be checked is that none is lost: at the end the
ports only receive, until as many frames came back as were sent.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from pvswitch.bench.errors import MissingPeer, NotOffered
from pvswitch.bench.steady import Processors, measure_steady
from pvswitch.bench.switches import Running, Spent
from pvswitch.bench.testpmd import Testpmd
from pvswitch.bench.work import Circle
from pvswitch.guest import Guest
from pvswitch.vhost_user.features import Feature

# Bursts of 32 per port: half of what a ring of 1024 holds is in flight in each direction.
BURSTS = 16
# Every switch takes a moment from the driver's start until it forwards.
START_SECONDS = 1.0
WARM_UP_SECONDS = 0.5
DRAIN_SECONDS = 2.0


class Circled(NamedTuple):
    """What a turn found: see `Sample`."""

    figures: dict[str, float]
    faults: tuple[str, ...]
    seen: dict[str, int]


async def circle(running: Running, work: Circle, processors: Processors, *, seconds: float, cpu: int) -> Circled:
    """Measure once; raises NotOffered where the generator or the ring format is missing."""
    if work.packed:
        await _require_packed(running.sockets[0])
    generator = Testpmd(
        running.sockets, packed=work.packed, in_order=work.packed, lcores=f"0@{cpu},1@{cpu}", prefix="pvswitch-circle"
    )
    try:
        await generator.__aenter__()
    except MissingPeer as error:
        raise NotOffered(f"the generator is missing: {error}") from error

    async def measure_one(seconds: float) -> tuple[float, Spent | None]:
        await running.begin()
        await generator.counters()
        await asyncio.sleep(seconds)
        pps = sum(port.rx_pps for port in await generator.counters())
        return pps, await running.spent()

    try:
        await asyncio.sleep(START_SECONDS)
        await generator.command("set fwd io")
        await generator.command(f"set txpkts {work.size}")
        await generator.command(f"start tx_first {BURSTS}")
        await asyncio.sleep(WARM_UP_SECONDS)
        slices = await measure_steady(processors, measure_one, seconds)
        lost = await _lost(generator)
        await generator.quit()
    finally:
        await generator.kill()
    pps = statistics.fmean(one for one, _ in slices.counting)
    figures = {"mpps": pps / 1e6, "gbits": pps * work.size * 8 / 1e9}
    spent = [one for _, one in slices.counting if one is not None]
    if packets := sum(one.packets for one in spent):
        figures["cycles"] = sum(one.cycles for one in spent) / packets
    return Circled(figures, (f"{lost:,} frames of testpmd were lost",) if lost else (), slices.seen)


async def _require_packed(socket: Path) -> None:
    """Look at what the switch offers: testpmd would take split rings without a word."""
    guest = Guest(socket)
    try:
        await guest.connect(start=False)
        lacking = [bit.name for bit in (Feature.RING_PACKED, Feature.IN_ORDER) if not guest.offered & bit]
    finally:
        guest.kill()
    if lacking:
        raise NotOffered(f"not offered: {', '.join(map(str, lacking))}")


async def _lost(generator: Testpmd) -> int:
    """Let the ports only receive, and return how many frames that were sent don't come back."""
    await generator.command("stop")
    await generator.command("set fwd rxonly")
    await generator.command("start")
    end = time.monotonic() + DRAIN_SECONDS
    while True:
        counters = await generator.counters()
        lost = sum(port.tx_packets - port.rx_packets for port in counters)
        if lost == 0 or time.monotonic() > end:
            return lost
        await asyncio.sleep(0.1)
