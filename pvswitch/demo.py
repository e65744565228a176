# SPDX-License-Identifier: Apache-2.0
"""`pvswitch demo`: two guests on a switch, talking, with the numbers on screen.

How it works. A switch runs as a child process (`pvswitch.process`). Where QEMU, a Debian kernel and busybox
are found, two Linux guests boot on its ports: vm1 pings vm2, vm2 downloads from vm1 and checks what it got.
Elsewhere two driver guests (`pvswitch.guest`) exchange frames. Everything on screen comes from the switch's
HTTP API, except what the guests themselves report. At the end, or at Ctrl-C, nothing is left: no process, no
socket, no folder.

`main` is what the command calls; its value is the exit status.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pvswitch.errors import PvswitchError
from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from pvswitch.vm import Machine, MissingTool, Nic, accelerator, build_image, find_qemu, qemu_version

PORTS = ("vm1", "vm2")
ADDRESSES = ("10.0.0.1", "10.0.0.2")
CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {name: {} for name in PORTS}}
TRAFFIC_SECONDS = 20.0
REFRESH_SECONDS = 0.5
# Rates are those of the last samples, 3 s together.
RATE_SAMPLES = 6
# Without a terminal a line every so often is enough.
LINE_SECONDS = 4.0
PINGS = 5
FILE_MIB = 4
# What driver guests exchange: sizes without FCS, under an ethertype for local experiments (IEEE 802, 88-B5).
FRAME_SIZES = (60, 128, 256, 512, 1024, 1514)
ETH_HEADER = 14
EXPERIMENTAL = bytes.fromhex("88b5")
FRAME_PAUSE = 0.002


@dataclass
class Talk:
    """What the guests themselves saw of each other; the traffic writes it, the screen reads it."""

    sent: int = 0
    answered: int = 0
    fastest_ms: float = float("inf")
    slowest_ms: float = 0.0
    total_ms: float = 0.0
    verified_bytes: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def success(self) -> bool:
        """Whether the guests really talked: pings were answered, data arrived whole, nothing failed.

        A ping may be lost to a guest that falls behind its download: the switch then counts a drop, which is shown.
        """
        return self.answered > 0 and self.verified_bytes > 0 and not self.failures

    def add_pings(self, sent: int, answered: int, fastest_ms: float, mean_ms: float, slowest_ms: float) -> None:
        """Add the result of some pings; the times count only when there was an answer."""
        self.sent += sent
        self.answered += answered
        if answered:
            self.fastest_ms = min(self.fastest_ms, fastest_ms)
            self.slowest_ms = max(self.slowest_ms, slowest_ms)
            self.total_ms += mean_ms * answered

    def __str__(self) -> str:
        """Return one line for people."""
        text = f"{self.answered} of {self.sent} pings answered"
        if self.answered:
            mean = self.total_ms / self.answered
            text += f", min/avg/max {self.fastest_ms:.2f}/{mean:.2f}/{self.slowest_ms:.2f} ms"
        return f"{text}; {self.verified_bytes / 1e6:.1f} MB arrived whole"


class Guests(Protocol):
    """Two guests that can be made to talk."""

    title: str

    async def talk(self, talk: Talk) -> None:
        """Exchange traffic until cancelled, reporting into `talk`."""


class LinuxGuests:
    """Two machines under QEMU: vm1 pings vm2, and vm2 downloads a file of noise from vm1 again and again."""

    def __init__(self, machines: list[Machine]) -> None:
        """`machines` have booted."""
        self._machines = machines
        self.title = f"two Linux guests under QEMU ({', '.join(ADDRESSES)})"

    async def talk(self, talk: Talk) -> None:
        """Exchange traffic until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ping(talk))
                group.create_task(self._download(talk))
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None

    async def _ping(self, talk: Talk) -> None:
        vm1 = self._machines[0]
        while True:
            _, output = await vm1.run(f"ping -q -i 0.1 -c {PINGS} -W 2 {ADDRESSES[1]}")
            found = re.search(r"(\d+) packets transmitted, (\d+) packets received", output)
            times = re.search(r"min/avg/max = ([\d.]+)/([\d.]+)/([\d.]+)", output)
            sent, answered = (int(found[1]), int(found[2])) if found else (PINGS, 0)
            fastest, mean, slowest = (float(text) for text in times.groups()) if times else (0.0, 0.0, 0.0)
            talk.add_pings(sent, answered, fastest, mean, slowest)

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


@asynccontextmanager
async def linux_guests(switch: SwitchProcess, folder: Path) -> AsyncIterator[Guests]:
    """Boot two Linux guests for the body. Raises `MissingTool` where the host lacks what they need."""
    qemu = find_qemu()
    image = await asyncio.to_thread(build_image, folder)
    async with contextlib.AsyncExitStack() as stack:
        machines = []
        for port, address in zip(PORTS, ADDRESSES, strict=True):
            devices = await switch.qemu_args(port, qemu_version(qemu), accelerator())
            machine = Machine(port, image, devices, nics=[Nic("eth0", f"{address}/24")], qemu=qemu)
            machines.append(await stack.enter_async_context(machine))
        await asyncio.gather(*(machine.boot() for machine in machines))
        yield LinuxGuests(machines)


class DriverGuests:
    """Two driver guests: vm1 sends frames of all sizes to vm2, which sends each one back."""

    title = "two driver guests (no VM)"

    def __init__(self, near: Guest, far: Guest) -> None:
        """Both are connected and started."""
        self._near = near
        self._far = far

    async def talk(self, talk: Talk) -> None:
        """Exchange traffic until cancelled."""
        for size in itertools.cycle(FRAME_SIZES):
            payload = secrets.token_bytes(size - ETH_HEADER)
            began = time.perf_counter()
            try:
                await self._near.send(self._far.mac + self._near.mac + EXPERIMENTAL + payload)
                there = await self._far.recv(timeout=1)
                await self._far.send(self._near.mac + self._far.mac + EXPERIMENTAL + there[ETH_HEADER:])
                back = await self._near.recv(timeout=1)
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


@asynccontextmanager
async def driver_guests(switch: SwitchProcess) -> AsyncIterator[Guests]:
    """Connect two driver guests for the body."""
    async with Guest(switch.port_socket("vm1")) as near, Guest(switch.port_socket("vm2")) as far:
        yield DriverGuests(near, far)


@dataclass(frozen=True)
class Sample:
    """What the API said at one moment."""

    when: float
    ports: list[dict[str, Any]]
    stats: dict[str, dict[str, Any]]
    fdb: list[dict[str, Any]]


async def sample(switch: SwitchProcess) -> Sample:
    """Ask the API for all that the screen shows."""
    ports = (await switch.get("/ports"))["items"]
    stats = {port["name"]: await switch.get(f"/ports/{port['name']}/stats") for port in ports}
    fdb = (await switch.get("/bridges/br0/fdb"))["items"]
    return Sample(time.monotonic(), ports, stats, fdb)


def rates(old: Sample, new: Sample, port: str) -> tuple[float, float]:
    """Return a port's frames per second and Mbit/s, both directions together, between two samples."""
    seconds = max(new.when - old.when, 1e-9)
    before, after = old.stats[port], new.stats[port]
    frames = sum(after[key] - before[key] for key in ("rx_packets", "tx_packets"))
    octets = sum(after[key] - before[key] for key in ("rx_bytes", "tx_bytes"))
    return frames / seconds, octets * 8 / 1e6 / seconds


def dropped(new: Sample, port: str) -> int:
    """Return the frames from and for a port that the switch has dropped."""
    return int(new.stats[port]["rx_dropped"] + new.stats[port]["tx_dropped"])


def port_table(old: Sample, new: Sample) -> Table:
    """Return the table of ports with their links, counters and rates."""
    table = Table(title="Ports (rx: from the guest, tx: to the guest)", title_justify="left")
    for heading in ("port", "link", "rx frames", "tx frames", "dropped", "frames/s", "Mbit/s"):
        table.add_column(heading, justify="left" if heading in ("port", "link") else "right")
    for port in new.ports:
        name, state, stats = port["name"], port["state"], new.stats[port["name"]]
        link = "[green]up" if state["link"] == "up" else f"[red]down[/]: {state['reason']}"
        frames, mbits = rates(old, new, name)
        counters = (stats["rx_packets"], stats["tx_packets"], dropped(new, name))
        table.add_row(name, link, *(f"{count:,}" for count in counters), f"{frames:,.0f}", f"{mbits:,.1f}")
    return table


def fdb_table(new: Sample) -> Table:
    """Return the table of learned addresses."""
    table = Table(title="FDB of br0", title_justify="left")
    for heading in ("address", "port", "type"):
        table.add_column(heading)
    for entry in new.fdb:
        table.add_row(entry["mac"], entry["port"], entry["type"])
    return table


class Screen:
    """Shows samples: a live picture on a terminal, else a plain line now and then."""

    def __init__(self, console: Console, switch: SwitchProcess, title: str) -> None:
        """Print nothing yet."""
        self._console = console
        self._heading = Text(f"{title}, API at unix:{switch.api}")
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_line = 0.0

    def __enter__(self) -> Screen:
        """Take the terminal."""
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(self._heading, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back; the last picture stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, old: Sample, new: Sample, talk: Talk) -> None:
        """Show the newer of two samples, with the rates between them."""
        if self._live is not None:
            picture = Group(self._heading, port_table(old, new), fdb_table(new), Text(str(talk)))
            self._live.update(picture, refresh=True)
        elif new.when >= self._next_line:
            self._next_line = new.when + LINE_SECONDS
            ports = []
            for port in new.ports:
                frames, mbits = rates(old, new, port["name"])
                link, lost = port["state"]["link"], dropped(new, port["name"])
                ports.append(f"{port['name']} {link} {frames:.0f} frames/s {mbits:.1f} Mbit/s, {lost} dropped")
            self._console.print(f"{'; '.join(ports)}; FDB {len(new.fdb)}; {talk}", soft_wrap=True)


async def watch(switch: SwitchProcess, guests: Guests, console: Console, talk: Talk, seconds: float) -> None:
    """Let the guests talk for a time (or until cancelled) and show it."""
    deadline = time.monotonic() + seconds
    samples = deque([await sample(switch)], maxlen=RATE_SAMPLES)
    traffic = asyncio.create_task(guests.talk(talk))
    try:
        with Screen(console, switch, guests.title) as screen:
            while time.monotonic() < deadline and not traffic.done():
                await asyncio.sleep(REFRESH_SECONDS)
                samples.append(await sample(switch))
                screen.show(samples[0], samples[-1], talk)
    finally:
        traffic.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await traffic


def explain_keep(console: Console, switch: SwitchProcess) -> None:
    """Say how to look at the switch that stays."""
    api = f"unix:{switch.api}"
    console.print("The switch and its guests stay until Ctrl-C. Look at them from another terminal:")
    for line in (
        f"pvswitch --api {api} show ports",
        f"pvswitch --api {api} show fdb",
        f"curl --unix-socket {switch.api} http://localhost/api/v1/ports/vm1",
    ):
        console.print(f"    {line}", soft_wrap=True, highlight=False)


@asynccontextmanager
async def any_guests(switch: SwitchProcess, folder: Path, console: Console) -> AsyncIterator[Guests]:
    """Give Linux guests where that is possible, else driver guests; say which, and why."""
    async with contextlib.AsyncExitStack() as stack:
        console.print("Booting two Linux guests ...")
        try:
            guests = await stack.enter_async_context(linux_guests(switch, folder))
        except MissingTool as error:
            console.print(f"No Linux guests here: {error}. Two driver guests take their place.", soft_wrap=True)
            guests = await stack.enter_async_context(driver_guests(switch))
        yield guests


async def run(keep: bool, console: Console, talk: Talk) -> None:
    """Run the demonstration from start to end; `talk` is filled also when it is cancelled.

    Ctrl-C cancels it, as asyncio.run does; SIGTERM does the same here.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="pvswitch-demo-") as folder:
        async with SwitchProcess(CONFIG) as switch, any_guests(switch, Path(folder), console) as guests:
            for port in PORTS:
                await switch.wait_link(port)
            if keep:
                explain_keep(console, switch)
            await watch(switch, guests, console, talk, float("inf") if keep else TRAFFIC_SECONDS)


def main(keep: bool = False) -> int:
    """Run the demonstration; return 0 if the guests really talked, else 1. Ctrl-C ends it early."""
    console = Console()
    talk = Talk()
    try:
        asyncio.run(run(keep, console, talk))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped.")
    except PvswitchError as error:
        print(error, file=sys.stderr)
        return 1
    for failure in talk.failures:
        print(failure, file=sys.stderr)
    verdict = "The guests talked" if talk.success else "The guests did not talk"
    console.print(f"{verdict}: {talk}", soft_wrap=True, highlight=False)
    return 0 if talk.success else 1
