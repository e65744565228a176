# SPDX-License-Identifier: Apache-2.0
"""Captures of real traffic: what is in the stream, in which order, with which words; what a slow reader loses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pvswitch.client import AsyncClient
from pvswitch.guest import Guest
from pvswitch.pcapng import Tally
from pvswitch.process import SwitchProcess, command
from tests.conftest import RequirePeer
from tests.pcapng import raw_packets
from tests.wire.lab import PATIENCE, expect, expect_only, flush_frames, frame, reach, stats, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROADCAST = b"\xff" * 6
PAUSE = bytes.fromhex("0180c2000001")
IN, OUT = 1, 2


class Packet(NamedTuple):
    """A packet of a stream, without its time."""

    port: str
    direction: int
    data: bytes
    comment: str


class Capture:
    """A capture that is being read, or not."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self.client = client
        self.name = name
        self.content = b""
        self.reading: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Begin to read."""
        self.reading = asyncio.create_task(self._read())
        await until(lambda: bool(self.content), "the begin of the stream")

    async def _read(self) -> None:
        async for piece in self.client.capture_stream(self.name):
            self.content += piece

    async def end(self) -> list[Packet]:
        """End it; all that it has seen, in the order of their times."""
        await self.client.delete_capture(self.name)
        return await self.ended()

    async def ended(self) -> list[Packet]:
        """What it has seen, when it has ended by itself."""
        assert self.reading is not None
        async with asyncio.timeout(PATIENCE):
            await self.reading
        assert self.tally().finished
        read = raw_packets(self.content)
        times = [meta.tshigh << 32 | meta.tslow for _, meta in read]
        assert times == sorted(times)
        now = time.time_ns()
        assert all(now - 120_000_000_000 < at <= now for at in times)
        return [
            Packet(
                (meta.ifname or b"").decode(),
                meta.direction,
                bytes(data),
                meta.comments[0].decode() if meta.comments else "",
            )
            for data, meta in read
        ]

    def tally(self) -> Tally:
        tally = Tally()
        tally.feed(self.content)
        return tally


@contextlib.asynccontextmanager
async def capturing(switch: SwitchProcess, *, read: bool = True, **body: Any) -> AsyncIterator[Capture]:
    async with AsyncClient(f"unix:{switch.api}") as client:
        capture = Capture(client, (await client.create_capture(body)).id)
        if read:
            await capture.read()
        yield capture
        if capture.reading is not None:
            capture.reading.cancel()


async def guests(switch: SwitchProcess, stack: contextlib.AsyncExitStack, *ports: str) -> list[Guest]:
    """Guests on these ports, whose addresses the bridge has learned."""
    made = [await stack.enter_async_context(Guest(switch.port_socket(port))) for port in ports]
    for guest in made:
        await flush_frames([other for other in made if other is not guest], guest)
    return made


def others(packets: list[Packet]) -> list[Packet]:
    """Without the sentinels that end a test's exchange."""
    return [packet for packet in packets if packet.data[12:14] == b"\x88\xb5"]


async def test_frames_in_both_directions_with_what_became_of_them(
    switch: SwitchProcess, stack: contextlib.AsyncExitStack
) -> None:
    a, b, _ = await guests(switch, stack, "a", "b", "c")
    known, flooded, dropped = frame(b.mac, a.mac, 100, 1), frame(BROADCAST, a.mac, 60, 2), frame(PAUSE, a.mac, 60, 3)
    async with capturing(switch, ports=["a", "b"]) as capture:
        for sent in (known, flooded, dropped):
            await a.send(sent)
        await expect_only(b, a, [known, flooded])
        found = others(await capture.end())
    assert [packet for packet in found if packet.port == "a"] == [
        Packet("a", IN, known, "to b"),
        Packet("a", IN, flooded, "2 copies"),
        Packet("a", IN, dropped, "dropped: bpdu"),
    ]
    assert [packet for packet in found if packet.port == "b"] == [
        Packet("b", OUT, known, "from a"),
        Packet("b", OUT, flooded, "from a"),
    ]


@pytest.mark.parametrize(("direction", "wanted"), [("in", [("a", IN)]), ("out", [("b", OUT)])])
async def test_one_direction(
    switch: SwitchProcess, stack: contextlib.AsyncExitStack, direction: str, wanted: list[tuple[str, int]]
) -> None:
    a, b = await guests(switch, stack, "a", "b")
    async with capturing(switch, direction=direction) as capture:
        await a.send(frame(b.mac, a.mac))
        await expect_only(b, a, [frame(b.mac, a.mac)])
        found = others(await capture.end())
    assert [(packet.port, packet.direction) for packet in found] == wanted


async def test_a_filter_runs_in_the_core(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a, b = await guests(switch, stack, "a", "b")
    sizes = (60, 61, 200, 201, 1500)
    async with capturing(switch, ports=["a"], filter="ether proto 0x88b5 and greater 200 and not ether[14] = 7") as c:
        for n, size in enumerate(sizes, start=4):
            await a.send(frame(b.mac, a.mac, size, n))
        await expect_only(b, a, [frame(b.mac, a.mac, size, n) for n, size in enumerate(sizes, start=4)])
        found = await c.end()
    assert [(len(packet.data), packet.data[14]) for packet in found] == [(200, 6), (1500, 8)]
    assert c.tally().lost == 0


async def test_frames_are_cut_to_snaplen(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a, b = await guests(switch, stack, "a", "b")
    async with capturing(switch, ports=["b"], snaplen=70) as capture:
        await a.send(frame(b.mac, a.mac, 1400))
        await expect_only(b, a, [frame(b.mac, a.mac, 1400)])
        (found,) = others(await capture.end())
    (whole,) = [meta.wirelen for data, meta in raw_packets(capture.content) if data == found.data]
    assert (found.data, whole) == (frame(b.mac, a.mac, 1400)[:70], 1400)


async def test_two_captures_see_what_each_wants(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a, b = await guests(switch, stack, "a", "b")
    async with capturing(switch, ports=["a"]) as first, capturing(switch, ports=["b"], max_packets=2) as second:
        for n in range(5):
            await a.send(frame(b.mac, a.mac, 60, n))
        await expect(b, [frame(b.mac, a.mac, 60, n) for n in range(5)])
        assert [packet.data[14] for packet in await second.ended()] == [0, 1]
        await expect_only(b, a)
        assert [packet.data[14] for packet in others(await first.end())] == [0, 1, 2, 3, 4]


async def test_a_reader_that_does_not_read_loses_frames_and_slows_nobody(
    switch: SwitchProcess, stack: contextlib.AsyncExitStack
) -> None:
    a, b = await guests(switch, stack, "a", "b")
    before = (await stats(switch, "a"))["rx_packets"]
    sent, size = 8000, 1514  # more than the rings hold
    async with capturing(switch, ports=["a"], direction="in", read=False, filter="ether proto 0x88b5") as capture:
        for n in range(sent):
            await a.send(frame(BROADCAST, a.mac, size, n), kick=n % 16 == 15)
            b.recv_nowait()
        await reach(switch, "a", {"rx_packets": before + sent})
        info = await capture.client.capture(capture.name)
        assert info.state == "waiting"
        assert 0 < info.lost < sent
        await capture.read()
        await until(lambda: capture.tally().packets == sent - info.lost, "what the rings held")
        await a.send(frame(BROADCAST, a.mac, 60))
        await reach(switch, "a", {"rx_packets": before + sent + 1})
        found = await capture.end()
    tally = capture.tally()
    assert (tally.packets, tally.lost) == (sent - info.lost + 1, info.lost)
    assert len(found[-1].data) == 60
    (last,) = [meta for data, meta in raw_packets(capture.content) if len(data) == 60]
    assert getattr(last, "drop", info.lost) == info.lost
    totals = await switch.get("/stats")
    assert totals["lost_captured"] >= info.lost


async def test_a_port_may_go_and_come_back(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    async with capturing(switch, ports=["a"], filter="ether proto 0x88b5") as capture:
        for n in range(3):
            async with contextlib.AsyncExitStack() as inner:
                a, b = await guests(switch, inner, "a", "b")
                await a.send(frame(b.mac, a.mac, 99, n))
                await expect_only(b, a, [frame(b.mac, a.mac, 99, n)])
            assert (await switch.request("DELETE", "/api/v1/ports/a"))[0] == 204
            assert (await switch.request("PUT", "/api/v1/ports/a", {}))[0] == 201
        found = await capture.end()
    assert [packet.data[14] for packet in found if len(packet.data) == 99] == [0, 1, 2]
    assert {packet.port for packet in found} == {"a"}


async def test_ports_go_while_captures_come_and_go(switch: SwitchProcess) -> None:
    # each capture is a publication of its own: a port that goes meanwhile must not be kept by it
    going = True

    async def captures() -> None:
        async with AsyncClient(f"unix:{switch.api}") as client:
            while going:
                await client.delete_capture((await client.create_capture({"ports": ["a"]})).id)

    running = [asyncio.create_task(captures()) for _ in range(3)]
    for _ in range(100):
        assert (await switch.request("PUT", "/api/v1/ports/short_lived", {}))[0] == 201
        assert (await switch.request("DELETE", "/api/v1/ports/short_lived"))[0] == 204
    going = False
    await asyncio.gather(*running)
    assert "not closed" not in switch.log()


async def test_captures_are_no_configuration(switch: SwitchProcess) -> None:
    revisions, config = await switch.get("/config/revisions"), await switch.get("/config")
    async with capturing(switch) as capture:
        await capture.end()
    assert await switch.get("/config/revisions") == revisions
    assert await switch.get("/config") == config
    assert (await switch.get("/captures"))["items"] == []


async def test_there_is_room_again_for_those_that_have_ended(switch: SwitchProcess) -> None:
    async with AsyncClient(f"unix:{switch.api}") as client:
        for _ in range(3):
            names = [(await client.create_capture({"ports": ["a"]})).id for _ in range(16)]
            status, problem = await switch.request("POST", "/api/v1/captures", {})
            assert (status, problem["detail"]) == (409, "there are 16 captures already: end one of them")
            for name in names:
                await client.delete_capture(name)


async def test_the_command_and_wireshark(
    switch: SwitchProcess, stack: contextlib.AsyncExitStack, tmp_path: Path, require_peer: RequirePeer
) -> None:
    tshark = require_peer("tshark", package="tshark")
    a, b = await guests(switch, stack, "a", "b")
    file = tmp_path / "out.pcapng"
    words = ("--api", f"unix:{switch.api}", "capture", "a", "b", "-w", str(file), "--count", "4")
    process = await asyncio.create_subprocess_exec(
        *command(), *words, "--filter", "ether proto 0x88b5", stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        assert await process.stderr.readline() == b"capturing on a b; Ctrl-C ends it\n"
        for n in range(2):
            await a.send(frame(b.mac, a.mac, 60, n))
        assert await process.stderr.read() == b"4 frames captured, none lost\n"
        assert await process.wait() == 0
    fields = ("frame.interface_name", "frame.packet_flags_direction", "frame.comment")
    read = await asyncio.to_thread(
        subprocess.run,
        [tshark, "-n", "-r", str(file), "-T", "json", *(word for field in fields for word in ("-e", field))],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert [line for line in read.stderr.decode().splitlines() if "as user" not in line] == []
    layers = [packet["_source"]["layers"] for packet in json.loads(read.stdout)]
    found = sorted((*layer["frame.interface_name"], *layer["frame.comment"]) for layer in layers)
    assert found == [("a", "to b"), ("a", "to b"), ("b", "from a"), ("b", "from a")]


async def test_the_flow_that_matched_is_named(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a, b = await guests(switch, stack, "a", "b")
    flow = {"priority": 7, "match": {"in_port": "a", "dl_type": "0x88b5"}, "actions": ["drop"]}
    path = "/api/v1/bridges/br0/flows/no-tests"
    assert (await switch.request("PUT", path, flow))[0] == 201
    try:
        async with capturing(switch, ports=["a"]) as capture:
            await a.send(frame(b.mac, a.mac))
            await expect_only(b, a)
            (found,) = others(await capture.end())
    finally:
        assert (await switch.request("DELETE", path))[0] == 204
    assert found.comment == "dropped: flow_drop, flow no-tests"
    newest = (await switch.get("/drops?port=a&limit=1"))["items"][0]
    assert newest["reason"] == "flow_drop"
