# SPDX-License-Identifier: Apache-2.0
"""The one table of routes: what is registered with aiohttp and what openapi.json describes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from pvswitch import attach
from pvswitch.api import handlers as h
from pvswitch.api.request import PAGING, Param, choice, integer, pattern
from pvswitch.api.schemas import (
    Attachment,
    BridgeResource,
    Info,
    Page,
    PlanResult,
    PortResource,
    StaticEntryBody,
    Status,
    Totals,
)
from pvswitch.model import MAX_PAIRS, Bridge, FdbEntry, Port, PortStats, SwitchConfig, WorkerPerf

Handler = Callable[[h.Call], Awaitable[web.Response]]

ROOT = "/api/v1"


@dataclass(frozen=True)
class Route:
    """One method on one path. `problems` are the statuses beyond those that every route has."""

    method: str
    path: str
    handler: Handler
    response: type[BaseModel] | None = None
    request: type[BaseModel] | None = None
    query: tuple[Param, ...] = ()
    problems: tuple[int, ...] = ()
    creates: bool = False  # 201 when the resource is new
    etag: bool = False

    @property
    def edits(self) -> bool:
        """Whether it changes the configuration: takes If-Match, and answers with the new ETag."""
        return self.method in ("PUT", "DELETE")

    @property
    def summary(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").splitlines()[0].rstrip(".")

    @property
    def operation_id(self) -> str:
        """The handler's name."""
        return str(getattr(self.handler, "__name__", ""))


def _text(name: str, regex: str, example: str, description: str, convert: Callable[[str], Any] = str) -> Param:
    param = pattern(name, regex, example, description)
    return Param(name, param.schema, description, lambda text: convert(param.read(text)))


_BRIDGE = f"{ROOT}/bridges/{{br}}"
_FDB = f"{_BRIDGE}/fdb"
_ENTRY = f"{_FDB}/{{vid}}/{{mac}}"
_PORT = f"{ROOT}/ports/{{name}}"
_FDB_FILTER = (
    pattern("port", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "vm1", "addresses on this port"),
    integer("vid", 0, 4094, "addresses of this VLAN"),
    choice("type", "dynamic", "static", description="addresses of this type"),
)
_ATTACH = (
    choice("format", "qemu", "libvirt", default="qemu"),
    _text("qemu_version", attach.VERSION_PATTERN, "9.2", "of the QEMU to start", attach.parse_version),
    choice("accel", "kvm", "tcg", default="kvm", description="how that QEMU runs"),
    _text("memory", attach.MEMORY_PATTERN, "256M", "of the VM"),
    integer("queues", 1, MAX_PAIRS, "queue pairs of the VM's device, at most as many as the port offers"),
)
_DRY_RUN = (choice("dry_run", "true", "false", default="false", description="only show the difference"),)

ROUTES: tuple[Route, ...] = (
    Route("GET", f"{ROOT}/config", h.get_config, SwitchConfig, etag=True),
    Route("PUT", f"{ROOT}/config", h.put_config, PlanResult, SwitchConfig, _DRY_RUN, (409, 412, 413, 428)),
    Route("GET", f"{ROOT}/bridges", h.list_bridges, Page[BridgeResource], query=PAGING),
    Route("GET", _BRIDGE, h.get_bridge, BridgeResource, problems=(404,)),
    Route("PUT", _BRIDGE, h.put_bridge, BridgeResource, Bridge, problems=(409, 412, 413), creates=True),
    Route("DELETE", _BRIDGE, h.delete_bridge, problems=(404, 409, 412)),
    Route("GET", _FDB, h.list_fdb, Page[FdbEntry], query=(*_FDB_FILTER, *PAGING), problems=(404,)),
    Route("DELETE", _FDB, h.flush_fdb, query=_FDB_FILTER, problems=(404, 409, 412)),
    Route("GET", _ENTRY, h.get_fdb, FdbEntry, problems=(404,)),
    Route("PUT", _ENTRY, h.put_fdb, FdbEntry, StaticEntryBody, problems=(404, 409, 412, 413), creates=True),
    Route("DELETE", _ENTRY, h.delete_fdb, problems=(404, 409, 412)),
    Route("GET", f"{ROOT}/ports", h.list_ports, Page[PortResource], query=PAGING),
    Route("GET", _PORT, h.get_port, PortResource, problems=(404,)),
    Route("PUT", _PORT, h.put_port, PortResource, Port, problems=(409, 412, 413), creates=True),
    Route("DELETE", _PORT, h.delete_port, problems=(404, 409, 412)),
    Route("GET", f"{_PORT}/stats", h.get_port_stats, PortStats, problems=(404,)),
    Route("GET", f"{_PORT}/attach", h.get_attachment, Attachment, query=_ATTACH, problems=(404,)),
    Route("GET", f"{ROOT}/stats", h.get_stats, Totals),
    Route("GET", f"{ROOT}/perf", h.get_perf, Page[WorkerPerf], query=PAGING),
    Route("GET", "/healthz", h.get_healthz, Status),
    Route("GET", "/readyz", h.get_readyz, Status, problems=(503,)),
    Route("GET", "/version", h.get_version, Info),
)
