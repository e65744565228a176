# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description, written from the table of routes and the models."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pvswitch.api.routes import ROUTES, Route
from pvswitch.api.schemas import Problem
from pvswitch.values import NAME_PATTERN

Mode = Literal["validation", "serialization"]
_PATH_SCHEMAS = {
    "br": {"type": "string", "pattern": NAME_PATTERN},
    "name": {"type": "string", "pattern": NAME_PATTERN},
    "vid": {"type": "integer", "minimum": 0, "maximum": 4094},
    "mac": {"type": "string", "examples": ["52:54:00:12:34:56"]},
}


def describe(version: str) -> dict[str, Any]:
    """Return the description of this API as JSON values."""
    used: dict[tuple[type[BaseModel], Mode], None] = {(Problem, "serialization"): None}
    for route in ROUTES:
        if route.request is not None:
            used[route.request, "validation"] = None
        if route.response is not None:
            used[route.response, "serialization"] = None
    refs, definitions = models_json_schema(list(used), ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    paths["/openapi.json"] = {
        "get": {
            "operationId": "get_openapi",
            "summary": "Return this description",
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {}}}}},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pvswitch",
            "version": version,
            "description": "Counters are the switch's view: a port's tx is what its guest receives.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _operation(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += [
        {"name": param.name, "in": "query", "description": param.description, "schema": dict(param.schema)}
        for param in route.query
    ]
    if route.edits:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "required": 428 in route.problems,
                "description": "the configuration's ETag, or *",
                "schema": {"type": "string"},
            }
        )
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "parameters": parameters,
        "responses": _responses(route, refs),
    }
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": _json(refs[route.request, "validation"])}
    return operation


def _responses(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if route.etag or route.edits:
        headers["headers"] = {"ETag": {"description": "of the configuration in force", "schema": {"type": "string"}}}
    responses: dict[str, Any] = {}
    if route.response is None:
        responses["204"] = {"description": "No Content", **headers}
    else:
        content = _json(refs[route.response, "serialization"])
        for status in (200, 201) if route.creates else (200,):
            phrase = HTTPStatus(status).phrase
            responses[str(status)] = {"description": phrase, "content": content, **headers}
    always = {403, 422, *([400] if route.request is not None or route.edits else [])}
    for status in sorted(always | set(route.problems)):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": refs[Problem, "serialization"]}},
        }
    return responses


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
