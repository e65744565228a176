# SPDX-License-Identifier: Apache-2.0
"""What an idle switch costs, and how fast it is back: many connected guests with started rings, no traffic.

Prints the CPU share of the switch's process over some seconds, and then, a few times, the round trip time of the first
frame after a silence, which has to wake the switch, next to the second's. Nothing is judged here.

    python -m bench.idle [--guests 64] [--seconds 30] [--silence 10] [--repeat 3] [--polling adaptive]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import Any

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.footprint import cpu_seconds


async def idle_share(pid: int, seconds: float) -> float:
    """The share of one core that the process takes."""
    before, began = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


async def first_frames(a: Guest, b: Guest, silence: float) -> tuple[float, float]:
    """Round trip times in seconds: of the first frame after `silence` seconds, and of the next. Spinning guests."""
    await asyncio.sleep(silence)
    first, second = await a.pingpong(b, 2)
    if first is None or second is None:
        raise SystemExit("a frame was lost")
    return first / 1e9, second / 1e9


async def measure(arguments: argparse.Namespace) -> None:
    """Run a switch with its guests, and print what is seen."""
    names = [f"vm{number}" for number in range(arguments.guests)]
    config: dict[str, Any] = {
        "datapath": {"polling": arguments.polling},
        "bridges": {"br0": {}},
        "ports": {name: {} for name in names},
    }
    async with SwitchProcess(config) as switch, contextlib.AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(Guest(switch.port_socket(name))) for name in names]
        for name in names:
            await switch.wait_link(name)
        share = await idle_share(switch.pid, arguments.seconds)
        print(f"{len(guests)} guests, {arguments.polling}: {share:.3%} of a core over {arguments.seconds:g} s")
        for _ in range(arguments.repeat):
            first, second = await first_frames(guests[0], guests[-1], arguments.silence)
            print(f"after {arguments.silence:g} s of silence: {first * 1e6:.0f} us, then {second * 1e6:.0f} us")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="What an idle switch costs, and how fast it is back.")
    parser.add_argument("--guests", type=int, default=64, help="connected guests (64)")
    parser.add_argument("--seconds", type=float, default=30, help="of measuring the idle switch (30)")
    parser.add_argument("--silence", type=float, default=10, help="seconds before the first frame (10)")
    parser.add_argument("--repeat", type=int, default=3, help="first frames (3)")
    parser.add_argument("--polling", choices=["adaptive", "busy", "interrupt"], default="adaptive")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
