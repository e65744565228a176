# SPDX-License-Identifier: Apache-2.0
"""Ports on a real data plane, in this process: what they offer and show, and whom an edit disconnects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pvswitch import ports
from pvswitch.controller import Controller
from pvswitch.datapath import BridgeView, Datapath, PortView
from pvswitch.errors import ApplyError
from pvswitch.guest import DRIVER_FEATURES, Guest
from pvswitch.model import AnyPort, VhostUserPort
from pvswitch.ports import Ports
from pvswitch.revisions import Revisions
from pvswitch.state import LinkReason
from pvswitch.validation import parse
from pvswitch.vhost_port import VhostPort, offer_for
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import Request

PATIENCE = 20.0
"""Seconds for what must happen: far beyond what any machine needs."""

TSO = {"host_tso4", "host_tso6", "host_ecn", "guest_tso4", "guest_tso6", "guest_ecn"}
USO = {"host_uso", "guest_uso4", "guest_uso6"}
CSUM = {"csum", "guest_csum"}


class Lab:
    """A controller with its ports, and the guests of a test."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.datapath = Datapath(workers=3)
        self.ports = Ports(self.datapath)
        self.settings: dict[str, dict[str, Any]] = {"a": {}, "b": {"mode": "client"}, "c": {}}
        self.revisions = Revisions(folder / "state")
        self.controller = Controller(self.ports, parse(self.document()), self.revisions)

    def document(self) -> dict[str, Any]:
        return {"runtime_dir": str(self.folder), "datapath": {"workers": 3}, "ports": self.settings}

    async def set(self, port: str, **changes: Any) -> bool:
        """Change a port's settings; whether the plan says that its connection ends."""
        self.settings[port] = {**self.settings[port], **changes}
        return (await self.controller.apply(parse(self.document()))).disruptive

    async def guest(self, port: str, **options: Any) -> Guest:
        """A guest on a port, connected and started; it listens where the switch connects."""
        guest = Guest(self.controller.config.port_socket(port), **options)
        self.stack.push_async_callback(guest.close)
        if self.settings[port].get("mode") == "client":
            guest.listen()
        await guest.connect()
        return guest

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 (the conditions are another object's state)
                await asyncio.sleep(0.005)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "ports").mkdir()
    async with contextlib.AsyncExitStack() as stack:
        lab = Lab(tmp_path, stack)
        stack.callback(lab.revisions.close)
        lab.datapath.start()
        stack.callback(lab.datapath.close)
        stack.push_async_callback(lab.ports.close)
        stack.push_async_callback(lab.controller.close)
        await lab.controller.start()
        yield lab


# ---- what is offered


@pytest.mark.parametrize(
    ("features", "missing"),
    [
        ({}, set()),
        ({"tso": False}, TSO),
        ({"uso": False}, USO),
        ({"csum": False}, CSUM | TSO | USO),
        ({"mrg_rxbuf": False}, {"mrg_rxbuf"}),
        ({"packed": False}, {"ring_packed"}),
        ({"in_order": False}, {"in_order"}),
    ],
)
def test_features_that_are_switched_off(features: dict[str, bool], missing: set[str]) -> None:
    every = {flag.name.lower() for flag in Feature if flag.name and offer_for(VhostUserPort()).features & flag}
    assert every >= CSUM | TSO | USO | {"mq", "protocol_features", "ring_packed", "in_order"}
    assert not every & {"guest_ufo", "host_ufo", "log_all", "mtu", "ring_reset", "notification_data"}
    offered = offer_for(VhostUserPort.model_validate({"features": features})).features
    assert {flag.name.lower() for flag in Feature if flag.name and offered & flag} == every - missing


def test_multiqueue_is_offered_where_there_are_several_queues() -> None:
    one, two = offer_for(VhostUserPort(queues=1)), offer_for(VhostUserPort(queues=2))
    assert (one.queue_pairs, one.features & Feature.MQ) == (1, 0)
    assert (two.queue_pairs, two.features & Feature.MQ) == (2, Feature.MQ)


# ---- whom an edit disconnects


@pytest.mark.parametrize(
    "change",
    [{"features": {"tso": False}}, {"queues": 2}, {"rxq_affinity": [1]}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("port", ["a", "b"])
async def test_an_edit_disconnects_its_own_port_only(lab: Lab, port: str, change: dict[str, Any]) -> None:
    guests = {name: await lab.guest(name) for name in "abc"}
    assert await lab.set(port, **change)
    await guests[port].wait_hang_up()
    await guests[port].connect()
    edited = lab.controller.config.ports[port]
    assert isinstance(edited, VhostUserPort)
    offered = offer_for(edited)
    assert (guests[port].offered, guests[port].max_pairs) == (offered.features, offered.queue_pairs)
    for guest in guests.values():
        await guest.request(Request.GET_FEATURES)  # the connection is there
    await lab.until(lambda: all(lab.ports.port_state(name).link == "up" for name in "abc"))


@pytest.mark.parametrize("port", ["a", "b"])
async def test_live_edits_disconnect_nobody(lab: Lab, port: str) -> None:
    guest = await lab.guest(port)
    assert not await lab.set(port, on_full="backpressure", backpressure_ms=5, mtu=1500, labels={"x": "y"})
    await guest.request(Request.GET_FEATURES)


async def test_a_port_changes_sides_and_back(lab: Lab) -> None:
    """On the same path: the switch must not meet itself there, nor leave its socket file behind."""
    other = await lab.guest("c")
    path = lab.controller.config.port_socket("a")
    for mode in ("client", "server", "client"):
        assert await lab.set("a", mode=mode)
        assert path.is_socket() is (mode == "server")
        guest = await lab.guest("a")
        await lab.until(lambda: lab.ports.port_state("a").link == "up")
        await guest.close()
    await other.request(Request.GET_FEATURES)


async def test_a_port_that_connects_moves_to_another_socket(lab: Lab) -> None:
    old = await lab.guest("b")
    assert await lab.set("b", socket=str(lab.folder / "other.sock"))
    await old.wait_hang_up()
    await lab.guest("b")
    assert lab.ports.port_state("b").link == "up"


async def test_new_ports_wait_for_old_ones_to_be_closed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    old = lab.ports._ports["a"]
    close, listen = type(old).close, type(old).listen

    async def closing(port: Any) -> None:
        await asyncio.sleep(0)
        await close(port)
        order.append("closed")

    async def listening(port: Any) -> None:
        order.append("begun")
        await listen(port)

    monkeypatch.setattr(type(old), "close", closing)
    monkeypatch.setattr(type(old), "listen", listening)
    await lab.set("a", mode="client")
    assert order == ["closed", "begun"]


async def test_an_edit_touches_only_what_has_changed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[str] = []
    configure = VhostPort.configure

    def noting(port: VhostPort, settings: AnyPort) -> bool:
        configured.append(port.name)
        return configure(port, settings)

    monkeypatch.setattr(VhostPort, "configure", noting)
    ports = {**lab.controller.config.ports, "b": {"mode": "client", "mtu": 1400}, "d": {}}
    await lab.controller.apply(parse({**lab.document(), "ports": ports}))
    assert configured == ["b", "d"]


@pytest.mark.parametrize("error", [OSError(5, "of the test"), RuntimeError("of the test"), asyncio.CancelledError()])
async def test_an_edit_that_fails_closes_all_that_it_opened(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    bind, close = VhostPort.bind, VhostPort.close

    async def binding(port: VhostPort) -> None:
        await bind(port)
        if port.name == "z":
            raise error

    async def closing(port: VhostPort) -> None:
        await close(port)
        if port.name == "x":
            raise RuntimeError("of the test")

    monkeypatch.setattr(VhostPort, "bind", binding)
    monkeypatch.setattr(VhostPort, "close", closing)
    lab.settings |= {"x": {}, "y": {}, "z": {}}
    new = parse(lab.document())
    with pytest.raises(ApplyError if isinstance(error, OSError) else type(error)):
        await lab.controller.apply(new)
    assert sorted(path.name for path in (lab.folder / "ports").iterdir()) == ["a.sock", "c.sock"]
    monkeypatch.undo()
    await lab.controller.apply(new)
    await lab.guest("x")


async def test_a_port_that_fails_is_no_end_of_the_housekeeping(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def ticking(port: VhostPort) -> None:
        looked.append(port.name)
        if port.name == "a":
            raise RuntimeError("of the test")

    monkeypatch.setattr(VhostPort, "tick", ticking)
    monkeypatch.setattr(ports, "WATCHDOG_SECONDS", 0.001)
    lab.ports.start()
    await lab.until(lambda: len(looked) >= 6)
    assert looked[:6] == ["a", "b", "c"] * 2


# ---- what there is to see


async def test_a_switch_that_connects_says_what_it_meets(lab: Lab) -> None:
    state = lab.ports.port_state("b")
    assert state.reason is LinkReason.WAITING_FOR_FRONTEND
    assert state.message is not None
    assert "server=on,wait=off" in state.message
    assert "No such file or directory" in state.message
    await lab.guest("b")
    state = lab.ports.port_state("b")
    assert (state.link, state.frontend is not None) == ("up", True)


async def test_the_link_is_up_while_one_pair_is(lab: Lab) -> None:
    guest = await lab.guest("a", queue_pairs=3)

    def seen() -> tuple[str | None, int, int]:
        state = lab.ports.port_state("a")
        return state.reason, state.queues.offered, state.queues.enabled

    assert seen() == (None, 8, 3)
    await guest.set_enabled(False, pair=0)
    assert seen() == (None, 8, 2)
    await guest.stop_ring(3)
    assert seen() == (None, 8, 1)
    await guest.set_enabled(False, pair=2)
    assert seen() == (LinkReason.QUEUE_DISABLED, 8, 0)
    await guest.set_enabled(True, pair=0)
    assert seen() == (None, 8, 1)
    await guest.stop_ring(0)
    assert seen() == (LinkReason.QUEUE_DISABLED, 8, 0), "rings of two pairs are no pair"


async def test_queues_name_their_worker_while_they_run(lab: Lab) -> None:
    await lab.set("a", queues=4, rxq_affinity=[2, 0, 2])

    def workers() -> list[int | None]:
        stats = lab.ports.port_stats("a").queues
        assert [(queue.queue, queue.direction) for queue in stats] == [(i // 2, ("tx", "rx")[i % 2]) for i in range(8)]
        return [queue.worker for queue in stats]

    assert workers() == [None] * 8
    guest = await lab.guest("a", queue_pairs=4)
    found = workers()
    assert found[:6] == [2, 2, 0, 0, 2, 2]
    assert found[6:] == [1, 1], "spread: to the worker with the fewest rings"
    await guest.stop()
    assert workers() == [None] * 8


async def test_one_queue_pair_as_before_multiqueue(lab: Lab) -> None:
    await lab.set("a", queues=1)
    guest = await lab.guest("a", features=DRIVER_FEATURES)
    assert not guest.offered & Feature.MQ
    assert len(lab.ports.port_stats("a").queues) == 2


async def test_backpressure_is_published_where_it_is_wanted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[list[int]] = []
    publish = lab.datapath.publish

    async def noting(ports: Sequence[PortView], bridges: Sequence[BridgeView]) -> None:
        published.append([view.backpressure_ms for view in ports])
        await publish(ports, bridges)

    monkeypatch.setattr(lab.datapath, "publish", noting)
    await lab.set("a", backpressure_ms=7)
    await lab.set("a", on_full="backpressure")
    await lab.set("c", on_full="backpressure")
    assert published == [[0, 0, 0], [7, 0, 0], [7, 0, 10]]
