# SPDX-License-Identifier: Apache-2.0
"""A Linux bridge with taps for QEMU, in a network namespace of its own.

The namespace has no name: a process holds it, and the QEMUs join it through that process (`launcher`). When the
last of them ends, the kernel takes the namespace, its taps and its bridge away, however the benchmark ended. No rule
of the host's firewall is in there; bridge-nf-call is off all the same, since it costs even without a rule. Needs
root and iproute2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import Self

DEADLINE = 10.0
TOOLS = ("ip", "unshare", "nsenter")


class BridgeError(Exception):
    """A bridge can't be had here; the message says why."""


class Bridge:
    """A bridge with the named taps, each with vnet_hdr and one queue, as QEMU makes them by itself."""

    def __init__(self, taps: list[str]) -> None:
        self._taps = taps
        self._holder: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise BridgeError(f"{', '.join(missing)} not found: apt-get install iproute2 util-linux")
        if os.geteuid() != 0 or not _exists("/dev/net/tun"):
            raise BridgeError("a bridge with taps needs root and /dev/net/tun")
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def launcher(self) -> list[str]:
        """The words that start a program in the namespace, by exec."""
        assert self._holder is not None
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]

    async def close(self) -> None:
        """Let go of the namespace; may be called again."""
        if self._holder is not None:
            with contextlib.suppress(ProcessLookupError):
                self._holder.kill()
            await self._holder.communicate()
            self._holder = None

    async def _start(self) -> None:
        # Prints a line when it is inside, and holds the namespace until its standard input ends.
        self._holder = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "--", "sh", "-c", "echo inside; read line"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        async with asyncio.timeout(DEADLINE):
            if await self._holder.stdout.readline() != b"inside\n":
                raise BridgeError("no network namespace can be made: unshare --net failed")
        await self._ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
        for family in ("iptables", "ip6tables", "arptables"):
            await self._inside("sh", "-c", f"! cd /proc/sys/net/bridge || echo 0 > bridge-nf-call-{family}")
        await self._ip("link", "set", "br0", "up")
        for tap in self._taps:
            await self._ip("tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
            await self._ip("link", "set", tap, "master", "br0", "up")

    async def _ip(self, *arguments: str) -> None:
        await self._inside("ip", *arguments)

    async def _inside(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.launcher,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(DEADLINE):
            output, _ = await process.communicate()
        if process.returncode != 0:
            raise BridgeError(f"{' '.join(arguments)} failed: {output.decode(errors='replace').strip()}")


def _exists(path: str) -> bool:
    return Path(path).exists()
