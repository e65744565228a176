# SPDX-License-Identifier: Apache-2.0
"""TCP through a shaped port: the kernel's stack at both ends finds the port's rate, and keeps the link full.

Two hosts, each with a tap of the switch and TSO, so that the shaper meets frames of up to 64 KiB. 100 Mbit/s are a
hundredth of what passes without the limit: what is measured is the shaper, not the machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.bench.far import FarHost, build_root
from pvswitch.process import SwitchProcess
from tests.conftest import missing_peer
from tests.system.conftest import from_environment, running_switch
from tests.system.traffic import serve_iperf3

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

RATE_MBITS = 100
SECONDS = from_environment("PVSWITCH_TEST_TCP_SECONDS", 5)
RAMP_SECONDS = 2  # until TCP has found the rate
TURNS = 3
ADDRESSES = {"near": "192.0.2.1", "far": "192.0.2.2"}


@dataclass(frozen=True)
class Lab:
    """The switch, and a host behind each of its taps."""

    switch: SwitchProcess
    near: FarHost
    far: FarHost


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    if shutil.which("iperf3") is None:
        missing_peer("iperf3 not found: apt-get install iperf3")
    async with AsyncExitStack() as stack:
        hosts = {}
        for name in ADDRESSES:
            root: Path = build_root(tmp_path_factory.mktemp(name), ["iperf3"])
            hosts[name] = await stack.enter_async_context(FarHost(name, root))
        ports: dict[str, dict[str, Any]] = {
            name: {
                "type": "tap",
                "ifname": "up0",
                "netns": str(hosts[name].path),
                "addresses": [f"{address}/24"],
            }
            for name, address in ADDRESSES.items()
        }
        ports["far"]["shaping"] = {"rate_kbps": RATE_MBITS * 1000}
        switch = await stack.enter_async_context(running_switch({"ports": ports}))
        for name in ADDRESSES:
            await switch.wait_link(name)
        await serve_iperf3(hosts["far"])
        await hosts["near"].check(f"until ping -c 1 -W 1 {ADDRESSES['far']}; do :; done")
        yield Lab(switch, hosts["near"], hosts["far"])


async def rate(lab: Lab, words: str, seconds: int) -> float:
    """The Mbit/s of TCP that arrive."""
    text = await lab.near.check(f"iperf3 --client {ADDRESSES['far']} --time {seconds} {words} --json", 60 + seconds)
    return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e6


async def test_tcp_fills_a_shaped_link(lab: Lab) -> None:
    """More must never arrive. Less does while a busy machine keeps the sender from sending: once it must not."""
    before = await lab.switch.get("/ports/far/stats")
    rates = [await rate(lab, f"--omit {RAMP_SECONDS}", SECONDS)]
    while rates[-1] < 0.9 * RATE_MBITS and len(rates) < TURNS:
        rates.append(await rate(lab, f"--omit {RAMP_SECONDS}", SECONDS))
    after = await lab.switch.get("/ports/far/stats")
    assert max(rates) <= 1.05 * RATE_MBITS, rates
    assert rates[-1] >= 0.9 * RATE_MBITS, rates
    assert after["tx_packets"] > before["tx_packets"]
    # Frames of many segments: the shaper has seen them whole.
    assert (after["tx_bytes"] - before["tx_bytes"]) / (after["tx_packets"] - before["tx_packets"]) > 3000


async def test_the_other_way_is_not_shaped(lab: Lab) -> None:
    assert await rate(lab, "--reverse", 2) > 2 * RATE_MBITS
