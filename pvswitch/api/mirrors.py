# SPDX-License-Identifier: Apache-2.0
"""/bridges/{br}/mirrors: each is an edit of its bridge."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from pvswitch.api.call import Call, edited, no_content, put_resource, reply, section_of
from pvswitch.api.flows import refuse_named
from pvswitch.api.problem import not_found
from pvswitch.api.request import page, read_if_match
from pvswitch.api.schemas import MirrorResource
from pvswitch.model import Bridge, SwitchConfig


def _bridge(call: Call) -> Bridge:
    name = call.path("br")
    if name not in call.config.bridges:
        raise not_found("bridge", name)
    return call.config.bridges[name]


def _mirror(bridge: Bridge, name: str) -> MirrorResource:
    if name not in bridge.mirrors:
        raise not_found("mirror", name)
    return MirrorResource.model_construct(name=name, **dict(bridge.mirrors[name]))


def _show(call: Call, name: str) -> MirrorResource:
    return _mirror(_bridge(call), name)


async def list_mirrors(call: Call) -> web.Response:
    """List a bridge's mirrors."""
    bridge = _bridge(call)
    return reply(page([_mirror(bridge, name) for name in bridge.mirrors], lambda item: item.name, call.query))


async def get_mirror(call: Call) -> web.Response:
    """Return a mirror."""
    return reply(_show(call, call.path("name")))


async def put_mirror(call: Call) -> web.Response:
    """Make or replace a mirror."""
    return await put_resource(call, ("bridges", call.path("br"), "mirrors"), call.path("name"), _show)


async def delete_mirror(call: Call) -> web.Response:
    """Remove a mirror that no flow needs."""
    bridge, name = call.path("br"), call.path("name")

    def checked(config: SwitchConfig) -> SwitchConfig:
        if bridge in config.bridges:
            refuse_named(bridge, config.bridges[bridge], "mirror", name)
        return edited(delete)(config)

    def delete(document: dict[str, Any]) -> None:
        if section_of(document, ("bridges", bridge, "mirrors")).pop(name, None) is None:
            raise not_found("mirror", name)

    await call.edit(checked, if_match=read_if_match(call.request))
    return no_content(call)
