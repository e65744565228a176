# SPDX-License-Identifier: Apache-2.0
"""The switch as a whole: totals, workers and their queues, probes, version."""

from __future__ import annotations

from aiohttp import web

from pvswitch.api.call import Call, reply
from pvswitch.api.problem import ApiProblem
from pvswitch.api.request import page, page_of_many
from pvswitch.api.schemas import Status, Totals


async def get_stats(call: Call) -> web.Response:
    """Return the totals."""
    return reply(Totals(call.dataplane.totals()))


async def get_perf(call: Call) -> web.Response:
    """Return what each worker spends."""
    return reply(page(call.dataplane.perf(), lambda worker: worker.name, call.query))


async def list_queue_perf(call: Call) -> web.Response:
    """List what each queue that frames are taken from costs its worker."""
    return reply(await page_of_many(call.dataplane.queue_perf(), lambda queue: queue.name, call.query))


async def rebalance(call: Call) -> web.Response:
    """Measure the queues for a second and move some to other workers where that helps, or only say which (dry_run)."""
    return reply(await call.dataplane.rebalance(dry_run=call.query.get("dry_run") == "true"))


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
