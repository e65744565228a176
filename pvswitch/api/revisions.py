# SPDX-License-Identifier: Apache-2.0
"""/config/revisions: what was in force, and the way back to it."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from pvswitch.api.call import Call, reply
from pvswitch.api.problem import ApiProblem, not_found
from pvswitch.api.request import page, read_if_match
from pvswitch.api.schemas import RevisionResource
from pvswitch.errors import InvalidDocument
from pvswitch.model import Revision, SwitchConfig
from pvswitch.revisions import StorageError, adopted

_NEWEST = 10**10  # above every number: pages are in the order of keys that grow


async def list_revisions(call: Call) -> web.Response:
    """List the revisions, newest first."""
    return reply(page(call.revisions.all(), lambda revision: f"{_NEWEST - revision.number:010}", call.query))


async def get_revision(call: Call) -> web.Response:
    """Return a revision with its whole configuration."""
    revision, document = await _read(call)
    return reply(RevisionResource(**revision.model_dump(), config=document))


async def restore_revision(call: Call) -> web.Response:
    """Put the bridges and ports of a revision in force again; return the difference."""
    tags = read_if_match(call.request, required=True)
    revision, document = await _read(call)

    def restore(config: SwitchConfig) -> SwitchConfig:
        try:
            return adopted(document, config, SwitchConfig.RESTART)
        except InvalidDocument as error:
            raise ApiProblem(
                409, f"revision {revision.number} is no configuration for this version of the switch: {error}"
            ) from None

    return await call.replace(restore, tags)


async def _read(call: Call) -> tuple[Revision, dict[str, Any]]:
    text = call.path("n")
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    revision = call.revisions.get(number)
    if revision is None:
        raise not_found("revision", text)
    try:
        return revision, await asyncio.to_thread(call.revisions.read, number)
    except KeyError:
        raise not_found("revision", text) from None
    except StorageError as error:
        raise ApiProblem(500, str(error)) from error
