# SPDX-License-Identifier: Apache-2.0
"""What the control plane believes stays true: without an event that was lost, across edits, at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.controller import Controller
from pvswitch.datapath import Datapath, Event, Fdb
from pvswitch.guest import Guest
from pvswitch.ports import Ports
from pvswitch.revisions import Revisions
from pvswitch.validation import parse
from tests.wire.lab import frame, until

MACS = [f"02:00:00:00:00:{i:02x}" for i in range(4)]

Lab = tuple[Controller, Ports, Datapath]


def document(folder: Path, **bridge: Any) -> dict[str, Any]:
    return {"runtime_dir": str(folder), "bridges": {"br0": bridge}, "ports": {"a": {}, "b": {}}}


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A controller on a real data plane, in process, with its threads."""
    (tmp_path / "ports").mkdir()
    datapath = Datapath()
    datapath.start()
    ports = Ports(datapath)
    revisions = Revisions(tmp_path / "state")
    controller = Controller(ports, parse(document(tmp_path)), revisions)
    await controller.start()
    ports.start()
    yield controller, ports, datapath
    await controller.close()
    await ports.close()
    datapath.close()
    revisions.close()


async def test_a_broken_port_is_noticed_though_its_event_was_lost(lab: Lab) -> None:
    controller, ports, datapath = lab
    deaf: list[Event] = []
    datapath.on_event = deaf.append  # as when the ring of events is full
    async with Guest(controller.config.port_socket("a")) as a:
        await a.send(frame(b"\xff" * 6, a.mac))

        async def learned() -> bool:
            return ports.totals()["ports_up"] == 1 and len(list(ports.fdb("br0"))) == 1

        await until(learned, "the guest to be learned")
        await asyncio.sleep(2.5)  # the watch for unshared memory, which looks at the link too, has ended by then
        a.low.raw_post(1, 60000)  # a head beyond the ring
        a.low.kick(1, force=True)

        async def noticed() -> bool:
            return ports.totals()["ports_up"] == 0 and not list(ports.fdb("br0"))

        await until(noticed, "the link to be down and its addresses forgotten")


async def test_static_entries_follow_the_document(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, ports, _ = lab

    def entries() -> set[tuple[str, str]]:
        return {(entry.mac, entry.port) for entry in ports.fdb("br0") if entry.type == "static"}

    async def apply(*wanted: tuple[str, str], **bridge: Any) -> None:
        fdb = [{"mac": mac, "port": port} for mac, port in wanted]
        await controller.apply(parse(document(tmp_path, fdb=fdb, **bridge)))
        assert entries() == set(wanted)

    await apply((MACS[0], "a"), (MACS[1], "b"), (MACS[2], "b"))
    await apply((MACS[1], "b"), (MACS[2], "b"), fdb_size=2)  # less room than the old entries took
    await apply((MACS[0], "a"), (MACS[1], "b"))
    await apply((MACS[0], "b"), (MACS[2], "a"))
    await apply((MACS[0], "b"), (MACS[2], "a"), fdb_size=2)
    await apply((MACS[3], "a"), (MACS[2], "b"), fdb_size=2)

    def no_walk(*_: object) -> None:
        raise AssertionError("an edit must not walk a whole FDB")

    with monkeypatch.context() as patched:
        patched.setattr(Fdb, "items", no_walk)
        fdb = [{"mac": MACS[3], "port": "a"}]
        await controller.apply(parse(document(tmp_path, fdb=fdb, fdb_size=2)))
    assert entries() == {(MACS[3], "a")}
    moved = document(tmp_path, fdb=[{"mac": MACS[3], "port": "a"}], fdb_size=2)
    moved["ports"]["a"]["socket"] = str(tmp_path / "ports" / "elsewhere.sock")  # a new handle in the core
    await controller.apply(parse(moved))
    assert entries() == {(MACS[3], "a")}


async def test_a_multicast_address_is_not_announced(lab: Lab) -> None:
    controller, _, _ = lab
    async with Guest(controller.config.port_socket("a")) as a, Guest(controller.config.port_socket("b")) as b:
        own = b.mac
        for mac in (b"\x01\x00\x5e\x00\x00\x01", bytes(6)):
            b.mac = mac
            await b.announce()
        b.mac = own
        await b.announce()
        assert (await a.recv())[6:12] == own
        assert a.recv_nowait() is None
