# SPDX-License-Identifier: Apache-2.0
"""How a call of the HTTP API is made: what is sent, the pages of a collection, the model that an answer becomes.

The classes of calls extend `Calls`: `bridge_operations` and `operations`.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from pvswitch.client.transport import Reply, Transport
from pvswitch.errors import PvswitchError
from pvswitch.values import ELSEWHERE

MERGE = {"Content-Type": "application/merge-patch+json"}

T = TypeVar("T")
Body = BaseModel | Mapping[str, Any]


class Calls:
    """What calls have in common; `_transport` is where they go."""

    _transport: Transport

    async def _send(
        self, method: str, path: str, body: Body | None, if_match: str | None, **query: str | int | None
    ) -> Reply:
        value = body.model_dump(mode="json", exclude_none=True) if isinstance(body, BaseModel) else body
        headers = dict(MERGE) if method == "PATCH" else {}
        if if_match is not None:
            headers["If-Match"] = if_match
        return await self._transport.request(method, path, body=value, query=query, headers=headers)

    async def _edit(
        self,
        model: type[T],
        method: str,
        path: str,
        body: Body | None,
        if_match: str | None,
        **query: str | int | None,
    ) -> T:
        return parse(model, (await self._send(method, path, body, if_match, **query)).json())

    async def _get(self, model: type[T], path: str, **query: str | int | None) -> T:
        return parse(model, (await self._transport.request("GET", path, query=query)).json())

    async def _pages(self, model: type[T], path: str, **query: str | int | None) -> list[T]:
        items: list[T] = []
        while True:
            page = (await self._transport.request("GET", path, query=query)).json()
            items += [parse(model, item) for item in page["items"]]
            if page["next"] is None:
                return items
            query["cursor"] = page["next"]


def flag(value: bool) -> str | None:
    """Return a switch as a query has it; absent, where it is off."""
    return "true" if value else None


@functools.cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def parse(model: type[T], value: Any) -> T:
    """Return an answer's value as a model; PvswitchError."""
    try:
        answer: T = _adapter(cast("Hashable", model)).validate_python(value, context=ELSEWHERE)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PvswitchError(
            f"the switch's answer can't be read ({place}: {first['msg']}): it is another version than this client"
        ) from None
    return answer
