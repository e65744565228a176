# SPDX-License-Identifier: Apache-2.0
"""All captures of the switch: frames that pass by ports, for who reads them live.

A capture begins when it is made: the tables are published with its bit, and the workers copy frames into its rings
until a reader fetches them. It has one reader. It is removed when the reader has gone, when it is deleted, and when no
reader came for READER_SECONDS; a limit that is reached ends it, and what was captured by then can still be read. The
rings are of a fixed size, and the reader's pieces are too: who reads slowly loses frames, which are counted, and costs
neither the traffic nor memory.

Captures are no configuration: they name ports, which may come and go meanwhile. `ports.py` owns this and asks `wanted`
when it publishes; `api/` uses it through `capture_plane.CapturePlane`. On the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine

from pvswitch.bpf import compile_filter
from pvswitch.capture_model import CaptureBody, CaptureInfo, CaptureState
from pvswitch.capture_plane import CaptureTaken
from pvswitch.capture_stream import CaptureBlocks, FlowName
from pvswitch.datapath import MAX_CAPTURES, Datapath, DatapathCapture
from pvswitch.errors import ApplyError
from pvswitch.known_ports import KnownPorts
from pvswitch.recorder import realtime_offset, rfc3339

READER_SECONDS = 30.0
"""How long a capture waits for its reader."""
RINGS_BYTES = 8 << 20
"""Of all workers' rings of a capture; each is a power of two."""
MIN_RING = 256 << 10  # so that the largest frame fits, and some more


class _Capture:
    """One capture, from its rings to its reader. `ended`: no further frames are wanted."""

    def __init__(self, name: str, body: CaptureBody, rings: DatapathCapture, blocks: CaptureBlocks) -> None:
        self.name = name
        self.body = body
        self.rings = rings
        self.blocks = blocks
        self.started = time.time_ns()
        self.ports = frozenset(body.ports)
        self.reader: CaptureReader | None = None
        self.ended = False
        self.quiet = asyncio.Event()  # no worker knows of it any more
        self.freed = asyncio.Event()
        self.reader_timer: asyncio.TimerHandle | None = None
        self.limit_timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> CaptureState:
        if self.ended:
            return "ended"
        return "waiting" if self.reader is None else "running"


class CaptureReader:
    """The reader's end; see `capture_plane.CaptureStream`."""

    def __init__(self, capture: _Capture, end: Callable[[_Capture], None], close: Callable[[_Capture], None]) -> None:
        """`end`: no more frames are wanted; `close`: the reader has gone."""
        self._capture = capture
        self._end = end
        self._close = close
        self._begun = self._finished = False

    def read(self) -> bytes | None:
        """Return what there is for the stream now, a piece of bounded size; None at its end."""
        capture = self._capture
        if not self._begun:
            self._begun = True
            return capture.blocks.header()
        if self._finished:
            return None
        quiet = capture.quiet.is_set()  # looked at first: what came before it is in the rings
        piece = capture.blocks.piece()
        if capture.blocks.limit is not None:
            self._end(capture)
        if capture.blocks.limit is not None or (quiet and not piece):
            self._finished = True
            return piece + capture.blocks.trailer(time.time_ns())
        return piece

    def close(self) -> None:
        """Let go of the capture, which is then removed."""
        self._close(self._capture)


class Captures:
    """The captures."""

    def __init__(
        self,
        datapath: Datapath,
        publish: Callable[[], Awaitable[None]],
        known: KnownPorts,
        flow_name: FlowName = lambda _bridge, _counter, _at_ns: None,
    ) -> None:
        """`publish` makes the tables anew, by which `wanted` is asked; `flow_name` knows a bridge's flows."""
        self._datapath = datapath
        self._publish = publish
        self._known = known
        self._flow_name = flow_name
        self._captures: dict[str, _Capture] = {}
        self._alive: set[_Capture] = set()  # those that are removed, but not yet freed, as well
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = 0  # by captures that are gone

    # ---- for the tables

    def wanted(self, port: str) -> tuple[int, int]:
        """Return which captures want what comes in by a port, and what goes out: bits."""
        bits_in = bits_out = 0
        for capture in self._captures.values():
            if capture.ended or (capture.ports and port not in capture.ports):
                continue
            bit = 1 << capture.rings.slot
            bits_in |= bit if capture.body.direction != "out" else 0
            bits_out |= bit if capture.body.direction != "in" else 0
        return bits_in, bits_out

    # ---- CapturePlane

    async def create(self, body: CaptureBody) -> CaptureInfo:
        """Begin a capture; frames that pass from now on are in it. Raises FilterError, ApplyError."""
        program = await asyncio.to_thread(compile_filter, body.filter, body.snaplen)
        capture = self._make(body, program)
        self._captures[capture.name] = capture
        self._alive.add(capture)
        loop = asyncio.get_running_loop()
        capture.reader_timer = loop.call_later(READER_SECONDS, self._no_reader, capture)
        if body.max_seconds is not None:
            capture.limit_timer = loop.call_later(body.max_seconds, self._end, capture)
        await self._publish()
        return self._info(capture)

    def list(self) -> list[CaptureInfo]:
        """Return the captures."""
        return [self._info(capture) for capture in self._captures.values()]

    def info(self, capture: str) -> CaptureInfo:
        """Return a capture; KeyError."""
        return self._info(self._captures[capture])

    def open(self, capture: str) -> CaptureReader:
        """Become a capture's reader. KeyError, CaptureTaken."""
        found = self._captures[capture]
        if found.reader is not None:
            raise CaptureTaken(f"capture {capture} has a reader already: make another one of the same ports")
        _cancel(found.reader_timer)
        found.reader = CaptureReader(found, self._end, self._let_go)
        return found.reader

    async def end(self, capture: str) -> None:
        """Remove a capture; its reader gets what there is, and the end. Without one, it is free then. KeyError."""
        found = self._captures[capture]
        self._remove(found)
        await (found.quiet if found.reader is not None else found.freed).wait()

    def end_all(self) -> None:
        """Remove every capture."""
        for capture in [*self._captures.values()]:
            self._remove(capture)

    def lost(self) -> int:
        """Return how many frames captures have lost so far."""
        return self._lost + sum(capture.rings.lost() for capture in self._alive)

    async def close(self) -> None:
        """End all and free them; nobody reads any more."""
        self.end_all()
        while self._tasks:
            await asyncio.gather(*self._tasks)
        for capture in [*self._alive]:
            self._free(capture)

    # ---- how they come and go

    def _make(self, body: CaptureBody, program: bytes) -> _Capture:
        size = max(MIN_RING, RINGS_BYTES // self._datapath.workers)
        size = 1 << (size.bit_length() - 1)
        try:
            rings = self._datapath.capture(snaplen=body.snaplen, ring_bytes=size, program=program)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                message = f"there are {MAX_CAPTURES} captures already: end one of them"
            else:
                message = f"a capture can't be made: {error.strerror}"
            raise ApplyError(message, "#/captures") from error
        offset = realtime_offset()
        blocks = CaptureBlocks(
            body,
            rings,
            self._datapath.workers,
            self._known,
            self._flow_name,
            start_ns=time.time_ns(),
            offset=offset,
        )
        return _Capture(secrets.token_hex(4), body, rings, blocks)

    def _info(self, capture: _Capture) -> CaptureInfo:
        return CaptureInfo(
            **dict(capture.body),
            name=capture.name,
            id=capture.name,
            state=capture.state,
            started=rfc3339(capture.started),
            packets=capture.blocks.packets,
            bytes=capture.blocks.bytes,
            lost=capture.rings.lost(),
        )

    def _no_reader(self, capture: _Capture) -> None:
        if capture.reader is None:
            self._remove(capture)

    def _end(self, capture: _Capture) -> None:
        """Have the workers forget a capture; what they have captured stays."""
        if capture.ended:
            return
        capture.ended = True
        _cancel(capture.limit_timer)
        self._begin(self._make_quiet(capture))

    async def _make_quiet(self, capture: _Capture) -> None:
        await self._publish()
        capture.quiet.set()

    def _remove(self, capture: _Capture) -> None:
        """Have a capture out of the list; it is freed when nobody reads it."""
        if self._captures.pop(capture.name, None) is None:
            return
        _cancel(capture.reader_timer)
        self._end(capture)
        if capture.reader is None:
            self._free_when_quiet(capture)

    def _let_go(self, capture: _Capture) -> None:
        """Remove and free a capture whose reader has gone."""
        self._remove(capture)
        self._free_when_quiet(capture)

    def _free_when_quiet(self, capture: _Capture) -> None:
        async def free() -> None:
            await capture.quiet.wait()
            self._free(capture)

        self._begin(free())

    def _free(self, capture: _Capture) -> None:
        self._alive.discard(capture)
        self._lost += capture.rings.lost()
        capture.rings.close()
        capture.freed.set()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
