# SPDX-License-Identifier: Apache-2.0
"""A guest whose QEMU leaves features out, beside one that has all: frames arrive whole in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine
from tests.system.conftest import StartSwitch, boot_all, machine_on, ping, transfer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {}}}
# Properties of QEMU's device, and the features of the port that must be missing from the API for them.
VARIANTS = {
    "mrg_rxbuf": ({"mrg_rxbuf": "off"}, {"MRG_RXBUF"}),
    "event_idx": ({"event_idx": "off"}, {"EVENT_IDX"}),
    "indirect_desc": ({"indirect_desc": "off"}, {"INDIRECT_DESC"}),
    "none": (
        {"mrg_rxbuf": "off", "event_idx": "off", "indirect_desc": "off"},
        {"MRG_RXBUF", "EVENT_IDX", "INDIRECT_DESC"},
    ),
    "legacy": ({"disable-modern": "on"}, {"VERSION_1"}),
    # The one with net headers of 10 bytes.
    "legacy-none": (
        {"disable-modern": "on", "mrg_rxbuf": "off", "event_idx": "off", "indirect_desc": "off"},
        {"VERSION_1", "MRG_RXBUF", "EVENT_IDX", "INDIRECT_DESC"},
    ),
}

SwitchAndPartner = tuple[SwitchProcess, Machine]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def partner(start_switch: StartSwitch, image: Image, qemu: str) -> AsyncIterator[SwitchAndPartner]:
    """A switch with a guest on vm2 that has every feature and stays while those on vm1 come and go."""
    async with (
        start_switch(CONFIG) as switch,
        await machine_on(switch, "vm2", image, qemu, address="10.0.0.2/24") as vm2,
    ):
        await boot_all(switch, vm2)
        yield switch, vm2


async def negotiated(switch: SwitchProcess, port: str) -> set[str]:
    """The virtio features that the guest on the port accepted, in capitals."""
    return {name.upper() for name in (await switch.get(f"/ports/{port}"))["state"]["features"]}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_traffic_with_features_off(partner: SwitchAndPartner, image: Image, qemu: str, variant: str) -> None:
    switch, vm2 = partner
    properties, missing = VARIANTS[variant]
    extra = [word for key, value in properties.items() for word in ("-global", f"virtio-net-pci.{key}={value}")]
    async with await machine_on(switch, "vm1", image, qemu, address="10.0.0.1/24", extra=extra) as vm1:
        await boot_all(switch, vm1)
        assert not await negotiated(switch, "vm1") & missing
        assert await negotiated(switch, "vm2") >= missing
        await ping(vm1, vm2, "10.0.0.2", count=100, size=1472)
        await transfer(vm1, vm2, "10.0.0.1")
        await transfer(vm2, vm1, "10.0.0.2")
