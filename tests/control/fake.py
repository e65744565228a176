# SPDX-License-Identifier: Apache-2.0
"""A data plane that only notes what it is told: what the controller and the API are tested against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pvswitch import vlan
from pvswitch.controller import plan
from pvswitch.errors import ApplyError
from pvswitch.model import PcapPort, SwitchConfig, TunnelPort, VhostUserPort
from pvswitch.state import (
    ExternalRemote,
    FdbEntry,
    FlowStats,
    LinkReason,
    MeterStats,
    PortState,
    PortStats,
    QueueMove,
    QueuePerf,
    Rebalance,
    TunnelChanges,
    TunnelEndpoint,
    TunnelInfo,
    TunnelMac,
    TunnelRemote,
    VlanInfo,
    WorkerLoads,
    WorkerPerf,
    link_message,
)
from pvswitch.trace.record import Asked, Step, Traced
from pvswitch.tunnel_checks import network_numbers
from pvswitch.tunnel_plane import MacChange, RemoteChange
from tests.control.fake_captures import FakeCaptures, FakeRecorder


@dataclass
class FakeTunnels:
    """Keeps what it is told; refuses addresses of `foreign`."""

    plane: FakeDataplane
    told: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    addresses: dict[tuple[str, int], dict[tuple[int, str], str]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    batches: int = 0

    def _port(self, name: str) -> TunnelPort:
        port = self.plane.config.ports[name]
        assert isinstance(port, TunnelPort)
        return port

    def endpoints(self) -> list[TunnelEndpoint]:
        ports = [port for port in self.plane.config.ports.values() if isinstance(port, TunnelPort)]
        names = dict.fromkeys(f"{port.type}-{port.local}-{port.udp_port}" for port in ports)
        return [TunnelEndpoint(name=name, queues=2, running=2, drops={"unknown_vni": 5}) for name in names]

    async def info(self, name: str) -> TunnelInfo:
        port = self._port(name)
        remotes = [TunnelRemote(address=address, origin="static") for address in port.remotes]
        for (owner, vni), found in self.told.items():
            if owner == name:
                remotes += [TunnelRemote(address=address, origin="external", vni=vni) for address in found]
        return TunnelInfo(
            name=name,
            bridge=port.bridge or "",
            type=port.type,
            local=port.local,
            dst_port=port.udp_port,
            vni=port.networks,
            vnis=len(network_numbers(port)),
            remotes=remotes,
            macs=sum(len(found) for (owner, _), found in self.addresses.items() if owner == name),
            room=1464,
            mtu=1450,
            endpoint=self.endpoints()[0],
        )

    def remotes(self, name: str, vni: int) -> list[ExternalRemote]:
        told = self.told.get((name, vni), [])
        static = [address for address in self._port(name).remotes if address not in told]
        return [
            *(ExternalRemote(name=address, address=address, vni=vni, origin="static") for address in static),
            *(ExternalRemote(name=address, address=address, vni=vni, origin="external") for address in told),
        ]

    def macs(self, name: str, vni: int) -> list[TunnelMac]:
        return [
            TunnelMac(name=f"{vid}/{mac}", vid=vid, mac=mac, remote=remote)
            for (vid, mac), remote in self.addresses.get((name, vni), {}).items()
        ]

    async def change(
        self,
        name: str,
        *,
        add_remotes: Sequence[RemoteChange] = (),
        remove_remotes: Sequence[RemoteChange] = (),
        add_macs: Sequence[MacChange] = (),
        remove_macs: Sequence[MacChange] = (),
    ) -> TunnelChanges:
        self.batches += 1
        added = removed = 0
        if any(item.mac in self.foreign for item in add_macs):
            raise ApplyError("it is a static address already: remove it there first", f"#/ports/{name}")
        for item in remove_remotes:
            if item.address in self.told.get((name, item.vni), []):
                self.told[name, item.vni].remove(item.address)
                removed += 1
        for mac in remove_macs:
            removed += self.addresses.get((name, mac.vni), {}).pop((mac.vid, mac.mac), None) is not None
        for item in add_remotes:
            told = self.told.setdefault((name, item.vni), [])
            if item.address not in told:
                told.append(item.address)
                added += 1
        for mac in add_macs:
            found = self.addresses.setdefault((name, mac.vni), {})
            added += found.get((mac.vid, mac.mac)) != mac.remote
            found[mac.vid, mac.mac] = mac.remote or ""
        return TunnelChanges(added=added, removed=removed)


@dataclass
class FakeDataplane:
    """Carries out every plan at once; refuses to prepare any port in `broken`."""

    broken: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    config: SwitchConfig = field(default_factory=SwitchConfig)
    learned: dict[str, list[FdbEntry]] = field(default_factory=dict)
    is_ready: bool = True
    traced: Traced | None = None  # what a trace finds out; None: the frame goes nowhere
    asked: list[Asked] = field(default_factory=list)
    workers: int = 2
    queue_worker: int = 0  # of vm1's only queue
    seconds: float = 10.0  # that every flow is there

    def __post_init__(self) -> None:
        self.tunnels = FakeTunnels(self)
        self.captures = FakeCaptures()
        self.recorder = FakeRecorder()

    async def prepare(self, new: SwitchConfig) -> object:
        self.calls.append("prepare")
        for change in plan(self.config, new).changes:
            name = change.pointer.rpartition("/")[2]
            if change.op != "remove" and name in self.broken:
                raise ApplyError(f"port {name} cannot listen: make its folder writable", change.pointer)
        return new

    async def undo(self, prepared: object) -> None:
        self.calls.append("undo")

    async def commit(self, prepared: object) -> None:
        assert isinstance(prepared, SwitchConfig)
        self.calls.append("commit")
        self.config = prepared

    async def retire(self, prepared: object) -> None:
        self.calls.append("retire")

    def port_state(self, name: str) -> PortState:
        port = self.config.ports[name]
        if isinstance(port, TunnelPort):
            return PortState(link="up", mtu=1450)
        if isinstance(port, PcapPort):
            message = None if port.write else "played 3 frames, finished"
            return PortState(link="up", message=message)
        if isinstance(port, VhostUserPort):
            socket, interface, waits = self.config.port_socket(name), "", LinkReason.WAITING_FOR_FRONTEND
        else:
            socket, interface, waits = Path(), port.ifname, LinkReason.INTERFACE_MISSING
        reason = waits if port.enabled else LinkReason.ADMIN_DOWN
        message = link_message(reason, name, socket, interface=interface)
        return PortState(link="down", reason=reason, message=message)

    def port_stats(self, name: str) -> PortStats:
        return PortStats(rx_packets=7, rx_dropped=2, rx_drops={"no_destination": 2})

    def learn(self, bridge: str, mac: str, port: str) -> None:
        entry = FdbEntry(name=f"0/{mac}", mac=mac, vid=0, port=port, type="dynamic", age=1.0)
        self.learned.setdefault(bridge, []).append(entry)

    def fdb(self, bridge: str) -> list[FdbEntry]:
        static = [
            FdbEntry(name=f"{e.vid}/{e.mac}", mac=e.mac, vid=e.vid, port=e.port, type="static")
            for e in self.config.bridges[bridge].fdb
        ]
        return static + self.learned.get(bridge, [])

    def fdb_entry(self, bridge: str, vid: int, mac: str) -> FdbEntry | None:
        return next((entry for entry in self.fdb(bridge) if (entry.vid, entry.mac) == (vid, mac)), None)

    def fdb_flush(
        self,
        bridge: str,
        *,
        port: str | None = None,
        vid: int | None = None,
        mac: str | None = None,
        sticky: bool | None = None,
    ) -> int:
        before = self.learned.get(bridge, [])
        kept = [
            entry
            for entry in before
            if (port is not None and entry.port != port)
            or (vid is not None and entry.vid != vid)
            or (mac is not None and entry.mac != mac)
            or (sticky is not None and (entry.type == "sticky") is not sticky)
        ]
        self.learned[bridge] = kept
        return len(before) - len(kept)

    def fdb_count(self, bridge: str) -> int:
        return len(self.fdb(bridge))

    def vlans(self, bridge: str) -> list[VlanInfo]:
        ports = {name: self.config.ports[name] for name in self.config.bridge_ports(bridge)}
        return [
            VlanInfo(
                name=str(vid),
                vid=vid,
                members=[m for name, port in ports.items() if (m := vlan.member(name, vlan.rules(port), vid))],
                packets=vid,
                bytes=64 * vid,
            )
            for vid in sorted(vlan.named(ports.values()))
        ]

    async def trace(self, asked: Asked) -> Traced:
        self.asked.append(asked)
        nowhere = (Step("parsed"), Step("taken"), Step("drop", name="no_destination"))
        return self.traced or Traced("no_destination", None, nowhere, ())

    def flow_stats(self, bridge: str, names: Iterable[str] | None = None) -> dict[str, FlowStats]:
        flows = self.config.bridges[bridge].flows
        wanted = flows if names is None else [name for name in names if name in flows]
        seconds = self.seconds
        return {name: FlowStats(packets=3, bytes=180, duration=seconds, idle=seconds / 2) for name in wanted}

    def flow_name(self, bridge: str, counter: int) -> str | None:
        return dict(enumerate(self.config.bridges[bridge].flows)).get(counter)

    def flow_memory(self, bridge: str) -> int:
        return 100 * len(self.config.bridges[bridge].flows)

    def meter_stats(self, bridge: str, name: str) -> MeterStats:
        return MeterStats(packets=5, bytes=300, dropped_packets=2, dropped_bytes=120)

    def lost(self) -> dict[str, int]:
        return {"events": 3}

    def totals(self) -> dict[str, int]:
        return {"rx_packets": 7, "ports": len(self.config.ports)}

    def perf(self) -> list[WorkerPerf]:
        return [WorkerPerf(name="worker0", worker=0, packets=7, cycles=700, cycles_per_packet=100.0)]

    def queue_perf(self) -> list[QueuePerf]:
        return [QueuePerf(name="vm1/0", port="vm1", queue=0, worker=self.queue_worker, packets=7, cycles=350)]

    async def rebalance(self, *, dry_run: bool) -> Rebalance:
        if self.workers == 1:
            raise ApplyError("there is one worker: raise `datapath.workers`", "#/datapath/workers")
        move = QueueMove(port="vm1", queue=0, source=self.queue_worker, to=1, load=0.4)
        moves = [] if self.queue_worker == 1 else [move]
        if not dry_run:
            self.queue_worker = 1
        loads = WorkerLoads(workers=[0.8, 0.0], busiest=0.8, variance=0.16)
        return Rebalance(
            moves=moves,
            before=loads,
            after=WorkerLoads(workers=[0.4, 0.4], busiest=0.4, variance=0.0),
            applied=bool(moves) and not dry_run,
            message="1 queue moves" if moves else "nothing moves",
        )

    def ready(self) -> bool:
        return self.is_ready
