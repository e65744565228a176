# SPDX-License-Identifier: Apache-2.0
"""`pvswitch demo`: two guests on a switch, talking, with the numbers on screen.

How it works. A switch runs as a child process (`pvswitch.process`), its API on a unix socket and on a free TCP port of
the loopback. Where QEMU, a Debian kernel and busybox are found, two Linux guests boot on its ports: iperf3 measures TCP
between them, then vm1 pings vm2, and vm2 downloads from vm1 and checks what it got. Elsewhere two driver guests
(`pvswitch.guest`) exchange frames. As root there is an uplink too: a tap into a network namespace of the demo's own,
which stands for the host. Everything on screen comes from the switch's HTTP API, except what the guests themselves
report. At the end, or at Ctrl-C, nothing is left: no process, no socket, no folder, no namespace.

`main` is what the command calls; its value is the exit status. `guests` are who talks, `screen` is what one sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from pvswitch.demo.guests import HOST_ADDRESS, PORTS, Guests, any_guests
from pvswitch.demo.screen import Screen, sample
from pvswitch.demo.talk import Talk
from pvswitch.errors import PvswitchError
from pvswitch.namespace import Namespace, NamespaceMissing
from pvswitch.process import SwitchProcess

TRAFFIC_SECONDS = 15.0
REFRESH_SECONDS = 0.5
# Rates are those of the last samples, 3 s together.
RATE_SAMPLES = 6
TUN_DEVICE = "/dev/net/tun"


def config(listen: str, host: Namespace | None) -> dict[str, Any]:
    """Return the switch's configuration: a port for each guest, and a tap into the namespace, where there is one."""
    ports: dict[str, Any] = {name: {} for name in PORTS}
    if host is not None:
        words = {"type": "tap", "ifname": "pvswitch0", "netns": str(host.path)}
        ports["uplink"] = {**words, "addresses": [f"{HOST_ADDRESS}/24"]}
    return {"api": {"listen": listen}, "bridges": {"br0": {}}, "ports": ports}


def free_address() -> str:
    """Return an address on the loopback with a TCP port on which nobody listens now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host, port = sock.getsockname()
        return f"{host}:{port}"


@asynccontextmanager
async def far_host(console: Console) -> AsyncIterator[Namespace | None]:
    """Make the namespace that stands for the host; where that can't be, say why and go on without."""
    async with contextlib.AsyncExitStack() as stack:
        host = None
        try:
            if not os.access(TUN_DEVICE, os.R_OK | os.W_OK):
                raise NamespaceMissing(f"taps need {TUN_DEVICE}: run this as root, where the kernel has it")
            host = await stack.enter_async_context(Namespace())
        except NamespaceMissing as error:
            console.print(f"No uplink here: {error}.", soft_wrap=True)
        yield host


async def watch(switch: SwitchProcess, guests: Guests, screen: Screen, talk: Talk, seconds: float) -> None:
    """Let the guests measure, then talk for a time (or until cancelled), and show it."""
    samples = deque([await sample(switch)], maxlen=RATE_SAMPLES)

    async def show_until(traffic: asyncio.Task[None], deadline: float) -> None:
        try:
            while time.monotonic() < deadline and not traffic.done():
                await asyncio.sleep(REFRESH_SECONDS)
                samples.append(await sample(switch))
                screen.show(samples[0], samples[-1], talk)
        finally:
            traffic.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await traffic

    with screen:
        await show_until(asyncio.create_task(guests.measure(talk)), float("inf"))
        await show_until(asyncio.create_task(guests.talk(talk)), time.monotonic() + seconds)


def explain_keep(console: Console, switch: SwitchProcess, host: Namespace | None) -> None:
    """Say how to look at the switch that stays."""
    api = f"unix:{switch.api}"
    console.print("The switch and its guests stay until Ctrl-C. Look at them from another terminal:")
    lines = [
        f"pvswitch --api {api} show ports",
        f"pvswitch --api {api} show fdb",
        f"curl --unix-socket {switch.api} http://localhost/api/v1/ports/vm1",
    ]
    if host is not None:
        lines.append(f"nsenter --net={host.path} ip address show")
    for line in lines:
        console.print(f"    {line}", soft_wrap=True, highlight=False)


async def run(keep: bool, console: Console, talk: Talk) -> None:
    """Run the demonstration from start to end; `talk` is filled also when it is cancelled.

    Ctrl-C cancels it, as asyncio.run does; SIGTERM does the same here.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    listen = free_address()
    with tempfile.TemporaryDirectory(prefix="pvswitch-demo-") as folder:
        async with (
            far_host(console) as host,
            SwitchProcess(config(listen, host)) as switch,
            any_guests(switch, Path(folder), host, console) as guests,
        ):
            for port in PORTS:
                await switch.wait_link(port)
            if keep:
                explain_keep(console, switch, host)
            uplink = f"; the host, {HOST_ADDRESS}, on a tap" if host is not None else ""
            heading = f"{guests.title}{uplink}.\nAPI: http://{listen}/api/v1 and unix:{switch.api}"
            screen = Screen(console, f"{heading}\nIts docs page: http://{listen}/docs")
            await watch(switch, guests, screen, talk, float("inf") if keep else TRAFFIC_SECONDS)


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
