# SPDX-License-Identifier: Apache-2.0
"""Each reason for a link that is down, provoked for real, and named by the API, `show ports` and `doctor`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pvswitch.driver import Desc
from pvswitch.guest import Guest, GuestError
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import U64, Request
from pvswitch.vm import Image, Machine, accelerator, build_image, qemu_version
from tests.system.conftest import StartSwitch

pytestmark = pytest.mark.timeout(120)

CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {}}}
DESC_F_NEXT = 1


@pytest.fixture
async def switch(start_switch: StartSwitch) -> AsyncIterator[SwitchProcess]:
    async with start_switch(CONFIG) as switch:
        yield switch


async def expect(switch: SwitchProcess, reason: str) -> None:
    """Wait until vm1 is down for this reason; all three places must say so, and vm2 must not be touched."""
    await switch.wait_link("vm1", reason)
    message = (await switch.get("/ports/vm1"))["state"]["message"]
    assert message
    rows = [line for line in (await switch.cli("show", "ports")).splitlines() if "vm1" in line]
    assert any(reason in row for row in rows), rows
    assert message in " ".join((await switch.cli("doctor", "vm1")).split())
    assert await switch.link("vm2") == "waiting_for_frontend"


async def test_waiting_for_frontend(switch: SwitchProcess) -> None:
    await expect(switch, "waiting_for_frontend")


async def test_admin_down(switch: SwitchProcess) -> None:
    async with Guest(switch.port_socket("vm1")):
        await switch.wait_link("vm1")
        await switch.cli("port", "set", "vm1", "enabled=false")
        await expect(switch, "admin_down")
        await switch.cli("port", "set", "vm1", "enabled=true")
        await switch.wait_link("vm1")


async def test_driver_not_started(switch: SwitchProcess, qemu: str, tmp_path_factory: Any) -> None:
    """A guest that has no virtio_net."""
    image = build_image(tmp_path_factory.mktemp("image"), modules=())
    devices = await switch.qemu_args("vm1", qemu_version(qemu), accelerator())
    async with Machine("vm1", image, devices, qemu=qemu) as machine:
        await machine.boot()
        await expect(switch, "driver_not_started")


async def test_memory_not_shared(switch: SwitchProcess, image: Image, qemu: str) -> None:
    """QEMU with share=off, the mistake that people make."""
    words = await switch.qemu_args("vm1", qemu_version(qemu), accelerator())
    devices = [word.replace("share=on", "share=off") for word in words]
    assert devices != words
    async with Machine("vm1", image, devices, qemu=qemu) as machine:
        await machine.boot()
        await machine.check("ip link set eth0 up; arping -c 2 -w 2 -I eth0 10.0.0.9 || true")
        await expect(switch, "memory_not_shared")


async def test_features_refused(switch: SwitchProcess) -> None:
    guest = Guest(switch.port_socket("vm1"))
    try:
        await guest.connect(start=False)
        with pytest.raises(GuestError):
            await guest.request(Request.SET_FEATURES, U64(guest.features | Feature.HOST_UFO))
        await expect(switch, "features_refused")
    finally:
        guest.kill()
    async with Guest(switch.port_socket("vm1")):
        await switch.wait_link("vm1")


async def test_queue_disabled(switch: SwitchProcess) -> None:
    async with Guest(switch.port_socket("vm1")) as guest:
        await switch.wait_link("vm1")
        await guest.set_enabled(False)
        await expect(switch, "queue_disabled")
        await guest.set_enabled(True)
        await switch.wait_link("vm1")


async def test_broken(switch: SwitchProcess) -> None:
    """A descriptor chain that loops."""
    async with Guest(switch.port_socket("vm1")) as guest:
        await switch.wait_link("vm1")
        guest.low.set_desc(1, 7, Desc(guest.low.scratch_gpa, 64, DESC_F_NEXT, 7))
        guest.low.raw_post(1, 7)
        guest.low.kick(1, force=True)
        await expect(switch, "broken")
