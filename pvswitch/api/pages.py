# SPDX-License-Identifier: Apache-2.0
"""The pages for people: `/`, what the switch is doing now, and `/docs`, the API with its operations to try out.

Plain files below `static/`, without a framework and without anything from another host. They hold no data: their
scripts ask the API, with a token where one is needed. The Content-Security-Policy lets them do nothing else, and they
write what they get as text only. Read once, at the import.
"""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web

from pvswitch.api.request import read_query

_FILES = {
    "/": ("home.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/static/home.js": ("home.js", "text/javascript"),
    "/static/docs.js": ("docs.js", "text/javascript"),
    "/static/common.js": ("common.js", "text/javascript"),
    "/static/style.css": ("style.css", "text/css"),
}
_PAGES = {
    path: ((files("pvswitch.api") / "static" / name).read_bytes(), content_type)
    for path, (name, content_type) in _FILES.items()
}

PUBLIC = frozenset(_FILES)
"""The paths of these pages."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "X-Frame-Options": "DENY",
}


async def get_page(request: web.Request) -> web.Response:
    """Return one of the pages."""
    read_query(request, ())
    body, content_type = _PAGES[request.path]
    return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)
