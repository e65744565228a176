# SPDX-License-Identifier: Apache-2.0
"""The aiohttp application: the table of routes, behind problem+json and the guard against other sites."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from pvswitch.api import openapi
from pvswitch.api.handlers import Call, Context
from pvswitch.api.problem import ApiProblem, middleware
from pvswitch.api.request import read_query
from pvswitch.api.routes import ROUTES, Route
from pvswitch.api.schemas import Info
from pvswitch.controller import Controller, Dataplane

MAX_BODY = 8 << 20


def make_app(controller: Controller, dataplane: Dataplane, info: Info) -> web.Application:
    """Return the application; `server.ApiServer` serves it."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[middleware, _same_machine])
    context = Context(controller, dataplane, info)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _bind(route, context))
    description = json.dumps(openapi.describe(info.version))

    async def get_openapi(request: web.Request) -> web.Response:
        read_query(request, ())
        return web.Response(text=description, content_type="application/json")

    app.router.add_get("/openapi.json", get_openapi)
    return app


def _bind(route: Route, context: Context) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        query = read_query(request, route.query)
        return await route.handler(Call(context.controller, context.dataplane, context.info, request, query))

    return handle


@web.middleware
async def _same_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse, on TCP, what a web page of another site may have sent (DNS rebinding, cross-site requests).

    The API listens on loopback without a token. A browser on this machine can be made to send requests here
    under a foreign name; the Host and Origin headers tell.
    """
    transport = request.transport
    if transport is not None and isinstance(transport.get_extra_info("sockname"), tuple):
        origin = request.headers.get("Origin")
        if not _is_loopback(request.headers.get("Host", "")):
            raise ApiProblem(403, "the Host header must name this machine: use 127.0.0.1, [::1] or localhost")
        if origin is not None and not _is_loopback(origin.partition("://")[2]):
            raise ApiProblem(403, "requests from pages of other sites are refused")
    return await handler(request)


def _is_loopback(authority: str) -> bool:
    """Return whether "HOST" or "HOST:PORT" is a loopback address or localhost."""
    try:
        host = urlsplit(f"//{authority}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
