# SPDX-License-Identifier: Apache-2.0
"""Linux guests with VLAN devices: trunk and access ports, TCP at full size over the tagged path.

`trunk` and `access` have every offload, so that frames of 64 KiB get and lose their tags whole; `plain` has none, so
that the switch cuts and sums what it gets, tag included, and its tcpdump can judge every frame.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from pvswitch.vm import DEFAULT_MODULES, Image, Machine, Nic, accelerator, build_image, qemu_version
from tests.system.captures import COMPLAINT, capture, end_capture, recorded
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on, transfer
from tests.system.traffic import udp_rounds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 3)
UDP_ROUNDS = from_environment("PVSWITCH_TEST_UDP_ROUNDS", 20)
MTU = 1500
TCP_PAYLOAD = MTU - 20 - 32  # what a segment of TCP over IPv4 carries, timestamps on
NO_OFFLOADS = ("guest_tso4", "guest_tso6", "guest_ecn", "guest_csum", "host_tso4", "host_tso6", "host_ecn", "csum")
CONFIG: dict[str, Any] = {
    "bridges": {"br0": {}},
    "ports": {
        "trunk": {"trunks": [10, 20]},
        "access": {"tag": 10},
        "plain": {"vlan_mode": "native-untagged", "tag": 20},
    },
}
PRIORITY = 5


@dataclass(frozen=True)
class Lab:
    """The switch and its guests. In VLAN 10 there are all of them, in VLAN 20 `trunk` and, untagged, `plain`."""

    switch: SwitchProcess
    trunk: Machine
    access: Machine
    plain: Machine

    async def stats(self, port: str) -> dict[str, Any]:
        """The port's counters."""
        stats: dict[str, Any] = await self.switch.get(f"/ports/{port}/stats")
        return stats


async def plain_guest(switch: SwitchProcess, image: Image, program: str) -> Machine:
    """The guest without offloads."""
    words = await switch.qemu_args("plain", qemu_version(program), accelerator())
    words[words.index("-device") + 1] += "".join(f",{name}=off" for name in NO_OFFLOADS)
    nics = [Nic("eth0", "10.20.0.3/24", address6="fd00:20::3/64")]
    return Machine("plain", image, words, nics=nics, qemu=program)


async def add_vlan(machine: Machine, vid: int, host: int) -> None:
    """Give a guest a VLAN device with addresses; what it sends has a priority."""
    device = f"vlan{vid}"
    await machine.check("ip link set eth0 up")
    await machine.check(f"ip link add link eth0 name {device} type vlan id {vid}")
    await machine.check(f"vconfig set_egress_map {device} 0 {PRIORITY}")
    await machine.check(f"echo 0 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6")
    await machine.check(f"echo 0 > /proc/sys/net/ipv6/conf/{device}/accept_dad")
    await machine.check(f"ip address add 10.{vid}.0.{host}/24 dev {device}")
    await machine.check(f"ip address add fd00:{vid}::{host}/64 dev {device}")
    await machine.check(f"ip link set {device} up")


@pytest.fixture(scope="module")
def image(qemu: str, tools: Sequence[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the guests boot: with VLAN devices."""
    folder = tmp_path_factory.mktemp("vlans")
    return build_image(folder, modules=(*DEFAULT_MODULES, "8021q"), extra_binaries=tools)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(start_switch: StartSwitch, image: Image, qemu: str) -> AsyncIterator[Lab]:
    async with (
        start_switch(CONFIG) as switch,
        await machine_on(switch, "trunk", image, qemu, address="10.99.0.1/24") as trunk,
        await machine_on(switch, "access", image, qemu, address="10.10.0.2/24", address6="fd00:10::2/64") as access,
        await plain_guest(switch, image, qemu) as plain,
    ):
        await boot_all(switch, trunk, access, plain)
        await add_vlan(trunk, 10, 1)
        await add_vlan(trunk, 20, 1)
        await add_vlan(plain, 10, 3)
        yield Lab(switch, trunk, access, plain)


@pytest.mark.parametrize("net", ["10.10.0.{}", "[fd00:10::{}]"], ids=["IPv4", "IPv6"])
async def test_large_frames_get_and_lose_their_tag(lab: Lab, net: str) -> None:
    """Frames of up to 64 KiB between a tagged and an untagged interface, far fewer than of 1500 bytes."""
    for host, source, target in ((1, lab.trunk, lab.access), (2, lab.access, lab.trunk)):
        rx, tx = await lab.stats(source.name), await lab.stats(target.name)
        await transfer(source, target, net.format(host), megabytes=MEGABYTES)
        rx_after, tx_after = await lab.stats(source.name), await lab.stats(target.name)
        segments = (MEGABYTES << 20) / TCP_PAYLOAD
        assert rx_after["rx_1523_to_max_packets"] > rx["rx_1523_to_max_packets"]
        assert tx_after["tx_packets"] - tx["tx_packets"] < segments / 2
        assert rx_after["rx_errors"] == 0


@pytest.mark.parametrize(
    ("peer", "near", "far", "tagged"),
    [
        ("trunk", "10.10.0.1", "10.10.0.3", True),
        ("access", "10.10.0.2", "10.10.0.3", True),
        ("trunk", "10.20.0.1", "10.20.0.3", False),
    ],
    ids=["trunk_tagged", "access_tagged", "trunk_native"],
)
async def test_tags_and_checksums_are_right(lab: Lab, peer: str, near: str, far: str, tagged: bool) -> None:
    """Each frame on the interface of the guest without offloads: its tag, its size, its checksums."""
    machine: Machine = getattr(lab, peer)
    large = (await lab.stats(peer))["rx_1523_to_max_packets"]
    await capture(lab.plain, "eth0", "vlan 10 and (tcp or udp)" if tagged else "(tcp or udp) and not vlan")
    await transfer(machine, lab.plain, near, megabytes=1)
    await transfer(lab.plain, machine, far, megabytes=1)
    await udp_rounds(machine, lab.plain, far, rounds=UDP_ROUNDS, datagrams=16, size=1400, gso=False)
    await udp_rounds(lab.plain, machine, near, rounds=UDP_ROUNDS, datagrams=16, size=1400, gso=False)
    await end_capture(lab.plain)
    assert (await lab.stats(peer))["rx_1523_to_max_packets"] > large  # it was the switch that cut them
    assert not await recorded(lab.plain, f"greater {MTU + 14 + (5 if tagged else 1)}")
    vlan = "vlan and " if tagged else ""
    for sender in (near, far):
        tcp = await recorded(lab.plain, f"{vlan}tcp and src host {sender}")
        udp = await recorded(lab.plain, f"{vlan}udp and src host {sender}")
        assert len(tcp) >= (1 << 20) / MTU
        assert len(udp) >= UDP_ROUNDS * 16
        assert not [frame for frame in tcp if "(correct)" not in frame or COMPLAINT.search(frame)]
        assert not [frame for frame in udp if "udp sum ok" not in frame or COMPLAINT.search(frame)]
        if tagged:
            # an access port's guest has no priorities; a trunk's are kept
            priority = 0 if sender == near and peer == "access" else PRIORITY
            wanted = re.compile(rf"\bvlan 10, p {priority}\b")
            assert not [frame for frame in tcp + udp if not wanted.search(frame)]


async def test_vlans_are_apart(lab: Lab) -> None:
    """Nobody reaches the other VLAN's addresses, not even with a route to them on the link."""
    await lab.access.check("ip address add 10.20.0.2/24 dev eth0")
    try:
        status, _ = await lab.access.run("ping -c 2 -W 1 10.20.0.3")
        assert status != 0
        status, _ = await lab.access.run("ping -c 2 -W 1 10.20.0.1")
        assert status != 0
    finally:
        await lab.access.check("ip address del 10.20.0.2/24 dev eth0")
