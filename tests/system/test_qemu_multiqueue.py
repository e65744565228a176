# SPDX-License-Identifier: Apache-2.0
"""Linux guests with two CPUs and two queue pairs: both carry traffic, and may be changed while it runs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on
from tests.system.traffic import TcpStream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PAIRS = 2
STREAMS = 8
RATE = 1 << 20  # bytes per second of each stream
STEP = RATE // 2
CHANGES = from_environment("PVSWITCH_TEST_QUEUE_CHANGES", 3)
CONFIG: dict[str, Any] = {"datapath": {"workers": 2}, "bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {}}}

Pair = tuple[SwitchProcess, Machine, Machine]
Counts = Mapping[tuple[int, str], int]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(start_switch: StartSwitch, tools_image: Image, qemu10: str) -> AsyncIterator[Pair]:
    async with start_switch(CONFIG) as switch:
        vm1 = await machine_on(switch, "vm1", tools_image, qemu10, address="10.0.0.1/24", pairs=PAIRS)
        vm2 = await machine_on(switch, "vm2", tools_image, qemu10, address="10.0.0.2/24", pairs=PAIRS)
        async with vm1, vm2:
            await boot_all(switch, vm1, vm2)
            yield switch, vm1, vm2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streams(pair: Pair) -> list[TcpStream]:
    """Checked connections in both directions, which stay while queues come and go."""
    _, vm1, vm2 = pair
    opened = []
    for number in range(STREAMS):
        source, target, address = (vm1, vm2, "10.0.0.2") if number % 2 else (vm2, vm1, "10.0.0.1")
        opened.append(TcpStream(source, target, address, 7000 + number, RATE))
        await opened[-1].start()
    return opened


async def queue_counts(switch: SwitchProcess, port: str) -> Counts:
    """Packets of each ring of a port, by pair and direction."""
    queues = (await switch.get(f"/ports/{port}/stats"))["queues"]
    return {(queue["queue"], queue["direction"]): queue["packets"] for queue in queues}


async def advance(streams: list[TcpStream]) -> None:
    """Wait until each connection has brought some more, whole and in order."""
    for stream, received in [(stream, await stream.received()) for stream in streams]:
        await stream.wait_beyond(received + STEP, 60)


async def used_rings(switch: SwitchProcess, port: str, streams: list[TcpStream]) -> set[tuple[int, str]]:
    """The rings of a port that carry something while the connections advance."""
    before = await queue_counts(switch, port)
    await advance(streams)
    after = await queue_counts(switch, port)
    return {ring for ring in after if after[ring] > before.get(ring, 0)}


async def wait_enabled(switch: SwitchProcess, port: str, pairs: int) -> None:
    """Wait until the guest's change has reached the switch."""

    async def reached() -> bool:
        enabled: int = (await switch.get(f"/ports/{port}"))["state"]["queues"]["enabled"]
        return enabled == pairs

    await switch.wait_until(reached, f"{pairs} enabled pairs of {port}", 10)


async def wait_all_used(switch: SwitchProcess, streams: list[TcpStream]) -> None:
    """Wait until every ring of both ports has carried something: which pair a guest takes is for it to decide."""
    for port in ("vm1", "vm2"):
        await wait_enabled(switch, port, PAIRS)
        unused = {(number, direction) for number in range(PAIRS) for direction in ("rx", "tx")}
        deadline = time.monotonic() + 60
        while unused:
            assert time.monotonic() < deadline, f"{port}: no packet on {unused}"
            unused -= await used_rings(switch, port, streams)


async def test_both_pairs_carry_traffic(pair: Pair, streams: list[TcpStream]) -> None:
    switch, vm1, vm2 = pair
    for machine in (vm1, vm2):
        assert "Combined:\t2" in (await machine.check("ethtool -l eth0")).split("Current hardware settings")[1]
    await wait_all_used(switch, streams)


async def test_pairs_change_while_traffic_runs(pair: Pair, streams: list[TcpStream]) -> None:
    switch, vm1, _ = pair
    for _ in range(CHANGES):
        await vm1.check("ethtool -L eth0 combined 1")
        await wait_enabled(switch, "vm1", 1)
        assert await used_rings(switch, "vm1", streams) == {(0, "rx"), (0, "tx")}
        await vm1.check("ethtool -L eth0 combined 2")
        await wait_all_used(switch, streams)
    assert (await switch.get("/ports/vm1/stats"))["rx_errors"] == 0
