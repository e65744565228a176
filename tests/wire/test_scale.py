# SPDX-License-Identifier: Apache-2.0
"""Many ports: they come and go one by one and leave nothing; a full file starts. `-s` shows times and memory;
`PVSWITCH_TEST_PORTS=1000` and `PVSWITCH_TEST_TAPS=200` are the long run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.model import MAX_PORTS
from pvswitch.namespace import Namespace
from pvswitch.process import SwitchProcess
from tests.conftest import RequirePeer, missing_peer
from tests.system.conftest import from_environment, running_switch
from tests.wire.lab import held, until_holds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

PORTS = from_environment("PVSWITCH_TEST_PORTS", 300)
TAPS = from_environment("PVSWITCH_TEST_TAPS", 60)
ROUNDS = 1  # counted ones; before them goes one that fills what caches keep
# What the allocator may keep more of than after the first round.
RSS_BOUND = 16 << 20
CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {}}


def resident(pid: int) -> int:
    """Bytes of memory that the process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def show(record: Callable[[str, object], None], name: str, seconds: list[float]) -> None:
    """Print and record what edits took: in the middle, and the last ones."""
    median, last, longest = statistics.median(seconds), statistics.median(seconds[-50:]), max(seconds)
    words = f"{median * 1e3:.1f} ms in the middle, {last * 1e3:.1f} ms for the last 50, {longest * 1e3:.1f} ms at most"
    record(name, words)
    print(f"{name}: {words}")


async def edit(switch: SwitchProcess, method: str, name: str, body: object, wanted: int) -> float:
    """Add or remove a port; return how long that took."""
    began = time.monotonic()
    status, answer = await switch.request(method, f"/api/v1/ports/{name}", body)
    assert status == wanted, answer
    return time.monotonic() - began


async def come_and_go(
    switch: SwitchProcess, ports: dict[str, dict[str, Any]], record: Callable[[str, object], None], when: str
) -> None:
    """Add ports one by one, look whether all are there, and remove them again."""
    kind = next(iter(ports.values())).get("type", "vhost-user")
    added = [await edit(switch, "PUT", name, body, 201) for name, body in ports.items()]
    assert (await switch.get("/stats"))["ports"] == len(ports)
    show(record, f"{len(ports)} {kind} ports, {when}: added", added)
    removed = [await edit(switch, "DELETE", name, None, 204) for name in ports]
    show(record, f"{len(ports)} {kind} ports, {when}: removed", removed)
    assert (await switch.get("/stats"))["ports"] == 0


async def rounds_leave_nothing(
    switch: SwitchProcess, ports: dict[str, dict[str, Any]], record: Callable[[str, object], None]
) -> None:
    """Descriptors, threads and mappings of guests' memory are as at the start; memory stays within its bound."""
    await switch.get("/stats")  # the connection is a descriptor too
    start, memory = held(switch.pid), 0
    for number in range(1 + ROUNDS):
        await come_and_go(switch, ports, record, f"round {number}")
        await until_holds(switch.pid, start)
        memory = memory or resident(switch.pid)
    print(f"resident memory: {memory >> 10} KiB after the first round, {resident(switch.pid) >> 10} KiB at the end")
    assert resident(switch.pid) <= memory + RSS_BOUND
    assert not list((switch.runtime_dir / "ports").iterdir())


@pytest_asyncio.fixture(loop_scope="module")
async def switch() -> AsyncIterator[SwitchProcess]:
    """A switch without ports."""
    async with running_switch(CONFIG) as switch:
        yield switch


async def test_vhost_user_ports_come_and_go(
    switch: SwitchProcess, record_property: Callable[[str, object], None]
) -> None:
    await rounds_leave_nothing(switch, {f"vm{number}": {} for number in range(PORTS)}, record_property)


async def test_taps_come_and_go(
    switch: SwitchProcess, require_peer: RequirePeer, record_property: Callable[[str, object], None]
) -> None:
    require_peer("ip", package="iproute2")
    if os.geteuid() != 0:
        missing_peer("taps need a network namespace: run the tests as root")
    async with Namespace() as namespace:
        words = {"type": "tap", "netns": str(namespace.path)}
        ports = {f"tap{number}": {**words, "ifname": f"tap{number}"} for number in range(TAPS)}
        await rounds_leave_nothing(switch, ports, record_property)
        links = await namespace.command("ip", "-o", "link")
        assert len(links.splitlines()) == 1, links


async def test_as_many_ports_as_can_be_start_from_a_file(record_property: Callable[[str, object], None]) -> None:
    config = {**CONFIG, "ports": {f"vm{number}": {} for number in range(MAX_PORTS)}}
    began = time.monotonic()
    async with running_switch(config) as switch:
        took, memory = time.monotonic() - began, resident(switch.pid)
        for name, value in (("start_seconds", round(took, 2)), ("resident_kib", memory >> 10)):
            record_property(name, value)
            print(f"{MAX_PORTS} ports: {name} {value}")
        assert (await switch.get("/stats"))["ports"] == MAX_PORTS
        names = [port["name"] for port in (await switch.get(f"/ports?limit={MAX_PORTS}"))["items"]]
        assert len(names) >= min(MAX_PORTS, 1000)
