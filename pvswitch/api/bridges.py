# SPDX-License-Identifier: Apache-2.0
"""/bridges, and the forwarding database of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from pvswitch.api.call import Call, edited, no_content, patch_resource, put_resource, refuse_unknown_port, reply
from pvswitch.api.problem import ApiProblem, not_found
from pvswitch.api.request import page, page_of_many, read_if_match, read_object
from pvswitch.api.schemas import BridgeResource, ProblemError, StaticEntryBody
from pvswitch.model import SwitchConfig
from pvswitch.state import FdbEntry
from pvswitch.validation import parse_part
from pvswitch.values import normalise_mac


def _bridge(call: Call, name: str) -> BridgeResource:
    _check_bridge(call, name)
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
    return await put_resource(call, ("bridges",), call.path("br"), _bridge)


async def patch_bridge(call: Call) -> web.Response:
    """Change some keys of a bridge."""
    return await patch_resource(call, "bridges", call.path("br"), _bridge)


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
        return edited(lambda document: document["bridges"].pop(name))(config)

    await call.edit(delete, if_match=read_if_match(call.request))
    return no_content(call)


async def list_vlans(call: Call) -> web.Response:
    """List the VLANs that a bridge's ports name, or whose frames came to them."""
    name = call.path("br")
    _check_bridge(call, name)
    return reply(await page_of_many(call.dataplane.vlans(name), lambda vlan: f"{vlan.vid:04}", call.query))


# ---- forwarding database ----


def _entries(call: Call) -> tuple[str, Iterator[FdbEntry]]:
    """Return the bridge of the path, and its addresses that match the query."""
    bridge = call.path("br")
    _check_bridge(call, bridge)
    refuse_unknown_port(call)
    wanted = [(key, call.query[key]) for key in ("port", "vid", "type") if key in call.query]
    entries = call.dataplane.fdb(bridge)
    return bridge, (entry for entry in entries if all(getattr(entry, key) == value for key, value in wanted))


def _check_bridge(call: Call, name: str) -> None:
    if name not in call.config.bridges:
        raise not_found("bridge", name)


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
    bridge = call.path("br")
    _check_bridge(call, bridge)
    entry = call.dataplane.fdb_entry(bridge, vid, mac)
    if entry is None:
        raise not_found("FDB entry", f"{vid}/{mac}")
    return bridge, entry


async def list_fdb(call: Call) -> web.Response:
    """List a bridge's addresses."""
    _, entries = _entries(call)
    return reply(await page_of_many(entries, lambda entry: f"{entry.vid:04}/{entry.mac}", call.query))


async def flush_fdb(call: Call) -> web.Response:
    """Forget the dynamic addresses that the query names; `type=static` or `type=sticky` removes those instead."""
    tags = read_if_match(call.request)
    bridge, _ = _entries(call)
    if call.query.get("type") == "external":
        detail = "external addresses are removed by who told them: DELETE them below /tunnels"
        raise ApiProblem(422, detail, [ProblemError(pointer="?type", detail=detail)])
    if call.query.get("type") == "static":
        wanted = {key: call.query[key] for key in ("port", "vid") if key in call.query}
        await call.edit(edited(lambda document: _drop_static(document, bridge, wanted)), if_match=tags)
    else:
        call.controller.check(tags)
        wanted = {key: call.query.get(key) for key in ("port", "vid")}
        call.dataplane.fdb_flush(bridge, **wanted, sticky=call.query.get("type") == "sticky")
    return no_content(call)


def _drop_static(document: dict[str, Any], bridge: str, wanted: Mapping[str, Any]) -> None:
    """Remove the static addresses of a bridge in which all that is wanted is as it says."""
    settings = document["bridges"].get(bridge)
    if settings is None:
        raise not_found("bridge", bridge)
    settings["fdb"] = [item for item in settings["fdb"] if any(item[key] != wanted[key] for key in wanted)]


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

    await call.edit(edited(put), if_match=tags)
    entry = FdbEntry(name=f"{vid}/{mac}", type="static", **static)
    return reply(entry, 200 if existed else 201, call.controller.etag)


async def delete_fdb(call: Call) -> web.Response:
    """Remove a static address, or forget a learned one."""
    tags = read_if_match(call.request)
    bridge, entry = _entry(call)
    if entry.type == "external":
        where = f"/tunnels/{entry.port}/vnis"
        raise ApiProblem(
            409, f"{entry.name} was told to tunnel {entry.port!r} by a control plane: DELETE it below {where}"
        )
    if entry.type == "static":
        wanted = {"vid": entry.vid, "mac": entry.mac}
        await call.edit(edited(lambda document: _drop_static(document, bridge, wanted)), if_match=tags)
    else:
        call.controller.check(tags)
        call.dataplane.fdb_flush(bridge, vid=entry.vid, mac=entry.mac)
    return no_content(call)
