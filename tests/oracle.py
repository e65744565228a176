# SPDX-License-Identifier: Apache-2.0
"""A reference virtio-net device: slow, obvious, pure Python. It judges the C driver, and what the switch did.

It maps the guest's memory files itself and reads rings with `struct`, following virtio 1.2 word for word (sections
are named where a rule comes from). It shares no code with native/src nor native/driver, and decides nothing by what
they believe. Where the specification leaves a choice it is strict: an illegal ring raises RingError with a reason.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = NO_NOTIFY = 1
MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_PACKED = 15, 28, 29, 32, 34
AVAIL, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, AT_DESCRIPTOR = 0, 1, 2
PAGE = mmap.PAGESIZE


class RingError(Exception):
    """The driver made an illegal ring; `reason` is one of the words used below."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RegionLike(Protocol):
    """What is needed to know of a memory region."""

    @property
    def gpa(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def uva(self) -> int: ...
    @property
    def mmap_offset(self) -> int: ...
    @property
    def fd(self) -> int: ...


class VringLike(Protocol):
    """What is needed to know of a ring."""

    @property
    def num(self) -> int: ...
    @property
    def desc_uva(self) -> int: ...
    @property
    def avail_uva(self) -> int: ...
    @property
    def used_uva(self) -> int: ...
    @property
    def call_fd(self) -> int: ...


class Memory:
    """Guest physical memory. A range may cross regions that follow each other; any byte outside is an error."""

    def __init__(self, regions: Iterable[RegionLike]) -> None:
        self._parts = []
        for r in regions:
            skew = r.mmap_offset % PAGE
            view = mmap.mmap(r.fd, r.size + skew, offset=r.mmap_offset - skew)
            self._parts.append((r.gpa, r.uva, r.size, skew, view))

    def close(self) -> None:
        for *_, view in self._parts:
            view.close()

    def gpa_of_uva(self, uva: int, length: int) -> int:
        """A ring's place; all of it must lie in one region."""
        for gpa, base, size, _, _ in self._parts:
            if base <= uva and uva + length <= base + size:
                return gpa + (uva - base)
        raise RingError("ring_address")

    def _pieces(self, gpa: int, length: int) -> Iterable[tuple[mmap.mmap, int, int]]:
        if gpa + length > 1 << 64:
            raise RingError("address")
        while length:
            for base, _, size, skew, view in self._parts:
                if base <= gpa < base + size:
                    n = min(length, base + size - gpa)
                    yield view, gpa - base + skew, n
                    gpa, length = gpa + n, length - n
                    break
            else:
                raise RingError("address")

    def read(self, gpa: int, length: int) -> bytes:
        return b"".join(view[at : at + n] for view, at, n in list(self._pieces(gpa, length)))

    def write(self, gpa: int, data: bytes) -> None:
        for view, at, n in list(self._pieces(gpa, len(data))):
            view[at : at + n] = data[:n]
            data = data[n:]

    def u16(self, gpa: int) -> int:
        return int(struct.unpack("<H", self.read(gpa, 2))[0])


@dataclass(frozen=True)
class Segment:
    """One buffer of a chain."""

    gpa: int
    length: int
    writable: bool


@dataclass(frozen=True)
class Chain:
    """A walked chain: its head (split) or buffer id (packed), and how many descriptors of the ring it takes."""

    head: int
    segments: tuple[Segment, ...]
    slots: int = 1

    @property
    def length(self) -> int:
        return sum(s.length for s in self.segments)


@dataclass
class ReferenceRing:
    """The device's side of one split virtqueue (virtio 1.2, 2.7)."""

    memory: Memory
    vring: VringLike
    features: int
    last_avail: int = 0
    used_idx: int = 0
    signalled: int | None = field(default=None)

    def __post_init__(self) -> None:
        n = self.vring.num
        event = 2 if self._has(EVENT_IDX) else 0
        self._desc = self.memory.gpa_of_uva(self.vring.desc_uva, 16 * n)
        self._avail = self.memory.gpa_of_uva(self.vring.avail_uva, 4 + 2 * n + event)
        self._used = self.memory.gpa_of_uva(self.vring.used_uva, 4 + 8 * n + event)

    def _has(self, bit: int) -> bool:
        return bool(self.features >> bit & 1)

    def pending(self) -> int:
        """Chains that wait. 2.7.6: the index runs freely, never more than the ring's size ahead."""
        count = (self.memory.u16(self._avail + 2) - self.last_avail) % 65536
        if count > self.vring.num:
            raise RingError("avail_jump")
        return count

    def peek(self, ahead: int = 0) -> Chain | None:
        """The next chain, or the one `ahead` places after it; it stays available."""
        if ahead >= self.pending():
            return None
        head = self.memory.u16(self._avail + 4 + 2 * ((self.last_avail + ahead) % self.vring.num))
        if head >= self.vring.num:
            raise RingError("head_range")
        return Chain(head, tuple(self._walk(head)))

    def _entry(self, table: int, i: int) -> tuple[int, int, int, int]:
        addr, length, flags, following = struct.unpack("<QIHH", self.memory.read(table + 16 * i, 16))
        return addr, length, flags, following

    def _walk(self, head: int) -> list[Segment]:
        table, size, i, nested = self._desc, self.vring.num, head, False
        segments: list[Segment] = []
        while True:
            addr, length, flags, following = self._entry(table, i)
            if flags & INDIRECT:
                self._check_indirect(addr, length, flags, nested)
                table, size, i, nested = addr, length // 16, 0, True
                continue
            if len(segments) == self.vring.num:  # 2.7.5.3.1: no chain is longer than the ring
                raise RingError("chain_long")
            self.memory.read(addr, length)
            segments.append(Segment(addr, length, bool(flags & WRITE)))
            if not flags & NEXT:
                return segments
            if following >= size:
                raise RingError("next_range")
            i = following

    def _check_indirect(self, addr: int, length: int, flags: int, nested: bool) -> None:
        """2.7.5.3.1: negotiated, not nested, without NEXT, whole entries, no more than the ring has. WRITE: ignored."""
        if not self._has(INDIRECT_DESC) or nested:
            raise RingError("indirect_refused")
        if flags & NEXT:
            raise RingError("indirect_next")
        if length == 0 or length % 16 or length // 16 > self.vring.num:
            raise RingError("indirect_size")
        self.memory.read(addr, length)

    def use(self, chain: Chain, written: int) -> None:
        """Give the next chain back, unpublished (2.7.8)."""
        at = self._used + 4 + 8 * (self.used_idx % self.vring.num)
        self.memory.write(at, struct.pack("<II", chain.head, written))
        self.last_avail = (self.last_avail + 1) % 65536
        self.used_idx = (self.used_idx + 1) % 65536

    def publish(self) -> bool:
        """Show what was used, and call the driver if it wants that: whether it was called (2.7.7, 2.7.10)."""
        self.memory.write(self._used + 2, struct.pack("<H", self.used_idx))
        if self._has(EVENT_IDX):
            event = self.memory.u16(self._avail + 4 + 2 * self.vring.num)
            old = self.signalled
            wanted = old is None or (self.used_idx - event - 1) % 65536 < (self.used_idx - old) % 65536
            self.signalled = self.used_idx
        else:
            wanted = not self.memory.u16(self._avail) & NO_INTERRUPT
        if wanted:
            os.eventfd_write(self.vring.call_fd, 1)
        return wanted

    def ask_for_kicks(self, wanted: bool) -> None:
        """Kicks for the next chain, or none at all (2.7.10)."""
        if self._has(EVENT_IDX):
            event = self.last_avail if wanted else self.last_avail - 1
            self.memory.write(self._used + 4 + 8 * self.vring.num, struct.pack("<H", event % 65536))
        else:
            self.memory.write(self._used, struct.pack("<H", 0 if wanted else NO_NOTIFY))


@dataclass(frozen=True)
class Place:
    """A descriptor of a packed ring, and the wrap counter of who is there (2.8.1)."""

    index: int
    wrap: int


class PackedRing:
    """The device's side of one packed virtqueue (virtio 1.2, 2.8), begun anew or where `base` says."""

    def __init__(self, memory: Memory, vring: VringLike, features: int, base: int = 0x8000) -> None:
        self.memory, self.vring, self.features = memory, vring, features
        self._desc = memory.gpa_of_uva(vring.desc_uva, 16 * vring.num)
        self._driver = memory.gpa_of_uva(vring.avail_uva, 4)
        self._device = memory.gpa_of_uva(vring.used_uva, 4)
        self.place = Place(base & 0x7FFF, base >> 15 & 1)
        """Where the next chain is, and where it is given back: all that was taken has been used."""
        self._unpublished: list[tuple[int, bytes]] = []
        self._since: list[Place] | None = None  # places used since the driver was last considered for a call

    def after(self, place: Place, n: int) -> Place:
        """The place `n` descriptors on (2.8.1: at the end of the ring the wrap counter changes)."""
        for _ in range(n):
            at_end = place.index + 1 == self.vring.num
            place = Place(0, 1 - place.wrap) if at_end else Place(place.index + 1, place.wrap)
        return place

    def _entry(self, gpa: int) -> tuple[int, int, int, int]:
        addr, length, number, flags = struct.unpack("<QIHH", self.memory.read(gpa, 16))
        return addr, length, number, flags

    def _available(self, place: Place) -> bool:
        flags = self._entry(self._desc + 16 * place.index)[3]
        return bool(flags & AVAIL) == bool(place.wrap) and bool(flags & USED) != bool(place.wrap)

    def peek(self, ahead: int = 0) -> Chain | None:
        """The next chain, or the one `ahead` chains after it; it stays available."""
        place = self.place
        for number in range(ahead + 1):
            if not self._available(place):
                return None
            chain = self._walk(place)
            if number == ahead:
                return chain
            place = self.after(place, chain.slots)
        raise AssertionError

    def _walk(self, place: Place) -> Chain:
        segments: list[Segment] = []
        slots = 0
        while True:
            addr, length, number, flags = self._entry(self._desc + 16 * place.index)
            if flags & INDIRECT:
                if slots or flags & NEXT:  # 2.8.19: a list is in the ring or in a table, never in both
                    raise RingError("indirect_next")
                for at in range(0, self._checked_table(addr, length), 16):
                    entry, size, _, entry_flags = self._entry(addr + at)
                    if entry_flags & INDIRECT:
                        raise RingError("indirect_refused")
                    self._add(segments, entry, size, entry_flags)  # 2.8.7: of the flags only WRITE counts
            else:
                self._add(segments, addr, length, flags)
            slots += 1
            if not flags & NEXT or flags & INDIRECT:
                break
            place = self.after(place, 1)
        if number >= self.vring.num:  # 2.8.6: the last one's id counts
            raise RingError("id_range")
        return Chain(number, tuple(segments), slots)

    def _add(self, segments: list[Segment], addr: int, length: int, flags: int) -> None:
        if len(segments) == self.vring.num:  # 2.8.6: no list is longer than the ring
            raise RingError("chain_long")
        self.memory.read(addr, length)
        segments.append(Segment(addr, length, bool(flags & WRITE)))

    def _checked_table(self, addr: int, length: int) -> int:
        if not self.features >> INDIRECT_DESC & 1:
            raise RingError("indirect_refused")
        if length == 0 or length % 16 or length // 16 > self.vring.num:
            raise RingError("indirect_size")
        try:
            self.memory.read(addr, length)
        except RingError as error:
            raise RingError("indirect_address") from error
        return length

    def use(self, chain: Chain, written: int) -> None:
        """Give the next chain back, unpublished: where it began (2.8.2), WRITE if something was written (2.8.4)."""
        flags = (AVAIL | USED if self.place.wrap else 0) | (WRITE if written else 0)
        gpa = self._desc + 16 * self.place.index + 8
        self._unpublished.append((gpa, struct.pack("<IHH", written, chain.head, flags)))
        if self._since is not None:
            self._since += [self.after(self.place, i) for i in range(chain.slots)]
        self.place = self.after(self.place, chain.slots)

    def publish(self) -> bool:
        """Show what was used, the first one last, and call the driver if it wants that (2.8.10): whether it was."""
        for gpa, data in reversed(self._unpublished):
            self.memory.write(gpa, data)
        self._unpublished.clear()
        position, flags = struct.unpack("<HH", self.memory.read(self._driver, 4))
        wanted = bool(flags != DISABLE)
        if flags == AT_DESCRIPTOR and self.features >> EVENT_IDX & 1:
            event = Place(position & 0x7FFF, position >> 15)
            wanted = self._since is None or event in self._since
        self._since = []
        if wanted:
            os.eventfd_write(self.vring.call_fd, 1)
        return wanted

    def ask_for_kicks(self, wanted: bool) -> None:
        """Kicks for the next chain, or none at all (2.8.14)."""
        if not wanted:
            self.memory.write(self._device + 2, struct.pack("<H", DISABLE))
        elif self.features >> EVENT_IDX & 1:
            position = self.place.index | self.place.wrap << 15
            self.memory.write(self._device, struct.pack("<HH", position, AT_DESCRIPTOR))
        else:
            self.memory.write(self._device + 2, struct.pack("<H", ENABLE))


class ReferenceDevice:
    """A network device without offloads (virtio 1.2, 5.1.6): takes frames from a guest and gives it some."""

    def __init__(
        self,
        regions: Iterable[RegionLike],
        rx: VringLike,
        tx: VringLike,
        features: int,
        *,
        base: tuple[int, int] | None = None,
    ) -> None:
        """`base` is where both rings go on, as SET_VRING_BASE says; by default they begin."""
        self.memory = Memory(regions)
        self.rx: ReferenceRing | PackedRing
        self.tx: ReferenceRing | PackedRing
        if features >> RING_PACKED & 1:
            rx_base, tx_base = base or (0x8000, 0x8000)
            self.rx = PackedRing(self.memory, rx, features, rx_base)
            self.tx = PackedRing(self.memory, tx, features, tx_base)
        else:
            rx_base, tx_base = base or (0, 0)
            self.rx = ReferenceRing(self.memory, rx, features, last_avail=rx_base, used_idx=rx_base)
            self.tx = ReferenceRing(self.memory, tx, features, last_avail=tx_base, used_idx=tx_base)
        self.mrg = bool(features >> MRG_RXBUF & 1)
        self.hdr_len = 12 if self.mrg or features >> VERSION_1 & 1 else 10

    def close(self) -> None:
        self.memory.close()

    def take(self) -> tuple[bytes, bytes] | None:
        """The next transmitted frame as (net header, frame), or None when there is none."""
        chain = self.tx.peek()
        if chain is None:
            return None
        if any(s.writable for s in chain.segments):
            raise RingError("tx_writable")
        if chain.length <= self.hdr_len:
            raise RingError("tx_short")
        data = b"".join(self.memory.read(s.gpa, s.length) for s in chain.segments)
        self.tx.use(chain, 0)
        self.tx.publish()
        return data[: self.hdr_len], data[self.hdr_len :]

    def give(self, frame: bytes, says: bytes = bytes(10)) -> bool:
        """Put a frame into receive buffers: False when there are too few, and then none is used.

        `says` is the net header without num_buffers.
        """
        chains: list[Chain] = []
        room = 0
        while room < self.hdr_len + len(frame):
            chain = self.rx.peek(len(chains))
            if chain is None:
                return False
            if not all(s.writable for s in chain.segments):
                raise RingError("rx_readable")
            if chain.length < self.hdr_len:
                raise RingError("rx_short")
            chains.append(chain)
            room += chain.length
            if not self.mrg:
                break
        if room < self.hdr_len + len(frame):
            return False
        header = says + (struct.pack("<H", len(chains)) if self.hdr_len == 12 else b"")
        self._scatter(chains, header + frame)
        self.rx.publish()
        return True

    def _scatter(self, chains: list[Chain], data: bytes) -> None:
        for chain in chains:
            written = 0
            for s in chain.segments:
                part = data[: s.length]
                self.memory.write(s.gpa, part)
                data = data[len(part) :]
                written += len(part)
            self.rx.use(chain, written)
