# SPDX-License-Identifier: Apache-2.0
"""What the tests on the wire share: statistics, patience, and the guests' side of an exchange of frames."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from pvswitch.guest import DRIVER_FEATURES, Guest
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from tests.system.footprint import footprint

PATIENCE = 20.0
"""Seconds for what must happen: far beyond what any machine needs."""

FEATURE_SETS: dict[str, int] = {
    "all": DRIVER_FEATURES,
    "no_mrg_rxbuf": DRIVER_FEATURES & ~Feature.MRG_RXBUF,
    "no_event_idx": DRIVER_FEATURES & ~Feature.EVENT_IDX,
    "no_indirect": DRIVER_FEATURES & ~Feature.INDIRECT_DESC,
    "none": int(Feature.VERSION_1),
    "legacy": DRIVER_FEATURES & ~Feature.VERSION_1 & ~Feature.MRG_RXBUF,
    "legacy_mrg": DRIVER_FEATURES & ~Feature.VERSION_1,
    "in_order": DRIVER_FEATURES | Feature.IN_ORDER,
    "packed": DRIVER_FEATURES | Feature.RING_PACKED,
    "packed_no_mrg_rxbuf": (DRIVER_FEATURES | Feature.RING_PACKED) & ~Feature.MRG_RXBUF,
    "packed_none": int(Feature.VERSION_1 | Feature.RING_PACKED),
    "packed_in_order": DRIVER_FEATURES | Feature.RING_PACKED | Feature.IN_ORDER,
}
RINGS: dict[str, dict[str, Any]] = {
    "split": {},
    "split_in_order": {"in_order": True},
    "packed": {"packed": True},
    "packed_in_order": {"packed": True, "in_order": True},
}
"""What a guest is made with for each format of its rings."""
POLLING = ("adaptive", "busy", "interrupt")
SENTINEL_TYPE = b"\x88\xb6"


def frame(dst: bytes, src: bytes, length: int = 60, seed: int = 0) -> bytes:
    """A frame of an experimental type with a recognisable payload."""
    head = dst + src + b"\x88\xb5"
    return head + bytes((seed + i) & 0xFF for i in range(length - len(head)))


async def stats(switch: SwitchProcess, port: str) -> dict[str, Any]:
    """A port's counters."""
    found: dict[str, Any] = await switch.get(f"/ports/{port}/stats")
    return found


async def reach(switch: SwitchProcess, port: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Wait until a port's counters hold these values; the last look at them. Sums are checked on the way."""
    seen: dict[str, Any] = {}

    async def reached() -> bool:
        seen.update(await stats(switch, port))
        return all(seen[key] == value for key, value in wanted.items())

    try:
        await switch.wait_until(reached, f"counters of {port}", PATIENCE)
    except Exception:
        assert {key: seen[key] for key in wanted} == wanted
        raise
    assert seen["rx_dropped"] == sum(seen["rx_drops"].values())
    assert seen["tx_dropped"] == sum(seen["tx_drops"].values())
    return seen


async def expect(guest: Guest, frames: Iterable[bytes]) -> list[int]:
    """These frames, in this order, byte for byte; the number of buffers that each took."""
    buffers = []
    for wanted in frames:
        got = await guest.receive(PATIENCE)
        assert got.frame == wanted, f"{len(got.frame)} bytes instead of {len(wanted)}"
        buffers.append(got.header.num_buffers)
    return buffers


async def expect_only(guest: Guest, sender: Guest, frames: Iterable[bytes] = ()) -> None:
    """These frames and nothing more: a sentinel that `sender` broadcasts comes right behind them."""
    sentinel = b"\xff" * 6 + sender.mac + SENTINEL_TYPE + os.urandom(46)
    await sender.send(sentinel)
    await expect(guest, [*frames, sentinel])


async def flush_frames(guests: Iterable[Guest], sender: Guest) -> None:
    """Forget what the guests have received so far, `sender` being the last who sent."""
    sentinel = b"\xff" * 6 + sender.mac + SENTINEL_TYPE + os.urandom(46)
    await sender.send(sentinel)
    for guest in guests:
        while await guest.recv(PATIENCE) != sentinel:
            pass


def held(pid: int) -> tuple[int, int, int]:
    """Descriptors, threads and guests' memory of a process."""
    now = footprint(pid)
    return now.fds, now.threads, now.guest_maps


async def until(true: Callable[[], Awaitable[bool]] | Callable[[], bool], what: str) -> None:
    """Look again and again until it is true; fails after PATIENCE."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                result = true()
                if await result if isinstance(result, Awaitable) else result:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE:.0f} s in vain for {what}") from None


async def until_holds(pid: int, wanted: tuple[int, int, int]) -> None:
    """Wait until a process holds exactly so much again, as `held` tells it."""
    try:
        await until(lambda: held(pid) == wanted, "descriptors, threads and maps")
    except AssertionError:
        assert held(pid) == wanted
