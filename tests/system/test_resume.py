# SPDX-License-Identifier: Apache-2.0
"""`pvswitch run --resume` finds what was last acknowledged: after kill -9 at any moment, on a full disk, after damage.

`PVSWITCH_TEST_KILLS` is the number of kills; `-s` shows the seed, which `PVSWITCH_TEST_SEED` repeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from pvswitch.process import SwitchProcess, SwitchProcessError
from tests.system.conftest import from_environment

KILLS = from_environment("PVSWITCH_TEST_KILLS", 10)
SEED = from_environment("PVSWITCH_TEST_SEED", random.randrange(1 << 31))
pytestmark = pytest.mark.timeout(120 + 10 * KILLS)

EDIT_SECONDS = 0.12  # of edits before a kill, at most
START_SECONDS = 1.0  # of a start before a kill, at most
CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}}}


@pytest_asyncio.fixture
async def switch() -> AsyncIterator[SwitchProcess]:
    """A switch that each test starts in its own way."""
    switch = SwitchProcess(CONFIG)
    try:
        yield switch
    finally:
        await switch.close()


async def edit(switch: SwitchProcess, document: dict[str, Any], if_match: str = "*") -> tuple[int, Any]:
    """Change the configuration by a merge patch."""
    return await switch.request("PATCH", "/api/v1/config", document, headers={"If-Match": if_match})


async def ports(switch: SwitchProcess) -> dict[str, dict[str, str]]:
    """The labels of every port."""
    return {name: port["labels"] for name, port in (await switch.get("/config"))["ports"].items()}


async def end(switch: SwitchProcess, status: int) -> str:
    """Wait until a start has failed; what it said last."""
    process = switch._process
    assert process is not None
    async with asyncio.timeout(20):
        assert await process.wait() == status
    await switch.kill()
    return switch.log().splitlines()[-1]


class Client:
    """Changes ports of its own, one edit after the other, until the switch has gone."""

    def __init__(self, switch: SwitchProcess, name: str, rng: random.Random) -> None:
        self.switch, self.name, self.rng = switch, name, rng
        self.known: dict[str, dict[str, str]] = {}  # what was acknowledged
        self.wanted: dict[str, dict[str, str]] = {}  # and with the edit under way
        self.edits = 0

    async def run(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, SwitchProcessError):  # killed
            while True:
                port = f"{self.name}{self.rng.randrange(4)}"
                labels = {"edit": str(self.edits), "x": "y" * self.rng.choice((1, 5000))}
                gone = port in self.known and self.rng.random() < 0.3
                self.wanted = {key: value for key, value in self.known.items() if key != port}
                if not gone:
                    self.wanted[port] = labels
                status, answer = await edit(self.switch, {"ports": {port: None if gone else {"labels": labels}}})
                assert status == 200, answer
                self.known = self.wanted
                self.edits += 1

    def judge(self, found: dict[str, dict[str, str]]) -> None:
        mine = {name: labels for name, labels in found.items() if name.startswith(self.name)}
        assert mine in (self.known, self.wanted), "neither what was acknowledged nor what was under way"
        self.known = self.wanted = mine


async def test_kills_lose_nothing_that_was_acknowledged(switch: SwitchProcess) -> None:
    rng = random.Random(SEED)
    clients = [Client(switch, name, rng) for name in "ab"]
    revision = 0
    await switch.start()
    for _ in range(KILLS):
        under_way = [asyncio.create_task(client.run()) for client in clients]
        await asyncio.sleep(rng.uniform(0, EDIT_SECONDS))  # the moment of the kill is what is tried here
        await switch.kill()
        await asyncio.gather(*under_way)
        if rng.random() < 0.25:
            await switch.spawn(resume=True)
            await asyncio.sleep(rng.uniform(0, START_SECONDS))
            await switch.kill()
        await switch.start(resume=True)
        found = await ports(switch)
        assert found["vm1"] == {}
        for client in clients:
            client.judge(found)
        last = (await switch.get("/config/revisions?limit=1"))["items"][0]["number"]
        assert last >= revision
        revision = last
    print(f"seed {SEED}: {KILLS} kills, {sum(client.edits for client in clients)} edits, {revision} revisions")
    assert sum(client.edits for client in clients) >= KILLS // 2
    assert "damaged" not in switch.log()
    assert "Traceback" not in switch.log()


async def test_the_file_is_for_a_start_without_resume(switch: SwitchProcess) -> None:
    await switch.start(resume=True)  # nothing to resume yet
    await edit(switch, {"ports": {"vm2": {}}})
    await switch.stop()
    await switch.start(resume=True)
    assert set(await ports(switch)) == {"vm1", "vm2"}
    await switch.kill()
    await switch.start()
    assert set(await ports(switch)) == {"vm1"}
    await switch.kill()
    await switch.start(resume=True)  # what was in force then
    assert set(await ports(switch)) == {"vm1"}
    actors = [item["actor"] for item in (await switch.get("/config/revisions"))["items"]]
    assert actors[0] == actors[2] == f"start -c {switch.config_file}"


async def test_a_reload_is_a_revision(switch: SwitchProcess) -> None:
    await switch.start()
    document = json.loads(switch.config_file.read_text())
    document["ports"]["vm2"] = {}
    switch.config_file.write_text(json.dumps(document))
    os.kill(switch.pid, signal.SIGHUP)

    async def reloaded() -> bool:
        return "vm2" in await ports(switch)

    await switch.wait_until(reloaded, "the reload", 20)
    newest = (await switch.get("/config/revisions?limit=1"))["items"][0]
    assert (newest["number"], newest["actor"]) == (2, f"SIGHUP, {switch.config_file}")
    switch.config_file.write_text(json.dumps({**document, "ports": {}}))
    await switch.kill()
    await switch.start(resume=True)
    assert set(await ports(switch)) == {"vm1", "vm2"}


async def test_what_takes_a_restart_comes_from_the_file(switch: SwitchProcess) -> None:
    await switch.start()
    await edit(switch, {"ports": {"vm2": {}}})
    await switch.kill()
    document = json.loads(switch.config_file.read_text())
    switch.config_file.write_text(json.dumps({**document, "datapath": {"workers": 2}}))
    await switch.start(resume=True)
    config = await switch.get("/config")
    assert (config["datapath"]["workers"], set(config["ports"])) == (2, {"vm1", "vm2"})
    assert len((await switch.get("/config/revisions"))["items"]) == 3


async def test_a_damaged_revision_is_left_out(switch: SwitchProcess) -> None:
    await switch.start()
    await edit(switch, {"ports": {"vm2": {}}})
    await edit(switch, {"ports": {"vm3": {}}})
    await switch.kill()
    newest = switch.folder / "state" / "revision-0000000003.json"
    newest.write_bytes(newest.read_bytes()[:100])
    await switch.start(resume=True)
    assert set(await ports(switch)) == {"vm1", "vm2"}
    assert str(newest) in switch.log()


async def test_what_can_not_be_resumed_is_one_clear_line(switch: SwitchProcess) -> None:
    await switch.start()
    await edit(switch, {"ports": {"vm2": {"rxq_affinity": [0]}}})
    await edit(switch, {"ports": {"vm2": {"queues": 1}}})
    await switch.kill()
    document = json.loads(switch.config_file.read_text())
    switch.config_file.write_text(json.dumps({**document, "api": {"socket": f"{switch.runtime_dir}/ports/vm2.sock"}}))
    await switch.spawn(resume=True)
    said = await end(switch, 1)
    assert said.startswith(f"revision 3 in {switch.folder}/state can't be resumed: ")
    assert "start without --resume" in said


async def test_a_second_switch_on_the_same_folder_is_refused(switch: SwitchProcess) -> None:
    await switch.start()
    other = SwitchProcess({**CONFIG, "state_dir": str(switch.folder / "state")})
    try:
        await other.spawn()
        said = await end(other, 1)
    finally:
        await other.close()
    assert said == f"another switch keeps its revisions in {switch.folder}/state: stop it, or set another `state_dir`"


# ---- a full disk ----


@pytest.fixture
def small_disk(switch: SwitchProcess) -> Iterator[Path]:
    """A file system of 64 KiB in the place of the switch's state_dir."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    folder = switch.folder / "state"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write until nothing more fits."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def revisions(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("revision*")}


async def test_a_full_disk_refuses_edits_and_loses_nothing(switch: SwitchProcess, small_disk: Path) -> None:
    await switch.start()
    await edit(switch, {"ports": {"vm2": {}}})
    filler, before, config = fill(small_disk), revisions(small_disk), await switch.get("/config")
    for method, path, body in (
        ("PATCH", "/ports/vm1", {"mtu": 9000}),
        ("PUT", "/ports/vm3", {}),
        ("DELETE", "/ports/vm2", None),
        ("PUT", "/bridges/br1", {}),
    ):
        status, problem = await switch.request(method, f"/api/v1{path}", body)
        assert (status, problem["type"]) == (507, "/problems/insufficient-storage"), path
        assert str(small_disk) in problem["detail"]
        assert "free space there" in problem["detail"]
    assert await switch.get("/config") == config
    assert revisions(small_disk) == before
    assert sorted(path.name for path in (switch.runtime_dir / "ports").iterdir()) == ["vm1.sock", "vm2.sock"]
    await switch.kill()
    await switch.start(resume=True)  # takes no space
    assert await switch.get("/config") == config
    filler.unlink()
    status, _ = await switch.request("PUT", "/api/v1/ports/vm3", {})
    assert status == 201
    await switch.kill()
    await switch.start(resume=True)
    assert set(await ports(switch)) == {"vm1", "vm2", "vm3"}


async def test_a_disk_that_became_read_only(switch: SwitchProcess, small_disk: Path) -> None:
    await switch.start()
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, problem = await switch.request("PUT", "/api/v1/ports/vm3", {})
    assert (status, "make it writable" in problem["detail"]) == (507, True)
    assert set(await ports(switch)) == {"vm1"}
    await switch.kill()
    for resume in (False, True):
        await switch.spawn(resume=resume)
        assert f"revisions can't be kept in {small_disk}" in await end(switch, 1)


async def test_a_start_on_a_full_disk_that_needs_a_revision(switch: SwitchProcess, small_disk: Path) -> None:
    filler = fill(small_disk)
    await switch.spawn()
    said = await end(switch, 1)
    assert said.startswith(f"the revision can't be written to {small_disk}: ")
    assert not switch.leftovers()
    filler.unlink()
    await switch.start()
