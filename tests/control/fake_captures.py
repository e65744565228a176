# SPDX-License-Identifier: Apache-2.0
"""Captures and a flight recorder that have what a test gives them: what the API is tested against without a core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pvswitch.bpf import compile_filter
from pvswitch.capture_model import CaptureBody, CaptureInfo, DropRecord, FrameRecord
from pvswitch.capture_plane import CaptureTaken
from pvswitch.errors import ApplyError

FRAME = bytes.fromhex("ffffffffffff525400000001") + b"\x88\xb5" + bytes(46)


@dataclass
class FakeStream:
    """Gives the pieces of its capture; the last one again and again until that is ended."""

    plane: FakeCaptures
    name: str
    closed: bool = False

    def read(self) -> bytes | None:
        if self.plane.pieces:
            return self.plane.pieces.pop(0)
        return b"" if self.name in self.plane.made and not self.plane.short else None

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeCaptures:
    """Two captures at most; `pieces` are what the next reader gets, and with `short` the end behind them."""

    pieces: list[bytes] = field(default_factory=list)
    short: bool = False
    made: dict[str, CaptureInfo] = field(default_factory=dict)
    streams: dict[str, FakeStream] = field(default_factory=dict)

    async def create(self, body: CaptureBody) -> CaptureInfo:
        compile_filter(body.filter, body.snaplen)
        if len(self.made) == 2:
            raise ApplyError("there are 2 captures already: end one of them", "#/captures")
        name = f"{len(self.made) + 1:08x}"
        self.made[name] = CaptureInfo(
            **dict(body),
            name=name,
            id=name,
            state="waiting",
            started="2025-01-01T00:00:00.000000+00:00",
            packets=0,
            bytes=0,
            lost=3,
        )
        return self.made[name]

    def list(self) -> list[CaptureInfo]:
        return [*self.made.values()]

    def info(self, capture: str) -> CaptureInfo:
        return self.made[capture]

    def open(self, capture: str) -> FakeStream:
        if capture in self.streams and not self.streams[capture].closed:
            raise CaptureTaken(f"capture {capture} has a reader already")
        assert capture in self.made
        self.streams[capture] = FakeStream(self, capture)
        return self.streams[capture]

    async def end(self, capture: str) -> None:
        del self.made[capture]

    def end_all(self) -> None:
        self.made.clear()


@dataclass
class FakeRecorder:
    """One drop at vm2, of a frame from vm1, and one sampled frame. There was a port `gone`."""

    def knows(self, port: str) -> bool:
        return port == "gone"

    async def drops(
        self,
        *,
        port: str | None = None,
        bridge: str | None = None,
        direction: Literal["rx", "tx"] | None = None,
        reason: str | None = None,
        limit: int,
    ) -> list[DropRecord]:
        drop = DropRecord(
            name="0-7",
            time="2025-01-01T00:00:00.000001+00:00",
            port="vm2",
            bridge="br0",
            in_port="vm1",
            direction="tx",
            reason="guest_rx_full",
            count=1,
            len=60,
            vid=0,
            bytes=FRAME.hex(),
            summary="52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff, type 0x88b5",
        )
        wanted = {"bridge": bridge, "direction": direction, "reason": reason}
        fits = all(value is None or getattr(drop, key) == value for key, value in wanted.items())
        return [drop][:limit] if fits and port in (None, "vm1", "vm2") else []

    async def frames(
        self, *, port: str | None = None, bridge: str | None = None, reason: str | None = None, limit: int
    ) -> list[FrameRecord]:
        frame = FrameRecord(
            name="0-9",
            time="2025-01-01T00:00:00.000002+00:00",
            port="vm1",
            bridge="br0",
            copies=1,
            out_port="vm2",
            len=60,
            vid=0,
            bytes=FRAME.hex(),
            summary="52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff, type 0x88b5",
        )
        return [frame][:limit] if reason is None and port in (None, "vm1") and bridge in (None, "br0") else []
