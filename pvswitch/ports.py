# SPDX-License-Identifier: Apache-2.0
"""All ports and bridges of the switch: how a configuration becomes sockets, handles and published tables.

`Ports` implements the controller's `Dataplane`: prepare() makes everything that can fail (sockets, handles, FDBs) and
touches nothing that is in use; commit() publishes new tables, after which frames go by the new configuration; retire()
frees what the old one needed, and then lets front ends come to the new ports. A port is replaced as a whole when its
type, its socket and mode, its interface or its files change; other changes are live, but for those that need `renew`.

`InForce`, which it extends, has what is in force, and all that there is to see of it.

Dynamic FDB entries of a port go when its link goes down, when it leaves its bridge or its VLANs change, and when it is
removed.
Used by `controller.py` and `api/` through their protocols, and by `daemon.py`, which owns its life.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from pvswitch import vlan
from pvswitch.balancer import Balancer
from pvswitch.captures import Captures
from pvswitch.datapath import Datapath, Event, Fdb, FdbItem, VlanCounters, now_ns
from pvswitch.errors import ApplyError, PvswitchError
from pvswitch.events import AgedEvent, BrokenEvent, Events, LearnedEvent, LinkEvent, MovedEvent
from pvswitch.file_port import FilePort
from pvswitch.flow_tables import PreparedFlows
from pvswitch.identity import Identity
from pvswitch.in_force import InForce, mac_bytes
from pvswitch.known_ports import KnownPorts
from pvswitch.model import Bridge, PcapPort, SwitchConfig, TunnelPort, VhostUserPort
from pvswitch.netlink import Watches
from pvswitch.rebalance import QueueSample, Sample
from pvswitch.recorder import FlightRecorder
from pvswitch.state import (
    Rebalance,
)
from pvswitch.switch_port import SwitchPort
from pvswitch.tables import statics, tables, unchanged
from pvswitch.tunnel_port import TunnelledPort
from pvswitch.tunnels import Tunnels
from pvswitch.uplink_port import UplinkPort
from pvswitch.vhost_port import VhostPort

log = structlog.get_logger(__name__)

WATCHDOG_SECONDS = 0.25
"""How often to look for a worker that hangs in a call to a guest; every fourth time the house is kept."""

SAMPLED = 16
"""Ports whose queues are read before others have their turn."""


@dataclass(slots=True)
class Prepared:
    """What a new configuration needs, made and not yet in use; and what will be free after it."""

    config: SwitchConfig
    ports: dict[str, SwitchPort]  # all of the new configuration's
    fdbs: dict[str, Fdb]
    vlans: dict[str, VlanCounters]
    flows: PreparedFlows = field(default_factory=PreparedFlows)
    sampled: bytes = b""  # the recorder's filter
    new_ports: list[SwitchPort] = field(default_factory=list)
    new_tables: list[Fdb | VlanCounters] = field(default_factory=list)
    old_ports: list[SwitchPort] = field(default_factory=list)
    old_tables: list[Fdb | VlanCounters] = field(default_factory=list)
    staged: list[SwitchPort] = field(default_factory=list)
    renewed: list[SwitchPort] = field(default_factory=list)


class Ports(InForce):
    """The data plane as the control plane sees it."""

    def __init__(self, datapath: Datapath, events: Events | None = None, identity: Identity | None = None) -> None:
        """Begin empty; `datapath` is running and outlives this. What happens is told to `events`.

        The addresses of what is made follow from `identity`.
        """
        super().__init__(datapath)
        self._identity = identity or Identity.drawn()
        self._events = events or Events()
        self._watches = Watches()
        self._known = KnownPorts()
        self._publishing = asyncio.Lock()
        self.captures = Captures(datapath, self._publish, self._known, self.flows.name)
        self.recorder = FlightRecorder(datapath, self._known)
        self.tunnels = Tunnels(datapath, self._publish, self.fdb_of, self._flush_vtep)
        self._housekeeper: asyncio.Task[None] | None = None
        self._balancer = Balancer(datapath.workers, self._sample, self._move_queue)
        datapath.on_event = self._on_event

    # ---- life

    def start(self) -> None:
        """Begin the regular work: the watchdog; once a second ageing, and looking for unshared guest memory.

        Queues are rebalanced as often as the configuration says.
        """
        self._housekeeper = asyncio.create_task(self._keep_house(), name="housekeeping")
        if self._config is not None and self._config.datapath.rebalance_seconds:
            self._balancer.start(self._config.datapath.rebalance_seconds)

    async def close(self) -> None:
        """Close every port and free every table."""
        await self._balancer.close()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeper
        await self.captures.close()
        await self._datapath.publish([], [])
        await self.tunnels.end()
        await _each(self._ports.values(), lambda port: port.close())
        await self.tunnels.close()
        found: list[Fdb | VlanCounters] = [*self._fdbs.values(), *self._vlans.values()]
        for table in found:
            table.close()
        self.flows.close()
        self._ports, self._fdbs, self._vlans, self._config = {}, {}, {}, None

    async def _keep_house(self) -> None:
        for turn in itertools.count(1):
            await asyncio.sleep(WATCHDOG_SECONDS)
            self._datapath.watchdog()
            if turn % 4:
                continue
            for name, fdb in self._fdbs.items():
                self._tell_aged(name, *fdb.sweep(now_ns()))
            self.tunnels.tick(self._config)
            for port in self._ports.values():
                try:
                    port.tick()
                except Exception:  # else nobody would look after the others, nor after the workers
                    log.exception("port not looked after", port=port.name)

    # ---- Dataplane: changes

    async def prepare(self, new: SwitchConfig) -> Prepared:
        """Make what `new` needs. Raises ApplyError naming the resource, and then leaves nothing behind."""
        prepared = Prepared(new, ports={}, fdbs={}, vlans={})
        pointer = "#"
        try:
            pointer = "#/recorder/filter"
            prepared.sampled = await self.recorder.prepare(new.recorder)
            for name, bridge in new.bridges.items():
                pointer = f"#/bridges/{name}"
                prepared.fdbs[name] = self._prepare_fdb(prepared, name, bridge)
                prepared.vlans[name] = self._prepare_vlans(prepared, name)
            pointer = "#/bridges"
            prepared.flows = await self.flows.prepare(new)
            for name in new.ports:
                pointer = f"#/ports/{name}"
                prepared.ports[name] = await self._prepare_port(prepared, name)
        except BaseException as error:
            await self.undo(prepared)
            if isinstance(error, OSError | PvswitchError) and not isinstance(error, ApplyError):
                raise ApplyError(str(error), pointer) from error
            raise
        prepared.old_ports = [p for name, p in self._ports.items() if prepared.ports.get(name) is not p]
        prepared.old_tables = [
            *(fdb for name, fdb in self._fdbs.items() if prepared.fdbs.get(name) is not fdb),
            *(vlans for name, vlans in self._vlans.items() if prepared.vlans.get(name) is not vlans),
        ]
        return prepared

    def _prepare_fdb(self, prepared: Prepared, name: str, bridge: Bridge) -> Fdb:
        present = self._fdbs.get(name)
        if present is not None and present.limit == bridge.fdb_size:
            return present
        fdb = Fdb(bridge.fdb_size, bridge.aging_time)
        prepared.new_tables.append(fdb)
        return fdb

    def _prepare_vlans(self, prepared: Prepared, name: str) -> VlanCounters:
        present = self._vlans.get(name)
        if present is not None:
            return present
        vlans = self._datapath.vlan_counters()
        prepared.new_tables.append(vlans)
        return vlans

    async def _prepare_port(self, prepared: Prepared, name: str) -> SwitchPort:
        present = self._ports.get(name)
        if present is not None and (
            unchanged(self._config, prepared.config, name) or present.suits(prepared.config.ports[name])
        ):
            if not unchanged(self._config, prepared.config, name):
                prepared.staged.append(present)
                await present.stage(prepared.config.ports[name])
            return present
        port = self._new_port(prepared.config, name)
        prepared.new_ports.append(port)
        await port.bind()
        return port

    def _new_port(self, config: SwitchConfig, name: str) -> SwitchPort:
        settings = config.ports[name]
        if isinstance(settings, PcapPort):
            return FilePort(self._datapath, name, settings, on_link=self._on_link)
        if isinstance(settings, TunnelPort):
            return self.tunnels.port(name, settings, self._on_link)
        if not isinstance(settings, VhostUserPort):
            mac = self._identity.mac(settings.netns or "", settings.ifname)
            return UplinkPort(self._datapath, name, settings, mac=mac, watches=self._watches, on_link=self._on_link)
        return VhostPort(
            self._datapath,
            name,
            settings,
            path=config.port_socket(name),
            socket_mode=config.socket_mode_bits(),
            gid=config.socket_gid(),
            on_link=self._on_link,
        )

    async def undo(self, prepared: object) -> None:
        """Free what was made for a configuration that is not to be put in force."""
        assert isinstance(prepared, Prepared)
        for port in prepared.staged:
            port.unstage()
        await _each(prepared.new_ports, lambda port: port.close())
        for table in prepared.new_tables:
            table.close()
        self.flows.undo(prepared.flows)

    async def commit(self, prepared: object) -> None:
        """Put it to work: one publication, then what hangs on it."""
        assert isinstance(prepared, Prepared)
        before, self._config = self._config, prepared.config
        for name, fdb in prepared.fdbs.items():
            if fdb in prepared.new_tables and name in self._fdbs:
                fdb.copy_from(self._fdbs[name])
            fdb.set_aging(prepared.config.bridges[name].aging_time)
        self._ports, self._fdbs, self._vlans = prepared.ports, prepared.fdbs, prepared.vlans
        self.flows.commit(prepared.flows)
        self.tunnels.know(self._ports)
        self._names |= {port.handle.ref: name for name, port in self._ports.items()}
        for name, port in self._ports.items():
            self._known.note(port.handle.ref, name, prepared.config.port_bridge(name))
        for port in prepared.staged:
            port.adopt(prepared.config.ports[port.name])
        await self._publish()
        # from here on: what is flushed can't be learned again by the old tables
        for name, port in self._ports.items():
            if not unchanged(before, prepared.config, name) and port.configure(prepared.config.ports[name]):
                prepared.renewed.append(port)
        self._forget(before, prepared)
        for name in self._fdbs:
            self._set_statics(name, before, prepared)
        if before is None or before.recorder != prepared.config.recorder:
            await self.recorder.apply(prepared.config.recorder, prepared.sampled)

    async def _publish(self) -> None:
        """Have the workers forward by what is in force; what is built while another one waits is the newer one."""
        if self._config is not None:
            async with self._publishing:
                await self._datapath.publish(
                    *tables(
                        self._config, self._ports, self._fdbs, self._vlans, self.flows, captured=self.captures.wanted
                    )
                )

    def _forget(self, before: SwitchConfig | None, prepared: Prepared) -> None:
        """Flush the addresses of ports that are gone, or no longer on the bridge or in the VLANs that learned them."""
        for port in prepared.old_ports:
            self._names.pop(port.handle.ref, None)
            for fdb in self._fdbs.values():
                fdb.flush(port=port.handle.ref)
            if isinstance(port, TunnelledPort) and port.settings.bridge in self._fdbs:
                port.drop_macs(self._fdbs[port.settings.bridge])
        for name, old in before.ports.items() if before is not None else ():
            if name not in self._ports or unchanged(before, prepared.config, name):
                continue
            new = prepared.config.ports[name]
            if old.bridge not in self._fdbs:
                continue
            networks = getattr(old, "networks", None), getattr(new, "networks", None)
            if new.bridge != old.bridge or vlan.rules(new) != vlan.rules(old) or networks[0] != networks[1]:
                self._fdbs[old.bridge].flush(port=self._ports[name].handle.ref)
                self.tunnels.changed(self._ports[name], old, new, self._fdbs[old.bridge])

    def _set_statics(self, bridge: str, before: SwitchConfig | None, prepared: Prepared) -> None:
        """Bring the static entries of `before`, which the FDB (or its copy) holds, to what the document says now."""
        fdb = self._fdbs[bridge]
        old = statics(before, bridge)
        wanted = statics(prepared.config, bridge)
        for vid, mac in old.keys() - wanted.keys():
            fdb.remove(mac_bytes(mac), vid)
        for (vid, mac), name in wanted.items():
            port = self._ports[name]
            # a new FDB may have had no room to copy what is still wanted; a new port has a new reference
            if fdb in prepared.new_tables or port in prepared.new_ports or old.get((vid, mac)) != name:
                fdb.set_static(mac_bytes(mac), vid, port.handle.ref)
        self.tunnels.yield_macs(prepared.config.bridge_ports(bridge) if wanted else [], wanted.keys())

    async def retire(self, prepared: object) -> None:
        """Free what the old configuration needed; renew what could not change at once.

        New ports begin last: one that connects must not find a socket on which its own predecessor listens.
        """
        assert isinstance(prepared, Prepared)
        await asyncio.gather(
            _each(prepared.old_ports, lambda port: port.close()), _each(prepared.renewed, lambda port: port.renew())
        )
        for table in prepared.old_tables:
            table.close()
        await self.flows.retire(prepared.flows)
        await _each(prepared.new_ports, lambda port: port.listen())

    # ---- Dataplane: beside the configuration

    def fdb_flush(
        self,
        bridge: str,
        *,
        port: str | None = None,
        vid: int | None = None,
        mac: str | None = None,
        sticky: bool | None = None,
    ) -> int:
        """Remove the learned entries that match; return how many. KeyError for an unknown bridge or port."""
        return self._fdbs[bridge].flush(
            port=None if port is None else self._ports[port].handle.ref,
            vid=vid,
            mac=None if mac is None else mac_bytes(mac),
            sticky=sticky,
        )

    async def rebalance(self, *, dry_run: bool) -> Rebalance:
        """Measure the queues' loads, and move queues to other workers where that helps. Raises ApplyError."""
        return await self._balancer.balance(dry_run=dry_run)

    async def _sample(self) -> Sample:
        """Read what the queues have cost; others have their turn meanwhile."""
        queues: dict[tuple[str, int], QueueSample] = {}
        for turn, (name, polled) in enumerate(self.polled()):
            for queue in polled():
                queues[name, queue.queue] = QueueSample(queue.worker, queue.cycles, queue.pinned)
            if turn % SAMPLED == 0:
                await asyncio.sleep(0)
        perfs = [self._datapath.perf(i) for i in range(self._datapath.workers)]
        return Sample(tuple(perf.busy_cycles for perf in perfs), tuple(perf.total_cycles for perf in perfs), queues)

    async def _move_queue(self, port: str, queue: int, worker: int) -> None:
        if port in self._ports:
            await self._ports[port].move_queue(queue, worker)
        else:
            await self.tunnels.move_queue(port, queue, worker)

    # ---- what the core and the ports tell

    def _tell_aged(self, bridge: str, count: int, named: Sequence[FdbItem]) -> None:
        """Tell of `count` addresses that a bridge has forgotten; the core has named the first of them."""
        events = [
            AgedEvent(bridge=bridge, port=self._names[item.port], mac=item.mac, vid=item.vid)
            for item in named
            if item.port in self._names
        ]
        for event in events:
            self._events.publish(event)
        if events and count > len(named):
            self._events.suppress(events[-1], count - len(named))

    def _flush_vtep(self, number: int) -> None:
        for fdb in self._fdbs.values():
            fdb.flush(vtep=number)

    def _on_event(self, event: Event) -> None:
        name = self._names.get(event.port)
        if name is None or name not in self._ports:
            return
        assert self._config is not None  # else there were no names
        bridge = self._config.port_bridge(name)
        match event.kind:
            case "broken":
                log.warning("port broken", port=name, detail=event.detail)
                self._events.publish(BrokenEvent(port=name, bridge=bridge, detail=event.detail))
                self._ports[name].refresh()
            case "too_big":
                self.tunnels.too_big(name, event.vtep)
            case "learned":
                self._events.publish(LearnedEvent(port=name, bridge=bridge, mac=event.mac, vid=event.vid))
            case "moved":
                old = self._names.get(event.old_port)
                self._events.publish(MovedEvent(port=name, bridge=bridge, mac=event.mac, vid=event.vid, old_port=old))

    def _on_link(self, port: SwitchPort) -> None:
        if self._config is not None and self._ports.get(port.name) is port:
            state, bridge = port.state(), self._config.port_bridge(port.name)
            self._events.publish(
                LinkEvent(port=port.name, bridge=bridge, link=state.link, reason=state.reason, message=state.message)
            )
        if port.link_up:
            return
        for fdb in self._fdbs.values():
            fdb.flush(port=port.handle.ref, sticky=False)


async def _each(ports: Iterable[SwitchPort], step: Callable[[SwitchPort], Awaitable[None]]) -> None:
    """Have all ports do a step at once; one that fails is logged, and keeps no other from it."""
    ports = list(ports)
    outcomes = await asyncio.gather(*(step(port) for port in ports), return_exceptions=True)
    for port, outcome in zip(ports, outcomes, strict=True):
        if outcome is not None:
            log.error("port not closed or changed as it should be", port=port.name, exc_info=outcome)
