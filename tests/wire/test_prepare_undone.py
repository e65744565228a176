# SPDX-License-Identifier: Apache-2.0
"""A change that fails in the middle leaves nothing behind: the taps it had made already are gone again.

The failures: the third of five taps is in use by another program (409), and a disk without room for the revision (507).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from pvswitch.namespace import Namespace, NamespaceMissing
from pvswitch.process import SwitchProcess
from tests.conftest import missing_peer
from tests.system.conftest import running_switch

TAPS = ("t1", "t2", "t3", "t4", "t5")
HOLD_A_TAP = """
import fcntl, struct, sys
tun = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))  # TUNSETIFF: IFF_TAP | IFF_NO_PI
print("held", flush=True)
sys.stdin.read()
"""


@pytest_asyncio.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            namespace = await stack.enter_async_context(Namespace())
        except NamespaceMissing as error:
            missing_peer(str(error))
        yield namespace


@contextlib.asynccontextmanager
async def another_program(namespace: Namespace, tap: str) -> AsyncIterator[None]:
    """A program that has a tap open."""
    process = await asyncio.create_subprocess_exec(
        *(*namespace.launcher, sys.executable, "-c", HOLD_A_TAP, tap),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"held\n"
        yield
    finally:
        await process.communicate(b"")


async def interfaces(namespace: Namespace) -> set[str]:
    return {link["ifname"] for link in json.loads(await namespace.command("ip", "-json", "link"))} - {"lo"}


def sockets(switch: SwitchProcess) -> list[str]:
    return sorted(path.name for path in (switch.runtime_dir / "ports").iterdir())


def descriptors(switch: SwitchProcess) -> list[str]:
    """What the switch has open, but for connections to its API and what its event loop uses."""
    found = []
    for entry in Path(f"/proc/{switch.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return sorted(name.partition(":")[0] for name in found if not name.startswith("socket:"))


async def change(switch: SwitchProcess, namespace: Namespace) -> tuple[int, Any]:
    """Add a vhost-user port and five taps at once."""
    taps = {name: {"type": "tap", "ifname": name, "netns": str(namespace.path)} for name in TAPS}
    patch = {"ports": {"vm2": {}, **taps}}
    return await switch.request("PATCH", "/api/v1/config", patch, headers={"If-Match": "*"})


async def test_the_third_of_five_taps_is_in_use(namespace: Namespace) -> None:
    async with running_switch({"bridges": {"br0": {}}, "ports": {"vm1": {}}}) as switch:
        before = await switch.get("/config"), await switch.get("/config/revisions"), sockets(switch)
        async with another_program(namespace, "t3"):
            open_before = descriptors(switch)
            for _ in range(3):
                status, problem = await change(switch, namespace)
                assert status == 409
                assert [error["pointer"] for error in problem["errors"]] == ["#/ports/t3"]
                assert "t3" in problem["detail"]
                assert "in use" in problem["detail"]
                assert await interfaces(namespace) == {"t3"}
                assert (await switch.get("/config"), await switch.get("/config/revisions"), sockets(switch)) == before
            assert descriptors(switch) == open_before
        assert await interfaces(namespace) == set()
        status, _ = await change(switch, namespace)
        assert status == 200
        assert await interfaces(namespace) == set(TAPS)
        assert sockets(switch) == ["vm1.sock", "vm2.sock"]
        for name in TAPS:
            await switch.wait_link(name)
    assert await interfaces(namespace) == set()


async def test_a_disk_without_room_takes_prepared_taps_back(namespace: Namespace) -> None:
    switch = SwitchProcess({"bridges": {"br0": {}}, "ports": {"vm1": {}}})
    state = switch.folder / "state"
    state.mkdir()
    await asyncio.to_thread(subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(state)], check=True)
    try:
        await switch.start()
        with contextlib.suppress(OSError), (state / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        status, problem = await change(switch, namespace)
        assert (status, problem["type"]) == (507, "/problems/insufficient-storage")
        assert await interfaces(namespace) == set()
        assert sockets(switch) == ["vm1.sock"]
        (state / "filler").unlink()
        status, _ = await change(switch, namespace)
        assert status == 200
        assert await interfaces(namespace) == set(TAPS)
        await switch.kill()
        await switch.start(resume=True)
        for name in TAPS:
            await switch.wait_link(name)
        assert await interfaces(namespace) == set(TAPS)
    finally:
        await switch.close()
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(state)], check=False)
