# SPDX-License-Identifier: Apache-2.0
"""The threads between files and sockets: what they send and write, in which time, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pvswitch import file_pump
from pvswitch.capture_file import Packet, packets, pcap_header, pcap_record_header
from pvswitch.file_open import CaptureFileError, open_files
from pvswitch.file_pump import HEADER, Player, Recorder, socket_pair
from tests.system.footprint import footprint

MS = 1_000_000


def frame(number: int, length: int = 60) -> bytes:
    return number.to_bytes(4, "big") * 4 + bytes(length - 16)


def capture(path: Path, *times_ns: int, length: int = 60) -> Path:
    """A file with numbered frames of these times."""
    records = [pcap_record_header(t, length) + frame(i, length) for i, t in enumerate(times_ns)]
    path.write_bytes(pcap_header() + b"".join(records))
    return path


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = footprint(os.getpid()).fds, set(threading.enumerate())
    yield
    threads = {t for t in threading.enumerate() if t.name.startswith(("Player", "Recorder"))}
    assert (footprint(os.getpid()).fds, threads) == (before[0], set())


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket_pair()
    with near, far:
        near.setblocking(False)
        yield near, far


Ends = tuple[socket.socket, socket.socket]


@contextlib.asynccontextmanager
async def playing(
    path: Path, far: socket.socket, speed: float = 0, loop: bool = False, paused: bool = False
) -> AsyncIterator[Player]:
    files = open_files(path, None)
    assert files.source is not None
    player = Player("p", path, far, files.source, speed=speed, loop=loop, paused=paused)
    player.start()
    try:
        yield player
    finally:
        await player.close()


@contextlib.asynccontextmanager
async def recording(path: Path, far: socket.socket) -> AsyncIterator[Recorder]:
    files = open_files(None, path)
    assert files.target is not None
    recorder = Recorder("p", path, far, files.target)
    recorder.start()
    try:
        yield recorder
    finally:
        await recorder.close()


async def take(near: socket.socket, count: int) -> list[bytes]:
    """So many frames, as the core would get them."""
    loop = asyncio.get_running_loop()
    got: list[bytes] = []
    async with asyncio.timeout(20):
        while len(got) < count:
            message = await loop.sock_recv(near, 1 << 17)
            assert message[:10] == HEADER
            got.append(message[10:])
    return got


async def until(true: object) -> None:
    assert callable(true)
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 (what is waited for is another thread's)
            await asyncio.sleep(0.005)


def recorded(path: Path) -> list[Packet]:
    with path.open("rb") as file:
        return list(packets(file))


# ---- playing


async def test_frames_come_in_order_and_their_end_is_told(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", *range(120))
    async with playing(path, far) as player:
        assert await take(near, 120) == [frame(i) for i in range(120)]
        await until(lambda: player.message)
        assert player.message == "played 120 frames, finished"


async def test_no_frame_comes_before_its_time(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    times = [0, 20 * MS, 20 * MS + 300_000, 5 * MS, 40 * MS, 10**15]  # backwards is no distance; the last: days later
    path = capture(tmp_path / "a.pcap", *times)
    begin = time.monotonic_ns()
    async with playing(path, far, speed=0.5) as player:
        due = [0, 40 * MS, 40 * MS + 600_000, 40 * MS + 600_000, 110 * MS + 600_000]
        for number, wanted in enumerate(due):
            assert await take(near, 1) == [frame(number)]
            assert time.monotonic_ns() - begin >= wanted
        assert player.message == ""
        begin = time.monotonic_ns()
    assert time.monotonic_ns() - begin < 2_000 * MS, "its end waits for the last frame"


async def test_times_that_go_backwards_are_not_waited_for(tmp_path: Path, ends: Ends) -> None:
    path = capture(tmp_path / "a.pcap", 10**15, 0, 1)
    async with playing(path, ends[1], speed=1):
        assert await take(ends[0], 3) == [frame(i) for i in range(3)]


async def test_speed_divides_the_time(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", 0, 3600 * 1000 * MS)
    async with playing(path, far, speed=360_000):
        begin = time.monotonic_ns()
        await take(near, 2)
        assert time.monotonic_ns() - begin < 5_000 * MS


async def test_a_loop_goes_on_until_it_is_ended(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", 0, 1, 2)
    async with playing(path, far, loop=True) as player:
        assert await take(near, 3000) == [frame(i) for i in range(3)] * 1000
        assert player.message == ""


async def test_a_loop_of_nothing_ends(tmp_path: Path, ends: Ends) -> None:
    path = capture(tmp_path / "a.pcap", 0, length=1500)
    path.write_bytes(path.read_bytes()[:24])
    async with playing(path, ends[1], loop=True) as player:
        await until(lambda: player.message)
        assert player.message == "played 0 frames, finished"


async def test_a_full_socket_is_waited_for_and_no_frame_is_lost(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", *range(20_000), length=1500)
    async with playing(path, far) as player:
        await asyncio.sleep(0.3)
        assert player.message == "", "the socket took it all"
        assert await take(near, 20_000) == [frame(i, 1500) for i in range(20_000)]
    async with playing(path, far):  # one that waits for room is ended
        await asyncio.sleep(0.2)


async def test_a_pause_counts_as_no_time(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", 0, 200 * MS, 400 * MS)
    async with playing(path, far, speed=1, paused=True) as player:
        await asyncio.sleep(0.1)
        with pytest.raises(BlockingIOError):
            near.recv(1)
        player.pause(False)
        await take(near, 1)
        player.pause(True)
        await asyncio.sleep(0.5)
        with pytest.raises(BlockingIOError):
            near.recv(1)
        begin = time.monotonic_ns()
        player.pause(False)
        await take(near, 2)
        assert time.monotonic_ns() - begin >= 300 * MS


async def test_it_begins_anew_when_it_is_told(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", 0, 1, 10**15)
    async with playing(path, far, speed=1) as player:
        assert await take(near, 2) == [frame(0), frame(1)]
        player.restart(0, False)
        assert await take(near, 3) == [frame(0), frame(1), frame(2)]
        await until(lambda: player.message)
        player.restart(0, True)
        assert await take(near, 6) == [frame(i) for i in range(3)] * 2


async def test_frames_that_are_not_whole_are_left_out_and_told_once(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    good, cut = pcap_record_header(0, 60) + frame(7), pcap_record_header(0, 60)[:12] + (90).to_bytes(4, "little")
    short, long = pcap_record_header(0, 13) + bytes(13), pcap_record_header(0, 65_565) + bytes(65_565)
    longest = pcap_record_header(0, 65_564) + frame(8, 65_564)
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap_header() + cut + bytes(60) + short + good + long + longest)
    with capture_logs() as logs:
        async with playing(path, far) as player:
            assert await take(near, 2) == [frame(7), frame(8, 65_564)]
            await until(lambda: player.message)
            assert player.message == "played 2 frames, finished; 3 were left out: cut, too long or too short"
    assert [line["first_length"] for line in logs if "left out" in line["event"]] == [90]


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda data: data[:-1], "the file ends in the middle of a record"),
        (lambda data: data + b"\x01", "the file ends in the middle of a record"),
    ],
)
async def test_what_came_before_damage_is_played(tmp_path: Path, ends: Ends, cut: object, words: str) -> None:
    near, far = ends
    path = capture(tmp_path / "a.pcap", 0, 1, 2)
    assert callable(cut)
    path.write_bytes(cut(path.read_bytes()))
    with capture_logs() as logs:
        async with playing(path, far, loop=True) as player:
            got = await take(near, 4)
            assert player.message == ""
            player.restart(0, False)
            await until(lambda: words in player.message)
    assert got[:2] == [frame(0), frame(1)]
    assert [line["error"] for line in logs if line["event"] == "capture not played to its end"] == [words] * 2


# ---- recording


async def test_what_comes_is_written_whole_and_at_once(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = tmp_path / "w.pcap"
    before = time.time_ns()
    async with recording(path, far):
        await until(lambda: path.stat().st_size == len(pcap_header()))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for number in range(50):
            near.send(HEADER + frame(number, 60 + number))
        near.send(HEADER + frame(50, 65_568))
        await until(lambda: len(recorded(path)) == 51)  # without its end
    got = recorded(path)
    assert [packet.data for packet in got] == [frame(i, 60 + i) for i in range(50)] + [frame(50, 65_568)]
    times = [packet.time_ns for packet in got]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= time.time_ns()


async def test_what_is_there_at_the_end_is_written(tmp_path: Path, ends: Ends) -> None:
    near, far = ends
    path = tmp_path / "w.pcap"
    async with recording(path, far):
        for number in range(2000):
            near.send(HEADER + frame(number, 1500))
    assert [packet.data for packet in recorded(path)] == [frame(i, 1500) for i in range(2000)]


async def test_a_capture_is_replaced_and_only_when_it_begins(tmp_path: Path, ends: Ends) -> None:
    path = capture(tmp_path / "w.pcap", *range(100))
    old = path.read_bytes()
    open_files(None, path).close()
    assert path.read_bytes() == old
    async with recording(path, ends[1]):
        await until(lambda: path.read_bytes() == pcap_header())


async def test_a_file_has_one_writer_whatever_its_names_are(
    tmp_path: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = ends
    monkeypatch.setattr(file_pump, "RETRY_MS", 20)
    path, other = tmp_path / "w.pcap", tmp_path / "x.pcap"
    async with recording(path, far):
        await until(lambda: path.stat().st_size)
        os.link(path, other)
        with capture_logs() as logs:
            async with recording(other, far) as second:
                await until(lambda: "written by another port or program" in second.message)
        assert [line["event"] for line in logs] == ["file is written by another"]
        near.send(HEADER + frame(1))
        await until(lambda: [packet.data for packet in recorded(path)] == [frame(1)])
        waiting = recording(other, far)
        second = await waiting.__aenter__()
        await until(lambda: second.message)
    await until(lambda: not second.message)  # the first has ended
    await until(lambda: other.read_bytes() == pcap_header())
    await waiting.__aexit__(None, None, None)


def test_a_file_that_is_made_in_vain_is_removed(tmp_path: Path) -> None:
    with pytest.raises(CaptureFileError, match="no file"):
        open_files(tmp_path / "missing", tmp_path / "w.pcap")
    open_files(None, tmp_path / "w.pcap").close()
    assert list(tmp_path.iterdir()) == []


class Disk:
    """A disk on which a file ends at `limit` bytes. One that is full for real is in tests/wire/test_pcap_ports.py."""

    def __init__(self) -> None:
        self.limit = 100_000
        self._pwrite = os.pwrite

    def pwrite(self, file: int, data: bytes | memoryview, offset: int) -> int:
        room = self.limit - offset
        if room <= 0:
            del data  # the error's traceback holds this frame, and a buffer that is looked at can't become smaller
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return self._pwrite(file, data[:room], offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    monkeypatch.setattr(os, "pwrite", found.pwrite)
    return found


async def test_a_full_disk_is_told_and_tried_again(
    tmp_path: Path, ends: Ends, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = ends
    monkeypatch.setattr(file_pump, "RETRY_MS", 20)
    path, sent = tmp_path / "w.pcap", 0
    with capture_logs() as logs:
        async with recording(path, far) as recorder:
            while not recorder.message:
                near.send(HEADER + frame(sent, 1500))
                sent += 1
                await asyncio.sleep(0.0005)
            assert (
                recorder.message
                == f"{path} cannot be written: File too large; make room for it, or set another `write`"
            )
            await until(lambda: (path.stat().st_size - 24) % 1516 == 0)  # whole records up to the last
            assert path.stat().st_size <= disk.limit
            with contextlib.suppress(BlockingIOError):  # from now on the core is refused, and counts
                while sent < 1_000_000:
                    near.send(HEADER + frame(sent, 1500))
                    sent += 1
            assert sent < 1_000_000
            disk.limit = sys.maxsize
            await until(lambda: not recorder.message)
    assert [packet.data for packet in recorded(path)] == [frame(i, 1500) for i in range(sent)]
    assert [line["event"] for line in logs] == ["file cannot be written", "file is written again"]


async def test_a_disk_that_stays_full_does_not_hold_up_the_end(tmp_path: Path, ends: Ends, disk: Disk) -> None:
    near, far = ends
    path = tmp_path / "w.pcap"
    with capture_logs() as logs:
        for number in range(500):
            near.send(HEADER + frame(number, 1500))
        async with recording(path, far) as recorder:
            await until(lambda: recorder.message)
    room = (disk.limit - 24) // 1516
    assert [packet.data for packet in recorded(path)] == [frame(i, 1500) for i in range(room)]
    assert logs[-1]["event"] == "frames were not written"
    assert logs[-1]["frames"] > 0


async def test_a_call_that_does_not_return_is_left_to_itself(
    tmp_path: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, far = ends
    hangs, pwrite = threading.Event(), os.pwrite
    monkeypatch.setattr(file_pump, "END_SECONDS", 0.2)

    def hanging(*arguments: object) -> int:
        assert hangs.wait(20)
        return pwrite(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", hanging)
    with capture_logs() as logs:
        async with recording(tmp_path / "w.pcap", far) as recorder:
            pass
    assert [line["event"] for line in logs] == ["file not closed: a call on it does not return"]
    hangs.set()
    assert recorder._thread is not None
    await asyncio.to_thread(recorder._thread.join)
    await asyncio.sleep(0)


# ---- opening


@pytest.mark.parametrize("key", ["read", "write"])
def test_what_cannot_be_opened_is_told(tmp_path: Path, key: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("something else")
    (tmp_path / "link").symlink_to("link")
    cases = {"folder": "is a folder", "fifo": "is no regular file", "text": "is no capture", "link": "Too many levels"}
    cases["none/x"] = "there is no file" if key == "read" else "there is no folder"
    cases["x" * 300] = "File name too long"
    for name, words in cases.items():
        before = sorted(tmp_path.iterdir())
        paths = (tmp_path / name, None) if key == "read" else (None, tmp_path / name)
        with pytest.raises(CaptureFileError, match=words) as caught:
            open_files(*paths)
        assert str(tmp_path) in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "text").read_text() == "something else"


def test_devices_are_no_files() -> None:
    for paths in ((Path("/dev/zero"), None), (None, Path("/dev/full"))):
        with pytest.raises(CaptureFileError, match="is no regular file"):
            open_files(*paths)


def test_the_file_that_is_read_by_another_name_is_not_written(tmp_path: Path) -> None:
    path = capture(tmp_path / "a.pcap", 0)
    for make in (os.symlink, os.link):
        other = tmp_path / make.__name__
        make(path, other)
        with pytest.raises(CaptureFileError, match="is the very file that is read"):
            open_files(path, other)


async def test_threads_that_never_began_close_what_they_have(tmp_path: Path, ends: Ends) -> None:
    path = capture(tmp_path / "a.pcap", 0)
    files = open_files(path, tmp_path / "w.pcap")
    assert files.source is not None
    assert files.target is not None
    await Player("p", path, ends[1], files.source, speed=1, loop=False, paused=False).close()
    await Recorder("p", path, ends[1], files.target).close()
