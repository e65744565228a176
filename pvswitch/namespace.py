# SPDX-License-Identifier: Apache-2.0
"""A network namespace for a while, as the far side of an uplink: for the demo, the tests and the benchmarks.

It has no name: a process holds it, and others enter it through that process. When the last process and descriptor in
it are gone the kernel takes it away with all that is in it, however its maker ended. A switch finds it by `path`, which
the configuration takes as `netns`. Needs root and iproute2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
from pathlib import Path
from typing import ClassVar, Self

from pvswitch.errors import PvswitchError

DEADLINE = 10.0
TOOLS = ("ip", "unshare", "nsenter", "setpriv")


class NamespaceError(PvswitchError):
    """A command in the namespace failed; the message says how."""


class NamespaceMissing(NamespaceError):
    """No namespace, or not what belongs into it, can be had here; the message says what to do."""


class Namespace:
    """A network namespace with its loopback up. Use it as `async with`: its holder is killed at the end."""

    # What a subclass wants of its own besides the network, as options of unshare(1).
    KINDS: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        """Nothing is made yet."""
        self._holder: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Make it; raises NamespaceMissing where that can't be."""
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing:
            raise NamespaceMissing(f"{', '.join(missing)} not found: apt-get install iproute2 util-linux")
        if os.geteuid() != 0:
            raise NamespaceMissing("a network namespace needs root: run this as root")
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of it."""
        await self.close()

    @property
    def holder(self) -> int:
        """The process that holds it."""
        assert self._holder is not None
        return self._holder.pid

    @property
    def path(self) -> Path:
        """The file that stands for it, as long as the holder lives."""
        return Path(f"/proc/{self.holder}/ns/net")

    @property
    def launcher(self) -> list[str]:
        """The words that start a program in it, by exec."""
        return ["nsenter", f"--net={self.path}", "--"]

    async def close(self) -> None:
        """Let go of it; may be called again."""
        if self._holder is not None:
            with contextlib.suppress(ProcessLookupError):
                self._holder.kill()
            await self._holder.communicate()
            self._holder = None

    async def command(self, *words: str, seconds: float = DEADLINE) -> str:
        """Run a program in it and return what it prints; raises NamespaceError unless it succeeds."""
        status, output = await execute([*self.launcher, *words], seconds)
        if status != 0:
            raise NamespaceError(f"`{shlex.join(words)}` failed: {output.strip()}")
        return output

    async def ip(self, line: str) -> None:
        """Run ip(8) with the words of `line`."""
        await self.command("ip", *shlex.split(line))

    async def _start(self) -> None:
        # Prints a line when it is inside, and holds the namespace until its standard input ends. As first process of a
        # namespace of processes it inherits orphans: with SIGCHLD ignored no zombie of them stays.
        self._holder = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", *self.KINDS, "--"),
            *("sh", "-c", "echo inside; exec env --ignore-signal=CHLD cat"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        async with asyncio.timeout(DEADLINE):
            if await self._holder.stdout.readline() != b"inside\n":
                raise NamespaceMissing("no network namespace can be made here: unshare --net failed")
        await self.ip("link set lo up")


async def execute(words: list[str], seconds: float) -> tuple[int, str]:
    """Run a program, at most for so long; return its exit status and its output (both streams, as text)."""
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        raise NamespaceError(f"`{shlex.join(words)}` took more than {seconds:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")
