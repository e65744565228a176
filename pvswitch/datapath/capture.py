# SPDX-License-Identifier: Apache-2.0
"""What the core has seen: its flight recorder's rings, and captures (the part "what was seen" of pvs_api.h).

Reading disturbs no worker. A capture gets frames of the ports whose `PortView` has its bit, and must be out of the
published tables when it is closed. Times are the core's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pvswitch.datapath.core import DROP_REASONS, check, ffi, lib

MAX_CAPTURES: int = lib.PVS_MAX_CAPTURES
MAX_FILTER: int = lib.PVS_MAX_FILTER
MAX_FRAME: int = lib.PVS_MAX_FRAME
RECORDS: int = lib.PVS_RECORDS
"""That each ring of each worker has."""

_RINGS = {"drops": lib.PVS_RECORD_DROPS, "frames": lib.PVS_RECORD_FRAMES}
_INSTRUCTION = 8  # bytes of a struct pvs_bpf


class Captured(NamedTuple):
    """A frame that passed by a port; see struct pvs_captured. `drop` is "none" for one that went on."""

    time_ns: int
    port: int
    inbound: bool
    drop: str
    lost: int
    peer: int
    copies: int
    flow: int | None
    length: int
    vid: int
    unfinished: bool
    data: bytes


class DatapathCapture:
    """A capture in the core: a ring of each worker."""

    def __init__(self, switch: Any, *, snaplen: int, ring_bytes: int, program: bytes) -> None:
        """`program`: a filter's instructions, none is every frame. OSError EINVAL, ENOSPC (too many), ENOMEM."""
        conf, filters = ffi.new("struct pvs_capture_conf *"), _instructions(program)
        conf.snaplen, conf.ring_bytes = snaplen, ring_bytes
        conf.filter, conf.n = filters, len(program) // _INSTRUCTION
        out = ffi.new("pvs_capture **")
        check(lib.pvs_capture_create(switch, conf, out))
        self._capture = out[0]
        self._lost = 0
        self._frame = ffi.new("struct pvs_captured *")
        self._size = snaplen
        self._bytes = ffi.new("uint8_t[]", snaplen)
        self.slot = int(lib.pvs_capture_slot(self._capture))
        """Its bit in a PortView."""

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self._capture is not None:
            self._lost = self.lost()
            lib.pvs_capture_destroy(self._capture)
            self._capture = None

    def take(self, worker: int) -> Captured | None:
        """Return the oldest frame that waits in a worker's ring, None when there is none."""
        f = self._frame
        if self._capture is None or not check(lib.pvs_capture_next(self._capture, worker, f, self._bytes, self._size)):
            return None
        return Captured(
            f.time_ns,
            f.port_ref,
            f.direction == lib.PVS_INGRESS,
            DROP_REASONS[f.drop],
            f.lost,
            f.peer_ref,
            f.copies,
            None if f.counter == lib.PVS_NO_FLOW else f.counter,
            f.len,
            f.vid,
            f.unfinished,
            ffi.buffer(self._bytes, f.n_bytes)[:],
        )

    def lost(self) -> int:
        """Return how many frames found no room so far, also when it is closed."""
        return self._lost if self._capture is None else int(lib.pvs_capture_lost(self._capture))


@dataclass(frozen=True, slots=True)
class Record:
    """A drop or a sampled frame; see struct pvs_record. `direction`: None for a frame that was sampled."""

    worker: int
    number: int
    time_ns: int
    port: int
    in_port: int
    direction: Literal["rx", "tx"] | None
    drop: str
    count: int
    length: int
    vid: int
    copies: int
    out_index: int
    data: bytes


_DIRECTIONS: dict[int, Literal["rx", "tx"]] = {lib.PVS_RECORD_RX_DROP: "rx", lib.PVS_RECORD_TX_DROP: "tx"}


def records(switch: Any, worker: int, ring: Literal["drops", "frames"]) -> Iterator[Record]:
    """Read a worker's ring at once; iterate over it, newest first."""
    room = ffi.new("struct pvs_record[]", RECORDS)
    n = lib.pvs_records_read(switch, worker, _RINGS[ring], 0, room, RECORDS)
    return (_record(worker, room[i]) for i in range(n - 1, -1, -1))


def _record(worker: int, r: Any) -> Record:
    return Record(
        worker,
        r.number,
        r.time_ns,
        r.port_ref,
        r.in_ref,
        _DIRECTIONS.get(r.kind),
        DROP_REASONS[r.drop],
        r.count,
        r.len,
        r.vid,
        r.copies,
        r.out,
        bytes(ffi.buffer(r.bytes, r.n_bytes)),
    )


def set_recorder(switch: Any, every: int, program: bytes) -> int:
    """Submit the command that says which frames are sampled; see pvs_recorder_set."""
    return int(lib.pvs_recorder_set(switch, every, _instructions(program), len(program) // _INSTRUCTION))


def _instructions(program: bytes) -> Any:
    filters = ffi.new("struct pvs_bpf[]", max(1, len(program) // _INSTRUCTION))
    ffi.memmove(filters, program, len(program))
    return filters
