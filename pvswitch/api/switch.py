# SPDX-License-Identifier: Apache-2.0
"""The switch as a whole: totals, workers, probes, version."""

from __future__ import annotations

from aiohttp import web

from pvswitch.api.call import Call, reply
from pvswitch.api.problem import ApiProblem
from pvswitch.api.request import page
from pvswitch.api.schemas import Status, Totals


async def get_stats(call: Call) -> web.Response:
    """Return the totals."""
    return reply(Totals(call.dataplane.totals()))


async def get_perf(call: Call) -> web.Response:
    """Return what each worker spends."""
    return reply(page(call.dataplane.perf(), lambda worker: worker.name, call.query))


async def get_healthz(_: Call) -> web.Response:
    """Answer that the process is alive."""
    return reply(Status(status="ok"))


async def get_readyz(call: Call) -> web.Response:
    """Answer whether frames are forwarded."""
    if not call.dataplane.ready():
        raise ApiProblem(503, "the switch is not forwarding yet: wait, or see its log")
    return reply(Status(status="ready"))


async def get_version(call: Call) -> web.Response:
    """Return which program answers."""
    return reply(call.info)
