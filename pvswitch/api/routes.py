# SPDX-License-Identifier: Apache-2.0
"""The one table of routes: what is registered with aiohttp and what openapi.json describes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from pvswitch import attach, pcapng
from pvswitch.api import bridges, captures, config, events, flows, mirrors, ports, revisions, switch, trace, tunnels
from pvswitch.api.call import Call
from pvswitch.api.request import PAGING, Param, choice, integer, pattern
from pvswitch.api.schemas import (
    Attachment,
    BridgeResource,
    FlowBatch,
    FlowBody,
    FlowChanges,
    FlowResource,
    Info,
    MergePatch,
    MeterResource,
    MirrorResource,
    Page,
    PlanResult,
    PortBody,
    PortResource,
    RevisionResource,
    StaticEntryBody,
    Status,
    Totals,
    TunnelBatch,
    TunnelMacBody,
)
from pvswitch.capture_model import CaptureBody, CaptureInfo, DropRecord, FrameRecord
from pvswitch.drop_words import DROPS
from pvswitch.events import TYPES, EventStream
from pvswitch.model import MAX_PAIRS, Bridge, Meter, Mirror, Revision, SwitchConfig
from pvswitch.state import (
    ExternalRemote,
    FdbEntry,
    PortStats,
    QueuePerf,
    Rebalance,
    TunnelChanges,
    TunnelInfo,
    TunnelMac,
    VlanInfo,
    WorkerPerf,
)
from pvswitch.trace.model import Trace, TraceBody

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

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
    makes: bool = False  # always a new one: 201
    etag: bool = False
    stream: bool = False  # without an end: not counted among the requests under way
    media: str = "application/json"  # of the answer, if there is one
    acts: bool = False  # does something without changing the configuration

    @property
    def edits(self) -> bool:
        """Whether it changes the configuration: takes If-Match, and answers with the new ETag."""
        return self.method != "GET" and not self.acts

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
_MIRRORS = f"{_BRIDGE}/mirrors"
_MIRROR = f"{_MIRRORS}/{{name}}"
_FLOWS = f"{_BRIDGE}/flows"
_FLOW = f"{_FLOWS}/{{flow}}"
_METERS = f"{_BRIDGE}/meters"
_METER = f"{_METERS}/{{name}}"
_PORT = f"{ROOT}/ports/{{name}}"
_TUNNEL = f"{ROOT}/tunnels/{{port}}"
_REMOTES = f"{_TUNNEL}/vnis/{{vni}}/remotes"
_REMOTE = f"{_REMOTES}/{{address}}"
_MACS = f"{_TUNNEL}/vnis/{{vni}}/macs"
_MAC = f"{_MACS}/{{vid}}/{{mac}}"
_REVISIONS = f"{ROOT}/config/revisions"
_FDB_FILTER = (
    pattern("port", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "vm1", "addresses on this port"),
    integer("vid", 0, 4094, "addresses of this VLAN"),
    choice("type", "dynamic", "static", "sticky", "external", description="addresses of this type"),
)
_COOKIE = r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})(/(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}|-1))?"
_FLOW_FILTER = (
    pattern("port", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "vm1", "flows that name this port"),
    _text(
        "cookie",
        _COOKIE,
        "0x12 or 0x10/0xf0",
        "of the flow; behind / the bits that count",
        flows.read_cookie,
    ),
)
_ATTACH = (
    choice("format", "qemu", "libvirt", default="qemu"),
    _text("qemu_version", attach.VERSION_PATTERN, "9.2", "of the QEMU to start", attach.parse_version),
    choice("accel", "kvm", "tcg", default="kvm", description="how that QEMU runs"),
    _text("memory", attach.MEMORY_PATTERN, "256M", "of the VM"),
    integer("queues", 1, MAX_PAIRS, "queue pairs of the VM's device, at most as many as the port offers"),
)
_DRY_RUN = (choice("dry_run", "true", "false", default="false", description="only show the difference"),)


def _read_types(text: str) -> tuple[str, ...]:
    types = tuple(text.split(","))
    if not set(types) <= set(TYPES):
        raise ValueError(f"must be some of {','.join(TYPES)}")
    return types


_TYPES_PATTERN = "({0})(,({0}))*".format("|".join(TYPES))
_STREAM = (
    Param("types", {"type": "string", "pattern": f"^{_TYPES_PATTERN}$"}, "only events of these types", _read_types),
    choice("follow", "true", "false", default="true", description="false: what is remembered, and then the end"),
)

_CAPTURES = f"{ROOT}/captures"
_CAPTURE = f"{_CAPTURES}/{{id}}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_FRAMES_FILTER = (
    pattern("port", _NAME, "vm1", "of this port: its own, or of frames that came by it"),
    pattern("bridge", _NAME, "br0", "of ports that are on this bridge"),
    choice("reason", *DROPS, description="dropped for this reason"),
    PAGING[0],
)
_DROPS_FILTER = (
    *_FRAMES_FILTER,
    choice("direction", "rx", "tx", description="rx: as they came by their port; tx: copies that were to leave by it"),
)

_EDIT = (409, 412, 413, 507)
_PATCH = (*_EDIT, 404, 415)

ROUTES: tuple[Route, ...] = (
    Route("GET", f"{ROOT}/config", config.get_config, SwitchConfig, etag=True),
    Route("PUT", f"{ROOT}/config", config.put_config, PlanResult, SwitchConfig, _DRY_RUN, (*_EDIT, 428)),
    Route("PATCH", f"{ROOT}/config", config.patch_config, PlanResult, MergePatch, _DRY_RUN, (*_EDIT, 415, 428)),
    Route("GET", _REVISIONS, revisions.list_revisions, Page[Revision], query=PAGING),
    Route("GET", f"{_REVISIONS}/{{n}}", revisions.get_revision, RevisionResource, problems=(404,)),
    Route(
        "POST",
        f"{_REVISIONS}/{{n}}/restore",
        revisions.restore_revision,
        PlanResult,
        query=_DRY_RUN,
        problems=(404, *_EDIT, 428),
    ),
    Route("GET", f"{ROOT}/bridges", bridges.list_bridges, Page[BridgeResource], query=PAGING),
    Route("GET", _BRIDGE, bridges.get_bridge, BridgeResource, problems=(404,)),
    Route("PUT", _BRIDGE, bridges.put_bridge, BridgeResource, Bridge, problems=_EDIT, creates=True),
    Route("PATCH", _BRIDGE, bridges.patch_bridge, BridgeResource, MergePatch, problems=_PATCH),
    Route("DELETE", _BRIDGE, bridges.delete_bridge, problems=(404, *_EDIT)),
    Route("GET", f"{_BRIDGE}/vlans", bridges.list_vlans, Page[VlanInfo], query=PAGING, problems=(404,)),
    Route("POST", f"{_BRIDGE}/trace", trace.trace_frame, Trace, TraceBody, problems=(404, 409, 413), acts=True),
    Route("GET", _MIRRORS, mirrors.list_mirrors, Page[MirrorResource], query=PAGING, problems=(404,)),
    Route("GET", _MIRROR, mirrors.get_mirror, MirrorResource, problems=(404,)),
    Route("PUT", _MIRROR, mirrors.put_mirror, MirrorResource, Mirror, problems=(404, *_EDIT), creates=True),
    Route("DELETE", _MIRROR, mirrors.delete_mirror, problems=(404, *_EDIT)),
    Route("GET", _FLOWS, flows.list_flows, Page[FlowResource], query=(*_FLOW_FILTER, *PAGING), problems=(404,)),
    Route("DELETE", _FLOWS, flows.flush_flows, query=_FLOW_FILTER, problems=(404, *_EDIT)),
    Route("POST", f"{_FLOWS}:batch", flows.change_flows, FlowChanges, FlowBatch, problems=(404, *_EDIT)),
    Route("GET", _FLOW, flows.get_flow, FlowResource, problems=(404,)),
    Route("PUT", _FLOW, flows.put_flow, FlowResource, FlowBody, problems=(404, *_EDIT), creates=True),
    Route("DELETE", _FLOW, flows.delete_flow, problems=(404, *_EDIT)),
    Route("GET", _METERS, flows.list_meters, Page[MeterResource], query=PAGING, problems=(404,)),
    Route("GET", _METER, flows.get_meter, MeterResource, problems=(404,)),
    Route("PUT", _METER, flows.put_meter, MeterResource, Meter, problems=(404, *_EDIT), creates=True),
    Route("DELETE", _METER, flows.delete_meter, problems=(404, *_EDIT)),
    Route("GET", _FDB, bridges.list_fdb, Page[FdbEntry], query=(*_FDB_FILTER, *PAGING), problems=(404,)),
    Route("DELETE", _FDB, bridges.flush_fdb, query=_FDB_FILTER, problems=(404, *_EDIT)),
    Route("GET", _ENTRY, bridges.get_fdb, FdbEntry, problems=(404,)),
    Route("PUT", _ENTRY, bridges.put_fdb, FdbEntry, StaticEntryBody, problems=(404, *_EDIT), creates=True),
    Route("DELETE", _ENTRY, bridges.delete_fdb, problems=(404, *_EDIT)),
    Route("GET", f"{ROOT}/ports", ports.list_ports, Page[PortResource], query=PAGING),
    Route("GET", _PORT, ports.get_port, PortResource, problems=(404,)),
    Route("PUT", _PORT, ports.put_port, PortResource, PortBody, problems=_EDIT, creates=True),
    Route("PATCH", _PORT, ports.patch_port, PortResource, MergePatch, problems=_PATCH),
    Route("DELETE", _PORT, ports.delete_port, problems=(404, *_EDIT)),
    Route("GET", f"{_PORT}/stats", ports.get_port_stats, PortStats, problems=(404,)),
    Route("GET", f"{_PORT}/attach", ports.get_attachment, Attachment, query=_ATTACH, problems=(404, 409)),
    Route("GET", f"{ROOT}/tunnels", tunnels.list_tunnels, Page[TunnelInfo], query=PAGING),
    Route("GET", _TUNNEL, tunnels.get_tunnel, TunnelInfo, problems=(404,)),
    Route(
        "POST",
        f"{_TUNNEL}:batch",
        tunnels.change_tunnel,
        TunnelChanges,
        TunnelBatch,
        problems=(404, 409, 413),
        acts=True,
    ),
    Route("GET", _REMOTES, tunnels.list_tunnel_remotes, Page[ExternalRemote], query=PAGING, problems=(404,)),
    Route("GET", _REMOTE, tunnels.get_tunnel_remote, ExternalRemote, problems=(404,)),
    Route("PUT", _REMOTE, tunnels.put_tunnel_remote, ExternalRemote, problems=(404, 409), creates=True, acts=True),
    Route("DELETE", _REMOTE, tunnels.delete_tunnel_remote, problems=(404, 409), acts=True),
    Route("GET", _MACS, tunnels.list_tunnel_macs, Page[TunnelMac], query=PAGING, problems=(404,)),
    Route("GET", _MAC, tunnels.get_tunnel_mac, TunnelMac, problems=(404,)),
    Route("PUT", _MAC, tunnels.put_tunnel_mac, TunnelMac, TunnelMacBody, problems=(404, 409), creates=True, acts=True),
    Route("DELETE", _MAC, tunnels.delete_tunnel_mac, problems=(404, 409), acts=True),
    Route(
        "GET",
        f"{ROOT}/events",
        events.stream_events,
        EventStream,
        query=_STREAM,
        problems=(503,),
        stream=True,
        media="text/event-stream",
    ),
    Route("GET", _CAPTURES, captures.list_captures, Page[CaptureInfo], query=PAGING),
    Route("POST", _CAPTURES, captures.create_capture, CaptureInfo, CaptureBody, problems=(409,), makes=True, acts=True),
    Route("GET", _CAPTURE, captures.get_capture, CaptureInfo, problems=(404,)),
    Route("DELETE", _CAPTURE, captures.delete_capture, problems=(404,), acts=True),
    Route(
        "GET",
        f"{_CAPTURE}/stream",
        captures.stream_capture,
        problems=(404, 409),
        stream=True,
        media=pcapng.CONTENT_TYPE,
    ),
    Route("GET", f"{ROOT}/drops", captures.list_drops, Page[DropRecord], query=_DROPS_FILTER),
    Route("GET", f"{ROOT}/frames", captures.list_frames, Page[FrameRecord], query=_FRAMES_FILTER),
    Route("GET", f"{ROOT}/stats", switch.get_stats, Totals),
    Route("GET", f"{ROOT}/perf", switch.get_perf, Page[WorkerPerf], query=PAGING),
    Route("GET", f"{ROOT}/perf/queues", switch.list_queue_perf, Page[QueuePerf], query=PAGING),
    Route(
        "POST",
        f"{ROOT}/perf/rebalance",
        switch.rebalance,
        Rebalance,
        query=(choice("dry_run", "true", "false", default="false", description="only say what would move"),),
        problems=(409,),
        acts=True,
    ),
    Route("GET", "/healthz", switch.get_healthz, Status),
    Route("GET", "/readyz", switch.get_readyz, Status, problems=(503,)),
    Route("GET", "/version", switch.get_version, Info),
)
