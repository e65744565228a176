# SPDX-License-Identifier: Apache-2.0
"""What a request says: its JSON body, its query, its If-Match, its page. Every refusal is an ApiProblem."""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from aiohttp import web

from pvswitch.api.problem import ApiProblem
from pvswitch.api.schemas import Page, ProblemError

BODY_SECONDS = 30.0  # from the end of the headers to the end of the body
MAX_DEPTH = 32
DEFAULT_LIMIT = 1000
MAX_LIMIT = 10_000
BATCH = 4096  # items of a large collection that are looked at before others have their turn
PATCH_TYPES = ("application/merge-patch+json", "application/json")

_ETAG = r'(?:W/)?"[\x21\x23-\x7e]*"'

T = TypeVar("T")


@dataclass(frozen=True)
class Param:
    """One query parameter: its JSON schema, and how its text is read (ValueError says what is wrong)."""

    name: str
    schema: Mapping[str, Any]
    description: str
    read: Callable[[str], Any]


def choice(name: str, *values: str, default: str | None = None, description: str = "") -> Param:
    """Return a parameter that takes one of these words."""

    def read(text: str) -> str:
        if text not in values:
            raise ValueError(f"must be one of {', '.join(values)}")
        return text

    schema: dict[str, Any] = {"type": "string", "enum": list(values)}
    return Param(name, schema if default is None else {**schema, "default": default}, description, read)


def integer(name: str, low: int, high: int, description: str = "") -> Param:
    """Return a parameter that takes a whole number."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return Param(name, {"type": "integer", "minimum": low, "maximum": high}, description, read)


def pattern(name: str, regex: str, example: str, description: str = "") -> Param:
    """Return a parameter that takes text of this form."""

    def read(text: str) -> str:
        if not re.fullmatch(regex, text):
            raise ValueError(f"must be like {example}")
        return text

    return Param(name, {"type": "string", "pattern": f"^(?:{regex})$"}, description, read)


def _read_cursor(text: str) -> str:
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ValueError("is not a cursor: take it from `next` of the answer before") from None


PAGING = (
    integer("limit", 1, MAX_LIMIT, f"items at most; {DEFAULT_LIMIT} when absent"),
    Param("cursor", {"type": "string"}, "`next` of the answer before", _read_cursor),
)


def read_query(request: web.Request, params: Sequence[Param]) -> dict[str, Any]:
    """Return the values of the query; absent ones are missing. 422 with every wrong or unknown one."""
    known = {param.name: param for param in params}
    values: dict[str, Any] = {}
    errors = []
    for name, text in request.query.items():
        try:
            if name not in known:
                takes = ", ".join(known) or "none"
                raise ValueError(f"unknown parameter: this path takes {takes}")
            if name in values:
                raise ValueError("is given twice: keep one")
            values[name] = known[name].read(text)
        except ValueError as error:
            errors.append(ProblemError(pointer=f"?{name}", detail=str(error)))
    if errors:
        raise ApiProblem(422, "; ".join(f"{error.pointer} {error.detail}" for error in errors), errors)
    return values


def page(items: Sequence[T], key: Callable[[T], str], query: Mapping[str, Any]) -> Page[T]:
    """Return the part of a collection that `limit` and `cursor` ask for, in the order of the keys."""
    after = query.get("cursor")
    return _cut(sorted((item for item in items if after is None or key(item) > after), key=key), key, query)


async def page_of_many(items: Iterable[T], key: Callable[[T], str], query: Mapping[str, Any]) -> Page[T]:
    """Do the same where there may be a million: of those only a page is held, and others have their turn meanwhile."""
    after, room = query.get("cursor"), query.get("limit", DEFAULT_LIMIT) + 1
    first: list[T] = []
    rest = iter(items)
    while batch := list(itertools.islice(rest, BATCH)):
        fitting = [item for item in batch if after is None or key(item) > after]
        first = heapq.nsmallest(room, [*first, *fitting], key=key)
        await asyncio.sleep(0)
    return _cut(first, key, query)


def _cut(ordered: Sequence[T], key: Callable[[T], str], query: Mapping[str, Any]) -> Page[T]:
    limit = query.get("limit", DEFAULT_LIMIT)
    part = list(ordered[:limit])
    more = len(ordered) > limit
    return Page(items=part, next=base64.urlsafe_b64encode(key(part[-1]).encode()).decode() if more else None)


def read_if_match(request: web.Request, *, required: bool = False) -> list[str] | None:
    """Return the etags of If-Match, None where any will do; 428 when it is required and missing."""
    header = ", ".join(request.headers.getall("If-Match", []))
    if not header:
        if required:
            raise ApiProblem(428, "If-Match is missing: GET the configuration and send its ETag, or `*` for any")
        return None
    if header.strip() == "*":
        return None
    if not re.fullmatch(rf"{_ETAG}([ \t]*,[ \t]*{_ETAG})*", header.strip()):
        raise ApiProblem(400, 'If-Match must be `*` or etags in quotes, like "5f2a"')
    tags = [match[0] for match in re.finditer(_ETAG, header)]  # a comma may stand in one
    return [tag[1:-1] for tag in tags if not tag.startswith("W/")]  # a weak one never matches (RFC 9110, 13.1.1)


async def read_json(request: web.Request) -> Any:
    """Return the body as plain values; 400 when it isn't strict JSON, 413 when it is too large, 408 when it is late."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise ApiProblem(408, f"the body took longer than {BODY_SECONDS:.0f} s: send it faster") from None
    except ConnectionError:
        raise ApiProblem(400, "the connection ended before the body did") from None
    except web.RequestPayloadError:
        raise ApiProblem(400, "the body can't be read: its chunks, or its Content-Encoding, are broken") from None
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
        )
        _check_depth(value)
    except UnicodeDecodeError:
        raise ApiProblem(400, "the body is not UTF-8") from None
    except RecursionError:
        raise ApiProblem(400, f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ApiProblem(400, f"the body is not JSON: {error}") from None
    return value


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the body as a JSON object; 422 when it is another value."""
    value = await read_json(request)
    if not isinstance(value, dict):
        raise ApiProblem(422, "the body must be an object", [ProblemError(pointer="#", detail="must be an object")])
    return value


async def read_patch(request: web.Request) -> dict[str, Any]:
    """Return the body of a PATCH as a JSON object; 415 when it says that it is no merge patch."""
    if request.content_type not in PATCH_TYPES:
        detail = f"a PATCH is a JSON merge patch: send it with Content-Type: {PATCH_TYPES[0]}"
        raise ApiProblem(415, detail, headers={"Accept-Patch": ", ".join(PATCH_TYPES)})
    return await read_object(request)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} is given twice")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RecursionError
