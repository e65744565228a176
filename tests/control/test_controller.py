# SPDX-License-Identifier: Apache-2.0
"""plan() as a pure function, and an apply that happens as a whole or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given

from pvswitch.controller import Controller, StaleError, etag_of, plan
from pvswitch.errors import ApplyError
from pvswitch.model import Plan, SwitchConfig
from pvswitch.revisions import Revisions
from pvswitch.validation import parse
from tests.control.fake import FakeDataplane
from tests.control.test_model import documents

BASE: dict[str, Any] = {"runtime_dir": "/r", "bridges": {"a": {}, "b": {}}, "ports": {"vm1": {"bridge": "a"}}}


def config(**changes: Any) -> SwitchConfig:
    return parse({**BASE, **changes})


def steps(difference: Plan) -> list[tuple[str, str, bool]]:
    return [(change.op, change.pointer, change.disruptive) for change in difference.changes]


def test_equal_configurations_differ_in_nothing() -> None:
    assert plan(config(), config()).changes == ()


def test_steps_come_in_an_order_that_works() -> None:
    new = config(bridges={"b": {"aging_time": 5}, "c": {}}, ports={"vm2": {"bridge": "c"}, "vm3": {"bridge": "b"}})
    old = config(ports={"vm1": {"bridge": "a"}, "vm3": {"bridge": "a"}})
    assert steps(plan(old, new)) == [
        ("remove", "#/ports/vm1", True),
        ("add", "#/bridges/c", False),
        ("change", "#/bridges/b", False),
        ("change", "#/ports/vm3", False),
        ("add", "#/ports/vm2", False),
        ("remove", "#/bridges/a", False),
    ]


@pytest.mark.parametrize(
    ("settings", "keys", "disruptive"),
    [
        ({"mtu": 9000}, ("mtu",), False),
        ({"enabled": False}, ("enabled",), False),
        ({"labels": {"a": "b"}}, ("labels",), False),
        ({"socket": "/s"}, ("socket",), True),
        ({"features": {"indirect": False}}, ("features",), True),
        ({"features": {"tso": False}}, ("features",), True),
        ({"queues": 1}, ("queues",), True),
        ({"mode": "client"}, ("mode",), True),
        ({"rxq_affinity": [0, 0]}, ("rxq_affinity",), True),
        ({"on_full": "backpressure", "backpressure_ms": 5}, ("on_full", "backpressure_ms"), False),
        ({"mtu": 9000, "socket": "/s"}, ("mtu", "socket"), True),
    ],
)
def test_what_ends_a_connection_is_said(settings: dict[str, Any], keys: tuple[str, ...], disruptive: bool) -> None:
    (change,) = plan(config(), config(ports={"vm1": {"bridge": "a", **settings}})).changes
    assert (change.keys, change.disruptive) == (keys, disruptive)
    assert ("connection ends" in change.detail) is disruptive


@pytest.mark.parametrize(
    ("settings", "keys", "disruptive"),
    [
        ({"addresses": ["192.0.2.2/24"], "mtu": 1400}, {"mtu", "addresses"}, False),
        ({"queues": 2}, {"queues"}, True),
        ({"netns": "lab"}, {"netns"}, True),
        ({"ifname": "tap1"}, {"ifname"}, True),
        ({"type": "af_packet"}, {"type", "promisc"}, True),
    ],
)
def test_what_opens_an_interface_anew_is_said(settings: dict[str, Any], keys: set[str], disruptive: bool) -> None:
    tap = {"bridge": "a", "type": "tap", "ifname": "tap0"}
    (change,) = plan(config(ports={"vm1": tap}), config(ports={"vm1": {**tap, **settings}})).changes
    assert (set(change.keys), change.disruptive) == (keys, disruptive)
    assert ("its interface is opened anew" in change.detail) is disruptive


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"speed": 0}, ("speed",)),
        ({"loop": True}, ("loop",)),
        ({"read": "/b"}, ("read",)),
        ({"write": "/c"}, ("write",)),
        ({"mtu": 1500}, ()),
    ],
)
def test_what_begins_files_anew_is_said(settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    pcap = {"bridge": "a", "type": "pcap", "read": "/a"}
    (change,) = plan(config(ports={"vm1": pcap}), config(ports={"vm1": {**pcap, **settings}})).changes
    assert change.keys == (keys or ("mtu",))
    assert change.disruptive is bool(keys)
    assert ("its files begin anew" in change.detail) is bool(keys)


def test_a_port_that_becomes_another_type() -> None:
    tap = {"bridge": "a", "type": "tap", "ifname": "tap0"}
    (change,) = plan(config(), config(ports={"vm1": tap})).changes
    assert change.disruptive
    assert "type vhost-user -> tap" in change.detail
    assert "its VM's connection ends" in change.detail


@given(documents(), documents())
def test_a_plan_leads_from_old_to_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = parse(old), parse(new)
    names = {f"#/bridges/{name}" for name in before.bridges} | {f"#/ports/{name}" for name in before.ports}
    for change in plan(before, after).changes:
        if change.op == "add":
            assert change.pointer not in names
            names.add(change.pointer)
        else:
            assert change.pointer in names
            if change.op == "remove":
                names.remove(change.pointer)
    assert names == {f"#/bridges/{name}" for name in after.bridges} | {f"#/ports/{name}" for name in after.ports}


async def test_start_begins_from_nothing(revisions: Revisions) -> None:
    dataplane = FakeDataplane()
    difference = await Controller(dataplane, config(), revisions).start()
    assert {change.op for change in difference.changes} == {"add"}
    assert dataplane.calls == ["prepare", "commit", "retire"]


async def test_a_failed_prepare_leaves_all_as_it_was(revisions: Revisions) -> None:
    dataplane = FakeDataplane(broken={"vm2"})
    controller = Controller(dataplane, config(), revisions)
    etag = controller.etag
    with pytest.raises(ApplyError) as caught:
        await controller.apply(config(ports={"vm2": {"bridge": "a"}}))
    assert caught.value.pointer == "#/ports/vm2"
    assert (controller.config, controller.etag) == (config(), etag)
    assert dataplane.calls == ["prepare"]


async def test_a_dry_run_changes_nothing(revisions: Revisions) -> None:
    dataplane = FakeDataplane()
    controller = Controller(dataplane, config(), revisions)
    difference = await controller.apply(config(ports={}), dry_run=True)
    assert steps(difference) == [("remove", "#/ports/vm1", True)]
    assert controller.config == config()
    assert dataplane.calls == []


async def test_no_difference_touches_nothing(revisions: Revisions) -> None:
    dataplane = FakeDataplane()
    await Controller(dataplane, config(), revisions).apply(config())
    assert dataplane.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"datapath": {"polling": "busy"}},
        {"datapath": {"workers": 2}},
        {"socket_dir": "/s"},
        {"socket_mode": "0600"},
        {"api": {"socket": "/s"}},
    ],
)
async def test_what_takes_a_restart_is_refused(changes: dict[str, Any], revisions: Revisions) -> None:
    dataplane = FakeDataplane()
    with pytest.raises(ApplyError, match="restart") as caught:
        await Controller(dataplane, config(), revisions).apply(config(**changes))
    assert caught.value.pointer == f"#/{next(iter(changes))}"
    assert dataplane.calls == []


async def test_a_stale_etag_is_refused(revisions: Revisions) -> None:
    controller = Controller(FakeDataplane(), config(), revisions)
    with pytest.raises(StaleError):
        await controller.edit(lambda _: config(ports={}), if_match=["0"])
    await controller.edit(lambda _: config(ports={}), if_match=["0", controller.etag])
    assert controller.etag == etag_of(config(ports={}))


class SlowDataplane(FakeDataplane):
    """Prepares only when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.began = asyncio.Event()
        self.ended = asyncio.Event()

    async def prepare(self, new: SwitchConfig) -> object:
        self.began.set()
        await self.go.wait()
        return await super().prepare(new)

    async def retire(self, prepared: object) -> None:
        await super().retire(prepared)
        self.ended.set()


async def test_one_change_at_a_time_and_none_is_lost(revisions: Revisions) -> None:
    dataplane = SlowDataplane()
    controller = Controller(dataplane, config(), revisions)

    def add(name: str) -> Any:
        return lambda now: parse({**now.document(), "ports": {**now.document()["ports"], name: {"bridge": "a"}}})

    tasks = [asyncio.create_task(controller.edit(add(f"p{i}"))) for i in range(5)]
    await dataplane.began.wait()
    dataplane.go.set()
    await asyncio.gather(*tasks)
    assert set(controller.config.ports) == {"vm1", "p0", "p1", "p2", "p3", "p4"}
    assert dataplane.calls == ["prepare", "commit", "retire"] * 5


async def test_closing_waits_for_an_edit_under_way(revisions: Revisions) -> None:
    dataplane = SlowDataplane()
    controller = Controller(dataplane, config(), revisions)
    edit = asyncio.create_task(controller.apply(config(ports={})))
    await dataplane.began.wait()
    closing = asyncio.create_task(controller.close())
    await asyncio.sleep(0)
    assert not closing.done()
    dataplane.go.set()
    async with asyncio.timeout(10):
        await closing
    assert dataplane.calls == ["prepare", "commit", "retire"]
    await edit


async def test_a_cancelled_caller_does_not_stop_a_change_halfway(revisions: Revisions) -> None:
    dataplane = SlowDataplane()
    controller = Controller(dataplane, config(), revisions)
    task = asyncio.create_task(controller.apply(config(ports={})))
    await dataplane.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    dataplane.go.set()
    async with asyncio.timeout(10):
        await dataplane.ended.wait()
    assert dataplane.calls == ["prepare", "commit", "retire"]
    assert not controller.config.ports
