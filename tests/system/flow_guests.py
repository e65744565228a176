# SPDX-License-Identifier: Apache-2.0
"""Three QEMU guests on one bridge, its flows, and what passes by their ports as `pvswitch capture` records it.

`vm1` and `vm2` have every offload; `plain` has none, so that the switch cuts and sums all that it gets. Who uses it:
the tests of flows between guests.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from scapy.utils import RawPcapNgReader

from pvswitch.client import AsyncClient
from pvswitch.process import SwitchProcess, command
from pvswitch.vm import Image, Machine, Nic, accelerator, qemu_version
from tests.system.conftest import StartSwitch, boot_all, machine_on
from tests.system.recording import GOOD, SUMS, explained

NAMES = ("vm1", "vm2", "plain")
HOSTS = {name: number for number, name in enumerate(NAMES, 1)}
NO_OFFLOADS = ("guest_tso4", "guest_tso6", "guest_ecn", "guest_csum", "host_tso4", "host_tso6", "host_ecn", "csum")
FLOWS = "/bridges/br0/flows"
PATIENCE = 30.0
"""Seconds for what must happen: far beyond what any machine needs."""
ROOT_WARNING = "Running as user"
"""The one thing that tshark may complain of: root uses it here."""
UNFINISHED = "unfinished"
"""In a captured frame's comment: its checksum, or its segmentation, is left to who receives it."""


@dataclass(frozen=True)
class Lab:
    """The switch, its guests, and a client that waits long."""

    switch: SwitchProcess
    client: AsyncClient
    vm1: Machine
    vm2: Machine
    plain: Machine
    macs: Mapping[str, str]

    def machine(self, name: str) -> Machine:
        """The guest on the port of this name."""
        found: Machine = getattr(self, name)
        return found

    async def stats(self, port: str) -> dict[str, Any]:
        """The port's counters."""
        stats: dict[str, Any] = await self.switch.get(f"/ports/{port}/stats")
        return stats

    async def add(self, flows: Mapping[str, str]) -> None:
        """Add flows, or replace those of the same names, in one batch."""
        await self.client.change_flows("br0", {"add": dict(flows)})

    async def packets(self, flow: str) -> int:
        """How many frames have matched a flow."""
        found = await self.switch.get(f"{FLOWS}/{quote(flow, safe='')}")
        return int(found["stats"]["packets"])

    @contextlib.asynccontextmanager
    async def flows(self, flows: Mapping[str, str]) -> AsyncIterator[None]:
        """Have these flows during the body, and none after it."""
        await self.add(flows)
        try:
            yield
        finally:
            await self.client.flush_flows("br0")


def address(name: str, family: str = "IPv4") -> str:
    """A guest's address."""
    return f"10.0.0.{HOSTS[name]}" if family == "IPv4" else f"fd00::{HOSTS[name]}"


@contextlib.asynccontextmanager
async def running_lab(
    start_switch: StartSwitch, image: Image, program: str, ports: Sequence[str] = (), workers: int = 1
) -> AsyncIterator[Lab]:
    """Start the switch, with more ports than the guests', and boot the guests."""
    names: dict[str, Any] = {name: {} for name in (*NAMES, *ports)}
    config = {"bridges": {"br0": {}}, "ports": names, "datapath": {"workers": workers}}
    async with contextlib.AsyncExitStack() as stack:
        switch = await stack.enter_async_context(start_switch(config))
        machines = [await stack.enter_async_context(await _machine(switch, name, image, program)) for name in NAMES]
        await boot_all(switch, *machines)
        client = await stack.enter_async_context(AsyncClient(f"unix:{switch.api}"))
        macs = {}
        for machine in machines:
            macs[machine.name] = (await machine.check("cat /sys/class/net/eth0/address")).strip()
        vm1, vm2, plain = machines
        yield Lab(switch, client, vm1, vm2, plain, macs)


async def _machine(switch: SwitchProcess, name: str, image: Image, program: str) -> Machine:
    v4, v6 = f"{address(name)}/24", f"{address(name, 'IPv6')}/64"
    if name != "plain":
        return await machine_on(switch, name, image, program, address=v4, address6=v6)
    words = await switch.qemu_args(name, qemu_version(program), accelerator())
    words[words.index("-device") + 1] += "".join(f",{feature}=off" for feature in NO_OFFLOADS)
    return Machine(name, image, words, nics=[Nic("eth0", v4, address6=v6)], qemu=program)


# ---- captures


class Seen(NamedTuple):
    """A frame of a capture: its port, its comment, its bytes, and what tshark says of its checksums."""

    port: str
    comment: str
    data: bytes
    sums: dict[str, str]


@contextlib.asynccontextmanager
async def captured(switch: SwitchProcess, file: Path, *ports: str, expression: str) -> AsyncIterator[None]:
    """Let `pvswitch capture` write what passes by ports, and the filter, into a file during the body; none is lost."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", *command(), "--api", f"unix:{switch.api}"),
        *("capture", *ports, "-w", str(file), "--filter", expression),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            said = await process.stderr.readline()
        assert said.startswith(b"capturing on"), said
        yield
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            _, told = await process.communicate()
        assert process.returncode == 0, told
        assert b", none lost" in told, told
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def tshark_complaints(file: Path) -> list[str]:
    """What tshark has to complain of a file as such."""
    process = await asyncio.create_subprocess_exec(
        *("tshark", "-n", "-r", str(file)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        _, told = await process.communicate()
    lines = [line for line in told.decode().splitlines() if not line.startswith(ROOT_WARNING)]
    return lines if process.returncode == 0 else [*lines, f"status {process.returncode}"]


async def frames_of(file: Path) -> list[Seen]:
    """The frames of a capture."""
    fields = {"port": "frame.interface_name", "comment": "frame.comment", **{n: f"{n}.checksum.status" for n in SUMS}}
    found = await explained(file, fields)
    with RawPcapNgReader(str(file)) as reader:
        data = [bytes(frame) for frame, _ in reader]
    return [
        Seen(one["port"], one["comment"], frame, {name: one[name] for name in SUMS})
        for one, frame in zip(found, data, strict=True)
    ]


def judge_sums(frames: Iterable[Seen]) -> None:
    """Every checksum must be right; one that is still to be finished must be the pseudo header's sum."""
    for frame in frames:
        unfinished = UNFINISHED in frame.comment
        wanted = SUMS if not unfinished else ("ip",)
        wrong = {name: frame.sums[name] for name in wanted if frame.sums[name] not in (GOOD, "")}
        assert not wrong, (wrong, frame.port, frame.comment, frame.data[:128].hex())
        if unfinished:
            assert pseudo_sum(frame.data) == sum_field(frame.data), (frame.comment, frame.data[:128].hex())


def _transport(data: bytes) -> tuple[int, int]:
    """A frame's protocol, TCP or UDP, and where its header is."""
    if data[12:14] == b"\x08\x00":
        return data[23], 14 + 4 * (data[14] & 15)
    assert data[12:14] == b"\x86\xdd", data[:64].hex()
    return data[20], 14 + 40


def sum_field(data: bytes) -> int:
    """What a frame of TCP or UDP has in its checksum field."""
    protocol, start = _transport(data)
    place = start + (16 if protocol == 6 else 6)
    return int.from_bytes(data[place : place + 2], "big")


def pseudo_sum(data: bytes) -> int:
    """The sum of the pseudo header of a frame of TCP or UDP (RFC 9293, 3.1; RFC 8200, 8.1), as virtio wants it."""
    protocol, start = _transport(data)
    ipv4 = data[12:14] == b"\x08\x00"
    addresses = data[26:34] if ipv4 else data[22:54]
    length = int.from_bytes(data[16:18], "big") - (start - 14) if ipv4 else int.from_bytes(data[18:20], "big")
    total = sum(int.from_bytes(addresses[i : i + 2], "big") for i in range(0, len(addresses), 2)) + protocol + length
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
