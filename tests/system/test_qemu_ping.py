# SPDX-License-Identifier: Apache-2.0
"""Two Linux guests, started with the lines of `port qemu-args` as they are, ping through the switch."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on, ping

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MTU = 9000
SIZES = (1, 64, 1472, 8900)
PINGS = from_environment("PVSWITCH_TEST_PINGS", 1000)
CONFIG = {"bridges": {"br0": {}}, "ports": {"vm1": {"mtu": MTU}, "vm2": {"mtu": MTU}}}

Pair = tuple[SwitchProcess, Machine, Machine]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["qemu", "qemu10"])
async def pair(request: pytest.FixtureRequest, start_switch: StartSwitch, image: Image) -> AsyncIterator[Pair]:
    program = request.getfixturevalue(request.param)
    async with start_switch(CONFIG) as switch:
        vm1 = await machine_on(switch, "vm1", image, program, address="10.0.0.1/24", mtu=MTU)
        vm2 = await machine_on(switch, "vm2", image, program, address="10.0.0.2/24", mtu=MTU)
        async with vm1, vm2:
            await boot_all(switch, vm1, vm2)
            yield switch, vm1, vm2


@pytest.mark.parametrize("size", SIZES)
async def test_ping_without_loss(pair: Pair, size: int) -> None:
    switch, vm1, vm2 = pair
    before = (await switch.get("/ports/vm1/stats"))["rx_packets"]
    await ping(vm1, vm2, "10.0.0.2", count=PINGS, size=size)
    stats = await switch.get("/ports/vm1/stats")
    assert stats["rx_packets"] - before >= PINGS
    for port in ("vm1", "vm2"):
        stats = await switch.get(f"/ports/{port}/stats")
        assert stats["rx_errors"] == 0
        assert stats["rx_dropped"] == 0


async def test_guests_are_learned(pair: Pair) -> None:
    switch, vm1, vm2 = pair
    await ping(vm1, vm2, "10.0.0.2", count=3, size=56)
    entries = {entry["mac"]: entry["port"] for entry in (await switch.get("/bridges/br0/fdb"))["items"]}
    for machine in (vm1, vm2):
        mac = (await machine.check("cat /sys/class/net/eth0/address")).strip()
        assert entries[mac] == machine.name


async def test_state_shows_the_front_end(pair: Pair) -> None:
    switch, vm1, vm2 = pair
    for machine in (vm1, vm2):
        state = (await switch.get(f"/ports/{machine.name}"))["state"]
        assert state["link"] == "up"
        assert state.get("reason") is None
        assert state["frontend"]["pid"] == machine.pid
        assert state["memory"]["bytes"] >= 256 << 20
