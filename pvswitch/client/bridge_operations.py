# SPDX-License-Identifier: Apache-2.0
"""The calls about bridges and what is theirs: VLANs, traces, mirrors, flows, meters, addresses. See `operations`."""

from __future__ import annotations

from typing import Literal

from pvswitch.api.schemas import BridgeResource, FlowChanges, FlowResource, MeterResource, MirrorResource
from pvswitch.client.calls import Body, Calls
from pvswitch.client.faces import operation
from pvswitch.client.paths import ROOT, bridge_path, fdb_path, flow_path, meter_path, mirror_path
from pvswitch.state import FdbEntry, VlanInfo
from pvswitch.trace.model import Trace

EntryType = Literal["dynamic", "static", "sticky", "external"]


class BridgeOperations(Calls):
    """The calls about bridges."""

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

    @operation
    async def trace(self, bridge: str, body: Body) -> Trace:
        """Return what would become of a frame: {"in_port": ..., "frame": hex}, or "fields" of a match in its place."""
        return await self._edit(Trace, "POST", f"{bridge_path(bridge)}/trace", body, None)

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

    # ---- flows ----

    @operation
    async def flows(self, bridge: str, *, port: str | None = None, cookie: str | None = None) -> list[FlowResource]:
        """Return a bridge's flows with their counters; only those that name `port`, or have this cookie (N, N/MASK)."""
        return await self._pages(FlowResource, flow_path(bridge), port=port, cookie=cookie)

    @operation
    async def flow(self, bridge: str, name: str) -> FlowResource:
        """Return a flow, by its name or by its priority and match in OVS text."""
        return await self._get(FlowResource, flow_path(bridge, name))

    @operation
    async def put_flow(self, bridge: str, name: str, body: Body, *, if_match: str | None = None) -> FlowResource:
        """Make or replace a flow; {"flow": "priority=..."} is one as well."""
        return await self._edit(FlowResource, "PUT", flow_path(bridge, name), body, if_match)

    @operation
    async def delete_flow(self, bridge: str, name: str, *, if_match: str | None = None) -> None:
        """Remove a flow."""
        await self._send("DELETE", flow_path(bridge, name), None, if_match)

    @operation
    async def flush_flows(
        self, bridge: str, *, port: str | None = None, cookie: str | None = None, if_match: str | None = None
    ) -> None:
        """Remove a bridge's flows; only those that match what is given."""
        await self._send("DELETE", flow_path(bridge), None, if_match, port=port, cookie=cookie)

    @operation
    async def change_flows(self, bridge: str, body: Body, *, if_match: str | None = None) -> FlowChanges:
        """Remove ("delete") and add ("add") many flows at once, all or none."""
        return await self._edit(FlowChanges, "POST", f"{flow_path(bridge)}:batch", body, if_match)

    @operation
    async def meters(self, bridge: str) -> list[MeterResource]:
        """Return a bridge's meters with their counters."""
        return await self._pages(MeterResource, meter_path(bridge))

    @operation
    async def meter(self, bridge: str, name: str) -> MeterResource:
        """Return a meter."""
        return await self._get(MeterResource, meter_path(bridge, name))

    @operation
    async def put_meter(self, bridge: str, name: str, body: Body, *, if_match: str | None = None) -> MeterResource:
        """Make or replace a meter."""
        return await self._edit(MeterResource, "PUT", meter_path(bridge, name), body, if_match)

    @operation
    async def delete_meter(self, bridge: str, name: str, *, if_match: str | None = None) -> None:
        """Remove a meter."""
        await self._send("DELETE", meter_path(bridge, name), None, if_match)

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
