# SPDX-License-Identifier: Apache-2.0
"""UDP segmentation offload: a guest hands over many datagrams as one frame, and each arrives whole at a guest that
takes such frames, and at one that doesn't.

Needs a guest kernel of 6.2 or later, QEMU 8.2 or later, and qemu_uso.c preloaded, which says why.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine
from tests.conftest import RequirePeer
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on
from tests.system.traffic import udp_rounds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {}, "vm3": {}}}
USO = {"HOST_USO", "GUEST_USO4", "GUEST_USO6"}
NO_USO = ("host_uso", "guest_uso4", "guest_uso6")
ROUNDS = from_environment("PVSWITCH_TEST_UDP_ROUNDS", 100)
DATAGRAMS = 40
SIZE = 1400

Guests = tuple[SwitchProcess, Machine, Machine, Machine]


@pytest.fixture(scope="module")
def preload(require_peer: RequirePeer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes QEMU offer USO."""
    library = tmp_path_factory.mktemp("preload") / "qemu_uso.so"
    source = Path(__file__).with_name("qemu_uso.c")
    compiler = require_peer("gcc", package="gcc")
    flags = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC")
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    return library


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guests(start_switch: StartSwitch, uso_image: Image, qemu10: str, preload: Path) -> AsyncIterator[Guests]:
    """vm1 and vm2 have USO, vm3 hasn't."""
    off = [word for key in NO_USO for word in ("-global", f"virtio-net-pci.{key}=off")]
    async with start_switch(CONFIG) as switch:
        vm1, vm2, vm3 = [
            await machine_on(
                *(switch, name, uso_image, qemu10),
                address=f"10.0.0.{name[-1]}/24",
                address6=f"fd00::{name[-1]}/64",
                extra=off if name == "vm3" else (),
                launcher=("env", f"LD_PRELOAD={preload}"),
            )
            for name in ("vm1", "vm2", "vm3")
        ]
        async with vm1, vm2, vm3:
            await boot_all(switch, vm1, vm2, vm3)
            for machine in (vm1, vm2):
                await machine.check("ethtool -K eth0 tx-udp-segmentation on")  # Linux leaves it off by itself
            yield switch, vm1, vm2, vm3


async def test_uso_is_on(guests: Guests) -> None:
    switch, *machines = guests
    for machine in machines:
        features = {name.upper() for name in (await switch.get(f"/ports/{machine.name}"))["state"]["features"]}
        shown = await machine.check("ethtool -k eth0")
        assert features & USO == (set() if machine.name == "vm3" else USO)
        assert ("tx-udp-segmentation: on" in shown) == (machine.name != "vm3")


@pytest.mark.parametrize("target", ["vm2", "vm3"])
@pytest.mark.parametrize("address", ["10.0.0.{}", "fd00::{}"], ids=["IPv4", "IPv6"])
async def test_datagrams_in_one_frame_arrive_whole(guests: Guests, target: str, address: str) -> None:
    switch, vm1, vm2, vm3 = guests
    machine = vm2 if target == "vm2" else vm3
    before = {port: await switch.get(f"/ports/{port}/stats") for port in ("vm1", target)}
    await udp_rounds(vm1, machine, address.format(target[-1]), rounds=ROUNDS, datagrams=DATAGRAMS, size=SIZE, gso=True)
    after = {port: await switch.get(f"/ports/{port}/stats") for port in ("vm1", target)}
    # Each round left vm1 as one frame; what vm3 receives was cut up by the switch.
    assert after["vm1"]["rx_1523_to_max_packets"] - before["vm1"]["rx_1523_to_max_packets"] >= ROUNDS
    received = after[target]["tx_packets"] - before[target]["tx_packets"]
    assert received >= ROUNDS * DATAGRAMS if target == "vm3" else received < ROUNDS * DATAGRAMS / 2
    assert after["vm1"]["rx_errors"] == 0
