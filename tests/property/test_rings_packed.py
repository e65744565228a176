# SPDX-License-Identifier: Apache-2.0
"""Illegal packed rings through the real switch, judged by the slow reference device as in test_rings.py.

What is legal before the fault arrives and is given back, the fault is named, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from hypothesis import event, given, settings
from hypothesis import strategies as st

from pvswitch.driver import Driver, PackedDesc
from tests.bench_switch import (
    EVENT_IDX,
    IN_ORDER,
    INDIRECT,
    MODERN,
    MRG_RXBUF,
    PACKED,
    RX,
    TX,
    VERSION_1,
    guest_conf,
)
from tests.oracle import AVAIL, NEXT, USED, WRITE, Chain, PackedRing, Place, ReferenceDevice, RingError
from tests.property.illegal import (
    LATCHED,
    MAC_B,
    MAC_C,
    assert_as_judged,
    assert_written_in_buffers_only,
    blank,
    descriptor_words,
    fill_scratch,
    frame_in,
    memory_of,
    switch_with_evil,
)

FEATURES = [
    MODERN | PACKED,
    MODERN | PACKED | IN_ORDER,
    (MODERN | PACKED) & ~MRG_RXBUF,
    (MODERN | PACKED | IN_ORDER) & ~EVENT_IDX,
    VERSION_1 | PACKED | INDIRECT,
    VERSION_1 | PACKED | IN_ORDER,
]
SIZES = [1, 3, 8, 13, 16, 16]


@dataclass(frozen=True)
class Illegal:
    """What to write into a ring from `start` on, the first `available` of it made available; and an indirect table.

    `flipped` says for each descriptor which of AVAIL and USED are not as they should be.
    """

    start: int
    ring: tuple[PackedDesc, ...]
    available: int
    flipped: tuple[int, ...]
    table: tuple[PackedDesc, ...]


@st.composite
def descriptors(draw: st.DrawFn, guest: Driver, size: int, direction: int) -> PackedDesc:
    addr, length, flags, number = draw(descriptor_words(guest, size, direction, (0, 0, NEXT)))
    return PackedDesc(addr, length, number, flags)


@st.composite
def illegal_rings(draw: st.DrawFn, guest: Driver, direction: int) -> Illegal:
    size = guest.vring(TX).num
    ring, table = (tuple(draw(descriptors(guest, size, direction)) for _ in range(size)) for _ in range(2))
    flipped = tuple(draw(st.sampled_from([0] * 60 + [AVAIL, USED, AVAIL | USED])) for _ in range(size))
    available = draw(st.just(size) | st.integers(0, size))
    return Illegal(draw(st.integers(0, 2 * size - 1)), ring, available, flipped, table)


def base_of(start: int, size: int) -> int:
    """The place that a ring reaches after `start` descriptors, as SET_VRING_BASE says it."""
    return start % size | (0x8000 if start // size % 2 == 0 else 0)


def write_ring(guest: Driver, ring: int, wrong: Illegal) -> None:
    """Put it into guest memory: net headers are found where zeros are, frames behind them."""
    raw = b"".join(
        d.addr.to_bytes(8, "little")
        + d.len.to_bytes(4, "little")
        + d.id.to_bytes(2, "little")
        + d.flags.to_bytes(2, "little")
        for d in wrong.table
    )
    fill_scratch(guest, raw)
    size = guest.vring(ring).num
    for number, (desc, flip) in enumerate(zip(wrong.ring, wrong.flipped, strict=True)):
        base = base_of(wrong.start + number, size)
        ours = AVAIL if base & 0x8000 else USED
        if number >= wrong.available:
            ours = (AVAIL | USED) if not base & 0x8000 else 0  # used in the round before
        guest.set_packed_desc(ring, base & 0x7FFF, PackedDesc(desc.addr, desc.len, desc.id, desc.flags | ours ^ flip))


def packed_ring(device: ReferenceDevice, guest: Driver, ring: int, base: int) -> PackedRing:
    return PackedRing(device.memory, guest.vring(ring), guest.features, base)


def reference(guest: Driver) -> ReferenceDevice:
    return ReferenceDevice(guest.regions(), guest.vring(RX), guest.vring(TX), guest.features)


# ---- transmit ----


@dataclass
class Verdict:
    """What must become of a ring: its chains up to the illegal one, where they begin, and the reason."""

    chains: list[Chain]
    places: list[Place]
    frames: list[bytes | None]  # None: malformed
    reason: str | None
    behind: Place


def judge_tx(guest: Driver, base: int) -> Verdict:
    with closing(reference(guest)) as device:
        ring = packed_ring(device, guest, TX, base)
        verdict = Verdict([], [], [], None, ring.place)
        try:
            while (chain := ring.peek(len(verdict.chains))) is not None:
                data = b"".join(device.memory.read(s.gpa, s.length) for s in chain.segments)
                verdict.chains.append(chain)
                verdict.places.append(verdict.behind)
                verdict.frames.append(frame_in(data, chain, device.hdr_len))
                verdict.behind = ring.after(verdict.behind, chain.slots)
        except RingError as error:
            verdict.reason = error.reason
        return verdict


def assert_given_back(guest: Driver, before: list[bytearray], verdict: Verdict) -> None:
    """One used descriptor for each chain, where it began, or in order one for all; and no other byte has changed."""
    after, vring = memory_of(guest), guest.vring(TX)
    given = list(zip(verdict.places, verdict.chains, strict=True))
    if guest.features & IN_ORDER and given:
        given = [(verdict.places[0], verdict.chains[-1])]
    for place, chain in given:
        desc = guest.packed_desc(TX, place.index)
        assert (desc.id, desc.len, desc.flags) == (chain.head, 0, (AVAIL | USED) if place.wrap else 0)
        for memory in (before, after):
            blank(guest, memory, vring.desc_uva + 16 * place.index + 8, 8)
    for memory in (before, after):
        blank(guest, memory, vring.used_uva, 4)
    assert before == after


@given(data=st.data(), features=st.sampled_from(FEATURES), size=st.sampled_from(SIZES))
@settings(max_examples=300, deadline=None)
def test_an_illegal_packed_transmit_ring_breaks_its_own_port_and_nothing_else(
    data: st.DataObject, features: int, size: int
) -> None:
    conf = guest_conf(features, queue_size=size, tx_buf_size=256)
    with switch_with_evil(conf) as (switch, evil):
        wrong = data.draw(illegal_rings(evil, 0))
        base = base_of(wrong.start, size)
        switch.stop_ring("evil", TX)
        write_ring(evil, TX, wrong)
        verdict = judge_tx(evil, base)
        event(f"latched: {verdict.reason}, after {len(verdict.frames)} chains")
        before = memory_of(evil)
        switch.start_ring("evil", TX, base=base)
        frame = MAC_C + MAC_B + b"\x88\xb5" + bytes(50)
        switch.send("b", frame)
        switch.settle()

        assert_as_judged(switch, verdict.frames, verdict.reason, frame)
        assert_given_back(evil, before, verdict)
        stopped = switch.stop_ring("evil", TX)
        assert stopped == (verdict.behind.index | verdict.behind.wrap << 15) * 0x10001
        # Broken is for this life only.
        switch.heal("evil")
        assert switch.ports["evil"].handle.broken() is None
        switch.send("evil", frame)
        switch.settle()
        assert switch.received("c")[-1] == frame


# ---- receive ----


def judge_rx(guest: Driver, base: int, frame: bytes) -> tuple[list[Chain], int, str | None]:
    """The chains that the next frame takes and where the ring is then, or why there are none.

    That is a latched reason, or "full" or "too_small".
    """
    with closing(reference(guest)) as device:
        ring = packed_ring(device, guest, RX, base)
        need, room = device.hdr_len + len(frame), 0
        chains: list[Chain] = []
        try:
            while room < need:
                chain = ring.peek(len(chains))
                if chain is None:
                    return [], base, "full"
                if not all(s.writable for s in chain.segments):
                    return [], base, "rx_readable"
                if chain.length < device.hdr_len:
                    return [], base, "rx_short"
                chains.append(chain)
                room += chain.length
                if room < need and not device.mrg:
                    return [], base, "too_small"
        except RingError as error:
            return [], base, error.reason
        behind = ring.after(ring.place, sum(chain.slots for chain in chains))
        return chains, behind.index | behind.wrap << 15, None


def assert_used(guest: Driver, base: int, chains: Sequence[Chain], length: int) -> None:
    """Each chain has a used descriptor of its own, with the bytes written into it, in order or not."""
    with closing(reference(guest)) as device:
        ring = packed_ring(device, guest, RX, base)
        place = ring.place
        for chain in chains:
            desc, part = guest.packed_desc(RX, place.index), min(length, chain.length)
            flags = (AVAIL | USED if place.wrap else 0) | (WRITE if part else 0)
            assert (desc.id, desc.len, desc.flags) == (chain.head, part, flags)
            length -= part
            place = ring.after(place, chain.slots)


@given(data=st.data(), features=st.sampled_from(FEATURES), size=st.sampled_from(SIZES))
@settings(max_examples=300, deadline=None)
def test_an_illegal_packed_receive_ring_breaks_its_own_port_and_nothing_else(
    data: st.DataObject, features: int, size: int
) -> None:
    conf = guest_conf(features, queue_size=size, tx_buf_size=256, rx_buf_size=256)
    with switch_with_evil(conf) as (switch, evil):
        wrong = data.draw(illegal_rings(evil, WRITE))
        base = base_of(wrong.start, size)
        switch.stop_ring("evil", RX)
        write_ring(evil, RX, wrong)
        switch.start_ring("evil", RX, base=base)
        drops: dict[str, int] = {"guest_rx_full": 0, "guest_rx_too_small": 0}
        delivered, reason = 0, None
        for i in range(4):
            frame = b"\xff" * 6 + MAC_B + b"\x88\xb5" + bytes([i]) * data.draw(st.integers(0, 400))
            chains, behind, obstacle = judge_rx(evil, base, frame) if reason is None else ([], base, "down")
            if obstacle in LATCHED:
                reason = obstacle
            before = memory_of(evil)
            switch.send("b", frame)
            switch.settle()

            assert switch.received("c") == [frame]
            assert switch.ports["evil"].handle.broken() == (None if reason is None else LATCHED[reason])
            delivered += obstacle is None
            drops["guest_rx_full"] += obstacle == "full" or obstacle in LATCHED
            drops["guest_rx_too_small"] += obstacle == "too_small"
            seen = switch.counters("evil")
            assert seen.values["tx_packets"] == delivered
            assert seen.tx_drops == {name: n for name, n in drops.items() if n}
            assert_used(evil, base, chains, evil.hdr_len + len(frame))
            assert_written_in_buffers_only(evil, before, chains, frame)
            base = behind
        event(f"latched: {reason}, delivered: {delivered}")
