# SPDX-License-Identifier: Apache-2.0
"""/events: what happens in the switch, as server-sent events.

A stream is a subscription of `pvswitch.events` and a loop that writes what it gives. Nothing is queued here: while a
client takes nothing, its place in the ring falls behind. A client that takes nothing for long is cut off.
"""

from __future__ import annotations

import contextlib

from aiohttp import web
from aiohttp_sse import EventSourceResponse

from pvswitch.api.call import Call
from pvswitch.api.problem import ApiProblem
from pvswitch.events import TYPES, Entry, Subscription, TooManySubscribers

KEEP_ALIVE_SECONDS = 15.0
SEND_SECONDS = 30.0
"""How long a client may take nothing, once the socket is full."""
LOOK_SECONDS = 1.0
"""How often to look whether a client has gone."""


async def stream_events(call: Call) -> web.StreamResponse:
    """Follow what happens in the switch, as server-sent events."""
    follow = call.query.get("follow", "true") == "true"
    last_id, types = call.request.headers.get("Last-Event-ID"), call.query.get("types", TYPES)
    try:
        place = call.events.subscribe(last_id, types, past=not follow)
    except TooManySubscribers as error:
        raise ApiProblem(503, str(error)) from None
    with place:
        response = EventSourceResponse(ping_interval=KEEP_ALIVE_SECONDS, send_timeout=SEND_SECONDS)
        with contextlib.suppress(ConnectionResetError, TimeoutError):  # the client has gone, or takes nothing
            await response.prepare(call.request)
            async with response:
                # An id of its own, without an event: who is cut off before the first one can come back, too.
                await response.write(f"id: {place.place}\r\n\r\n".encode())
                while place.behind:
                    await _send(response, place.take())
                if follow:
                    await _follow(call.request, place, response)
    return response


async def _follow(request: web.Request, place: Subscription, response: EventSourceResponse) -> None:
    """Write events until the client goes or the switch ends."""
    while (entries := await place.next(LOOK_SECONDS)) is not None and request.transport is not None:
        await _send(response, entries)


async def _send(response: EventSourceResponse, entries: list[Entry]) -> None:
    for entry in entries:
        await response.send(entry.data, id=entry.id, event=entry.type)
