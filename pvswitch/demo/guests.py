# SPDX-License-Identifier: Apache-2.0
"""The demo's guests: two Linux machines under QEMU where that is possible, else two driver guests without a VM.

Both kinds can `measure`, once, and `talk`, until they are cancelled. The Linux guests speak to the host as well, where
there is an uplink: a network namespace with an address on the switch's tap.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from pvswitch.demo.talk import Talk
from pvswitch.errors import PvswitchError
from pvswitch.guest import Guest
from pvswitch.namespace import Namespace
from pvswitch.process import SwitchProcess
from pvswitch.vm import Machine, MissingTool, Nic, accelerator, build_image, find_qemu, qemu_version

PORTS = ("vm1", "vm2")
ADDRESSES = ("10.0.0.1", "10.0.0.2")
HOST_ADDRESS = "10.0.0.254"
PINGS = 5
FILE_MIB = 4
IPERF_SECONDS = 3
# For one client; the one before must have ended, or it is busy.
IPERF_SERVER = (
    "while pidof iperf3; do sleep 0.1; done; iperf3 --server --one-off --daemon;"
    "until netstat -ltn | grep -q :5201; do sleep 0.1; done"
)
BOTH_WAYS = ((), ("--reverse",))
# What driver guests exchange: sizes without FCS, under an ethertype for local experiments (IEEE 802, 88-B5).
FRAME_SIZES = (60, 128, 256, 512, 1024, 1514)
ETH_HEADER = 14
EXPERIMENTAL = bytes.fromhex("88b5")
FRAME_PAUSE = 0.002


class Guests(Protocol):
    """Two guests that can be made to talk."""

    title: str

    async def measure(self, talk: Talk) -> None:
        """Measure what can be measured, once, reporting into `talk`."""

    async def talk(self, talk: Talk) -> None:
        """Exchange traffic until cancelled, reporting into `talk`."""


class LinuxGuests:
    """Two machines under QEMU: vm1 pings vm2, and vm2 downloads a file of noise from vm1 again and again."""

    def __init__(self, machines: list[Machine], host: Namespace | None, *, iperf: bool) -> None:
        """`machines` have booted, with iperf3 in them if so said; `host` is what the uplink leads to."""
        self._machines = machines
        self._host = host
        self._iperf = iperf
        self.title = f"Two Linux guests under QEMU, {' and '.join(ADDRESSES)}"

    async def measure(self, talk: Talk) -> None:
        """Measure TCP both ways between the guests, and between vm1 and the host."""
        vm1, vm2 = self._machines
        if self._host is not None:
            found = await _pings(vm1, HOST_ADDRESS)
            talk.results.append(f"vm1 pings the host by the tap: {found[1]} of {found[0]} answered")
            if found[1] == 0:
                talk.failures.append("the host did not answer vm1: the uplink leads nowhere")
        if not self._iperf:
            talk.results.append("iperf3 was not found on this host, so no TCP rates: apt-get install iperf3")
            return
        there, back = [await self._between(vm1, vm2, *option) for option in BOTH_WAYS]
        talk.results.append(f"iperf3, vm1 to vm2: {there:.2f} Gbit/s, and back {back:.2f}")
        if self._host is not None:
            back, there = [await self._from_host(self._host, vm1, *option) for option in BOTH_WAYS]
            talk.results.append(f"iperf3, vm1 to the host: {there:.2f} Gbit/s, and back {back:.2f}")

    async def _between(self, client: Machine, server: Machine, *options: str) -> float:
        await server.check(IPERF_SERVER)
        return _gbits(await client.check(_iperf(ADDRESSES[1], *options)))

    async def _from_host(self, host: Namespace, server: Machine, *options: str) -> float:
        await server.check(IPERF_SERVER)
        return _gbits(await host.command(*_iperf(ADDRESSES[0], *options).split(), seconds=30))

    async def talk(self, talk: Talk) -> None:
        """Exchange traffic until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ping(talk))
                group.create_task(self._download(talk))
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None

    async def _ping(self, talk: Talk) -> None:
        while True:
            talk.add_pings(*await _pings(self._machines[0], ADDRESSES[1]))

    async def _download(self, talk: Talk) -> None:
        vm1, vm2 = self._machines
        await vm1.check(f"mkdir /www; dd if=/dev/urandom of=/www/noise bs=1M count={FILE_MIB} 2>&1; httpd -h /www")
        wanted = await vm1.check("sha256sum < /www/noise")
        while True:
            fetch = f"wget -q -O /tmp/noise http://{ADDRESSES[0]}/noise && sha256sum < /tmp/noise"
            status, output = await vm2.run(fetch)
            if (status, output) == (0, wanted):
                talk.verified_bytes += FILE_MIB << 20
            else:
                talk.failures.append(f"a download of vm2 ended with status {status}: {output.strip()}")
            await asyncio.sleep(1)


async def _pings(machine: Machine, address: str) -> tuple[int, int, float, float, float]:
    """Let a guest ping; return how many it sent and had answered, and the fastest, mean and slowest in milliseconds."""
    _, output = await machine.run(f"ping -q -i 0.1 -c {PINGS} -W 2 {address}")
    found = re.search(r"(\d+) packets transmitted, (\d+) packets received", output)
    times = re.search(r"min/avg/max = ([\d.]+)/([\d.]+)/([\d.]+)", output)
    sent, answered = (int(found[1]), int(found[2])) if found else (PINGS, 0)
    fastest, mean, slowest = (float(text) for text in times.groups()) if times else (0.0, 0.0, 0.0)
    return sent, answered, fastest, mean, slowest


def _iperf(address: str, *options: str) -> str:
    return " ".join(("iperf3", "--client", address, "--time", str(IPERF_SECONDS), "--json", *options))


def _gbits(answer: str) -> float:
    """Return the rate that the receiver saw, from iperf3's own account."""
    told: dict[str, Any] = json.loads(answer)
    if "error" in told:
        raise PvswitchError(f"iperf3 failed: {told['error']}")
    return float(told["end"]["sum_received"]["bits_per_second"]) / 1e9


@asynccontextmanager
async def linux_guests(switch: SwitchProcess, folder: Path, host: Namespace | None) -> AsyncIterator[Guests]:
    """Boot two Linux guests for the body. Raises `MissingTool` where the host lacks what they need."""
    qemu = find_qemu()
    iperf = shutil.which("iperf3") is not None
    image = await asyncio.to_thread(build_image, folder, extra_binaries=("iperf3",) if iperf else ())
    async with contextlib.AsyncExitStack() as stack:
        machines = []
        for port, address in zip(PORTS, ADDRESSES, strict=True):
            devices = await switch.qemu_args(port, qemu_version(qemu), accelerator())
            machine = Machine(port, image, devices, nics=[Nic("eth0", f"{address}/24")], qemu=qemu)
            machines.append(await stack.enter_async_context(machine))
        await asyncio.gather(*(machine.boot() for machine in machines))
        yield LinuxGuests(machines, host, iperf=iperf)


class DriverGuests:
    """Two driver guests: vm1 sends frames of all sizes to vm2, which sends each one back."""

    title = "Two driver guests (no VM)"

    def __init__(self, near: Guest, far: Guest) -> None:
        """Both are connected and started."""
        self._near = near
        self._far = far

    async def measure(self, talk: Talk) -> None:
        """Nothing: they have no TCP."""

    async def talk(self, talk: Talk) -> None:
        """Exchange traffic until cancelled."""
        for size in itertools.cycle(FRAME_SIZES):
            payload = secrets.token_bytes(size - ETH_HEADER)
            began = time.perf_counter()
            try:
                await self._near.send(self._far.mac + self._near.mac + EXPERIMENTAL + payload)
                there = await _receive(self._far)
                await self._far.send(self._near.mac + self._far.mac + EXPERIMENTAL + there[ETH_HEADER:])
                back = await _receive(self._near)
            except TimeoutError:
                talk.add_pings(1, 0, 0.0, 0.0, 0.0)
                continue
            milliseconds = (time.perf_counter() - began) * 1e3
            talk.add_pings(1, 1, milliseconds, milliseconds, milliseconds)
            if back[ETH_HEADER:] == payload:
                talk.verified_bytes += 2 * size
            else:
                talk.failures.append(f"a frame of {size} bytes came back changed")
            await asyncio.sleep(FRAME_PAUSE)


async def _receive(guest: Guest) -> bytes:
    """Return the next frame of the guests' own; what the host's kernel has to say is passed over. TimeoutError."""
    async with asyncio.timeout(1):
        while True:
            frame = await guest.recv(timeout=1)
            if frame[ETH_HEADER - 2 : ETH_HEADER] == EXPERIMENTAL:
                return frame


@asynccontextmanager
async def driver_guests(switch: SwitchProcess) -> AsyncIterator[Guests]:
    """Connect two driver guests for the body."""
    async with Guest(switch.port_socket("vm1")) as near, Guest(switch.port_socket("vm2")) as far:
        yield DriverGuests(near, far)


@asynccontextmanager
async def any_guests(
    switch: SwitchProcess, folder: Path, host: Namespace | None, console: Console
) -> AsyncIterator[Guests]:
    """Give Linux guests where that is possible, else driver guests; say which, and why."""
    async with contextlib.AsyncExitStack() as stack:
        console.print("Booting two Linux guests ...")
        try:
            guests = await stack.enter_async_context(linux_guests(switch, folder, host))
        except MissingTool as error:
            console.print(f"No Linux guests here: {error}. Two driver guests take their place.", soft_wrap=True)
            guests = await stack.enter_async_context(driver_guests(switch))
        yield guests
