# SPDX-License-Identifier: Apache-2.0
"""Queues go from worker to worker under real guests: who says so, what moves; and no frame is lost or overtaken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from pvswitch import balancer
from pvswitch.datapath import Datapath
from pvswitch.front_end import FRONTEND_PROTOCOL_FEATURES
from pvswitch.generator import Load, LoadFlow, LoadResult, generate_many
from pvswitch.guest import Guest
from pvswitch.ports import Ports
from pvswitch.process import SwitchProcess, SwitchProcessError
from pvswitch.validation import parse
from pvswitch.vhost_user.features import ProtocolFeature
from tests.system.conftest import from_environment, running_switch
from tests.wire.lab import PATIENCE, expect, expect_only, flush_frames, frame, stats, until

pytestmark = pytest.mark.asyncio(loop_scope="function")

Stack = contextlib.AsyncExitStack
PORTS: dict[str, Any] = {name: {} for name in ("a", "x", "b", "y")}
PATH = "/api/v1/perf/rebalance"
SECONDS = 10.0
"""How long guests send. The loads are measured meanwhile, and queues moved."""
ROUNDS = from_environment("PVSWITCH_TEST_TOGGLES", 60)


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    async with Stack() as stack:
        yield stack


async def four_guests(switch: SwitchProcess, stack: Stack) -> list[Guest]:
    """On ports a, x, b, y, in this order: two workers take turns, so those that send are on the same one."""
    guests = []
    for name in PORTS:
        guests.append(await stack.enter_async_context(Guest(switch.port_socket(name))))
        await switch.wait_link(name)
    for guest in guests:
        await guest.announce()
        await flush_frames([other for other in guests if other is not guest], guest)
    for guest in guests:
        await guest.drain()
    return guests


async def workers(switch: SwitchProcess) -> dict[str, int]:
    """Who polls each port's first transmit queue."""
    return {queue["port"]: queue["worker"] for queue in (await switch.get("/perf/queues"))["items"]}


async def until_moves(switch: SwitchProcess, path: str) -> tuple[int, dict[str, Any]]:
    """Ask until something moves: loads that are measured while this machine does other work say little."""
    status, said = await switch.request("POST", path)
    for _ in range(2):
        if said.get("moves") == []:
            status, said = await switch.request("POST", path)
    return status, said


@contextlib.asynccontextmanager
async def busy(guests: list[Guest]) -> AsyncIterator[list[LoadResult]]:
    """From a to x and from b to y, as much of both, for a while; at the end what became of it is in the list."""
    a, x, b, y = guests
    results: list[LoadResult] = []
    flows = [LoadFlow(sender.low, to.low, to.mac, sender.mac) for sender, to in ((a, x), (b, y))]
    load = Load(len=256, duration=SECONDS, stall=PATIENCE)
    task = asyncio.create_task(asyncio.to_thread(generate_many, flows, load))
    try:
        await asyncio.sleep(0.2)
        yield results
        assert not task.done(), "it was over before"
    finally:
        results.append(await task)


def all_arrived(results: list[LoadResult]) -> None:
    (result,) = results
    assert result.received == result.sent > 0
    assert (result.lost, result.reordered, result.corrupted, result.foreign, result.errors) == (0, 0, 0, 0, 0)


async def test_a_dry_run_says_what_moves_and_a_real_one_moves_it(stack: Stack) -> None:
    config = {"ports": PORTS, "datapath": {"workers": 2}}
    async with running_switch(config) as switch, stack:
        guests = await four_guests(switch, stack)
        assert await workers(switch) == {"a": 0, "x": 1, "b": 0, "y": 1}
        async with busy(guests) as results:
            status, said = await until_moves(switch, f"{PATH}?dry_run=true")
            assert (status, said["applied"], len(said["moves"])) == (200, False, 1), said
            (move,) = said["moves"]
            assert (move["from"], move["to"], move["queue"]) == (0, 1, 0)
            assert move["port"] in ("a", "b")
            assert said["after"]["busiest"] <= 0.75 * said["before"]["busiest"]
            assert await workers(switch) == {"a": 0, "x": 1, "b": 0, "y": 1}

            status, done = await until_moves(switch, PATH)
            assert (status, done["applied"], len(done["moves"])) == (200, True, 1), done
            moved = done["moves"][0]["port"]
            at = await workers(switch)
            assert at == {"a": 0, "x": 1, "b": 0, "y": 1} | {moved: 1}
            by_queue = {
                queue["direction"]: queue for queue in (await stats(switch, moved))["queues"] if "worker" in queue
            }
            assert (by_queue["rx"]["worker"], by_queue["tx"]["worker"]) == (1, 0)
            before = by_queue["rx"]

            status, again = await switch.request("POST", PATH)
            assert (status, again["moves"], again["applied"]) == (200, [], False), again
            assert again["message"].startswith("nothing moves")
            after = (await stats(switch, moved))["queues"][1]
            assert after["packets"] > before["packets"], "it goes on at its new worker"
            assert after["cycles"] > before["cycles"]
        all_arrived(results)
        perf = {worker["name"]: worker for worker in (await switch.get("/perf"))["items"]}
        assert all(worker["burst_count"] > 0 and worker["kicks"] > 0 for worker in perf.values()), perf
        assert all(worker["mean_burst"] == worker["packets"] / worker["burst_count"] for worker in perf.values())
        assert "queue moved" in switch.log()


async def test_pinned_queues_stay(stack: Stack) -> None:
    pinned = PORTS | {"a": {"rxq_affinity": [0]}, "b": {"rxq_affinity": [0]}}
    async with running_switch({"ports": pinned, "datapath": {"workers": 2}}) as switch, stack:
        guests = await four_guests(switch, stack)
        queues = (await switch.get("/perf/queues"))["items"]
        assert {queue["port"] for queue in queues if queue["pinned"]} == {"a", "b"}
        async with busy(guests) as results:
            status, said = await switch.request("POST", PATH)
            assert (status, said["moves"], said["applied"]) == (200, [], False)
            assert "no move relieves the busiest worker" in said["message"]
        all_arrived(results)


async def test_one_worker_is_told_in_a_sentence() -> None:
    async with running_switch({"ports": PORTS}) as switch:
        status, problem = await switch.request("POST", PATH)
        assert (status, problem["type"]) == (409, "/problems/conflict")
        assert "raise `datapath.workers` and restart" in problem["detail"]
        with pytest.raises(SwitchProcessError, match="there is one worker"):
            await switch.cli("rebalance", "--dry-run")


# ---- what happens to a port meanwhile ----


class Lab:
    """Ports on two workers, in this process."""

    def __init__(self, folder: Path) -> None:
        self.datapath = Datapath(workers=2)
        self.ports = Ports(self.datapath)
        datapath = {"workers": 2, "rebalance_seconds": 1}  # once `ports.start` is called
        ports = {"a": {"queues": 2}, "b": {}, "x": {}, "y": {}}
        self.config = parse({"runtime_dir": str(folder), "datapath": datapath, "ports": ports})

    async def move(self, queue: int, worker: int) -> bool:
        """Move a queue of port a; False where that is refused."""
        try:
            await self.ports._move_queue("a", queue, worker)
        except OSError:
            return False
        return True

    def worker(self, queue: int = 0, port: str = "a") -> int | None:
        """Who polls a queue; None while it isn't running."""
        return {found.queue: found.worker for found in self.ports._ports[port].polled()}.get(queue)

    def guest(self, port: str, **options: Any) -> Guest:
        return Guest(self.config.port_socket(port), **options)


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "ports").mkdir()
    lab = Lab(tmp_path)
    lab.datapath.start()
    try:
        prepared = await lab.ports.prepare(lab.config)
        await lab.ports.commit(prepared)
        await lab.ports.retire(prepared)
        yield lab
    finally:
        await lab.ports.close()
        lab.datapath.close()


async def test_by_itself(lab: Lab, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as the configuration says, until there is nothing to gain; it ends with the ports."""
    monkeypatch.setattr(balancer, "BUSY", 0.0)  # how busy the workers are here is up to others on this machine
    guests = []
    for port in PORTS:
        guests.append(await stack.enter_async_context(lab.guest(port)))
        await guests[-1].announce()
    for guest in guests:
        await flush_frames([other for other in guests if other is not guest], guest)
    assert [lab.worker(port=port) for port in ("a", "b")] == [0, 0]
    with capture_logs() as logs:
        lab.ports.start()
        async with busy(guests) as results:
            await until(lambda: {lab.worker(port=port) for port in ("a", "b")} == {0, 1}, "a queue to move")
        await lab.ports.close()
    all_arrived(results)
    assert [(line["source"], line["to"], line["why"]) for line in logs if line["event"] == "queue moved"] == [
        (0, 1, "by load")
    ]
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("rebalancing", "housekeeping")]


async def test_a_pause_does_not_undo_a_move_but_another_guest_does(lab: Lab) -> None:
    table = FRONTEND_PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS
    async with lab.guest("b") as b, lab.guest("a", protocol_features=table, queue_pairs=2) as a:
        for pair in (0, 1):
            to = 1 - (lab.worker(pair) or 0)
            assert await lab.move(pair, to)
            assert not await lab.move(pair, to), "it is there"
            assert not await lab.move(pair, 2), "nobody is"
            await a.share_memory(a.low.regions())  # the whole table: all rings pause
            assert lab.worker(pair) == to
            await a.send(frame(b.mac, a.mac, seed=pair), pair=pair)
            assert await b.recv(PATIENCE) == frame(b.mac, a.mac, seed=pair)
        assert not await lab.move(2, 0), "it has no third pair"
        spread = {lab.worker(0), lab.worker(1)}
        assert await lab.move(1, lab.worker(0) or 0) == (len(spread) == 2)
        await a.reconnect()
        await until(lambda: lab.worker(1) is not None, "port a to run")
        assert {lab.worker(0), lab.worker(1)} == {0, 1}, "spread, as for any guest"


async def test_moves_while_a_guest_comes_and_goes(lab: Lab) -> None:
    """A stop finds its ring wherever it is on its way; nothing waits for ever, and nothing is left behind."""
    moved = refused = 0
    done = asyncio.Event()

    async def move() -> None:
        nonlocal moved, refused
        while not done.is_set():
            for queue in (0, 1):
                if await lab.move(queue, 1 - (lab.worker(queue) or 0)):
                    moved += 1
                else:
                    refused += 1
            await asyncio.sleep(0)

    async with lab.guest("a", queue_pairs=2) as a, lab.guest("b") as b:
        mover = asyncio.create_task(move())
        try:
            for turn in range(ROUNDS):
                match turn % 4:
                    case 0:
                        await a.restart()
                    case 1:
                        await a.reconnect()
                    case 2:
                        a.hang_up()
                        await a.connect()
                    case _:
                        await a.set_enabled(False, turn // 4 % 2)
                        await a.set_enabled(True)
                await until(lambda: lab.ports.port_state("a").link == "up", "the link of a")
                await a.announce()
                await flush_frames([b], a)
        finally:
            done.set()
            await mover
        for pair in (0, 1):
            sent = [frame(b.mac, a.mac, seed=i) for i in range(8)]
            for one in sent:
                await a.send(one, pair=pair)
            await expect(b, sent)
        await expect_only(b, a)
        assert lab.ports.port_stats("a").rx_drops == {}
    print(f"{moved} moves, {refused} refused")
    assert moved > ROUNDS


async def test_the_end_in_the_middle_of_a_move(lab: Lab) -> None:
    """A port goes while its queue is on its way: the handle is free when it is closed."""
    async with lab.guest("a") as a:
        task = asyncio.create_task(lab.move(0, 1 - (lab.worker() or 0)))
        await asyncio.sleep(0)
        task.cancel()  # as at the end of the switch; the command goes on
        await lab.ports.close()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await a.wait_hang_up()
