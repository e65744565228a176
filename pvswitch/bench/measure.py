# SPDX-License-Identifier: Apache-2.0
"""Going through the cases in turns: every switch in each case, all cases in each round, processes always fresh.

The order is round, case, switch: what is compared is measured within seconds of each other, and the rounds are spread
over the whole run, so that what the machine does meanwhile meets all alike. A turn of frames is measured in slices (see
`steady`); one without a steady slice is taken again at the end of its round. `Bench` is what a run has at hand. What
can't be measured is noted with its reason, and the rest goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pvswitch.bench import flow_switches, tcp, tunnel_frames, tunnel_tcp, uplink, watched
from pvswitch.bench.circle import circle
from pvswitch.bench.errors import BenchError, MissingPeer, NotOffered
from pvswitch.bench.generator import LITTLE_PATIENCE, PATIENCE, Generator, Outcome, faults, total
from pvswitch.bench.machine import Others, cpu_seconds
from pvswitch.bench.results import Results, Sample
from pvswitch.bench.steady import SLICE_SECONDS, Processors, measure_steady
from pvswitch.bench.streams import Boot, Labs, measure
from pvswitch.bench.switches import SWITCHES, Running, Spent, Wanted
from pvswitch.bench.work import (
    FIGURES,
    PVSWITCH,
    Case,
    Circle,
    FlowBatch,
    FlowFrames,
    Frames,
    Idle,
    Latency,
    Silence,
    Tcp,
    TunnelFlood,
    TunnelFrames,
    TunnelTcp,
    Uplink,
    Watched,
)
from pvswitch.errors import PvswitchError
from pvswitch.vm import MissingTool, build_image, find_qemu

WARM_UP_SECONDS = 0.2
WARM_UP_LONGEST = 30.0
Start = Callable[[Wanted], AbstractAsyncContextManager[Running]]
# A switch that has many addresses to learn may let some go by and take them at their next frame: pvswitch learns 8,192
# in a second.
LEARN_SECONDS = 30.0
TRIPS = 20
IDLE_SETTLE_SECONDS = 1.0
# Turns that a peer may fail in a case before it isn't asked for it any more.
MAX_FAILURES = 2
# How often a turn that met no steady slice is taken again, at the end of its round.
REPEATS = 2


@dataclass
class Bench:
    """What a run has at hand: processors for switch and generator, hugepages or not, a folder, and how long to measure.

    `seconds` None leaves that to each case. `say` gets a line for each turn.
    """

    cpus: tuple[int, int]
    huge: bool
    folder: Path
    seconds: float | None = None
    say: Callable[[str], None] = print
    _boot: Boot | None = field(default=None, init=False)
    _processors: Processors | None = field(default=None, init=False)

    @property
    def processors(self) -> Processors:
        """How the two processors do."""
        if self._processors is None:
            self._processors = Processors(self.cpus)
        return self._processors

    def boot(self) -> Boot:
        """Return what QEMU guests boot, made at the first call; raises NotOffered where there is no QEMU."""
        if self._boot is None:
            try:
                qemu = find_qemu()
                image = build_image(self.folder, extra_binaries=("iperf3",))
            except MissingTool as error:
                raise NotOffered(str(error)) from error
            self._boot = Boot(image, qemu, self.huge)
        return self._boot


@dataclass(frozen=True)
class Turn:
    """One switch's turn in a case."""

    case: Case
    switch: str
    number: int
    bench: Bench

    @property
    def seconds(self) -> float:
        """For how long to measure."""
        return self.bench.seconds or self.case.seconds

    @property
    def stall(self) -> float:
        """How long to wait for frames that may be lost, in seconds."""
        return LITTLE_PATIENCE if self.case.loss_allowed else PATIENCE

    def sample(self, figures: Mapping[str, float], outcome: Outcome | None = None, **seen: float) -> Sample:
        """Return a sample of this turn; the outcome of frames says what is wrong with it."""
        wrong: tuple[str, ...] = ()
        if outcome is not None:
            work = self.case.work
            order_owed = not (isinstance(work, Frames) and work.macs > 1) and not isinstance(work, FlowFrames)
            wrong = tuple(faults(outcome, loss_allowed=self.case.loss_allowed, order_owed=order_owed))
            seen |= {key: value for key, value in vars(outcome).items() if value is not None}
        return Sample(self.case.name, self.switch, self.number, figures, faults=wrong, seen=seen)


# ---- what a turn does, by the case's work


@asynccontextmanager
async def _started(turn: Turn, wanted: Wanted, start: Start | None = None) -> AsyncIterator[tuple[Running, Generator]]:
    """Start both processes at a time; the guests leave before the switch ends. `start` is another way to start it."""
    async with (
        Generator(turn.bench.cpus[1]) as generator,
        (start or SWITCHES[turn.switch])(wanted) as running,
    ):
        yield running, generator
        await generator.close()


async def _ready(generator: Generator, running: Running, frames: Frames) -> None:
    """Bring the guests up, and let the switch learn all of their addresses."""
    await generator.connect(running.sockets, frames.guests, listen=running.client)
    end = time.monotonic() + LEARN_SECONDS
    while True:
        await generator.prime(frames)
        known = await running.addresses()
        if frames.feature is not None or known is None:
            return
        if known >= frames.macs * (1 if frames.flood else frames.guests.active // 2):
            return
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.1)
    raise BenchError(f"the switch has learned {known} addresses, not the {frames.macs} that were shown to it")


async def _warm_up(generator: Generator, frames: Frames, stall: float) -> None:
    """Let frames flow for a while, and until each tuple has been seen: a switch may have to look hard at its first.

    The last time what is late is waited for, so that it doesn't come when it is measured.
    """
    end, sent = time.monotonic() + WARM_UP_LONGEST, 0
    while sent < 2 * frames.tuples and time.monotonic() < end:
        sent += (await generator.run(frames, WARM_UP_SECONDS, stall=LITTLE_PATIENCE)).sent
    await generator.run(frames, WARM_UP_SECONDS, stall=stall)


def _wanted(turn: Turn, frames: Frames) -> Wanted:
    guests = frames.guests
    return Wanted(
        ports=guests.active + guests.idle,
        cpu=turn.bench.cpus[0],
        frame=frames.size,
        macs=frames.macs,
        gso=guests.gso,
        on_full=frames.on_full,
        feature=frames.feature,
        huge=turn.bench.huge,
    )


async def _frames(turn: Turn, work: Frames, start: Start | None = None, *, copies: int = 0) -> list[Sample]:
    """Measure frames; of each there are further `copies` for remotes, and cycles are those of such a copy."""
    async with _started(turn, _wanted(turn, work), start) as (running, generator):
        await _ready(generator, running, work)
        await _warm_up(generator, work, turn.stall)
        others = Others(running.pid, generator.pid, *running.beside)

        async def measure_one(seconds: float) -> tuple[Outcome, Spent | None]:
            await running.begin()
            with others:
                outcome = await generator.run(work, seconds, stall=turn.stall)
            return outcome, await running.spent()

        # A receiver that is kept slow takes frames in bursts: it needs a while to show its rate.
        longest = turn.seconds if work.rx_pps else SLICE_SECONDS
        slices = await measure_steady(turn.bench.processors, measure_one, turn.seconds, longest)
    counted = total(outcome for outcome, _ in slices.counting)
    figures = {"mpps": counted.mpps, "gbits": counted.mpps * work.size * 8 / 1e3}
    spent = [one for _, one in slices.counting if one is not None]
    if spent and counted.received:
        figures["cycles"] = sum(one.cycles for one in spent) / (counted.received * (copies or 1))
    if start is not None:
        figures |= _shares(spent, counted.received * (copies or 1))
    if turn.case.loss_allowed and counted.sent:
        figures["loss"] = 100 * counted.lost / (counted.sent * counted.copies)
    whole = total(outcome for outcome, _ in slices.all)
    sample = turn.sample(figures, whole, others=round(others.cores(), 3), **slices.seen)
    carried = sum(one.carried for _, one in slices.all if one is not None)
    if carried < whole.received * copies:
        fault = f"{carried:,} of {whole.received * copies:,} copies for remotes left the host"
        sample = replace(sample, faults=(*sample.faults, fault))
    return [sample]


def _shares(spent: Sequence[Spent], packets: int) -> dict[str, float]:
    """Return how many frames shared a burst, and how many packets a message of the host's stack."""
    bursts, messages = sum(one.bursts for one in spent), sum(one.messages for one in spent)
    figures = {"burst": sum(one.packets for one in spent) / bursts} if bursts else {}
    return figures | ({"per_message": packets / messages} if messages else {})


async def _latency(turn: Turn, work: Latency) -> list[Sample]:
    frames = work.frames
    async with _started(turn, _wanted(turn, frames)) as (running, generator):
        await _ready(generator, running, frames)

        async def measure_one(seconds: float) -> Outcome:
            full = await generator.run(frames, max(WARM_UP_SECONDS, seconds / 2))
            return await generator.run(frames, seconds, rate_pps=int(full.mpps * 1e6 * work.share))

        slices = await measure_steady(turn.bench.processors, measure_one, turn.seconds, turn.seconds)
    outcome = slices.counting[-1]
    figures = {"mpps": outcome.mpps}
    if outcome.p50_ns is not None and outcome.p99_ns is not None:
        figures |= {"p50_us": outcome.p50_ns / 1e3, "p99_us": outcome.p99_ns / 1e3}
    return [turn.sample(figures, total(slices.all), **slices.seen)]


async def _circle(turn: Turn, work: Circle) -> list[Sample]:
    switch, generator = turn.bench.cpus
    wanted = Wanted(ports=2, cpu=switch, frame=work.size, huge=turn.bench.huge)
    if not turn.bench.huge:
        raise NotOffered("testpmd as generator needs hugepages: run this as root")
    async with SWITCHES[turn.switch](wanted) as running:
        found = await circle(running, work, turn.bench.processors, seconds=turn.seconds, cpu=generator)
    return [Sample(turn.case.name, turn.switch, turn.number, found.figures, faults=found.faults, seen=found.seen)]


async def _streams(turn: Turn, labs: Labs) -> list[Sample]:
    async with labs[turn.switch](turn.bench.boot()) as lab:
        return await measure(lab, turn.case.name, turn.switch, turn.number, turn.seconds)


async def _watched(turn: Turn, work: Watched) -> list[Sample]:
    async with _started(turn, _wanted(turn, work.frames), watched.start(work)) as (running, generator):
        assert isinstance(running, watched.Watch)
        await _ready(generator, running, work.frames)
        await generator.run(work.frames, WARM_UP_SECONDS, stall=turn.stall)

        async def measure_one(seconds: float) -> tuple[Outcome, Spent]:
            await running.begin()
            outcome = await generator.run(work.frames, seconds, stall=turn.stall)
            return outcome, await running.spent()

        slices = await measure_steady(turn.bench.processors, measure_one, turn.seconds)
        faults = await running.faults()
    counted = total(outcome for outcome, _ in slices.counting)
    taken = sum(spent.packets for _, spent in slices.counting)
    figures = {"mpps": counted.mpps, "cycles": sum(spent.cycles for _, spent in slices.counting) / max(1, taken)}
    sample = turn.sample(figures, total(outcome for outcome, _ in slices.all), **slices.seen, **running.seen)
    return [replace(sample, faults=(*sample.faults, *faults))]


async def _batch(turn: Turn, work: FlowBatch) -> list[Sample]:
    wanted = Wanted(ports=2, cpu=turn.bench.cpus[0], huge=turn.bench.huge)
    return [turn.sample(await flow_switches.batch(turn.switch, work, wanted))]


async def _idle(turn: Turn, work: Idle) -> list[Sample]:
    frames = Frames(64)
    wanted = Wanted(ports=work.guests, cpu=None, polling="adaptive", huge=turn.bench.huge)
    async with _started(turn, wanted) as (running, generator):
        await _ready(generator, running, frames)
        await asyncio.sleep(IDLE_SETTLE_SECONDS)
        before, began = cpu_seconds(running.pid), time.monotonic()
        await asyncio.sleep(turn.seconds)
        share = (cpu_seconds(running.pid) - before) / (time.monotonic() - began)
    return [turn.sample({"cpu": 100 * share})]


async def _silence(turn: Turn, work: Silence) -> list[Sample]:
    wanted = Wanted(ports=2, cpu=turn.bench.cpus[0], polling=work.polling, huge=turn.bench.huge)
    async with _started(turn, wanted) as (running, generator):
        await _ready(generator, running, Frames(64))
        await generator.round_trips(TRIPS)
        await asyncio.sleep(work.seconds)
        first, following = await generator.round_trips(2)
    if first is None or following is None:
        raise BenchError("a frame was lost")
    return [turn.sample({"first_us": first / 1e3, "next_us": following / 1e3})]


async def _measure(turn: Turn) -> list[Sample]:
    match turn.case.work:
        case Frames() as work:
            return await _frames(turn, work)
        case Latency() as work:
            return await _latency(turn, work)
        case Circle() as work:
            return await _circle(turn, work)
        case Tcp():
            return await _streams(turn, tcp.LABS)
        case Uplink():
            return await _streams(turn, uplink.LABS)
        case TunnelTcp():
            return await _streams(turn, tunnel_tcp.LABS)
        case TunnelFrames() as work:
            return await _frames(turn, work.frames, tunnel_frames.pair(turn.switch, work, turn.bench.cpus[1]))
        case TunnelFlood() as work:
            return await _frames(turn, work.frames, tunnel_frames.flood(turn.switch, work), copies=work.remotes)
        case FlowFrames() as work:
            return await _frames(turn, work.frames, flow_switches.filled(turn.switch, work))
        case FlowBatch() as work:
            return await _batch(turn, work)
        case Watched() as work:
            return await _watched(turn, work)
        case Idle() as work:
            return await _idle(turn, work)
        case Silence() as work:
            return await _silence(turn, work)


# ---- all of it


async def run(
    cases: Sequence[Case],
    switches: Collection[str],
    bench: Bench,
    results: Results,
    *,
    rounds: int,
    budget: float | None = None,
) -> None:
    """Measure into `results`. With a budget of seconds no round begins that would end after it."""
    began = time.monotonic()
    longest = 0.0
    await bench.processors.settle()
    for number in range(1, rounds + 1):
        start = time.monotonic()
        if budget is not None and start - began + longest > budget:
            bench.say(f"{number - 1} of {rounds} rounds: there is no time for more")
            return
        turns = [
            Turn(case, switch, number, bench)
            for case in cases
            for switch in case.switches
            if switch in switches and switch not in results.missing
        ]
        for _ in range(1 + REPEATS):
            turns = [turn for turn in turns if not await _one(turn, results)]
            if budget is not None and time.monotonic() - began > budget:
                break
        longest = max(longest, time.monotonic() - start)
        results.machine["cache line"] = f"{bench.processors.best.line:.0f} ns there and back"


async def _one(turn: Turn, results: Results) -> bool:
    """Give a switch its turn, and note what comes of it. False: it met no steady slice, and may be taken again."""
    name, switch = turn.case.name, turn.switch
    failures = results.failures(name, switch)
    if (
        switch in results.missing
        or switch in results.left_out.get(name, {})
        or (switch != PVSWITCH and len(failures) >= MAX_FAILURES)
    ):
        return True
    try:
        samples = await _measure(turn)
    except MissingPeer as error:
        results.missing[switch] = str(error)
        turn.bench.say(f"{switch} is left out: {error}")
        return True
    except NotOffered as error:
        results.leave_out(name, switch, str(error))
        turn.bench.say(f"{name}: {switch} is left out: {error}")
        return True
    except (PvswitchError, OSError, TimeoutError) as error:
        samples = [Sample(name, switch, turn.number, {}, faults=(str(error) or type(error).__name__,))]
    results.take(samples)
    for sample in samples:
        turn.bench.say(_line(sample))
    return all(sample.seen.get("steady") != 0 for sample in samples)


def _line(sample: Sample) -> str:
    """Return a sample in one line."""
    words = [
        f"{sample.figures[key]:,.{kind.digits}f} {kind.unit}" for key, kind in FIGURES.items() if key in sample.figures
    ]
    where = f"{sample.case} {sample.part}".strip()
    return f"round {sample.round}  {where:<24} {sample.switch:<12} {'  '.join([*words, *sample.faults])}"
