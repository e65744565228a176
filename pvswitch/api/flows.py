# SPDX-License-Identifier: Apache-2.0
"""/bridges/{br}/flows and /bridges/{br}/meters: each change is an edit of the bridge; counters are read beside it.

A flow is a mapping, or OVS text in its place. Very many of them can come at once: a batch is read in a thread, and
is one edit. A flow without a name of its own is found by its priority and match, however they are written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from pvswitch.api.call import Call, edited, no_content, put_resource, refuse_unknown_port, reply, section_of
from pvswitch.api.problem import ApiProblem, not_found
from pvswitch.api.request import page, page_of_many, read_if_match, read_object
from pvswitch.api.schemas import FlowChanges, FlowResource, MeterResource, Page, ProblemError
from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.flow_checks import naming
from pvswitch.flows.actions import Named
from pvswitch.flows.fields import number
from pvswitch.flows.text import named_by_match, read_flow, read_flows
from pvswitch.model import Bridge, Flow, SwitchConfig
from pvswitch.validation import parse_part

MAX_COOKIE = (1 << 64) - 1


def _bridge(call: Call) -> Bridge:
    name = call.path("br")
    if name not in call.config.bridges:
        raise not_found("bridge", name)
    return call.config.bridges[name]


def known_name(flows: Mapping[str, object], name: str) -> str:
    """Return the name of a flow that is called by it, or by its priority and match; `name` where there is none."""
    if name in flows or "=" not in name:
        return name
    try:
        return named_by_match(name)
    except InvalidDocument:
        return name


def _resources(call: Call, names: list[str]) -> list[FlowResource]:
    flows = _bridge(call).flows
    stats = call.dataplane.flow_stats(call.path("br"), names)
    return [
        # not validated: it is in force; between an edit and its end the data plane may not have it yet
        FlowResource.model_construct(
            name=name, **{key: getattr(flows[name], key) for key in Flow.model_fields}, stats=stats.get(name)
        )
        for name in names
        if name in flows
    ]


def _show(call: Call, name: str) -> FlowResource:
    found = _resources(call, [known_name(_bridge(call).flows, name)])
    if not found:
        raise not_found("flow", name)
    return found[0]


def read_cookie(text: str) -> tuple[int, int]:
    """Return a cookie and the mask of its bits that count; ValueError."""
    value, _, mask = text.partition("/")
    bits = MAX_COOKIE if mask in ("", "-1") else number(mask, MAX_COOKIE)
    return number(value, MAX_COOKIE) & bits, bits


def _wanted(call: Call) -> Callable[[Flow], bool]:
    """Return which flows the query wants."""
    refuse_unknown_port(call)
    port = call.query.get("port")
    cookie, bits = call.query.get("cookie", (0, 0))

    def wanted(flow: Flow) -> bool:
        return int(flow.cookie, 16) & bits == cookie and (port is None or ("port", port) in flow.compiled.names)

    return wanted


async def list_flows(call: Call) -> web.Response:
    """List a bridge's flows, with what they have counted."""
    wanted = _wanted(call)
    flows = _bridge(call).flows
    found = await page_of_many((name for name in flows if wanted(flows[name])), str, call.query)
    return reply(Page(items=_resources(call, found.items), next=found.next))


async def get_flow(call: Call) -> web.Response:
    """Return a flow, with what it has counted."""
    return reply(_show(call, call.path("flow")))


async def put_flow(call: Call) -> web.Response:
    """Make or replace a flow."""
    name = known_name(_bridge(call).flows, call.path("flow"))
    section = ("bridges", call.path("br"), "flows")
    tags = read_if_match(call.request)
    body = await read_object(call.request)
    if body.get("name", name) != name:
        raise InvalidDocument([FieldError((*section, name, "name"), f"must be {name!r}, as in the path, or absent")])
    flow = _read_one({key: value for key, value in body.items() if key not in ("name", "stats")}, (*section, name))
    existed = False

    def put(document: dict[str, Any]) -> None:
        nonlocal existed
        here = section_of(document, section)
        existed = name in here
        here[name] = flow

    await call.edit(edited(put), if_match=tags)
    return reply(_show(call, name), 200 if existed else 201, call.controller.etag)


def _read_one(body: object, loc: tuple[str | int, ...]) -> Flow:
    """Return a flow: keys, or text, also as {"flow": text}."""
    if isinstance(body, dict) and "flow" in body:
        if len(body) > 1:
            raise InvalidDocument([FieldError((*loc, "flow"), "says all of it: leave out the other keys")])
        body = body["flow"]
        if not isinstance(body, str):
            raise InvalidDocument([FieldError((*loc, "flow"), "must be text like priority=100,ip,actions=drop")])
    return parse_part(Flow, body, loc)


async def delete_flow(call: Call) -> web.Response:
    """Remove a flow."""
    bridge, name = call.path("br"), known_name(_bridge(call).flows, call.path("flow"))

    def delete(document: dict[str, Any]) -> None:
        if section_of(document, ("bridges", bridge, "flows")).pop(name, None) is None:
            raise not_found("flow", name)

    await call.edit(edited(delete), if_match=read_if_match(call.request))
    return no_content(call)


async def flush_flows(call: Call) -> web.Response:
    """Remove the flows that the query names; all of them without one."""
    _bridge(call)
    bridge, wanted = call.path("br"), _wanted(call)

    def flush(document: dict[str, Any]) -> None:
        here = section_of(document, ("bridges", bridge))
        here["flows"] = {name: flow for name, flow in here["flows"].items() if not wanted(flow)}

    await call.edit(edited(flush), if_match=read_if_match(call.request))
    return no_content(call)


# ---- batches ----


async def change_flows(call: Call) -> web.Response:
    """Remove and add flows, all of them or none; one that is there already is replaced."""
    before = _bridge(call)
    section = ("bridges", call.path("br"), "flows")
    tags = read_if_match(call.request)
    body = await read_object(call.request)
    add, remove = await asyncio.to_thread(read_batch, body)
    removed = [known_name(before.flows, name) for name in remove]
    changes = FlowChanges(added=0, changed=0, removed=0)

    def change(document: dict[str, Any]) -> None:
        nonlocal changes
        here = section_of(document, section)
        old = dict(here)
        for index, name in enumerate(removed):
            if here.pop(name, None) is None and name not in old:
                raise ApiProblem(
                    404, f"there is no flow {name!r}", [ProblemError(pointer=f"#/delete/{index}", detail="isn't there")]
                )
        here.update(add)
        changes = FlowChanges(
            added=sum(name not in old for name in add),
            changed=sum(name in old and old[name] != flow for name, flow in add.items()),
            removed=sum(name not in here for name in set(removed)),
        )

    await call.edit(edited(change), if_match=tags)
    return reply(changes, etag=call.controller.etag)


def read_batch(body: Mapping[str, Any]) -> tuple[dict[str, Flow], list[str]]:
    """Return the flows of a batch that are added, by name, and the names of those to remove; InvalidDocument."""
    errors = [FieldError((key,), "unknown key: there are `add`, `delete`") for key in body if key not in _BATCH_KEYS]
    flows: dict[str, Flow] = {}
    for loc, name, item in _items(body.get("add", {}), errors):
        try:
            if isinstance(item, dict) and name is None:
                item = dict(item)
                name = item.pop("name", None)
                item.pop("stats", None)
            flow = _read_one(item, loc)
        except InvalidDocument as error:
            errors += error.errors
            continue
        key = flow.match_name if name is None else name
        if not isinstance(key, str):
            errors.append(FieldError((*loc, "name"), "must be text"))
        elif key in flows:
            errors.append(FieldError(loc, f"is flow {key!r} once more: keep one"))
        else:
            flows[key] = flow
    remove = body.get("delete", [])
    if not isinstance(remove, list) or not all(isinstance(name, str) for name in remove):
        errors.append(FieldError(("delete",), "must be a list of names"))
    if errors:
        raise InvalidDocument(errors[:MAX_ERRORS], max(0, len(errors) - MAX_ERRORS))
    return flows, remove


_BATCH_KEYS = ("add", "delete")
MAX_ERRORS = 1000
_Item = tuple[tuple[str | int, ...], Any, Any]


def _items(given: object, errors: list[FieldError]) -> list[_Item]:
    """Return what is to be added: where it stands, its name if it has one, and what it is."""
    if isinstance(given, dict):
        return [(("add", name), name, item) for name, item in given.items()]
    if isinstance(given, str):
        try:
            lines = read_flows(given, judged=False)
        except InvalidDocument as error:
            errors += [FieldError(("add", *item.loc), item.message) for item in error.errors]
            return []
        return [(("add", f"line {line}"), flow.pop("name", None), flow) for line, flow in lines]
    if not isinstance(given, list):
        errors.append(FieldError(("add",), "must be flows by name, a list of them, or OVS text with one in each line"))
        return []
    return [_listed(index, item) for index, item in enumerate(given)]


def _listed(index: int, item: object) -> _Item:
    """Return an item of a list; text may have a name in it."""
    loc: tuple[str | int, ...] = ("add", index)
    text = item.get("flow") if isinstance(item, dict) and set(item) == {"flow"} else item
    if not isinstance(text, str):
        return loc, None, item
    try:
        flow = read_flow(text, judged=False)
    except InvalidDocument:
        return loc, None, text  # judged where all others are
    return loc, flow.pop("name", None), flow


# ---- meters ----


def _meter(call: Call, name: str) -> MeterResource:
    meters = _bridge(call).meters
    if name not in meters:
        raise not_found("meter", name)
    stats = call.dataplane.meter_stats(call.path("br"), name)
    return MeterResource.model_construct(name=name, **dict(meters[name]), stats=stats)


async def list_meters(call: Call) -> web.Response:
    """List a bridge's meters, with what they have counted."""
    items = [_meter(call, name) for name in _bridge(call).meters]
    return reply(page(items, lambda item: item.name, call.query))


async def get_meter(call: Call) -> web.Response:
    """Return a meter, with what it has counted."""
    return reply(_meter(call, call.path("name")))


async def put_meter(call: Call) -> web.Response:
    """Make or replace a meter."""
    return await put_resource(call, ("bridges", call.path("br"), "meters"), call.path("name"), _meter, "stats")


async def delete_meter(call: Call) -> web.Response:
    """Remove a meter that no flow needs."""
    bridge, name = call.path("br"), call.path("name")
    _bridge(call)

    def delete(document: dict[str, Any]) -> None:
        if section_of(document, ("bridges", bridge, "meters")).pop(name, None) is None:
            raise not_found("meter", name)

    def checked(config: SwitchConfig) -> SwitchConfig:
        if bridge in config.bridges:
            refuse_named(bridge, config.bridges[bridge], "meter", name)
        return edited(delete)(config)

    await call.edit(checked, if_match=read_if_match(call.request))
    return no_content(call)


def refuse_named(bridge_name: str, bridge: Bridge, kind: Named, name: str) -> None:
    """Refuse to remove what flows need: 409 that names the first of them."""
    flows = naming(bridge, kind, name)
    if not flows:
        return
    more = f" and {len(flows) - 1} more" if len(flows) > 1 else ""
    raise ApiProblem(
        409,
        f"flow {flows[0]!r} of bridge {bridge_name!r}{more} names {kind} {name!r}: change or remove it first",
        [
            ProblemError(pointer=FieldError(("bridges", bridge_name, "flows", flow), "").pointer, detail="names it")
            for flow in flows[:MAX_ERRORS]
        ],
    )
