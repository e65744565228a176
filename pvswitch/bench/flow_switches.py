# SPDX-License-Identifier: Apache-2.0
"""Switches with tables of flow rules: both get the same text, in batches that take effect as a whole.

`pvswitch` takes it by POST flows:batch, OVS-DPDK by `ovs-ofctl --bundle add-flows`. `filled` starts one with a table,
`batch` measures how long another batch takes, and what the rules cost in memory.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pvswitch.bench.errors import BenchError
from pvswitch.bench.machine import resident_bytes
from pvswitch.bench.rules import rules
from pvswitch.bench.switches import (
    Running,
    Wanted,
    ovs_made,
    ovs_running,
    pvswitch_config,
    pvswitch_running,
    require_hugepages,
)
from pvswitch.bench.work import OVS, PVSWITCH, FlowBatch, FlowFrames
from pvswitch.process import SwitchProcess

MOST_AT_ONCE = 50_000
"""Rules that a batch has at most: a body of 8 MiB holds somewhat more of them."""


DEADLINE = 60.0
OVS_FLOWS = 200_000
"""What OVS-DPDK remembers at most, by its defaults."""


@dataclass(frozen=True)
class Filled:
    """A switch that runs, what gives it further rules, and what tells their bytes in the core, if known."""

    running: Running
    add: Callable[[Sequence[str]], Awaitable[None]]
    in_core: Callable[[], Awaitable[float | None]]


@asynccontextmanager
async def _pvswitch(wanted: Wanted) -> AsyncIterator[Filled]:
    async with SwitchProcess(pvswitch_config(wanted)) as switch:

        async def add(lines: Sequence[str]) -> None:
            body = {"add": "\n".join(lines)}
            status, answer = await switch.request("POST", "/api/v1/bridges/br0/flows:batch", body, seconds=DEADLINE)
            if status != 200:
                raise BenchError(f"a batch of {len(lines):,} flows was refused with {status}: {answer}")

        async def in_core() -> float | None:
            _, text = await switch.request("GET", "/metrics")
            found = re.search(r'^pvswitch_flows_bytes\{bridge="br0"\} (\S+)$', text, re.MULTILINE)
            return float(found[1]) if found else None

        yield Filled(pvswitch_running(switch, wanted.names), add, in_core)


@asynccontextmanager
async def _ovs(wanted: Wanted) -> AsyncIterator[Filled]:
    require_hugepages(OVS, wanted.huge)
    async with ovs_made(wanted) as switch:
        await switch.keep_flows(OVS_FLOWS)

        async def add(lines: Sequence[str]) -> None:
            with tempfile.NamedTemporaryFile("w", prefix="pvswitch-bench-") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                await switch.add_flows(Path(file.name))

        async def in_core() -> float | None:
            return None

        yield Filled(ovs_running(switch), add, in_core)


FILLED: Mapping[str, Callable[[Wanted], AbstractAsyncContextManager[Filled]]] = {PVSWITCH: _pvswitch, OVS: _ovs}


async def _fill(made: Filled, lines: Sequence[str]) -> None:
    for at in range(0, len(lines), MOST_AT_ONCE):
        await made.add(lines[at : at + MOST_AT_ONCE])


def filled(switch: str, work: FlowFrames) -> Callable[[Wanted], AbstractAsyncContextManager[Running]]:
    """Return what starts a switch with the rules of a case."""

    @asynccontextmanager
    async def start(wanted: Wanted) -> AsyncIterator[Running]:
        async with FILLED[switch](wanted) as made:
            await _fill(made, rules(work.rules, work.masks))
            yield made.running

    return start


async def batch(switch: str, work: FlowBatch, wanted: Wanted) -> dict[str, float]:
    """Return how long a batch takes, and how much more memory the switch has in use by each of all rules."""
    before, more = rules(work.before) if work.before else [], rules(work.rules, first=work.before)
    async with FILLED[switch](wanted) as made:
        empty = resident_bytes(made.running.pid)
        await _fill(made, before)
        began = time.monotonic()
        await made.add(more)
        figures = {"seconds": time.monotonic() - began}
        in_core = await made.in_core()
        if in_core is not None:
            figures["table_bytes"] = in_core / (work.before + work.rules)
        figures["rule_bytes"] = (resident_bytes(made.running.pid) - empty) / (work.before + work.rules)
    return figures
