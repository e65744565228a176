# SPDX-License-Identifier: Apache-2.0
"""The aiohttp application: the table of routes, behind the audit line, problem+json and the check of who asks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from pvswitch.api import audit, openapi, pages, problem
from pvswitch.api.access import Access
from pvswitch.api.call import Call, Context
from pvswitch.api.connection import HEADERS
from pvswitch.api.request import read_query
from pvswitch.api.routes import ROUTES, Route
from pvswitch.api.schemas import Info
from pvswitch.controller import Controller, Dataplane
from pvswitch.events import Events
from pvswitch.metrics import Metrics
from pvswitch.revisions import Revisions

MAX_BODY = 8 << 20


def make_app(
    controller: Controller,
    dataplane: Dataplane,
    revisions: Revisions,
    events: Events,
    info: Info,
    access: Access | None = None,
) -> web.Application:
    """Return the application; `server.ApiServer` serves it.

    When it ends it closes `events` and ends the captures, and so every stream.
    """
    metrics = Metrics(controller, dataplane, info.version)
    check = (access or Access()).middleware(pages.PUBLIC, frozenset(route.path for route in ROUTES if route.stream))
    app = web.Application(client_max_size=MAX_BODY, middlewares=[audit.middleware(metrics), problem.middleware, check])
    context = Context(controller, dataplane, revisions, events, info)

    async def end_streams(_: web.Application) -> None:
        events.close()
        dataplane.captures.end_all()

    app.on_shutdown.append(end_streams)
    app.on_response_prepare.append(_add_headers)
    for route in ROUTES:
        # a port's name has no colon: what stands behind one, as in {port}:batch, is another path
        path = route.path.replace("{port}", "{port:[^/:]+}")
        app.router.add_route(route.method, path, _bind(route, context), expect_handler=_expect)
    description = json.dumps(openapi.describe(info.version))

    async def get_openapi(request: web.Request) -> web.Response:
        read_query(request, ())
        return web.Response(text=description, content_type="application/json")

    async def get_metrics(request: web.Request) -> web.Response:
        read_query(request, ())
        text, content_type = await metrics.scrape(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    app.router.add_route("GET", "/openapi.json", get_openapi)
    app.router.add_route("GET", "/metrics", get_metrics)
    for path in pages.PUBLIC:
        app.router.add_route("GET", path, pages.get_page)
    return app


def _bind(route: Route, context: Context) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        query = read_query(request, route.query)
        return await route.handler(Call(**vars(context), request=request, query=query))

    return handle


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        if name not in response.headers or name == "Server":  # aiohttp has put its own there
            response.headers[name] = value


async def _expect(request: web.Request) -> None:
    """Ask for the body that a client holds back; any other expectation may be ignored (RFC 9110, 10.1.1)."""
    if request.headers["Expect"].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
