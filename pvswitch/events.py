# SPDX-License-Identifier: Apache-2.0
"""What happens in the switch, for whoever listens: a bus with a memory of fixed size.

The last events are kept in one ring. A subscriber is no more than a place in it: to be slow costs nothing, and who is
so slow that the ring has gone on over its place gets one `reset` that says how many it missed, then goes on with what
there is. An event's id is the epoch, drawn once for each process, and a number that only grows: who comes back with
the last id it saw (Last-Event-ID) goes on behind it, and gets a `reset` where that is not possible.

Addresses can come by the million: of `learned`, `moved` and `aged` a fixed number a second is published, and then, at
the end of that second, the last one that was left out, with how many more were (`suppressed`).

Published to by `ports.py` and `controller.py`, subscribed to by the API, all on the event loop's thread. `publish`
never waits and never fails.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel

from pvswitch.errors import PvswitchError
from pvswitch.model import Change
from pvswitch.state import LinkReason

KEPT = 4096
"""Events in the ring."""
MAX_SUBSCRIBERS = 64
RATE = 100
"""Events a second of each type that addresses make."""
MAX_CHANGES = 50
"""Changes named by one `config` event."""
BATCH = 64
"""Events that a subscriber holds at a time."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: str
    time: str = Field(default_factory=_now, description="RFC 3339")


class _Limited(_Event):
    suppressed: int = Field(0, description="events of this type left out since the one before, as there were too many")


class LinkEvent(_Event):
    """A port's link went up or down."""

    type: Literal["link"] = "link"
    port: str
    bridge: str
    link: Literal["up", "down"]
    reason: LinkReason | None = Field(None, description="why it is down")
    message: str | None = Field(None, description="one sentence with the remedy")


class LearnedEvent(_Limited):
    """A bridge learned an address."""

    type: Literal["learned"] = "learned"
    bridge: str
    port: str
    mac: str
    vid: int


class MovedEvent(_Limited):
    """An address is behind another port than before."""

    type: Literal["moved"] = "moved"
    bridge: str
    port: str
    old_port: str | None = Field(None, description="absent when that port is gone")
    mac: str
    vid: int


class AgedEvent(_Limited):
    """A bridge forgot an address that was silent for its aging_time."""

    type: Literal["aged"] = "aged"
    bridge: str
    port: str
    mac: str
    vid: int


class BrokenEvent(_Event):
    """A port was stopped because its guest broke the ring's rules."""

    type: Literal["broken"] = "broken"
    port: str
    bridge: str
    detail: str


class ChangedResource(BaseModel):
    """A step of a change of the configuration."""

    op: Literal["add", "change", "remove"]
    pointer: str
    keys: tuple[str, ...] = Field((), description="what differs, for a change")
    disruptive: bool


class ConfigEvent(_Event):
    """Another configuration is in force."""

    type: Literal["config"] = "config"
    revision: int
    etag: str
    actor: str
    changes: list[ChangedResource] = Field(description=f"the first {MAX_CHANGES}")
    changes_omitted: int = 0


class ResetEvent(_Event):
    """Events were missed: what is known of the switch must be read anew."""

    type: Literal["reset"] = "reset"
    lost: int | None = Field(None, description="how many, of all types; absent when that isn't known")


Event = LinkEvent | LearnedEvent | MovedEvent | AgedEvent | ConfigEvent | BrokenEvent
TYPES = ("link", "learned", "moved", "aged", "config", "broken")


class EventStream(RootModel[Annotated[Event | ResetEvent, Field(discriminator="type")]]):
    """The `data` of one event; its SSE `event` is the same as its `type`, its `id` is for Last-Event-ID."""


def changed_resources(changes: Collection[Change]) -> list[ChangedResource]:
    """Return what a `config` event says of these changes."""
    return [
        ChangedResource(op=c.op, pointer=c.pointer, keys=c.keys, disruptive=c.disruptive)
        for c in list(changes)[:MAX_CHANGES]
    ]


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as it is sent."""

    id: str
    type: str
    data: str


class TooManySubscribers(PvswitchError):
    """No further subscriber is taken (HTTP 503)."""


@dataclass(slots=True)
class _Window:
    """What happened to one type in the second that runs."""

    published: int = 0
    left_out: int = 0
    last: _Limited | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Events:
    """The bus."""

    def __init__(
        self, *, kept: int = KEPT, subscribers: int = MAX_SUBSCRIBERS, rate: int = RATE, window: float = 1.0
    ) -> None:
        """`rate` events of a limited type in `window` seconds."""
        self._epoch = secrets.token_hex(4)
        self._ring: deque[Entry] = deque(maxlen=kept)
        self._count = 0  # events so far: the number of the last one
        self._rate = rate
        self._window = window
        self._windows: dict[str, _Window] = {}
        self._max_subscribers = subscribers
        self._subscribers: set[Subscription] = set()
        self.closed = False

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._subscribers)

    def publish(self, event: Event) -> None:
        """Tell an event to everybody who listens, now or, where its type is limited, perhaps later or never."""
        if self.closed:
            return
        if isinstance(event, _Limited) and not self._admit(event):
            return
        self._append(event)

    def suppress(self, event: AgedEvent, more: int) -> None:
        """Count so many events like this one, which nobody has made because they are too many, as left out."""
        if self.closed:
            return
        window = self._window_of(event)
        window.left_out += more
        window.last = event

    def subscribe(
        self, last_id: str | None = None, types: Collection[str] = TYPES, *, past: bool = False
    ) -> Subscription:
        """Return a place from which to read these types, behind the event `last_id`; TooManySubscribers.

        Without a `last_id` that is now or, with `past`, the oldest event that is still there.
        """
        if len(self._subscribers) >= self._max_subscribers:
            raise TooManySubscribers(
                f"{self._max_subscribers} clients are listening to events already: end one of them"
            )
        subscription = Subscription(self, self._after(last_id, past), frozenset(types))
        self._subscribers.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription."""
        self.closed = True
        for window in self._windows.values():
            if window.timer is not None:
                window.timer.cancel()
        self._wake()

    # ---- the ring

    def _append(self, event: _Event) -> None:
        self._count += 1
        self._ring.append(Entry(self.id_of(self._count), event.type, event.model_dump_json(exclude_none=True)))
        self._wake()

    def _wake(self) -> None:
        for subscription in self._subscribers:
            subscription.wake.set()

    def id_of(self, number: int) -> str:
        """Return the id of the event with this number."""
        return f"{self._epoch}-{number}"

    def _after(self, last_id: str | None, past: bool) -> int | None:
        """Return the number of the event that was seen last; None when that can't be told."""
        if last_id is None:
            return self._count - len(self._ring) if past else self._count
        epoch, _, number = last_id.partition("-")
        if epoch != self._epoch or not (number.isascii() and number.isdigit() and len(number) < 20):
            return None
        return int(number) if int(number) <= self._count else None

    def since(self, seen: int) -> tuple[int, list[Entry]]:
        """Return how many events behind number `seen` are lost, and a batch of those that are there."""
        first = self._count - len(self._ring)  # the number before the oldest one
        skip = max(0, seen - first)
        return max(0, first - seen), [self._ring[i] for i in range(skip, min(skip + BATCH, len(self._ring)))]

    @property
    def count(self) -> int:
        """The number of the last event."""
        return self._count

    # ---- the limit

    def _admit(self, event: _Limited) -> bool:
        """Return whether an event of a limited type is published at once."""
        window = self._window_of(event)
        if window.published < self._rate:
            window.published += 1
            return True
        window.left_out += 1
        window.last = event
        return False

    def _window_of(self, event: _Limited) -> _Window:
        """Return the second that runs for a type of event."""
        window = self._windows.setdefault(event.type, _Window())
        if window.timer is None:
            window.timer = asyncio.get_running_loop().call_later(self._window, self._next_window, window)
        return window

    def _next_window(self, window: _Window) -> None:
        """Tell what was left out, and begin to count anew."""
        last, left_out = window.last, window.left_out
        window.published, window.left_out, window.last, window.timer = 0, 0, None, None
        if last is not None:
            self._append(last.model_copy(update={"suppressed": left_out - 1}))


class Subscription:
    """A place in the ring; as `with` it is given back."""

    def __init__(self, events: Events, seen: int | None, types: frozenset[str]) -> None:
        """`seen` is the number of the last event that is known; None begins with a `reset`."""
        self.wake = asyncio.Event()
        self._events = events
        self._types = types
        self._unknown = seen is None  # how many events were missed
        self._seen = events.count if seen is None else seen
        if self._unknown or self._seen != events.count:
            self.wake.set()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place back."""
        self._events._subscribers.discard(self)

    @property
    def place(self) -> str:
        """The id to come back with."""
        return self._events.id_of(self._seen)

    async def next(self, seconds: float) -> list[Entry] | None:
        """Wait, at most so long, for events; return a batch of those that are wanted, None when the bus has closed."""
        try:
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        except TimeoutError:
            return []
        return None if self._events.closed else self.take()

    @property
    def behind(self) -> bool:
        """Whether there is something to take."""
        return self.wake.is_set()

    def take(self) -> list[Entry]:
        """Return a batch of the wanted events that are there; a `reset` first, where some are there no more."""
        lost, batch = self._events.since(self._seen)
        before, self._seen = self._seen + lost, self._seen + lost + len(batch)
        if self._seen == self._events.count:
            self.wake.clear()
        wanted = [entry for entry in batch if entry.type in self._types]
        if lost or self._unknown:
            reset = ResetEvent(lost=None if self._unknown else lost)
            self._unknown = False
            wanted.insert(0, Entry(self._events.id_of(before), "reset", reset.model_dump_json(exclude_none=True)))
        return wanted
