# SPDX-License-Identifier: Apache-2.0
"""A vhost-user port: what its front end asks for, carried out on its handle in the core, and its link state.

`VhostPort` is the `Backend` of its own `Endpoint`, which listens or connects by the port's `mode`. The session believes
a ring to run from start_ring() to stop_ring(); here a ring may be *paused* in between, while guest memory is replaced
or has gone: it resumes where it stopped as soon as its addresses translate again.

The link is up when some queue pair has both rings running and enabled. Everything that keeps it down has one reason
(`LinkReason`), looked for in a fixed order. A front end whose memory isn't shared looks healthy from here, except that
kicks arrive and the avail index never moves: `tick()`, called once a second, looks for that.

Used by `ports.py`, on the event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from pvswitch.datapath import MAX_PAIRS, Datapath, DatapathPort, MemoryRegion, RingConf
from pvswitch.model import AnyPort, VhostUserPort
from pvswitch.state import (
    Frontend,
    LinkReason,
    Memory,
    PortState,
    Queues,
    QueueStats,
    link_message,
)
from pvswitch.switch_port import PolledQueue, SwitchPort
from pvswitch.vhost_user.backend import Region, RingNotReady, RingSetup
from pvswitch.vhost_user.client import VhostUserClient
from pvswitch.vhost_user.connection import Endpoint
from pvswitch.vhost_user.features import Feature, ProtocolFeature, feature_names
from pvswitch.vhost_user.server import VhostUserServer
from pvswitch.vhost_user.session import Offer, Phase

log = structlog.get_logger(__name__)

NOT_SHARED_TICKS = 2
"""Seconds (ticks) of kicks without a moving avail index before memory counts as not shared."""

_CSUM = Feature.CSUM | Feature.GUEST_CSUM
_TSO = Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.GUEST_TSO4 | Feature.GUEST_TSO6
_ECN = Feature.HOST_ECN | Feature.GUEST_ECN
_USO = Feature.HOST_USO | Feature.GUEST_USO4 | Feature.GUEST_USO6
_ALWAYS = Feature.VERSION_1 | Feature.ANY_LAYOUT | Feature.GUEST_ANNOUNCE | Feature.PROTOCOL_FEATURES
_PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RARP
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


def offer_for(port: VhostUserPort) -> Offer:
    """Return what the port offers to a front end, by its configuration. Segmentation needs checksums."""
    features, csum = _ALWAYS, port.features.csum
    for wanted, bits in (
        (port.features.mrg_rxbuf, Feature.MRG_RXBUF),
        (port.features.event_idx, Feature.EVENT_IDX),
        (port.features.indirect, Feature.INDIRECT_DESC),
        (port.features.packed, Feature.RING_PACKED),
        (port.features.in_order, Feature.IN_ORDER),
        (csum, _CSUM),
        (csum and port.features.tso, _TSO | _ECN),
        (csum and port.features.uso, _USO),
        (port.mtu is not None, Feature.MTU),
        (port.queues > 1, Feature.MQ),
    ):
        if wanted:
            features |= bits
    return Offer(features=int(features), protocol_features=int(_PROTOCOL), queue_pairs=port.queues)


def rarp_announcement(mac: bytes) -> bytes:
    """Return the reverse ARP request (RFC 903) by which a bridge learns where `mac` is now, padded to 60 bytes."""
    ethernet = b"\xff" * 6 + mac + b"\x80\x35"
    arp = bytes.fromhex("0001 0800 06 04 0003") + mac + bytes(4) + mac + bytes(4)
    return (ethernet + arp).ljust(60, b"\0")


class VhostPort(SwitchPort):
    """One vhost-user port."""

    handle: DatapathPort

    def __init__(
        self,
        datapath: Datapath,
        name: str,
        port: VhostUserPort,
        *,
        path: Path,
        socket_mode: int,
        gid: int,
        on_link: Callable[[SwitchPort], None],
    ) -> None:
        """Take a handle in the core (OSError ENOSPC).

        `socket_mode` and `gid` are those of the socket file, where the switch makes it.
        """
        super().__init__(name, datapath.port(MAX_PAIRS), on_link)  # so that `queues` can change
        offer = offer_for(port)
        self.endpoint: Endpoint = (
            VhostUserClient(path, offer=offer, backend=self, on_change=self.refresh)
            if port.mode == "client"
            else VhostUserServer(path, offer=offer, backend=self, mode=socket_mode, gid=gid, on_change=self.refresh)
        )
        self._port = port
        self._regions: list[MemoryRegion] = []
        self._wanted: dict[int, RingSetup] = {}  # what the session believes to run
        self._live: set[int] = set()  # what does
        self._base: dict[int, int] = {}  # where a paused ring stopped
        self._moved: dict[int, int] = {}  # pairs that were moved, and to which worker
        self._silent_ticks = 0
        self._memory_seen = False

    # ---- life

    async def bind(self) -> None:
        """Make the socket file, if the switch listens. Raises PvswitchError."""
        self.endpoint.bind()

    async def listen(self) -> None:
        """Let a front end connect, or begin to connect to one."""
        self.endpoint.listen()

    async def renew(self) -> None:
        """End the connection, if there is one; the next front end sees what is offered then."""
        await self.endpoint.hang_up()

    def suits(self, port: AnyPort) -> bool:
        """Return whether it is the same socket, on the same side of it."""
        if not isinstance(port, VhostUserPort):
            return False
        return (self.endpoint.path, self._port.mode) == (port.socket, port.mode)

    def configure(self, port: AnyPort) -> bool:
        """Take over a changed configuration; return whether the front end has to connect anew for it."""
        assert isinstance(port, VhostUserPort)  # suits() has said so
        before, self._port = self._port, port
        self.endpoint.offer = offer_for(port)
        self.refresh()
        return any(getattr(before, key) != getattr(port, key) for key in ("queues", "rxq_affinity", "features"))

    async def close(self) -> None:
        """End the connection and free the handle."""
        await self.endpoint.close()
        self.handle.close()

    # ---- Backend: memory

    async def replace_memory(self, regions: Sequence[Region]) -> None:
        """Map the new regions first: when one can't be mapped, the old map stays."""
        fresh: list[MemoryRegion] = []
        try:
            for region in regions:
                fresh.append(self._map(region))
            await self._swap(fresh)
        except OSError:
            for mapped in fresh:
                mapped.close()
            raise

    async def add_region(self, region: Region) -> None:
        """Map one region more."""
        mapped = self._map(region)
        try:
            await self._swap([*self._regions, mapped])
        except OSError:
            mapped.close()
            raise

    async def remove_region(self, region: Region) -> None:
        """Unmap one; rings in it pause until it comes back."""
        key = (region.gpa, region.uva, region.size)
        await self._swap([r for r in self._regions if (r.gpa, r.uva, r.size) != key])

    def _map(self, region: Region) -> MemoryRegion:
        return self.handle.map_region(region.fd, region.gpa, region.size, region.uva, region.offset)

    async def _swap(self, regions: list[MemoryRegion]) -> None:
        """Pause, change the map, resume. On OSError the old map is back in use and owns its regions as before."""
        for index in sorted(self._live):
            self._base[index] = await self.handle.stop_ring(index)
            self._live.discard(index)
        try:
            self.handle.set_memory(regions)
        except OSError:
            await self._resume()
            raise
        for old in self._regions:
            if all(old is not kept for kept in regions):
                old.close()
        self._regions = regions
        await self._resume()

    async def _resume(self) -> None:
        """Start again what can be started; what can't stays paused, and the link down."""
        for index, setup in sorted(self._wanted.items()):
            if index not in self._live:
                try:
                    await self._start(setup)
                except RingNotReady:
                    continue
                except OSError as error:
                    log.warning("ring not resumed", port=self.name, ring=index, error=str(error))

    # ---- Backend: rings

    async def start_ring(self, ring: RingSetup) -> None:
        """Start a ring; RingNotReady while its addresses don't translate."""
        if not self._live:
            self._silent_ticks, self._memory_seen = 0, False
        await self._start(ring)
        self._wanted[ring.index] = ring
        self.refresh()

    async def _start(self, ring: RingSetup) -> None:
        conf = RingConf(
            desc=ring.desc,
            avail=ring.avail,
            used=ring.used,
            num=ring.num,
            base=self._base.get(ring.index, ring.base),
            features=ring.features,
            enabled=ring.enabled,
            kick_fd=ring.kick_fd,
            call_fd=ring.call_fd,
            worker=self._worker(ring.index // 2),
        )
        try:
            await self.handle.start_ring(ring.index, conf)
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise RingNotReady from error
            raise
        self._live.add(ring.index)
        self._base.pop(ring.index, None)

    def _worker(self, pair: int) -> int:
        """Return who is to poll a queue pair; -1: the core spreads. A pause doesn't undo a move."""
        affinity = self._port.rxq_affinity
        return affinity[pair] if pair < len(affinity) else self._moved.get(pair, -1)

    async def stop_ring(self, index: int) -> int:
        """Stop a ring, or forget a paused one; returns where it stood, for GET_VRING_BASE."""
        del self._wanted[index]
        if index in self._live:
            self._base[index] = await self.handle.stop_ring(index)
            self._live.discard(index)
        self.refresh()
        return self._base.pop(index)

    async def enable_ring(self, index: int, enabled: bool) -> None:
        """Enable or disable a ring."""
        self._wanted[index] = replace(self._wanted[index], enabled=enabled)
        if index in self._live:
            await self.handle.enable_ring(index, enabled)
        self.refresh()

    async def set_call(self, index: int, fd: int | None) -> None:
        """Change a ring's call descriptor."""
        self._wanted[index] = replace(self._wanted[index], call_fd=fd)
        if index in self._live:
            await self.handle.set_call(index, fd)

    async def rarp(self, mac: bytes) -> None:
        """Announce `mac` as the guest itself would; a port that is not in the tables yet has nobody to tell."""
        if mac[0] & 1 or not any(mac):
            log.warning("RARP ignored: not a unicast address", port=self.name, mac=mac.hex(":"))
            return
        with suppress(OSError):
            await self.handle.inject(rarp_announcement(mac), "ingress")

    async def set_mtu(self, mtu: int) -> None:
        """Nothing to do: what is enforced is the port's own `mtu`; the session keeps this one for `state`."""

    def features_set(self, features: int) -> None:
        """Nothing to do: every ring brings the negotiated features with it."""

    async def disconnected(self) -> None:
        """Stop what runs and drop the guest's memory."""
        self._wanted.clear()
        await self._swap([])
        self._base.clear()
        self._moved.clear()
        self.refresh()

    # ---- link state

    def tick(self) -> None:
        """Look, once a second, whether memory is shared, and at the link: its event may have been lost."""
        if self._live and not self._memory_seen:
            self._look_for_silence()
        self.refresh()

    def _look_for_silence(self) -> None:
        """Count the ticks in which kicks came and no avail index had moved."""
        rings = [self.handle.ring_status(index) for index in self._live]
        if not all(ring.silent for ring in rings):
            self._memory_seen, self._silent_ticks = True, 0
        elif any(ring.kicks for ring in rings):
            self._silent_ticks += 1

    def link(self) -> tuple[LinkReason | None, str | None]:
        """Return why the link is down and what to do about it, or (None, None) when it is up."""
        reason, detail = self._why_down()
        if reason is None:
            return None, None
        return reason, link_message(reason, self.name, self.endpoint.path, detail, mode=self._port.mode)

    def _why_down(self) -> tuple[LinkReason | None, str]:
        if not self._port.enabled:
            return LinkReason.ADMIN_DOWN, ""
        match self.endpoint.phase:
            case Phase.WAITING_FOR_FRONTEND:
                return LinkReason.WAITING_FOR_FRONTEND, self.endpoint.last_error or ""
            case Phase.FEATURES_REFUSED:
                return LinkReason.FEATURES_REFUSED, ", ".join(feature_names(self.endpoint.refused_features))
            case Phase.DRIVER_NOT_STARTED:
                return LinkReason.DRIVER_NOT_STARTED, self.endpoint.last_error or ""
            case phase:
                broken = self.handle.broken()
                if broken is not None:
                    return LinkReason.BROKEN, broken
                if self._silent_ticks >= NOT_SHARED_TICKS:
                    return LinkReason.MEMORY_NOT_SHARED, ""
                if phase is Phase.QUEUE_DISABLED:
                    return LinkReason.QUEUE_DISABLED, ""
                return (None if self._pairs_up() else LinkReason.DRIVER_NOT_STARTED), ""

    def _pairs_up(self) -> int:
        """Return how many queue pairs have both rings running and enabled."""
        up = {index for index, ring in self._wanted.items() if ring.enabled and index in self._live}
        return sum(index % 2 == 0 and index + 1 in up for index in up)

    def state(self) -> PortState:
        """Return what the API shows of this port."""
        reason, message = self.link()
        session, peer = self.endpoint.state, self.endpoint.peer
        features = session.features if session is not None else None
        return PortState(
            link="up" if reason is None else "down",
            reason=reason,
            message=message,
            frontend=Frontend(pid=peer.pid, uid=peer.uid) if peer is not None else None,
            features=feature_names(features) if features is not None else [],
            queues=Queues(offered=self._port.queues, enabled=self._pairs_up()),
            memory=Memory(regions=len(self._regions), bytes=sum(r.size for r in self._regions)),
            mtu=session.mtu if session is not None and session.mtu else self._port.mtu,
        )

    def queue_stats(self) -> list[QueueStats]:
        """Return the counters of the rings of the pairs that are offered: what a guest's transmit ring gives is rx."""
        stats = []
        for index in range(2 * self._port.queues):
            ring = self.handle.ring_status(index)
            stats.append(
                QueueStats(
                    queue=index // 2,
                    direction="rx" if index % 2 else "tx",
                    packets=ring.packets,
                    bytes=ring.bytes,
                    notifications=ring.notifications,
                    notifications_suppressed=ring.notifications_suppressed,
                    cycles=ring.cycles if index % 2 else None,
                    worker=ring.worker if ring.running else None,
                )
            )
        return stats

    def polled(self) -> list[PolledQueue]:
        """Return the rings that the guest transmits by."""
        found = []
        for index in sorted(self._live):
            if index % 2:
                ring = self.handle.ring_status(index)
                pinned = index // 2 < len(self._port.rxq_affinity)
                found.append(PolledQueue(index // 2, ring.worker, ring.packets, ring.cycles, pinned))
        return found

    async def move_queue(self, queue: int, worker: int) -> None:
        """Have another worker poll the ring that the guest transmits by."""
        before = dict(self._moved)
        self._moved[queue] = worker  # already: a pause on the way doesn't undo it either
        try:
            await self.handle.move_ring(2 * queue + 1, worker)
        except OSError:
            self._moved = before
            raise
