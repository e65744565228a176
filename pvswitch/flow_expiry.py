# SPDX-License-Identifier: Apache-2.0
"""Flows that go by themselves: those whose idle_timeout or hard_timeout is over are removed from the configuration.

All that are due go in one edit, whose actor is "expired", so that a revision says so. Looked at once a second, and only
those that have a timeout; time counts from when a flow was added or changed, or the switch was started. The daemon
starts it and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from pvswitch.controller import Controller
from pvswitch.errors import PvswitchError
from pvswitch.model import Flow, SwitchConfig
from pvswitch.state import FlowStats

log = structlog.get_logger(__name__)

SECONDS = 1.0
ACTOR = "expired"


class Counts(Protocol):
    """Who knows what flows have counted."""

    def flow_stats(self, bridge: str, names: tuple[str, ...] | None = None) -> dict[str, FlowStats]:
        """Return what flows have counted."""


class FlowExpiry:
    """Removes flows when their time is over."""

    def __init__(self, controller: Controller, counts: Counts, seconds: float = SECONDS) -> None:
        """Look every so many seconds, once started."""
        self._controller = controller
        self._counts = counts
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._keep_looking(), name="flow expiry")

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.expire()
            except PvswitchError as error:
                log.warning("expired flows stay for now", error=str(error))
            except Exception:  # a fault in one edit must not keep all flows for ever
                log.exception("expired flows stay for now")

    async def expire(self) -> int:
        """Remove what is due; return how many flows that were."""
        due = self._due()
        count = sum(map(len, due.values()))
        if count:
            await self._controller.edit(lambda config: without(config, due), actor=ACTOR)
        return count

    def _due(self) -> dict[str, dict[str, Flow]]:
        found: dict[str, dict[str, Flow]] = {}
        for name, bridge in self._controller.config.bridges.items():
            if not bridge.flows or not bridge.flow_index.timed:
                continue
            stats = self._counts.flow_stats(name, bridge.flow_index.timed)
            for key in bridge.flow_index.timed:
                if key in stats and over(bridge.flows[key], stats[key]):
                    found.setdefault(name, {})[key] = bridge.flows[key]
        return found


def over(flow: Flow, stats: FlowStats) -> bool:
    """Return whether a flow's time is over."""
    hard = flow.hard_timeout and stats.duration >= flow.hard_timeout
    return bool(hard or (flow.idle_timeout and stats.idle >= flow.idle_timeout))


def without(config: SwitchConfig, due: dict[str, dict[str, Flow]]) -> SwitchConfig:
    """Return a configuration without these flows, as far as they are still the ones that were looked at."""
    document = config.editable()
    for bridge, flows in due.items():
        here = document["bridges"].get(bridge, {}).get("flows", {})
        for name, flow in flows.items():
            if here.get(name) is flow:
                del here[name]
    return SwitchConfig.model_validate(document)
