# SPDX-License-Identifier: Apache-2.0
"""Ring walking through the real switch: every legal layout arrives, every illegal ring is answered as it should be.

The judge is the slow reference device (tests/oracle.py), which reads the same guest memory for itself: it says what a
transmit ring holds, where the rules are broken and how, and what receive buffers look like after a frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pvswitch.driver import Desc, Driver, DriverConf, Layout
from tests.bench_switch import (
    ANY_LAYOUT,
    EVENT_IDX,
    IN_ORDER,
    INDIRECT,
    MODERN,
    MRG_RXBUF,
    PACKED,
    RX,
    TX,
    VERSION_1,
    BenchSwitch,
    guest_conf,
)
from tests.oracle import NEXT, WRITE, Chain, ReferenceDevice, ReferenceRing, RingError
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

MAC_A = bytes([2, 0, 0, 0, 0, 10])
FEATURES = [
    MODERN,
    MODERN & ~MRG_RXBUF,
    MODERN & ~EVENT_IDX,
    VERSION_1 | ANY_LAYOUT | INDIRECT,
    MRG_RXBUF | ANY_LAYOUT,
    ANY_LAYOUT,
]
OTHER_FORMATS = [
    MODERN | IN_ORDER,
    MODERN | PACKED,
    MODERN | PACKED | IN_ORDER,
    (MODERN | PACKED) & ~EVENT_IDX,
    (MODERN | PACKED | IN_ORDER) & ~MRG_RXBUF,
    VERSION_1 | PACKED,
]
"""Of rings; what is illegal in packed ones is in test_rings_packed.py."""
QUEUE = 16


def frame_of(length: int, seed: int = 0) -> bytes:
    return (MAC_B + MAC_A + b"\x88\xb5").ljust(14, b"\0") + bytes((seed + 7 * i) & 0xFF for i in range(length - 14))


def reference(guest: Driver) -> ReferenceDevice:
    """It goes on where the guest's rings stand."""
    base = (guest.vring_base(RX) & 0xFFFF, guest.vring_base(TX) & 0xFFFF)
    return ReferenceDevice(guest.regions(), guest.vring(RX), guest.vring(TX), guest.features, base=base)


def blank_wishes(guest: Driver, memory: list[bytearray], ring: int) -> None:
    """Forget how the device asks for kicks: used->flags and avail_event, or its event area, are its own business."""
    v = guest.vring(ring)
    if guest.features & PACKED:
        blank(guest, memory, v.used_uva, 4)
        return
    blank(guest, memory, v.used_uva, 2)
    blank(guest, memory, v.used_uva + 4 + 8 * v.num, 2)


@contextmanager
def switch_with(a: DriverConf, b: DriverConf | None = None) -> Iterator[BenchSwitch]:
    """Guest a on a switch with b, both known to the FDB's static part."""
    with BenchSwitch() as switch:
        fdb = switch.add_bridge()
        switch.add_port("a", a)
        switch.add_port("b", b or guest_conf())
        fdb.set_static(MAC_A, 0, switch.ports["a"].handle.ref)
        fdb.set_static(MAC_B, 0, switch.ports["b"].handle.ref)
        yield switch


# ---- legal rings ----


@st.composite
def layouts(draw: st.DrawFn, features: int, longest: int) -> Layout | None:
    cuts = draw(st.lists(st.integers(1, longest), max_size=8, unique=True).map(sorted))
    packed, in_order = bool(features & PACKED), bool(features & IN_ORDER)
    indirect = bool(features & INDIRECT) and draw(st.booleans())
    direct = draw(st.integers(0, 3)) if indirect and not packed else 0
    shuffle = (packed or not in_order) and draw(st.booleans())
    return Layout(tuple(cuts), indirect, direct, shuffle, draw(st.booleans()))


@st.composite
def shapes(draw: st.DrawFn) -> DriverConf:
    features = draw(st.sampled_from(FEATURES + OTHER_FORMATS))
    conf = guest_conf(
        features,
        queue_size=draw(st.sampled_from([11, QUEUE])) if features & PACKED else QUEUE,
        tx_buf_size=12_000,
        seed=draw(st.integers(1, 9)),
    )
    regions = draw(st.integers(1, 4))
    return replace(
        conf,
        regions=regions,
        adjacent=draw(st.booleans()),
        one_file=draw(st.booleans()),
        rx_buf_size=draw(st.sampled_from([64, 100, 512, 1526, 2048, 9100])),
    )


@given(data=st.data(), conf_a=shapes(), conf_b=shapes())
@settings(max_examples=120, deadline=None)
def test_every_legal_layout_arrives_as_the_reference_device_says(
    data: st.DataObject, conf_a: DriverConf, conf_b: DriverConf
) -> None:
    """What the reference device reads from a's ring is what b gets, byte for byte, in b's whole memory.

    And b is called when the reference device calls its twin.
    """
    with switch_with(conf_a, conf_b) as switch, closing(Driver(conf_b)) as twin, closing(reference(twin)) as device:
        a, b = switch.ports["a"].guest, switch.ports["b"].guest
        switch.settle()
        device.rx.publish()
        assert [called(b), called(twin)] == [True, True]  # when their rings start
        for _ in range(data.draw(st.integers(1, 20))):
            rx_layout = data.draw(layouts(conf_b.features, conf_b.rx_buf_size))
            posted = data.draw(st.integers(0, QUEUE))
            assert switch.post("b", posted, rx_layout) == twin.rx_fill(posted, layout=rx_layout)
            for wish in data.draw(st.lists(st.sampled_from([Driver.arm, Driver.disarm]), max_size=1)):
                assert wish(b, RX) == wish(twin, RX)
            frame = frame_of(data.draw(st.integers(14, 200) | st.sampled_from([1514, 2036, 2037, 9014])))
            switch.send("a", frame, data.draw(layouts(conf_a.features, len(frame))))
            with closing(reference(a)) as reader:
                reader.tx.publish = lambda: False  # type: ignore[method-assign]
                reader.tx.use = lambda chain, written: None  # type: ignore[method-assign]
                header, seen = reader.take() or (b"", b"")
            assert (header, seen) == (bytes(a.hdr_len), frame)
            drops = switch.counters("b").tx_drops
            switch.settle()
            # The net header is zero but for num_buffers, which the reference device writes too.
            if not device.give(seen):
                assert switch.counters("b").tx_drops != drops
            assert called(b) == called(twin)
            assert_same_memory(b, twin)
            assert switch.received("b") == received(twin)
            assert a.tx_reap() == 1
        assert [p.handle.broken() for p in switch.ports.values()] == [None, None]


def called(guest: Driver) -> bool:
    """Has the guest been called about received frames since the last time?"""
    with suppress(BlockingIOError):
        return os.eventfd_read(guest.vring(RX).call_fd) > 0
    return False


def received(guest: Driver) -> list[bytes]:
    frames = []
    while (got := guest.rx()) is not None:
        frames.append(got[0])
    return frames


def assert_same_memory(guest: Driver, twin: Driver) -> None:
    """Two guests built alike, one served by the switch and one by the reference device, hold the same bytes."""
    memories = []
    for g in (guest, twin):
        memory = memory_of(g)
        for ring in (RX, TX):
            blank_wishes(g, memory, ring)
        memories.append(memory)
    assert memories[0] == memories[1]


@pytest.mark.parametrize("features", FEATURES + OTHER_FORMATS)
def test_a_burst_longer_than_the_worker_takes_at_once(features: int) -> None:
    """As many frames as the ring holds, twice round the index's 16 bits: in order, none lost."""
    with switch_with(
        guest_conf(features, queue_size=256, tx_buf_size=256), guest_conf(features, queue_size=256, rx_buf_size=256)
    ) as switch:
        sent = 0
        while sent < 2 * 65_536:
            switch.post("b")
            burst = [frame_of(60, seed=sent + i) for i in range(256)]
            for frame in burst:
                switch.ports["a"].guest.tx(frame)
            switch.ports["a"].guest.kick(TX)
            switch.settle()
            assert switch.received("b") == burst
            assert switch.ports["a"].guest.tx_reap() == 256
            sent += 256
        assert switch.counters("a").values["rx_packets"] == switch.counters("b").values["tx_packets"] == sent


# ---- illegal transmit rings ----


@dataclass(frozen=True)
class Illegal:
    """What to write into a ring: descriptors of the ring, of an indirect table in scratch memory, and heads."""

    ring: tuple[Desc, ...]
    table: tuple[Desc, ...]
    heads: tuple[int, ...]
    jump: int | None


@st.composite
def descriptors(draw: st.DrawFn, guest: Driver, direction: int) -> Desc:
    addr, length, flags, following = draw(descriptor_words(guest, QUEUE, direction, (0, NEXT)))
    return Desc(addr, length, flags, following)


@st.composite
def illegal_rings(draw: st.DrawFn, guest: Driver, direction: int) -> Illegal:
    ring, table = (tuple(draw(descriptors(guest, direction)) for _ in range(QUEUE)) for _ in range(2))
    heads = draw(st.lists(st.integers(0, QUEUE - 1), min_size=1, max_size=6))
    odd, jump = draw(st.integers(0, 19)), None
    if odd == 0:
        heads.append(draw(st.integers(QUEUE, 65_535)))
    elif odd == 1:
        jump = draw(st.integers(QUEUE + 1, 65_535))
    return Illegal(ring, table, tuple(heads), jump)


def write_ring(guest: Driver, ring: int, wrong: Illegal) -> None:
    """Put it into guest memory: net headers are found where zeros are, frames behind them."""
    for i, desc in enumerate(wrong.ring):
        guest.set_desc(ring, i, desc)
    raw = b"".join(
        d.addr.to_bytes(8, "little")
        + d.len.to_bytes(4, "little")
        + d.flags.to_bytes(2, "little")
        + d.next.to_bytes(2, "little")
        for d in wrong.table
    )
    fill_scratch(guest, raw)
    for head in wrong.heads:
        guest.raw_post(ring, head)
    if wrong.jump is not None:
        guest.set_avail_idx(ring, guest.used_idx(ring) + wrong.jump)


class JudgedRing(ReferenceRing):
    """The reference's ring, telling a bad indirect table from a bad buffer."""

    def _check_indirect(self, addr: int, length: int, flags: int, nested: bool) -> None:
        try:
            super()._check_indirect(addr, length, flags, nested)
        except RingError as error:
            raise RingError("indirect_address" if error.reason == "address" else error.reason) from error


@dataclass
class Verdict:
    """What must become of a ring: its chains up to the illegal one, and the reason, if there is one."""

    chains: list[Chain]
    frames: list[bytes | None]  # None: malformed
    reason: str | None


def judge_tx(guest: Driver) -> Verdict:
    with closing(reference(guest)) as device:
        ring = JudgedRing(device.memory, guest.vring(TX), guest.features)
        verdict = Verdict([], [], None)
        try:
            while (chain := ring.peek(len(verdict.chains))) is not None:
                data = b"".join(device.memory.read(s.gpa, s.length) for s in chain.segments)
                verdict.chains.append(chain)
                verdict.frames.append(frame_in(data, chain, device.hdr_len))
        except RingError as error:
            verdict.reason = error.reason
        return verdict


@given(data=st.data(), features=st.sampled_from(FEATURES))
@settings(max_examples=200, deadline=None)
def test_an_illegal_transmit_ring_breaks_its_own_port_and_nothing_else(data: st.DataObject, features: int) -> None:
    conf = guest_conf(features, queue_size=QUEUE, tx_buf_size=256)
    with switch_with_evil(conf) as (switch, evil):
        wrong = data.draw(illegal_rings(evil, 0))
        write_ring(evil, TX, wrong)
        verdict = judge_tx(evil)
        event(f"latched: {verdict.reason}, after {len(verdict.frames)} chains")
        before = memory_of(evil)
        evil.kick(TX, force=True)
        frame = MAC_C + MAC_B + b"\x88\xb5" + bytes(50)
        switch.send("b", frame)
        switch.settle()

        assert_as_judged(switch, verdict.frames, verdict.reason, frame)
        # Every chain before the illegal one is given back, with nothing written.
        used = [evil.raw_take(TX) for _ in verdict.chains]
        assert used == [(chain.head, 0) for chain in verdict.chains]
        assert evil.raw_take(TX) is None
        assert_only_used_ring_changed(evil, before, TX)
        # Broken is for this life only.
        if verdict.reason is not None:
            switch.heal("evil")
            assert switch.ports["evil"].handle.broken() is None
            switch.send("evil", frame)
            switch.settle()
            assert switch.received("c")[-1] == frame


def assert_only_used_ring_changed(guest: Driver, before: list[bytearray], ring: int) -> None:
    after, v = memory_of(guest), guest.vring(ring)
    for memory in (before, after):
        blank(guest, memory, v.used_uva, 4 + 8 * v.num + 2)
    assert before == after


# ---- illegal receive rings ----


def judge_rx(guest: Driver, frame: bytes) -> tuple[list[Chain], str | None]:
    """The chains that the next frame takes, or why there are none: a latched reason, or "full" or "too_small"."""
    with closing(reference(guest)) as device:
        used = guest.used_idx(RX)
        ring = JudgedRing(device.memory, guest.vring(RX), guest.features, last_avail=used, used_idx=used)
        need, room = device.hdr_len + len(frame), 0
        chains: list[Chain] = []
        try:
            while room < need:
                chain = ring.peek(len(chains))
                if chain is None:
                    return [], "full"
                if not all(s.writable for s in chain.segments):
                    return [], "rx_readable"
                if chain.length < device.hdr_len:
                    return [], "rx_short"
                chains.append(chain)
                room += chain.length
                if room < need and not device.mrg:
                    return [], "too_small"
        except RingError as error:
            return [], error.reason
        return chains, None


@given(data=st.data(), features=st.sampled_from(FEATURES))
@settings(max_examples=200, deadline=None)
def test_an_illegal_receive_ring_breaks_its_own_port_and_nothing_else(data: st.DataObject, features: int) -> None:
    conf = guest_conf(features, queue_size=QUEUE, tx_buf_size=256, rx_buf_size=256)
    with switch_with_evil(conf) as (switch, evil):
        write_ring(evil, RX, data.draw(illegal_rings(evil, WRITE)))
        drops: dict[str, int] = {"guest_rx_full": 0, "guest_rx_too_small": 0}
        delivered, reason = 0, None
        for i in range(4):
            frame = b"\xff" * 6 + MAC_B + b"\x88\xb5" + bytes([i]) * data.draw(st.integers(0, 400))
            chains, obstacle = judge_rx(evil, frame) if reason is None else ([], "down")
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
            assert_written_in_buffers_only(evil, before, chains, frame)
        event(f"latched: {reason}, delivered: {delivered}")
