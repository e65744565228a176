# SPDX-License-Identifier: Apache-2.0
"""DPDK's testpmd, driven through its own prompt over pipes, where every wait has a deadline.

`Testpmd` is a traffic generator: virtio-user front ends whose frames circle through the switch. `VhostLoop` is the
other side: vhost-user ports that testpmd only joins in pairs ("io"), which is what a switch costs without switching.
The tests and the benchmarks use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pvswitch.bench.errors import BenchError, MissingPeer

PROMPT = b"testpmd> "
DEADLINE = 60.0
PROGRAM = "dpdk-testpmd"
MEMORY_MB = 512


class TestpmdError(BenchError):
    """Testpmd ended, or did not answer in time; the message ends with what it printed."""

    __test__ = False


@dataclass(frozen=True)
class PortCounters:
    """One port's counters as testpmd sees them (rx: from the switch)."""

    rx_packets: int
    rx_bytes: int
    rx_missed: int
    rx_errors: int
    rx_nombuf: int
    tx_packets: int
    tx_bytes: int
    tx_errors: int
    rx_pps: int


class TestpmdProcess:
    """A testpmd that waits at its prompt. Use it as `async with`: it is killed at the end."""

    __test__ = False

    def __init__(self, *, eal: Sequence[str], options: Sequence[str], huge: bool, program: str = PROGRAM) -> None:
        """`eal` are the words for DPDK, `options` those for testpmd itself; without `huge` it has plain memory."""
        memory = ["--in-memory", "--single-file-segments"] if huge else ["--no-huge"]
        self._program = program
        self._arguments = [
            *("setpriv", "--pdeathsig", "KILL", "--", "stdbuf", "-oL", program),
            *("--no-pci", "--no-telemetry", "-m", str(MEMORY_MB), *memory, *eal),
            *("--", "-i", "--nb-cores=1", *options),
        ]
        self._process: asyncio.subprocess.Process | None = None
        self.transcript = ""

    async def __aenter__(self) -> Self:
        """Start it; raises MissingPeer where it isn't installed."""
        if shutil.which(self._program) is None:
            raise MissingPeer(f"{self._program} not found: apt-get install dpdk-dev")
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            await self._until_prompt()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill it if it still runs."""
        await self.kill()

    async def kill(self) -> None:
        """Kill testpmd and wait for its end; may be called again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()
            self._process = None

    async def quit(self) -> None:
        """Let testpmd close its ports and end by itself."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"quit\n")
        async with asyncio.timeout(DEADLINE):
            output, _ = await self._process.communicate()
        self.transcript += output.decode(errors="replace")
        self._process = None

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        assert self._process is not None
        return self._process.pid

    async def command(self, line: str) -> str:
        """Type one line; return what testpmd prints until its next prompt."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return await self._until_prompt()

    async def counters(self) -> list[PortCounters]:
        """Return the counters of all ports; the rate is that since the call before."""
        output = await self.command("show port stats all")
        blocks = re.split(r"NIC statistics for port \d+", output)[1:]
        return [_counters(block) for block in blocks]

    async def _until_prompt(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(DEADLINE):
                output = (await self._process.stdout.readuntil(PROMPT)).decode(errors="replace")
        except asyncio.IncompleteReadError as error:
            text = self.transcript + error.partial.decode(errors="replace")
            raise TestpmdError(f"testpmd ended:\n{text[-3000:]}") from None
        except TimeoutError:
            raise TestpmdError(f"testpmd did not answer in {DEADLINE} s:\n{self.transcript[-3000:]}") from None
        self.transcript += output
        return output


class Testpmd(TestpmdProcess):
    """The generator: one virtio-user port per socket, each of which sends to the next one."""

    def __init__(
        self,
        sockets: Sequence[Path],
        *,
        mrg_rxbuf: bool = True,
        packed: bool = False,
        in_order: bool = False,
        queue_size: int = 1024,
        huge: bool = True,
        lcores: str = "0@1,1@1",
        prefix: str = "pvswitch-gen",
        program: str = PROGRAM,
    ) -> None:
        """Nothing is started yet; `lcores` are DPDK's words for where its main and its forwarding thread run."""
        macs = [f"00:11:22:33:44:{index:02x}" for index in range(len(sockets))]
        devices = [
            f"--vdev=net_virtio_user{index},path={path},queues=1,queue_size={queue_size},mac={mac},"
            f"mrg_rxbuf={mrg_rxbuf:d},packed_vq={packed:d},in_order={in_order:d}"
            for index, (path, mac) in enumerate(zip(sockets, macs, strict=True))
        ]
        # Each port sends to the next one, so that a switch which has learned both never floods.
        peers = [f"--eth-peer={index},{macs[(index + 1) % len(macs)]}" for index in range(len(macs))]
        super().__init__(
            eal=["--lcores", lcores, "--file-prefix", prefix, *devices],
            options=[f"--txd={queue_size}", f"--rxd={queue_size}", *peers, "--total-num-mbufs=16384"],
            huge=huge,
            program=program,
        )


class VhostLoop(TestpmdProcess):
    """The peer: testpmd listens on the sockets, and joins the first port to the second, the third to the fourth."""

    def __init__(self, sockets: Sequence[Path], *, cpu: int, frame: int, gso: bool = False, huge: bool = True) -> None:
        """`frame` is the largest frame to come; a buffer of testpmd's holds a whole one, but for GSO frames.

        With `gso` segmentation offloads are offered, and handed through as they come.
        """
        extra = ",tso=1,legacy-ol-flags=1" if gso else ""
        devices = [f"--vdev=net_vhost{index},iface={path},queues=1{extra}" for index, path in enumerate(sockets)]
        options = ["--forward-mode=io", "--txd=1024", "--rxd=1024"]
        if frame > 1518 and not gso:
            room = (frame + 128 + 1023) // 1024 * 1024
            options += [f"--mbuf-size={room}", f"--total-num-mbufs={MEMORY_MB * 700_000 // room}"]
            options += [f"--max-pkt-len={room}"]
        super().__init__(
            eal=["--lcores", f"0@{cpu},1@{cpu}", "--file-prefix", "pvswitch-io", *devices], options=options, huge=huge
        )


def _counters(block: str) -> PortCounters:
    def number(label: str) -> int:
        found = re.search(rf"{label}: +(\d+)", block)
        if found is None:
            raise TestpmdError(f"no {label} in testpmd's statistics:\n{block}")
        return int(found[1])

    return PortCounters(
        rx_packets=number("RX-packets"),
        rx_bytes=number("RX-bytes"),
        rx_missed=number("RX-missed"),
        rx_errors=number("RX-errors"),
        rx_nombuf=number("RX-nombuf"),
        tx_packets=number("TX-packets"),
        tx_bytes=number("TX-bytes"),
        tx_errors=number("TX-errors"),
        rx_pps=number("Rx-pps"),
    )
