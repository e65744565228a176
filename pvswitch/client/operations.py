# SPDX-License-Identifier: Apache-2.0
"""Every call of the HTTP API, once: its path, its arguments, the model of its answer.

`AsyncClient` and `Client` inherit them; see `pvswitch.client.faces` for how one definition serves both.
`if_match` is the ETag that the configuration must have for an edit to happen, or "*"; without it a single resource
is edited whatever the rest looks like.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Collection, Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from pvswitch.api.schemas import (
    AnyPortResource,
    Attachment,
    BridgeResource,
    Info,
    MirrorResource,
    PlanResult,
    PortResource,
    RevisionResource,
    Status,
    Totals,
)
from pvswitch.client.events import Event, Place, follow, once
from pvswitch.client.faces import operation, stream
from pvswitch.client.paths import ROOT, bridge_path, fdb_path, mirror_path, port_path, tunnel_path
from pvswitch.client.transport import ANY, Reply, Transport
from pvswitch.errors import PvswitchError
from pvswitch.model import Revision, SwitchConfig
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
from pvswitch.values import ELSEWHERE

__all__ = ["Config", "Operations", "PlanResult"]

MERGE = {"Content-Type": "application/merge-patch+json"}

T = TypeVar("T")
Body = BaseModel | Mapping[str, Any]
EntryType = Literal["dynamic", "static", "sticky", "external"]
EventType = Literal["link", "learned", "moved", "aged", "config", "broken"]


class Config(NamedTuple):
    """The configuration in force, and its ETag for the If-Match of an edit."""

    document: SwitchConfig
    etag: str


class Operations:
    """The calls; `_transport` is where they go."""

    _transport: Transport

    # ---- the configuration ----

    @operation
    async def config(self) -> Config:
        """Return the configuration and its ETag."""
        reply = await self._transport.request("GET", f"{ROOT}/config")
        return Config(_parse(SwitchConfig, reply.json()), reply.etag or ANY)

    @operation
    async def put_config(self, document: Body, *, if_match: str = ANY, dry_run: bool = False) -> PlanResult:
        """Replace the configuration; return the difference."""
        return await self._edit(PlanResult, "PUT", f"{ROOT}/config", document, if_match, dry_run=_flag(dry_run))

    @operation
    async def patch_config(self, patch: Body, *, if_match: str = ANY, dry_run: bool = False) -> PlanResult:
        """Change what `patch` names, as RFC 7396 has it (null removes); return the difference."""
        return await self._edit(PlanResult, "PATCH", f"{ROOT}/config", patch, if_match, dry_run=_flag(dry_run))

    @operation
    async def revisions(self) -> list[Revision]:
        """Return the revisions, newest first."""
        return await self._pages(Revision, f"{ROOT}/config/revisions")

    @operation
    async def revision(self, number: int) -> RevisionResource:
        """Return a revision with its whole configuration."""
        return await self._get(RevisionResource, f"{ROOT}/config/revisions/{number}")

    @operation
    async def restore(self, number: int, *, if_match: str = ANY, dry_run: bool = False) -> PlanResult:
        """Put the bridges and ports of a revision in force again; return the difference."""
        path = f"{ROOT}/config/revisions/{number}/restore"
        return await self._edit(PlanResult, "POST", path, None, if_match, dry_run=_flag(dry_run))

    # ---- bridges ----

    @operation
    async def bridges(self) -> list[BridgeResource]:
        """Return all bridges."""
        return await self._pages(BridgeResource, f"{ROOT}/bridges")

    @operation
    async def bridge(self, name: str) -> BridgeResource:
        """Return a bridge."""
        return await self._get(BridgeResource, bridge_path(name))

    @operation
    async def put_bridge(self, name: str, body: Body, *, if_match: str | None = None) -> BridgeResource:
        """Make or replace a bridge."""
        return await self._edit(BridgeResource, "PUT", bridge_path(name), body, if_match)

    @operation
    async def patch_bridge(self, name: str, patch: Body, *, if_match: str | None = None) -> BridgeResource:
        """Change a bridge; null is the default again."""
        return await self._edit(BridgeResource, "PATCH", bridge_path(name), patch, if_match)

    @operation
    async def delete_bridge(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a bridge that has no ports."""
        await self._send("DELETE", bridge_path(name), None, if_match)

    @operation
    async def vlans(self, bridge: str) -> list[VlanInfo]:
        """Return the VLANs of a bridge: members and counters."""
        return await self._pages(VlanInfo, f"{bridge_path(bridge)}/vlans")

    # ---- mirrors ----

    @operation
    async def mirrors(self, bridge: str) -> list[MirrorResource]:
        """Return a bridge's mirrors."""
        return await self._pages(MirrorResource, mirror_path(bridge))

    @operation
    async def mirror(self, bridge: str, name: str) -> MirrorResource:
        """Return a mirror."""
        return await self._get(MirrorResource, mirror_path(bridge, name))

    @operation
    async def put_mirror(self, bridge: str, name: str, body: Body, *, if_match: str | None = None) -> MirrorResource:
        """Make or replace a mirror."""
        return await self._edit(MirrorResource, "PUT", mirror_path(bridge, name), body, if_match)

    @operation
    async def delete_mirror(self, bridge: str, name: str, *, if_match: str | None = None) -> None:
        """Remove a mirror."""
        await self._send("DELETE", mirror_path(bridge, name), None, if_match)

    # ---- addresses ----

    @operation
    async def fdb(
        self, bridge: str, *, port: str | None = None, vid: int | None = None, type: EntryType | None = None
    ) -> list[FdbEntry]:
        """Return a bridge's addresses; only those that match what is given."""
        return await self._pages(FdbEntry, fdb_path(bridge), port=port, vid=vid, type=type)

    @operation
    async def fdb_entry(self, bridge: str, mac: str, *, vid: int = 0) -> FdbEntry:
        """Return one address."""
        return await self._get(FdbEntry, fdb_path(bridge, mac, vid))

    @operation
    async def put_fdb(self, bridge: str, mac: str, port: str, *, vid: int = 0, if_match: str | None = None) -> FdbEntry:
        """Make or replace a static address."""
        return await self._edit(FdbEntry, "PUT", fdb_path(bridge, mac, vid), {"port": port}, if_match)

    @operation
    async def delete_fdb(self, bridge: str, mac: str, *, vid: int = 0, if_match: str | None = None) -> None:
        """Remove a static address, or forget a learned one."""
        await self._send("DELETE", fdb_path(bridge, mac, vid), None, if_match)

    @operation
    async def flush_fdb(
        self,
        bridge: str,
        *,
        port: str | None = None,
        vid: int | None = None,
        type: EntryType = "dynamic",
        if_match: str | None = None,
    ) -> None:
        """Forget the addresses that match; `type="static"` or `type="sticky"` removes those instead."""
        await self._send("DELETE", fdb_path(bridge), None, if_match, port=port, vid=vid, type=type)

    # ---- ports ----

    @operation
    async def ports(self) -> list[AnyPortResource]:
        """Return all ports with their state."""
        return [port.root for port in await self._pages(PortResource, f"{ROOT}/ports")]

    @operation
    async def port(self, name: str) -> AnyPortResource:
        """Return a port with its state."""
        return (await self._get(PortResource, port_path(name))).root

    @operation
    async def put_port(self, name: str, body: Body, *, if_match: str | None = None) -> AnyPortResource:
        """Make or replace a port."""
        return (await self._edit(PortResource, "PUT", port_path(name), body, if_match)).root

    @operation
    async def patch_port(self, name: str, patch: Body, *, if_match: str | None = None) -> AnyPortResource:
        """Change a port; null is the default again."""
        return (await self._edit(PortResource, "PATCH", port_path(name), patch, if_match)).root

    @operation
    async def delete_port(self, name: str, *, if_match: str | None = None) -> None:
        """Remove a port."""
        await self._send("DELETE", port_path(name), None, if_match)

    @operation
    async def port_stats(self, name: str) -> PortStats:
        """Return a port's counters."""
        return await self._get(PortStats, f"{port_path(name)}/stats")

    @operation
    async def attach(
        self,
        name: str,
        *,
        format: Literal["qemu", "libvirt"] = "qemu",
        qemu_version: str | None = None,
        accel: Literal["kvm", "tcg"] | None = None,
        memory: str | None = None,
        queues: int | None = None,
    ) -> Attachment:
        """Return the lines that start a VM on a port."""
        query = {"format": format, "qemu_version": qemu_version, "accel": accel, "memory": memory, "queues": queues}
        return await self._get(Attachment, f"{port_path(name)}/attach", **query)

    # ---- tunnels ----

    @operation
    async def tunnels(self) -> list[TunnelInfo]:
        """Return all tunnels: their networks, and who is on them."""
        return await self._pages(TunnelInfo, tunnel_path())

    @operation
    async def tunnel(self, name: str) -> TunnelInfo:
        """Return a tunnel."""
        return await self._get(TunnelInfo, tunnel_path(name))

    @operation
    async def tunnel_remotes(self, name: str, vni: int) -> list[ExternalRemote]:
        """Return the remotes of one network of a tunnel."""
        return await self._pages(ExternalRemote, tunnel_path(name, vni, "remotes"))

    @operation
    async def tunnel_remote(self, name: str, vni: int, address: str) -> ExternalRemote:
        """Return one remote."""
        return await self._get(ExternalRemote, tunnel_path(name, vni, "remotes", address))

    @operation
    async def put_tunnel_remote(self, name: str, vni: int, address: str) -> ExternalRemote:
        """Add a remote to one network of a tunnel, until the port or the switch goes."""
        return await self._edit(ExternalRemote, "PUT", tunnel_path(name, vni, "remotes", address), None, None)

    @operation
    async def delete_tunnel_remote(self, name: str, vni: int, address: str) -> None:
        """Remove a remote that was added so."""
        await self._send("DELETE", tunnel_path(name, vni, "remotes", address), None, None)

    @operation
    async def tunnel_macs(self, name: str, vni: int) -> list[TunnelMac]:
        """Return the addresses that were told of one network of a tunnel."""
        return await self._pages(TunnelMac, tunnel_path(name, vni, "macs"))

    @operation
    async def tunnel_mac(self, name: str, vni: int, mac: str, *, vid: int = 0) -> TunnelMac:
        """Return one address that was told."""
        return await self._get(TunnelMac, tunnel_path(name, vni, "macs", f"{vid}/{mac}"))

    @operation
    async def put_tunnel_mac(self, name: str, vni: int, mac: str, remote: str, *, vid: int = 0) -> TunnelMac:
        """Tell a tunnel which remote an address is behind, until the port or the switch goes."""
        path = tunnel_path(name, vni, "macs", f"{vid}/{mac}")
        return await self._edit(TunnelMac, "PUT", path, {"remote": remote}, None)

    @operation
    async def delete_tunnel_mac(self, name: str, vni: int, mac: str, *, vid: int = 0) -> None:
        """Forget an address that was told."""
        await self._send("DELETE", tunnel_path(name, vni, "macs", f"{vid}/{mac}"), None, None)

    @operation
    async def change_tunnel(self, name: str, body: Body) -> TunnelChanges:
        """Remove and add remotes and addresses of a tunnel, all or nothing, 10,000 at most at a time."""
        return await self._edit(TunnelChanges, "POST", f"{tunnel_path(name)}:batch", body, None)

    # ---- the switch ----

    @operation
    async def stats(self) -> dict[str, int]:
        """Return the totals."""
        return (await self._get(Totals, f"{ROOT}/stats")).root

    @operation
    async def perf(self) -> list[WorkerPerf]:
        """Return what each worker spends."""
        return await self._pages(WorkerPerf, f"{ROOT}/perf")

    @operation
    async def queue_perf(self) -> list[QueuePerf]:
        """Return what each queue that frames are taken from costs its worker."""
        return await self._pages(QueuePerf, f"{ROOT}/perf/queues")

    @operation
    async def rebalance(self, *, dry_run: bool = False) -> Rebalance:
        """Move queues to other workers where that helps, or only say which; it takes the second of a measurement."""
        return await self._edit(Rebalance, "POST", f"{ROOT}/perf/rebalance", None, None, dry_run=_flag(dry_run))

    @stream
    async def events(
        self, *, last_event_id: str | None = None, types: Collection[EventType] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Give what happens, from now on or from after `last_event_id`; a lost connection is made again."""
        query = {"types": None if types is None else ",".join(types)}
        async for event in follow(self._transport, f"{ROOT}/events", Place(last_event_id), query):
            yield event

    @stream
    async def recent_events(
        self, *, last_event_id: str | None = None, types: Collection[EventType] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Give the events that the switch still has, all of them or those after `last_event_id`, and end."""
        query = {"types": None if types is None else ",".join(types), "follow": "false"}
        async for event in once(self._transport, f"{ROOT}/events", Place(last_event_id), query):
            yield event

    @operation
    async def version(self) -> Info:
        """Return which program answers."""
        return await self._get(Info, "/version")

    @operation
    async def healthz(self) -> Status:
        """Return that the process is alive."""
        return await self._get(Status, "/healthz")

    @operation
    async def readyz(self) -> Status:
        """Return that frames are forwarded; ApiError 503 while they are not."""
        return await self._get(Status, "/readyz")

    @operation
    async def metrics(self) -> str:
        """Return the counters as Prometheus reads them."""
        return (await self._transport.request("GET", "/metrics")).content.decode()

    @operation
    async def openapi(self) -> dict[str, Any]:
        """Return the description of the API."""
        return dict((await self._transport.request("GET", "/openapi.json")).json())

    # ---- how they are made ----

    async def _send(
        self, method: str, path: str, body: Body | None, if_match: str | None, **query: str | int | None
    ) -> Reply:
        value = body.model_dump(mode="json", exclude_none=True) if isinstance(body, BaseModel) else body
        headers = dict(MERGE) if method == "PATCH" else {}
        if if_match is not None:
            headers["If-Match"] = if_match
        return await self._transport.request(method, path, body=value, query=query, headers=headers)

    async def _edit(
        self,
        model: type[T],
        method: str,
        path: str,
        body: Body | None,
        if_match: str | None,
        **query: str | int | None,
    ) -> T:
        return _parse(model, (await self._send(method, path, body, if_match, **query)).json())

    async def _get(self, model: type[T], path: str, **query: str | int | None) -> T:
        return _parse(model, (await self._transport.request("GET", path, query=query)).json())

    async def _pages(self, model: type[T], path: str, **query: str | int | None) -> list[T]:
        items: list[T] = []
        while True:
            page = (await self._transport.request("GET", path, query=query)).json()
            items += [_parse(model, item) for item in page["items"]]
            if page["next"] is None:
                return items
            query["cursor"] = page["next"]


def _flag(value: bool) -> str | None:
    return "true" if value else None


@functools.cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _parse(model: type[T], value: Any) -> T:
    try:
        answer: T = _adapter(cast("Hashable", model)).validate_python(value, context=ELSEWHERE)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PvswitchError(
            f"the switch's answer can't be read ({place}: {first['msg']}): it is another version than this client"
        ) from None
    return answer
