# SPDX-License-Identifier: Apache-2.0
"""A switch on the bench: no threads, no sockets, virtual time; for plain tests and hypothesis.

`BenchSwitch` holds a `Datapath` whose workers are driven by hand, and `Driver` guests attached directly to its ports.
Commands to the core run on a private event loop, which turns only inside calls. Time begins at a fixed second, moves
by 100 microseconds with each round of the workers (longer than a ring is polled, so that kicks are needed), and by
`advance`. Whatever must happen happens within a bounded number of rounds, or an assertion fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypeVar

from pvswitch import policy
from pvswitch.datapath import (
    MAX_PAIRS,
    NO_LIMIT,
    BridgeView,
    Datapath,
    DatapathPort,
    Event,
    Fdb,
    FdbItem,
    FlowsView,
    MemoryRegion,
    PortCounters,
    PortView,
    Punt,
    RingConf,
    VlanView,
)
from pvswitch.driver import Driver, DriverConf, Layout
from pvswitch.model import Bridge, Mirror

VERSION_1, ANY_LAYOUT, MRG_RXBUF, INDIRECT, EVENT_IDX = (1 << bit for bit in (32, 27, 15, 28, 29))
PACKED, IN_ORDER = 1 << 34, 1 << 35
MODERN = VERSION_1 | ANY_LAYOUT | MRG_RXBUF | INDIRECT | EVENT_IDX
RX, TX = 0, 1
NS = 1_000_000_000
START_NS = 1_000 * NS
ROUND_NS = 100_000
MAX_ROUNDS = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class PortSetup:
    """A port's part of the tables; `mtu` 0 is not enforced, `backpressure_ms` 0 drops."""

    bridge: str = "br0"
    enabled: bool = True
    mtu: int = 0
    backpressure_ms: int = 0
    vlan: VlanView | None = None
    isolated: bool = False


@dataclass(frozen=True)
class BridgeSetup:
    """A bridge's part of the tables."""

    forward_bpdu: bool = True
    flood_unknown: bool = True
    punt_bpdu: bool = False


@dataclass
class BenchPort:
    """A port and the guest on it, if there is one."""

    handle: DatapathPort
    setup: PortSetup
    driver: Driver | None = None
    regions: list[MemoryRegion] = field(default_factory=list)
    running: set[int] = field(default_factory=set)

    @property
    def guest(self) -> Driver:
        assert self.driver is not None, "no guest on this port"
        return self.driver


class BenchSwitch:
    """The switch; a context manager that leaves nothing behind. Tables are published as they are changed."""

    def __init__(self, workers: int = 1) -> None:
        self.now_ns = START_NS
        self.events: list[Event] = []
        self.punts: list[Punt] = []
        self.ports: dict[str, BenchPort] = {}
        self.fdbs: dict[str, Fdb] = {}
        self.bridges: dict[str, BridgeSetup] = {}
        self.mirrors: dict[str, Mapping[str, Mirror]] = {}
        self.flows: dict[str, FlowsView] = {}
        self._loop = asyncio.new_event_loop()
        self.datapath = Datapath(workers=workers)
        self.datapath.on_event = self.events.append
        self.datapath.on_punt = self.punts.append
        self._loop.run_until_complete(self._attach())

    async def _attach(self) -> None:
        self.datapath.attach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything; may be repeated."""
        if self._loop.is_closed():
            return
        for name in self.ports:
            self.detach(name)
        self.command(self.datapath.publish([], []))
        for port in self.ports.values():
            port.handle.close()
        for fdb in self.fdbs.values():
            fdb.close()
        self.datapath.close()
        self._loop.close()

    # ---- time ----

    @property
    def now_s(self) -> int:
        """The core's seconds."""
        return self.now_ns // NS

    def poll(self) -> int:
        """One round of each worker in turn; what they handled."""
        self.now_ns += ROUND_NS
        return sum(self.datapath.poll(self.now_ns, worker) for worker in range(self.datapath.workers))

    def settle(self) -> None:
        """Rounds until nothing moves any more, and whatever comes up from the core."""
        quiet = rounds = 0
        while quiet < 3:
            quiet = quiet + 1 if self.poll() == 0 else 0
            rounds += 1
            assert rounds < MAX_ROUNDS, "the workers find work for ever"
        self._turn()

    def advance(self, seconds: float) -> None:
        """Let time pass; nothing is swept."""
        self.now_ns += round(seconds * NS)

    def command(self, coroutine: Coroutine[object, object, T]) -> T:
        """Run what needs the core's answer."""
        task = self._loop.create_task(coroutine)
        for _ in range(MAX_ROUNDS):
            self._turn()
            if task.done():
                return task.result()
            self.poll()
        task.cancel()
        raise AssertionError("the command was never finished")

    def _turn(self) -> None:
        """Two turns of the loop: in the first it sees the core's descriptor, in the second what that set off."""
        for _ in range(2):
            self._loop.run_until_complete(asyncio.sleep(0))

    # ---- tables ----

    def add_bridge(self, name: str = "br0", *, limit: int = 8192, aging: int = 300, **setup: bool) -> Fdb:
        """A bridge with its FDB; `setup` as in `BridgeSetup`."""
        self.fdbs[name] = Fdb(limit, aging, seed=1)
        self.bridges[name] = BridgeSetup(**setup)
        self.publish()
        return self.fdbs[name]

    def add_port(self, name: str, conf: DriverConf | None = None, setup: PortSetup | None = None) -> BenchPort:
        """A port on its bridge; with `conf`, a guest with running rings on it."""
        self.ports[name] = BenchPort(self.datapath.port(MAX_PAIRS), setup or PortSetup())
        self.publish()
        if conf is not None:
            self.attach(name, conf)
        return self.ports[name]

    def remove_port(self, name: str) -> None:
        """As the control plane does it: out of the tables, flushed, freed."""
        self.detach(name)
        port = self.ports.pop(name)
        self.publish()
        for fdb in self.fdbs.values():
            fdb.flush(port=port.handle.ref)
        port.handle.close()

    def publish(
        self, ports: Mapping[str, PortSetup] | None = None, bridges: Mapping[str, BridgeSetup] | None = None
    ) -> None:
        """Change the setup of some ports and bridges, and put all tables to work."""
        for name, setup in (ports or {}).items():
            self.ports[name].setup = setup
        self.bridges |= bridges or {}
        order = list(self.bridges)
        mirrors = {name: Bridge(mirrors=dict(self.mirrors.get(name, {}))) for name in order}
        handles = {name: port.handle for name, port in self.ports.items()}
        self.command(
            self.datapath.publish(
                [
                    PortView(
                        p.handle,
                        order.index(p.setup.bridge),
                        p.setup.enabled,
                        p.setup.mtu,
                        p.setup.backpressure_ms,
                        p.setup.vlan,
                        p.setup.isolated,
                        None,
                        NO_LIMIT,
                        NO_LIMIT,
                        None,
                        *policy.mirrored(name, mirrors[p.setup.bridge]),
                    )
                    for name, p in self.ports.items()
                ],
                [
                    BridgeView(
                        self.fdbs[name],
                        b.forward_bpdu,
                        b.flood_unknown,
                        b.punt_bpdu,
                        mirrors=policy.mirrors(mirrors[name], handles),
                        flows=self.flows.get(name),
                    )
                    for name, b in self.bridges.items()
                ],
            )
        )

    # ---- guests ----

    def attach(self, name: str, conf: DriverConf, *, receiving: int | None = None) -> Driver:
        """A guest with empty rings that run; it has posted no buffers yet.

        All rings are enabled, or with `receiving` of the receive rings only that pair's.
        """
        port, guest = self.ports[name], Driver(conf)
        port.driver = guest
        for r in guest.regions():
            port.regions.append(port.handle.map_region(r.fd, r.gpa, r.size, r.uva, r.mmap_offset))
        port.handle.set_memory(port.regions)
        for ring in range(guest.n_rings):
            self.start_ring(name, ring, enabled=ring % 2 == TX or receiving in (None, ring // 2))
        return guest

    def start_ring(self, name: str, ring: int, *, enabled: bool = True, base: int | None = None) -> None:
        """Start one ring where its used index stands; a packed one elsewhere, if `base` says so."""
        port = self.ports[name]
        v = port.guest.vring(ring)
        areas = (v.desc_uva, v.avail_uva, v.used_uva)
        base = port.guest.vring_base(ring) if base is None else base
        conf = RingConf(*areas, v.num, base, port.guest.features, enabled, v.kick_fd, v.call_fd)
        self.command(port.handle.start_ring(ring, conf))
        port.running.add(ring)

    def stop_ring(self, name: str, ring: int) -> int:
        """Stop one ring: its avail index."""
        port = self.ports[name]
        base = self.command(port.handle.stop_ring(ring))
        port.running.discard(ring)
        return base

    def enable_ring(self, name: str, ring: int, enabled: bool) -> None:
        """Enable or disable one ring."""
        self.command(self.ports[name].handle.enable_ring(ring, enabled))

    def detach(self, name: str) -> None:
        """The guest goes, if there is one."""
        port = self.ports[name]
        for ring in sorted(port.running):
            self.stop_ring(name, ring)
        port.handle.set_memory([])
        for region in port.regions:
            region.close()
        port.regions.clear()
        if port.driver is not None:
            port.driver.close()
            port.driver = None

    def heal(self, name: str) -> Driver:
        """A reboot: both rings stopped, the driver reset, both rings started."""
        port = self.ports[name]
        for ring in sorted(port.running):
            self.stop_ring(name, ring)
        port.guest.reset(port.guest.features)
        for ring in range(port.guest.n_rings):
            self.start_ring(name, ring)
        return port.guest

    # ---- frames ----

    def post(self, name: str, count: int | None = None, layout: Layout | None = None, *, pair: int = 0) -> int:
        """Post receive buffers: how many there was room for."""
        guest = self.ports[name].guest
        posted = guest.rx_fill(count, layout=layout, pair=pair)
        guest.kick(2 * pair + RX)
        return posted

    def send(
        self,
        name: str,
        frame: bytes,
        layout: Layout | None = None,
        *,
        header: bytes | None = None,
        pair: int = 0,
    ) -> None:
        """The guest on a port transmits; nothing happens before the next round."""
        guest = self.ports[name].guest
        guest.tx_reap(pair)
        guest.tx(frame, header=header, layout=layout, pair=pair)
        guest.kick(2 * pair + TX)

    def received(self, name: str) -> list[bytes]:
        """What the guest on a port has received since the last time, pair by pair."""
        return [frame for frames in self.received_by_pair(name) for frame in frames]

    def received_by_pair(self, name: str) -> list[list[bytes]]:
        """The same for each pair."""
        guest = self.ports[name].guest
        pairs: list[list[bytes]] = []
        for pair in range(guest.conf.queue_pairs):
            pairs.append([])
            while (got := guest.rx(pair)) is not None:
                pairs[-1].append(got[0])
            guest.kick(2 * pair + RX)
        return pairs

    # ---- what there is to see ----

    def counters(self, name: str) -> PortCounters:
        """A port's counters."""
        return self.ports[name].handle.counters()

    def fdb_items(self, bridge: str = "br0", *, expired: bool = False) -> dict[tuple[int, str], FdbItem]:
        """A bridge's FDB by VID and MAC; with `expired` also what has aged but has not been swept."""
        return {(item.vid, item.mac): item for item in self.fdbs[bridge].items(0 if expired else self.now_ns)}

    def take_events(self) -> list[Event]:
        """What the core has reported since the last time."""
        taken = list(self.events)
        self.events.clear()
        return taken

    def take_punts(self) -> list[Punt]:
        """The frames the core has handed up since the last time."""
        taken = list(self.punts)
        self.punts.clear()
        return taken


def guest_conf(features: int = MODERN, **conf: int | bool) -> DriverConf:
    """A small guest that posts buffers only when told."""
    small = DriverConf(features=features, queue_size=16, tx_buf_size=70_000, auto_refill=False)
    return replace(small, **conf)  # type: ignore[arg-type]  # to mypy `conf` is one type
