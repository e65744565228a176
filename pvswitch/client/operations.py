# SPDX-License-Identifier: Apache-2.0
"""Every call of the HTTP API, once: its path, its arguments, the model of its answer.

Those about bridges are in `bridge_operations`. `AsyncClient` and `Client` inherit them; see `pvswitch.client.faces` for
how one definition serves both.

`if_match` is the ETag that the configuration must have for an edit to happen, or "*"; without it a single resource
is edited whatever the rest looks like.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from typing import Any, Literal, NamedTuple

import aiohttp

from pvswitch.api.schemas import (
    AnyPortResource,
    Attachment,
    Info,
    PlanResult,
    PortResource,
    RevisionResource,
    Status,
    Totals,
)
from pvswitch.capture_model import CaptureInfo, DropRecord, FrameRecord
from pvswitch.client.bridge_operations import BridgeOperations
from pvswitch.client.calls import Body, flag, parse
from pvswitch.client.events import Event, Place, follow, once
from pvswitch.client.faces import operation, stream
from pvswitch.client.paths import (
    ROOT,
    capture_path,
    port_path,
    tunnel_path,
)
from pvswitch.client.transport import ANY
from pvswitch.model import Revision, SwitchConfig
from pvswitch.state import (
    ExternalRemote,
    PortStats,
    QueuePerf,
    Rebalance,
    TunnelChanges,
    TunnelInfo,
    TunnelMac,
    WorkerPerf,
)

__all__ = ["Config", "Operations", "PlanResult"]

EventType = Literal["link", "learned", "moved", "aged", "config", "broken"]


class Config(NamedTuple):
    """The configuration in force, and its ETag for the If-Match of an edit."""

    document: SwitchConfig
    etag: str


class Operations(BridgeOperations):
    """The calls."""

    # ---- the configuration ----

    @operation
    async def config(self) -> Config:
        """Return the configuration and its ETag."""
        reply = await self._transport.request("GET", f"{ROOT}/config")
        return Config(parse(SwitchConfig, reply.json()), reply.etag or ANY)

    @operation
    async def put_config(self, document: Body, *, if_match: str = ANY, dry_run: bool = False) -> PlanResult:
        """Replace the configuration; return the difference."""
        return await self._edit(PlanResult, "PUT", f"{ROOT}/config", document, if_match, dry_run=flag(dry_run))

    @operation
    async def patch_config(self, patch: Body, *, if_match: str = ANY, dry_run: bool = False) -> PlanResult:
        """Change what `patch` names, as RFC 7396 has it (null removes); return the difference."""
        return await self._edit(PlanResult, "PATCH", f"{ROOT}/config", patch, if_match, dry_run=flag(dry_run))

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
        return await self._edit(PlanResult, "POST", path, None, if_match, dry_run=flag(dry_run))

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
        return await self._edit(Rebalance, "POST", f"{ROOT}/perf/rebalance", None, None, dry_run=flag(dry_run))

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

    # ---- what was seen ----

    @operation
    async def captures(self) -> list[CaptureInfo]:
        """Return the captures."""
        return await self._pages(CaptureInfo, capture_path())

    @operation
    async def capture(self, capture: str) -> CaptureInfo:
        """Return a capture."""
        return await self._get(CaptureInfo, capture_path(capture))

    @operation
    async def create_capture(self, body: Body) -> CaptureInfo:
        """Begin a capture; it waits for its reader, `capture_stream`, for 30 seconds."""
        return await self._edit(CaptureInfo, "POST", capture_path(), body, None)

    @operation
    async def delete_capture(self, capture: str) -> None:
        """End and remove a capture; its reader gets what there is."""
        await self._send("DELETE", capture_path(capture), None, None)

    @stream
    async def capture_stream(self, capture: str) -> AsyncGenerator[bytes, None]:
        """Give the pieces of a capture's pcapng as they come, to its end; frames may be rare."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self._transport.timeout)
        path = f"{capture_path(capture)}/stream"
        async with self._transport.open("GET", path, None, None, {}, limit) as response:
            async for piece in response.content.iter_any():
                yield piece

    @operation
    async def drops(
        self,
        *,
        port: str | None = None,
        bridge: str | None = None,
        direction: Literal["rx", "tx"] | None = None,
        reason: str | None = None,
        limit: int | None = None,
    ) -> list[DropRecord]:
        """Return the last drops, newest first."""
        query = {"port": port, "bridge": bridge, "direction": direction, "reason": reason, "limit": limit}
        return await self._pages(DropRecord, f"{ROOT}/drops", **query)

    @operation
    async def frames(
        self,
        *,
        port: str | None = None,
        bridge: str | None = None,
        reason: str | None = None,
        limit: int | None = None,
    ) -> list[FrameRecord]:
        """Return the last frames that were sampled, newest first."""
        query = {"port": port, "bridge": bridge, "reason": reason, "limit": limit}
        return await self._pages(FrameRecord, f"{ROOT}/frames", **query)

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
