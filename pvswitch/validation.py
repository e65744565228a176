# SPDX-License-Identifier: Apache-2.0
"""A document -> a `SwitchConfig`, or every error at once in words a user knows.

pydantic stops its checks between values when a single value is wrong. So a document with errors is
checked a second time without the wrong values, and the errors of both passes are reported. May be
called from anywhere: files, the API and the command all come through `parse`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from itertools import takewhile
from types import UnionType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.model import (
    MAX_PAIRS,
    MAX_WORKERS,
    PORT_TYPES,
    AnyPort,
    Port,
    StaticEntry,
    SwitchConfig,
    VhostUserPort,
)
from pvswitch.values import is_name

MAX_ERRORS = 1000  # named at once

Loc = tuple[str | int, ...]
# Stands for a static entry with errors while the rest is checked, so that later ones keep their index.
_PLACEHOLDER = StaticEntry.model_construct(mac="", vid=0, port="")
M = TypeVar("M", bound=BaseModel)

# What pydantic says is for programmers; these are the sentences for the errors that the models produce.
MESSAGES = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text (put it in quotes)",
    "string_unicode": "is not text: it has half of a surrogate pair",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "tuple_type": "must be a list",
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_long": "has too many entries: at most {max_length} are possible",
    "string_pattern_mismatch": ("is not a name: use 1 to 63 of A-Z a-z 0-9 _ . - with a letter or a digit first"),
}


def parse(document: object) -> SwitchConfig:
    """Return the configuration that `document` (plain dicts, lists and values) describes.

    Raises InvalidDocument with every error (of MAX_ERRORS at most), in the order of the document's keys.
    """
    try:
        return SwitchConfig.model_validate(document)
    except ValidationError as error:
        errors, omitted = describe(error, SwitchConfig)
    if isinstance(document, Mapping):
        if not omitted:
            try:
                SwitchConfig.model_validate(without(document, [error.loc for error in errors]))
            except ValidationError as error:
                known = {item.loc for item in errors}
                more, omitted = describe(error, SwitchConfig)
                errors += [item for item in more if known.isdisjoint(_prefixes(item.loc))]
        order = _positions(document)
        errors.sort(key=lambda item: order(item.loc))
    raise InvalidDocument(errors, omitted)


def parse_part(model: type[M], value: object, prefix: Loc) -> M:
    """Return one part of a document, as a `model`; raises InvalidDocument with places below `prefix`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors, omitted = describe(error, model)
        raise InvalidDocument([FieldError((*prefix, *item.loc), item.message) for item in errors], omitted) from None


def describe(error: ValidationError, model: type[BaseModel]) -> tuple[list[FieldError], int]:
    """Return pydantic's errors in words, with places that a user knows, and how many there are beyond MAX_ERRORS."""
    items = error.errors(include_url=False, include_input=False)
    untyped = {item["loc"][:-1] for item in items if _is_port_key(item["loc"]) and item["loc"][-1] == "type"}
    # Which keys a port may have is not known while its type isn't.
    known = [item for item in items if item["type"] != "extra_forbidden" or item["loc"][:-1] not in untyped]
    return [_describe(item, model) for item in known[:MAX_ERRORS]], max(0, len(known) - MAX_ERRORS)


def _is_port_key(loc: Loc) -> bool:
    """Return whether this is pydantic's place of a port's key, where the port's type stands before the key."""
    return len(loc) >= 4 and loc[0] == "ports" and loc[2] in PORT_TYPES


def _describe(item: ErrorDetails, model: type[BaseModel]) -> FieldError:
    loc = tuple(part for part in item["loc"] if part != "[key]")
    if item["type"] == "extra_forbidden":
        return FieldError(_without_type(loc), _unknown_key(loc, model))
    loc = _without_type(loc)
    if item["type"] in ("string_type", "string_pattern_mismatch") and item["loc"][-1:] == ("[key]",):
        loc = (*loc[:-1], str(loc[-1]))
        if item["type"] == "string_type":
            return FieldError(loc, "is not a name as it is written: put it in quotes")
    template = MESSAGES.get(item["type"])
    return FieldError(loc, template.format(**item.get("ctx", {})) if template else item["msg"])


def _without_type(loc: Loc) -> Loc:
    """Return a place without the port's type that pydantic puts behind its name."""
    return (*loc[:2], *loc[3:]) if len(loc) >= 3 and loc[0] == "ports" and loc[2] in PORT_TYPES else loc


def _unknown_key(loc: Loc, root: type[BaseModel]) -> str:
    key = str(loc[-1])
    model = model_at(root, loc[:-1])
    if model is None:
        return "unknown key"
    if owners := [name for name, other in PORT_TYPES.items() if issubclass(model, Port) and key in other.model_fields]:
        return f"`{key}` is a key of {' and '.join(owners)} ports, and this is none: set `type`, or leave the key out"
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    return f"unknown key: did you mean `{close[0]}`?" if close else f"unknown key: there are {_names(model)}"


def _names(model: type[BaseModel]) -> str:
    return ", ".join(f"`{name}`" for name in model.model_fields)


def model_at(root: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """Return the model at a place as pydantic names it: ("ports", "vm1", "tap") -> TapPort; None: there is none."""
    here: Any = root
    for part in loc:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(part))
            here = None if field is None else field.annotation
            if isinstance(here, UnionType):  # Tls | None
                here = next((arg for arg in here.__args__ if _is_model(arg)), here)
        elif here is AnyPort:
            here = PORT_TYPES.get(str(part))
        else:  # dict[name, X] or tuple[X, ...]: a name or an index leads to X
            here = next((arg for arg in getattr(here, "__args__", ()) if _is_model(arg) or arg is AnyPort), None)
    return here if _is_model(here) else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def without(document: Mapping[Any, Any], locs: list[Loc]) -> dict[Any, Any]:
    """Return a copy of `document` without the values at `locs`, so that the rest can be checked."""
    copy = _copy(document)
    for loc in sorted(locs, key=len):
        entry = loc[:1] == ("bridges",) and loc[2:3] == ("fdb",)
        if loc[:1] == ("bridges",) and loc[2:3] in (("flows",), ("meters",)):
            loc = loc[:4]  # as a whole: what is right in it may be wrong without the rest
        _remove(copy, loc if entry else tuple(takewhile(lambda part: isinstance(part, str), loc)))
    return copy if isinstance(copy, dict) else {}


def _prefixes(loc: Loc) -> list[Loc]:
    return [loc[:end] for end in range(len(loc) + 1)]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _remove(root: Any, loc: Loc) -> None:
    here = root
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(here, list) and isinstance(part, int) and part < len(here):
            here[part] = _PLACEHOLDER  # lists of plain values are removed as a whole, so this is an entry of an fdb
            return
        if not isinstance(here, dict):
            return
        key = part if part in here else next((key for key in here if str(key) == str(part)), None)
        if last:
            if key in here:  # else the value is wrong by being missing
                del here[key]
            _stand_in(here, loc, key)
            return
        if key is None:
            return
        here = here[key]


def _stand_in(here: dict[Any, Any], loc: Loc, key: object) -> None:
    """Put something in the place of a value that is wrong, where others are measured against it."""
    match loc:
        case ("bridges" | "ports", _) if isinstance(key, str) and is_name(key):
            here[key] = {}  # others may refer to this name
        case ("ports", _, "type" | "ifname" | "local" | "vni"):
            for own in [name for name in here if name == "type" or name not in VhostUserPort.model_fields]:
                del here[own]  # without them it is a port like any other
        case ("bridges", _, "mirrors", _, "output_port" | "output_vlan"):
            here.pop("output_port", None)
            here["output_vlan"] = 1
        case ("bridges", _, "meters", _):
            here[key] = {"rate_pps": 1}  # flows may refer to it
        case ("api", "listen"):
            here[key] = "127.0.0.1:0"
        case ("api", "tokens_file"):
            here[key] = "/"
        case ("datapath", "workers"):
            here[key] = MAX_WORKERS
            here.pop("cpus", None)  # one for each worker, so nothing can be said of them
        case ("ports", name, ("read" | "write") as which) if here.get("type") == "pcap":
            here[which] = f"/{name}/{which}"  # one of them is needed
        case ("ports", _, "queues"):
            here[key] = MAX_PAIRS
        case ("ports", _, "remotes" | "learning" | "external"):
            here["external"] = True  # then there may be none


def _positions(document: Mapping[Any, Any]) -> Callable[[Loc], tuple[int, ...]]:
    """Return a sort key: the place of a loc in the document as it is written."""
    known: dict[int, dict[str, tuple[int, Any]]] = {}  # of each mapping on the way, by its id: what is where

    def entries(mapping: Mapping[Any, Any]) -> dict[str, tuple[int, Any]]:
        if id(mapping) not in known:
            known[id(mapping)] = {str(key): (place, value) for place, (key, value) in enumerate(mapping.items())}
        return known[id(mapping)]

    def key(loc: Loc) -> tuple[int, ...]:
        here: Any = document
        path = []
        for part in loc:
            if isinstance(here, Mapping):
                place, here = entries(here).get(str(part), (len(here), None))
                path.append(place)
            elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
                path.append(part)
                here = here[part]
            else:
                break
        return tuple(path)

    return key
