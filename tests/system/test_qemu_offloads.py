# SPDX-License-Identifier: Apache-2.0
"""Checksum and segmentation offload between Linux guests: passed through where both sides have them, finished by the
switch for a guest that leaves some out or all.

Three guests: vm1 and vm2 have every offload, the third has one interface for each variant.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess
from pvswitch.vm import Image, Machine, Nic, accelerator, qemu_version
from tests.system.captures import COMPLAINT, capture, end_capture, recorded
from tests.system.conftest import StartSwitch, boot_all, from_environment, machine_on, transfer
from tests.system.traffic import udp_rounds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 3)
UDP_ROUNDS = from_environment("PVSWITCH_TEST_UDP_ROUNDS", 20)
FAMILIES = ("IPv4", "IPv6")
MTU = 1500
TCP_PAYLOAD = MTU - 20 - 32  # what a segment of TCP over IPv4 carries, timestamps on
BOTH_TSO = {"GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "HOST_TSO4", "HOST_TSO6", "HOST_ECN"}
CSUM = {"CSUM", "GUEST_CSUM"}


@dataclass(frozen=True)
class Variant:
    """An interface of the third guest: properties of QEMU's device, features of the port, what the guest lacks then."""

    off: tuple[str, ...] = ()
    port: dict[str, bool] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()


def without(*properties: str) -> Variant:
    """A device without the offloads of these names, which QEMU and virtio share."""
    return Variant(off=properties, missing=frozenset(name.upper() for name in properties))


SINGLE = (
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_csum",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "csum",
    "mrg_rxbuf",
)
ALL = tuple(name for name in SINGLE if name != "mrg_rxbuf")
VARIANTS: dict[str, Variant] = {
    "all": without(*ALL),
    **{name: without(name) for name in SINGLE},
    # Receive buffers are chains of 64 KB then; without TSO they hold one frame of 1518 bytes.
    "all_and_mrg_rxbuf": without(*ALL, "mrg_rxbuf"),
    "port_tso": Variant(port={"tso": False}, missing=frozenset(BOTH_TSO)),
    "port_csum": Variant(port={"csum": False}, missing=frozenset(BOTH_TSO | CSUM)),
}
CONFIG: dict[str, Any] = {
    "bridges": {"br0": {}},
    "ports": {"vm1": {}, "vm2": {}, **{name: {"features": variant.port} for name, variant in VARIANTS.items()}},
}
NET = {name: number for number, name in enumerate(VARIANTS)}


def address(host: int, variant: str, family: str = "IPv4") -> str:
    """A guest's address in the network of a variant."""
    return f"10.0.{NET[variant]}.{host}" if family == "IPv4" else f"fd00:{NET[variant]}::{host}"


def in_url(text: str) -> str:
    """The address as the host of a URL."""
    return f"[{text}]" if ":" in text else text


@dataclass(frozen=True)
class Lab:
    """The switch and the three guests on it."""

    switch: SwitchProcess
    vm1: Machine
    vm2: Machine
    vm3: Machine

    async def stats(self, port: str) -> dict[str, Any]:
        """The port's counters."""
        stats: dict[str, Any] = await self.switch.get(f"/ports/{port}/stats")
        return stats


async def third_guest(switch: SwitchProcess, image: Image, program: str) -> Machine:
    """The guest with an interface for each variant, in its order."""
    devices: list[str] = []
    for name, variant in VARIANTS.items():
        words = await switch.qemu_args(name, qemu_version(program), accelerator())
        words[words.index("-device") + 1] += "".join(f",{key}=off" for key in variant.off)
        devices += words[words.index("-chardev") :] if devices else words
    nics = [
        Nic(f"eth{number}", f"{address(3, name)}/24", address6=f"{address(3, name, 'IPv6')}/64")
        for number, name in enumerate(VARIANTS)
    ]
    return Machine("vm3", image, devices, nics=nics, qemu=program)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(start_switch: StartSwitch, tools_image: Image, qemu: str) -> AsyncIterator[Lab]:
    async with (
        start_switch(CONFIG) as switch,
        await machine_on(switch, "vm1", tools_image, qemu, address="10.0.0.1/24", address6="fd00:0::1/64") as vm1,
        await machine_on(switch, "vm2", tools_image, qemu, address="10.0.0.2/24", address6="fd00:0::2/64") as vm2,
        await third_guest(switch, tools_image, qemu) as vm3,
    ):
        await asyncio.gather(boot_all(switch, vm1, vm2), vm3.boot(120))
        for name in VARIANTS:
            await switch.wait_link(name)
            for host, machine in ((1, vm1), (2, vm2)):
                if name != "all":
                    await machine.check(f"ip address add {address(host, name)}/24 dev eth0")
                    await machine.check(f"ip address add {address(host, name, 'IPv6')}/64 dev eth0")
        # An interface answers for its own addresses only, and segments marked by congestion may occur.
        await vm3.check("echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore")
        for machine in (vm1, vm2, vm3):
            await machine.check("echo 1 > /proc/sys/net/ipv4/tcp_ecn")
        yield Lab(switch, vm1, vm2, vm3)


async def ethtool_features(machine: Machine, interface: str) -> dict[str, bool]:
    """What `ethtool -k` shows as on or off."""
    lines = (await machine.check(f"ethtool -k {interface}")).splitlines()
    return {name.strip(): value.startswith("on") for name, _, value in (line.partition(": ") for line in lines)}


async def test_offloads_are_on(lab: Lab) -> None:
    for machine in (lab.vm1, lab.vm2):
        shown = await ethtool_features(machine, "eth0")
        wanted = {"rx-checksumming", "tx-checksumming", "scatter-gather", "tcp-segmentation-offload", "rx-gro-hw"}
        wanted |= {"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation"}
        assert wanted <= {name for name, on in shown.items() if on}
        features = {name.upper() for name in (await lab.switch.get(f"/ports/{machine.name}"))["state"]["features"]}
        assert features >= BOTH_TSO | CSUM


@pytest.mark.parametrize("family", FAMILIES)
async def test_large_frames_pass_through(lab: Lab, family: str) -> None:
    """Fewer frames than TCP would need of 1500 bytes each leave the sender, and reach the receiver as they are."""
    for host, source, target in ((1, lab.vm1, lab.vm2), (2, lab.vm2, lab.vm1)):
        rx, tx = await lab.stats(source.name), await lab.stats(target.name)
        await transfer(source, target, in_url(address(host, "all", family)), megabytes=MEGABYTES)
        rx_after, tx_after = await lab.stats(source.name), await lab.stats(target.name)
        segments = (MEGABYTES << 20) / TCP_PAYLOAD
        assert rx_after["rx_1523_to_max_packets"] > rx["rx_1523_to_max_packets"]
        assert rx_after["rx_packets"] - rx["rx_packets"] < segments / 2
        assert tx_after["tx_packets"] - tx["tx_packets"] < segments / 2
        assert rx_after["rx_errors"] == 0


@pytest.mark.parametrize("variant", VARIANTS)
async def test_transfers_with_an_offload_off(lab: Lab, variant: str) -> None:
    state = (await lab.switch.get(f"/ports/{variant}"))["state"]
    assert not {name.upper() for name in state["features"]} & VARIANTS[variant].missing
    for family in FAMILIES:
        near, far = address(1, variant, family), address(3, variant, family)
        await transfer(lab.vm1, lab.vm3, in_url(near), megabytes=MEGABYTES)
        await transfer(lab.vm3, lab.vm1, in_url(far), megabytes=MEGABYTES)
        await udp_rounds(lab.vm1, lab.vm3, far, rounds=UDP_ROUNDS, datagrams=16, size=1400, gso=False)
        await udp_rounds(lab.vm3, lab.vm1, near, rounds=UDP_ROUNDS, datagrams=16, size=1400, gso=False)
    stats = await lab.stats(variant)
    assert stats["rx_errors"] == 0


@pytest.mark.parametrize("partner", ["vm1", "vm2"])
async def test_guest_without_offloads_sees_good_frames(lab: Lab, partner: str) -> None:
    """TCP and UDP both ways, and each frame on its interface within the MTU, with the right checksums."""
    machine = lab.vm1 if partner == "vm1" else lab.vm2
    host = int(partner[-1])
    interface = f"eth{NET['all']}"
    large = (await lab.stats(partner))["rx_1523_to_max_packets"]
    await capture(lab.vm3, interface, "tcp or udp")
    for family in FAMILIES:
        near, far = address(host, "all", family), address(3, "all", family)
        await transfer(machine, lab.vm3, in_url(near), megabytes=1)
        await transfer(lab.vm3, machine, in_url(far), megabytes=1)
        await udp_rounds(machine, lab.vm3, far, rounds=UDP_ROUNDS, datagrams=16, size=1400, gso=False)
        await udp_rounds(lab.vm3, machine, near, rounds=UDP_ROUNDS, datagrams=16, size=1400, gso=False)
    await end_capture(lab.vm3)

    assert (await lab.stats(partner))["rx_1523_to_max_packets"] > large  # it was the switch that cut them
    assert not await recorded(lab.vm3, f"greater {MTU + 14 + 1}")
    for family in FAMILIES:
        for sender in (address(host, "all", family), address(3, "all", family)):
            tcp = await recorded(lab.vm3, f"tcp and src host {sender}")
            udp = await recorded(lab.vm3, f"udp and src host {sender}")
            assert len(tcp) >= (1 << 20) / MTU
            assert len(udp) >= UDP_ROUNDS * 16
            assert not [frame for frame in tcp if "(correct)" not in frame or COMPLAINT.search(frame)]
            assert not [frame for frame in udp if "udp sum ok" not in frame or COMPLAINT.search(frame)]
