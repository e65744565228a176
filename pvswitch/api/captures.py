# SPDX-License-Identifier: Apache-2.0
"""/captures: frames that pass by ports, as live pcapng; /drops and /frames: what the flight recorder has.

A piece of a stream is made when the one before has gone to the socket: while a client takes nothing, its capture's
rings in the core run full, and nothing grows here. What a capture shows are the users' frames: reading one takes the
right to write, as making one does.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import web

from pvswitch import pcapng
from pvswitch.api import access
from pvswitch.api.call import Call, reply
from pvswitch.api.problem import ApiProblem, not_found, unknown_in_query
from pvswitch.api.request import DEFAULT_LIMIT, page, read_object
from pvswitch.api.schemas import Page
from pvswitch.bpf import FilterError
from pvswitch.capture_model import CaptureBody, CaptureInfo, DropRecord, FrameRecord
from pvswitch.capture_plane import CaptureStream, CaptureTaken
from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.validation import parse_part

LOOK_SECONDS = 0.02
"""How often to look for frames, while there are none."""
STALL_SECONDS = 300.0
"""How long a client may take nothing of what waits for it."""


async def create_capture(call: Call) -> web.Response:
    """Begin a capture, which waits for its reader for 30 seconds."""
    body = parse_part(CaptureBody, await read_object(call.request), ())
    unknown = [
        FieldError(("ports", i), f"there is no port {name!r}")
        for i, name in enumerate(body.ports)
        if name not in call.config.ports
    ]
    if unknown:
        raise InvalidDocument(unknown)
    try:
        made = await call.dataplane.captures.create(body)
    except FilterError as error:
        raise InvalidDocument([FieldError(("filter",), str(error))]) from None
    answer = reply(made, 201)
    answer.headers["Location"] = f"/api/v1/captures/{made.id}"
    return answer


async def list_captures(call: Call) -> web.Response:
    """List the captures."""
    return reply(page(call.dataplane.captures.list(), lambda capture: capture.name, call.query))


def _capture(call: Call) -> CaptureInfo:
    name = call.path("id")
    try:
        return call.dataplane.captures.info(name)
    except KeyError:
        raise not_found("capture", name) from None


async def get_capture(call: Call) -> web.Response:
    """Return a capture: its state, and what it has given and lost."""
    return reply(_capture(call))


async def delete_capture(call: Call) -> web.Response:
    """End and remove a capture; its reader gets what there is."""
    await call.dataplane.captures.end(_capture(call).id)
    return web.Response(status=204)


async def stream_capture(call: Call) -> web.StreamResponse:
    """Read a capture, to its end."""
    caller = access.current()
    if caller is not None and caller.role != "write":
        raise ApiProblem(403, f"{caller.actor} may only read counters: frames take a token with the role write")
    name = _capture(call).id
    try:
        stream = call.dataplane.captures.open(name)
    except CaptureTaken as error:
        raise ApiProblem(409, str(error)) from None
    try:
        response = web.StreamResponse(headers={"Content-Type": pcapng.CONTENT_TYPE})
        response.headers["Content-Disposition"] = f'attachment; filename="pvswitch-{name}.pcapng"'
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client has gone, or takes nothing
            await response.prepare(call.request)
            await _write(call.request, stream, response)
    finally:
        stream.close()
    return response


async def _write(request: web.Request, stream: CaptureStream, response: web.StreamResponse) -> None:
    """Write what comes until the capture ends or the client goes."""
    while (piece := stream.read()) is not None and request.transport is not None:
        if not piece:
            await asyncio.sleep(LOOK_SECONDS)
            continue
        async with asyncio.timeout(STALL_SECONDS):
            await response.write(piece)
        await asyncio.sleep(0)  # others have their turn, however fast this client reads


def _wanted(call: Call) -> dict[str, Any]:
    """Return which records the query asks for. A port and a bridge must be there; a port may also be gone."""
    port, bridge = call.query.get("port"), call.query.get("bridge")
    if port is not None and port not in call.config.ports and not call.dataplane.recorder.knows(port):
        raise unknown_in_query("port", "port", port)
    if bridge is not None and bridge not in call.config.bridges:
        raise unknown_in_query("bridge", "bridge", bridge)
    return {**call.query, "limit": call.query.get("limit", DEFAULT_LIMIT)}


async def list_drops(call: Call) -> web.Response:
    """List the last drops, newest first: what was dropped, where, why."""
    return reply(Page[DropRecord](items=await call.dataplane.recorder.drops(**_wanted(call)), next=None))


async def list_frames(call: Call) -> web.Response:
    """List the last frames that were sampled, newest first."""
    return reply(Page[FrameRecord](items=await call.dataplane.recorder.frames(**_wanted(call)), next=None))
