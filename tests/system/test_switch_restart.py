# SPDX-License-Identifier: Apache-2.0
"""The switch is killed (-9) and started again, several times: one TCP connection between two guests lives through all
of it, without a byte lost or wrong, and no guest is touched.

Both ways in which switch and QEMU find each other again: the switch listens and QEMU reconnects, or QEMU listens and
the switch, in client mode, connects. `-s` shows how long it took.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvswitch.process import SwitchProcess
from pvswitch.vm import Image
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on
from tests.system.traffic import TcpStream

KILLS = from_environment("PVSWITCH_TEST_KILLS", 2)
pytestmark = pytest.mark.timeout(120 + 30 * KILLS)

PORTS = ("vm1", "vm2")
RATE = 20 << 20
STEP = 1 << 20
# QEMU tries again every second; TCP, once the link is back, when its timer says so, which doubles while it is away.
LINK_SECONDS = 30.0
BYTES_SECONDS = 60.0


def config(mode: str, folder: Path) -> dict[str, Any]:
    """Two ports in one mode. Sockets that QEMU makes are not the switch's to tidy up: they are in `folder`."""
    ports: dict[str, dict[str, str]] = {name: {"mode": mode} for name in PORTS}
    if mode == "client":
        for name, port in ports.items():
            port["socket"] = str(folder / f"{name}.sock")
    return {"bridges": {"br0": {}}, "ports": ports}


async def settled(stream: TcpStream) -> int:
    """Return how many bytes have come when no more do: the receiver has read what had arrived."""
    received = await stream.received()
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.2)
            before, received = received, await stream.received()
            if received == before:
                return received


async def one_restart(switch: SwitchProcess, stream: TcpStream) -> tuple[float, float]:
    """Kill the switch in the midst of traffic; return the seconds from its new start to link up and to new bytes."""
    await stream.wait_beyond(await stream.received() + STEP, 60)
    await switch.kill()
    received = await settled(stream)
    began = time.monotonic()
    await switch.start()
    for name in PORTS:
        await switch.wait_link(name, seconds=LINK_SECONDS)
    up = time.monotonic() - began
    await stream.wait_beyond(received, BYTES_SECONDS)
    return up, time.monotonic() - began


@pytest.mark.parametrize("mode", ["server", "client"])
@pytest.mark.parametrize(("version", "pairs"), [("qemu", 1), ("qemu10", 2)])
async def test_connection_survives_kills(
    request: pytest.FixtureRequest,
    start_switch: StartSwitch,
    tools_image: Image,
    tmp_path_factory: pytest.TempPathFactory,
    record_property: Callable[[str, object], None],
    version: str,
    pairs: int,
    mode: str,
) -> None:
    program = request.getfixturevalue(version)
    async with start_switch(config(mode, tmp_path_factory.mktemp("sock"))) as switch:
        vm1 = await machine_on(switch, "vm1", tools_image, program, address="10.0.0.1/24", pairs=pairs)
        vm2 = await machine_on(switch, "vm2", tools_image, program, address="10.0.0.2/24", pairs=pairs)
        async with vm1, vm2:
            await boot_all(switch, vm1, vm2)
            stream = TcpStream(vm1, vm2, "10.0.0.2", 7000, RATE)
            await stream.start()
            for number in range(KILLS):
                up, first = await one_restart(switch, stream)
                record_property(f"restart_{number}", (up, first))
                print(f"{version}, {mode} mode: link up after {up:.2f} s, first bytes after {first:.2f} s")
            await stream.wait_beyond(await stream.received() + STEP, 60)
