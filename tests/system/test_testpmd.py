# SPDX-License-Identifier: Apache-2.0
"""DPDK's virtio-user driver: frames circle between two ports, none is lost, and both sides count the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pvswitch.bench.testpmd import Testpmd
from tests.system.conftest import StartSwitch, from_environment

pytestmark = pytest.mark.timeout(300)

PORTS = ("p0", "p1")
CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {name: {} for name in PORTS}}
SECONDS = from_environment("PVSWITCH_TEST_SECONDS", 5)
# Bursts of 32 per port: half of what a ring of 1024 holds is in flight in each direction.
BURSTS = 16


@pytest.mark.parametrize("mrg_rxbuf", [True, False], ids=["mrg_rxbuf", "plain"])
@pytest.mark.parametrize("in_order", [False, True], ids=["any_order", "in_order"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_closed_loop_loses_nothing(
    start_switch: StartSwitch, testpmd_huge: bool, packed: bool, in_order: bool, mrg_rxbuf: bool
) -> None:
    wanted = {"RING_PACKED": packed, "IN_ORDER": in_order, "MRG_RXBUF": mrg_rxbuf}
    async with start_switch(CONFIG) as switch:
        sockets = [switch.port_socket(name) for name in PORTS]
        async with Testpmd(
            sockets, mrg_rxbuf=mrg_rxbuf, packed=packed, in_order=in_order, huge=testpmd_huge
        ) as testpmd:
            for name in PORTS:
                await switch.wait_link(name)
                accepted = {feature.upper() for feature in (await switch.get(f"/ports/{name}"))["state"]["features"]}
                assert {feature: feature in accepted for feature in wanted} == wanted
            await testpmd.command("set fwd io")
            await testpmd.command("set txpkts 64")
            await testpmd.command(f"start tx_first {BURSTS}")
            await asyncio.sleep(SECONDS)
            await testpmd.command("stop")
            # What waits in the receive rings is read, and not sent again: now nothing is in flight.
            await testpmd.command("set fwd rxonly")
            await testpmd.command("start")
            in_flight = 2 * BURSTS * 32
            generator = await testpmd.counters()

            async def drained() -> bool:
                nonlocal generator
                generator = await testpmd.counters()
                return sum(port.rx_packets for port in generator) == sum(port.tx_packets for port in generator)

            await switch.wait_until(drained, "every frame to arrive", 10)
            await testpmd.command("stop")

            assert sum(port.tx_packets for port in generator) > 10 * in_flight
            for name, seen in zip(PORTS, generator, strict=True):
                stats = await switch.get(f"/ports/{name}/stats")
                counted = {key: stats[key] for key in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")}
                assert counted == {
                    "rx_packets": seen.tx_packets,
                    "rx_bytes": seen.tx_bytes,
                    "tx_packets": seen.rx_packets,
                    "tx_bytes": seen.rx_bytes,
                }
                assert [stats[key] for key in ("rx_dropped", "tx_dropped", "rx_errors")] == [0, 0, 0]
                assert (seen.rx_missed, seen.rx_errors, seen.rx_nombuf, seen.tx_errors) == (0, 0, 0, 0)
            await testpmd.quit()
