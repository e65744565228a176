# SPDX-License-Identifier: Apache-2.0
"""A VM is paused and goes on, several times under TCP: its rings resume where they stopped, by what the switch said."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pvswitch.vm import Image
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on
from tests.system.traffic import TcpStream

PAUSES = from_environment("PVSWITCH_TEST_PAUSES", 5)
pytestmark = pytest.mark.timeout(120 + 30 * PAUSES)

CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {}}}
RATE = 20 << 20
STEP = 1 << 20


class Monitor:
    """QEMU's QMP socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both ends of a connection on which QEMU has greeted."""
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, path: Path) -> AsyncIterator[Monitor]:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            await reader.readline()
            monitor = cls(reader, writer)
            await monitor.execute("qmp_capabilities")
            yield monitor
        finally:
            writer.close()

    async def execute(self, command: str) -> None:
        """Give a command that returns nothing; events in between don't matter."""
        self._writer.write(json.dumps({"execute": command}).encode() + b"\n")
        while True:
            async with asyncio.timeout(30):
                answer = json.loads(await self._reader.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return


@pytest.mark.parametrize(
    ("version", "pairs", "packed"),
    [("qemu", 1, True), ("qemu10", 2, False), ("qemu10", 2, True)],
    ids=["qemu-packed", "qemu10-split", "qemu10-packed"],
)
async def test_connection_survives_pauses(
    request: pytest.FixtureRequest,
    start_switch: StartSwitch,
    tools_image: Image,
    tmp_path: Path,
    version: str,
    pairs: int,
    packed: bool,
) -> None:
    program, qmp = request.getfixturevalue(version), tmp_path / "qmp"
    wanted = ["-global", f"virtio-net-pci.packed={'on' if packed else 'off'}"]
    async with start_switch(CONFIG) as switch:
        vm1 = await machine_on(
            *(switch, "vm1", tools_image, program),
            address="10.0.0.1/24",
            pairs=pairs,
            extra=[*wanted, "-qmp", f"unix:{qmp},server=on,wait=off"],
        )
        vm2 = await machine_on(switch, "vm2", tools_image, program, address="10.0.0.2/24", pairs=pairs, extra=wanted)
        async with vm1, vm2:
            await boot_all(switch, vm1, vm2)
            features = {name.upper() for name in (await switch.get("/ports/vm1"))["state"]["features"]}
            assert ("RING_PACKED" in features) == packed
            there, back = TcpStream(vm1, vm2, "10.0.0.2", 7000, RATE), TcpStream(vm2, vm1, "10.0.0.1", 7001, RATE)
            await there.start()
            await back.start()
            async with Monitor.at(qmp) as monitor:
                for _ in range(PAUSES):
                    await there.wait_beyond(await there.received() + STEP, 60)
                    await back.wait_beyond(await back.received() + STEP, 60)
                    await monitor.execute("stop")
                    await switch.wait_link("vm1", "driver_not_started")
                    await monitor.execute("cont")
                    await switch.wait_link("vm1")
                await there.wait_beyond(await there.received() + STEP, 60)
                await back.wait_beyond(await back.received() + STEP, 60)
