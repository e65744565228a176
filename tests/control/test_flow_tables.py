# SPDX-License-Identifier: Apache-2.0
"""What flows become in the core: tables made only when flows change, counters that stay, nothing left over; expiry."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from pvswitch import flow_tables
from pvswitch.controller import Controller
from pvswitch.datapath import DatapathHandle, FlowCount, FlowCounters, FlowMeter, FlowTable, MeterCount
from pvswitch.errors import ApplyError
from pvswitch.flow_expiry import FlowExpiry, without
from pvswitch.flow_tables import FlowTables
from pvswitch.flows.compiled import ACTION, FLOW
from pvswitch.model import SwitchConfig
from pvswitch.revisions import Revisions
from pvswitch.validation import parse
from tests.control.fake import FakeDataplane

SECOND = 1_000_000_000


class Made:
    """A table or a meter of the fake core."""

    def __init__(self, core: Core, content: tuple[bytes, int, bytes, int] | None = None) -> None:
        self.core, self.content = core, content
        self.meter = self.table = self
        self.thread = threading.get_ident()
        core.open.add(self)

    def read(self) -> MeterCount:
        return MeterCount(1, 2, 3, 4)

    def close(self) -> None:
        self.core.open.remove(self)

    def flows(self) -> list[tuple[Any, ...]]:
        assert self.content is not None
        data, count, _, _ = self.content
        return [FLOW.unpack_from(data, i * FLOW.size) for i in range(count)]

    def actions(self) -> list[tuple[Any, ...]]:
        assert self.content is not None
        return list(ACTION.iter_unpack(self.content[2]))


class Core:
    """Stands for the core: knows what is there, counts what it is told, fails when it is to."""

    def __init__(self) -> None:
        self.open: set[Made] = set()
        self.counters: set[int] = set()
        self.counts: dict[int, FlowCount] = {}
        self.tables = 0
        self.fails = False
        self.now = 1000 * SECOND

    def add(self) -> int:
        number = next(i for i in range(1000) if i not in self.counters)
        self.counters.add(number)
        return number

    def remove(self, counter: int) -> None:
        self.counters.remove(counter)

    def read(self, counters: list[int]) -> list[FlowCount]:
        assert set(counters) <= self.counters
        return [self.counts.get(counter, FlowCount(0, 0, 0)) for counter in counters]

    def count(self, counter: int) -> None:
        packets, size, _ = self.counts.get(counter, FlowCount(0, 0, 0))
        self.counts[counter] = FlowCount(packets + 1, size + 60, self.now)

    def table(self, *content: Any) -> FlowTable:
        if self.fails:
            raise OSError(12, "no memory")
        self.tables += 1
        return cast(FlowTable, Made(self, content))

    def meter(self) -> FlowMeter:
        return cast(FlowMeter, Made(self))

    def clock(self) -> int:
        return self.now


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def tables(core: Core) -> FlowTables:
    return FlowTables(cast(FlowCounters, core), core.table, core.meter, core.clock)


def config(flows: dict[str, object], meters: dict[str, object] | None = None, **more: object) -> SwitchConfig:
    bridge = {"flows": flows, "meters": meters or {}, "mirrors": {"v": {"output_vlan": 5}, "w": {"output_vlan": 9}}}
    return parse({"bridges": {"br0": {**bridge, **more}}, "ports": {"vm1": {}, "vm2": {}}})


async def put(tables: FlowTables, new: SwitchConfig) -> None:
    prepared = await tables.prepare(new)
    tables.commit(prepared)
    await tables.retire(prepared)


def made(tables: FlowTables) -> Made:
    table = tables.table("br0")
    assert table is not None
    return cast(Made, table)


WEB = "priority=5,in_port=vm2,tcp,tp_dst=80-90,actions=output:vm1"
SLOW = "priority=9,in_port=vm1,actions=meter:slow,mirror:w,normal"


async def test_flows_in_order_with_slots_and_counters(core: Core, tables: FlowTables) -> None:
    new = config({"web": WEB, "b": "ip,priority=9,actions=drop", "a": SLOW}, {"slow": {"rate_kbps": 800}})
    await put(tables, new)
    found = made(tables).flows()
    names = [tables.name("br0", flow[25]) for flow in found]
    assert names == ["a", "b", *["web"] * (len(found) - 2)], "by priority, then by name"
    assert [flow[24] for flow in found[:3]] == [9, 9, 5]
    assert [flow[0] >> 32 for flow in found[:3]] == [0, 0, 1], "slots are in the order of names"
    assert [(kind, slot) for kind, slot, _ in made(tables).actions()] == [(6, 0), (5, 0), (4, 0), (0, 0)]
    assert made(tables).thread != threading.get_ident(), "made in a thread"
    handle = cast(DatapathHandle, object())
    view = tables.view("br0", new.bridges["br0"], {"vm1": handle})
    assert view is not None
    assert (view.ports, view.mirrors) == ((handle, None), (1,))
    assert [(meter.per_second, meter.depth, meter.packets) for meter in view.meters] == [(100_000, 131_072, False)]
    assert tables.view("br9", new.bridges["br0"], {}) is None
    assert tables.name("br0", 999) is None
    assert tables.name("br9", 0) is None


async def test_a_table_is_made_only_when_flows_change(core: Core, tables: FlowTables) -> None:
    await put(tables, config({"web": WEB}))
    table = made(tables)
    await put(tables, config({"web": WEB}, {"m": {"rate_pps": 10}}, aging_time=5))
    assert (made(tables), core.tables) == (table, 1)
    await put(tables, config({"web": WEB, "b": "actions=drop"}))
    assert core.tables == 2
    assert core.open == {made(tables)}, "the old table and the meter are gone"
    await put(tables, config({}))
    assert (core.open, core.counters, tables.table("br0")) == (set(), set(), None)


async def test_a_flow_that_stays_counts_on(core: Core, tables: FlowTables) -> None:
    await put(tables, config({"web": WEB, "b": "actions=drop"}))
    names = {tables.name("br0", counter): counter for counter in core.counters}
    for name in ("web", "b"):
        core.count(names[name])
    core.now += 4 * SECOND
    await put(tables, config({"web": WEB, "b": "actions=normal", "c": "ip,actions=drop"}))
    stats = tables.stats("br0")
    assert (stats["web"].packets, stats["web"].bytes, stats["web"].duration, stats["web"].idle) == (1, 60, 4.0, 4.0)
    assert (stats["b"].packets, stats["b"].duration, stats["c"].packets) == (0, 0.0, 0)
    assert len(core.counters) == 3
    assert set(tables.stats("br0", ["web", "x"])) == {"web"}
    assert tables.stats("br9") == {}


async def test_a_counter_that_comes_back_begins_at_0(core: Core, tables: FlowTables) -> None:
    await put(tables, config({"web": WEB}))
    (counter,) = core.counters
    core.count(counter)
    await put(tables, config({}))
    core.now += 9 * SECOND
    await put(tables, config({"other": "actions=drop"}))
    assert core.counters == {counter}
    stats = tables.stats("br0")["other"]
    assert (stats.packets, stats.bytes, stats.duration, stats.idle) == (0, 0, 0.0, 0.0)
    core.now += SECOND
    core.count(counter)
    core.now += SECOND
    stats = tables.stats("br0")["other"]
    assert (stats.packets, stats.bytes, stats.duration, stats.idle) == (1, 60, 2.0, 1.0)


async def test_a_counter_had_another_name_before(
    core: Core, tables: FlowTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(tables, config({"web": WEB}))
    (counter,) = core.counters
    first = core.now
    assert tables.name("br0", counter, first) == tables.name("br0", counter) == "web"
    core.now += SECOND
    await put(tables, config({}))
    assert tables.name("br0", counter) is None
    assert tables.name("br0", counter, core.now) == "web"
    core.now += SECOND
    await put(tables, config({"other": "actions=drop"}))
    assert tables.name("br0", counter, core.now - 1) == "web"
    assert tables.name("br0", counter, core.now) == tables.name("br0", counter) == "other"
    monkeypatch.setattr(flow_tables, "REMEMBERED", 1)
    await put(tables, config({name: f"priority={n},actions=drop" for n, name in enumerate("abc")}))
    used = list(core.counters)
    await put(tables, config({}))
    assert sorted(name for n in used if (name := tables.name("br0", n, core.now)) is not None) in (["a"], ["b"], ["c"])


@pytest.mark.parametrize("late", [False, True])
async def test_what_fails_leaves_nothing_behind(core: Core, tables: FlowTables, late: bool) -> None:
    await put(tables, config({"web": WEB}))
    before, table = set(core.counters), made(tables)
    new = config({"web": WEB, "b": SLOW}, {"slow": {"rate_pps": 10}})
    core.fails = not late
    if late:
        tables.undo(await tables.prepare(new))
    else:
        with pytest.raises(ApplyError, match="can't be put into the core: no memory") as refused:
            await tables.prepare(new)
        assert refused.value.pointer == "#/bridges/br0/flows"
    assert (core.counters, core.open, made(tables)) == (before, {table}, table)
    core.fails = False
    await put(tables, new)
    assert tables.meter_stats("br0", "slow").dropped_packets == 3
    tables.close()
    assert core.open == set()


# ---- expiry ----


@pytest.fixture
async def controller(tmp_path: Any, revisions: Revisions) -> Controller:
    flows = {
        "hard": "priority=1,hard_timeout=30,actions=drop",
        "idle": "priority=2,idle_timeout=20,actions=drop",
        "long": "priority=3,idle_timeout=100,hard_timeout=200,actions=drop",
        "ever": "priority=4,actions=drop",
    }
    new = config(cast(dict[str, object], flows)).model_copy(update={"state_dir": tmp_path / "state"})
    controller = Controller(FakeDataplane(), new, revisions)
    await controller.start()
    return controller


def left(controller: Controller) -> list[str]:
    return list(controller.config.bridges["br0"].flows)


async def test_flows_go_when_their_time_is_over(controller: Controller, revisions: Revisions) -> None:
    plane = controller._dataplane
    assert isinstance(plane, FakeDataplane)
    expiry = FlowExpiry(controller, plane)
    plane.seconds = 29  # idle for the half of that
    assert await expiry.expire() == 0
    before = revisions.last()
    plane.seconds = 40
    assert await expiry.expire() == 2
    assert left(controller) == ["long", "ever"]
    last = revisions.last()
    assert last is not None
    assert before is not None
    assert (last.actor, last.number) == ("expired", before.number + 1), "both in one edit"
    plane.seconds = 10_000
    assert await expiry.expire() == 1
    assert left(controller) == ["ever"]
    assert await expiry.expire() == 0


async def test_a_flow_that_was_changed_meanwhile_stays(controller: Controller) -> None:
    document = controller.config.editable()
    looked_at = dict(controller.config.bridges["br0"].flows)
    document["bridges"]["br0"]["flows"]["hard"] = "priority=1,hard_timeout=3000,actions=drop"
    changed = SwitchConfig.model_validate(document)
    found = without(changed, {"br0": {"hard": looked_at["hard"], "idle": looked_at["idle"]}, "gone": {}})
    assert list(found.bridges["br0"].flows) == ["hard", "long", "ever"]
    assert found.bridges["br0"].flows["hard"].hard_timeout == 3000


async def test_it_looks_by_itself_and_ends(controller: Controller) -> None:
    plane = controller._dataplane
    assert isinstance(plane, FakeDataplane)
    plane.seconds = 1000
    expiry = FlowExpiry(controller, plane, seconds=0.01)
    expiry.start()
    async with asyncio.timeout(20):
        while left(controller) != ["ever"]:  # noqa: ASYNC110 (nothing tells of it but the configuration)
            await asyncio.sleep(0.01)
    await expiry.close()
    assert all(task.get_name() != "flow expiry" for task in asyncio.all_tasks())
