# SPDX-License-Identifier: Apache-2.0
"""The switch's events as they come: server-sent events (the HTML standard, 9.2), taken up again after a loss.

Used by `pvswitch.client.operations` only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from pvswitch.client.transport import NotRunning, Query, Transport
from pvswitch.events import Event as Happening
from pvswitch.events import EventStream, ResetEvent

RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """Something that happened: `data`, whose `type` says what. Type `reset` says that events before it are lost.

    Who gives `id` as `last_event_id` goes on after this event.
    """

    id: str
    data: Happening | ResetEvent


@dataclass
class Place:
    """Where a stream is: the id to come back with, None when the switch has not said one yet."""

    id: str | None = None


async def follow(transport: Transport, path: str, place: Place, query: Query) -> AsyncGenerator[Event, None]:
    """Give events for ever, by a new connection after a loss; NotRunning when none can be had for `timeout` seconds."""
    deadline = 0.0  # the first connection must succeed at once
    while True:
        try:
            async for event in once(transport, path, place, query):
                yield event
            deadline = time.monotonic() + transport.timeout
        except NotRunning:
            if place.id is not None and deadline <= 0:
                deadline = time.monotonic() + transport.timeout
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def once(transport: Transport, path: str, place: Place, query: Query) -> AsyncGenerator[Event, None]:
    """Give events until the switch ends the answer."""
    headers = {"Accept": "text/event-stream"}
    if place.id is not None:
        headers["Last-Event-ID"] = place.id
    # There is no end to wait for; but the switch sends something every few seconds, so silence is a loss.
    limit = aiohttp.ClientTimeout(total=None, sock_connect=transport.timeout, sock_read=transport.timeout)
    async with transport.open("GET", path, None, query, headers, limit) as response:
        async for event in parse(response.content, place):
            yield event


async def parse(lines: AsyncIterable[bytes], place: Place) -> AsyncGenerator[Event, None]:
    """Give the events of a text/event-stream that this client knows; keeps `place`."""
    last_id, data = place.id, list[str]()
    async for line in lines:
        field, _, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field == "id" and "\0" not in value:
            last_id = value
        elif field == "data":
            data.append(value)
        elif (field, value) == ("", "") and not line.startswith(b":"):
            place.id = last_id
            if data and (event := _read("\n".join(data))) is not None:
                yield Event(place.id or "", event)
            data = []


def _read(text: str) -> Happening | ResetEvent | None:
    """Return an event; None for one of a type that only a newer switch has."""
    try:
        return EventStream.model_validate_json(text).root
    except ValidationError:
        return None
