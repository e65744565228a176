# SPDX-License-Identifier: Apache-2.0
"""Which queues should go to other workers, by what they have cost lately. Pure: samples in, moves out.

`loads` turns two samples of the counters into the load of each queue; `plan` finds the moves. It takes the busiest
worker and looks for the one step that relieves it most: a queue goes to another worker, or changes places with a
smaller one there. Then again, until no step relieves whoever is busiest by then. A worker that can't be relieved (its
load is one queue, or pinned) is set aside, so that it doesn't keep others from being helped. The steps are those of a
local search and not a distribution from scratch (longest processing time first, say): that would be as even, and move
nearly every queue. Nothing moves at all for an improvement below a threshold, as with OVS's
pmd-auto-lb-improvement-threshold.

Used by `balancer.py`.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

IMPROVEMENT = 0.25
"""The part of the busiest worker's load that a plan has to take off it."""

NOTICEABLE = 0.005
"""A queue with less of a worker's time than this stays where it is, and a step has to gain a fifth of it."""

MAX_STEPS, MAX_TURNS = 1000, 64
"""Each step, and each turn of steps, makes the loads more even, so both end; these bound how long that takes."""


@dataclass(frozen=True, slots=True)
class QueueSample:
    """A queue at one moment: its worker, and what it has cost so far."""

    worker: int
    cycles: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment: for each worker its busy cycles and all that have passed, and each running queue."""

    busy: tuple[int, ...]
    total: tuple[int, ...]
    queues: Mapping[tuple[str, int], QueueSample]


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """How much of a worker's time a queue takes, 0 to 1."""

    port: str
    queue: int
    worker: int
    load: float
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A queue that goes to another worker."""

    port: str
    queue: int
    source: int
    to: int
    load: float


@dataclass(frozen=True, slots=True)
class BalancePlan:
    """The moves, the workers' loads before and after them, and all that in one sentence."""

    moves: tuple[Move, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    message: str


# ---- loads ----


def loads(before: Sample, after: Sample) -> list[QueueLoad]:
    """Return what each queue that runs at the end has cost in between.

    A worker's busy time is more than its queues' turns (guests are called at the end of a round): the rest is spread
    over its queues in proportion. A counter that has gone back belongs to a new port of the same name.
    """
    spent: dict[tuple[str, int], int] = {}
    turns: defaultdict[int, int] = defaultdict(int)
    for key, now in after.queues.items():
        past = before.queues.get(key)
        spent[key] = now.cycles - past.cycles if past is not None and past.cycles <= now.cycles else now.cycles
        turns[now.worker] += spent[key]
    found = []
    for key, now in after.queues.items():
        busy = after.busy[now.worker] - before.busy[now.worker]
        total = after.total[now.worker] - before.total[now.worker]
        load = spent[key] / turns[now.worker] * min(1.0, busy / total) if spent[key] and total else 0.0
        found.append(QueueLoad(*key, now.worker, load, now.pinned))
    return found


def worker_loads(queues: Sequence[QueueLoad], workers: int) -> tuple[float, ...]:
    """Return the load of each worker."""
    sums = [0.0] * workers
    for queue in queues:
        sums[queue.worker] += queue.load
    return tuple(sums)


def applied(queues: Sequence[QueueLoad], moves: Sequence[Move]) -> list[QueueLoad]:
    """Return the queues as they are after the moves."""
    to = {(move.port, move.queue): move.to for move in moves}
    return [replace(queue, worker=to.get((queue.port, queue.queue), queue.worker)) for queue in queues]


# ---- the plan ----


def plan(
    queues: Sequence[QueueLoad], workers: int, *, improvement: float = IMPROVEMENT, floor: float = 0.0
) -> BalancePlan:
    """Return the moves that take `improvement` of its load off the busiest worker at least, or none.

    Then the same for who is the busiest of those that can still be relieved: a plan that was carried out leaves nothing
    to plan. Only a worker with a load above `floor` is relieved.
    """
    before = worker_loads(queues, workers)
    now, messages = list(queues), []
    for _ in range(MAX_TURNS):
        moves, message = _relieve(now, workers, improvement, floor)
        messages.append(message)
        if not moves:
            break
        now = applied(now, moves)
    moved = tuple(
        Move(old.port, old.queue, old.worker, new.worker, old.load)
        for old, new in zip(queues, now, strict=True)
        if old.worker != new.worker
    )
    after = worker_loads(now, workers)
    if moved:
        what = "1 queue moves" if len(moved) == 1 else f"{len(moved)} queues move"
        messages[0] = f"{what}: {messages[0]}"
    return BalancePlan(moved, before, after, messages[0])


def _relieve(queues: Sequence[QueueLoad], workers: int, improvement: float, floor: float) -> tuple[Sequence[Move], str]:
    """Return the moves that relieve the busiest worker that can be relieved, and in words what they do, or why none."""
    before = worker_loads(queues, workers)
    search = _Search(queues, before)
    relieved = search.run(floor)
    if relieved is None:
        return (), _why_none(before, floor)
    moves = search.moves()
    after = worker_loads(applied(queues, moves), workers)
    gain = 1 - max(after[worker] for worker in search.open) / before[relieved]
    if gain < improvement:
        return (), (
            f"nothing moves: the busiest worker that can be relieved is {_words(relieved, before)}, a move would take "
            f"{_percent(gain)} off, and less than {_percent(improvement)} is not worth it"
        )
    return moves, f"worker {relieved} is {_percent(before[relieved])} busy before and {_percent(after[relieved])} after"


def _why_none(loads: Sequence[float], floor: float) -> str:
    busiest = max(range(len(loads)), key=loads.__getitem__)
    if not loads[busiest]:
        return "nothing moves: no queue has given a frame meanwhile"
    if loads[busiest] <= floor:
        return f"nothing moves: the busiest worker is {_words(busiest, loads)}, which is no more than {_percent(floor)}"
    return f"nothing moves: no move relieves the busiest worker, {_words(busiest, loads)}"


def _words(worker: int, loads: Sequence[float]) -> str:
    return f"worker {worker}, {_percent(loads[worker])} busy"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


@dataclass(frozen=True, slots=True)
class _Step:
    """One queue to another worker, and perhaps one of that worker's back. `peak`: the higher load of the two then."""

    peak: float
    there: int  # index of the queue
    back: int | None
    to: int


class _Search:
    """Where the queues are at this point of the search."""

    def __init__(self, queues: Sequence[QueueLoad], before: Sequence[float]) -> None:
        self._queues = queues
        self._load = list(before)
        self._worker = [queue.worker for queue in queues]
        self.open = set(range(len(before)))
        """Workers that were not set aside because nothing relieves them."""

    def run(self, floor: float) -> int | None:
        """Take steps until none helps; return the worker that was the busiest to be relieved, None without a step."""
        relieved: int | None = None
        for _ in range(MAX_STEPS):
            if not self.open:
                break
            busiest = max(sorted(self.open), key=self._load.__getitem__)
            if relieved is None and self._load[busiest] <= floor:
                break
            if (step := self._best_step(busiest)) is not None:
                self._take(busiest, step)
                relieved = busiest if relieved is None else relieved
            elif relieved is None:
                self.open.discard(busiest)
            else:
                break
        return relieved

    def moves(self) -> tuple[Move, ...]:
        """Return how the queues have moved from where they were."""
        return tuple(
            Move(queue.port, queue.queue, queue.worker, worker, queue.load)
            for queue, worker in zip(self._queues, self._worker, strict=True)
            if worker != queue.worker
        )

    def _movable(self, worker: int) -> list[tuple[float, int]]:
        """Return load and index of a worker's queues that may go, in the order of their loads."""
        return sorted(
            (queue.load, i)
            for i, queue in enumerate(self._queues)
            if self._worker[i] == worker and not queue.pinned and queue.load >= NOTICEABLE
        )

    def _best_step(self, busiest: int) -> _Step | None:
        """Return the step that leaves the lower peak; of equal ones the one that moves fewer queues."""
        best: _Step | None = None
        mine = self._movable(busiest)
        for to in sorted(self.open - {busiest}):
            theirs = self._movable(to)
            for load, there in mine:
                for back in (None, *_partners(theirs, load - (self._load[busiest] - self._load[to]) / 2)):
                    difference = load - (0.0 if back is None else self._queues[back].load)
                    peak = max(self._load[busiest] - difference, self._load[to] + difference)
                    if peak < (self._load[busiest] - NOTICEABLE / 5 if best is None else best.peak):
                        best = _Step(peak, there, back, to)
        return best

    def _take(self, source: int, step: _Step) -> None:
        self._worker[step.there] = step.to
        difference = self._queues[step.there].load
        if step.back is not None:
            self._worker[step.back] = source
            difference -= self._queues[step.back].load
        self._load[source] -= difference
        self._load[step.to] += difference


def _partners(queues: Sequence[tuple[float, int]], wanted: float) -> Iterator[int]:
    """Give the queues whose loads are next to the wanted one, below and above."""
    at = bisect.bisect_left(queues, (wanted, 0))
    yield from (index for _, index in queues[max(0, at - 1) : at + 1])
