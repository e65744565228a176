# SPDX-License-Identifier: Apache-2.0
"""The revisions on disk, the order in which an edit becomes one, and the API on them."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvswitch import revisions as store
from pvswitch.controller import Controller, etag_of
from pvswitch.errors import PvswitchError
from pvswitch.model import SwitchConfig
from pvswitch.revisions import Revisions, StorageError
from pvswitch.validation import parse
from tests.control.conftest import Switch
from tests.control.fake import FakeDataplane

V1 = "/api/v1"
REVISIONS = f"{V1}/config/revisions"


def config(**ports: Any) -> SwitchConfig:
    return parse({"runtime_dir": "/r", "state_dir": "/s", "bridges": {"br0": {}}, "ports": ports})


def write(revisions: Revisions, *documents: SwitchConfig) -> None:
    for document in documents:
        revisions.write(document, etag_of(document), "me", ["a change"])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- the store ----


def test_what_was_written_is_there_for_the_next_process(tmp_path: Path) -> None:
    with Revisions(tmp_path / "deep" / "state") as revisions:
        assert revisions.last() is None
        write(revisions, config(), config(vm1={}))
    with Revisions(tmp_path / "deep" / "state") as again:
        last = again.last()
        assert last is not None
        assert (last.number, last.actor, last.summary) == (2, "me", ["a change"])
        assert (again.read(2), again.read(1)) == (config(vm1={}).document(), config().document())
        assert [revision.number for revision in again.all()] == [1, 2]
        with pytest.raises(KeyError):
            again.read(3)


def test_the_last_ones_are_kept_and_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT", 3)
    with Revisions(tmp_path) as revisions:
        write(revisions, *(config(**{f"p{i}": {}}) for i in range(5)))
        assert [revision.number for revision in revisions.all()] == [3, 4, 5]
        assert len(content(tmp_path)) == 3
    with Revisions(tmp_path) as again:
        write(again, config())
        assert [revision.number for revision in again.all()] == [4, 5, 6]


def test_large_ones_are_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT_ANYWAY", 2)
    monkeypatch.setattr(store, "KEPT_BYTES", 10_000)
    large = config(**{f"p{i}": {"labels": {"note": "x" * 1000}} for i in range(3)})
    with Revisions(tmp_path) as revisions:
        write(revisions, *[large] * 5)
        sizes = [len(raw) for raw in content(tmp_path).values()]
        assert 2 <= len(sizes) == 10_000 // sizes[0] < 5
        monkeypatch.setattr(store, "KEPT_BYTES", 1)
        write(revisions, large)
        assert [revision.number for revision in revisions.all()] == [5, 6]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-70],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw.replace(b'"vm2"', b'"vm3"'),
        lambda raw: raw.replace(b'"actor": "me"', b'"actor": "it"'),
        lambda raw: raw + b"more",
        lambda raw: b"\0" * len(raw),
    ],
)
def test_a_damaged_file_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    with Revisions(tmp_path) as revisions:
        write(revisions, config(vm1={}), config(vm2={}))
    path = tmp_path / "revision-0000000002.json"
    path.write_bytes(damage(path.read_bytes()))
    with Revisions(tmp_path) as again:
        last = again.last()
        assert last is not None
        assert last.number == 1
        assert str(path) in capsys.readouterr().out
        write(again, config())  # its number is not used again
        assert [revision.number for revision in again.all()] == [1, 3]
        with pytest.raises((StorageError, KeyError)):
            again.read(2)


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / store._TEMPORARY).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    with Revisions(tmp_path):
        assert set(content(tmp_path)) == {"notes.txt"}


def test_one_folder_is_for_one_switch(tmp_path: Path) -> None:
    with Revisions(tmp_path), pytest.raises(PvswitchError, match="another switch keeps its revisions in") as caught:
        Revisions(tmp_path)
    assert "\n" not in str(caught.value)
    Revisions(tmp_path).close()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PvswitchError, match="set `state_dir`"):
            Revisions(path)


def test_a_long_summary_is_cut(tmp_path: Path) -> None:
    with Revisions(tmp_path) as revisions:
        revision = revisions.write(config(), "e", "me", ["x" * 1000, *(f"change {i}" for i in range(1000))])
    assert len(revision.summary) == store.MAX_SUMMARY
    assert len(revision.summary[0]) == store.MAX_LINE
    assert revision.summary[-1] == "and 982 more"


# ---- what can fail while one is written ----

CALLS = ("open", "fsync", "rename", "fsync of the folder")


def break_call(monkeypatch: pytest.MonkeyPatch, which: str, code: int) -> None:
    """Let one of the system calls of a write fail with `code`."""
    name = which.partition(" ")[0]
    real = getattr(os, name)
    left = {"fsync of the folder": 2}.get(which, 1)

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("which", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO])
async def test_an_edit_whose_revision_fails_changes_nothing(
    tmp_path: Path, revisions: Revisions, monkeypatch: pytest.MonkeyPatch, which: str, code: int
) -> None:
    dataplane = FakeDataplane()
    controller = Controller(dataplane, config(), revisions)
    await controller.start()
    before, calls, etag = content(revisions.folder), len(dataplane.calls), controller.etag
    with monkeypatch.context() as broken:
        break_call(broken, which, code)
        with pytest.raises(StorageError) as caught:
            await controller.apply(config(vm1={}))
    assert str(revisions.folder) in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    assert dataplane.calls[calls:] == ["prepare", "undo"]
    assert (controller.config, controller.etag, content(revisions.folder)) == (config(), etag, before)
    await controller.apply(config(vm1={}))
    assert dataplane.calls[calls:] == ["prepare", "undo", "prepare", "commit", "retire"]
    last = revisions.last()
    assert last is not None
    assert last.etag == controller.etag == etag_of(config(vm1={}))


async def test_a_revision_is_on_disk_before_it_is_in_force(tmp_path: Path, revisions: Revisions) -> None:
    class Watching(FakeDataplane):
        async def commit(self, prepared: object) -> None:
            last = revisions.last()
            assert last is not None
            assert isinstance(prepared, SwitchConfig)
            assert revisions.read(last.number) == prepared.document()
            await super().commit(prepared)

    controller = Controller(Watching(), config(), revisions)
    await controller.start()
    await controller.apply(config(vm1={}))
    assert len(revisions) == 2


async def test_what_can_not_be_prepared_leaves_no_revision(revisions: Revisions) -> None:
    controller = Controller(FakeDataplane(broken={"vm1"}), config(), revisions)
    await controller.start()
    with pytest.raises(PvswitchError):
        await controller.apply(config(vm1={}))
    await controller.edit(lambda _: config(vm2={}), dry_run=True)
    assert len(revisions) == 1


async def test_a_start_makes_a_revision_only_where_it_differs(revisions: Revisions) -> None:
    for document, expected in ((config(), 1), (config(), 1), (config(vm1={}), 2), (config(), 3)):
        await Controller(FakeDataplane(), document, revisions).start("start -c lab.yaml")
        last = revisions.last()
        assert last is not None
        assert (last.number, last.actor, last.etag) == (expected, "start -c lab.yaml", etag_of(document))


async def test_the_loop_goes_on_while_the_disk_is_slow(revisions: Revisions, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()
    real = os.fsync

    def slow(fd: int) -> None:
        assert go.wait(20)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    start = asyncio.create_task(Controller(FakeDataplane(), config(), revisions).start())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not start.done()
    go.set()
    async with asyncio.timeout(20):
        await start


# ---- over HTTP ----


async def test_every_edit_is_a_revision(switch: Switch) -> None:
    await switch.ask("PUT", f"{V1}/ports/vm3", json={"bridge": "lan"})
    await switch.ask("DELETE", f"{V1}/ports/vm3")
    await switch.ask("DELETE", f"{V1}/ports/vm3")
    items = (await switch.ask("GET", REVISIONS)).body["items"]
    assert [item["number"] for item in items] == [3, 2, 1]
    assert [item["summary"] for item in items[:2]] == [["remove port vm3"], ["add port vm3 on bridge lan"]]
    assert items[0]["etag"] == switch.controller.etag
    assert str(os.getpid()) in items[0]["actor"]
    page = (await switch.ask("GET", f"{REVISIONS}?limit=2")).body
    assert [item["name"] for item in page["items"]] == ["3", "2"]
    rest = (await switch.ask("GET", REVISIONS, params={"cursor": page["next"]})).body
    assert ([item["name"] for item in rest["items"]], rest["next"]) == (["1"], None)
    one = (await switch.ask("GET", f"{REVISIONS}/2")).body
    assert one["config"]["ports"]["vm3"]["bridge"] == "lan"
    for unknown in ("4", "0", "-1", "x", "99999999999999"):
        assert (await switch.ask("GET", f"{REVISIONS}/{unknown}")).status == 404


async def test_a_revision_is_restored(switch: Switch) -> None:
    first = switch.controller.config
    await switch.ask("PUT", f"{V1}/ports/vm3", json={"bridge": "lan"})
    path, now = f"{REVISIONS}/1/restore", f'"{switch.controller.etag}"'
    assert (await switch.ask("POST", path)).status == 428
    assert (await switch.ask("POST", path, headers={"If-Match": '"0"'})).status == 412
    dry = await switch.ask("POST", f"{path}?dry_run=true", headers={"If-Match": now})
    assert [change["detail"] for change in dry.body["changes"]] == ["remove port vm3"]
    assert (len(switch.revisions), "vm3" in switch.controller.config.ports) == (2, True)
    real = await switch.ask("POST", path, headers={"If-Match": now})
    assert (real.status, real.body) == (200, dry.body)
    assert switch.controller.config == first
    assert real.headers["ETag"] == f'"{switch.controller.etag}"'
    assert len(switch.revisions) == 3
    again = await switch.ask("POST", path, headers={"If-Match": "*"})
    assert (again.body["changes"], len(switch.revisions)) == ([], 3)
    assert (await switch.ask("POST", f"{REVISIONS}/9/restore", headers={"If-Match": "*"})).status == 404


async def test_a_revision_of_another_version_is_a_conflict(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    document = switch.controller.config.document() | {"obsolete": 1, "socket_dir": "/elsewhere"}
    monkeypatch.setattr(switch.revisions, "read", lambda number: document)
    answer = await switch.ask("POST", f"{REVISIONS}/1/restore", headers={"If-Match": "*"})
    assert answer.status == 409
    assert "obsolete" in answer.body["detail"]
    del document["obsolete"]  # what takes a restart stays as it is in this process
    document["ports"] = {}
    answer = await switch.ask("POST", f"{REVISIONS}/1/restore", headers={"If-Match": "*"})
    assert [change["pointer"] for change in answer.body["changes"]] == ["#/ports/vm1", "#/ports/vm2"]


def test_sockets_at_their_default_follow_socket_dir() -> None:
    """A revision names every socket; what takes a restart is all the same the process's."""
    old = config(vm1={}, vm2={"socket": "/own/vm2.sock"}, up={"type": "tap", "ifname": "tap0"})
    now = parse({"runtime_dir": "/new", "state_dir": "/s"})
    adopted = store.adopted(old.document(), now, SwitchConfig.RESTART)
    assert (adopted.port_socket("vm1"), adopted.port_socket("vm2")) == (
        Path("/new/ports/vm1.sock"),
        Path("/own/vm2.sock"),
    )
    assert adopted.ports["up"] == old.ports["up"]
    assert store.adopted(old.document(), now, ("state_dir",)) == old


async def test_a_full_disk_is_a_507(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    etag = switch.controller.etag
    with monkeypatch.context() as broken:
        break_call(broken, "open", errno.ENOSPC)
        answer = await switch.ask("PATCH", f"{V1}/ports/vm1", json={"mtu": 9000})
    assert (answer.status, answer.type) == (507, "application/problem+json")
    assert answer.body["type"] == "/problems/insufficient-storage"
    assert str(switch.revisions.folder) in answer.body["detail"]
    assert "free space there" in answer.body["detail"]
    assert (switch.controller.etag, len(switch.revisions)) == (etag, 1)


async def test_two_clients_at_once_lose_nothing(switch: Switch) -> None:
    """Read, add a port, write with If-Match, begin again at a 412: at the end every port of every client is there."""
    outcomes: list[int] = []

    async def client(name: str) -> None:
        for i in range(10):
            while True:
                got = await switch.ask("GET", f"{V1}/config")
                got.body["ports"][f"{name}{i}"] = {"bridge": "br0"}
                headers = {"If-Match": got.headers["ETag"]}
                put = await switch.ask("PUT", f"{V1}/config", json=got.body, headers=headers)
                outcomes.append(put.status)
                if put.status == 200:
                    break
                assert put.status == 412

    async with asyncio.timeout(60):
        await asyncio.gather(*(client(name) for name in "abcd"))
    assert set(switch.controller.config.ports) == {"vm1", "vm2", *(f"{name}{i}" for name in "abcd" for i in range(10))}
    assert outcomes.count(200) == 40
    assert 412 in outcomes


async def test_of_edits_at_once_exactly_one_wins(switch: Switch) -> None:
    for turn in range(5):
        headers = {"If-Match": f'"{switch.controller.etag}"'}
        asks = [
            switch.ask("PATCH", f"{V1}/ports/vm1", json={"labels": {"turn": f"{turn}.{i}"}}, headers=headers)
            for i in range(8)
        ]
        answers = await asyncio.gather(*asks)
        (won,) = [answer for answer in answers if answer.status == 200]
        assert sorted(answer.status for answer in answers) == [200] + [412] * 7
        assert dict(switch.controller.config.ports["vm1"].labels) == won.body["labels"]
