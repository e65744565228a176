# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description, written from the table of routes and the models.

What a route can answer follows from what it does: a body can be too large or too slow, an edit can be stale. The
answers of the checks in front of every handler (who asks, how many) stand once, under `components`.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from pvswitch.api.request import PATCH_TYPES
from pvswitch.api.routes import ROOT, ROUTES, Route
from pvswitch.api.schemas import Problem
from pvswitch.values import MAX_GRE_KEY, NAME_PATTERN

Mode = Literal["validation", "serialization"]
_PATH_SCHEMAS = {
    "br": {"type": "string", "pattern": NAME_PATTERN, "examples": ["br0"]},
    "name": {"type": "string", "pattern": NAME_PATTERN, "examples": ["vm1"]},
    "flow": {"type": "string", "minLength": 1, "examples": ["web", "priority=100,tcp,tp_dst=80"]},
    "vid": {"type": "integer", "minimum": 0, "maximum": 4094, "examples": [0]},
    "mac": {
        "type": "string",
        "pattern": "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$",
        "examples": ["52:54:00:12:34:56"],
    },
    "n": {"type": "integer", "minimum": 1, "examples": [1]},
    "port": {"type": "string", "pattern": NAME_PATTERN, "examples": ["vx1"]},
    "vni": {"type": "integer", "minimum": 0, "maximum": MAX_GRE_KEY, "examples": [10010]},
    "id": {"type": "string", "pattern": "^[0-9a-f]{8}$", "examples": ["1f00c0de"]},
    "address": {"type": "string", "examples": ["192.0.2.2", "2001:db8::2"]},
}
# The tag of a path is that of the first prefix that fits.
_TAGS = {
    f"{ROOT}/config/revisions": "revisions",
    f"{ROOT}/config": "configuration",
    f"{ROOT}/bridges/{{br}}/fdb": "fdb",
    f"{ROOT}/bridges/{{br}}/vlans": "vlans",
    f"{ROOT}/bridges/{{br}}/mirrors": "mirrors",
    f"{ROOT}/bridges/{{br}}/trace": "trace",
    f"{ROOT}/bridges/{{br}}/flows": "flows",
    f"{ROOT}/bridges/{{br}}/meters": "flows",
    f"{ROOT}/bridges": "bridges",
    f"{ROOT}/ports": "ports",
    f"{ROOT}/tunnels": "tunnels",
    f"{ROOT}/captures": "captures",
    f"{ROOT}/drops": "captures",
    f"{ROOT}/frames": "captures",
    f"{ROOT}/": "switch",
    "/": "process",
}
_TAG_TEXTS = {
    "configuration": "The whole document, replaced or changed at once.",
    "revisions": "The configurations there were, and the way back.",
    "bridges": "Learning switches.",
    "fdb": "The addresses that a bridge knows.",
    "vlans": "Who is in which VLAN of a bridge, and what came into it.",
    "flows": "What is done with frames that match, and how much of it a second.",
    "mirrors": "Frames that are sent once more, to who watches.",
    "trace": "What would become of a frame, step by step.",
    "ports": "Where virtual machines and networks are connected.",
    "tunnels": "What tunnels do, and what a control plane tells them; no configuration, and gone with the switch.",
    "captures": "Frames that pass by ports, live; the last drops, and frames that were sampled.",
    "switch": "Totals, workers, and what happens.",
    "process": "Probes, metrics, this description, pages.",
}
_EXAMPLES: dict[str, Any] = {
    "put_config": {"bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {"mtu": 9000}}},
    "patch_config": {"ports": {"vm2": None, "vm3": {}}},
    "put_bridge": {"aging_time": 300, "fdb_size": 8192},
    "patch_bridge": {"aging_time": 60},
    "put_port": {"bridge": "br0", "mtu": 9000},
    "patch_port": {"enabled": False},
    "put_fdb": {"port": "vm1"},
    "put_flow": {
        "priority": 100,
        "match": {"in_port": "vm1", "dl_type": "0x0800", "nw_dst": "10.0.0.0/24", "nw_proto": 6, "tp_dst": "80"},
        "actions": ["set_vlan_vid:20", "output:vm2"],
    },
    "change_flows": {"add": ["priority=100,in_port=vm1,ip,nw_dst=10.0.0.0/24,actions=drop"], "delete": []},
    "put_meter": {"rate_kbps": 10000},
    "put_tunnel_mac": {"remote": "192.0.2.2"},
    "change_tunnel": {
        "add": {
            "remotes": [{"vni": 10010, "address": "192.0.2.2"}],
            "macs": [{"vni": 10010, "vid": 10, "mac": "52:54:00:12:34:56", "remote": "192.0.2.2"}],
        },
        "remove": {"remotes": [{"vni": 10010, "address": "192.0.2.3"}]},
    },
    "create_capture": {"ports": ["vm1"], "filter": "arp or port 53", "max_packets": 1000},
    "trace_frame": {"in_port": "vm1", "fields": {"dl_type": "0x0800", "nw_proto": 6, "tp_dst": 80}},
    "put_mirror": {"select_src_port": ["vm1"], "select_dst_port": ["vm1"], "output_port": "monitor"},
}
# path, operation id, summary, content type: what is served beside the table
_PLAIN = (
    ("/openapi.json", "get_openapi", "Return this description", "application/json"),
    ("/metrics", "get_metrics", "Return the counters for Prometheus, as OpenMetrics where asked for", "text/plain"),
    ("/docs", "get_docs", "Return the page that shows this description", "text/html"),
    ("/", "get_home", "Return the page that shows what the switch is doing", "text/html"),
)
_EVERYWHERE = {
    401: ("Unauthorized", "on TCP: a token is required, or the one sent is not known"),
    403: ("Forbidden", "on TCP: the token's role may not do this, or the request comes from a page of another site"),
    429: ("TooManyRequests", "on TCP: too many wrong tokens came from this address"),
    503: ("Unavailable", "too many requests are under way, or the switch is not ready"),
}
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}


def describe(version: str) -> dict[str, Any]:
    """Return the description of this API as JSON values."""
    used: dict[tuple[type[BaseModel], Mode], None] = {(Problem, "serialization"): None}
    for route in ROUTES:
        if route.request is not None:
            used[route.request, "validation"] = None
        if route.response is not None:
            used[route.response, "serialization"] = None
    refs, definitions = models_json_schema(list(used), ref_template="#/components/schemas/{model}")
    problem = refs[Problem, "serialization"]
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    for path, operation_id, summary, content_type in _PLAIN:
        paths[path] = {"get": _plain(operation_id, summary, content_type, problem)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pvswitch",
            "version": version,
            "description": "Counters are the switch's view: a port's tx is what its guest receives.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAG_TEXTS.items()],
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "on TCP where `api.tokens_file` is set; the unix socket needs none",
                }
            },
            "responses": {name: _refused(status, text, problem) for status, (name, text) in _EVERYWHERE.items()},
        },
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
    if route.media == "text/event-stream":
        parameters.append(
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "the id of the last event that was seen: go on behind it",
                "schema": {"type": "string"},
            }
        )
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
        "tags": [_tag(route.path)],
        "summary": route.summary,
        "parameters": parameters,
        "responses": _responses(route, refs),
    }
    if route.request is not None:
        content: dict[str, Any] = {"schema": refs[route.request, "validation"]}
        if route.operation_id in _EXAMPLES:
            content["examples"] = {"example": {"value": _EXAMPLES[route.operation_id]}}
        types = PATCH_TYPES if route.method == "PATCH" else ("application/json",)
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(types, content)}
    return operation


def _tag(path: str) -> str:
    return next(tag for prefix, tag in _TAGS.items() if path.startswith(prefix))


def _responses(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    if route.etag or route.edits:
        headers["headers"] = {"ETag": {"description": "of the configuration in force", "schema": {"type": "string"}}}
    responses: dict[str, Any] = {}
    if route.response is None and route.stream:
        responses["200"] = {"description": "OK", "content": {route.media: {"schema": {"type": "string"}}}}
    elif route.response is None:
        responses["204"] = {"description": "No Content", **headers}
    else:
        content = {route.media: {"schema": refs[route.response, "serialization"]}}
        for status in (201,) if route.makes else (200, 201) if route.creates else (200,):
            phrase = HTTPStatus(status).phrase
            responses[str(status)] = {"description": phrase, "content": content, **headers}
    always = {422}
    if route.edits or route.request is not None:
        always |= {400}
    if route.request is not None:
        always |= {408, 413}
    return responses | _problems(always | set(route.problems), refs[Problem, "serialization"])


def _problems(statuses: set[int], problem: dict[str, Any]) -> dict[str, Any]:
    """Return the answers for these errors, and for those that every operation has."""
    answers: dict[str, Any] = {}
    for status in sorted(statuses | set(_EVERYWHERE)):
        if status in _EVERYWHERE:
            answers[str(status)] = {"$ref": f"#/components/responses/{_EVERYWHERE[status][0]}"}
        else:
            answers[str(status)] = _refused(status, HTTPStatus(status).phrase, problem)
    return answers


def _refused(status: int, text: str, problem: dict[str, Any]) -> dict[str, Any]:
    headers = {_HEADERS[status]: {"schema": {"type": "string"}}} if status in _HEADERS else {}
    content = {"application/problem+json": {"schema": problem}}
    return {"description": text, "content": content, **({"headers": headers} if headers else {})}


def _plain(operation_id: str, summary: str, content_type: str, problem: dict[str, Any]) -> dict[str, Any]:
    content = {content_type: {"schema": {} if content_type == "application/json" else {"type": "string"}}}
    return {
        "operationId": operation_id,
        "tags": ["process"],
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": content}} | _problems({422}, problem),
    }
