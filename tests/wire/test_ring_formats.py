# SPDX-License-Identifier: Apache-2.0
"""Split and packed rings, in order or not: guests of each format talk to each other, stop anywhere and go on, and break
only themselves. Sets of features and polling modes are in test_frames.py.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from pvswitch.driver import Event, Layout, PackedDesc
from pvswitch.generator import Load
from pvswitch.guest import DRIVER_FEATURES, OFFLOAD_FEATURES, Guest, GuestError
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import Request, VringState
from tests.wire.lab import PATIENCE, RINGS, expect, expect_only, flush_frames, frame, reach, stats, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
PACKED = [name for name, conf in RINGS.items() if conf.get("packed")]
NEXT, WRITE, INDIRECT = 1, 2, 4
RARP = b"\x80\x35"
TX, RX = 1, 0


async def plug(switch: SwitchProcess, stack: Stack, port: str, rings: str, **conf: Any) -> Guest:
    """A guest with rings of this format on a port."""
    guest = await stack.enter_async_context(Guest(switch.port_socket(port), **RINGS[rings], **conf))
    for bit, key in ((Feature.RING_PACKED, "packed"), (Feature.IN_ORDER, "in_order")):
        assert bool(guest.features & bit) == RINGS[rings].get(key, False)
    await switch.wait_link(port)
    return guest


async def acquaint(*guests: Guest) -> None:
    """The switch knows where each of them is; their receive rings are empty then.

    One frame at a time: a ring of one has no room for a second one before the first has been read.
    """
    for guest in guests:
        await guest.announce()
        for other in guests:
            while other is not guest and (await other.recv(PATIENCE))[6:14] != guest.mac + RARP:
                pass


def layouts(rings: str) -> list[Layout | None]:
    """Ways to lay out a frame that every format allows, and one more that is only packed rings'."""
    more = [Layout(cuts=(3, 12, 20), shuffle=True)] if rings in PACKED else []
    return [None, Layout(cuts=(12,)), Layout(cuts=(5, 12, 26, 40)), Layout(cuts=(12, 26), indirect=True), *more]


async def talk(a: Guest, b: Guest, shapes: list[Layout | None], number: int = 0) -> None:
    """A few frames of many lengths from a to b, several at a time."""
    sent = [frame(b.mac, a.mac, 60 + (i * 331 + number) % 1450, seed=number + i) for i in range(8)]
    for i, one in enumerate(sent):
        await a.send(one, layout=shapes[i % len(shapes)])
    await expect(b, sent)


@pytest.mark.parametrize("rings", RINGS)
async def test_every_format_talks_to_every_other(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    a = await plug(switch, stack, "a", rings)
    for other in RINGS:
        async with contextlib.AsyncExitStack() as inner:
            b = await plug(switch, inner, "b", other)
            await acquaint(a, b)
            for number in range(100):
                await talk(a, b, layouts(rings), number)
                await talk(b, a, layouts(other), number)
            for guest in (a, b):
                assert [guest.low.counters(ring).errors for ring in range(2)] == [0, 0]
                assert [guest.low.counters(ring).out_of_order for ring in range(2)] == [0, 0]


@pytest.mark.parametrize("rings", PACKED)
@pytest.mark.parametrize("size", [1, 3, 255, 257, 1000])
async def test_packed_rings_of_any_size(switch: SwitchProcess, stack: Stack, rings: str, size: int) -> None:
    a, b = [await plug(switch, stack, port, rings, queue_size=size) for port in "ab"]
    await acquaint(a, b)
    for sender, receiver in ((a, b), (b, a)):
        load = Load(
            dst=receiver.mac, src=sender.mac, len=300, window=min(size, 64), level=2, frames=5000, stall=PATIENCE
        )
        result = await sender.generate([receiver], load)
        assert (result.sent, result.received) == (load.frames, load.frames)
        assert (result.lost, result.reordered, result.corrupted, result.foreign, result.errors) == (0,) * 5


@pytest.mark.parametrize("rings", RINGS)
async def test_long_frames_over_many_buffers(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    """9,000 bytes in 2 KiB buffers, and TCP of 64 KiB that is left uncut."""
    features = DRIVER_FEATURES | OFFLOAD_FEATURES
    a, b = [await plug(switch, stack, port, rings, features=features, tx_buf_size=65_600) for port in "ab"]
    await acquaint(a, b)
    for load in (
        Load(dst=b.mac, src=a.mac, len=9000, window=16, level=2, frames=500, stall=PATIENCE),
        Load(dst=b.mac, src=a.mac, len=65_000, window=4, level=2, frames=100, stall=PATIENCE, gso=True),
    ):
        result = await a.generate([b], load)
        assert (result.received, result.lost, result.corrupted, result.errors) == (load.frames, 0, 0, 0)


@pytest.mark.parametrize("rings", RINGS)
async def test_rings_stop_anywhere_and_go_on_there(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    """As a VM that is paused: with frames not yet read and buffers posted, at every place, twice round."""
    size = 7 if rings in PACKED else 8
    a = await plug(switch, stack, "a", rings)
    b = await plug(switch, stack, "b", rings, queue_size=size)
    await acquaint(a, b)
    for number in range(3 * size):
        waiting = [frame(b.mac, a.mac, 200, seed=number), frame(b.mac, a.mac, 1000, seed=number)]
        sent = frame(a.mac, b.mac, 300, seed=number)
        before = (await stats(switch, "b"))["tx_packets"]
        for one in waiting:
            await a.send(one)
        await b.send(sent)
        await reach(switch, "b", {"tx_packets": before + len(waiting)})
        bases = await b.stop()
        if rings in PACKED:
            assert all(base >> 16 == base & 0xFFFF and base & 0x7FFF < size for base in bases)
            b.bases[TX] &= 0xFFFF  # as virtio-user 22.11 leaves it out
        assert b.low.vring_base(RX) == bases[RX]
        await b.start()
        await switch.wait_link("b")
        await expect(b, waiting)
        await expect(a, [sent])
        await b.drain()
    await expect_only(b, a)


@pytest.mark.parametrize("rings", RINGS)
async def test_a_guest_that_hangs_up_comes_back_with_its_rings(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    a, b = [await plug(switch, stack, port, rings) for port in "ab"]
    await acquaint(a, b)
    for number in range(5):
        await talk(a, b, [None], number)
        await talk(b, a, [None], number)
        await b.drain()
        await b.reconnect()
        await switch.wait_link("b")
    await talk(a, b, [None])


@pytest.mark.parametrize("rings", RINGS)
async def test_a_reboot_may_change_the_format(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    """The same NIC under one driver after another: new connections of one port agree on other rings."""
    a = await plug(switch, stack, "a", rings)
    for other in (*RINGS, rings):
        async with contextlib.AsyncExitStack() as inner:
            b = await plug(switch, inner, "b", other)
            accepted = {name.lower() for name in (await switch.get("/ports/b"))["state"]["features"]}
            assert accepted & {"ring_packed", "in_order"} == {
                name for name, key in (("ring_packed", "packed"), ("in_order", "in_order")) if RINGS[other].get(key)
            }
            await acquaint(a, b)
            await talk(a, b, [None])
            await b.restart()
            await switch.wait_link("b")
            await acquaint(a, b)
            await talk(b, a, [None])


@pytest.mark.parametrize("rings", RINGS)
async def test_pairs_of_each_format(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    """Several queue pairs, all of them used, each receive ring with frames of its own."""
    a, b = [await plug(switch, stack, port, rings, queue_pairs=4, queue_size=64) for port in "ab"]
    await acquaint(a, b)
    flows = [bytearray(frame(b.mac, a.mac, 120, seed=flow)) for flow in range(16)]
    for flow, one in enumerate(flows):  # UDP over IPv4, so that flows spread
        one[12:34] = bytes.fromhex("0800 4500 006a 0000 0000 4011 0000 c000 0201 c000 0202")
        one[34:42] = (1024 + flow).to_bytes(2) + bytes.fromhex("0050 0056 0000")
    for turn in range(20):
        for flow, one in enumerate(flows):
            await a.send(bytes(one), pair=(flow + turn) % 4)
        got = [await b.receive(PATIENCE) for _ in flows]
        assert sorted(one.frame for one in got) == sorted(bytes(one) for one in flows)
        assert len({one.pair for one in got}) > 1
    for guest in (a, b):
        assert all(guest.low.counters(ring).errors == 0 for ring in range(8))


# ---- what goes wrong


BROKEN: dict[str, tuple[list[PackedDesc], str]] = {
    "id": ([PackedDesc(0, 100, 256)], "buffer id beyond the ring's size"),
    "loop": ([PackedDesc(0, 1, 0, NEXT)] * 256, "longer than the ring"),
    "address": ([PackedDesc(2**64 - 50, 100, 0)], "outside the memory"),
    "indirect_in_list": ([PackedDesc(0, 100, 0, NEXT), PackedDesc(0, 16, 0, INDIRECT)], "linked to an indirect one"),
    "indirect_size": ([PackedDesc(0, 17, 0, INDIRECT)], "not a multiple of 16"),
}


@pytest.mark.parametrize("rings", PACKED)
@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_packed_ring_is_said_and_heals(
    switch: SwitchProcess, stack: Stack, rings: str, how: str
) -> None:
    a, b = [await plug(switch, stack, port, rings) for port in "ab"]
    bad = await plug(switch, stack, "c", rings)
    await acquaint(a, b)
    chain, reason = BROKEN[how]
    scratch = bad.low.scratch_gpa
    bad.low.packed_post(TX, *(PackedDesc(d.addr or scratch, d.len, d.id, d.flags) for d in chain))
    bad.low.kick(TX, force=True)
    await switch.wait_link("c", "broken")
    assert reason in (await switch.get("/ports/c"))["state"]["message"]
    await talk(a, b, [None])
    await bad.restart()
    await switch.wait_link("c")
    await acquaint(a, b, bad)
    await talk(bad, b, [None])


@pytest.mark.parametrize("rings", PACKED)
@pytest.mark.parametrize("index", [256, 0x7FFF])
async def test_a_base_beyond_the_ring_is_refused(switch: SwitchProcess, stack: Stack, rings: str, index: int) -> None:
    guest = Guest(switch.port_socket("a"), **RINGS[rings])
    stack.callback(guest.kill)
    await guest.connect(start=False)
    guest.bases = [0x8000 | index] * 2
    with pytest.raises(GuestError, match=r"refused SET_VRING_|hung up"):
        await guest.start()
    guest.kill()
    a, b = [await plug(switch, stack, port, rings) for port in "ab"]
    await acquaint(a, b)
    await talk(a, b, [None])


async def test_a_size_that_only_packed_rings_have_is_refused_for_split_ones(
    switch: SwitchProcess, stack: Stack
) -> None:
    guest = await plug(switch, stack, "a", "split_in_order")
    await guest.stop()
    with pytest.raises(GuestError, match=r"refused SET_VRING_NUM|hung up"):
        await guest.request(Request.SET_VRING_NUM, VringState(0, 255))


@pytest.mark.parametrize("rings", PACKED)
async def test_memory_that_is_not_shared_is_found_out(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    """It kicks, and nothing ever appears in the memory that we have: zeros, in which no descriptor is available."""
    guest = Guest(switch.port_socket("a"), share=False, **RINGS[rings])
    stack.push_async_callback(guest.close)
    await guest.connect()
    await guest.send(frame(b"\xff" * 6, guest.mac))
    await switch.wait_link("a", "memory_not_shared")


@pytest.mark.parametrize("rings", PACKED)
async def test_nonsense_about_calls_hurts_only_its_guest(switch: SwitchProcess, stack: Stack, rings: str) -> None:
    """Event positions that don't exist, and flags that mean nothing: no call, or one too many, and no harm."""
    a, b = [await plug(switch, stack, port, rings) for port in "ab"]
    odd = await plug(switch, stack, "c", rings)
    await acquaint(a, b, odd)
    for number, event in enumerate(
        [Event(0xFFFF, 2), Event(0x7FFF, 2), Event(256, 2), Event(0, 3), Event(0, 0xFFFF), Event(0x8000, 1)]
    ):
        before = (await stats(switch, "c"))["tx_packets"]
        odd.low.set_event(RX, event)
        sent = frame(odd.mac, a.mac, 100, seed=number)
        await a.send(sent)
        await reach(switch, "c", {"tx_packets": before + 1})
        assert odd.recv_nowait() == sent
        await talk(a, b, [None], number)
    assert await switch.link("c") == "up"


@pytest.mark.parametrize("rings", PACKED)
@pytest.mark.parametrize("region", range(3))
async def test_truncated_memory_under_packed_rings(
    switch: SwitchProcess, stack: Stack, rings: str, region: int
) -> None:
    """After the rings have gone round once, so that zeros are what used descriptors look like."""
    a, b = [await plug(switch, stack, port, rings) for port in "ab"]
    victim = Guest(switch.port_socket("c"), regions=3, queue_size=5, **RINGS[rings])
    stack.callback(victim.kill)
    await victim.connect()
    await switch.wait_link("c")
    await acquaint(a, b, victim)
    for number in range(4):
        await a.send(frame(victim.mac, a.mac, 500, seed=number))
        await victim.recv(PATIENCE)
        await victim.send(frame(b.mac, victim.mac, 500, seed=number))
        await b.recv(PATIENCE)
    victim.low.truncate(region)

    async def noticed() -> bool:
        await flush_frames([b], a)  # a flood makes the switch write into every receiver's memory
        victim.low.kick(TX, force=True)
        return await switch.link("c") == "broken"

    await until(noticed, "the port to be broken")
    assert "truncated" in (await switch.get("/ports/c"))["state"]["message"]
    for number in range(20):
        await talk(a, b, [None], number)
