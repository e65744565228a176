# SPDX-License-Identifier: Apache-2.0
"""Which queues go to other workers: any loads, any placement, pinned queues among them; and some plain cases."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pvswitch.rebalance import (
    IMPROVEMENT,
    NOTICEABLE,
    BalancePlan,
    QueueLoad,
    QueueSample,
    Sample,
    applied,
    loads,
    plan,
    worker_loads,
)

MANY = settings(max_examples=200, deadline=None)


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, list[QueueLoad]]:
    """Workers, and queues on them: no worker has more than all of its time."""
    workers = draw(st.integers(2, 16))
    queues: list[QueueLoad] = []
    for worker in range(workers):
        parts = draw(st.lists(st.floats(0, 1), max_size=6))
        share = draw(st.floats(0, 1))
        for part in parts:
            load = part / max(1.0, sum(parts)) * share
            queues.append(QueueLoad(f"p{len(queues)}", draw(st.integers(0, 1)), worker, load, draw(st.booleans())))
    return workers, draw(st.permutations(queues))


def on(worker: int, *shares: float, pinned: bool = False) -> list[QueueLoad]:
    """Queues of one worker."""
    return [QueueLoad(f"w{worker}", i, worker, share, pinned) for i, share in enumerate(shares)]


def moved(planned: BalancePlan) -> list[tuple[str, int, int]]:
    return [(move.port, move.queue, move.to) for move in planned.moves]


# ---- what holds for all ----


@given(placements())
@MANY
def test_what_a_plan_promises(placed: tuple[int, list[QueueLoad]]) -> None:
    workers, queues = placed
    planned = plan(queues, workers)
    by_key = {(queue.port, queue.queue): queue for queue in queues}
    assert len({(move.port, move.queue) for move in planned.moves}) == len(planned.moves), "each queue once"
    for move in planned.moves:
        queue = by_key[move.port, move.queue]
        assert not queue.pinned
        assert queue.load >= NOTICEABLE
        assert (move.source, move.load) == (queue.worker, queue.load)
        assert move.to != move.source
        assert 0 <= move.to < workers
    assert planned.before == worker_loads(queues, workers)
    assert planned.after == worker_loads(applied(queues, planned.moves), workers), "as it was predicted"
    assert max(planned.after) <= max(planned.before)
    if not planned.moves:
        assert planned.after == planned.before
        assert planned.message.startswith("nothing moves")


@given(placements())
@MANY
def test_a_plan_is_worth_its_moves(placed: tuple[int, list[QueueLoad]]) -> None:
    """Of those workers that it touches the busiest is relieved by a quarter; no other is touched."""
    workers, queues = placed
    planned = plan(queues, workers)
    touched = {worker for move in planned.moves for worker in (move.source, move.to)}
    if touched:
        before, after = (max(side[worker] for worker in touched) for side in (planned.before, planned.after))
        assert after <= (1 - IMPROVEMENT) * before + 1e-9
    assert all(planned.before[worker] == planned.after[worker] for worker in set(range(workers)) - touched)


@given(placements())
@MANY
def test_what_is_balanced_stays(placed: tuple[int, list[QueueLoad]]) -> None:
    """A plan that has been carried out finds nothing to add."""
    workers, queues = placed
    done = applied(queues, plan(queues, workers).moves)
    assert plan(done, workers).moves == ()


@given(placements(), st.floats(0, 1))
@MANY
def test_the_floor(placed: tuple[int, list[QueueLoad]], floor: float) -> None:
    """A worker below it is left alone: what moves comes from one above it."""
    workers, queues = placed
    planned = plan(queues, workers, floor=floor)
    if max(planned.before) <= floor:
        assert planned.moves == ()
    if planned.moves:
        assert max(planned.before[move.source] for move in planned.moves) > floor


@given(st.integers(2, 16), st.lists(st.floats(0.01, 0.3), min_size=1, max_size=40))
@MANY
def test_from_one_worker_to_all(workers: int, shares: list[float]) -> None:
    """Everything on one worker: afterwards it is about as even as queues can be."""
    total = sum(shares)
    shares = [share / max(1.0, total) for share in shares]
    planned = plan(on(0, *shares), workers, improvement=0.0)
    # the bound of any local optimum of such steps: all others have at least what the busiest has without one queue
    assert max(planned.after) <= max(sum(shares) / workers + max(shares), max(shares)) + 2 * NOTICEABLE


# ---- plain cases ----


def test_of_two_busy_queues_on_one_worker_one_goes() -> None:
    planned = plan([*on(0, 0.45, 0.45), *on(1, 0.01)], 2)
    assert [(move.port, move.source, move.to) for move in planned.moves] == [("w0", 0, 1)]
    assert planned.after == pytest.approx((0.45, 0.46))
    assert planned.message == "1 queue moves: worker 0 is 90 % busy before and 45 % after"


def test_few_queues_move() -> None:
    """Ten queues on two workers: only what makes them even moves, not all of them anew."""
    planned = plan([*on(0, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1), *on(1, 0.1, 0.05, 0.05), *on(2, 0.2)], 3)
    assert len(planned.moves) <= 3
    assert max(planned.after) == pytest.approx(0.45, abs=0.02)


def test_queues_change_places() -> None:
    """No single queue of the busy worker would leave the other one less busy."""
    planned = plan([*on(0, 0.5, 0.5), *on(1, 0.3, 0.3)], 2, improvement=0.1)
    assert sorted(port for port, _, _ in moved(planned)) == ["w0", "w1"]
    assert planned.after == pytest.approx((0.8, 0.8))


def test_pinned_queues_stay() -> None:
    pinned = [QueueLoad("a", 0, 0, 0.5, pinned=True), QueueLoad("b", 0, 0, 0.4), QueueLoad("c", 0, 1, 0.0)]
    assert moved(plan(pinned, 2)) == [("b", 0, 1)]
    all_pinned = [*on(0, 0.5, 0.4, pinned=True), *on(1, 0.0)]
    planned = plan(all_pinned, 2)
    assert (planned.moves, planned.message) == (
        (),
        "nothing moves: no move relieves the busiest worker, worker 0, 90 % busy",
    )


def test_one_large_queue_does_not_keep_others_from_being_helped() -> None:
    planned = plan([*on(0, 0.99), *on(1, 0.45, 0.4), *on(2, 0.0)], 3)
    assert [(move.source, move.to) for move in planned.moves] == [(1, 2)]
    assert planned.after == pytest.approx(
        (0.99, *sorted(planned.after[1:], reverse=planned.after[1] > planned.after[2]))
    )
    assert max(planned.after[1:]) == pytest.approx(0.45)


def test_little_is_not_worth_it() -> None:
    queues = [*on(0, 0.4, 0.1, 0.1), *on(1, 0.4)]
    planned = plan(queues, 2)
    assert planned.moves == ()
    assert planned.message == (
        "nothing moves: the busiest worker that can be relieved is worker 0, 60 % busy, a move would take 17 % off, "
        "and less than 25 % is not worth it"
    )
    assert len(plan(queues, 2, improvement=0.1).moves) == 1


def test_nothing_to_do() -> None:
    assert plan([], 2).message == "nothing moves: no queue has given a frame meanwhile"
    assert plan([*on(0, 0.0, 0.0), *on(1, 0.0)], 2).moves == ()
    planned = plan([*on(0, 0.2, 0.2), *on(1, 0.0)], 2, floor=0.5)
    assert (planned.moves, planned.message) == (
        (),
        "nothing moves: the busiest worker is worker 0, 40 % busy, which is no more than 50 %",
    )


def test_hundreds_of_queues_take_no_time() -> None:
    planned = plan([*on(0, *[0.005] * 200), *(queue for w in range(1, 16) for queue in on(w, *[0.001] * 64))], 16)
    assert max(planned.after) < 0.2


# ---- loads ----


def sample(busy: list[int], queues: dict[tuple[str, int], QueueSample], total: int = 1000) -> Sample:
    return Sample(tuple(busy), (total,) * len(busy), queues)


@example([(0, 10), (0, 30)], [200, 0])
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 400)), max_size=8),
    st.lists(st.integers(0, 1000), min_size=2, max_size=2),
)
def test_the_loads_of_a_workers_queues_are_what_it_was_busy(queues: list[tuple[int, int]], busy: list[int]) -> None:
    before = sample([5, 5], {(f"p{i}", 0): QueueSample(worker, 7) for i, (worker, _) in enumerate(queues)}, 50)
    after = sample(
        [5 + cycles for cycles in busy],
        {(f"p{i}", 0): QueueSample(worker, 7 + cycles) for i, (worker, cycles) in enumerate(queues)},
        1050,
    )
    found = loads(before, after)
    for worker, cycles in enumerate(busy):
        worked = any(spent for at, spent in queues if at == worker)
        assert worker_loads(found, 2)[worker] == pytest.approx(cycles / 1000 if worked else 0.0)


def test_queues_that_come_and_go() -> None:
    before = sample([0, 0], {("gone", 0): QueueSample(0, 100), ("again", 0): QueueSample(0, 900)}, 0)
    after = sample([600, 300], {("again", 0): QueueSample(0, 50), ("new", 1): QueueSample(0, 150, pinned=True)})
    about = cast(float, pytest.approx(0.45))
    assert loads(before, after) == [QueueLoad("again", 0, 0, 0.15), QueueLoad("new", 1, 0, about, True)]


def test_without_a_counter_of_cycles_there_is_no_load() -> None:
    still = sample([0, 0], {("a", 0): QueueSample(0, 0)}, 0)
    assert loads(still, still) == [QueueLoad("a", 0, 0, 0.0)]
