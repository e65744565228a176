# SPDX-License-Identifier: Apache-2.0
"""The keys of ports, bridges, mirrors and meters, read from the model: for KEY=VALUE arguments and completion."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

Section = Literal["ports", "bridges", "mirrors", "meters"]
Schema = dict[str, Any]


def _models(section: Section) -> list[type[BaseModel]]:
    from pvswitch.model import PORT_TYPES, Bridge, Meter, Mirror

    models: dict[Section, list[type[BaseModel]]] = {
        "ports": [*PORT_TYPES.values()],
        "bridges": [Bridge],
        "mirrors": [Mirror],
        "meters": [Meter],
    }
    return models[section]


@functools.cache
def keys(section: Section) -> dict[str, Schema]:
    """Return the JSON schema of each key of a port (`anyOf` its types), of a bridge, of a mirror or of a meter."""
    found: dict[str, Schema] = {}
    for model in _models(section):
        for key, schema in model.model_json_schema()["properties"].items():
            found.setdefault(key, {"anyOf": []})["anyOf"].append(schema)
    return found


def list_keys(section: Section) -> frozenset[str]:
    """Return the keys that are lists of plain values: `addresses=a,b` is possible for them."""
    return frozenset(key for key, schema in _deep(section) if _is_plain_list(schema))


def _deep(section: Section) -> Iterator[tuple[str, Schema]]:
    """Give every key, and those within: `port_security.allowed_macs`."""
    for model in _models(section):
        schema = model.model_json_schema()
        for key, own in schema["properties"].items():
            yield key, own
            for option in _options(own):
                inner = schema.get("$defs", {}).get(option.get("$ref", "").rpartition("/")[2], {})
                yield from ((f"{key}.{name}", each) for name, each in inner.get("properties", {}).items())


def words(section: Section) -> Iterator[str]:
    """Give what can be typed as the beginning of KEY=VALUE, a whole one where the values are known."""
    for key, schema in keys(section).items():
        values: dict[str, None] = {}
        for option in _options(schema):
            known = option.get("enum", [option["const"]] if "const" in option else [])
            values |= dict.fromkeys(["true", "false"] if option.get("type") == "boolean" else known)
        yield from (f"{key}={value}" for value in values or [""])


def _options(schema: Schema) -> Iterator[Schema]:
    """Give the schemas that a value may follow, one of them each."""
    if "anyOf" in schema:
        for option in schema["anyOf"]:
            yield from _options(option)
    else:
        yield schema


def _is_plain_list(schema: Schema) -> bool:
    return any(option.get("type") == "array" and "$ref" not in option["items"] for option in _options(schema))
