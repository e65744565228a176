# SPDX-License-Identifier: Apache-2.0
"""The demo as its users see it: with guests and uplink, without root, without QEMU; and that nothing of it stays."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import aiohttp
import pytest

from tests.conftest import RequirePeer, missing_peer
from tests.system.footprint import leftovers

pytestmark = pytest.mark.timeout(240)

DEMO = (sys.executable, "-c", "from pvswitch import demo; raise SystemExit(demo.main())")
# A user of no rights in a namespace of users of its own, who may read what root may: no uplink can be made.
UNPRIVILEGED = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")


class Demo:
    """A demo that runs with its temporary folders in `folder`; as `async with` it is killed at the end."""

    def __init__(self, folder: Path, launcher: Sequence[str] = (), **environment: str) -> None:
        self._folder = folder
        self._words = ("setpriv", "--pdeathsig", "KILL", "--", *launcher, *DEMO)
        self._environment = {**os.environ, "TMPDIR": str(folder), "NO_COLOR": "1", **environment}
        self._process: asyncio.subprocess.Process | None = None
        self.output = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._words,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()

    async def until(self, pattern: str, seconds: float = 120.0) -> str:
        """Read on until a line holds the pattern; return its first group."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            while line := (await self._process.stdout.readline()).decode():
                self.output += line
                if found := re.search(pattern, line):
                    return found[1]
        raise AssertionError(f"the demo ended without {pattern!r}:\n{self.output}")

    async def ended(self, seconds: float = 120.0) -> int:
        """Read the rest; return the exit status, with nothing left behind."""
        assert self._process is not None
        async with asyncio.timeout(seconds):
            rest, _ = await self._process.communicate()
        self.output += rest.decode()
        assert not leftovers(self._folder)
        assert self._process.returncode is not None
        return self._process.returncode

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)


async def test_guests_uplink_and_pages(require_peer: RequirePeer, qemu: str, short_path: Path) -> None:
    require_peer("iperf3", package="iperf3")
    if os.geteuid() != 0:
        missing_peer("an uplink needs a network namespace: run the tests as root")
    async with Demo(short_path) as demo, aiohttp.ClientSession() as session:
        api = await demo.until(r"API: (\S+) and")
        docs = await demo.until(r"docs page: (\S+)")
        for url in (f"{api}/ports", docs):
            async with session.get(url) as answer:
                assert answer.status == 200
        assert await demo.ended() == 0, demo.output
    assert "vm1 pings the host by the tap: 5 of 5 answered" in demo.output
    for target in ("vm2", "the host"):
        found = re.search(rf"iperf3, vm1 to {target}: ([\d.]+) Gbit/s, and back ([\d.]+)", demo.output)
        assert found, demo.output
        assert float(found[1]) > 0 < float(found[2])
    assert "The guests talked" in demo.output


async def test_without_root_there_is_no_uplink(qemu: str, short_path: Path) -> None:
    async with Demo(short_path, UNPRIVILEGED) as demo:
        assert await demo.until(r"(No uplink here: .* root)")
        assert await demo.ended() == 0, demo.output
    assert "the host" not in demo.output
    assert "The guests talked" in demo.output


async def test_without_qemu_driver_guests_talk(short_path: Path) -> None:
    async with Demo(short_path, PVSWITCH_QEMU="no-such-program") as demo:
        assert await demo.ended() == 0, demo.output
    assert "Two driver guests (no VM)" in demo.output
    assert "The guests talked" in demo.output


async def test_ctrl_c_ends_it_early(qemu: str, short_path: Path) -> None:
    async with Demo(short_path) as demo:
        await demo.until(r"(docs page)")
        demo.interrupt()
        await demo.ended(30)
    assert "Stopped." in demo.output
    assert "Traceback" not in demo.output
