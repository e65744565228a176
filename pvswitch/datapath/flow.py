# SPDX-License-Identifier: Apache-2.0
"""Flows in the core: tables that never change, counters and meters that outlive them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pvswitch.datapath.core import check, ffi, lib

NO_FLOW: int = lib.PVS_NO_FLOW
MAX_MASKS: int = lib.PVS_MAX_MASKS


class FlowCount(NamedTuple):
    """What a flow has counted: frames, their bytes, and when the last one came, on the core's clock (0: never)."""

    packets: int
    bytes: int
    used_ns: int


class MeterCount(NamedTuple):
    """What a meter was offered, and what of that it has dropped."""

    packets: int
    bytes: int
    dropped_packets: int
    dropped_bytes: int


class FlowTable:
    """The flows of a bridge as workers look them up. It may be made and destroyed in any thread."""

    def __init__(self, switch: Any, flows: bytes, n_flows: int, actions: bytes, n_actions: int) -> None:
        """Take arrays of struct pvs_flow_conf and pvs_flow_action; OSError EINVAL, E2BIG (masks), ENOMEM."""
        out = ffi.new("pvs_flow_table **")
        conf = ffi.from_buffer("struct pvs_flow_conf[]", flows)
        acts = ffi.from_buffer("struct pvs_flow_action[]", actions)
        seed = secrets.randbits(64)
        check(lib.pvs_flow_table_create(switch, conf, n_flows, acts, n_actions, seed, out))
        self.table = out[0]

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, with its caches."""
        info = ffi.new("struct pvs_flow_table_info *")
        lib.pvs_flow_table_info(self.table, info)
        return int(info.bytes)

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self.table is not None:
            lib.pvs_flow_table_destroy(self.table)
            self.table = None


class FlowCounters:
    """The counters of a switch's flows, each a number."""

    def __init__(self, switch: Any) -> None:
        """Give out counters of this switch."""
        self._switch = switch

    def add(self) -> int:
        """Return a counter, which may have counted before; OSError ENOSPC, ENOMEM."""
        out = ffi.new("uint32_t *")
        check(lib.pvs_flow_counter_add(self._switch, out))
        return int(out[0])

    def remove(self, counter: int) -> None:
        """Give one back; no published table may name it any more."""
        lib.pvs_flow_counter_remove(self._switch, counter)

    def read(self, counters: Sequence[int]) -> list[FlowCount]:
        """Return what these have counted."""
        n = len(counters)
        packets, size, used = (ffi.new("uint64_t[]", max(1, n)) for _ in range(3))
        lib.pvs_flow_counters_read(self._switch, ffi.new("uint32_t[]", list(counters) or 1), n, packets, size, used)
        found = zip(ffi.unpack(packets, n), ffi.unpack(size, n), ffi.unpack(used, n), strict=True) if n else ()
        return [FlowCount(*values) for values in found]


class FlowMeter:
    """A meter's state."""

    def __init__(self, switch: Any) -> None:
        """Begin with nothing used of its burst; OSError ENOMEM."""
        out = ffi.new("pvs_flow_meter **")
        check(lib.pvs_flow_meter_create(switch, out))
        self.meter = out[0]

    def read(self) -> MeterCount:
        """Return what it has counted."""
        out = ffi.new("uint64_t[4]")
        lib.pvs_flow_meter_read(self.meter, out, out + 1, out + 2, out + 3)
        return MeterCount(*out)

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self.meter is not None:
            lib.pvs_flow_meter_destroy(self.meter)
            self.meter = None


@dataclass(frozen=True, slots=True)
class MeterView:
    """A meter in the tables: units in a second and at once, of bytes or, with `packets`, of frames."""

    meter: FlowMeter
    per_second: int
    depth: int
    packets: bool


@dataclass(frozen=True, slots=True)
class FlowsView:
    """A bridge's flows in the tables, and what their slots stand for; None in `ports`: there is none now."""

    table: FlowTable
    ports: tuple[Any, ...] = ()  # handles of ports, or None
    meters: tuple[MeterView, ...] = ()
    mirrors: tuple[int, ...] = ()  # their numbers on the bridge

    def fill(self, conf: Any, keep: list[Any]) -> None:
        """Write it into a struct pvs_bridge_conf; `keep` gets what that points to."""
        ports = ffi.new("pvs_port *[]", [ffi.NULL if port is None else port._port for port in self.ports] or 1)
        meters = ffi.new("struct pvs_meter_conf[]", len(self.meters) or 1)
        for i, view in enumerate(self.meters):
            meters[i].meter, meters[i].packets = view.meter.meter, view.packets
            meters[i].limit = (view.per_second, view.depth)
        mirrors = ffi.new("uint32_t[]", list(self.mirrors) or 1)
        conf.flows = self.table.table
        conf.n_flow_ports, conf.flow_ports = len(self.ports), ports
        conf.n_flow_meters, conf.flow_meters = len(self.meters), meters
        conf.n_flow_mirrors, conf.flow_mirrors = len(self.mirrors), mirrors
        keep += (ports, meters, mirrors)
