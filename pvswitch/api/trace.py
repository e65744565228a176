# SPDX-License-Identifier: Apache-2.0
"""/bridges/{br}/trace: what would become of a frame, step by step. Nothing changes by it."""

from __future__ import annotations

from aiohttp import web

from pvswitch.api.call import Call, reply
from pvswitch.api.problem import not_found
from pvswitch.api.request import read_object
from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.flows.match import Match, read_match
from pvswitch.model import SwitchConfig, TunnelPort
from pvswitch.trace.frame import build
from pvswitch.trace.model import TraceBody
from pvswitch.trace.record import Asked
from pvswitch.trace.story import Scene, tell
from pvswitch.tunnel_checks import network_numbers
from pvswitch.validation import parse_part


async def trace_frame(call: Call) -> web.Response:
    """Say what would become of a frame, step by step; nothing changes."""
    bridge = call.path("br")
    body = parse_part(TraceBody, await read_object(call.request), ())
    config = call.config  # as it is now: a body may take its time
    if bridge not in config.bridges:
        raise not_found("bridge", bridge)
    asked = _asked(config, bridge, body)
    traced = await call.dataplane.trace(asked)
    flows = config.bridges[bridge].flows
    return reply(tell(Scene(config, bridge, asked.in_port, asked.frame, flows, traced)))


def _asked(config: SwitchConfig, bridge: str, body: TraceBody) -> Asked:
    """Return what is to be traced; InvalidDocument with every error."""
    errors: list[FieldError] = []
    port = config.ports.get(body.in_port)
    if port is None or config.port_bridge(body.in_port) != bridge:
        errors.append(FieldError(("in_port",), f"there is no port {body.in_port!r} on bridge {bridge!r}"))
    if (body.frame is None) == (body.fields is None):
        errors.append(FieldError((), "needs one of `frame` and `fields`"))
    match = _match(body, errors)
    tun_id = body.tun_id
    if match is not None and "tun_id" in match.fields():
        tun_id = _network(match, body, isinstance(port, TunnelPort), errors)
    if isinstance(port, TunnelPort):
        errors += _tunnel_errors(port, tun_id, body)
    elif port is not None:
        given = [key for key in ("tun_id", "tun_src") if getattr(body, key) is not None]
        errors += [FieldError((key,), _no_tunnel(body)) for key in given]
    frame = bytes.fromhex(body.frame or "")
    if match is not None:
        try:
            frame = build(match.fields())
        except ValueError as error:
            errors.append(FieldError(("fields",), str(error)))
    if errors:
        raise InvalidDocument(errors)
    return Asked(body.in_port, frame, tun_id, body.tun_src)


def _match(body: TraceBody, errors: list[FieldError]) -> Match | None:
    """Return the fields as a match; None where there are none, or wrong ones."""
    if body.fields is None:
        return None
    try:
        match = read_match(body.fields)
    except InvalidDocument as error:
        errors += [FieldError(("fields", *item.loc), item.message) for item in error.errors]
        return None
    if match.in_port not in (None, body.in_port):
        errors.append(FieldError(("fields", "in_port"), f"is not {body.in_port!r}, the `in_port` beside `fields`"))
    return match


def _no_tunnel(body: TraceBody) -> str:
    return f"is of tunnels, and port {body.in_port!r} is none: leave it out"


def _network(match: Match, body: TraceBody, tunnel: bool, errors: list[FieldError]) -> int | None:
    """Return the network that the fields name; of a frame that comes by no tunnel it is 0."""
    loc, number = ("fields", "tun_id"), match.value("tun_id")
    if number is None:
        errors.append(FieldError(loc, "must be one number, without a mask: a frame comes in one network"))
    elif body.tun_id not in (None, number):
        errors.append(FieldError(loc, f"is not {body.tun_id}, the `tun_id` beside `fields`"))
    elif tunnel:
        return number
    elif number != 0:
        errors.append(FieldError(loc, _no_tunnel(body)))
    return body.tun_id


def _tunnel_errors(port: TunnelPort, tun_id: int | None, body: TraceBody) -> list[FieldError]:
    numbers = [number or 0 for _, number in network_numbers(port)]
    errors = []
    if tun_id is not None and tun_id not in numbers:
        loc = ("fields", "tun_id") if body.tun_id is None else ("tun_id",)
        errors.append(FieldError(loc, f"port {body.in_port!r} has no network {tun_id}"))
    if body.tun_src is not None and (":" in body.tun_src) != (":" in port.local):
        errors.append(FieldError(("tun_src",), f"{body.tun_src} and `local`, {port.local}, are not of one family"))
    return errors
