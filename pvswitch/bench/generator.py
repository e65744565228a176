# SPDX-License-Identifier: Apache-2.0
"""The guests of a measurement, in a process of their own on a processor of their own; `load` is what runs there.

`Generator` starts it, asks it one thing at a time, and kills it at the end. What it says is checked here: what was
negotiated, and what went wrong with frames. `faults` turns the latter into sentences.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from pvswitch.bench.errors import BenchError, NotOffered
from pvswitch.bench.work import GSO_SIZE, Frames, Guests
from pvswitch.guest import OFFLOAD_FEATURES
from pvswitch.vhost_user.features import Feature

GRACE = 60.0
"""Seconds that an answer may take beyond the time that was asked for."""
READY_SECONDS = 30.0
# With frames that may be late on a busy host, since what was given up comes in the next run as a stranger; and where
# losses are meant to be, which are waited for as well.
PATIENCE = 1.0
LITTLE_PATIENCE = 0.1
CLOSE_SECONDS = 10.0

_ALWAYS = Feature.VERSION_1 | Feature.ANY_LAYOUT | Feature.EVENT_IDX | Feature.INDIRECT_DESC
_GSO = Feature.CSUM | Feature.HOST_TSO4 | Feature.GUEST_CSUM | Feature.GUEST_TSO4


class GeneratorError(BenchError):
    """The generator ended, refused or said nothing in time; the message says which."""


@dataclass(frozen=True)
class Outcome:
    """What became of the frames of a run; see struct pvd_gen_result. Times in ns."""

    sent: int
    received: int
    lost: int
    reordered: int
    corrupted: int
    foreign: int
    errors: int
    measured: int
    measured_ns: int
    copies: int = 1
    p50_ns: int | None = None
    p99_ns: int | None = None

    @property
    def mpps(self) -> float:
        """Million frames received per second; of a flood: copies."""
        return self.measured * 1e3 / self.measured_ns if self.measured_ns else 0.0


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """Return several outcomes of the same traffic as one. Of a single one the latencies are kept."""
    first, *more = outcomes
    if not more:
        return first
    names = [item.name for item in fields(Outcome) if item.name not in ("copies", "p50_ns", "p99_ns")]
    return Outcome(**{name: sum(getattr(one, name) for one in (first, *more)) for name in names}, copies=first.copies)


def features(guests: Guests) -> tuple[int, int]:
    """Return what such guests accept when it is offered, and what of it they can't do without."""
    needed = Feature.VERSION_1
    if guests.packed:
        needed |= Feature.RING_PACKED | Feature.IN_ORDER
    if guests.mrg:
        needed |= Feature.MRG_RXBUF
    if guests.gso:
        needed |= _GSO
    return _ALWAYS | needed | (OFFLOAD_FEATURES if guests.gso else 0), needed


class Generator:
    """The process. Use it as `async with`."""

    def __init__(self, cpu: int) -> None:
        """Nothing is started yet."""
        self._cpu = cpu
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "pvswitch.bench.load", str(self._cpu)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it if it still runs."""
        await self.close()

    async def close(self) -> None:
        """Let the guests go in order, or kill them with the process; may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    # Something has to be given, or Python 3.11 leaves its standard input open.
                    await process.communicate(b"")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        assert self._process is not None
        return self._process.pid

    async def connect(self, sockets: Sequence[Path], guests: Guests, *, listen: bool = False) -> None:
        """Bring up a guest on each socket; raises NotOffered for a switch that can't do what they need.

        With `listen` the switch connects to the guests.
        """
        wanted, needed = features(guests)
        negotiated = await self._ask(
            "connect",
            sockets=[str(path) for path in sockets],
            features=int(wanted),
            queue_size=guests.queue_size,
            rx_buffer=guests.rx_buffer,
            tx_buffer=guests.tx_buffer,
            shuffle=guests.shuffle,
            listen=listen,
        )
        lacking = [bit.name for bit in Feature if bit & needed and not all(bit & given for given in negotiated)]
        if lacking:
            raise NotOffered(f"not offered: {', '.join(map(str, lacking))}")

    async def prime(self, frames: Frames) -> None:
        """Let the switch learn all addresses; raises GeneratorError when frames never begin to arrive."""
        end = time.monotonic() + READY_SECONDS
        while True:
            found = await self._ask("prime", **_traffic(frames), watchers=frames.watchers)
            if found["errors"]:
                raise GeneratorError(f"the switch broke the virtio protocol {found['errors']:,} times at once")
            if not found["lost"]:
                return
            if time.monotonic() > end:
                raise GeneratorError(f"the switch forwards nothing: {found['lost']:,} of its first frames were lost")
            await asyncio.sleep(0.05)

    async def run(self, frames: Frames, seconds: float, *, stall: float = PATIENCE, **more: float) -> Outcome:
        """Let frames flow for so long. What hasn't come when nothing came for `stall` seconds is lost."""
        found = await self._ask(
            "run",
            seconds,
            **_traffic(frames),
            tuples=frames.tuples,
            level=frames.level,
            window=frames.window,
            rx_pps=frames.rx_pps,
            duration=seconds,
            stall=stall,
            **more,
        )
        return Outcome(**found)

    async def round_trips(self, count: int) -> list[int | None]:
        """Return the times in ns of so many frames there and back between the first guest and the last."""
        found: list[int | None] = await self._ask("round_trips", count=count)
        return found

    async def _ask(self, call: str, seconds: float = 0.0, **words: Any) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"call": call, **words}).encode() + b"\n")
        try:
            async with asyncio.timeout(seconds + GRACE):
                await process.stdin.drain()
                line = await process.stdout.readline()
        except ConnectionError:
            line = b""
        except TimeoutError:
            raise GeneratorError(f"The generator didn't answer `{call}` in {seconds + GRACE:.0f} s.") from None
        if not line:
            assert process.stderr is not None
            complaint = (await process.stderr.read()).decode(errors="replace").strip().splitlines() or [
                "without a word"
            ]
            raise GeneratorError("\n".join([f"The generator ended: {complaint[-1]}", *complaint[:-1]]))
        reply: Mapping[str, Any] = json.loads(line)
        if "error" in reply:
            raise GeneratorError(f"The generator could not {call}: {reply['error']}")
        return reply["answer"]


def _traffic(frames: Frames) -> dict[str, Any]:
    return {
        "active": frames.guests.active,
        "macs": frames.macs,
        "flood": frames.flood,
        "size": frames.size,
        "gso_size": GSO_SIZE if frames.guests.gso else 0,
    }


def faults(outcome: Outcome, *, loss_allowed: bool, order_owed: bool = True) -> list[str]:
    """Return what went wrong with the frames of a run, as sentences.

    Order is owed between one sender and one destination, not among destinations.
    """
    found = []
    if outcome.lost and not loss_allowed:
        found.append(f"{outcome.lost:,} of {outcome.sent * outcome.copies:,} frames were lost")
    for count, what in (
        (outcome.reordered if order_owed else 0, "came after a later one"),
        (outcome.corrupted, "were changed on the way"),
        (outcome.foreign, "were not of this run"),
    ):
        if count:
            found.append(f"{count:,} of {outcome.received:,} received frames {what}")
    if outcome.errors:
        found.append(f"the switch broke the virtio protocol {outcome.errors:,} times")
    if not outcome.received:
        found.append("no frame arrived")
    return found
