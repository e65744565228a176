# SPDX-License-Identifier: Apache-2.0
"""A guest whose QEMU leaves features out, or has packed rings, beside one that is as it comes: frames arrive whole."""

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

# A device has packed rings only when it is told to. Whether IN_ORDER, where it is offered, is used is up to the driver.
# QEMU 7.2 with all features has them in test_two_guests_with_packed_rings.
PACKED: dict[str, tuple[str, dict[str, str]]] = {
    "qemu-plain": ("qemu", {"mrg_rxbuf": "off", "event_idx": "off", "indirect_desc": "off"}),
    "qemu10": ("qemu10", {"in_order": "on"}),
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


def settings(properties: dict[str, str]) -> list[str]:
    """These properties on the command line, for every network device."""
    return [word for key, value in properties.items() for word in ("-global", f"virtio-net-pci.{key}={value}")]


async def exchange(vm1: Machine, vm2: Machine) -> None:
    """Traffic of two kinds between 10.0.0.1 and 10.0.0.2."""
    await ping(vm1, vm2, "10.0.0.2", count=100, size=1472)
    await transfer(vm1, vm2, "10.0.0.1")
    await transfer(vm2, vm1, "10.0.0.2")


@pytest.mark.parametrize("variant", VARIANTS)
async def test_traffic_with_features_off(partner: SwitchAndPartner, image: Image, qemu: str, variant: str) -> None:
    switch, vm2 = partner
    properties, missing = VARIANTS[variant]
    async with await machine_on(switch, "vm1", image, qemu, address="10.0.0.1/24", extra=settings(properties)) as vm1:
        await boot_all(switch, vm1)
        assert not await negotiated(switch, "vm1") & missing
        assert await negotiated(switch, "vm2") >= missing
        await exchange(vm1, vm2)


@pytest.mark.parametrize("variant", PACKED)
async def test_traffic_over_packed_rings(
    request: pytest.FixtureRequest, partner: SwitchAndPartner, image: Image, variant: str
) -> None:
    """Also after the guest has taken its interface down and up, and after its driver was loaded anew."""
    switch, vm2 = partner
    version, properties = PACKED[variant]
    program = request.getfixturevalue(version)
    extra = settings({"packed": "on", **properties})
    async with await machine_on(switch, "vm1", image, program, address="10.0.0.1/24", extra=extra) as vm1:
        await boot_all(switch, vm1)
        features = await negotiated(switch, "vm1")
        assert "RING_PACKED" in features
        assert ("MRG_RXBUF" in features) == ("mrg_rxbuf" not in properties)
        assert "RING_PACKED" not in await negotiated(switch, "vm2")
        await exchange(vm1, vm2)
        await vm1.check("ip link set eth0 down && ip link set eth0 up")
        await ping(vm1, vm2, "10.0.0.2", count=100, size=64)
        device = (await vm1.check("basename $(readlink -f /sys/class/net/eth0/device)")).strip()
        drivers = "/sys/bus/virtio/drivers/virtio_net"
        await vm1.check(f"echo {device} > {drivers}/unbind; echo {device} > {drivers}/bind")
        await vm1.check("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up")
        await switch.wait_link("vm1")
        await exchange(vm1, vm2)


async def test_two_guests_with_packed_rings(start_switch: StartSwitch, image: Image, qemu: str) -> None:
    extra = settings({"packed": "on"})
    async with start_switch(CONFIG) as switch:
        vm1, vm2 = [
            await machine_on(switch, f"vm{i}", image, qemu, address=f"10.0.0.{i}/24", extra=extra) for i in (1, 2)
        ]
        async with vm1, vm2:
            await boot_all(switch, vm1, vm2)
            for name in CONFIG["ports"]:
                assert "RING_PACKED" in await negotiated(switch, name)
            await exchange(vm1, vm2)


async def test_packed_rings_switched_off_are_not_offered(partner: SwitchAndPartner, image: Image, qemu: str) -> None:
    """The guest then has split ones, though its device could do otherwise."""
    switch, vm2 = partner
    await switch.cli("port", "set", "vm1", "features.packed=false")
    try:
        extra = settings({"packed": "on"})
        async with await machine_on(switch, "vm1", image, qemu, address="10.0.0.1/24", extra=extra) as vm1:
            await boot_all(switch, vm1)
            assert "RING_PACKED" not in await negotiated(switch, "vm1")
            await ping(vm1, vm2, "10.0.0.2", count=100, size=64)
    finally:
        await switch.cli("port", "set", "vm1", "features.packed=true")
