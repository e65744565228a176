# SPDX-License-Identifier: Apache-2.0
"""TCP streams and UDP rounds between hosts, of which every byte is checked, and frames as they are (traffic.c)."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

SOURCE = Path(__file__).with_name("traffic.c")
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-static")
LISTENING = "for i in $(seq 100); do netstat -{kind}ln | grep -q ':{port} ' && exit; sleep 0.1; done; exit 1"


class Host(Protocol):
    """What takes commands: a guest (`Machine`), or a host on the far side of an uplink (`FarHost`)."""

    name: str

    async def run(self, command: str, seconds: float = ...) -> tuple[int, str]:
        """Run a shell command; return its exit status and its output."""

    async def check(self, command: str, seconds: float = ...) -> str:
        """Run a command that must succeed; return its output."""


async def serve_iperf3(host: Host) -> None:
    """Have iperf3 listen on a host: its command ends before it does."""
    await host.check("iperf3 --server --daemon")
    await host.check(LISTENING.format(kind="t", port=5201))


async def pings(source: Host, words: str, count: int = 5, *, interval: float = 0.05, several: bool = False) -> None:
    """Ping so often: each request is answered, once (with `several` hosts that may answer at least once).

    For the last answers ping waits no longer than for two of the round trips that it has seen. So it is told to go on
    until so many have come: late isn't lost, as long as nothing is missing among the first numbers.
    """
    output = await source.check(f"/bin/ping -c {count} -w 30 -i {interval} {words}", 40 + count * interval)
    numbers = [int(number) for number in re.findall(r"bytes from .* icmp_seq=(\d+)", output)]
    assert (sorted(set(numbers)) if several else numbers) == [*range(1, count + 1)], output


def build_traffic(compiler: str, folder: Path) -> Path:
    """Compile traffic.c for hosts; return the program."""
    program = folder / "traffic"
    subprocess.run([compiler, *FLAGS, "-o", program, SOURCE], check=True)
    return program


class TcpStream:
    """One TCP connection of numbered words, which go from `source` to `target` until one of them ends."""

    def __init__(self, source: Host, target: Host, address: str, port: int, rate: int) -> None:
        """`address` is the target's, `rate` the bytes per second: what guests don't spend on it, they have for us."""
        self._source = source
        self._target = target
        self._port = port
        self._file = f"/tmp/stream-{port}"
        self._sender = f"traffic tcp-send {address} {port} {rate}"

    async def start(self) -> None:
        """Connect; the first bytes are on their way."""
        await self._target.check(f"traffic tcp-recv {self._port} {self._file} > /dev/null 2>&1 &")
        await self._target.check(LISTENING.format(kind="t", port=self._port))
        await self._source.check(f"{self._sender} > {self._file} 2>&1 &")

    async def received(self) -> int:
        """Return how many bytes have come whole and in order. Fails when the connection ended or a byte was wrong."""
        text = (await self._target.check(f"cat {self._file}")).strip() or "0"
        if not text.isdigit():
            raise AssertionError(f"stream on port {self._port}: {text}; sender: {await self._complaint()}")
        return int(text)

    async def wait_beyond(self, count: int, seconds: float) -> int:
        """Wait until more than `count` bytes have come; return how many have."""
        try:
            async with asyncio.timeout(seconds):
                while (received := await self.received()) <= count:  # noqa: ASYNC110 (the guest can't call us)
                    await asyncio.sleep(0.02)
                return received
        except TimeoutError:
            what = f"no byte beyond {count} in {seconds:.0f} s; sender: {await self._complaint()}"
            raise AssertionError(f"stream on port {self._port}: {what}") from None

    async def _complaint(self) -> str:
        return (await self._source.run(f"cat {self._file}"))[1].strip()


async def udp_rounds(
    source: Host, target: Host, address: str, *, rounds: int, datagrams: int, size: int, gso: bool, port: int = 7
) -> None:
    """Let `source` send rounds of datagrams to `target`, which has `address`: each must come back whole.

    No more than one round is in flight, so that no queue overflows however slow the guests are. With `gso` the
    sender's kernel gets each round in one piece (UDP_SEGMENT). `port` is what the sender takes the echo's for.
    """
    await target.check("netstat -uln | grep -q ':7 ' || traffic udp-echo 7 > /tmp/echo 2>&1 &")
    await target.check(LISTENING.format(kind="u", port=7))
    words = f"traffic udp-ask {address} {port} {rounds} {datagrams} {size} {'gso' if gso else ''}"
    output = await source.check(words, seconds=100)
    assert f"{rounds * datagrams} datagrams there and back" in output


async def send_frames(source: Host, interface: str, frames: Sequence[bytes]) -> None:
    """Let `source` send frames as they are, from the destination's address on."""
    await source.check(f"traffic frame-send {interface} {' '.join(frame.hex() for frame in frames)}")
