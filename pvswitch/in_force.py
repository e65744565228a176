# SPDX-License-Identifier: Apache-2.0
"""What is in force, and all that there is to see of it: ports and their counters, FDBs, VLANs, flows, queues.

`InForce` holds the configuration that frames go by, with its ports, FDBs and counters in the core, and answers
questions; it changes none of them. That is the work of `ports.py`, whose `Ports` extends it. While an edit is being put
in force the controller may still have the configuration before it: what has just gone is a KeyError, or nothing, as
each call says. On the event loop's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from pvswitch import vlan
from pvswitch.captures import Captures
from pvswitch.datapath import Datapath, Fdb, FdbItem, VlanCounters, now_ns
from pvswitch.flow_tables import FlowTables
from pvswitch.model import SwitchConfig
from pvswitch.perf import queue_perf, stat_values, worker_perf
from pvswitch.state import FdbEntry, PortState, PortStats, QueuePerf, VlanInfo, WorkerPerf
from pvswitch.switch_port import PolledQueue, SwitchPort
from pvswitch.trace.record import Asked, Traced
from pvswitch.tracer import Known, gone, trace
from pvswitch.tunnels import Tunnels


class InForce:
    """What frames go by now, to be read."""

    captures: Captures
    tunnels: Tunnels

    def __init__(self, datapath: Datapath) -> None:
        """Begin with nothing in force."""
        self._datapath = datapath
        self._config: SwitchConfig | None = None
        self._ports: dict[str, SwitchPort] = {}
        self._fdbs: dict[str, Fdb] = {}
        self._vlans: dict[str, VlanCounters] = {}  # of every bridge
        self._names: dict[int, str] = {}  # port reference -> name, for what the core reports
        self.flows = FlowTables(datapath.flow_counters(), datapath.flow_table, datapath.flow_meter)
        self.flow_stats, self.flow_name, self.meter_stats = self.flows.stats, self.flows.name, self.flows.meter_stats
        self.flow_memory = self.flows.memory

    def ready(self) -> bool:
        """Return whether a configuration is in force."""
        return self._config is not None

    def port_state(self, name: str) -> PortState:
        """Return a port's link and what its front end negotiated; KeyError."""
        return self._ports[name].state()

    def port_stats(self, name: str) -> PortStats:
        """Return a port's counters, the switch's view; KeyError."""
        port = self._ports[name]
        return PortStats(**stat_values(port.handle.counters()), queues=port.queue_stats())

    def fdb(self, bridge: str) -> Iterator[FdbEntry]:
        """Iterate over what a bridge has learned or was told; KeyError. It may change, and go, meanwhile."""
        items = self._fdbs[bridge].items(now_ns())
        return (self._fdb_entry(item) for item in items if item.port in self._names)

    def fdb_entry(self, bridge: str, vid: int, mac: str) -> FdbEntry | None:
        """Return what a bridge knows of an address, or None; KeyError."""
        item = self._fdbs[bridge].lookup(mac_bytes(mac), vid, now_ns())
        return None if item is None or item.port not in self._names else self._fdb_entry(item)

    def _fdb_entry(self, item: FdbItem) -> FdbEntry:
        # not validated: there may be a million of them
        return FdbEntry.model_construct(
            name=f"{item.vid}/{item.mac}",
            mac=item.mac,
            vid=item.vid,
            port=self._names[item.port],
            type="external" if item.type == "static" and item.vtep else item.type,
            age=None if item.type == "static" else float(item.age),
            remote=self.tunnels.address(item.vtep) if item.vtep else None,
        )

    def fdb_count(self, bridge: str) -> int:
        """Return how many addresses a bridge knows; KeyError."""
        return len(self._fdbs[bridge])

    def vlans(self, bridge: str) -> Iterator[VlanInfo]:
        """Iterate over the VLANs of a bridge that its ports name, or whose frames came: members and counters; KeyError.

        A bridge all of whose ports are trunks of all VLANs has none of its own.
        """
        assert self._config is not None
        ports = {name: self._config.ports[name] for name in self._config.bridge_ports(bridge)}
        named = vlan.named(ports.values())
        rules = {name: vlan.rules(port) for name, port in ports.items()}
        counters = self._vlans[bridge]
        for vid in range(vlan.VIDS):
            packets, size = counters.read(vid)
            if vid in named or packets:
                members = [found for name in ports if (found := vlan.member(name, rules[name], vid))]
                yield VlanInfo(name=str(vid), vid=vid, members=members, packets=packets, bytes=size)

    async def trace(self, asked: Asked) -> Traced:
        """Return what would become of a frame; nothing changes by it. ApplyError: its port has gone."""
        assert self._config is not None
        if asked.in_port not in self._ports:  # between the commit of an edit and the edit's end
            raise gone(asked.in_port)
        bridge = self._config.port_bridge(asked.in_port)
        known = Known(
            ports=self._names,
            address=self.tunnels.address,
            number=self.tunnels.number,
            flow_name=lambda counter: self.flows.name(bridge, counter),
            flows=lambda: self.flows.table(bridge),
            mirrors=[*self._config.bridges[bridge].mirrors],
        )
        return await trace(self._ports[asked.in_port].handle, self._config.ports[asked.in_port], asked, known)

    def lost(self) -> dict[str, int]:
        """Return how many events, punted frames (by reason) and captured frames found no room on their way up."""
        return {**self._datapath.lost(), "captured": self.captures.lost()}

    def totals(self) -> dict[str, int]:
        """Return counters summed over all ports, and how much there is of everything."""
        sums: Counter[str] = Counter()
        for port in self._ports.values():
            values = stat_values(port.handle.counters())
            sums.update({key: value for key, value in values.items() if isinstance(value, int)})
        sums["ports"] = len(self._ports)
        sums["ports_up"] = sum(port.link_up for port in self._ports.values())
        sums["bridges"] = len(self._fdbs)
        sums["fdb_entries"] = sum(len(fdb) for fdb in self._fdbs.values())
        sums["learn_skipped"] = sum(self._datapath.perf(i).learn_skipped for i in range(self._datapath.workers))
        for name, count in self.lost().items():
            sums[f"lost_{name}"] = count
        return dict(sums)

    def perf(self) -> list[WorkerPerf]:
        """Return what each poll thread spends."""
        return [worker_perf(i, self._datapath.perf(i)) for i in range(self._datapath.workers)]

    def queue_perf(self) -> Iterator[QueuePerf]:
        """Iterate over what each running queue that frames are taken from has cost; ports may come and go meanwhile."""
        total = [self._datapath.perf(i).total_cycles for i in range(self._datapath.workers)]
        for name, polled in self.polled():
            for queue in polled():
                yield queue_perf(name, queue, total[queue.worker])

    def polled(self) -> Iterator[tuple[str, Callable[[], list[PolledQueue]]]]:
        """Iterate over what has queues that frames are taken from; it may come and go meanwhile."""
        for port in list(self._ports.values()):
            if self._ports.get(port.name) is port:  # else its handle may be gone
                yield port.name, port.polled
        yield from self.tunnels.polled()

    def fdb_of(self, port: str) -> Fdb:
        """Return the FDB of a port's bridge; KeyError."""
        assert self._config is not None
        return self._fdbs[self._config.port_bridge(port)]


def mac_bytes(mac: str) -> bytes:
    """Return a MAC address as the core has it."""
    return bytes.fromhex(mac.replace(":", ""))
