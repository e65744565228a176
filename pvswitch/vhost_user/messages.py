# SPDX-License-Identifier: Apache-2.0
"""The vhost-user messages as data: what each is called, carries, needs and answers.

Four layers, each readable alone:

1. bytes: `Header`, and payload classes with `pack()` and `unpack()`;
2. fds: `Fds` says how many descriptors a message must bring;
3. gates: the feature bits that must be offered before a message may be sent;
4. meaning: `session.py` for the back end, `pvswitch.guest` for the front end.

`MESSAGES` joins them in one table, used by both sides. This module does no I/O and keeps no state; anyone may
import it. Source: QEMU docs/interop/vhost-user.rst; payload layouts are those of `struct vhost_vring_state`,
`vhost_vring_addr` and `vhost_memory_region` in linux/vhost_types.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol, Self

from pvswitch.vhost_user.features import Feature, ProtocolFeature

MAX_FDS = 8
"""File descriptors that one message may carry."""
MAX_PAYLOAD = 4096
"""Bytes; well above every known payload. A longer one can only be an attack or a lost step."""
MAX_TABLE_REGIONS = 8
"""Regions in one SET_MEM_TABLE (ADD_MEM_REG goes beyond)."""
MAX_RING_SIZE = 32768
"""Entries (virtio 1.2, 2.7)."""

VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 0x100
VRING_F_LOG = 0x1


class Request(IntEnum):
    """Every request a front end is known to send; only those in `MESSAGES` are served."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class MessageError(ValueError):
    """Bytes that are not the message they claim to be."""


def request_name(request: int) -> str:
    """Name of a request for people; unknown ones by number."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


# ---- bytes ---------------------------------------------------------------------------------------

_HEADER = struct.Struct("=III")
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDR = struct.Struct("=IIQQQQ")
_TABLE = struct.Struct("=II")
_REGION = struct.Struct("=QQQQ")

HEADER_SIZE = _HEADER.size


def _split(layout: struct.Struct, data: bytes, what: str) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise MessageError(f"{what} has {layout.size} bytes of payload, not {len(data)}")
    return layout.unpack(data)


@dataclass(frozen=True, slots=True)
class Header:
    """The 12 bytes before every payload, in native byte order; `size` is the payload's, in bytes."""

    request: int
    flags: int
    size: int

    def pack(self) -> bytes:
        """Wire form."""
        return _HEADER.pack(self.request, self.flags, self.size)

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """From wire form; raises MessageError when `data` isn't `HEADER_SIZE` bytes."""
        if len(data) != HEADER_SIZE:
            raise MessageError(f"a header has {HEADER_SIZE} bytes, not {len(data)}")
        return cls(*_HEADER.unpack(data))


class Payload(Protocol):
    """What every payload class offers."""

    def pack(self) -> bytes:
        """Wire form."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From wire form; raises MessageError when the size or a reserved bit is wrong."""


@dataclass(frozen=True, slots=True)
class Empty:
    """No payload."""

    def pack(self) -> bytes:
        """Wire form."""
        return b""

    @classmethod
    def unpack(cls, data: bytes) -> Empty:
        """From wire form."""
        if data:
            raise MessageError(f"no payload is allowed, {len(data)} bytes came")
        return cls()


@dataclass(frozen=True, slots=True)
class U64:
    """One 64-bit number: feature bits, a count, a status, an acknowledgement (0 = fine)."""

    value: int

    def pack(self) -> bytes:
        """Wire form."""
        return _U64.pack(self.value)

    @classmethod
    def unpack(cls, data: bytes) -> U64:
        """From wire form."""
        return cls(*_split(_U64, data, "a u64"))


@dataclass(frozen=True, slots=True)
class VringState:
    """A ring and a number: its size, its base or whether it is enabled."""

    index: int
    num: int

    def pack(self) -> bytes:
        """Wire form."""
        return _STATE.pack(self.index, self.num)

    @classmethod
    def unpack(cls, data: bytes) -> VringState:
        """From wire form."""
        return cls(*_split(_STATE, data, "a vring state"))


@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where a ring's parts lie, as addresses of the front end's own process (`log` is guest physical)."""

    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int = 0

    def pack(self) -> bytes:
        """Wire form."""
        return _ADDR.pack(self.index, self.flags, self.desc, self.used, self.avail, self.log)

    @classmethod
    def unpack(cls, data: bytes) -> VringAddr:
        """From wire form."""
        return cls(*_split(_ADDR, data, "a vring address"))


@dataclass(frozen=True, slots=True)
class VringFd:
    """The u64 of SET_VRING_KICK, CALL and ERR: ring index in bits 0-7, bit 8 set when no fd comes along."""

    index: int
    has_fd: bool

    def pack(self) -> bytes:
        """Wire form; raises MessageError for an index that the 8 bits can't hold."""
        if not 0 <= self.index <= VRING_INDEX_MASK:
            raise MessageError(f"ring index {self.index} doesn't fit 8 bits")
        return _U64.pack(self.index | (0 if self.has_fd else VRING_NO_FD))

    @classmethod
    def unpack(cls, data: bytes) -> VringFd:
        """From wire form; reserved bits are refused, so that no index is ever cut down to a valid one."""
        (value,) = _split(_U64, data, "a vring descriptor message")
        if value & ~(VRING_INDEX_MASK | VRING_NO_FD):
            raise MessageError(f"reserved bits are set in the ring number {value:#x}")
        return cls(value & VRING_INDEX_MASK, not value & VRING_NO_FD)


@dataclass(frozen=True, slots=True)
class MemRegion:
    """Guest memory: guest physical address, bytes, the front end's address, offset in the file that came."""

    gpa: int
    size: int
    uva: int
    offset: int

    def pack(self) -> bytes:
        """Wire form as it stands in a table, without padding."""
        return _REGION.pack(self.gpa, self.size, self.uva, self.offset)


@dataclass(frozen=True, slots=True)
class MemTable:
    """The whole memory in one message: up to `MAX_TABLE_REGIONS` regions, one fd for each, in order."""

    regions: tuple[MemRegion, ...]

    def pack(self) -> bytes:
        """Wire form."""
        return _TABLE.pack(len(self.regions), 0) + b"".join(region.pack() for region in self.regions)

    @classmethod
    def unpack(cls, data: bytes) -> MemTable:
        """From wire form; the count must match the size exactly."""
        if len(data) < _TABLE.size:
            raise MessageError(f"a memory table has at least {_TABLE.size} bytes, not {len(data)}")
        count, _padding = _TABLE.unpack_from(data)
        if count > MAX_TABLE_REGIONS:
            raise MessageError(f"a memory table has at most {MAX_TABLE_REGIONS} regions, not {count}")
        if len(data) != _TABLE.size + count * _REGION.size:
            raise MessageError(f"a memory table of {count} regions doesn't have {len(data)} bytes")
        return cls(tuple(MemRegion(*fields) for fields in _REGION.iter_unpack(data[_TABLE.size :])))


@dataclass(frozen=True, slots=True)
class MemSlot:
    """One region to add or remove: 8 bytes of padding, then the region."""

    region: MemRegion

    def pack(self) -> bytes:
        """Wire form."""
        return bytes(8) + self.region.pack()

    @classmethod
    def unpack(cls, data: bytes) -> MemSlot:
        """From wire form."""
        if len(data) != 8 + _REGION.size:
            raise MessageError(f"a memory slot has {8 + _REGION.size} bytes, not {len(data)}")
        return cls(MemRegion(*_REGION.unpack_from(data, 8)))


@dataclass(frozen=True, slots=True)
class RarpMac:
    """The u64 of SEND_RARP, whose first six bytes in memory are a MAC."""

    mac: bytes

    def pack(self) -> bytes:
        """Wire form; raises MessageError unless `mac` is six bytes."""
        if len(self.mac) != 6:
            raise MessageError(f"a MAC has 6 bytes, not {len(self.mac)}")
        return self.mac + bytes(2)

    @classmethod
    def unpack(cls, data: bytes) -> RarpMac:
        """From wire form."""
        _split(_U64, data, "a RARP request")
        return cls(data[:6])


# ---- fds, gates and the table --------------------------------------------------------------------


class Fds(Enum):
    """How many descriptors come with a message."""

    NONE = "none"
    ONE = "one"
    ONE_UNLESS_FLAGGED = "one, none with the no-fd bit"
    ONE_PER_REGION = "one for each region"
    TOLERATED = "none, one is closed unused"

    def check(self, payload: Payload, count: int) -> None:
        """Raise MessageError when `count` descriptors aren't what `payload` announces."""
        match self, payload:
            case Fds.ONE, _:
                allowed: tuple[int, ...] = (1,)
            case Fds.TOLERATED, _:
                allowed = (0, 1)
            case Fds.ONE_UNLESS_FLAGGED, VringFd(has_fd=has_fd):
                allowed = (int(has_fd),)
            case Fds.ONE_PER_REGION, MemTable(regions=regions):
                allowed = (len(regions),)
            case _:
                allowed = (0,)
        if count not in allowed:
            wanted = " or ".join(str(number) for number in allowed)
            raise MessageError(f"{count} file descriptors came, {wanted} belong to it")


@dataclass(frozen=True, slots=True)
class MessageSpec:
    """One row of the table.

    `feature` and `protocol_feature` are the bits that the back end must have offered before the front end may
    send the message (0: always legal). `reply` is the payload of the answer that the message always gets;
    None: only an acknowledgement, and only when NEED_REPLY asks for it.
    """

    request: Request
    payload: type[Payload]
    fds: Fds = Fds.NONE
    feature: int = 0
    protocol_feature: int = 0
    reply: type[Payload] | None = None

    def offered(self, features: int, protocol_features: int) -> bool:
        """Whether a back end that offered these bits serves this message."""
        return not (self.feature & ~features or self.protocol_feature & ~protocol_features)


def _table(rows: Iterable[MessageSpec]) -> dict[int, MessageSpec]:
    return {int(row.request): row for row in rows}


_GATE = Feature.PROTOCOL_FEATURES
_SLOTS = ProtocolFeature.CONFIGURE_MEM_SLOTS
_STATUS_BIT = ProtocolFeature.STATUS

MESSAGES: dict[int, MessageSpec] = _table(
    (
        MessageSpec(Request.GET_FEATURES, Empty, reply=U64),
        MessageSpec(Request.SET_FEATURES, U64),
        MessageSpec(Request.SET_OWNER, Empty),
        MessageSpec(Request.RESET_OWNER, Empty),
        MessageSpec(Request.SET_MEM_TABLE, MemTable, Fds.ONE_PER_REGION),
        MessageSpec(Request.SET_VRING_NUM, VringState),
        MessageSpec(Request.SET_VRING_ADDR, VringAddr),
        MessageSpec(Request.SET_VRING_BASE, VringState),
        MessageSpec(Request.GET_VRING_BASE, VringState, reply=VringState),
        MessageSpec(Request.SET_VRING_KICK, VringFd, Fds.ONE_UNLESS_FLAGGED),
        MessageSpec(Request.SET_VRING_CALL, VringFd, Fds.ONE_UNLESS_FLAGGED),
        MessageSpec(Request.SET_VRING_ERR, VringFd, Fds.ONE_UNLESS_FLAGGED),
        MessageSpec(Request.GET_PROTOCOL_FEATURES, Empty, feature=_GATE, reply=U64),
        MessageSpec(Request.SET_PROTOCOL_FEATURES, U64, feature=_GATE),
        MessageSpec(Request.GET_QUEUE_NUM, Empty, protocol_feature=ProtocolFeature.MQ, reply=U64),
        MessageSpec(Request.SET_VRING_ENABLE, VringState, feature=_GATE),
        MessageSpec(Request.SEND_RARP, RarpMac, protocol_feature=ProtocolFeature.RARP),
        MessageSpec(Request.NET_SET_MTU, U64, protocol_feature=ProtocolFeature.NET_MTU),
        MessageSpec(Request.GET_MAX_MEM_SLOTS, Empty, protocol_feature=_SLOTS, reply=U64),
        MessageSpec(Request.ADD_MEM_REG, MemSlot, Fds.ONE, protocol_feature=_SLOTS),
        MessageSpec(Request.REM_MEM_REG, MemSlot, Fds.TOLERATED, protocol_feature=_SLOTS),
        MessageSpec(Request.SET_STATUS, U64, protocol_feature=_STATUS_BIT),
        MessageSpec(Request.GET_STATUS, Empty, protocol_feature=_STATUS_BIT, reply=U64),
    )
)
"""Every message that is served, by number. What isn't here is refused."""


def encode_request(request: Request, payload: Payload | None = None, *, need_reply: bool = False) -> bytes:
    """A front end's message, ready to send (its descriptors go along as SCM_RIGHTS with the first byte)."""
    body = payload.pack() if payload is not None else b""
    flags = VERSION | (NEED_REPLY if need_reply else 0)
    return Header(int(request), flags, len(body)).pack() + body


def encode_reply(request: int, payload: Payload) -> bytes:
    """A back end's answer: flags are exactly version and reply, all that QEMU accepts."""
    body = payload.pack()
    return Header(request, VERSION | REPLY, len(body)).pack() + body
