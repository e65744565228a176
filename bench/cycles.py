# SPDX-License-Identifier: Apache-2.0
"""Cycles per packet for frames from guest to guest: pvswitch next to OVS-DPDK, in turns (A/B/A/B...).

The generator is testpmd with two virtio-user ports, whose frames circle through the switch for ever. Switch
and generator have one CPU each. Each figure is the switch's own: pvswitch's from GET /api/v1/perf, OVS-DPDK's
from `pmd-stats-show` ("avg processing cycles per packet"); both count the cycles spent on packets, not the
idle polls. Both are measured over the same time, and the rate is the generator's view. Needs root (hugepages)
and two CPUs.

    python -m bench.cycles [--rounds 5] [--seconds 5] [--size 64]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ovs import Ovs, OvsError
from pvswitch.process import SwitchProcess
from tests.system.testpmd import Testpmd, hugepages

PORTS = ["p0", "p1"]
SWITCH_CPU = 0
GENERATOR_CPU = 1
HUGEPAGES = 1500
BURSTS = 16


@dataclass(frozen=True)
class Figure:
    """One measurement: cycles per packet by the switch, packets per second by the generator."""

    cycles: float
    pps: float


# Starts to count at the first call, gives the cycles per packet since then at the second.
Meter = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[float]]]


@asynccontextmanager
async def pvswitch() -> AsyncIterator[tuple[list[Path], Meter]]:
    """Run pvswitch with a busy worker on its CPU; yield the ports' sockets and its meter."""
    config = {
        "datapath": {"cpus": [SWITCH_CPU], "polling": "busy"},
        "bridges": {"br0": {}},
        "ports": {name: {} for name in PORTS},
    }
    async with SwitchProcess(config) as switch:
        before: dict[str, Any] = {}

        async def perf() -> dict[str, Any]:
            workers: list[dict[str, Any]] = (await switch.get("/perf"))["items"]
            return workers[0]

        async def begin() -> None:
            before.update(await perf())

        async def end() -> float:
            after = await perf()
            packets = after["packets"] - before["packets"]
            return float((after["cycles"] - before["cycles"]) / packets)

        yield [switch.port_socket(name) for name in PORTS], (begin, end)


@asynccontextmanager
async def ovs() -> AsyncIterator[tuple[list[Path], Meter]]:
    """Run OVS-DPDK with its poll thread on the same CPU; yield the ports' sockets and its meter."""
    async with Ovs(PORTS, pmd_cpu=SWITCH_CPU) as switch:

        async def end() -> float:
            return (await switch.stats()).processing_cycles_per_packet

        yield list(switch.sockets.values()), (switch.clear_stats, end)


SWITCHES = {"pvswitch": pvswitch, "OVS-DPDK": ovs}


async def measure(name: str, seconds: float, size: int) -> Figure:
    """Start a switch and the generator afresh, let frames circle, and measure once."""
    lcores = f"0@{GENERATOR_CPU},1@{GENERATOR_CPU}"
    async with (
        SWITCHES[name]() as (sockets, (begin, end)),
        Testpmd(sockets, lcores=lcores) as testpmd,
    ):
        # Both switches take a moment from the driver's start until they forward.
        await asyncio.sleep(1)
        await testpmd.command("set fwd io")
        await testpmd.command(f"set txpkts {size}")
        await testpmd.command(f"start tx_first {BURSTS}")
        await asyncio.sleep(1)
        await begin()
        await testpmd.counters()
        await asyncio.sleep(seconds)
        pps = sum(port.rx_pps for port in await testpmd.counters())
        cycles = await end()
        await testpmd.quit()
    return Figure(cycles, pps)


def report(name: str, figures: list[Figure]) -> str:
    """Return one line: median and spread of a switch's figures."""
    cycles = sorted(figure.cycles for figure in figures)
    pps = sorted(figure.pps / 1e6 for figure in figures)
    return (
        f"{name:<10} {statistics.median(cycles):7.1f} cycles/packet ({cycles[0]:.1f} to {cycles[-1]:.1f})"
        f"   {statistics.median(pps):6.2f} Mpps ({pps[0]:.2f} to {pps[-1]:.2f})"
    )


async def run(rounds: int, seconds: float, size: int) -> None:
    """Measure the switches in turns and print each figure, then the medians."""
    figures: dict[str, list[Figure]] = {name: [] for name in SWITCHES}
    for number in range(1, rounds + 1):
        for name in SWITCHES:
            figure = await measure(name, seconds, size)
            figures[name].append(figure)
            print(f"round {number} {name:<10} {figure.cycles:7.1f} cycles/packet   {figure.pps / 1e6:6.2f} Mpps")
    print(f"\n{size}-byte frames, medians of {rounds} rounds of {seconds:.0f} s (lowest to highest):")
    for name, measured in figures.items():
        print(report(name, measured))


def main() -> int:
    """Parse the command line and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.cycles", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--size", type=int, default=64, help="bytes of a frame, without FCS")
    arguments = parser.parse_args()
    with hugepages(HUGEPAGES) as huge:
        if not huge:
            print(f"{HUGEPAGES} hugepages of 2 MiB can't be had: run this as root", file=sys.stderr)
            return 1
        try:
            asyncio.run(run(arguments.rounds, arguments.seconds, arguments.size))
        except OvsError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
