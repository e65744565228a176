# SPDX-License-Identifier: Apache-2.0
"""The only door to the native data plane: `pvswitch._native` is imported nowhere else.

How it works: native/include/pvs_api.h is the interface; this module turns its integers into exceptions (`_check`, the
one place) and its commands into awaitables. A command returns a sequence number at once; when the core's wake
descriptor becomes readable, finished numbers are reaped and their futures resolved. A finished command means that
every worker has passed a burst boundary: what it replaced may be freed.

Who may call: `ports.py` and `vhost_port.py`, on the event loop's thread, and tests. All handles belong to one
`Datapath` and must be closed before it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pvswitch._native import ffi, lib

_POLLING = {
    "adaptive": lib.PVS_POLL_ADAPTIVE,
    "busy": lib.PVS_POLL_BUSY,
    "interrupt": lib.PVS_POLL_INTERRUPT,
}
COUNTERS: tuple[str, ...] = tuple(ffi.string(lib.pvs_counter_name(i)).decode() for i in range(lib.pvs_counter_count()))
DROP_REASONS: tuple[str, ...] = tuple(
    ffi.string(lib.pvs_drop_reason_name(i)).decode() for i in range(lib.pvs_drop_reason_count())
)
PUNT_REASONS: tuple[str, ...] = ("bpdu",)
MAX_PAIRS: int = lib.PVS_MAX_PAIRS
_BATCH = 128  # events or frames taken from the core before the loop has its turn again
_EVENT_KINDS = {
    lib.PVS_EV_LEARNED: "learned",
    lib.PVS_EV_MOVED: "moved",
    lib.PVS_EV_BROKEN: "broken",
}


def _check(rc: int) -> int:
    """Return what the core returned, or raise OSError for -errno."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


def _ignore(_: object) -> None:
    """Stand in for a listener while there is none."""


def format_mac(mac: bytes) -> str:
    """Return six bytes as "52:54:00:12:34:56"."""
    return mac.hex(":")


def now_ns() -> int:
    """Return the core's clock: CLOCK_MONOTONIC in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


# ---- what the core reports ----


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in the data path. `old_port` only for `moved`, `detail` only for `broken`."""

    kind: Literal["learned", "moved", "broken"]
    time_ns: int
    port: int
    vid: int = 0
    mac: str = ""
    old_port: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Punt:
    """A frame handed to the control plane: raw bytes from the Ethernet header on."""

    time_ns: int
    port: int
    vid: int
    reason: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class FdbItem:
    """One entry of an FDB. `port` is a port's reference, `age` in seconds (0 for static)."""

    mac: str
    vid: int
    port: int
    age: int
    static: bool


@dataclass(frozen=True, slots=True)
class RingStatus:
    """A ring now. The two indices are read from guest memory and 0 while it is stopped.

    `worker` polls it; it means something only while the ring runs.
    """

    running: bool
    enabled: bool
    used_idx: int
    avail_idx: int
    kicks: int
    packets: int
    bytes: int
    notifications: int
    notifications_suppressed: int
    worker: int


@dataclass(frozen=True, slots=True)
class PortCounters:
    """Counters by name, and drops by reason (only reasons that occurred), in the switch's view."""

    values: dict[str, int]
    rx_drops: dict[str, int]
    tx_drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class Perf:
    """What one worker has done since it was made; cycles are of the CPU's time stamp counter."""

    busy_cycles: int
    idle_cycles: int
    total_cycles: int
    packets: int
    loops: int
    sleeps: int
    learn_skipped: int
    burst_histogram: tuple[int, ...]
    cycles_per_second: int
    sleeping: bool


# ---- what the core is told ----


@dataclass(frozen=True, slots=True)
class PortView:
    """A port in the tables: `bridge` is the index of its bridge there; `mtu` in L3 bytes, 0 = not enforced.

    `backpressure_ms`: how long known unicast waits for this port while it is full; 0 = it is dropped.
    """

    port: DatapathPort
    bridge: int
    enabled: bool = True
    mtu: int = 0
    backpressure_ms: int = 0


@dataclass(frozen=True, slots=True)
class BridgeView:
    """A bridge in the tables."""

    fdb: Fdb
    forward_bpdu: bool = True
    flood_unknown: bool = True
    punt_bpdu: bool = False


@dataclass(frozen=True, slots=True)
class RingConf:
    """How to run a ring; addresses are the front end's. A descriptor of None: none was given.

    `worker` polls the ring's pair, -1: the one with the fewest rings. The first ring of a pair to start decides.
    """

    desc: int
    avail: int
    used: int
    num: int
    features: int
    enabled: bool
    kick_fd: int | None
    call_fd: int | None
    worker: int = -1


class Fdb:
    """One bridge's forwarding database. Time is the core's clock; ports are named by reference."""

    def __init__(self, limit: int, aging: int, seed: int | None = None) -> None:
        """`limit` entries (1 to 1,000,000), `aging` seconds (0 = never)."""
        out = ffi.new("pvs_fdb **")
        _check(lib.pvs_fdb_create(limit, aging, secrets.randbits(64) if seed is None else seed, out))
        self.limit = limit
        self._fdb = out[0]
        self._cursor = ffi.new("uint32_t *")

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self._fdb is not None:
            lib.pvs_fdb_destroy(self._fdb)
            self._fdb = None

    def __len__(self) -> int:
        """Return how many entries it holds, expired ones included until they are swept."""
        return int(lib.pvs_fdb_count(self._fdb))

    def set_aging(self, seconds: int) -> None:
        """Set the ageing time; 0 = never."""
        lib.pvs_fdb_set_aging(self._fdb, seconds)

    def set_static(self, mac: bytes, vid: int, port: int) -> None:
        """Make a static entry, in the place of any other; OSError ENOSPC when only static ones are left."""
        _check(lib.pvs_fdb_set_static(self._fdb, mac, vid, port))

    def remove(self, mac: bytes, vid: int) -> bool:
        """Remove an entry of either kind; False when there was none."""
        return bool(lib.pvs_fdb_remove(self._fdb, mac, vid) == 0)

    def flush(self, *, port: int | None = None, vid: int | None = None, mac: bytes | None = None) -> int:
        """Remove the dynamic entries that match all that is given; return how many."""
        wanted = ffi.new("struct pvs_fdb_filter *")
        if port is not None:
            wanted.by_port, wanted.port_ref = True, port
        if vid is not None:
            wanted.by_vid, wanted.vid = True, vid
        if mac is not None:
            wanted.by_mac = True
            ffi.memmove(wanted.mac, mac, 6)
        return int(lib.pvs_fdb_flush(self._fdb, wanted))

    def sweep(self, at_ns: int, budget: int = 65536) -> int:
        """Remove what is too old, at most `budget` slots at a call from where the last ended; return how many."""
        return int(lib.pvs_fdb_sweep(self._fdb, at_ns, self._cursor, budget))

    def items(self, at_ns: int) -> Iterator[FdbItem]:
        """Iterate over the entries that have not expired."""
        room, cursor = 512, ffi.new("uint32_t *")
        out = ffi.new("struct pvs_fdb_item[]", room)
        while True:
            n = lib.pvs_fdb_dump(self._fdb, at_ns, cursor, out, room)
            for i in range(n):
                item = out[i]
                mac = format_mac(bytes(ffi.buffer(item.mac)))
                yield FdbItem(mac, item.vid, item.port_ref, item.age_s, item.is_static)
            if cursor[0] == 0:
                return

    def lookup(self, mac: bytes, vid: int, at_ns: int) -> int | None:
        """Return the reference of the port that `mac` is behind, or None."""
        out = ffi.new("uint32_t *")
        return int(out[0]) if lib.pvs_fdb_lookup(self._fdb, mac, vid, at_ns, out) == 0 else None

    def copy_from(self, other: Fdb) -> None:
        """Take over the entries of `other` as far as they fit."""
        lib.pvs_fdb_copy(self._fdb, other._fdb)


@dataclass(slots=True)
class MemoryRegion:
    """One mapped piece of guest memory; it stays mapped until it is closed and no map holds it."""

    gpa: int
    size: int
    uva: int
    _region: Any = field(repr=False)

    def close(self) -> None:
        """Let go of it."""
        lib.pvs_region_unref(self._region)


class DatapathPort:
    """A port's handle in the core: an index, rings, guest memory, counters."""

    def __init__(self, datapath: Datapath, pairs: int) -> None:
        """`pairs` queue pairs; OSError ENOSPC when all port indices are taken."""
        out = ffi.new("pvs_port **")
        _check(lib.pvs_port_create(datapath._switch, pairs, out))
        self._datapath = datapath
        self._port = out[0]
        self.ref: int = lib.pvs_port_ref(self._port)
        self.rings = 2 * pairs

    def close(self) -> None:
        """Free it; OSError EBUSY while it is published or a ring runs."""
        if self._port is not None:
            _check(lib.pvs_port_destroy(self._port))
            self._port = None

    def map_region(self, fd: int, gpa: int, size: int, uva: int, offset: int) -> MemoryRegion:
        """Map guest memory; the descriptor may be closed afterwards. OSError: EFBIG when the file is too short."""
        out = ffi.new("pvs_region **")
        _check(lib.pvs_region_map(self._port, fd, gpa, size, uva, offset, out))
        return MemoryRegion(gpa, size, uva, out[0])

    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        """Make these regions the port's memory; every ring must be stopped. OSError EINVAL when two overlap."""
        memory = ffi.NULL
        if regions:
            out = ffi.new("pvs_memory **")
            array = ffi.new("pvs_region *[]", [region._region for region in regions])
            _check(lib.pvs_memory_create(array, len(regions), out))
            memory = out[0]
        old = ffi.new("pvs_memory **")
        try:
            _check(lib.pvs_port_set_memory(self._port, memory, old))
        except OSError:
            lib.pvs_memory_destroy(memory)
            raise
        lib.pvs_memory_destroy(old[0])

    async def start_ring(self, index: int, conf: RingConf) -> None:
        """Start a ring. OSError EFAULT: an address doesn't translate; EPERM: the kick can't be polled."""
        c = ffi.new("struct pvs_ring_conf *")
        c.desc_uva, c.avail_uva, c.used_uva = conf.desc, conf.avail, conf.used
        c.features, c.num, c.enabled, c.worker = conf.features, conf.num, conf.enabled, conf.worker
        c.kick_fd = -1 if conf.kick_fd is None else conf.kick_fd
        c.call_fd = -1 if conf.call_fd is None else conf.call_fd
        await self._datapath.command(lambda: lib.pvs_ring_start(self._port, index, c))

    async def stop_ring(self, index: int) -> int:
        """Stop a ring; returns its avail index. Afterwards no worker touches it."""
        return await self._datapath.command(lambda: lib.pvs_ring_stop(self._port, index))

    async def enable_ring(self, index: int, enabled: bool) -> None:
        """Enable or disable a ring: a disabled one receives nothing and what it sends is discarded."""
        await self._datapath.command(lambda: lib.pvs_ring_enable(self._port, index, enabled))

    async def set_call(self, index: int, fd: int | None) -> None:
        """Replace a ring's call descriptor; afterwards the old one is no longer used."""
        await self._datapath.command(lambda: lib.pvs_ring_set_call(self._port, index, -1 if fd is None else fd))

    async def inject(self, frame: bytes, direction: Literal["ingress", "egress"]) -> None:
        """Send a frame as if the guest had sent it (ingress), or to the guest (egress)."""
        code = lib.PVS_INGRESS if direction == "ingress" else lib.PVS_EGRESS
        await self._datapath.command(lambda: lib.pvs_inject(self._port, code, frame, len(frame)))

    def ring_status(self, index: int) -> RingStatus:
        """Return what a ring does now."""
        s = ffi.new("struct pvs_ring_status *")
        _check(lib.pvs_ring_status(self._port, index, s))
        return RingStatus(
            s.running,
            s.enabled,
            s.used_idx,
            s.avail_idx,
            s.kicks,
            s.packets,
            s.bytes,
            s.notifications,
            s.notifications_suppressed,
            s.worker,
        )

    def broken(self) -> str | None:
        """Return why the port is latched broken, or None."""
        code = lib.pvs_port_broken(self._port)
        return broken_reason(code) if code else None

    def counters(self) -> PortCounters:
        """Return the port's counters, summed over the workers."""
        values = ffi.new("uint64_t[]", len(COUNTERS))
        rx = ffi.new("uint64_t[]", len(DROP_REASONS))
        tx = ffi.new("uint64_t[]", len(DROP_REASONS))
        lib.pvs_port_counters(self._port, values, rx, tx)
        return PortCounters(
            dict(zip(COUNTERS, values, strict=True)),
            {name: n for name, n in zip(DROP_REASONS, rx, strict=True) if n},
            {name: n for name, n in zip(DROP_REASONS, tx, strict=True) if n},
        )


def broken_reason(code: int) -> str:
    """Return in words why a port is latched broken."""
    return str(ffi.string(lib.pvs_broken_reason(code)).decode())


class Datapath:
    """The switch in the core: its workers, and the channel to them.

    Without `start()` no threads run; tests then call `poll()` themselves.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        cpus: Sequence[int] = (),
        polling: str = "adaptive",
        poll_us: int = 50,
    ) -> None:
        """`cpus`: one for each worker, or none. OSError EINVAL for values out of range."""
        conf = ffi.new("struct pvs_switch_conf *")
        conf.n_workers, conf.polling, conf.poll_us = workers, _POLLING[polling], poll_us
        for i in range(lib.PVS_MAX_WORKERS):
            conf.cpus[i] = cpus[i] if i < len(cpus) else -1
        out = ffi.new("pvs_switch **")
        _check(lib.pvs_switch_create(conf, out))
        self._switch = out[0]
        self.workers = workers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[int, asyncio.Future[int]] = {}
        self._room = asyncio.Semaphore(lib.PVS_COMMANDS)
        self._punt_buffer = ffi.new("uint8_t[]", lib.PVS_MAX_FRAME)
        self.on_event: Callable[[Event], None] = _ignore
        self.on_punt: Callable[[Punt], None] = _ignore

    def attach(self) -> None:
        """Take completions, events and punted frames from now on in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(lib.pvs_wake_fd(self._switch), self._drain)

    def start(self) -> None:
        """Attach to the running loop and start the poll threads."""
        self.attach()
        _check(lib.pvs_switch_start(self._switch))

    def close(self) -> None:
        """Stop the threads and free everything; all ports must be closed by now."""
        if self._switch is None:
            return
        if self._loop is not None:
            self._loop.remove_reader(lib.pvs_wake_fd(self._switch))
        lib.pvs_switch_destroy(self._switch)
        self._switch = None
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

    def port(self, pairs: int = 1) -> DatapathPort:
        """Return a new port with `pairs` queue pairs; OSError ENOSPC when all are taken."""
        return DatapathPort(self, pairs)

    def poll(self, at_ns: int, worker: int = 0) -> int:
        """Run one round of a worker, when no threads were started; return what it handled."""
        return _check(lib.pvs_poll_once(self._switch, worker, at_ns))

    def watchdog(self) -> int:
        """Interrupt workers that hang in a call to a guest, latching its port broken; return how many hung."""
        return int(lib.pvs_watchdog(self._switch, now_ns()))

    async def command(self, submit: Callable[[], int]) -> int:
        """Submit a command and wait until every worker has carried it out; return its result."""
        assert self._loop is not None, "attach() or start() first"
        async with self._room:
            seq = _check(submit())
            future: asyncio.Future[int] = self._loop.create_future()
            self._pending[seq] = future
            # shielded: a command can't be taken back, and its slot is free only when it has returned
            return _check(await asyncio.shield(future))

    async def publish(self, ports: Sequence[PortView], bridges: Sequence[BridgeView]) -> None:
        """Make these the tables that every worker forwards by, at once and as a whole."""
        p = ffi.new("struct pvs_port_conf[]", max(1, len(ports)))
        b = ffi.new("struct pvs_bridge_conf[]", max(1, len(bridges)))
        for i, view in enumerate(ports):
            p[i].port, p[i].bridge = view.port._port, view.bridge
            p[i].enabled, p[i].mtu, p[i].backpressure_ms = view.enabled, view.mtu, view.backpressure_ms
        for i, bridge in enumerate(bridges):
            b[i].fdb, b[i].punt_bpdu = bridge.fdb._fdb, bridge.punt_bpdu
            b[i].forward_bpdu, b[i].flood_unknown = bridge.forward_bpdu, bridge.flood_unknown
        await self.command(lambda: lib.pvs_publish(self._switch, p, len(ports), b, len(bridges)))

    def perf(self, worker: int) -> Perf:
        """Return what a worker has done so far."""
        p = ffi.new("struct pvs_perf *")
        _check(lib.pvs_worker_perf(self._switch, worker, p))
        return Perf(
            p.busy_cycles,
            p.idle_cycles,
            p.total_cycles,
            p.packets,
            p.loops,
            p.sleeps,
            p.learn_skipped,
            tuple(p.burst_histogram),
            p.cycles_per_second,
            p.sleeping,
        )

    def lost(self) -> dict[str, int]:
        """Return how many events and punted frames (by reason) found no room on their way up."""
        names = ("events", *(f"punt_{reason}" for reason in PUNT_REASONS))
        return {name: int(lib.pvs_lost(self._switch, i)) for i, name in enumerate(names)}

    def _drain(self) -> None:
        """Take what has come up. Clearing comes first, so that nothing that comes later is missed.

        At most a batch of events and frames at a time: guests that make many must not hold the loop.
        """
        if self._switch is None:
            return
        lib.pvs_wake_clear(self._switch)
        self._reap()
        if self._take_events() | self._take_punts():
            assert self._loop is not None
            self._loop.call_soon(self._drain)

    def _take_events(self) -> bool:
        """Hand on up to a batch of events; True when there may be more."""
        event = ffi.new("struct pvs_event *")
        for _ in range(_BATCH):
            if not lib.pvs_event_next(self._switch, event):
                return False
            self.on_event(_event(event))
        return True

    def _take_punts(self) -> bool:
        """Hand on up to a batch of punted frames; True when there may be more."""
        punt = ffi.new("struct pvs_punt *")
        for _ in range(_BATCH):
            n = lib.pvs_punt_next(self._switch, punt, self._punt_buffer, lib.PVS_MAX_FRAME)
            if n <= 0:
                return False
            frame = bytes(ffi.buffer(self._punt_buffer, n))
            self.on_punt(Punt(punt.time_ns, punt.port_ref, punt.vid, PUNT_REASONS[punt.reason], frame))
        return True

    def _reap(self) -> None:
        room = 64
        seqs, results = ffi.new("uint64_t[]", room), ffi.new("int64_t[]", room)
        while n := lib.pvs_reap(self._switch, seqs, results, room):
            for i in range(n):
                future = self._pending.pop(seqs[i])
                if not future.done():
                    future.set_result(results[i])


def _event(event: Any) -> Event:
    kind = _EVENT_KINDS[event.kind]
    if kind == "broken":
        return Event("broken", event.time_ns, event.port_ref, detail=broken_reason(event.detail))
    mac = format_mac(bytes(ffi.buffer(event.mac)))
    if kind == "moved":
        return Event("moved", event.time_ns, event.port_ref, event.vid, mac, old_port=event.detail)
    return Event("learned", event.time_ns, event.port_ref, event.vid, mac)
