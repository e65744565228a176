# SPDX-License-Identifier: Apache-2.0
"""/config: the whole document."""

from __future__ import annotations

import asyncio

from aiohttp import web

from pvswitch.api.call import Call, merged
from pvswitch.api.request import read_if_match, read_json, read_patch
from pvswitch.validation import parse


async def get_config(call: Call) -> web.Response:
    """Return the configuration, complete."""
    config, etag = call.config, call.controller.etag
    text = await asyncio.to_thread(config.text)  # of very many flows, it takes a while
    return web.Response(text=text, content_type="application/json", headers={"ETag": f'"{etag}"'})


async def put_config(call: Call) -> web.Response:
    """Replace the configuration; return the difference."""
    tags = read_if_match(call.request, required=True)
    body = await read_json(call.request)
    return await call.replace(lambda _: parse(body), tags)


async def patch_config(call: Call) -> web.Response:
    """Change some keys of the configuration; return the difference."""
    tags = read_if_match(call.request, required=True)
    changes = await read_patch(call.request)
    return await call.replace(lambda config: parse(merged(config.editable(), changes)), tags)
