# SPDX-License-Identifier: Apache-2.0
"""Guests with several queue pairs: each frame arrives once, by the pair that belongs to its flow; pairs come and go."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from pvswitch.guest import DRIVER_FEATURES, Guest, GuestError
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from tests.system.conftest import from_environment, running_switch
from tests.wire.lab import PATIENCE, expect_only, flush_frames, frame, reach, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
CONFIG: dict[str, Any] = {
    "ports": {"a": {"queues": 16}, "b": {"queues": 16}, "default": {}, "one": {"queues": 1}},
}
FLOWS = 64
RUN = b"\x88\xb7"
TOGGLES = from_environment("PVSWITCH_TEST_TOGGLES", 60)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[1, 2, 4], ids=["1_worker", "2_workers", "4_workers"]
)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


async def two_guests(switch: SwitchProcess, stack: Stack, a_pairs: int, b_pairs: int) -> tuple[Guest, Guest]:
    """On ports a and b, known to the switch; MACs are fixed, so that flows spread the same way each time."""
    a, b = [
        await stack.enter_async_context(
            Guest(switch.port_socket(port), mac=bytes([2, 0, 0, 0, 0, i]), queue_pairs=pairs, queue_size=128)
        )
        for i, (port, pairs) in enumerate((("a", a_pairs), ("b", b_pairs)), start=1)
    ]
    assert (a.pairs, b.pairs) == (a_pairs, b_pairs)
    for guest, other in ((a, b), (b, a)):
        await guest.announce()
        await flush_frames([other], guest)
        await guest.drain()
    return a, b


def flow(a: Guest, b: Guest, number: int, *, back: bool = False) -> bytes:
    """A frame of one of many flows from a to b, or of its other direction."""
    src, dst = (b, a) if back else (a, b)
    here, there = (2, 1) if back else (1, 2)
    ports = (80, 1024 + number) if back else (1024 + number, 80)
    l4 = (TCP if number % 2 else UDP)(sport=ports[0], dport=ports[1])
    ethernet = Ether(src=src.mac.hex(":"), dst=dst.mac.hex(":"))
    match number % 4:
        case 0:
            packet = ethernet / IP(src=f"192.0.2.{here}", dst=f"192.0.2.{there}") / l4
        case 1:
            packet = ethernet / IPv6(src=f"2001:db8::{here}", dst=f"2001:db8::{there}") / l4
        case 2:
            packet = ethernet / Dot1Q(vlan=7) / IP(src=f"198.51.100.{here}", dst=f"198.51.100.{there}") / l4
        case _:
            packet = ethernet / ARP(op=1 + back, psrc=f"203.0.113.{here}", pdst=f"203.0.113.{there}")
    return bytes(packet / bytes([number]) / bytes(40))


async def receive_all(guest: Guest, count: int) -> list[tuple[int, bytes]]:
    """So many frames: the pair and the bytes of each."""
    return [(got.pair, got.frame) for got in [await guest.receive(PATIENCE) for _ in range(count)]]


@pytest.mark.parametrize(("a_pairs", "b_pairs"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 16), (16, 1), (16, 3), (16, 16)])
async def test_frames_of_many_flows_arrive_once(
    switch: SwitchProcess, stack: Stack, a_pairs: int, b_pairs: int
) -> None:
    """By one pair for each flow, whichever pair it was sent by; flows spread; queues and port count the same."""
    a, b = await two_guests(switch, stack, a_pairs, b_pairs)
    before = {port: await stats(switch, port) for port in "ab"}
    pair_of: dict[int, set[int]] = {number: set() for number in range(FLOWS)}
    for turn in range(3):
        sent = [flow(a, b, number) for number in range(FLOWS)]
        for number, one in enumerate(sent):
            await a.send(one, pair=(number + turn) % a_pairs)
        got = await receive_all(b, FLOWS)
        assert sorted(one for _, one in got) == sorted(sent)
        for pair, one in got:
            pair_of[sent.index(one)].add(pair)
    assert all(len(pairs) == 1 for pairs in pair_of.values()), pair_of
    used = set().union(*pair_of.values())
    assert used <= set(range(b_pairs))
    assert len(used) >= min(b_pairs, 8), "flows don't spread"
    await expect_only(b, a)
    count = 3 * FLOWS + 1
    await reach(switch, "a", {"rx_packets": before["a"]["rx_packets"] + count, "rx_drops": before["a"]["rx_drops"]})
    await reach(switch, "b", {"tx_packets": before["b"]["tx_packets"] + count, "tx_drops": before["b"]["tx_drops"]})
    for guest in (a, b):
        for ring in range(guest.low.n_rings):
            assert guest.low.counters(ring).errors == 0


async def test_order_is_kept_within_a_flow(switch: SwitchProcess, stack: Stack) -> None:
    """Sixteen flows at once, each by a pair of its own."""
    a, b = await two_guests(switch, stack, 16, 16)
    rounds, window = 40, 4
    flows = [flow(a, b, number) for number in range(16)]
    arrived: dict[int, list[int]] = {number: [] for number in range(16)}
    for turn in range(rounds):
        for number in range(16):
            for i in range(window):
                await a.send(flows[number] + bytes([turn, i]), pair=number, kick=i + 1 == window)
        for _, one in await receive_all(b, 16 * window):
            arrived[one[-43]].append(one[-2] * window + one[-1])
    assert all(seen == list(range(rounds * window)) for seen in arrived.values())


@pytest.mark.parametrize("b_pairs", [2, 5, 16])
async def test_a_flow_is_received_by_the_pair_that_sends_it(switch: SwitchProcess, stack: Stack, b_pairs: int) -> None:
    """And follows it to another pair; whichever direction speaks first, whatever kind of flow."""
    a, b = await two_guests(switch, stack, 2, b_pairs)
    for number in range(4):
        to_b, to_a = flow(a, b, number), flow(a, b, number, back=True)
        for pair in [*range(b_pairs), 1, 0]:
            await b.send(to_a, pair=pair)
            assert await a.recv(PATIENCE) == to_a
            for sender_pair in range(2):
                await a.send(to_b, pair=sender_pair)
                got = await b.receive(PATIENCE)
                assert (got.pair, got.frame) == (pair, to_b)


async def test_a_flow_leaves_a_pair_that_is_disabled(switch: SwitchProcess, stack: Stack) -> None:
    """Its frames come by another one; when the pair is back and sends the flow, they return to it."""
    a, b = await two_guests(switch, stack, 1, 3)
    to_b, to_a = flow(a, b, 0), flow(a, b, 0, back=True)
    for pair in range(3):
        await b.send(to_a, pair=pair)
        assert await a.recv(PATIENCE) == to_a
        await b.set_enabled(False, pair)
        assert (await switch.get("/ports/b"))["state"]["queues"] == {"offered": 16, "enabled": 2}
        for _ in range(4):
            await a.send(to_b)
            got = await b.receive(PATIENCE)
            assert got.frame == to_b
            assert got.pair != pair
        await b.set_enabled(True, pair)
        await b.send(to_a, pair=pair)
        assert await a.recv(PATIENCE) == to_a
        await a.send(to_b)
        assert (await b.receive(PATIENCE)).pair == pair


async def test_link_is_up_while_a_pair_is_enabled(switch: SwitchProcess, stack: Stack) -> None:
    a, b = await two_guests(switch, stack, 2, 2)
    for pair in (0, 1):
        await b.set_enabled(False, pair)
        await switch.wait_link("b", "up" if pair == 0 else "queue_disabled")
    await b.set_enabled(True, 1)
    await switch.wait_link("b")
    sent = frame(b.mac, a.mac)
    await a.send(sent)
    got = await b.receive(PATIENCE)
    assert (got.pair, got.frame) == (1, sent)


async def test_pairs_come_and_go_under_traffic(switch: SwitchProcess, stack: Stack) -> None:
    """Nothing is lost but what is counted, nothing doubled, and each sum is exact on both sides."""
    a, b = await two_guests(switch, stack, 4, 4)
    before = {port: await stats(switch, port) for port in "ab"}
    rng = random.Random(1)
    done = asyncio.Event()
    sent: Counter[bytes] = Counter()
    got: Counter[bytes] = Counter()

    flows = [flow(a, b, number) for number in range(FLOWS)]

    async def send() -> None:
        number = 0
        while not done.is_set():
            one = flows[number % FLOWS] + number.to_bytes(4, "big")
            await a.send(one, pair=number % 4)
            sent[one] += 1
            number += 1
            if number % 16 == 0:
                await asyncio.sleep(0)

    async def take() -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                got[await b.recv(0.05)] += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        tasks.create_task(take())
        try:
            for _ in range(TOGGLES):
                guest = rng.choice((a, b))
                await guest.set_enabled(rng.random() < 0.7, rng.choice((None, *range(4))))
                await asyncio.sleep(0.002)
        finally:
            done.set()
    for guest in (a, b):
        await guest.set_enabled(True)
    await a.drain()

    async def settled() -> bool:
        while (one := b.recv_nowait()) is not None:
            got[one] += 1
        after = {port: await stats(switch, port) for port in "ab"}
        return bool(
            sum(got.values()) == after["b"]["tx_packets"] - before["b"]["tx_packets"]
            and after["a"]["rx_packets"] - before["a"]["rx_packets"] == sum(sent.values())
        )

    await switch.wait_until(settled, "the counters to be those of the guests", PATIENCE)
    rx, tx = await stats(switch, "a"), await stats(switch, "b")
    lost = sum(sent.values()) - sum(got.values())
    assert not got - sent, "frames that nobody sent, or twice"
    counted = rx["rx_dropped"] - before["a"]["rx_dropped"] + tx["tx_dropped"] - before["b"]["tx_dropped"]
    assert lost == counted
    assert set(rx["rx_drops"]) <= {"queue_disabled", "no_destination"}
    assert set(tx["tx_drops"]) <= {"link_down", "guest_rx_full"}
    assert sum(got.values()) > 0
    print(f"{sum(sent.values())} sent, {lost} counted as lost: {rx['rx_drops']} {tx['tx_drops']}")
    await flush_frames([b], a)
    await expect_only(b, a)


async def test_what_is_offered(switch: SwitchProcess, stack: Stack) -> None:
    """Eight pairs by default; a single one without MQ; more than offered is refused."""
    for port, pairs in (("a", 16), ("default", 8), ("one", 1)):
        guest = Guest(switch.port_socket(port), queue_pairs=pairs)
        stack.push_async_callback(guest.close)
        await guest.connect()
        assert guest.max_pairs == guest.pairs == pairs
        assert bool(guest.offered & Feature.MQ) == (pairs > 1)
        await switch.wait_link(port)
        queues = (await switch.get(f"/ports/{port}"))["state"]["queues"]
        assert queues == {"offered": pairs, "enabled": pairs}
    greedy = Guest(switch.port_socket("b"), queue_pairs=17)
    stack.callback(greedy.kill)
    with pytest.raises(GuestError, match="offers 16"):
        await greedy.connect()


async def test_a_driver_without_mq_on_a_nic_with_pairs(switch: SwitchProcess, stack: Stack) -> None:
    features = DRIVER_FEATURES & ~Feature.MQ
    a = await stack.enter_async_context(Guest(switch.port_socket("a"), queue_pairs=4, features=features))
    b = await stack.enter_async_context(Guest(switch.port_socket("b"), queue_pairs=4))
    assert (a.pairs, b.pairs) == (1, 4)
    await expect_only(b, a)
    await flush_frames([a], b)


async def test_pairs_after_a_reboot_and_a_reconnect(switch: SwitchProcess, stack: Stack) -> None:
    a, b = await two_guests(switch, stack, 3, 3)
    for again in (b.restart, b.reconnect):
        if again == b.reconnect:
            await b.stop()
        await again()
        await switch.wait_link("b")
        await b.announce()
        await flush_frames([a], b)
        for pair in range(3):
            to_a, to_b = flow(a, b, 1, back=True), flow(a, b, 1)
            await b.send(to_a, pair=pair)
            assert await a.recv(PATIENCE) == to_a
            await a.send(to_b)
            assert (await b.receive(PATIENCE)).pair == pair


async def test_workers_of_pairs(stack: Stack) -> None:
    """`rxq_affinity` names who polls a pair, the others are spread; each pair is served by its worker."""
    ports = {"a": {"queues": 4, "rxq_affinity": [2, 0]}, "b": {"queues": 2}}
    async with (
        running_switch({"ports": ports, "datapath": {"workers": 3}}) as switch,
        contextlib.AsyncExitStack() as own,
    ):
        a, b = [
            await own.enter_async_context(Guest(switch.port_socket(port), queue_pairs=pairs))
            for port, pairs in (("a", 4), ("b", 2))
        ]
        workers = {
            (port, q["queue"], q["direction"]): q["worker"]
            for port in "ab"
            for q in (await stats(switch, port))["queues"]
            if "worker" in q
        }
        assert [workers["a", pair, "rx"] for pair in (0, 1)] == [2, 0]
        assert {workers["a", pair, "rx"] for pair in range(4)} | {workers["b", pair, "rx"] for pair in (0, 1)} == {
            0,
            1,
            2,
        }
        assert all(workers[port, pair, "tx"] == worker for (port, pair, _), worker in workers.items())
        for pair in range(4):
            sent = flow(a, b, pair)
            await a.send(sent, pair=pair)
            assert await b.recv(PATIENCE) == sent
        assert all(worker["packets"] > 0 for worker in (await switch.get("/perf"))["items"])
