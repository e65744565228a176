# SPDX-License-Identifier: Apache-2.0
"""The ports' handles in the core: a guest's port with its rings and memory, an uplink with its queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pvswitch.datapath.core import COUNTERS, DROP_REASONS, broken_reason, check, ffi, lib
from pvswitch.datapath.records import PortCounters, QueueStatus, RingConf, RingStatus, UplinkConf

if TYPE_CHECKING:
    from pvswitch.datapath.switch import Datapath

_KINDS = {"tap": lib.PVS_TAP, "packet": lib.PVS_PACKET, "file": lib.PVS_FILE, "endpoint": lib.PVS_ENDPOINT}
TUNNEL_KINDS = {"vxlan": lib.PVS_VXLAN, "geneve": lib.PVS_GENEVE, "gre": lib.PVS_GRE}


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


class DatapathHandle:
    """What every port in the core has: an index, counters, a way in for the control plane's frames."""

    def __init__(self, datapath: Datapath, create: Callable[[Any, Any], int]) -> None:
        """`create` makes it: the switch and where to put the port are its arguments."""
        out = ffi.new("pvs_port **")
        check(create(datapath._switch, out))
        self._datapath = datapath
        self._port = out[0]
        self.ref: int = lib.pvs_port_ref(self._port)

    def close(self) -> None:
        """Free it; OSError EBUSY while it is published or a queue runs."""
        if self._port is not None:
            check(lib.pvs_port_destroy(self._port))
            self._port = None

    async def inject(self, frame: bytes, direction: Literal["ingress", "egress"]) -> None:
        """Send a frame as if it had come by the port (ingress), or out of it (egress)."""
        code = lib.PVS_INGRESS if direction == "ingress" else lib.PVS_EGRESS
        await self._datapath.command(lambda: lib.pvs_inject(self._port, code, frame, len(frame)))

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


class DatapathUplink(DatapathHandle):
    """An uplink's handle in the core: queues that are descriptors."""

    def __init__(self, datapath: Datapath, queues: int) -> None:
        """OSError ENOSPC when all port indices are taken."""
        super().__init__(datapath, lambda switch, out: int(lib.pvs_uplink_create(switch, queues, out)))
        self.queues = queues

    async def start_queue(self, index: int, conf: UplinkConf) -> None:
        """Start a queue: frames flow both ways from now on. OSError EPERM: the descriptor can't be polled."""
        c = ffi.new("struct pvs_uplink_conf *")
        c.kind = _KINDS[conf.kind]
        if conf.kind == "endpoint":
            c.tunnel = TUNNEL_KINDS[conf.tunnel]
        c.fd, c.uso, c.worker = conf.fd, conf.uso, conf.worker
        await self._datapath.command(lambda: lib.pvs_uplink_start(self._port, index, c))

    async def stop_queue(self, index: int) -> None:
        """Stop a queue. Afterwards no worker touches its descriptor."""
        await self._datapath.command(lambda: lib.pvs_uplink_stop(self._port, index))

    async def move_queue(self, index: int, worker: int) -> None:
        """Have another worker fetch from a queue. OSError: see `DatapathPort.move_ring`."""
        await self._datapath.command(lambda: lib.pvs_uplink_move(self._port, index, worker))

    def queue_status(self, index: int) -> QueueStatus:
        """Return what a queue does now."""
        s = ffi.new("struct pvs_uplink_status *")
        check(lib.pvs_uplink_status(self._port, index, s))
        return QueueStatus(s.running, s.error, s.rx_packets, s.rx_bytes, s.tx_packets, s.tx_bytes, s.cycles, s.worker)


class DatapathPort(DatapathHandle):
    """A guest's port in the core: rings and guest memory."""

    def __init__(self, datapath: Datapath, pairs: int) -> None:
        """`pairs` queue pairs; OSError ENOSPC when all port indices are taken."""
        super().__init__(datapath, lambda switch, out: int(lib.pvs_port_create(switch, pairs, out)))
        self.rings = 2 * pairs

    def map_region(self, fd: int, gpa: int, size: int, uva: int, offset: int) -> MemoryRegion:
        """Map guest memory; the descriptor may be closed afterwards. OSError: EFBIG when the file is too short."""
        out = ffi.new("pvs_region **")
        check(lib.pvs_region_map(self._port, fd, gpa, size, uva, offset, out))
        return MemoryRegion(gpa, size, uva, out[0])

    def set_memory(self, regions: Sequence[MemoryRegion]) -> None:
        """Make these regions the port's memory; every ring must be stopped. OSError EINVAL when two overlap."""
        memory = ffi.NULL
        if regions:
            out = ffi.new("pvs_memory **")
            array = ffi.new("pvs_region *[]", [region._region for region in regions])
            check(lib.pvs_memory_create(array, len(regions), out))
            memory = out[0]
        old = ffi.new("pvs_memory **")
        try:
            check(lib.pvs_port_set_memory(self._port, memory, old))
        except OSError:
            lib.pvs_memory_destroy(memory)
            raise
        lib.pvs_memory_destroy(old[0])

    async def start_ring(self, index: int, conf: RingConf) -> None:
        """Start a ring. OSError EFAULT: an address doesn't translate; EPERM: the kick can't be polled."""
        c = ffi.new("struct pvs_ring_conf *")
        c.desc_uva, c.avail_uva, c.used_uva = conf.desc, conf.avail, conf.used
        c.features, c.num, c.enabled, c.worker = conf.features, conf.num, conf.enabled, conf.worker
        c.base = conf.base & 0xFFFF  # the used half says the same: nothing is held
        c.kick_fd = -1 if conf.kick_fd is None else conf.kick_fd
        c.call_fd = -1 if conf.call_fd is None else conf.call_fd
        await self._datapath.command(lambda: lib.pvs_ring_start(self._port, index, c))

    async def stop_ring(self, index: int) -> int:
        """Stop a ring; returns where it stood, for GET_VRING_BASE. Afterwards no worker touches it."""
        return await self._datapath.command(lambda: lib.pvs_ring_stop(self._port, index))

    async def move_ring(self, index: int, worker: int) -> None:
        """Have another worker poll a ring that a guest transmits by; nothing is lost.

        OSError EALREADY: that worker has it, or another move is under way; EINVAL, EBUSY: it isn't running.
        """
        await self._datapath.command(lambda: lib.pvs_ring_move(self._port, index, worker))

    async def enable_ring(self, index: int, enabled: bool) -> None:
        """Enable or disable a ring: a disabled one receives nothing and what it sends is discarded."""
        await self._datapath.command(lambda: lib.pvs_ring_enable(self._port, index, enabled))

    async def set_call(self, index: int, fd: int | None) -> None:
        """Replace a ring's call descriptor; afterwards the old one is no longer used."""
        await self._datapath.command(lambda: lib.pvs_ring_set_call(self._port, index, -1 if fd is None else fd))

    def ring_status(self, index: int) -> RingStatus:
        """Return what a ring does now."""
        s = ffi.new("struct pvs_ring_status *")
        check(lib.pvs_ring_status(self._port, index, s))
        return RingStatus(
            s.running,
            s.enabled,
            s.silent,
            s.used_idx,
            s.avail_idx,
            s.kicks,
            s.packets,
            s.bytes,
            s.notifications,
            s.notifications_suppressed,
            s.cycles,
            s.worker,
        )
