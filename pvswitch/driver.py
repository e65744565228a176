# SPDX-License-Identifier: Apache-2.0
"""The C guest driver with Python's manners: objects for structs, exceptions for negative results.

`Driver` is a guest's memory and rings without any socket; `pvswitch.guest.Guest` connects one to a switch, and
`pvswitch.generator` lets drivers send to each other. All calls return at once. A driver must not be used by two threads
at a time: the generator holds its drivers meanwhile (`counters` may be read all the same), and `close` ends it first.
Only this module imports `pvswitch._driver`. What each call means: native/driver/pvs_driver.h.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pvswitch._driver import ffi, lib
from pvswitch.errors import PvswitchError
from pvswitch.net_header import NetHeader

__all__ = [
    "Counters",
    "Desc",
    "Driver",
    "DriverConf",
    "DriverError",
    "Event",
    "Layout",
    "PackedDesc",
    "ProtocolViolation",
    "Region",
    "RingFull",
    "Vring",
    "ffi",
    "lib",
    "read_struct",
]

MAX_FRAME = 1 << 17
"""Bytes of the largest frame that `Driver.rx` takes: twice what virtio-net can carry."""

_VIOLATIONS = {
    lib.PVD_ERR_USED_JUMP: "the used index is ahead of what was made available",
    lib.PVD_ERR_ID_RANGE: "a used id is outside the ring",
    lib.PVD_ERR_ID_IDLE: "a used id isn't in flight",
    lib.PVD_ERR_LEN_LONG: "more bytes are used than the buffer has",
    lib.PVD_ERR_LEN_SHORT: "fewer bytes are used than a net header has",
    lib.PVD_ERR_NUM_BUFFERS: "num_buffers is wrong",
    lib.PVD_ERR_HEADER: "the net header has flags or a GSO type that were not negotiated, or doesn't fit the frame",
    lib.PVD_ERR_GUARD: "bytes beside a buffer were overwritten",
    lib.PVD_ERR_ORDER: "chains were used in another order than posted, or a batch is larger than can be",
}


class DriverError(PvswitchError):
    """The driver refuses; `errno` says why."""

    def __init__(self, what: str, number: int) -> None:
        """`what` was tried, `number` is the positive errno value."""
        super().__init__(f"{what}: {os.strerror(number)}")
        self.what = what
        self.errno = number


class RingFull(DriverError):
    """No descriptor is free: take used ones back first."""


class ProtocolViolation(DriverError):
    """The device broke the virtio protocol; `reason` is a sentence."""

    def __init__(self, what: str, reason: str) -> None:
        """`what` was tried when the device's mistake was found."""
        super().__init__(what, errno.EPROTO)
        self.reason = reason

    def __str__(self) -> str:
        """What was tried, and the device's mistake."""
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Layout:
    """How net header and frame, as one byte string, are spread over descriptors.

    `cuts` are ascending offsets into that string (at most 64): none is one descriptor, a cut at the header's
    length gives the header its own. With `indirect` the pieces after the first `direct` ones go into an
    indirect table (in a packed ring all or none do). `shuffle` takes descriptors in random order, which a split ring
    with IN_ORDER forbids; `straddle` puts the middle on a border of two regions if one is free.
    """

    cuts: tuple[int, ...] = ()
    indirect: bool = False
    direct: int = 0
    shuffle: bool = False
    straddle: bool = False


@dataclass(frozen=True, slots=True)
class DriverConf:
    """What to build; sizes in bytes. `features` are the acknowledged bits, which decide on the format of rings.

    `adjacent`: no holes in GPA; `shuffle`: buffers lie in memory in another order than in the rings. With `preset`
    a device that leaves num_buffers unwritten without MRG_RXBUF, as DPDK's does, is not found out.
    """

    features: int
    queue_size: int = 256
    queue_pairs: int = 1
    rx_buf_size: int = 2048
    tx_buf_size: int = 2048
    mem_size: int = 0
    regions: int = 1
    adjacent: bool = False
    one_file: bool = False
    auto_refill: bool = True
    shuffle: bool = False
    preset: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Region:
    """Guest memory: guest physical address, bytes, address here, offset in the file `fd` (the driver's)."""

    gpa: int
    size: int
    uva: int
    mmap_offset: int
    fd: int


@dataclass(frozen=True, slots=True)
class Vring:
    """Where a ring lies (addresses of this process) and its eventfds (the driver's).

    Of a packed ring `avail_uva` and `used_uva` are the event suppression areas of driver and device.
    """

    num: int
    desc_uva: int
    avail_uva: int
    used_uva: int
    kick_fd: int
    call_fd: int


@dataclass(frozen=True, slots=True)
class Desc:
    """A descriptor as it lies in memory (virtio 1.2, 2.7.5)."""

    addr: int
    len: int
    flags: int = 0
    next: int = 0


@dataclass(frozen=True, slots=True)
class PackedDesc:
    """A descriptor of a packed ring as it lies in memory (virtio 1.2, 2.8.13)."""

    addr: int
    len: int
    id: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """An event suppression area of a packed ring (virtio 1.2, 2.8.14); `off_wrap` has the wrap counter in bit 15."""

    off_wrap: int
    flags: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Of one ring; see struct pvd_counters."""

    posted: int
    used: int
    frames: int
    bytes: int
    kicks: int
    suppressed: int
    out_of_order: int
    errors: int
    last_error: int
    in_flight: int


_Struct = TypeVar("_Struct")


def read_struct(kind: type[_Struct], struct: Any) -> _Struct:
    """A dataclass from the C struct with the same field names."""
    return kind(**{f.name: getattr(struct, f.name) for f in fields(kind)})  # type: ignore[arg-type]  # a type variable is no dataclass to mypy


def _layout(layout: Layout | None) -> Any:
    if layout is None:
        return ffi.NULL
    flags = (
        layout.indirect * lib.PVD_LAYOUT_INDIRECT
        | layout.shuffle * lib.PVD_LAYOUT_SHUFFLE
        | layout.straddle * lib.PVD_LAYOUT_STRADDLE
    )
    return ffi.new(
        "struct pvd_layout *",
        {"n_cuts": len(layout.cuts), "cuts": list(layout.cuts), "flags": flags, "direct": layout.direct},
    )


class Driver:
    """A guest's memory, rings and virtio-net driver. Ring 2*i receives for pair i, ring 2*i+1 transmits."""

    def __init__(self, conf: DriverConf) -> None:
        """Make memory and rings; raises DriverError."""
        c = ffi.new("struct pvd_conf *")
        for name in (
            "features",
            "queue_size",
            "queue_pairs",
            "rx_buf_size",
            "tx_buf_size",
            "mem_size",
            "seed",
        ):
            setattr(c, name, getattr(conf, name))
        c.n_regions = conf.regions
        c.flags = (
            conf.adjacent * lib.PVD_CONF_ADJACENT
            | conf.one_file * lib.PVD_CONF_ONE_FILE
            | conf.auto_refill * lib.PVD_CONF_AUTO_REFILL
            | conf.shuffle * lib.PVD_CONF_SHUFFLE
            | conf.preset * lib.PVD_CONF_PRESET
        )
        out = ffi.new("pvd_guest **")
        result = lib.pvd_guest_create(c, out)
        if result < 0:
            raise DriverError("the guest can't be made", -result)
        self._guest = out[0]
        self._busy = threading.Lock()
        self._buffer = ffi.new("uint8_t[]", MAX_FRAME)
        self._info = ffi.new("struct pvd_rx_info *")
        self.conf = conf
        self.features = conf.features

    def close(self) -> None:
        """End what runs in another thread, then unmap memory and close all descriptors; may be repeated."""
        if self._guest == ffi.NULL:
            return
        lib.pvd_stop(self._guest, 1)
        with self._busy:
            lib.pvd_guest_destroy(self._guest)
            self._guest = ffi.NULL

    @property
    def closed(self) -> bool:
        """Whether `close` was called; nothing else may be called then."""
        return bool(self._guest == ffi.NULL)

    def reset(self, features: int) -> None:
        """Start the driver anew in the same memory: rings zeroed, nothing in flight, other features."""
        self._check("the driver can't be reset", lib.pvd_guest_reset(self._open(), features))
        self.features = features

    @contextmanager
    def held(self) -> Iterator[Any]:
        """Keep the driver from being closed meanwhile; yields the C guest."""
        with self._busy:
            yield self._open()

    def _open(self) -> Any:
        if self._guest == ffi.NULL:
            raise DriverError("the guest is closed", errno.EBADF)
        return self._guest

    def _check(self, what: str, result: int, ring: int = 0) -> int:
        if result >= 0:
            return result
        if result == -errno.ENOSPC:
            raise RingFull(what, errno.ENOSPC)
        if result == -errno.EPROTO:
            raise ProtocolViolation(what, _VIOLATIONS[self.counters(ring).last_error])
        raise DriverError(what, -result)

    # ---- what a front end tells the back end ----

    @property
    def hdr_len(self) -> int:
        """Bytes of the net header: 12 or 10."""
        return int(lib.pvd_hdr_len(self._open()))

    @property
    def n_rings(self) -> int:
        """Twice the queue pairs."""
        return int(lib.pvd_n_rings(self._open()))

    def regions(self) -> list[Region]:
        """Guest memory."""
        out = ffi.new("struct pvd_region *")
        result = []
        for i in range(lib.pvd_n_regions(self._open())):
            lib.pvd_region_get(self._guest, i, out)
            result.append(read_struct(Region, out))
        return result

    def vring(self, ring: int) -> Vring:
        """Where a ring lies."""
        out = ffi.new("struct pvd_vring *")
        self._check(f"ring {ring}", lib.pvd_vring_get(self._open(), ring, out))
        return read_struct(Vring, out)

    def vring_base(self, ring: int) -> int:
        """What SET_VRING_BASE says of a ring that goes on as it is; 0x80008000 for a new packed one."""
        return int(lib.pvd_vring_base(self._open(), ring))

    def counters(self, ring: int) -> Counters:
        """What a ring has seen."""
        out = ffi.new("struct pvd_counters *")
        self._check(f"ring {ring}", lib.pvd_counters_get(self._open(), ring, out))
        return read_struct(Counters, out)

    # ---- legal traffic ----

    def tx(self, frame: bytes, *, header: bytes | None = None, layout: Layout | None = None, pair: int = 0) -> None:
        """Make a frame available, without kicking; `header` has `hdr_len` bytes. Raises RingFull."""
        guest = self._open()
        if header is not None and len(header) != self.hdr_len:
            raise DriverError(f"a net header has {self.hdr_len} bytes here, not {len(header)}", errno.EINVAL)
        hdr = ffi.NULL if header is None else ffi.from_buffer(header)
        result = lib.pvd_tx(guest, pair, hdr, ffi.from_buffer(frame), len(frame), _layout(layout))
        self._check("a frame can't be sent", result, 2 * pair + 1)

    def tx_reap(self, pair: int = 0) -> int:
        """Take sent frames back: how many. Raises ProtocolViolation."""
        return self._check("sent frames", lib.pvd_tx_reap(self._open(), pair), 2 * pair + 1)

    def rx_fill(self, count: int | None = None, *, layout: Layout | None = None, pair: int = 0) -> int:
        """Post up to `count` receive buffers, without kicking: how many there was room for."""
        limit = self.conf.queue_size if count is None else count
        result = lib.pvd_rx_fill(self._open(), pair, limit, _layout(layout))
        return self._check("buffers can't be posted", result, 2 * pair)

    def rx(self, pair: int = 0) -> tuple[bytes, NetHeader] | None:
        """One received frame, or None; kick afterwards, for buffers were posted. Raises ProtocolViolation."""
        result = lib.pvd_rx(self._open(), pair, self._buffer, MAX_FRAME, self._info)
        if result == -errno.EAGAIN:
            return None
        length = self._check("a received frame", result, 2 * pair)
        return bytes(ffi.buffer(self._buffer, length)), read_struct(NetHeader, self._info)

    def kick(self, ring: int, *, force: bool = False) -> bool:
        """Notify the device if it wants it, or with `force` in any case: whether it was."""
        if force:
            return self._check("kick", lib.pvd_kick_force(self._open(), ring)) == 0
        return self._check("kick", lib.pvd_kick(self._open(), ring)) == 1

    def arm(self, ring: int) -> bool:
        """Ask to be called; True when something is used already, so that no call may come."""
        return self._check("arm", lib.pvd_call_arm(self._open(), ring)) == 1

    def disarm(self, ring: int) -> None:
        """Ask not to be called."""
        self._check("disarm", lib.pvd_call_disarm(self._open(), ring))

    # ---- illegal rings: split ----

    def desc(self, ring: int, i: int) -> Desc:
        """Descriptor `i` as it lies in memory."""
        out = ffi.new("struct pvd_desc *")
        self._check("descriptor", lib.pvd_desc_get(self._open(), ring, i, out))
        return read_struct(Desc, out)

    def set_desc(self, ring: int, i: int, desc: Desc) -> None:
        """Write descriptor `i`."""
        value = ffi.new("struct pvd_desc *", [desc.addr, desc.len, desc.flags, desc.next])
        self._check("descriptor", lib.pvd_desc_set(self._open(), ring, i, value))

    def avail_idx(self, ring: int) -> int:
        """avail->idx."""
        return self._check("avail index", lib.pvd_avail_idx(self._open(), ring))

    def set_avail_idx(self, ring: int, idx: int) -> None:
        """Write avail->idx (modulo 2^16); the next legal post goes on from the driver's own."""
        self._check("avail index", lib.pvd_avail_idx_set(self._open(), ring, idx & 0xFFFF))

    def set_avail_entry(self, ring: int, i: int, head: int) -> None:
        """Write avail->ring[i]."""
        self._check("avail ring", lib.pvd_avail_entry_set(self._open(), ring, i, head))

    def set_avail_flags(self, ring: int, flags: int) -> None:
        """Write avail->flags."""
        self._check("avail flags", lib.pvd_avail_flags_set(self._open(), ring, flags))

    def set_used_event(self, ring: int, idx: int) -> None:
        """Write used_event (modulo 2^16)."""
        self._check("used event", lib.pvd_used_event_set(self._open(), ring, idx & 0xFFFF))

    def used_idx(self, ring: int) -> int:
        """used->idx."""
        return self._check("used index", lib.pvd_used_idx(self._open(), ring))

    def used_flags(self, ring: int) -> int:
        """used->flags."""
        return self._check("used flags", lib.pvd_used_flags(self._open(), ring))

    def avail_event(self, ring: int) -> int:
        """avail_event."""
        return self._check("avail event", lib.pvd_avail_event(self._open(), ring))

    def used_entry(self, ring: int, i: int) -> tuple[int, int]:
        """used->ring[i] as (id, len)."""
        out = ffi.new("uint32_t[2]")
        self._check("used ring", lib.pvd_used_entry(self._open(), ring, i, out, out + 1))
        return out[0], out[1]

    def raw_post(self, ring: int, head: int) -> None:
        """Make `head` available, whatever hangs on it; without kicking."""
        self._check("raw post", lib.pvd_raw_post(self._open(), ring, head))

    # ---- illegal rings: packed ----

    def packed_desc(self, ring: int, i: int) -> PackedDesc:
        """Descriptor `i` as it lies in memory."""
        out = ffi.new("struct pvd_packed_desc *")
        self._check("descriptor", lib.pvd_packed_get(self._open(), ring, i, out))
        return read_struct(PackedDesc, out)

    def set_packed_desc(self, ring: int, i: int, desc: PackedDesc) -> None:
        """Write descriptor `i` with all its flags."""
        value = ffi.new("struct pvd_packed_desc *", [desc.addr, desc.len, desc.id, desc.flags])
        self._check("descriptor", lib.pvd_packed_set(self._open(), ring, i, value))

    def packed_post(self, ring: int, *chain: PackedDesc) -> None:
        """Publish a chain at the driver's next places, AVAIL and USED as they must be, without kicking; or RingFull."""
        descs = ffi.new("struct pvd_packed_desc[]", [[desc.addr, desc.len, desc.id, desc.flags] for desc in chain])
        self._check("raw post", lib.pvd_packed_post(self._open(), ring, descs, len(chain)))

    def packed_next(self, ring: int, *, used: bool = False) -> tuple[int, bool]:
        """Where the driver writes next, or with `used` looks next: index and wrap counter."""
        place = self._check("packed ring", lib.pvd_packed_next(self._open(), ring, used))
        return place & 0x7FFF, place >> 15 != 0

    def event(self, ring: int, *, device: bool) -> Event:
        """The event suppression area of the device, or of the driver."""
        out = ffi.new("struct pvd_event *")
        self._check("event area", lib.pvd_event_get(self._open(), ring, device, out))
        return read_struct(Event, out)

    def set_event(self, ring: int, event: Event, *, device: bool = False) -> None:
        """Write an event suppression area."""
        value = ffi.new("struct pvd_event *", [event.off_wrap, event.flags])
        self._check("event area", lib.pvd_event_set(self._open(), ring, device, value))

    # ---- illegal rings: either ----

    def raw_take(self, ring: int) -> tuple[int, int] | None:
        """The next used element as (id, len), unchecked, or None."""
        out = ffi.new("uint32_t[2]")
        result = lib.pvd_raw_take(self._open(), ring, out, out + 1)
        if result == -errno.EAGAIN:
            return None
        self._check("raw take", result)
        return out[0], out[1]

    @property
    def scratch_gpa(self) -> int:
        """64 KiB of guest memory that the driver never uses."""
        return int(lib.pvd_scratch_gpa(self._open()))

    def memory(self, gpa: int, length: int) -> memoryview:
        """Guest memory, writable, not to be kept beyond `close`; raises DriverError unless in one region."""
        ptr = lib.pvd_ptr(self._open(), gpa, length)
        if ptr == ffi.NULL:
            raise DriverError(f"{length} bytes at {gpa:#x} aren't inside one region", errno.EFAULT)
        return memoryview(ffi.buffer(ptr, length))

    def truncate(self, region: int, size: int = 0) -> None:
        """Cut a region's file: who touches what was cut gets SIGBUS. The driver touches no memory any more."""
        self._check("truncate", lib.pvd_truncate_memory(self._open(), region, size))
