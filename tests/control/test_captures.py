# SPDX-License-Identifier: Apache-2.0
"""/captures, /drops, /frames and the commands on them, on planes that have what a test gives them."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from pvswitch import pcapng
from pvswitch.api import captures as handlers
from pvswitch.capture_file import packets
from pvswitch.client import ApiError, AsyncClient
from tests.control.command import Command
from tests.control.conftest import Switch
from tests.control.fake_captures import FRAME
from tests.control.served import Start
from tests.control.test_access import READER, WRITER, bearer, digest

CAPTURES = "/api/v1/captures"
HEAD = pcapng.section("pvswitch test") + pcapng.interface("vm1", 96)
PACKET = pcapng.packet(0, 10**18, FRAME, 60, inbound=True, lost=2, comment="to vm2")
END = pcapng.statistics(0, 10**18, 10**18 + 1, delivered=1, lost=2)


async def made(switch: Switch, **body: Any) -> str:
    answer = await switch.ask("POST", CAPTURES, json=body)
    assert (answer.status, answer.type) == (201, "application/json")
    assert answer.headers["Location"] == f"{CAPTURES}/{answer.body['id']}"
    return str(answer.body["id"])


async def test_a_capture_is_made_shown_and_removed(switch: Switch) -> None:
    name = await made(switch, ports=["vm2", "vm1", "vm2"], direction="in", filter="arp", max_seconds=9)
    listed = await switch.ask("GET", CAPTURES)
    shown = await switch.ask("GET", f"{CAPTURES}/{name}")
    assert listed.body == {"items": [shown.body], "next": None}
    assert shown.body == {
        "id": name,
        "name": name,
        "ports": ["vm2", "vm1"],
        "direction": "in",
        "filter": "arp",
        "snaplen": 65568,
        "max_seconds": 9,
        "state": "waiting",
        "started": "2025-01-01T00:00:00.000000+00:00",
        "packets": 0,
        "bytes": 0,
        "lost": 3,
    }
    assert (await switch.ask("DELETE", f"{CAPTURES}/{name}")).status == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/stream")):
        gone = await switch.ask(method, f"{CAPTURES}/{name}{path}")
        assert (gone.status, gone.body["detail"]) == (404, f"there is no capture '{name}'")


@pytest.mark.parametrize(
    ("body", "pointers", "words"),
    [
        ({"ports": ["vm1", "vm9"]}, ["#/ports/1"], "there is no port 'vm9'"),
        ({"filter": "tcp port"}, ["#/filter"], "libpcap says: can't parse filter expression: syntax error"),
        ({"filter": "host example.com"}, ["#/filter"], "write addresses as numbers"),
        ({"snaplen": 13}, ["#/snaplen"], "must be at least 14"),
        ({"max_packets": 0, "direction": "up"}, ["#/direction", "#/max_packets"], "must be 'both', 'in' or 'out'"),
        ({"port": ["vm1"]}, ["#/port"], "did you mean `ports`?"),
    ],
)
async def test_what_is_wrong_is_named(switch: Switch, body: Any, pointers: list[str], words: str) -> None:
    answer = await switch.ask("POST", CAPTURES, json=body)
    assert (answer.status, answer.pointers) == (422, pointers)
    assert words in str(answer.body["errors"])
    assert switch.dataplane.captures.made == {}


async def test_too_many_captures_are_a_conflict(switch: Switch) -> None:
    for _ in range(2):
        await made(switch)
    answer = await switch.ask("POST", CAPTURES, json={})
    assert (answer.status, answer.body["detail"]) == (409, "there are 2 captures already: end one of them")


async def test_a_stream_is_what_was_captured(switch: Switch) -> None:
    switch.dataplane.captures.pieces, switch.dataplane.captures.short = [HEAD, PACKET, b"", PACKET, END], True
    name = await made(switch)
    async with switch.session.get(f"http://switch{CAPTURES}/{name}/stream") as answer:
        assert (answer.status, answer.content_type) == (200, "application/x-pcapng")
        assert answer.headers["Transfer-Encoding"] == "chunked"
        content = await answer.read()
    assert content == HEAD + PACKET + PACKET + END
    assert [packet.data for packet in packets(io.BytesIO(content))] == [FRAME, FRAME]
    assert switch.dataplane.captures.streams[name].closed


async def test_a_stream_has_one_reader(switch: Switch) -> None:
    switch.dataplane.captures.pieces = [HEAD]
    name = await made(switch)
    async with switch.session.get(f"http://switch{CAPTURES}/{name}/stream") as first:
        assert await first.content.readany() == HEAD
        again = await switch.ask("GET", f"{CAPTURES}/{name}/stream")
        assert (again.status, again.body["detail"]) == (409, f"capture {name} has a reader already")
        await switch.ask("DELETE", f"{CAPTURES}/{name}")
        assert await first.read() == b""


async def _until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the condition is another task's state)
            await asyncio.sleep(0.01)


async def test_a_client_that_goes_ends_its_capture(switch: Switch) -> None:
    switch.dataplane.captures.pieces = [HEAD]
    name = await made(switch)
    answer = await switch.session.get(f"http://switch{CAPTURES}/{name}/stream")
    assert await answer.content.readany() == HEAD
    answer.close()
    await _until(lambda: switch.dataplane.captures.streams[name].closed)


async def test_a_client_that_takes_nothing_makes_nothing_grow(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are made while the socket takes them, not longer; after STALL_SECONDS the client is cut off."""
    monkeypatch.setattr(handlers, "STALL_SECONDS", 0.5)
    plenty = [PACKET * 1000] * 1000
    switch.dataplane.captures.pieces = [HEAD, *plenty]
    name = await made(switch)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().run_in_executor(None, slow.connect, str(switch.socket))
        slow.sendall(f"GET {CAPTURES}/{name}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await _until(lambda: name in switch.dataplane.captures.streams)
        await _until(lambda: switch.dataplane.captures.streams[name].closed)
    taken = 1001 - len(switch.dataplane.captures.pieces)
    assert 0 < taken * len(plenty[0]) < 2 << 20


async def test_the_end_of_the_api_is_the_end_of_the_streams(switch: Switch) -> None:
    switch.dataplane.captures.pieces = [HEAD]
    name = await made(switch)
    async with switch.session.get(f"http://switch{CAPTURES}/{name}/stream") as answer:
        assert await answer.content.readany() == HEAD
        await asyncio.gather(switch.server.close(), answer.read())
    assert switch.dataplane.captures.streams[name].closed


async def test_frames_are_for_those_who_may_write(start: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"scraper read {digest(READER)}\nci write {digest(WRITER)}\n")
    tokens.chmod(0o640)
    api = await start(tokens)
    api.dataplane.captures.short = True
    read, write = bearer(READER), bearer(WRITER)
    assert (await api.ask("POST", CAPTURES, json={}, headers=read))[0] == 403
    _, capture, _ = await api.ask("POST", CAPTURES, json={}, headers=write)
    stream = f"{CAPTURES}/{capture['id']}/stream"
    status, problem, _ = await api.ask("GET", stream, headers=read)
    assert (status, problem["detail"].endswith("frames take a token with the role write")) == (403, True)
    assert api.dataplane.captures.streams == {}
    assert (await api.ask("GET", stream, headers=write))[0] == 200


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", 1),
        ("?port=vm1", 1),
        ("?port=vm2&direction=tx&reason=guest_rx_full&bridge=br0&limit=5", 1),
        ("?port=gone", 0),
        ("?direction=rx", 0),
        ("?reason=policed", 0),
    ],
)
async def test_drops(switch: Switch, query: str, found: int) -> None:
    answer = await switch.ask("GET", f"/api/v1/drops{query}")
    assert (answer.status, len(answer.body["items"]), answer.body["next"]) == (200, found, None)
    assert all(bytes.fromhex(item["bytes"]) == FRAME for item in answer.body["items"])


@pytest.mark.parametrize("what", ["drops", "frames"])
async def test_what_is_misspelt_finds_no_nothing(switch: Switch, what: str) -> None:
    answer = await switch.ask("GET", f"/api/v1/{what}?port=vm3")
    assert (answer.status, answer.pointers, answer.body["detail"]) == (422, ["?port"], "there is no port 'vm3'")
    answer = await switch.ask("GET", f"/api/v1/{what}?bridge=br3")
    assert (answer.status, answer.pointers, answer.body["detail"]) == (422, ["?bridge"], "there is no bridge 'br3'")
    answer = await switch.ask("GET", f"/api/v1/{what}?reason=vlan_filterd")
    assert (answer.status, answer.pointers, "vlan_filtered," in answer.body["detail"]) == (422, ["?reason"], True)


async def test_sampled_frames(switch: Switch) -> None:
    (frame,) = (await switch.ask("GET", "/api/v1/frames?port=vm1&limit=1")).body["items"]
    assert (frame["out_port"], frame["copies"], "reason" in frame) == ("vm2", 1, False)
    refused = await switch.ask("GET", "/api/v1/frames?direction=rx&limit=0")
    assert (refused.status, refused.pointers) == (422, ["?direction", "?limit"])


# ---- the client and the command


async def test_the_client(switch: Switch) -> None:
    switch.dataplane.captures.pieces, switch.dataplane.captures.short = [HEAD, PACKET, END], True
    async with AsyncClient(f"unix:{switch.socket}") as client:
        capture = await client.create_capture({"ports": ["vm1"]})
        assert [item.id for item in await client.captures()] == [capture.id]
        assert (await client.capture(capture.id)).ports == ("vm1",)
        assert b"".join([piece async for piece in client.capture_stream(capture.id)]) == HEAD + PACKET + END
        await client.delete_capture(capture.id)
        with pytest.raises(ApiError, match="there is no capture"):
            await client.capture(capture.id)
        assert [drop.port for drop in await client.drops(port="vm1", limit=3)] == ["vm2"]
        assert [frame.port for frame in await client.frames(reason="policed")] == []


async def test_the_command_writes_a_file_and_says_what_was_lost(switch: Switch, pv: Command, tmp_path: Path) -> None:
    switch.dataplane.captures.pieces, switch.dataplane.captures.short = [HEAD, PACKET, END], True
    file = tmp_path / "out.pcapng"
    result = await pv("capture", "vm1", "-w", str(file), "--count", "9", "--seconds", "3", "--snaplen", "96")
    assert (result.status, result.out) == (0, "")
    assert result.err == ("capturing on vm1; Ctrl-C ends it\n1 frames captured, 2 lost: this reader was too slow\n")
    assert file.read_bytes() == HEAD + PACKET + END


async def test_a_file_that_cannot_be_written_leaves_no_capture(switch: Switch, pv: Command, tmp_path: Path) -> None:
    result = await pv("capture", "-w", str(tmp_path))
    assert (result.status, result.err) == (1, f"{tmp_path} can't be written: Is a directory\n")
    assert switch.dataplane.captures.made == {}


async def test_a_full_disk_is_said_and_leaves_no_capture(switch: Switch, pv: Command) -> None:
    switch.dataplane.captures.pieces = [HEAD]
    result = await pv("capture", "vm1", "-w", "/dev/full")
    said = "capturing on vm1; Ctrl-C ends it\nthe capture can't be written: No space left on device\n"
    assert (result.status, result.out, result.err) == (1, "", said)
    assert switch.dataplane.captures.made == {}


async def _command(switch: Switch, *words: str, stdout: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    code = "import sys; from pvswitch.cli import captures, main; captures.END_SECONDS = 2; sys.exit(main())"
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        f"--api=unix:{switch.socket}",
        *words,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_cleanly(switch: Switch, signum: signal.Signals) -> None:
    switch.dataplane.captures.pieces = [HEAD, PACKET]
    command = await _command(switch, "capture", "vm1", "-w", "-", stdout=asyncio.subprocess.PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    async with asyncio.timeout(30):
        assert await command.stdout.readexactly(len(HEAD + PACKET)) == HEAD + PACKET
        switch.dataplane.captures.pieces = [END]
        switch.dataplane.captures.short = True
        command.send_signal(signum)
        assert await command.stdout.read() == END
        said = (await command.stderr.read()).decode()
        assert await command.wait() == 0
    assert said.endswith("1 frames captured, 2 lost: this reader was too slow\n")


async def test_a_pipe_that_closes_ends_it_cleanly(switch: Switch) -> None:
    switch.dataplane.captures.pieces = [HEAD]
    theirs, ours = os.pipe()
    command = await _command(switch, "capture", "-w", "-", stdout=ours)
    os.close(ours)
    assert command.stderr is not None
    async with asyncio.timeout(30):
        assert await asyncio.to_thread(os.read, theirs, len(HEAD)) == HEAD
        os.close(theirs)
        switch.dataplane.captures.pieces = [PACKET]
        said = (await command.stderr.read()).decode()
        assert await command.wait() == 0
    assert "Traceback" not in said
    (stream,) = switch.dataplane.captures.streams.values()
    await _until(lambda: stream.closed)


async def test_a_pipe_that_nobody_empties_keeps_no_command(switch: Switch) -> None:
    switch.dataplane.captures.pieces = [HEAD, *[PACKET * 100] * 100]
    theirs, ours = os.pipe()
    command = await _command(switch, "capture", "-w", "-", stdout=ours)
    os.close(ours)
    assert command.stderr is not None
    try:
        async with asyncio.timeout(30):
            await command.stderr.readline()
            await asyncio.sleep(1)  # by then it is full
            command.send_signal(signal.SIGTERM)
            assert await command.stderr.read() == b"the rest was not written: its reader takes nothing\n"
            assert await command.wait() == 1
    finally:
        if command.returncode is None:
            command.kill()
        os.close(theirs)
    assert switch.dataplane.captures.made == {}


async def test_a_named_pipe_waits_for_its_reader_without_a_capture(switch: Switch, tmp_path: Path) -> None:
    switch.dataplane.captures.pieces, switch.dataplane.captures.short = [HEAD, PACKET, END], True
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = await _command(switch, "capture", "vm1", "-w", str(pipe))
    try:
        async with asyncio.timeout(30):
            await asyncio.sleep(1)
            assert switch.dataplane.captures.made == {}
            assert await asyncio.to_thread(pipe.read_bytes) == HEAD + PACKET + END
            assert await command.wait() == 0
            command = await _command(switch, "capture", "vm1", "-w", str(pipe))
            await asyncio.sleep(1)
            command.send_signal(signal.SIGINT)
            assert await command.wait() == 130
    finally:
        if command.returncode is None:
            command.kill()
