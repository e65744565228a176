# SPDX-License-Identifier: Apache-2.0
"""The flows of every bridge in the core: which table, which counters, which meters; and what they have counted.

A table is made anew only when its bridge's flows have changed, in a thread: with very many of them that takes a moment,
in which the event loop goes on. A flow that is the same as before keeps its counter; one that has changed begins at 0.
Names become slots, whose meaning each publication says (`view`): to rename nothing and to move a port touches no table.

`Ports` owns it, and calls prepare, commit (which can't fail), and retire when no worker uses the old tables any more;
one change at a time. What is read may be read meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pvswitch.datapath import (
    DatapathHandle,
    FlowCounters,
    FlowMeter,
    FlowsView,
    FlowTable,
    MeterView,
    now_ns,
)
from pvswitch.errors import ApplyError
from pvswitch.flows.actions import Named
from pvswitch.flows.compiled import Slots, table
from pvswitch.model import Bridge, Flow, Meter, SwitchConfig
from pvswitch.state import FlowStats, MeterStats

READ = 4096
"""Counters that are read at a time."""
REMEMBERED = 16_384
"""Flows that are gone whose names are known: frames that met them may still wait in captures."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A flow and its counter: what that had counted when it was given out, and when that was."""

    flow: Flow
    counter: int
    packets: int
    bytes: int
    since_ns: int


@dataclass(slots=True)
class Tabled:
    """A bridge's flows as they are in the core. `names` leads from counters back to flows."""

    flows: dict[str, Flow]
    table: FlowTable
    counted: dict[str, Counted]
    slots: dict[Named, tuple[str, ...]]
    names: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class PreparedFlows:
    """What a new configuration needs, and what will be free after it."""

    tables: dict[str, Tabled] = field(default_factory=dict)
    meters: dict[tuple[str, str], FlowMeter] = field(default_factory=dict)
    new: list[FlowTable | FlowMeter] = field(default_factory=list)
    old: list[FlowTable | FlowMeter] = field(default_factory=list)
    new_counters: list[int] = field(default_factory=list)
    old_counters: list[int] = field(default_factory=list)


class FlowTables:
    """The flows and meters of the switch in the core."""

    def __init__(
        self,
        counters: FlowCounters,
        make_table: Callable[[bytes, int, bytes, int], FlowTable],
        make_meter: Callable[[], FlowMeter],
        clock: Callable[[], int] = now_ns,
    ) -> None:
        """Begin empty; the makers are those of a `Datapath`."""
        self._counters = counters
        self._make_table = make_table
        self._make_meter = make_meter
        self._clock = clock
        self._tables: dict[str, Tabled] = {}
        self._meters: dict[tuple[str, str], FlowMeter] = {}
        self._gone: OrderedDict[int, str] = OrderedDict()  # counter -> the last flow that had it and is gone

    # ---- changes

    async def prepare(self, new: SwitchConfig) -> PreparedFlows:
        """Make what `new` needs; ApplyError, and then nothing is left behind."""
        prepared = PreparedFlows()
        pointer = "#"
        try:
            for name, bridge in new.bridges.items():
                pointer = f"#/bridges/{name}/flows"
                await self._prepare_bridge(prepared, name, bridge)
        except BaseException as error:
            self.undo(prepared)
            if isinstance(error, OSError):
                message = f"the flows can't be put into the core: {error.strerror}; use fewer of them"
                raise ApplyError(message, pointer) from error
            raise
        kept = set(map(id, (*(tabled.table for tabled in prepared.tables.values()), *prepared.meters.values())))
        used: list[FlowTable | FlowMeter] = [*self._meters.values()]
        used += [tabled.table for tabled in self._tables.values()]
        prepared.old = [item for item in used if id(item) not in kept]
        return prepared

    async def _prepare_bridge(self, prepared: PreparedFlows, name: str, bridge: Bridge) -> None:
        for meter in bridge.meters:
            found = self._meters.get((name, meter))
            if found is None:
                found = self._make_meter()
                prepared.new.append(found)
            prepared.meters[name, meter] = found
        present = self._tables.get(name)
        if present is not None and bridge.flows and present.flows == bridge.flows:
            prepared.tables[name] = present
        elif bridge.flows:
            prepared.tables[name] = await asyncio.to_thread(self._make, prepared, bridge, present)

    def _make(self, prepared: PreparedFlows, bridge: Bridge, present: Tabled | None) -> Tabled:
        """Return a table of a bridge's flows; in a thread."""
        before = {} if present is None else present.counted
        counted: dict[str, Counted] = {}
        new: list[str] = []
        for name, flow in bridge.flows.items():
            same = before.get(name)
            if same is not None and (same.flow is flow or same.flow == flow):
                counted[name] = same
            else:
                new.append(name)
        numbers = []
        for _ in new:
            numbers.append(self._counters.add())
            prepared.new_counters.append(numbers[-1])
        now = self._clock()
        for name, number, start in zip(new, numbers, self._counters.read(numbers), strict=True):
            counted[name] = Counted(bridge.flows[name], number, start.packets, start.bytes, now)
        slots = slots_of(bridge)
        order = sorted(bridge.flows)
        order.sort(key=lambda name: -bridge.flows[name].priority)  # and by name among equals: sorting is stable
        rows = ((bridge.flows[name].compiled, counted[name].counter) for name in order)
        made = self._make_table(*table(rows, _numbers(slots)))
        prepared.new.append(made)
        return Tabled(bridge.flows, made, counted, slots, {item.counter: name for name, item in counted.items()})

    def undo(self, prepared: PreparedFlows) -> None:
        """Free what was made for a configuration that is not to be put in force."""
        for item in prepared.new:
            item.close()
        for counter in prepared.new_counters:
            self._counters.remove(counter)

    def commit(self, prepared: PreparedFlows) -> None:
        """Make these the flows that the next publication names."""
        old = {name: tabled.names for name, tabled in self._tables.items()}
        for name, names in old.items():
            kept = prepared.tables[name].names if name in prepared.tables else {}
            if kept is not names:
                gone = names.keys() - kept.keys()
                prepared.old_counters += gone
                self._remember((counter, names[counter]) for counter in gone)
        self._tables, self._meters = prepared.tables, prepared.meters

    def _remember(self, gone: Iterable[tuple[int, str]]) -> None:
        for counter, name in gone:
            self._gone[counter] = name
            self._gone.move_to_end(counter)
            if len(self._gone) > REMEMBERED:
                self._gone.popitem(last=False)

    async def retire(self, prepared: PreparedFlows) -> None:
        """Free the old: no worker uses it any more."""
        if prepared.old or prepared.old_counters:
            await asyncio.to_thread(self._free, prepared.old, prepared.old_counters)

    def _free(self, items: Iterable[FlowTable | FlowMeter], counters: Iterable[int]) -> None:
        for item in items:
            item.close()
        for counter in counters:
            self._counters.remove(counter)

    def close(self) -> None:
        """Free everything; nothing is published any more."""
        for tabled in self._tables.values():
            tabled.table.close()
        for meter in self._meters.values():
            meter.close()
        self._tables, self._meters = {}, {}

    # ---- what is published

    def view(self, name: str, bridge: Bridge, handles: Mapping[str, DatapathHandle]) -> FlowsView | None:
        """Return a bridge's flows for the tables; `handles` are those of its ports. None: it has no flows."""
        tabled = self._tables.get(name)
        if tabled is None:
            return None
        numbers = {mirror: number for number, mirror in enumerate(bridge.mirrors)}
        return FlowsView(
            tabled.table,
            tuple(handles.get(port) for port in tabled.slots["port"]),
            tuple(meter_view(bridge.meters[key], self._meters[name, key]) for key in tabled.slots["meter"]),
            tuple(numbers[mirror] for mirror in tabled.slots["mirror"]),
        )

    # ---- what there is to see

    def name(self, bridge: str, counter: int, at_ns: int | None = None) -> str | None:
        """Return the name of the flow of a bridge that has this counter, or had it `at_ns` (now, when absent)."""
        tabled = self._tables.get(bridge)
        name = None if tabled is None else tabled.names.get(counter)
        if at_ns is None or (tabled is not None and name is not None and tabled.counted[name].since_ns <= at_ns):
            return name
        return self._gone.get(counter)

    def table(self, bridge: str) -> FlowTable | None:
        """Return a bridge's table; None: it has no flows."""
        tabled = self._tables.get(bridge)
        return None if tabled is None else tabled.table

    def memory(self, bridge: str) -> int:
        """Return how many bytes a bridge's table takes in the core."""
        table = self.table(bridge)
        return 0 if table is None else table.size

    def stats(self, bridge: str, names: Iterable[str] | None = None) -> dict[str, FlowStats]:
        """Return what flows have counted, by name: all of them, or those of `names` that are there."""
        tabled = self._tables.get(bridge)
        if tabled is None:
            return {}
        keys = list(tabled.counted) if names is None else [name for name in names if name in tabled.counted]
        now = self._clock()
        found: dict[str, FlowStats] = {}
        for start in range(0, len(keys), READ):
            part = keys[start : start + READ]
            items = [tabled.counted[name] for name in part]
            for name, item, count in zip(part, items, self._counters.read([i.counter for i in items]), strict=True):
                used = count.used_ns if count.packets > item.packets else 0
                found[name] = FlowStats.model_construct(
                    packets=count.packets - item.packets,
                    bytes=count.bytes - item.bytes,
                    duration=max(0, now - item.since_ns) / 1e9,
                    idle=max(0, now - (used or item.since_ns)) / 1e9,
                )
        return found

    def meter_stats(self, bridge: str, name: str) -> MeterStats:
        """Return what a meter has counted; nothing, where it has just gone."""
        found = self._meters.get((bridge, name))
        return MeterStats() if found is None else MeterStats(**found.read()._asdict())


def slots_of(bridge: Bridge) -> dict[Named, tuple[str, ...]]:
    """Return what a bridge's flows name, each name at its slot."""
    names: dict[Named, list[str]] = {"port": [], "meter": [], "mirror": []}
    for kind, name in sorted(bridge.flow_index.named):
        names[kind].append(name)
    return {kind: tuple(found) for kind, found in names.items()}


def _numbers(slots: Mapping[Named, tuple[str, ...]]) -> Slots:
    return {(kind, name): slot for kind, names in slots.items() for slot, name in enumerate(names)}


def meter_view(meter: Meter, state: FlowMeter) -> MeterView:
    """Return a meter for the tables."""
    if meter.rate_pps is not None:
        return MeterView(state, meter.rate_pps, meter.burst_packets or 1, packets=True)
    assert meter.rate_kbps is not None
    return MeterView(state, meter.rate_kbps * 1000 // 8, meter.burst_bytes or 0, packets=False)
