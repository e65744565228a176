# SPDX-License-Identifier: Apache-2.0
"""The keys that a port and a bridge have, read from the model: for KEY=VALUE arguments and their completion."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Literal

Section = Literal["ports", "bridges"]
Schema = dict[str, Any]


@functools.cache
def keys(section: Section) -> dict[str, Schema]:
    """Return the JSON schema of each key of a port (`anyOf` its types) or of a bridge."""
    from pvswitch.model import PORT_TYPES, Bridge

    found: dict[str, Schema] = {}
    for model in PORT_TYPES.values() if section == "ports" else [Bridge]:
        for key, schema in model.model_json_schema()["properties"].items():
            found.setdefault(key, {"anyOf": []})["anyOf"].append(schema)
    return found


def list_keys(section: Section) -> frozenset[str]:
    """Return the keys that are lists of plain values: `addresses=a,b` is possible for them."""
    return frozenset(key for key, schema in keys(section).items() if _is_plain_list(schema))


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
