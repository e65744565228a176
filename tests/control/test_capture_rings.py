# SPDX-License-Identifier: Apache-2.0
"""`Captures` on rings that a test fills: what goes into the stream, when a capture ends, what is freed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from pvswitch import captures
from pvswitch.capture_model import CaptureBody
from pvswitch.capture_plane import CaptureTaken
from pvswitch.capture_stream import BATCH, PIECE
from pvswitch.captures import CaptureReader, Captures
from pvswitch.datapath import MAX_CAPTURES, Captured, Datapath, now_ns
from pvswitch.errors import ApplyError
from pvswitch.known_ports import KnownPorts
from pvswitch.pcapng import Tally
from tests.pcapng import raw_packets

VM1, VM2, GONE = 0x1_0001, 0x1_0002, 0x7_0009
FRAME = bytes(range(60))


class Rings:
    """A capture in the core, of two workers."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.queues: list[deque[Captured]] = [deque(), deque()]
        self.missing = 0
        self.closed = False

    def take(self, worker: int) -> Captured | None:
        assert not self.closed
        return self.queues[worker].popleft() if self.queues[worker] else None

    def lost(self) -> int:
        return self.missing

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Core:
    """A data plane with room for two captures, which notes what the tables say of their bits."""

    workers = 2

    def __init__(self) -> None:
        self.rings: list[Rings] = []
        self.known = KnownPorts()
        self.known.note(VM1, "vm1", "br0")
        self.known.note(VM2, "vm2", "br0")
        self.captures = Captures(cast(Datapath, self), self.publish, self.known, self.flow_name)
        self.published: list[dict[str, tuple[int, int]]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    def capture(self, *, snaplen: int, ring_bytes: int, program: bytes) -> Any:
        assert 65_536 <= ring_bytes <= 16 << 20
        assert ring_bytes.bit_count() == 1
        if len([rings for rings in self.rings if not rings.closed]) == 2:
            raise OSError(28, "No space left on device")
        self.rings.append(Rings(len(self.rings)))
        return self.rings[-1]

    async def publish(self) -> None:
        tables = {name: self.captures.wanted(name) for name in ("vm1", "vm2")}
        await self.hold.wait()
        self.published.append(tables)

    def flow_name(self, bridge: str, counter: int, at_ns: int) -> str | None:
        return {("br0", 5, 3): "web", ("br0", 5, 4): "other"}.get((bridge, counter, at_ns))


@pytest.fixture
async def core() -> AsyncIterator[Core]:
    core = Core()
    yield core
    await core.captures.close()
    assert all(rings.closed for rings in core.rings)


def frame(at: int, port: int = VM1, **more: Any) -> Captured:
    values = {"inbound": True, "drop": "none", "lost": 0, "peer": 0, "copies": 0, "flow": None, "length": 60, "vid": 0}
    values |= {"unfinished": False, "data": FRAME, **more}
    return Captured(time_ns=at, port=port, **values)  # type: ignore[arg-type]


def rest(reader: CaptureReader) -> bytes:
    """What there is now."""
    pieces = []
    while piece := reader.read():
        pieces.append(piece)
    return b"".join(pieces)


async def whole(reader: CaptureReader) -> bytes:
    """What comes until the end."""
    pieces = []
    async with asyncio.timeout(20):
        while (piece := reader.read()) is not None:
            pieces.append(piece)
            await asyncio.sleep(0)
    return b"".join(pieces)


def shown(stream: bytes) -> list[Any]:
    return raw_packets(stream)


def times(stream: bytes) -> list[int]:
    return [meta.tshigh << 32 | meta.tslow for _, meta in shown(stream)]


async def begun(core: Core, **body: Any) -> tuple[str, CaptureReader, Rings]:
    made = await core.captures.create(CaptureBody(**body))
    return made.id, core.captures.open(made.id), core.rings[-1]


async def test_the_tables_say_who_is_captured_while_there_is_a_capture(core: Core) -> None:
    a = await core.captures.create(CaptureBody(ports=("vm1",), direction="in"))
    b = await core.captures.create(CaptureBody(direction="out"))
    assert core.published == [{"vm1": (1, 0), "vm2": (0, 0)}, {"vm1": (1, 2), "vm2": (0, 2)}]
    assert [info.state for info in core.captures.list()] == ["waiting", "waiting"]
    await core.captures.end(a.id)
    await core.captures.end(b.id)
    assert all(rings.closed for rings in core.rings)
    assert core.published[-1] == {"vm1": (0, 0), "vm2": (0, 0)}
    assert core.captures.list() == []


async def test_there_are_so_many_and_no_more(core: Core) -> None:
    for _ in range(2):
        await core.captures.create(CaptureBody())
    with pytest.raises(ApplyError, match="16 captures already: end one of them"):
        await core.captures.create(CaptureBody())


async def test_the_workers_are_merged_by_time_and_time_never_goes_back(core: Core) -> None:
    _, reader, rings = await begun(core)
    now = now_ns()
    rings.queues[0].extend(frame(now + at) for at in (1, 4, 5))
    rings.queues[1].extend(frame(now + at, VM2) for at in (2, 3, 9))
    first = rest(reader)
    rings.queues[0].append(frame(now + 6))
    assert [meta.ifname for _, meta in shown(first)] == [b"vm1", b"vm2", b"vm2", b"vm1", b"vm1", b"vm2"]
    found = times(first + rest(reader))
    assert [at - found[0] for at in found] == [0, 1, 2, 3, 4, 8, 8]


async def test_what_became_of_a_frame_is_said(core: Core) -> None:
    _, reader, rings = await begun(core)
    frames = {
        "to vm2, vlan 10": frame(1, peer=VM2, copies=1, vid=10),
        "3 copies": frame(2, peer=VM2, copies=3),
        "to vm2, flow web": frame(3, peer=VM2, copies=1, flow=5),
        "to vm2, flow other": frame(4, peer=VM2, copies=1, flow=5),
        "to vm2, flow #6": frame(4, peer=VM2, copies=1, flow=6),
        "dropped: vlan_filtered": frame(5, drop="vlan_filtered"),
        "dropped: guest_rx_full, vlan 7": frame(6, VM2, inbound=False, drop="guest_rx_full", peer=VM1, vid=7),
        "from vm1": frame(7, VM2, inbound=False, peer=VM1, vid=0xFFFF),
        "from vm1, unfinished: its checksum or segmentation is left to the receiver": frame(
            8, VM2, inbound=False, peer=VM1, unfinished=True
        ),
        "": frame(9, GONE, peer=GONE, copies=1),
    }
    rings.queues[1].extend(frames.values())
    found = shown(rest(reader))
    assert [(meta.comments[0].decode() if meta.comments else "") for _, meta in found] == [*frames]
    assert found[-1][1].ifname == b"port-70009"
    assert [meta.direction for _, meta in found] == [1 if item.inbound else 2 for item in frames.values()]


async def test_a_port_that_goes_is_known_by_its_name_still(core: Core) -> None:
    _, reader, rings = await begun(core, ports=("vm1",))
    for generation in range(2, 2 + MAX_CAPTURES):
        core.known.note(generation << 16 | 1, "vm1", "br0")
        rings.queues[0] += (frame(generation, VM1), frame(generation, generation << 16 | 1))
    assert {meta.ifname for _, meta in shown(rest(reader))} == {b"vm1"}


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [({"max_packets": 3}, 3), ({"max_bytes": 180}, 3), ({"max_bytes": 239}, 3), ({"max_bytes": 59}, 0)],
    ids=str,
)
async def test_a_limit_ends_it(core: Core, limit: dict[str, int], sizes: int) -> None:
    name, reader, rings = await begun(core, **limit)
    rings.queues[0].extend(frame(at) for at in range(10))
    stream = await whole(reader)
    assert len(shown(stream)) == sizes
    info = core.captures.info(name)
    assert (info.state, info.packets, info.bytes) == ("ended", sizes, sizes * 60)
    await asyncio.sleep(0)
    assert core.published[-1] == {"vm1": (0, 0), "vm2": (0, 0)}
    reader.close()
    assert core.captures.list() == []


async def test_seconds_end_it_and_what_was_captured_is_read(core: Core) -> None:
    name, reader, rings = await begun(core, max_seconds=1)
    rings.queues[0].extend(frame(at) for at in range(3))
    stream = b""
    async with asyncio.timeout(20):
        while core.captures.info(name).state != "ended":  # noqa: ASYNC110 (another object's state)
            await asyncio.sleep(0.01)
    stream = await whole(reader)
    assert len(shown(stream)) == 3
    reader.close()


async def test_deleting_gives_the_reader_what_there_is_and_the_end(core: Core) -> None:
    """Also what comes until the workers know: the rings stay until then."""
    name, reader, rings = await begun(core, ports=("vm1",))
    rings.queues[0].append(frame(1))
    core.hold.clear()
    ending = asyncio.create_task(core.captures.end(name))
    await asyncio.sleep(0)
    first = rest(reader)
    rings.queues[1].append(frame(2))
    core.hold.set()
    tally = Tally()
    tally.feed(first)
    assert (tally.packets, tally.finished) == (1, False)
    tally.feed(await whole(reader))
    assert (tally.packets, tally.finished, rings.closed) == (2, True, False)
    reader.close()
    await ending
    await core.captures.close()
    assert rings.closed


async def test_a_reader_that_goes_takes_its_capture_along(core: Core) -> None:
    name, reader, rings = await begun(core)
    with pytest.raises(CaptureTaken, match="has a reader already"):
        core.captures.open(name)
    reader.close()
    assert core.captures.list() == []
    with pytest.raises(KeyError):
        core.captures.open(name)
    await core.captures.close()
    assert rings.closed


async def test_without_a_reader_it_goes(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "READER_SECONDS", 0.05)
    await core.captures.create(CaptureBody())
    name, reader, rings = await begun(core)
    async with asyncio.timeout(20):
        while not core.rings[0].closed:  # noqa: ASYNC110 (another object's state)
            await asyncio.sleep(0.01)
    assert [info.id for info in core.captures.list()] == [name]
    assert (reader.read() or b"")[:4] == b"\n\r\r\n"
    assert not rings.closed


async def test_losses_are_told_where_they_happened_and_in_sum(core: Core) -> None:
    name, reader, rings = await begun(core, ports=("vm1",))
    rings.queues[0] += (frame(1), frame(2, lost=5))
    rings.missing = 9
    first = rest(reader)
    tally = Tally()
    tally.feed(first)
    assert tally.lost == 5
    await core.captures.end(name)
    tally.feed(await whole(reader))
    assert (tally.packets, tally.lost, core.captures.lost()) == (2, 9, 9)
    reader.close()
    await core.captures.close()
    assert core.captures.lost() == 9


async def test_a_stream_without_a_frame_is_whole(core: Core) -> None:
    name, reader, _ = await begun(core)
    await core.captures.end(name)
    stream = await whole(reader)
    tally = Tally()
    tally.feed(stream)
    assert (tally.packets, tally.lost, tally.finished, shown(stream)) == (0, 0, True, [])
    reader.close()


async def test_a_piece_has_a_bounded_size(core: Core) -> None:
    """A reader that is slow holds one piece; what waits, waits in the rings."""
    _, reader, rings = await begun(core)
    header = reader.read()
    assert header is not None
    rings.queues[0].extend(frame(at) for at in range(3 * BATCH))
    piece = reader.read()
    assert len(shown(header + (piece or b""))) == BATCH
    rings.queues[0].clear()
    rings.queues[1].extend(frame(at, data=bytes(65_000), length=65_000) for at in range(20))
    assert len(reader.read() or b"") <= PIECE + 66_000
    assert len(rings.queues[1]) >= 16
