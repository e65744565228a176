# SPDX-License-Identifier: Apache-2.0
"""What each route does. A handler reads the request, asks controller or data plane, and returns a reply.

An edit of one resource is an edit of the document: the handler changes a copy of the document, the
whole is validated, and the controller applies it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from pvswitch import attach as lines
from pvswitch.api.problem import ApiProblem, not_found
from pvswitch.api.request import page, read_if_match, read_json, read_object
from pvswitch.api.schemas import (
    Attachment,
    BridgeResource,
    Info,
    Page,
    PlanResult,
    PortResource,
    ProblemError,
    StaticEntryBody,
    Status,
    Totals,
)
from pvswitch.controller import Controller, Dataplane
from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.model import FdbEntry, SwitchConfig
from pvswitch.validation import parse, parse_part
from pvswitch.values import normalise_mac


@dataclass(frozen=True)
class Context:
    """What the handlers work on."""

    controller: Controller
    dataplane: Dataplane
    info: Info


@dataclass(frozen=True)
class Call(Context):
    """One request, with its query already read."""

    request: web.Request
    query: Mapping[str, Any]

    @property
    def config(self) -> SwitchConfig:
        """The configuration in force."""
        return self.controller.config

    def path(self, part: str) -> str:
        """Return a variable part of the path."""
        return self.request.match_info[part]


def reply(body: BaseModel, status: int = 200, etag: str | None = None) -> web.Response:
    """Return a JSON answer; absent values are left out, but `next` of a page is always there."""
    content = body.model_dump(mode="json", exclude_none=True)
    if isinstance(body, Page):
        content.setdefault("next", None)
    headers = {} if etag is None else {"ETag": f'"{etag}"'}
    return web.Response(status=status, text=json.dumps(content), content_type="application/json", headers=headers)


def _no_content(call: Call) -> web.Response:
    return web.Response(status=204, headers={"ETag": f'"{call.controller.etag}"'})


def _edited(change: Callable[[dict[str, Any]], None]) -> Callable[[SwitchConfig], SwitchConfig]:
    """Return an edit for the controller from a change of the plain document."""

    def edit(config: SwitchConfig) -> SwitchConfig:
        document = config.document()
        change(document)
        return parse(document)

    return edit


def _item(body: dict[str, Any], name: str, loc: tuple[str, ...], *read_only: str) -> dict[str, Any]:
    """Return the body of a PUT without what a GET adds to it, so that what was read can be written."""
    if body.get("name", name) != name:
        raise InvalidDocument([FieldError((*loc, "name"), f"must be {name!r}, as in the path, or absent")])
    return {key: value for key, value in body.items() if key not in ("name", *read_only)}


# ---- config ----


async def get_config(call: Call) -> web.Response:
    """Return the configuration, complete."""
    return reply(call.config, etag=call.controller.etag)


async def put_config(call: Call) -> web.Response:
    """Replace the configuration; return the difference."""
    tags = read_if_match(call.request, required=True)
    body = await read_json(call.request)
    plan = await call.controller.edit(lambda _: parse(body), if_match=tags, dry_run=call.query.get("dry_run") == "true")
    result = PlanResult(changes=list(plan.changes), disruptive=plan.disruptive)
    return reply(result, etag=call.controller.etag)


# ---- bridges ----


def _bridge(call: Call, name: str) -> BridgeResource:
    if name not in call.config.bridges:
        raise not_found("bridge", name)
    return BridgeResource.model_construct(name=name, **dict(call.config.bridges[name]))


async def list_bridges(call: Call) -> web.Response:
    """List the bridges."""
    items = [_bridge(call, name) for name in call.config.bridges]
    return reply(page(items, lambda item: item.name, call.query))


async def get_bridge(call: Call) -> web.Response:
    """Return a bridge."""
    return reply(_bridge(call, call.path("br")))


async def put_bridge(call: Call) -> web.Response:
    """Make or replace a bridge."""
    name = call.path("br")
    return await _put(call, "bridges", name, _bridge)


async def _put(
    call: Call,
    section: str,
    name: str,
    show: Callable[[Call, str], BaseModel],
    *read_only: str,
) -> web.Response:
    tags = read_if_match(call.request)
    body = _item(await read_object(call.request), name, (section, name), *read_only)
    existed = False

    def put(document: dict[str, Any]) -> None:
        nonlocal existed
        existed = name in document[section]
        document[section][name] = body

    await call.controller.edit(_edited(put), if_match=tags)
    return reply(show(call, name), 200 if existed else 201, call.controller.etag)


async def delete_bridge(call: Call) -> web.Response:
    """Remove a bridge without ports."""
    name = call.path("br")

    def delete(config: SwitchConfig) -> SwitchConfig:
        if name not in config.bridges:
            raise not_found("bridge", name)
        if ports := config.bridge_ports(name):
            more = f" and {len(ports) - 3} more" if len(ports) > 3 else ""
            raise ApiProblem(
                409,
                f"bridge {name!r} still has ports: move or remove {', '.join(ports[:3])}{more} first",
                [ProblemError(pointer=f"#/ports/{port}", detail="is on this bridge") for port in ports],
            )
        return _edited(lambda document: document["bridges"].pop(name))(config)

    await call.controller.edit(delete, if_match=read_if_match(call.request))
    return _no_content(call)


# ---- forwarding database ----


def _entries(call: Call, query: Mapping[str, Any]) -> tuple[str, list[FdbEntry]]:
    """Return the bridge of the path, and its addresses that match the query."""
    bridge = call.path("br")
    if bridge not in call.config.bridges:
        raise not_found("bridge", bridge)
    if (port := query.get("port")) is not None and port not in call.config.ports:
        raise ApiProblem(
            422, f"there is no port {port!r}", [ProblemError(pointer="?port", detail="there is no such port")]
        )
    wanted = {key: query[key] for key in ("port", "vid", "type") if key in query}
    entries = call.dataplane.fdb(bridge)
    return bridge, [entry for entry in entries if all(getattr(entry, key) == value for key, value in wanted.items())]


def _address(call: Call) -> tuple[int, str]:
    """Return VID and MAC of the path; 422 when they can't be ones."""
    vid, mac = call.path("vid"), call.path("mac")
    errors = []
    if not (vid.isascii() and vid.isdigit() and len(vid) <= 4 and int(vid) <= 4094):
        errors.append(ProblemError(pointer="#/vid", detail="must be a VLAN ID from 0 to 4094"))
    try:
        mac = normalise_mac(mac)
    except ValueError as error:
        errors.append(ProblemError(pointer="#/mac", detail=str(error)))
    if errors:
        raise ApiProblem(422, "; ".join(f"{error.pointer[2:]} {error.detail}" for error in errors), errors)
    return int(vid), mac


def _entry(call: Call) -> tuple[str, FdbEntry]:
    vid, mac = _address(call)
    bridge, entries = _entries(call, {"vid": vid})
    for entry in entries:
        if entry.mac == mac:
            return bridge, entry
    raise not_found("FDB entry", f"{vid}/{mac}")


async def list_fdb(call: Call) -> web.Response:
    """List a bridge's addresses."""
    _, entries = _entries(call, call.query)
    return reply(page(entries, lambda entry: f"{entry.vid:04}/{entry.mac}", call.query))


async def flush_fdb(call: Call) -> web.Response:
    """Forget the dynamic addresses that the query names; `type=static` removes static ones instead."""
    tags = read_if_match(call.request)
    bridge, entries = _entries(call, call.query)
    if call.query.get("type") == "static":
        doomed = {(entry.vid, entry.mac) for entry in entries}
        await call.controller.edit(_edited(lambda document: _drop_static(document, bridge, doomed)), if_match=tags)
    else:
        call.controller.check(tags)
        call.dataplane.fdb_flush(bridge, port=call.query.get("port"), vid=call.query.get("vid"))
    return _no_content(call)


def _drop_static(document: dict[str, Any], bridge: str, doomed: set[tuple[int, str]]) -> None:
    settings = document["bridges"].get(bridge)
    if settings is None:
        raise not_found("bridge", bridge)
    settings["fdb"] = [item for item in settings["fdb"] if (item["vid"], item["mac"]) not in doomed]


async def get_fdb(call: Call) -> web.Response:
    """Return one address."""
    return reply(_entry(call)[1])


async def put_fdb(call: Call) -> web.Response:
    """Make or replace a static address."""
    vid, mac = _address(call)
    bridge = call.path("br")
    tags = read_if_match(call.request)
    body = parse_part(StaticEntryBody, await read_object(call.request), ())
    static = {"vid": vid, "mac": mac, "port": body.port}
    existed = False

    def put(document: dict[str, Any]) -> None:
        nonlocal existed
        if bridge not in document["bridges"]:
            raise not_found("bridge", bridge)
        entries = document["bridges"][bridge]["fdb"]
        index = next((i for i, e in enumerate(entries) if (e["vid"], e["mac"]) == (vid, mac)), None)
        existed = index is not None
        if index is None:
            entries.append(static)
        else:
            entries[index] = static

    await call.controller.edit(_edited(put), if_match=tags)
    entry = FdbEntry(name=f"{vid}/{mac}", type="static", **static)
    return reply(entry, 200 if existed else 201, call.controller.etag)


async def delete_fdb(call: Call) -> web.Response:
    """Remove a static address, or forget a dynamic one."""
    tags = read_if_match(call.request)
    bridge, entry = _entry(call)
    if entry.type == "static":
        doomed = {(entry.vid, entry.mac)}
        await call.controller.edit(_edited(lambda document: _drop_static(document, bridge, doomed)), if_match=tags)
    else:
        call.controller.check(tags)
        call.dataplane.fdb_flush(bridge, vid=entry.vid, mac=entry.mac)
    return _no_content(call)


# ---- ports ----


def _port(call: Call, name: str) -> PortResource:
    _check_port(call, name)
    state = call.dataplane.port_state(name)
    return PortResource.model_construct(name=name, state=state, **dict(call.config.ports[name]))


def _check_port(call: Call, name: str) -> None:
    if name not in call.config.ports:
        raise not_found("port", name)


async def list_ports(call: Call) -> web.Response:
    """List the ports with their state."""
    names = page(list(call.config.ports), str, call.query)
    items = [_port(call, name) for name in names.items]
    return reply(names.model_copy(update={"items": items}))


async def get_port(call: Call) -> web.Response:
    """Return a port with its state."""
    return reply(_port(call, call.path("name")))


async def put_port(call: Call) -> web.Response:
    """Make or replace a port."""
    return await _put(call, "ports", call.path("name"), _port, "state")


async def delete_port(call: Call) -> web.Response:
    """Remove a port that no static address needs."""
    name = call.path("name")

    def delete(config: SwitchConfig) -> SwitchConfig:
        if name not in config.ports:
            raise not_found("port", name)
        bridge = config.port_bridge(name)
        if macs := [entry.mac for entry in config.bridges[bridge].fdb if entry.port == name]:
            raise ApiProblem(
                409,
                f"port {name!r} still has static addresses on bridge {bridge!r}: remove {macs[0]} first",
                [ProblemError(pointer=f"#/bridges/{bridge}/fdb", detail=f"{mac} is on this port") for mac in macs],
            )
        return _edited(lambda document: document["ports"].pop(name))(config)

    await call.controller.edit(delete, if_match=read_if_match(call.request))
    return _no_content(call)


async def get_port_stats(call: Call) -> web.Response:
    """Return a port's counters."""
    name = call.path("name")
    _check_port(call, name)
    return reply(call.dataplane.port_stats(name))


async def get_attachment(call: Call) -> web.Response:
    """Return the lines that start a VM on a port."""
    name = call.path("name")
    _check_port(call, name)
    queues, offered = call.query.get("queues", 1), call.config.ports[name].queues
    if queues > offered:
        message = f"port {name!r} offers {offered} queue pairs: ask for fewer, or raise its `queues`"
        raise ApiProblem(422, message, [ProblemError(pointer="?queues", detail=f"must be at most {offered}")])
    if call.query.get("format") == "libvirt":
        text = lines.libvirt_xml(call.config, name, queues) + "\n"
        return reply(Attachment(name=name, format="libvirt", args=[], text=text))
    guest = lines.Guest(
        version=call.query.get("qemu_version"),
        accel=call.query.get("accel", "kvm"),
        memory=call.query.get("memory", lines.DEFAULT_MEMORY),
        queues=queues,
    )
    groups = lines.qemu_lines(call.config, name, guest)
    args = [word for group in groups for word in group]
    return reply(Attachment(name=name, format="qemu", args=args, text=lines.qemu_text(groups) + "\n"))


# ---- the switch ----


async def get_stats(call: Call) -> web.Response:
    """Return the totals."""
    return reply(Totals(call.dataplane.totals()))


async def get_perf(call: Call) -> web.Response:
    """Return what each worker spends."""
    return reply(page(call.dataplane.perf(), lambda worker: worker.name, call.query))


async def get_healthz(_: Call) -> web.Response:
    """Answer that the process is alive."""
    return reply(Status(status="ok"))


async def get_readyz(call: Call) -> web.Response:
    """Answer whether frames are forwarded."""
    if not call.dataplane.ready():
        raise ApiProblem(503, "the switch is not forwarding yet: wait, or see its log")
    return reply(Status(status="ready"))


async def get_version(call: Call) -> web.Response:
    """Return which program answers."""
    return reply(call.info)
