# SPDX-License-Identifier: Apache-2.0
"""What the workers' rings of one capture hold -> the bytes of its pcapng stream.

Pieces of bounded size are made when the reader asks; nothing is queued here but the oldest frame of each worker. The
rings are merged by time; a frame that a slow worker hands over late gets the time of the one before it, so that times
never go back. The core's clock becomes the time of day by an offset taken at the start: a clock that is set meanwhile
moves nothing.

What the rings had no room for is said at the next frame of the same worker (epb_dropcount), and in sum at the end.
A port is an interface, described before its first frame. Used by `captures.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pvswitch import __version__, pcapng
from pvswitch.capture_model import CaptureBody
from pvswitch.datapath import Captured
from pvswitch.known_ports import KnownPorts

BATCH = 256  # frames of a piece,
PIECE = 128 << 10  # and its bytes, but for one frame more

_NO_VLAN = (0, 0xFFFF)  # PVS_UNMAPPED

FlowName = Callable[[str, int, int], str | None]
"""A bridge's flow by its counter, which it had at that time (ns of the core's clock)."""


class Rings(Protocol):
    """A `DatapathCapture`, as far as it is read here."""

    def take(self, worker: int) -> Captured | None:
        """Return the oldest frame that waits, or None."""

    def lost(self) -> int:
        """Return how many frames found no room so far."""


@dataclass(slots=True)
class _Interface:
    """What has gone into the stream of a port."""

    number: int
    delivered: int = 0
    lost: int = 0


class CaptureBlocks:
    """One capture's stream, from its header to its statistics."""

    def __init__(
        self,
        body: CaptureBody,
        rings: Rings,
        workers: int,
        known: KnownPorts,
        flow_name: FlowName,
        *,
        start_ns: int,
        offset: int,
    ) -> None:
        """`start_ns` is the time of day when it began, `offset` that of the core's clock 0."""
        self.packets = 0
        self.bytes = 0
        self.limit: str | None = None
        """Which of the limits is reached; no frame follows then."""
        self._body = body
        self._rings = rings
        self._known = known
        self._flow_name = flow_name
        self._start_ns = self._last_ns = start_ns
        self._offset = offset
        self._heads: list[Captured | None] = [None] * workers
        self._interfaces: dict[str, _Interface] = {}

    def header(self) -> bytes:
        """Return how the stream begins: with the ports that are named."""
        described = [self._describe(name)[1] for name in self._body.ports]
        return b"".join([pcapng.section(f"pvswitch {__version__}"), *described])

    def piece(self) -> bytes:
        """Return the blocks of the frames that wait now, up to about PIECE bytes; nothing when none does."""
        for worker, head in enumerate(self._heads):
            if head is None:
                self._heads[worker] = self._rings.take(worker)
        blocks: list[bytes] = []
        size = 0
        for _ in range(BATCH):
            frame, worker = self._oldest()
            if frame is None or size >= PIECE or self._is_full(frame):
                break
            blocks += self._blocks(frame)
            size += len(blocks[-1])
            self._heads[worker] = self._rings.take(worker)
        return b"".join(blocks)

    def trailer(self, end_ns: int) -> bytes:
        """Return how it ends: what became of each interface's frames. Losses that no frame told are the first's."""
        blocks = []
        if not self._interfaces:  # readers expect one
            blocks.append(self._describe("any")[1])
        told = sum(interface.lost for interface in self._interfaces.values())
        untold = max(0, self._rings.lost() - told)
        for interface in self._interfaces.values():
            lost, untold = interface.lost + untold, 0
            blocks.append(
                pcapng.statistics(
                    interface.number,
                    self._start_ns,
                    max(end_ns, self._last_ns),
                    delivered=interface.delivered,
                    lost=lost,
                )
            )
        return b"".join(blocks)

    def _oldest(self) -> tuple[Captured | None, int]:
        """Return the oldest of the frames that were taken from the rings, and its worker."""
        waiting = [(head.time_ns, worker) for worker, head in enumerate(self._heads) if head is not None]
        worker = min(waiting)[1] if waiting else 0
        return self._heads[worker], worker

    def _is_full(self, frame: Captured) -> bool:
        if self._body.max_bytes is not None and self.bytes + len(frame.data) > self._body.max_bytes:
            self.limit = "max_bytes"
        return self.limit is not None

    def _blocks(self, frame: Captured) -> list[bytes]:
        port = self._known.get(frame.port)
        name = f"port-{frame.port:x}" if port is None else port.name
        interface, described = self._describe(name)
        self._last_ns = max(self._last_ns, frame.time_ns + self._offset)
        interface.delivered += 1
        interface.lost += frame.lost
        self.packets += 1
        self.bytes += len(frame.data)
        if self.packets == self._body.max_packets:
            self.limit = "max_packets"
        packet = pcapng.packet(
            interface.number,
            self._last_ns,
            frame.data,
            frame.length,
            inbound=frame.inbound,
            lost=frame.lost,
            comment=self._comment(frame, "" if port is None else port.bridge),
        )
        return [described, packet]

    def _describe(self, name: str) -> tuple[_Interface, bytes]:
        """Return a port's interface, and its description where that is due."""
        if name in self._interfaces:
            return self._interfaces[name], b""
        interface = self._interfaces[name] = _Interface(len(self._interfaces))
        return interface, pcapng.interface(name, self._body.snaplen, self._body.filter)

    def _comment(self, frame: Captured, bridge: str) -> str:
        """Return what became of a frame, in words."""
        words = []
        peer = self._known.name(frame.peer)
        if frame.drop != "none":
            words.append(f"dropped: {frame.drop}")
        elif not frame.inbound:
            words += [f"from {peer}"] if peer else []
        elif frame.copies > 1:
            words.append(f"{frame.copies} copies")
        elif peer:
            words.append(f"to {peer}")
        if frame.vid not in _NO_VLAN:
            words.append(f"vlan {frame.vid}")
        if frame.flow is not None:
            words.append(f"flow {self._flow_name(bridge, frame.flow, frame.time_ns) or f'#{frame.flow}'}")
        if frame.unfinished:
            words.append("unfinished: its checksum or segmentation is left to the receiver")
        return ", ".join(words)
