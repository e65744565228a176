# SPDX-License-Identifier: Apache-2.0
"""What every handler has in its hands: the request, what it works on, and how a document is edited and answered.

An edit of one resource is an edit of the document: a copy of it is changed, the whole is validated, and the controller
applies it. Imported by the modules of handlers, one for each kind of resource, and by `app`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from pvswitch.api.access import actor
from pvswitch.api.problem import not_found, unknown_in_query
from pvswitch.api.request import read_if_match, read_object, read_patch
from pvswitch.api.schemas import Info, Page, PlanResult
from pvswitch.controller import Controller, Dataplane
from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.events import Events
from pvswitch.model import Plan, SwitchConfig
from pvswitch.revisions import Revisions
from pvswitch.validation import parse


@dataclass(frozen=True)
class Context:
    """What the handlers work on."""

    controller: Controller
    dataplane: Dataplane
    revisions: Revisions
    events: Events
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

    @property
    def actor(self) -> str:
        """Who asks, as revisions and the audit line say it."""
        return actor()

    def path(self, part: str) -> str:
        """Return a variable part of the path."""
        return self.request.match_info[part]

    async def edit(
        self,
        change: Callable[[SwitchConfig], SwitchConfig],
        *,
        if_match: list[str] | None,
        dry_run: bool = False,
    ) -> Plan:
        """Have the controller replace the configuration by `change(configuration)`, in the name of who asks."""
        return await self.controller.edit(change, if_match=if_match, dry_run=dry_run, actor=self.actor)

    async def replace(self, change: Callable[[SwitchConfig], SwitchConfig], if_match: list[str] | None) -> web.Response:
        """Change the whole configuration, or only look what that would do (`dry_run`); return the difference."""
        plan = await self.edit(change, if_match=if_match, dry_run=self.query.get("dry_run") == "true")
        result = PlanResult(changes=list(plan.changes), disruptive=plan.disruptive)
        return reply(result, etag=self.controller.etag)


def refuse_unknown_port(call: Call) -> None:
    """Refuse a query for a `port` that isn't there (422): it is misspelt."""
    if (port := call.query.get("port")) is not None and port not in call.config.ports:
        raise unknown_in_query("port", "port", port)


def reply(body: BaseModel, status: int = 200, etag: str | None = None) -> web.Response:
    """Return a JSON answer; absent values are left out, but `next` of a page is always there."""
    content = body.model_dump(mode="json", exclude_none=True, by_alias=True)
    if isinstance(body, Page):
        content.setdefault("next", None)
    headers = {} if etag is None else {"ETag": f'"{etag}"'}
    return web.Response(status=status, text=json.dumps(content), content_type="application/json", headers=headers)


def no_content(call: Call) -> web.Response:
    """Return the answer to a removal."""
    return web.Response(status=204, headers={"ETag": f'"{call.controller.etag}"'})


# ---- edits ----


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[SwitchConfig], SwitchConfig]:
    """Return an edit for the controller from a change of the document.

    The document is plain but for its ports and flows: those that the change leaves as they are aren't judged anew.
    """

    def edit(config: SwitchConfig) -> SwitchConfig:
        document = config.editable()
        change(document)
        return parse(document)

    return edit


def merged(target: Any, patch: Any) -> Any:
    """Return `target` changed by a merge patch (RFC 7396): null removes, a mapping is merged, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    if isinstance(target, BaseModel):
        target = target.model_dump(mode="json", exclude_none=True)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def section_of(document: dict[str, Any], section: tuple[str, ...]) -> dict[str, Any]:
    """Return the part of a document at ("ports",), or ("bridges", "br0", "mirrors") of a bridge that must be there."""
    here = document
    for part in section:
        if part not in here:
            raise not_found("bridge", part)
        here = here[part]
    return here


async def put_resource(
    call: Call,
    section: tuple[str, ...],
    name: str,
    show: Callable[[Call, str], BaseModel],
    *read_only: str,
) -> web.Response:
    """Make or replace one bridge, port or mirror."""
    tags = read_if_match(call.request)
    body = _item(await read_object(call.request), name, (*section, name), *read_only)
    existed = False

    def put(document: dict[str, Any]) -> None:
        nonlocal existed
        here = section_of(document, section)
        existed = name in here
        here[name] = body

    await call.edit(edited(put), if_match=tags)
    return reply(show(call, name), 200 if existed else 201, call.controller.etag)


async def patch_resource(
    call: Call,
    section: str,
    name: str,
    show: Callable[[Call, str], BaseModel],
    *read_only: str,
) -> web.Response:
    """Change some keys of one bridge or port, which must be there."""
    tags = read_if_match(call.request)
    changes = _item(await read_patch(call.request), name, (section, name), *read_only)

    def patch(document: dict[str, Any]) -> None:
        if name not in document[section]:
            raise not_found(section.removesuffix("s"), name)
        document[section][name] = merged(document[section][name], changes)

    await call.edit(edited(patch), if_match=tags)
    return reply(show(call, name), etag=call.controller.etag)


def _item(body: dict[str, Any], name: str, loc: tuple[str, ...], *read_only: str) -> dict[str, Any]:
    """Return the body of an edit without what a GET adds to it, so that what was read can be written."""
    if body.get("name", name) != name:
        raise InvalidDocument([FieldError((*loc, "name"), f"must be {name!r}, as in the path, or absent")])
    return {key: value for key, value in body.items() if key not in ("name", *read_only)}
