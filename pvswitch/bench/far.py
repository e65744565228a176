# SPDX-License-Identifier: Apache-2.0
"""The far side of an uplink: a host without a VM, which takes commands as a guest does (`Machine.check`).

It has network, processes and mounts of its own, and a root of busybox and a few programs, so that a command for a guest
means the same here: `/tmp` and `/www` are its own, and nothing that it leaves behind outlives it. Programs that only
look, as tcpdump, are started from outside by `launcher`. The tests and the benchmarks use it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pvswitch.namespace import DEADLINE, Namespace, NamespaceError, execute
from pvswitch.vm import find_busybox, shared_libraries

FOLDERS = ("bin", "dev", "proc", "sys", "tmp")


def build_root(folder: Path, programs: Sequence[str | Path]) -> Path:
    """Fill `folder` with busybox and programs of this host, by name or path, with their libraries; return it."""
    for name in FOLDERS:
        (folder / name).mkdir()
    shutil.copy(find_busybox(), folder / "bin/busybox")
    for program in programs:
        found = shutil.which(program)
        if found is None:
            raise NamespaceError(f"{program} not found on this host: install the package that holds it")
        shutil.copy(found, folder / "bin")
        for library in shared_libraries(Path(found)):
            target = folder / str(library).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    return folder


class FarHost(Namespace):
    """A host on the far side. Several may share a root: they share its files then."""

    KINDS = ("--mount", "--pid", "--fork", "--kill-child=KILL")

    def __init__(self, name: str, root: Path) -> None:
        """`name` is for messages, `root` what `build_root` has filled; nothing is made yet."""
        super().__init__()
        self.name = name
        self._root = root

    async def run(self, command: str, seconds: float = 30.0) -> tuple[int, str]:
        """Run a shell command; return its exit status and its output. After `seconds` it is ended (status 143)."""
        words = ["timeout", "-k", "1", str(round(seconds)), "sh", "-c", command]
        return await execute([*self._inside, "chroot", str(self._root), "/bin/busybox", *words], seconds + DEADLINE)

    async def check(self, command: str, seconds: float = 30.0) -> str:
        """Run a command that must succeed; return its output."""
        status, output = await self.run(command, seconds)
        if status != 0:
            raise NamespaceError(f"{self.name}: `{command}` ended with status {status}: {output.strip()}")
        return output

    @property
    def _inside(self) -> list[str]:
        kinds = {"net": "net", "mnt": "mount", "pid_for_children": "pid"}
        files = (f"--{option}=/proc/{self.holder}/ns/{kind}" for kind, option in kinds.items())
        return ["nsenter", *files, "--", "env", "-i", "PATH=/bin:/usr/bin:/usr/sbin:/sbin", "HOME=/"]

    async def _start(self) -> None:
        await super()._start()
        for words in (
            ("mount", "-t", "proc", "proc", f"{self._root}/proc"),
            ("mount", "-t", "sysfs", "sysfs", f"{self._root}/sys"),
            ("mount", "--bind", "/dev", f"{self._root}/dev"),
            ("mount", "-t", "tmpfs", "tmpfs", f"{self._root}/tmp"),
            ("chroot", str(self._root), "/bin/busybox", "--install", "-s", "/bin"),
        ):
            status, output = await execute([*self._inside, *words], DEADLINE)
            if status != 0:
                raise NamespaceError(f"{self.name}: `{' '.join(words)}` failed: {output.strip()}")
