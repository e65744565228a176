# SPDX-License-Identifier: Apache-2.0
"""The API under load while frames flow at full rate: no request fails, and forwarding goes on.

Testpmd's frames circle through one worker, and requests of all kinds come at a fixed rate, for a while with and for a
while without them in turns: the machine's own speed changes from minute to minute. What the API's thread spends is told
from what the worker spends and from what the client spends. `-s` shows latencies, rates and CPU (medians over the
turns); `PVSWITCH_TEST_SECONDS=60` is the long run.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pvswitch.bench.testpmd import Testpmd
from pvswitch.process import SwitchProcess
from tests.system.conftest import StartSwitch, from_environment

SECONDS = from_environment("PVSWITCH_TEST_SECONDS", 5)
TURN_SECONDS = 5
TURNS = max(1, SECONDS // TURN_SECONDS)
pytestmark = pytest.mark.timeout(180 + 4 * SECONDS)

PER_SECOND = 50
PORTS = ("p0", "p1")
CONFIG: dict[str, Any] = {
    "bridges": {"br0": {}},
    "ports": {name: {} for name in PORTS},
    "datapath": {"workers": 1},
}
BURSTS = 16  # of 32 frames, per port
READS = (
    "/api/v1/ports",
    "/api/v1/ports/p0/stats",
    "/api/v1/stats",
    "/api/v1/perf",
    "/api/v1/config",
    "/api/v1/bridges/br0/fdb",
    "/metrics",
)


@dataclass
class Answers:
    """What the API answered: seconds from the moment a request was due to its answer, and what went wrong."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Spent:
    """Frames forwarded and CPU seconds spent at a moment."""

    when: float
    frames: int
    control: float
    client: float


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process, by name (threads of one name together)."""
    found: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        spent = int((task / "schedstat").read_text().split()[0]) / 1e9
        found[name] = found.get(name, 0.0) + spent
    return found


async def look(switch: SwitchProcess) -> Spent:
    """Say what has been done and spent so far; the workers' threads aren't the API's."""
    stats = [await switch.get(f"/ports/{name}/stats") for name in PORTS]
    threads = thread_seconds(switch.pid)
    control = sum(spent for name, spent in threads.items() if not name.startswith("pvs-worker"))
    return Spent(time.monotonic(), sum(port["tx_packets"] for port in stats), control, time.process_time())


def rates(before: Spent, after: Spent) -> tuple[float, float, float]:
    """Millions of frames a second, and cores spent on the API and on asking it."""
    elapsed = after.when - before.when
    frames = (after.frames - before.frames) / elapsed / 1e6
    return frames, (after.control - before.control) / elapsed, (after.client - before.client) / elapsed


async def ask(session: aiohttp.ClientSession, number: int, due: float, answers: Answers) -> None:
    """Make one request; every eighth changes the configuration."""
    kind = number % (len(READS) + 1)
    try:
        if kind < len(READS):
            call = session.get(READS[kind])
        else:
            call = session.patch("/api/v1/ports/p0", json={"labels": {"number": str(number)}})
        async with call as answer:
            text = await answer.text()
            if answer.status != 200:
                answers.errors.append(f"request {number}: {answer.status} {text}")
    except (aiohttp.ClientError, TimeoutError) as error:
        answers.errors.append(f"request {number}: {error!r}")
    answers.seconds.append(time.monotonic() - due)


async def load(switch: SwitchProcess, seconds: int, answers: Answers) -> None:
    """Make requests at a fixed rate, whether or not earlier ones have been answered."""
    connector = aiohttp.UnixConnector(str(switch.api))
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession("http://switch", connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        began = time.monotonic()
        for number in range(seconds * PER_SECOND):
            due = began + number / PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(ask(session, number, due, answers))


async def test_no_request_fails_while_frames_flow(
    start_switch: StartSwitch, testpmd_huge: bool, record_property: Callable[[str, object], None]
) -> None:
    answers = Answers()
    async with start_switch(CONFIG) as switch:
        sockets = [switch.port_socket(name) for name in PORTS]
        async with Testpmd(sockets, huge=testpmd_huge) as testpmd:
            for name in PORTS:
                await switch.wait_link(name)
            for line in ("set fwd io", "set txpkts 64", f"start tx_first {BURSTS}"):
                await testpmd.command(line)
            marks = [await look(switch)]
            for _ in range(TURNS):
                await asyncio.sleep(TURN_SECONDS)
                marks.append(await look(switch))
                await load(switch, TURN_SECONDS, answers)
                marks.append(await look(switch))
            await testpmd.command("stop")
            await testpmd.quit()

    turns = list(itertools.starmap(rates, itertools.pairwise(marks)))
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    lost = sorted(1 - loaded[0] / quiet[0] for quiet, loaded in pairs)
    p50, p99 = (statistics.quantiles(answers.seconds, n=100)[index] * 1e3 for index in (49, 98))
    result = {
        "requests": len(answers.seconds),
        "errors": len(answers.errors),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "quiet_mpps": round(statistics.median(quiet[0] for quiet, _ in pairs), 3),
        "loaded_mpps": round(statistics.median(loaded[0] for _, loaded in pairs), 3),
        "forwarding_lost": round(statistics.median(lost), 4),
        "forwarding_lost_from_to": (round(lost[0], 4), round(lost[-1], 4)),
        "api_cores": round(statistics.median(loaded[1] - quiet[1] for quiet, loaded in pairs), 4),
        "client_cores": round(statistics.median(loaded[2] - quiet[2] for quiet, loaded in pairs), 4),
    }
    for key, value in result.items():
        record_property(key, value)
        print(f"{key}: {value}")
    assert len(answers.seconds) == TURNS * TURN_SECONDS * PER_SECOND
    assert not answers.errors
    assert all(loaded[0] > 0 for _, loaded in pairs)
