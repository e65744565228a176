# SPDX-License-Identifier: Apache-2.0
"""What the API asks of captures and of the flight recorder: `captures.Captures` and `recorder.FlightRecorder` in a
running switch, fakes in tests.

Every room above the ports may import this; it knows only the values of `capture_model`.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pvswitch.capture_model import CaptureBody, CaptureInfo, DropRecord, FrameRecord
from pvswitch.errors import PvswitchError


class CaptureTaken(PvswitchError):
    """A capture has a reader already (HTTP 409)."""


class CaptureStream(Protocol):
    """The one reader's end of a capture."""

    def read(self) -> bytes | None:
        """Return what there is for the stream now, a piece of bounded size; None at its end."""

    def close(self) -> None:
        """Let go of the capture, which is then removed."""


class CapturePlane(Protocol):
    """The captures."""

    async def create(self, body: CaptureBody) -> CaptureInfo:
        """Begin a capture. Raises FilterError, ApplyError."""

    def list(self) -> list[CaptureInfo]:
        """Return the captures."""

    def info(self, capture: str) -> CaptureInfo:
        """Return a capture; KeyError."""

    def open(self, capture: str) -> CaptureStream:
        """Become a capture's reader. KeyError, CaptureTaken."""

    async def end(self, capture: str) -> None:
        """Remove a capture; its reader gets what there is, and the end. Without one, it is free then. KeyError."""

    def end_all(self) -> None:
        """Remove every capture."""


class RecorderPlane(Protocol):
    """The flight recorder: newest first."""

    def knows(self, port: str) -> bool:
        """Whether a port's frames may be among the records: it is there, or was."""

    async def drops(
        self,
        *,
        port: str | None = None,
        bridge: str | None = None,
        direction: Literal["rx", "tx"] | None = None,
        reason: str | None = None,
        limit: int,
    ) -> list[DropRecord]:
        """Return the last drops of a port (its own, or of frames that came by it) that match all that is given."""

    async def frames(
        self, *, port: str | None = None, bridge: str | None = None, reason: str | None = None, limit: int
    ) -> list[FrameRecord]:
        """Return the last frames that were sampled and match all that is given."""
