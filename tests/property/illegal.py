# SPDX-License-Identifier: Apache-2.0
"""What the tests of illegal rings share, whichever format these have: faults, a guest that has them, the judgement.

The guest `evil` has the ring, `b` and `c` are well-behaved neighbours: whatever happens to it must not happen to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hypothesis import strategies as st

from pvswitch.driver import Driver, DriverConf
from tests.bench_switch import PACKED, RX, BenchSwitch, guest_conf
from tests.oracle import INDIRECT as INDIRECT_FLAG
from tests.oracle import NEXT, WRITE, Chain
from tests.property.reference import Bridge, Guest, Port, ReferenceSwitch

MAC_B, MAC_C = (bytes([2, 0, 0, 0, 0, i]) for i in (11, 12))
TABLE = 0x8000  # offset of the indirect table in the 64 KiB of scratch memory
LATCHED = {
    "avail_jump": "the avail index moved by more than the ring's size",
    "head_range": "the avail ring names a descriptor beyond the ring's size",
    "next_range": "a descriptor's next field is beyond the table's size",
    "chain_long": "a descriptor chain is longer than the ring or 1024, or loops",
    "address": "a descriptor points outside the memory that the front end shared",
    "indirect_refused": "an indirect descriptor was used without the feature, or inside an indirect table",
    "indirect_size": "an indirect table is empty, too long, or not a multiple of 16 bytes",
    "indirect_next": "a descriptor has both INDIRECT and NEXT set, or is linked to an indirect one",
    "indirect_address": "an indirect table is not inside one region of the shared memory",
    "rx_readable": "a receive chain has device-readable descriptors",
    "rx_short": "a receive chain is smaller than the virtio-net header",
    "id_range": "a packed descriptor has a buffer id beyond the ring's size",
}


@st.composite
def descriptor_words(
    draw: st.DrawFn, guest: Driver, size: int, direction: int, links: Sequence[int]
) -> tuple[int, int, int, int]:
    """Address, length, flags and `next` or id of a descriptor in a ring of `size`; `links` are flags to draw from.

    Mostly legal: the interesting rings are wrong in one place, behind much that is right.
    """
    scratch, last = guest.scratch_gpa, guest.regions()[-1]
    flags = direction | draw(st.sampled_from(links))
    addr, length = scratch + draw(st.integers(0, 700)), draw(st.sampled_from([0, 1, 10, 12, 13, 14, 26, 60, 100, 300]))
    number = draw(st.integers(0, size - 1))
    match draw(st.integers(0, 39)):
        case 0:
            addr = draw(st.sampled_from([0, last.gpa + 2 * last.size, last.gpa + last.size - 5, (1 << 64) - 8]))
        case 1:
            length = draw(st.sampled_from([0x10001, 0x7FFF_FFFF, 0xFFFF_FFFF]))
        case 2:
            flags ^= WRITE
        case 3 | 11:
            number = draw(st.integers(size, 65_535))
        case 4:
            flags |= INDIRECT_FLAG
        case 5:
            addr, length, flags = scratch + TABLE, draw(st.sampled_from([0, 8, 17, 16 * size + 16])), INDIRECT_FLAG
        case 6:
            addr, length, flags = scratch + TABLE, 16, INDIRECT_FLAG | NEXT
        case 7:
            addr, length, flags = last.gpa + last.size - 16, 32, INDIRECT_FLAG
        case 8 | 9 | 10:
            addr, length = scratch + TABLE, 16 * draw(st.integers(1, size))
            flags = INDIRECT_FLAG | draw(st.sampled_from([0, WRITE]))
    return addr, length, flags, number


def fill_scratch(guest: Driver, table: bytes) -> None:
    """Scratch memory where net headers are found where zeros are, frames behind them, and the indirect table."""
    guest.memory(guest.scratch_gpa, 0x10000)[:] = bytes(64) + bytes(i % 251 for i in range(0x10000 - 64))
    guest.memory(guest.scratch_gpa + TABLE, len(table))[:] = table


@contextmanager
def switch_with_evil(conf: DriverConf) -> Iterator[tuple[BenchSwitch, Driver]]:
    """The three guests on one bridge, which knows where b and c are; yields the switch and evil."""
    with BenchSwitch() as switch:
        fdb = switch.add_bridge(limit=64)
        for name in ("evil", "b", "c"):
            switch.add_port(name, conf if name == "evil" else guest_conf(queue_size=256))
        fdb.set_static(MAC_B, 0, switch.ports["b"].handle.ref)
        fdb.set_static(MAC_C, 0, switch.ports["c"].handle.ref)
        evil = switch.ports["evil"].guest
        switch.post("b")
        switch.post("c")
        yield switch, evil


def memory_of(guest: Driver) -> list[bytearray]:
    """All of a guest's memory, region by region."""
    return [bytearray(guest.memory(r.gpa, r.size)) for r in guest.regions()]


def blank(guest: Driver, memory: list[bytearray], uva: int, length: int) -> None:
    """Forget a range, given by user address, in a copy of memory."""
    for region, copy in zip(guest.regions(), memory, strict=True):
        if region.uva <= uva and uva + length <= region.uva + region.size:
            copy[uva - region.uva : uva - region.uva + length] = bytes(length)
            return
    raise AssertionError("not in guest memory")


def frame_in(data: bytes, chain: Chain, hdr_len: int) -> bytes | None:
    """The frame of a chain, or None where it is malformed: a bad direction, a bad header, or not even Ethernet."""
    header, frame = data[:hdr_len], data[hdr_len:]
    if any(s.writable for s in chain.segments) or len(frame) < 14 or header[0] & 1 or header[1]:
        return None
    return frame


def expected_at_c(frames: list[bytes | None]) -> list[bytes]:
    """What the reference switch lets through from the evil guest to c."""
    model = ReferenceSwitch()
    model.bridges["br0"] = Bridge(64, 300)
    for ref, name in enumerate(("evil", "b", "c"), start=1):
        model.ports[name] = Port(ref, "br0", guest=Guest(posted=[1 << 16]))
    for mac, ref in ((MAC_B, 2), (MAC_C, 3)):
        model.set_static("br0", (0, mac), ref, ())
    for frame in frames:
        if frame is not None:
            model.transmit("evil", frame, 0, ())
    return model.ports["c"].inbox


def assert_as_judged(switch: BenchSwitch, frames: list[bytes | None], reason: str | None, other: bytes) -> None:
    """The transmit ring of evil held these frames and then a fault, or none; b has sent `other` to c meanwhile."""
    assert switch.ports["evil"].handle.broken() == (None if reason is None else LATCHED[reason])
    seen = switch.counters("evil")
    assert seen.rx_drops.get("malformed", 0) == frames.count(None)
    assert seen.values["rx_packets"] == len(frames) - frames.count(None)
    arrived = switch.received("c")
    assert [f for f in arrived if f != other] == expected_at_c(frames)
    assert switch.counters("c").values["tx_packets"] == len(expected_at_c(frames)) + 1
    assert switch.ports["b"].guest.tx_reap() == 1


def assert_written_in_buffers_only(guest: Driver, before: list[bytearray], chains: list[Chain], frame: bytes) -> None:
    """Besides what is the device's, only the first header-plus-frame bytes of the chains taken may have changed.

    That is the used ring, or in a packed ring its event area and the second half of each descriptor.
    """
    after, v, left = memory_of(guest), guest.vring(RX), guest.hdr_len + len(frame)
    packed = bool(guest.features & PACKED)
    for memory in (before, after):
        blank(guest, memory, v.used_uva, 4 if packed else 4 + 8 * v.num + 2)
        for i in range(v.num if packed else 0):
            blank(guest, memory, v.desc_uva + 16 * i + 8, 8)
    for chain in chains:
        for segment in chain.segments:
            part = min(left, segment.length)
            left -= part
            for region, old, new in zip(guest.regions(), before, after, strict=True):
                start = max(segment.gpa, region.gpa) - region.gpa
                end = min(segment.gpa + part, region.gpa + region.size) - region.gpa
                if start < end:
                    old[start:end] = new[start:end]
    assert before == after
