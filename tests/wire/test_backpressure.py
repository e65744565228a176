# SPDX-License-Identifier: Apache-2.0
"""Receivers that are slow or have stopped: what is dropped is counted, what waits arrives, nobody is held for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.vlans import S_TAG, Tag, build
from tests.wire.lab import PATIENCE, expect, expect_only, flush_frames, frame, reach, stats
from tests.wire.offloads import ALL, LARGEST, PLAIN, finished, requests

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
LONG, SHORT = 1.0, 0.3
"""Seconds for which the ports `long` and `short` let known unicast wait."""
HELD = 0.8 * SHORT
"""What a test may ask for at least: the switch's clock is that of its round's beginning."""
CONFIG: dict[str, Any] = {
    "ports": {
        "a": {},
        "b": {},
        "fast": {"on_full": "backpressure", "backpressure_ms": round(LONG * 1000)},
        "drop": {"on_full": "drop"},
        "long": {"on_full": "backpressure", "backpressure_ms": round(LONG * 1000)},
        "short": {"on_full": "backpressure", "backpressure_ms": round(SHORT * 1000)},
    },
}
RING = 64
FRAMES = 1500
PAUSE = 0.002
"""Seconds between two frames that a slow receiver takes: far less than 1 % of what is sent in that time."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


async def plug(switch: SwitchProcess, stack: Stack, *ports: str, **conf: Any) -> list[Guest]:
    """Guests on these ports, all known to the switch."""
    guests = [
        await stack.enter_async_context(Guest(switch.port_socket(port), **{"queue_size": RING, **conf}))
        for port in ports
    ]
    for guest in guests:
        await guest.announce()
        await flush_frames([other for other in guests if other is not guest], guest)
    for guest in guests:
        await guest.drain()
    return guests


def numbered(sender: Guest, receiver: Guest, count: int, first: int = 0) -> list[bytes]:
    return [frame(receiver.mac, sender.mac, 60) + i.to_bytes(4, "big") for i in range(first, first + count)]


async def send_all(sender: Guest, frames: Sequence[bytes]) -> None:
    """As fast as the ring allows, for as long as it takes."""
    for i, one in enumerate(frames):
        await sender.send(one)
        if i % 16 == 0:
            await asyncio.sleep(0)
    await sender.drain()


async def take_slowly(receiver: Guest, count: int) -> tuple[list[bytes], float]:
    """So many frames, or as many as come, with a pause after each; the longest time in which nothing was taken."""
    taken: list[bytes] = []
    longest, before = 0.0, time.monotonic()
    with contextlib.suppress(TimeoutError):
        while len(taken) < count:
            taken.append(await receiver.recv(PATIENCE / 4))
            now = time.monotonic()
            longest, before = max(longest, now - before), now
            await asyncio.sleep(PAUSE)
    return taken, longest


def require_speed(longest: float, bound: float) -> None:
    """No machine is too slow for a test: one that stands still for longer than frames wait proves nothing."""
    if longest >= bound:
        pytest.skip(f"this machine gave the receiver no turn for {longest:.1f} s")


async def test_drop_counts_exactly(switch: SwitchProcess, stack: Stack) -> None:
    """A receiver that takes one frame of a hundred: received and dropped are what was sent, to the frame."""
    a, slow = await plug(switch, stack, "a", "drop")
    count = 20_000
    before_a, before = await stats(switch, "a"), await stats(switch, "drop")
    sent = numbered(a, slow, count)
    got: list[bytes] = []
    for i in range(0, count, 100):
        await send_all(a, sent[i : i + 100])
        got.append(await slow.recv(PATIENCE))
    rest: list[bytes] = []
    while (one := slow.recv_nowait()) is not None:
        rest.append(one)
    got += rest
    assert got == sorted(got, key=lambda one: one[-4:])
    assert len(set(got)) == len(got)
    assert len(got) < count / 50
    drops = dict(before["tx_drops"])
    drops["guest_rx_full"] = drops.get("guest_rx_full", 0) + count - len(got)
    await reach(switch, "drop", {"tx_packets": before["tx_packets"] + len(got), "tx_drops": drops})
    await reach(switch, "a", {"rx_packets": before_a["rx_packets"] + count, "rx_drops": before_a["rx_drops"]})


async def test_backpressure_loses_nothing(switch: SwitchProcess, stack: Stack) -> None:
    """Every frame of a known unicast stream arrives, in order, however slow its receiver."""
    a, slow = await plug(switch, stack, "a", "long")
    before_a, before = await stats(switch, "a"), await stats(switch, "long")
    sent = numbered(a, slow, FRAMES)
    _, (got, longest) = await asyncio.gather(send_all(a, sent), take_slowly(slow, FRAMES))
    require_speed(longest, LONG)
    assert len(got) == len(sent)
    assert got == sent
    assert slow.recv_nowait() is None
    await reach(switch, "long", {"tx_packets": before["tx_packets"] + FRAMES, "tx_drops": before["tx_drops"]})
    await reach(switch, "a", {"rx_packets": before_a["rx_packets"] + FRAMES, "rx_drops": before_a["rx_drops"]})
    await expect_only(slow, a)


async def test_two_senders_wait_for_one_receiver(switch: SwitchProcess, stack: Stack) -> None:
    """Each stream is whole and in order; with two workers they wait in different ones."""
    a, b, slow = await plug(switch, stack, "a", "b", "long")
    before = await stats(switch, "long")
    each = FRAMES // 2
    streams = [numbered(one, slow, each) for one in (a, b)]
    _, _, (got, longest) = await asyncio.gather(
        send_all(a, streams[0]), send_all(b, streams[1]), take_slowly(slow, 2 * each)
    )
    require_speed(longest, LONG)
    assert len(got) == 2 * each
    for sender, sent in zip((a, b), streams, strict=True):
        assert [one for one in got if one[6:12] == sender.mac] == sent
    await reach(switch, "long", {"tx_packets": before["tx_packets"] + 2 * each, "tx_drops": before["tx_drops"]})


async def test_other_receivers_get_what_head_of_line_blocking_leaves(switch: SwitchProcess, stack: Stack) -> None:
    """A sender that alternates between a slow receiver and a fast one: both get all; at what rate is printed."""
    a, slow, fast = await plug(switch, stack, "a", "long", "fast", queue_size=256)
    alone = numbered(a, fast, FRAMES)
    start = time.monotonic()
    await asyncio.gather(send_all(a, alone), expect(fast, alone))
    rate_alone = FRAMES / (time.monotonic() - start)

    to_slow, to_fast = numbered(a, slow, FRAMES), numbered(a, fast, FRAMES)
    mixed = [one for both in zip(to_slow, to_fast, strict=True) for one in both]
    start = time.monotonic()
    _, (got, longest), _ = await asyncio.gather(send_all(a, mixed), take_slowly(slow, FRAMES), expect(fast, to_fast))
    rate_beside = FRAMES / (time.monotonic() - start)
    require_speed(longest, LONG)
    assert len(got) == len(to_slow)
    assert got == to_slow
    print(f"frames/s at the fast receiver: {rate_alone:.0f} alone, {rate_beside:.0f} beside one that takes as many")


async def test_a_receiver_that_has_stopped_holds_its_sender_once(switch: SwitchProcess, stack: Stack) -> None:
    """For the bound, not for the bound with each frame; then its frames are dropped at once, until it takes one."""
    a, dead, fast = await plug(switch, stack, "a", "short", "fast", queue_size=256)
    before = await stats(switch, "short")
    filling, others = numbered(a, dead, 256), 400
    await send_all(a, filling)
    to_dead, to_fast = numbered(a, dead, others, 256), numbered(a, fast, others)
    mixed = [one for both in zip(to_dead, to_fast, strict=True) for one in both]
    start = time.monotonic()
    # held for each frame they would take 400 * 0.3 s, which is beyond all patience
    await asyncio.gather(send_all(a, mixed), expect(fast, to_fast))
    assert time.monotonic() - start >= HELD
    drops = dict(before["tx_drops"])
    drops["guest_rx_full"] = drops.get("guest_rx_full", 0) + others
    await reach(switch, "short", {"tx_packets": before["tx_packets"] + 256, "tx_drops": drops})

    await expect(dead, filling[:10])  # it lives again: ten frames fit, the next waits, and is dropped after the bound
    late = numbered(a, dead, 11, 9000)
    start = time.monotonic()
    await send_all(a, late)
    assert time.monotonic() - start >= HELD
    drops["guest_rx_full"] += 1
    await reach(switch, "short", {"tx_packets": before["tx_packets"] + 266, "tx_drops": drops})
    await expect(dead, [*filling[10:], *late[:10]])
    await expect_only(dead, a)


async def test_floods_never_wait(switch: SwitchProcess, stack: Stack) -> None:
    a, full, fast = await plug(switch, stack, "a", "long", "fast")
    filling = numbered(a, full, RING)
    await send_all(a, filling)
    before = await stats(switch, "long")
    for dst in (b"\xff" * 6, b"\x33\x33\x00\x00\x00\x01", b"\x02\x00\x00\x00\x99\x99"):
        start = time.monotonic()
        flood = [frame(dst, a.mac, 100, seed=i) for i in range(20)]
        await asyncio.gather(send_all(a, flood), expect(fast, flood))
        assert time.monotonic() - start < LONG, "they waited"
    drops = dict(before["tx_drops"])
    drops["guest_rx_full"] = drops.get("guest_rx_full", 0) + 60
    await reach(switch, "long", {"tx_packets": before["tx_packets"], "tx_drops": drops})
    await expect(full, filling)


async def test_a_waiting_sender_is_freed_when_its_receiver_goes(switch: SwitchProcess, stack: Stack) -> None:
    """Hung up, its ring disabled, its port switched off: the frame that waits is dropped, those behind it go on."""
    for way in ("kill", "disable", "admin_down"):
        async with contextlib.AsyncExitStack() as there:
            a, full, fast = await plug(switch, there, "a", "long", "fast")
            await send_all(a, numbered(a, full, RING))
            await a.send(numbered(a, full, 1, 999)[0])
            behind = numbered(a, fast, 5)
            match way:
                case "kill":
                    full.kill()
                case "disable":
                    await full.set_enabled(False)
                case _:
                    await switch.cli("port", "set", "long", "enabled=false")
            try:
                await asyncio.gather(send_all(a, behind), expect(fast, behind))
            finally:
                if way == "admin_down":
                    await switch.cli("port", "set", "long", "enabled=true")


# ---- segmentation under backpressure ----


async def test_every_segment_arrives_once_and_in_order(switch: SwitchProcess, stack: Stack) -> None:
    """A receiver without TSO whose ring is smaller than a frame has segments, and slow."""
    (a,) = await plug(switch, stack, "a", features=ALL, tx_buf_size=LARGEST + 12)
    (slow,) = await plug(switch, stack, "long", features=PLAIN, queue_size=16)
    for tag in (Tag(7), Tag(100, tpid=S_TAG)):  # of the frames below: what isn't known in its VLAN doesn't wait
        await slow.send(build("ff:ff:ff:ff:ff:ff", slow.mac.hex(":"), (tag,), 0))
    await flush_frames([a], slow)
    await flush_frames([slow], a)
    before_a, before = await stats(switch, "a"), await stats(switch, "long")
    kinds = ("tso4", "tso6_extended", "uso4", "tcp4", "tso4_fin", "uso6", "tso4_largest")
    asked = [requests(a.mac.hex(":"), slow.mac.hex(":"))[kind] for kind in kinds]
    wanted = [data for one in asked for data, _ in finished(one, slow.features)]

    async def send() -> None:
        for one in asked:
            await a.send(one.frame, header=one.header)
        await a.drain()

    _, (got, longest) = await asyncio.gather(send(), take_slowly(slow, len(wanted)))
    require_speed(longest, LONG)
    assert len(got) == len(wanted)
    assert got == wanted
    await expect_only(slow, a)
    await reach(switch, "long", {"tx_packets": before["tx_packets"] + len(wanted) + 1, "tx_drops": before["tx_drops"]})
    await reach(switch, "a", {"rx_packets": before_a["rx_packets"] + len(asked) + 1, "rx_drops": before_a["rx_drops"]})


async def test_segments_that_found_no_room_in_time_are_counted_each(switch: SwitchProcess, stack: Stack) -> None:
    (a,) = await plug(switch, stack, "a", features=ALL, tx_buf_size=LARGEST + 12)
    (dead,) = await plug(switch, stack, "short", features=PLAIN, queue_size=16)
    await flush_frames([dead], a)
    before = await stats(switch, "short")
    asked = requests(a.mac.hex(":"), dead.mac.hex(":"))["tso4"]
    wanted = [data for data, _ in finished(asked, dead.features)]
    start = time.monotonic()
    await a.send(asked.frame, header=asked.header)
    await a.drain()
    assert time.monotonic() - start >= HELD
    drops = dict(before["tx_drops"])
    drops["guest_rx_full"] = drops.get("guest_rx_full", 0) + len(wanted) - 16
    await reach(switch, "short", {"tx_packets": before["tx_packets"] + 16, "tx_drops": drops})
    await expect(dead, wanted[:16])
    await expect_only(dead, a)


async def test_a_frame_given_up_in_the_middle_leaves_the_next_ones_whole(switch: SwitchProcess, stack: Stack) -> None:
    """Its sender's ring is disabled, and so drained, while some of its segments wait."""
    (a,) = await plug(switch, stack, "a", features=ALL, tx_buf_size=LARGEST + 12)
    (slow,) = await plug(switch, stack, "long", features=PLAIN, queue_size=16)
    await flush_frames([slow], a)
    before_a, before = await stats(switch, "a"), await stats(switch, "long")
    asked = requests(a.mac.hex(":"), slow.mac.hex(":"))["tso4"]
    wanted = [data for data, _ in finished(asked, slow.features)]
    await a.send(asked.frame, header=asked.header)
    await reach(switch, "long", {"tx_packets": before["tx_packets"] + 16})
    await a.set_enabled(False)
    await a.drain()
    disabled = before_a["rx_drops"].get("queue_disabled", 0) + 1
    seen = await stats(switch, "a")
    if seen["rx_drops"].get("queue_disabled") != disabled:
        pytest.skip("the frame's time was over before its ring was disabled")
    await expect(slow, wanted[:16])
    await a.set_enabled(True)
    await a.send(asked.frame, header=asked.header)
    await expect(slow, wanted)
    await expect_only(slow, a)


@pytest.mark.parametrize("features", [ALL, PLAIN], ids=["to_one_that_takes_it", "to_one_like_the_first"])
async def test_a_waiting_frame_whose_destination_moves_arrives_whole(
    switch: SwitchProcess, stack: Stack, features: int
) -> None:
    """The MAC of its receiver turns up elsewhere while some of its segments wait: all of it is due there."""
    (a,) = await plug(switch, stack, "a", features=ALL, tx_buf_size=LARGEST + 12)
    (slow,) = await plug(switch, stack, "long", features=PLAIN, queue_size=16)
    (home,) = await plug(switch, stack, "b", features=features)
    await flush_frames([slow, home], a)
    before = await stats(switch, "long")
    asked = requests(a.mac.hex(":"), slow.mac.hex(":"))["tso4"]
    await a.send(asked.frame, header=asked.header)
    await reach(switch, "long", {"tx_packets": before["tx_packets"] + 16})
    await home.send(frame(a.mac, slow.mac))
    await a.drain()
    if (await stats(switch, "long"))["tx_drops"] != before["tx_drops"]:
        pytest.skip("the frame's time was over before its destination moved")
    await expect_only(home, a, [data for data, _ in finished(asked, home.features)])
