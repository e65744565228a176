# SPDX-License-Identifier: Apache-2.0
"""What is noted of each request: one audit line for those that change something or are refused, and the metrics.

The outermost middleware. It sees every answer as it leaves, problem+json included; `access` has noted by then who
asked. Text of the client goes into the log only as it was sent, percent-encoded.
"""

from __future__ import annotations

import time
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pvswitch.api import access
from pvswitch.api.connection import Connection
from pvswitch.metrics import Metrics

_log = structlog.get_logger("pvswitch.audit")


def middleware(metrics: Metrics) -> Middleware:
    """Return the middleware; it counts into `metrics`."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        assert isinstance(request.protocol, Connection)
        request.protocol.began()
        started = time.perf_counter()
        response = await handler(request)
        seconds = time.perf_counter() - started
        resource = request.match_info.route.resource
        template = "other" if resource is None else resource.canonical
        # a stream lasts as long as its client likes: that is no latency
        lasted = seconds if isinstance(response, web.Response) else None
        metrics.count_request(request.method, template, response.status, lasted)
        if request.method not in access.SAFE_METHODS or response.status in (401, 403):
            _log.info("request", **_fields(request, response, request.protocol.peer.address, seconds))
        return response

    return observe


def _fields(request: web.Request, response: web.StreamResponse, address: str | None, seconds: float) -> dict[str, Any]:
    caller = access.current()
    who = caller.who if caller is not None else {"remote": address}
    etag = response.headers.get("ETag")
    return {
        **who,
        "method": request.method,
        "path": request.rel_url.raw_path_qs,
        "status": response.status,
        **({} if etag is None else {"etag": etag.strip('"')}),
        "ms": round(seconds * 1000, 1),
    }
