# SPDX-License-Identifier: Apache-2.0
"""Ports of type pcap on a real switch: captures come in, captures are written, and nothing is left of either."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import PcapNgWriter, RawPcapReader, wrpcap

from pvswitch.capture_file import packets, pcap_header, pcap_record_header
from pvswitch.guest import Guest
from pvswitch.net_header import Gso, NetHeader
from pvswitch.process import SwitchProcess
from pvswitch.state import PortState
from tests.conftest import RequirePeer, missing_peer
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, expect, expect_only, frame, held, reach, stats, until, until_holds
from tests.wire.offloads import ALL, PLAIN, Request, finished, requests

FAR = bytes.fromhex("020000000099")
BROADCAST = b"\xff" * 6
MS = 1_000_000


@pytest_asyncio.fixture
async def switch() -> AsyncIterator[SwitchProcess]:
    # known unicast waits for the guest: what is lost is lost on the way from the file
    ports = {"vm": {"on_full": "backpressure", "backpressure_ms": 1000}, "other": {}}
    async with running_switch({"ports": ports}) as switch:
        yield switch


def capture(path: Path, frames: Sequence[bytes], gap_ns: int = 0) -> Path:
    """A file of these frames, so far from each other."""
    records = [pcap_record_header(i * gap_ns, len(data)) + data for i, data in enumerate(frames)]
    path.write_bytes(pcap_header() + b"".join(records))
    return path


def recorded(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return [packet.data for packet in packets(file)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def put(switch: SwitchProcess, name: str, status: Sequence[int] = (200, 201), **settings: Any) -> Any:
    """Add or replace a pcap port."""
    body = {"type": "pcap", **{key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}}
    got, answer = await switch.request("PUT", f"/api/v1/ports/{name}", body)
    assert got in status, answer
    return answer


async def delete(switch: SwitchProcess, name: str) -> None:
    status, answer = await switch.request("DELETE", f"/api/v1/ports/{name}")
    assert status == 204, answer


async def state(switch: SwitchProcess, name: str) -> PortState:
    return PortState.model_validate((await switch.get(f"/ports/{name}"))["state"])


async def message(switch: SwitchProcess, name: str, part: str) -> str:
    """Wait until the port's message has this part."""

    async def said() -> bool:
        return part in ((await state(switch, name)).message or "")

    await until(said, f"{name} to say: {part}")
    return (await state(switch, name)).message or ""


# ---- a file as ingress


@pytest.mark.parametrize("form", ["pcap", "pcapng"])
async def test_a_guest_gets_exactly_the_frames_of_a_file(switch: SwitchProcess, tmp_path: Path, form: str) -> None:
    async with Guest(switch.port_socket("vm")) as vm, Guest(switch.port_socket("other")) as other:
        sizes = [60 + i * 7 % 1400 for i in range(400)] + [9000, 65_000]
        frames = [frame(vm.mac, FAR, size, i) for i, size in enumerate(sizes)]
        path = tmp_path / f"a.{form}"
        if form == "pcap":
            wrpcap(str(path), [Ether(data) for data in frames])
        else:
            writer = PcapNgWriter(str(path))
            for data in frames:
                writer.write(Ether(data))
            writer.close()
        await vm.send(frame(BROADCAST, vm.mac))  # known: so nothing is flooded
        await expect(other, [frame(BROADCAST, vm.mac)])
        await put(switch, "replay", read=path, speed=0)
        await expect(vm, frames)
        await expect_only(vm, other)
        assert await message(switch, "replay", "finished") == f"played {len(frames)} frames, finished"
        assert (await state(switch, "replay")).link == "up"
        seen = await reach(switch, "replay", {"rx_packets": len(frames), "rx_bytes": sum(sizes), "rx_dropped": 0})
        (queue,) = (queue for queue in seen["queues"] if queue["direction"] == "rx")
        assert (queue["packets"], queue["bytes"]) == (len(frames), sum(sizes))


async def test_an_access_port_puts_its_files_frames_into_its_vlan(tmp_path: Path) -> None:
    ports = {"trunk": {}, "in": {"tag": 10}, "out": {"tag": 20}, "talker": {"tag": 20}}
    plain = bytes(Ether(src="02:00:00:00:00:99", dst="ff:ff:ff:ff:ff:ff") / IP() / UDP() / Raw(bytes(40)))
    tagged = Ether(plain[:12] + bytes.fromhex("81000014") + plain[12:])  # for VLAN 20: an access port doesn't take it
    path = capture(tmp_path / "a.pcap", [plain, bytes(tagged), plain])
    async with running_switch({"ports": ports}) as switch, contextlib.AsyncExitStack() as stack:
        guests = {name: await stack.enter_async_context(Guest(switch.port_socket(name))) for name in ports}
        await put(switch, "replay", read=path, speed=0, tag=10)
        in_vlan = bytes(Ether(plain[:12] + b"\x81\x00\x00\x0a" + plain[12:]))
        assert Ether(in_vlan)[Dot1Q].vlan == 10
        await expect(guests["trunk"], [in_vlan] * 2)
        await expect(guests["in"], [plain] * 2)
        seen = await reach(switch, "replay", {"rx_packets": 3})
        assert seen["rx_drops"] == {"vlan_filtered": 1}
        await expect_only(guests["out"], guests["talker"])


async def test_a_trunk_port_keeps_the_files_tags_and_an_access_guest_gets_none(tmp_path: Path) -> None:
    untagged = frame(BROADCAST, FAR, 100)
    tagged = untagged[:12] + b"\x81\x00\x00\x0a" + untagged[12:]
    path = capture(tmp_path / "a.pcap", [untagged, tagged])
    out = tmp_path / "w.pcap"
    async with running_switch({"ports": {"in": {"tag": 10}}}) as switch, Guest(switch.port_socket("in")) as vm:
        await put(switch, "tape", write=out)
        await put(switch, "replay", read=path, speed=0)
        await expect(vm, [untagged])
        await until(lambda: recorded(out) == [untagged, tagged], "both frames as they were")


async def test_frames_do_not_come_before_their_time(switch: SwitchProcess, tmp_path: Path) -> None:
    async with Guest(switch.port_socket("vm")) as vm:
        frames = [frame(vm.mac, FAR, 60, i) for i in range(4)]
        path = capture(tmp_path / "a.pcap", frames, 200 * MS)
        begin = time.monotonic()
        await put(switch, "replay", read=path)
        await expect(vm, frames)
        assert time.monotonic() - begin >= 0.6
        path = capture(tmp_path / "b.pcap", frames, 3600 * 1000 * MS)  # an hour between them
        await put(switch, "replay", read=path, speed=3600 * 5)
        await expect(vm, frames)
        await put(switch, "replay", read=path)
        await expect(vm, frames[:1])
        begin = time.monotonic()
        await delete(switch, "replay")
        assert time.monotonic() - begin < 3


async def test_a_change_of_speed_begins_anew_and_says_so(switch: SwitchProcess, tmp_path: Path) -> None:
    async with Guest(switch.port_socket("vm")) as vm:
        frames = [frame(vm.mac, FAR, 60, i) for i in range(2)]
        path = capture(tmp_path / "a.pcap", frames, 3600 * 1000 * MS)
        out = tmp_path / "w.pcap"
        await put(switch, "replay", read=path, write=out)
        await expect(vm, frames[:1])
        await vm.send(frame(FAR, vm.mac))
        await until(lambda: recorded(out) == [frame(FAR, vm.mac)], "what it records")
        change = {"ports": {"replay": {"speed": 0}}}
        status, plan = await switch.request("PATCH", "/api/v1/config?dry_run=true", change, headers={"If-Match": "*"})
        assert (status, plan["disruptive"]) == (200, True)
        assert [step["detail"] for step in plan["changes"]] == [
            "change port replay: speed 1.0 -> 0.0; its files begin anew"
        ]
        assert (await switch.request("PATCH", "/api/v1/config", change, headers={"If-Match": "*"}))[0] == 200
        await expect(vm, frames)
        await message(switch, "replay", "played 2 frames, finished")
        assert recorded(out) == [frame(FAR, vm.mac)], "what is recorded goes on"


async def test_a_loop_goes_on_while_the_port_is_enabled(switch: SwitchProcess, tmp_path: Path) -> None:
    async with Guest(switch.port_socket("vm"), queue_size=256) as vm:
        frames = [frame(vm.mac, FAR, 60, i) for i in range(3)]
        path = capture(tmp_path / "a.pcap", frames, 5 * MS)
        await put(switch, "replay", read=path, loop=True, enabled=False)
        assert (await state(switch, "replay")).reason == "admin_down"
        await asyncio.sleep(0.2)
        assert (await stats(switch, "replay"))["rx_packets"] == 0, "a port that is switched off plays"
        await put(switch, "replay", read=path, loop=True)
        await expect(vm, frames * 30)
        await put(switch, "replay", read=path, loop=True, enabled=False)
        await asyncio.sleep(0.2)
        before = (await stats(switch, "replay"))["rx_packets"]
        await asyncio.sleep(0.3)
        assert (await stats(switch, "replay"))["rx_packets"] == before


async def test_a_fast_loop_leaves_the_switch_alive_and_loses_nothing_on_its_way(
    switch: SwitchProcess, tmp_path: Path
) -> None:
    path = capture(tmp_path / "a.pcap", [frame(BROADCAST, FAR, 200, i) for i in range(5)])
    await put(switch, "replay", read=path, speed=0, loop=True)
    async with Guest(switch.port_socket("vm")) as vm:
        for _ in range(200):
            await vm.recv(PATIENCE)
    for _ in range(20):
        begin = time.monotonic()
        seen = await stats(switch, "replay")
        assert time.monotonic() - begin < 5
    assert seen["rx_drops"].keys() <= {"no_destination"}
    await delete(switch, "replay")


async def test_a_damaged_file_is_played_as_far_as_it_goes(switch: SwitchProcess, tmp_path: Path) -> None:
    async with Guest(switch.port_socket("vm")) as vm, Guest(switch.port_socket("other")) as other:
        frames = [frame(vm.mac, FAR, 60, i) for i in range(3)]
        path = capture(tmp_path / "a.pcap", frames)
        path.write_bytes(path.read_bytes()[:-20])
        await put(switch, "replay", read=path)
        await expect(vm, frames[:2])
        await expect_only(vm, other)
        said = "played 2 frames, then stopped: the file ends in the middle of a record"
        assert await message(switch, "replay", "stopped") == said
        assert switch.log().count("capture not played to its end") == 1


# ---- a file as egress


async def test_what_a_guest_sends_is_written_cut_and_summed(
    switch: SwitchProcess, tmp_path: Path, require_peer: RequirePeer
) -> None:
    tcpdump = require_peer("tcpdump", package="tcpdump")
    out, wanted = tmp_path / "w.pcap", []
    await put(switch, "tape", write=out)
    async with Guest(switch.port_socket("vm"), features=ALL, tx_buf_size=66_000) as vm:
        for asked in requests(vm.mac.hex(":"), FAR.hex(":")).values():
            await vm.send(asked.frame, header=asked.header)
            wanted += [data for data, _ in finished(asked, PLAIN)]
        await until(lambda: len(recorded(out)) >= len(wanted), "all frames")
        assert recorded(out) == wanted
        with RawPcapReader(str(out)) as reader:
            assert (reader.nano, reader.linktype, reader.snaplen) == (True, 1, 262_144)
        seen = await reach(switch, "tape", {"tx_packets": len(wanted), "tx_dropped": 0})
        assert seen["tx_bytes"] == sum(map(len, wanted))
        printed = await asyncio.create_subprocess_exec(
            *(tcpdump, "-r", str(out), "-nn", "-vv"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        text, _ = await printed.communicate()
        assert printed.returncode == 0
        assert b"incorrect" not in text.replace(b"incorrect -> 0x0000", b"")  # checksums
        assert text.count(b"192.0.2.1") + text.count(b"2001:db8::1.") > 0


async def test_requests_of_a_guest_reach_no_file_as_they_are(switch: SwitchProcess, tmp_path: Path) -> None:
    """The judge of the test above: a frame of a request is another than what the file has to get."""
    asked = requests("02:00:00:00:00:01", "02:00:00:00:00:02")["tso4"]
    assert isinstance(asked, Request)
    assert asked.header.gso_type == Gso.TCPV4
    assert (asked.frame, NetHeader()) not in finished(asked, PLAIN)
    assert len(finished(asked, PLAIN)) == 28


async def test_what_is_written_can_be_played(switch: SwitchProcess, tmp_path: Path) -> None:
    out = tmp_path / "w.pcap"
    async with Guest(switch.port_socket("vm")) as vm, Guest(switch.port_socket("other")) as other:
        frames = [frame(BROADCAST, vm.mac, 60 + i, i) for i in range(200)]  # a flood waits for nobody: they find room
        await put(switch, "tape", write=out)
        for data in frames:
            await vm.send(data)
        await expect(other, frames)
        await reach(switch, "tape", {"tx_packets": 200})
        await delete(switch, "tape")  # all that it was sent is in the file now
        assert recorded(out) == frames
        await put(switch, "replay", read=out, speed=0)
        await expect(other, frames)


async def test_a_switch_that_ends_has_written_all(tmp_path: Path) -> None:
    out = tmp_path / "w.pcap"
    config = {"ports": {"vm": {}, "tape": {"type": "pcap", "write": str(out)}}}
    async with running_switch(config) as switch, Guest(switch.port_socket("vm")) as vm:
        frames = [frame(BROADCAST, vm.mac, 1000, i) for i in range(500)]
        for data in frames:
            await vm.send(data)
        await reach(switch, "tape", {"tx_packets": 500})
    assert recorded(out) == frames


async def test_killed_it_has_written_what_there_was_a_moment_ago(tmp_path: Path) -> None:
    out = tmp_path / "w.pcap"
    config = {"ports": {"vm": {}, "tape": {"type": "pcap", "write": str(out)}}}
    async with running_switch(config) as switch:
        async with Guest(switch.port_socket("vm")) as vm:
            await vm.send(frame(BROADCAST, vm.mac))
            await until(lambda: len(recorded(out)) == 1, "the frame in the file")
            await switch.kill()
        assert len(recorded(out)) == 1
        await switch.start()
        await switch.wait_link("tape")
        await until(lambda: out.read_bytes() == pcap_header(), "a file that begins anew")


async def test_what_is_sent_to_a_port_without_a_file_to_write_is_counted(switch: SwitchProcess, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", [])
    await put(switch, "replay", read=path)
    assert await message(switch, "replay", "finished") == "played 0 frames, finished"
    async with Guest(switch.port_socket("vm")) as vm:
        for _ in range(40):
            await vm.send(frame(BROADCAST, vm.mac))
        seen = await reach(switch, "replay", {"tx_dropped": 40})
        assert seen["tx_drops"] == {"uplink_refused": 40}


async def test_a_full_disk_is_told_counted_and_survived(switch: SwitchProcess, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        await asyncio.to_thread(
            subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], check=True
        )
    except subprocess.CalledProcessError:
        missing_peer("a small file system takes root: run this as root")
    try:
        filler, out = disk / "filler", disk / "w.pcap"
        await put(switch, "tape", write=out)
        async with Guest(switch.port_socket("vm")) as vm, Guest(switch.port_socket("other")) as other:
            filler.write_bytes(bytes(64 * 1024))
            number = 0
            while not (await stats(switch, "tape"))["tx_drops"].get("uplink_tx_full"):
                for _ in range(500):
                    await vm.send(frame(FAR, vm.mac, 1500, number))
                    number += 1
                await reach(switch, "vm", {"rx_packets": number})
            assert await message(switch, "tape", "cannot be written") == (
                f"{out} cannot be written: No space left on device; make room for it, or set another `write`"
            )
            assert (await state(switch, "tape")).link == "up"
            got = recorded(out)
            assert got == [frame(FAR, vm.mac, 1500, i) for i in range(len(got))]
            await other.send(frame(vm.mac, other.mac))
            await expect(vm, [frame(vm.mac, other.mac)])  # the switch lives on
            filler.unlink()
            await until(lambda: len(recorded(out)) > len(got), "more to be written")
        await delete(switch, "tape")
        assert "frames were not written" in switch.log()
        assert [line for line in switch.log().splitlines() if "file cannot be written" in line][1:] == []
    finally:
        if (await switch.request("GET", "/api/v1/ports/tape"))[0] == 200:
            await delete(switch, "tape")
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(disk)], check=False)


# ---- refusals


async def test_files_of_no_use_are_refused_and_nothing_is_left(switch: SwitchProcess, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("a letter")
    cooked = tmp_path / "cooked.pcap"
    cooked.write_bytes(pcap_header()[:20] + (113).to_bytes(4, "little"))
    good = capture(tmp_path / "good.pcap", [frame(BROADCAST, FAR)])
    before, files = held(switch.pid), names(tmp_path)
    cases = {
        "none.pcap": "there is no file",
        "folder": "is a folder",
        "text": "is no capture",
        "cooked.pcap": "link type 113",
    }
    for name, words in cases.items():
        problem = await put(switch, "f", (409,), read=tmp_path / name, write=tmp_path / "new.pcap")
        assert words in problem["detail"]
        assert str(tmp_path / name) in problem["detail"]
        assert [error["pointer"] for error in problem["errors"]] == ["#/ports/f"]
    for name, words in {"folder": "is a folder", "text": "is no capture", "none/x": "there is no folder"}.items():
        problem = await put(switch, "f", (409,), read=good, write=tmp_path / name)
        assert words in problem["detail"]
    assert names(tmp_path) == files
    for settings in ({}, {"read": good, "write": good}, {"read": "a.pcap"}, {"read": good, "speed": -1}):
        await put(switch, "f", (422,), **settings)
    await until_holds(switch.pid, before)
    assert (await switch.request("GET", "/api/v1/ports/f"))[0] == 404


async def test_a_change_that_fails_touches_no_file(switch: SwitchProcess, tmp_path: Path) -> None:
    kept = capture(tmp_path / "kept.pcap", [frame(BROADCAST, FAR)])
    before = kept.read_bytes()
    tape = {"type": "pcap", "write": str(kept)}
    fresh = {"type": "pcap", "write": str(tmp_path / "fresh.pcap")}
    bad = {"type": "pcap", "read": str(tmp_path / "none.pcap")}
    patch = {"ports": {"tape": tape, "fresh": fresh, "zbad": bad}}
    status, problem = await switch.request("PATCH", "/api/v1/config", patch, headers={"If-Match": "*"})
    assert (status, problem["errors"][0]["pointer"]) == (409, "#/ports/zbad")
    assert kept.read_bytes() == before
    assert names(tmp_path) == ["kept.pcap"]


# ---- nothing is left


async def test_removed_ports_leave_nothing(switch: SwitchProcess, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", [frame(BROADCAST, FAR, 60, i) for i in range(2)], 3600 * 1000 * MS)
    most: tuple[int, ...] = ()
    for turn in range(6):
        await put(switch, "both", read=path, write=tmp_path / "w.pcap")
        await put(switch, "fast", read=path, speed=0, loop=True)
        await put(switch, "tape", write=tmp_path / "v.pcap")
        for name in ("both", "fast", "tape"):
            await switch.wait_link(name)
        await reach(switch, "both", {"rx_packets": 1})
        if turn % 2:  # as another type, as the same with other files
            assert (await switch.request("PUT", "/api/v1/ports/both", {}))[0] == 200
            await put(switch, "fast", read=path, write=tmp_path / "x.pcap")
        for name in ("both", "fast", "tape"):
            await delete(switch, name)
        if not turn:
            most = held(switch.pid)
        # a thread that has just ended may still be seen
        await until(
            lambda most=most: all(now <= before for now, before in zip(held(switch.pid), most, strict=True)),
            "what removed ports had to be free",
        )


async def test_the_command_adds_and_shows_a_pcap_port(switch: SwitchProcess, tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", [frame(BROADCAST, FAR)])
    printed = await switch.cli("port", "add", "replay", "type=pcap", f"read={path}", "speed=0.5")
    assert str(path) in printed
    await message(switch, "replay", "finished")
    assert f"read={path}" in (await switch.cli("show", "ports")).replace("\n", "")
    assert "played 1 frames, finished" in await switch.cli("doctor", "replay")
