# SPDX-License-Identifier: Apache-2.0
"""The switch in the core, and the channel to it: commands down, completions, events and punted frames up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from pvswitch.datapath.capture import DatapathCapture, Record, records, set_recorder
from pvswitch.datapath.core import PUNT_REASONS, broken_reason, check, ffi, format_mac, lib, now_ns
from pvswitch.datapath.flow import FlowCounters, FlowMeter, FlowTable
from pvswitch.datapath.handles import DatapathHandle, DatapathPort, DatapathUplink
from pvswitch.datapath.records import Event, Perf, Punt
from pvswitch.datapath.tunnel import DatapathTunnel, DatapathVteps, TunnelConf
from pvswitch.datapath.views import BridgeView, PortView
from pvswitch.datapath.vlan import VlanCounters

_POLLING = {
    "adaptive": lib.PVS_POLL_ADAPTIVE,
    "busy": lib.PVS_POLL_BUSY,
    "interrupt": lib.PVS_POLL_INTERRUPT,
}
_BATCH = 128  # events or frames taken from the core before the loop has its turn again
_EVENT_KINDS: dict[int, Literal["learned", "moved", "broken", "vtep", "too_big"]] = {
    lib.PVS_EV_LEARNED: "learned",
    lib.PVS_EV_MOVED: "moved",
    lib.PVS_EV_BROKEN: "broken",
    lib.PVS_EV_VTEP: "vtep",
    lib.PVS_EV_TOO_BIG: "too_big",
}


def _ignore(_: object) -> None:
    """Stand in for a listener while there is none."""


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
        check(lib.pvs_switch_create(conf, out))
        self._switch = out[0]
        self.workers = workers
        self.copy_kernel: str = ffi.string(lib.pvs_copy_kernel_name()).decode()
        """How bytes are copied on this processor: "plain", "avx2" or "avx512"."""
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
        check(lib.pvs_switch_start(self._switch))

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
        return check(lib.pvs_poll_once(self._switch, worker, at_ns))

    def watchdog(self) -> int:
        """Interrupt workers that hang in a call to a guest, latching its port broken; return how many hung."""
        return int(lib.pvs_watchdog(self._switch, now_ns()))

    def uplink(self, queues: int = 1) -> DatapathUplink:
        """Return a new uplink with so many queues; OSError ENOSPC when all port indices are taken."""
        return DatapathUplink(self, queues)

    def tunnel_port(self) -> DatapathHandle:
        """Return a new port for a tunnel, without queues; OSError ENOSPC when all port indices are taken."""
        return DatapathHandle(self, lambda switch, out: int(lib.pvs_tunnel_port_create(switch, out)))

    def tunnel(self, conf: TunnelConf) -> DatapathTunnel:
        """Return what a port becomes a tunnel by; OSError EINVAL, ENOMEM."""
        return DatapathTunnel(self, self._switch, conf)

    def vteps(self) -> DatapathVteps:
        """Return the VTEPs that the switch knows, by number."""
        return DatapathVteps(self._switch)

    async def sync(self) -> None:
        """Wait until every worker has crossed a burst boundary."""
        await self.command(lambda: lib.pvs_sync(self._switch))

    def vlan_counters(self) -> VlanCounters:
        """Return counters for the VLANs of a bridge."""
        return VlanCounters(self._switch)

    def flow_table(self, flows: bytes, n_flows: int, actions: bytes, n_actions: int) -> FlowTable:
        """Return a table of flows, given as the core's arrays; OSError EINVAL, ENOMEM. In any thread."""
        return FlowTable(self._switch, flows, n_flows, actions, n_actions)

    def flow_counters(self) -> FlowCounters:
        """Return who gives out counters for flows."""
        return FlowCounters(self._switch)

    def flow_meter(self) -> FlowMeter:
        """Return a new meter; OSError ENOMEM."""
        return FlowMeter(self._switch)

    def capture(self, *, snaplen: int, ring_bytes: int, program: bytes) -> DatapathCapture:
        """Return a new capture; see `DatapathCapture`."""
        return DatapathCapture(self._switch, snaplen=snaplen, ring_bytes=ring_bytes, program=program)

    def records(self, worker: int, ring: Literal["drops", "frames"]) -> Iterator[Record]:
        """Read what a worker's flight recorder holds; iterate over it, newest first."""
        return records(self._switch, worker, ring)

    async def set_recorder(self, every: int, program: bytes) -> None:
        """Have one frame of `every` sampled (0: none), of those that pass a filter. OSError EINVAL, ENOMEM."""
        await self.command(lambda: set_recorder(self._switch, every, program))

    async def command(self, submit: Callable[[], int], keep: object = None) -> int:
        """Submit a command and wait until every worker has carried it out; return its result.

        `keep` is what the core has until then: it stays when who waits is cancelled.
        """
        assert self._loop is not None, "attach() or start() first"
        async with self._room:
            seq = check(submit())
            future: asyncio.Future[int] = self._loop.create_future()
            future.add_done_callback(lambda _: keep)  # holds it; there is nothing to do
            self._pending[seq] = future
            # shielded: a command can't be taken back, and its slot is free only when it has returned
            return check(await asyncio.shield(future))

    async def commands(self, submits: Iterable[Callable[[], int]]) -> None:
        """Submit many commands without waiting for each, and then wait for all of them."""
        assert self._loop is not None, "attach() or start() first"
        futures: list[asyncio.Future[int]] = []
        for submit in submits:
            await self._room.acquire()
            try:
                seq = check(submit())
            except BaseException:
                self._room.release()
                raise
            future: asyncio.Future[int] = self._loop.create_future()
            future.add_done_callback(lambda _: self._room.release())
            self._pending[seq] = future
            futures.append(future)
        for future in futures:
            check(await asyncio.shield(future))

    async def publish(self, ports: Sequence[PortView], bridges: Sequence[BridgeView]) -> None:
        """Make these the tables that every worker forwards by, at once and as a whole."""
        p = ffi.new("struct pvs_port_conf[]", max(1, len(ports)))
        b = ffi.new("struct pvs_bridge_conf[]", max(1, len(bridges)))
        keep: list[Any] = []  # what `p` and `b` point to
        for i, view in enumerate(ports):
            view.fill(p[i], keep)
        for i, bridge in enumerate(bridges):
            bridge.fill(b[i], keep)
        await self.command(lambda: lib.pvs_publish(self._switch, p, len(ports), b, len(bridges)))

    def perf(self, worker: int) -> Perf:
        """Return what a worker has done so far."""
        p = ffi.new("struct pvs_perf *")
        check(lib.pvs_worker_perf(self._switch, worker, p))
        return Perf(
            p.busy_cycles,
            p.idle_cycles,
            p.total_cycles,
            p.packets,
            p.loops,
            p.sleeps,
            p.learn_skipped,
            p.bursts,
            p.queue_full,
            p.notifications,
            p.notifications_suppressed,
            p.kicks,
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
    if kind in ("vtep", "too_big"):
        return Event(kind, event.time_ns, event.port_ref, vtep=event.vtep)
    mac = format_mac(bytes(ffi.buffer(event.mac)))
    if kind == "moved":
        return Event("moved", event.time_ns, event.port_ref, event.vid, mac, old_port=event.detail, vtep=event.vtep)
    return Event("learned", event.time_ns, event.port_ref, event.vid, mac, vtep=event.vtep)
