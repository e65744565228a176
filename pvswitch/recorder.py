# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: the last drops, and the last frames that were sampled, as the API shows them.

The core keeps both, always, in rings of each worker. They are read when somebody asks; a ring is copied at once, and
only as many records are put into words as are wanted. Used by `ports.py`, which owns it, and by the API.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Literal

import structlog

from pvswitch.bpf import compile_filter
from pvswitch.capture_model import MAX_SNAPLEN, DropRecord, FrameRecord
from pvswitch.datapath import Datapath, Record, now_ns
from pvswitch.frame_words import summary
from pvswitch.known_ports import KnownPorts
from pvswitch.model import Recorder

log = structlog.get_logger(__name__)

SLICE = 1024  # records that are looked at before others have their turn
_NO_VLAN = 0xFFFF  # PVS_UNMAPPED


def rfc3339(realtime_ns: int) -> str:
    """Return a time as the API says it, to the microsecond."""
    return datetime.fromtimestamp(realtime_ns / 1e9, UTC).isoformat(timespec="microseconds")


def realtime_offset() -> int:
    """Return what is to be added to the core's clock for the time of day."""
    return time.time_ns() - now_ns()


class FlightRecorder:
    """What the core's rings hold."""

    def __init__(self, datapath: Datapath, known: KnownPorts) -> None:
        """`known` says which ports the records are of."""
        self._datapath = datapath
        self._known = known

    async def prepare(self, settings: Recorder) -> bytes:
        """Return the instructions of its filter; FilterError."""
        return await asyncio.to_thread(compile_filter, settings.filter, MAX_SNAPLEN)

    async def apply(self, settings: Recorder, program: bytes) -> None:
        """Sample by new settings; that they can't be followed is logged, as nothing that forwards depends on it."""
        try:
            await self._datapath.set_recorder(settings.sample, program)
        except OSError as error:
            log.error("frames are not sampled as the configuration says", error=error.strerror)

    def knows(self, port: str) -> bool:
        """Whether a port's frames may be among the records: it is there, or was."""
        return self._known.has(port)

    async def drops(
        self,
        *,
        port: str | None = None,
        bridge: str | None = None,
        direction: Literal["rx", "tx"] | None = None,
        reason: str | None = None,
        limit: int,
    ) -> list[DropRecord]:
        """Return the last drops, newest first; `port` is whose counter it is, or that the frame came by."""
        found: list[DropRecord] = []
        offset = realtime_offset()
        async for record in self._newest("drops"):
            if (direction is not None and record.direction != direction) or (reason or record.drop) != record.drop:
                continue
            drop = self._drop(record, offset)
            if (bridge or drop.bridge) == drop.bridge and (port is None or port in (drop.port, drop.in_port)):
                found.append(drop)
                if len(found) == limit:
                    break
        return found

    async def frames(
        self, *, port: str | None = None, bridge: str | None = None, reason: str | None = None, limit: int
    ) -> list[FrameRecord]:
        """Return the last frames that were sampled, newest first."""
        found: list[FrameRecord] = []
        offset = realtime_offset()
        async for record in self._newest("frames"):
            if (reason or record.drop) != record.drop:
                continue
            frame = self._frame(record, offset)
            if (bridge or frame.bridge) == frame.bridge and (port or frame.port) == frame.port:
                found.append(frame)
                if len(found) == limit:
                    break
        return found

    async def _newest(self, ring: Literal["drops", "frames"]) -> AsyncIterator[Record]:
        rings = []
        for worker in range(self._datapath.workers):
            rings.append(self._datapath.records(worker, ring))
            await asyncio.sleep(0)
        for turn, record in enumerate(heapq.merge(*rings, key=lambda record: record.time_ns, reverse=True)):
            if turn % SLICE == 0:
                await asyncio.sleep(0)
            yield record

    def _drop(self, record: Record, offset: int) -> DropRecord:
        port = self._known.get(record.port)
        return DropRecord(
            name=f"{record.worker}-{record.number}",
            time=rfc3339(record.time_ns + offset),
            port=None if port is None else port.name,
            bridge=None if port is None else port.bridge,
            in_port=self._known.name(record.in_port),
            direction=record.direction or "rx",
            reason=record.drop,
            count=record.count,
            len=record.length or None,
            vid=None if record.vid == _NO_VLAN else record.vid,
            bytes=record.data.hex(),
            summary=summary(record.data),
        )

    def _frame(self, record: Record, offset: int) -> FrameRecord:
        port = self._known.get(record.port)
        return FrameRecord(
            name=f"{record.worker}-{record.number}",
            time=rfc3339(record.time_ns + offset),
            port=None if port is None else port.name,
            bridge=None if port is None else port.bridge,
            copies=record.copies,
            out_port=self._known.name_of_index(record.out_index) if record.copies else None,
            reason=None if record.drop == "none" else record.drop,
            len=record.length or None,
            vid=None if record.vid == _NO_VLAN else record.vid,
            bytes=record.data.hex(),
            summary=summary(record.data),
        )
