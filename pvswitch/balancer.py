# SPDX-License-Identifier: Apache-2.0
"""Moves queues between workers: measures, has `rebalance.py` plan, carries the plan out.

When it is asked to it looks at the counters twice, MEASURE_SECONDS apart. By itself (`datapath.rebalance_seconds`) it
looks that often, and what lies in between is the measure; then only a worker that is more than half busy is relieved.
One plan is made and carried out at a time. A queue that stops meanwhile is left out.

Used by `ports.py`, on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import Awaitable, Callable, Sequence

import structlog

from pvswitch.errors import ApplyError
from pvswitch.rebalance import BalancePlan, Move, Sample, loads, plan
from pvswitch.state import QueueMove, Rebalance, WorkerLoads

log = structlog.get_logger(__name__)

MEASURE_SECONDS = 1.0
"""How long loads are measured when somebody asks."""

BUSY = 0.5
"""How busy a worker must be to be relieved without being asked."""


class Balancer:
    """The one that moves queues."""

    def __init__(
        self,
        workers: int,
        sample: Callable[[], Awaitable[Sample]],
        move: Callable[[str, int, int], Awaitable[None]],
    ) -> None:
        """`sample` reads the counters; `move` takes port, queue and worker, and raises OSError or KeyError."""
        self._workers = workers
        self._sample = sample
        self._move = move
        self._turn = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    def start(self, seconds: int) -> None:
        """Begin to balance by itself, this often."""
        self._keeper = asyncio.create_task(self._keep(seconds), name="rebalancing")

    async def close(self) -> None:
        """End that; a move that is under way ends by itself."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def balance(self, *, dry_run: bool) -> Rebalance:
        """Measure, and move what should move. Raises ApplyError where there is only one worker."""
        if self._workers == 1:
            raise ApplyError(
                "there is one worker, and nothing to balance: raise `datapath.workers` and restart the switch",
                "#/datapath/workers",
            )
        async with self._turn:
            before = await self._sample()
            await asyncio.sleep(MEASURE_SECONDS)
            planned = plan(loads(before, await self._sample()), self._workers)
            moves = planned.moves if dry_run else await self._carry_out(planned, "asked for")
        return _answer(planned, moves, applied=bool(moves) and not dry_run)

    async def _keep(self, seconds: int) -> None:
        before = await self._sample()
        while True:
            await asyncio.sleep(seconds)
            try:
                async with self._turn:
                    after = await self._sample()
                    await self._carry_out(plan(loads(before, after), self._workers, floor=BUSY), "by load")
                before = await self._sample()
            except Exception:  # the next time may do better; without this task there would be none
                log.exception("queues not rebalanced")

    async def _carry_out(self, planned: BalancePlan, why: str) -> list[Move]:
        """Make the moves; return those that were possible."""
        made = []
        for move in planned.moves:
            try:
                await self._move(move.port, move.queue, move.to)
            except (KeyError, OSError) as error:  # its guest has gone, or starts anew at this moment
                log.info("queue not moved", port=move.port, queue=move.queue, error=str(error))
                continue
            made.append(move)
            log.info(
                "queue moved",
                port=move.port,
                queue=move.queue,
                source=move.source,
                to=move.to,
                load=round(move.load, 3),
                why=why,
            )
        return made


def _answer(planned: BalancePlan, moves: Sequence[Move], *, applied: bool) -> Rebalance:
    return Rebalance(
        moves=[
            QueueMove(port=move.port, queue=move.queue, source=move.source, to=move.to, load=round(move.load, 4))
            for move in moves
        ],
        before=_worker_loads(planned.before),
        after=_worker_loads(planned.after),
        applied=applied,
        message=planned.message,
    )


def _worker_loads(shares: Sequence[float]) -> WorkerLoads:
    return WorkerLoads(
        workers=[round(share, 4) for share in shares],
        busiest=round(max(shares), 4),
        variance=round(statistics.pvariance(shares), 6),
    )
