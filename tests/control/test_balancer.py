# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC110 (what is waited for can only be asked)
"""Who measures and moves queues: when it is asked, by itself, and when something goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from pvswitch import balancer as balancer_module
from pvswitch.balancer import Balancer
from pvswitch.errors import ApplyError
from pvswitch.rebalance import QueueSample, Sample

PATIENCE = 20.0
"""Seconds for what must happen: far beyond what any machine needs."""


class Switch:
    """Two queues on worker 0 of two; between two looks each costs `cost` of 1,000 cycles."""

    def __init__(self, cost: int = 450) -> None:
        self.cost = cost
        self.looks = 0
        self.busy = [0, 0]
        self.spent = 0.0
        self.worker = {("a", 0): 0, ("b", 1): 0}
        self.moves: list[tuple[str, int, int]] = []
        self.refuse: list[Exception] = []
        self.fail = False
        self.balancer = Balancer(2, self.sample, self.move)

    async def sample(self) -> Sample:
        await asyncio.sleep(0)
        if self.fail:
            self.fail = False
            raise RuntimeError("a fault")
        self.looks += 1
        for worker in self.worker.values():
            self.busy[worker] += self.cost
            self.spent += self.cost / len(self.worker)
        queues = {key: QueueSample(worker, round(self.spent)) for key, worker in self.worker.items()}
        return Sample(tuple(self.busy), (1000 * self.looks,) * 2, queues)

    async def move(self, port: str, queue: int, worker: int) -> None:
        await asyncio.sleep(0)
        if self.refuse:
            raise self.refuse.pop()
        self.moves.append((port, queue, worker))
        self.worker[port, queue] = worker


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancer_module, "MEASURE_SECONDS", 0.0)


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    switch = Switch()
    yield switch
    await switch.balancer.close()


# ---- asked for ----


async def test_a_dry_run_moves_nothing(switch: Switch) -> None:
    result = await switch.balancer.balance(dry_run=True)
    assert [(move.port, move.queue, move.source, move.to, move.load) for move in result.moves] == [("a", 0, 0, 1, 0.45)]
    assert (result.before.workers, result.before.busiest, result.before.variance) == ([0.9, 0.0], 0.9, 0.2025)
    assert (result.after.workers, result.after.busiest, result.after.variance) == ([0.45, 0.45], 0.45, 0.0)
    assert not result.applied
    assert result.message == "1 queue moves: worker 0 is 90 % busy before and 45 % after"
    assert switch.moves == []


async def test_what_is_planned_is_done_and_then_nothing_more(switch: Switch) -> None:
    with capture_logs() as logs:
        result = await switch.balancer.balance(dry_run=False)
    assert result.applied
    assert switch.moves == [("a", 0, 1)]
    assert [(line["event"], line["port"], line["to"], line["why"]) for line in logs] == [
        ("queue moved", "a", 1, "asked for")
    ]
    again = await switch.balancer.balance(dry_run=False)
    assert (again.moves, again.applied) == ([], False)
    assert len(switch.moves) == 1


async def test_a_worker_that_is_little_busy_is_relieved_when_it_is_asked_for() -> None:
    switch = Switch(cost=40)
    assert (await switch.balancer.balance(dry_run=False)).applied


@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), KeyError("a")])
async def test_a_queue_that_goes_meanwhile_is_left_out(switch: Switch, error: Exception) -> None:
    switch.refuse = [error]
    result = await switch.balancer.balance(dry_run=False)
    assert (result.moves, result.applied) == ([], False)
    assert (await switch.balancer.balance(dry_run=False)).applied


async def test_one_plan_at_a_time(switch: Switch) -> None:
    """What the second measures is what the first has left behind."""
    results = await asyncio.gather(*(switch.balancer.balance(dry_run=False) for _ in range(2)))
    assert [len(result.moves) for result in results] == [1, 0]
    assert len(switch.moves) == 1


async def test_with_one_worker_there_is_nothing_to_balance() -> None:
    lonely = Balancer(1, Switch().sample, Switch().move)
    for dry_run in (True, False):
        with pytest.raises(ApplyError, match=r"one worker.*raise `datapath.workers`") as caught:
            await lonely.balance(dry_run=dry_run)
        assert caught.value.pointer == "#/datapath/workers"


# ---- by itself ----


async def until_looked(switch: Switch, looks: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while switch.looks < looks:
            await asyncio.sleep(0.001)


async def test_by_itself_it_moves_what_is_busy(switch: Switch) -> None:
    with capture_logs() as logs:
        switch.balancer.start(0)
        await until_looked(switch, 6)
    assert switch.moves == [("a", 0, 1)]
    assert [(line["event"], line["why"], line["load"]) for line in logs] == [("queue moved", "by load", 0.45)]


async def test_by_itself_it_leaves_a_worker_alone_that_is_half_busy() -> None:
    switch = Switch(cost=250)
    switch.balancer.start(0)
    await until_looked(switch, 6)
    await switch.balancer.close()
    assert switch.moves == []


async def test_by_itself_it_measures_from_one_look_to_the_next() -> None:
    """A long silence says nothing about now."""
    switch = Switch(cost=0)
    switch.balancer.start(0)
    await until_looked(switch, 200)
    switch.cost = 450
    await until_looked(switch, switch.looks + 8)
    await switch.balancer.close()
    assert switch.moves == [("a", 0, 1)]


async def test_it_goes_on_after_a_fault(switch: Switch) -> None:
    with capture_logs() as logs:
        switch.balancer.start(0)
        await until_looked(switch, 1)
        switch.fail = True
        await until_looked(switch, switch.looks + 3)
    assert not switch.fail
    assert "queues not rebalanced" in {line["event"] for line in logs}


async def test_the_end(switch: Switch) -> None:
    """Nobody looks any more; closing twice, or without a start, is fine."""
    switch.balancer.start(0)
    await until_looked(switch, 3)
    await switch.balancer.close()
    looks = switch.looks
    await asyncio.sleep(0.02)
    assert switch.looks == looks
    await switch.balancer.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "rebalancing"] == []
