# SPDX-License-Identifier: Apache-2.0
"""What every type of port is to the rest of the switch: its life, its link state, what there is to see.

`Ports` holds `SwitchPort`s and knows nothing of sockets, rings or interfaces. The order of a port's life: `bind`
(everything that can fail), `listen` (others may come to it), any number of `configure` with `renew` behind it where
that says so, `close`. Of a change, what can fail and must be there with the new tables is made by `stage`, and taken by
`adopt` right before they are published. `tick` is called once a second. Implemented by `vhost_port.py`,
`uplink_port.py`, `file_port.py` and `tunnel_port.py`, on the event loop; `UplinkQueues` is what those of descriptors
have in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from pvswitch.datapath import DatapathHandle, DatapathUplink
from pvswitch.model import AnyPort
from pvswitch.state import LinkReason, PortState, QueueStats

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PolledQueue:
    """A running queue that a worker takes frames from, and what that has cost so far."""

    queue: int
    worker: int
    packets: int
    cycles: int
    pinned: bool


class SwitchPort(ABC):
    """One port of the switch, from `bind()` to `close()`."""

    def __init__(self, name: str, handle: DatapathHandle, on_link: Callable[[SwitchPort], None]) -> None:
        """`handle` is the port's in the core; `on_link` is called when the link goes up or down."""
        self.name = name
        self.handle = handle
        self.link_up = False
        self._on_link = on_link

    @abstractmethod
    async def bind(self) -> None:
        """Make everything that can fail. Raises PvswitchError or OSError; `close` is due even then."""

    @abstractmethod
    async def listen(self) -> None:
        """Begin to work; what goes wrong from here on is the port's state."""

    @abstractmethod
    def suits(self, port: AnyPort) -> bool:
        """Return whether this port can take over a changed configuration; otherwise it is replaced as a whole."""

    async def stage(self, port: AnyPort) -> None:
        """Make what a changed configuration that suits needs and can fail. Raises PvswitchError or OSError."""
        assert self.suits(port)

    def unstage(self) -> None:  # noqa: B027 - not abstract: most types of ports stage nothing, and have nothing to do
        """Let go of what was staged: it is not to be put in force after all."""

    def adopt(self, port: AnyPort) -> None:
        """Have the tables that are published next be those of what was staged."""
        assert self.suits(port)

    @abstractmethod
    def configure(self, port: AnyPort) -> bool:
        """Take over a changed configuration that suits; return whether `renew` has to follow."""

    @abstractmethod
    async def renew(self) -> None:
        """Carry out what `configure` could not do at once; what goes wrong is the port's state."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything and free the handle; the tables must not name the port any more."""

    @abstractmethod
    def tick(self) -> None:
        """Look after what nobody tells of."""

    @abstractmethod
    def link(self) -> tuple[LinkReason | None, str | None]:
        """Return why the link is down, None when it is up; and what to do, where there is something to do."""

    @abstractmethod
    def state(self) -> PortState:
        """Return what the API shows of this port."""

    @abstractmethod
    def queue_stats(self) -> list[QueueStats]:
        """Return the counters of its queues, the switch's view."""

    @abstractmethod
    def polled(self) -> list[PolledQueue]:
        """Return the queues that workers take frames from now."""

    @abstractmethod
    async def move_queue(self, queue: int, worker: int) -> None:
        """Have another worker take its frames. Raises OSError where it isn't running, or is with that one already."""

    def refresh(self) -> None:
        """Look at the link again, and tell when it went up or down."""
        reason, message = self.link()
        if (reason is None) != self.link_up:
            self.link_up = reason is None
            log.info("link up" if self.link_up else "link down", port=self.name, reason=reason, message=message)
            self._on_link(self)


class UplinkQueues(SwitchPort):
    """A port whose queues are descriptors: what there is to see of them."""

    handle: DatapathUplink

    def __init__(self, name: str, handle: DatapathUplink, on_link: Callable[[SwitchPort], None]) -> None:
        """See `SwitchPort`."""
        super().__init__(name, handle, on_link)
        self._running = 0  # queues that were started

    @abstractmethod
    def _queues(self) -> int:
        """Return how many there are to be."""

    def queue_stats(self) -> list[QueueStats]:
        """Return the counters of its queues: what the kernel hands over is rx."""
        stats = []
        for index in range(self._queues()):
            seen = self.handle.queue_status(index)
            worker = seen.worker if seen.running else None
            stats += [
                QueueStats(queue=index, direction="tx", packets=seen.tx_packets, bytes=seen.tx_bytes, worker=worker),
                QueueStats(
                    queue=index,
                    direction="rx",
                    packets=seen.rx_packets,
                    bytes=seen.rx_bytes,
                    cycles=seen.cycles,
                    worker=worker,
                ),
            ]
        return stats

    def polled(self) -> list[PolledQueue]:
        """Return its queues; nothing names their workers, so none is pinned."""
        seen = [self.handle.queue_status(index) for index in range(self._running)]
        return [
            PolledQueue(index, queue.worker, queue.rx_packets, queue.cycles, pinned=False)
            for index, queue in enumerate(seen)
        ]

    async def move_queue(self, queue: int, worker: int) -> None:
        """Have another worker fetch from a queue."""
        await self.handle.move_queue(queue, worker)
