# SPDX-License-Identifier: Apache-2.0
"""What would become of a frame, by the core's own decision: pvs_trace_frame and pvs_flow_nearly as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pvswitch.datapath.core import DROP_REASONS, ffi, lib
from pvswitch.datapath.flow import NO_FLOW, FlowTable
from pvswitch.datapath.handles import DatapathHandle
from pvswitch.datapath.tunnel import UNMAPPED
from pvswitch.trace.record import Kind

MAX_NEARLY = 64
"""Flows that nearly match and are told, at most."""

_KINDS: dict[int, Kind] = {
    lib.PVS_STEP_PARSED: "parsed",
    lib.PVS_STEP_TAKEN: "taken",
    lib.PVS_STEP_VLAN: "vlan",
    lib.PVS_STEP_FLOW: "flow",
    lib.PVS_STEP_ACTION: "action",
    lib.PVS_STEP_BPDU: "bpdu",
    lib.PVS_STEP_SENDER: "sender",
    lib.PVS_STEP_LEARN: "learn",
    lib.PVS_STEP_FDB: "fdb",
    lib.PVS_STEP_STORM: "storm",
    lib.PVS_STEP_FLOOD: "flood",
    lib.PVS_STEP_MIRROR: "mirror",
    lib.PVS_STEP_DROP: "drop",
}


@dataclass(frozen=True, slots=True)
class TraceConf:
    """A frame, and of a tunnel's how it came; see struct pvs_trace_conf. A `vid` of None: as its tag says."""

    frame: bytes
    tun_id: int = 0
    vid: int | None = None
    vtep: int = 0


@dataclass(frozen=True, slots=True)
class TracedStep:
    """See struct pvs_step."""

    kind: Kind
    a: int
    b: int
    c: int


@dataclass(frozen=True, slots=True)
class TracedCopy:
    """See struct pvs_trace_copy. None: it leaves; of no mirror; by its VLAN."""

    port: int
    drop: str | None
    vid: int
    vtep: int
    mirror: int | None
    tun_id: int | None
    length: int
    head: bytes


@dataclass(frozen=True, slots=True)
class TraceResult:
    """See struct pvs_trace. `drop` and `counter`: None for no drop, and no flow."""

    drop: str | None
    counter: int | None
    key: tuple[int, ...]
    steps: tuple[TracedStep, ...]
    copies: tuple[TracedCopy, ...]
    omitted: int


async def trace_frame(port: DatapathHandle, conf: TraceConf) -> TraceResult:
    """Return what would become of a frame that came by a port; nothing changes.

    OSError EINVAL: it is no frame; ENOENT: the port isn't published.
    """
    frame = ffi.from_buffer(conf.frame)
    given = ffi.new("struct pvs_trace_conf *")
    given.frame, given.len = ffi.cast("uint8_t *", frame), len(conf.frame)
    given.tun_id, given.vid, given.vtep = conf.tun_id, UNMAPPED if conf.vid is None else conf.vid, conf.vtep
    out = ffi.new("struct pvs_trace *")
    await port._datapath.command(lambda: lib.pvs_trace_frame(port._port, given, out), keep=(frame, given, out))
    steps, copies = min(out.n_steps, len(out.step)), min(out.n_copies, len(out.copy))
    return TraceResult(
        drop_reason(out.drop),
        None if out.counter == NO_FLOW else out.counter,
        tuple(out.key),
        tuple(TracedStep(_KINDS[s.kind], s.a, s.b, s.c) for s in out.step[0:steps]),
        tuple(_copy(copy) for copy in out.copy[0:copies]),
        out.n_steps - steps + out.n_copies - copies,
    )


def _copy(copy: Any) -> TracedCopy:
    return TracedCopy(
        copy.port_ref,
        drop_reason(copy.drop),
        copy.vid,
        copy.vtep,
        None if copy.mirror < 0 else copy.mirror,
        None if copy.tun_id == NO_FLOW else copy.tun_id,
        copy.len,
        bytes(ffi.buffer(copy.head, copy.head_len)),
    )


def drop_reason(code: int) -> str | None:
    """Return a reason's name, None for no drop."""
    return DROP_REASONS[code] if code else None


def flow_nearly(table: FlowTable, key: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the flows of a table that a key nearly matches: their counters, and the word that differs."""
    counters, words = ffi.new("uint32_t[]", MAX_NEARLY), ffi.new("uint32_t[]", MAX_NEARLY)
    n = min(lib.pvs_flow_nearly(table.table, [*key], counters, words, MAX_NEARLY), MAX_NEARLY)
    return [(counters[i], words[i]) for i in range(n)]
