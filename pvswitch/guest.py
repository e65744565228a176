# SPDX-License-Identifier: Apache-2.0
"""A guest without a VM: the C driver on a real vhost-user socket, with the front end's part played as QEMU does.

`Guest` is what the demo, the tests and the benchmarks use for a machine on a port:

    async with Guest("/run/pvswitch/ports/vm1.sock") as guest:
        await guest.send(frame)
        answer = await guest.recv(timeout=1)

It can misbehave where that is wanted: `share=False` gives the back end memory that isn't the guest's, `kill` hangs
up without a word, `request` sends any message, and `low` is the raw driver that can write any illegal ring.

With several queue pairs the guest sends by the pair it is told and receives by all; rings are numbered as vhost-user
does, 2*pair receives and 2*pair+1 transmits. The conversation with the switch is `pvswitch.front_end`'s. Belongs to
one event loop; nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from pvswitch.driver import Driver, DriverConf, Layout, RingFull
from pvswitch.front_end import FRONTEND_PROTOCOL_FEATURES, FrontEnd, GuestError
from pvswitch.generator import Load, LoadResult, generate, pingpong
from pvswitch.net_header import NetHeader
from pvswitch.vhost_user.features import Feature, ProtocolFeature
from pvswitch.vhost_user.messages import U64, RarpMac, Request, VringFd

__all__ = [
    "DRIVER_FEATURES",
    "FRONTEND_PROTOCOL_FEATURES",
    "OFFLOAD_FEATURES",
    "Guest",
    "GuestError",
    "Received",
    "random_mac",
]

DRIVER_FEATURES = (
    Feature.VERSION_1
    | Feature.ANY_LAYOUT
    | Feature.MRG_RXBUF
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.GUEST_ANNOUNCE
    | Feature.MTU
    | Feature.MQ
)
"""What a guest accepts when offered, unless told otherwise: all that the driver can do with split rings, but offloads
and IN_ORDER."""

OFFLOAD_FEATURES = (
    Feature.CSUM
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.HOST_USO
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.GUEST_USO4
    | Feature.GUEST_USO6
)
"""All offloads: with these a guest gets frames as they were sent, unfinished, and may send such."""


class Received(NamedTuple):
    """A received frame, its net header, and the queue pair by which it came."""

    frame: bytes
    header: NetHeader
    pair: int


def random_mac() -> bytes:
    """A locally administered unicast address."""
    return b"\x02" + secrets.token_bytes(5)


class Guest(FrontEnd):
    """One virtio-net guest. An async context manager: connected inside, closed after.

    `features` and `protocol_features` are what to accept when offered; `packed` and `in_order` add RING_PACKED and
    IN_ORDER. `queue_pairs` are what its NIC has: the switch must offer as many, and one is used where the guest doesn't
    take MQ. Sizes are bytes; `timeout` (seconds) is the patience with every single answer, and with a full ring.
    `regions` to `seed` shape memory and rings (see `DriverConf`), `rx_layout` the receive buffers. `mtu` is told to the
    back end where NET_MTU was negotiated.
    `share=False`: the back end gets memory of the same shape that isn't the guest's, as from a VM with share=off.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        *,
        mac: bytes | None = None,
        features: int = DRIVER_FEATURES,
        packed: bool = False,
        in_order: bool = False,
        protocol_features: int = FRONTEND_PROTOCOL_FEATURES,
        queue_pairs: int = 1,
        queue_size: int = 256,
        rx_buf_size: int = 2048,
        tx_buf_size: int = 2048,
        mem_size: int = 0,
        regions: int = 1,
        adjacent: bool = False,
        one_file: bool = False,
        shuffle: bool = False,
        preset: bool = False,
        seed: int = 1,
        rx_layout: Layout | None = None,
        mtu: int | None = None,
        share: bool = True,
        timeout: float = 10.0,
    ) -> None:
        """Nothing happens before `connect`."""
        super().__init__(socket_path, protocol_features=protocol_features, timeout=timeout)
        self.mac = random_mac() if mac is None else mac
        self.mtu = mtu
        self.features = 0
        """Negotiated virtio features."""
        self.pairs = 1
        """Queue pairs in use."""
        self.started = False
        self.bases = [0, 0]
        """Where each ring goes on: what GET_VRING_BASE answered, or the beginning."""
        features |= packed * Feature.RING_PACKED | in_order * Feature.IN_ORDER
        self._wanted = features if queue_pairs > 1 else features & ~Feature.MQ
        self._conf = DriverConf(
            features=0,
            queue_size=queue_size,
            queue_pairs=queue_pairs,
            rx_buf_size=rx_buf_size,
            tx_buf_size=tx_buf_size,
            mem_size=mem_size,
            regions=regions,
            adjacent=adjacent,
            one_file=one_file,
            shuffle=shuffle,
            preset=preset,
            seed=seed,
        )
        self._rx_layout = rx_layout
        self._share = share
        self._low: Driver | None = None
        self._called: list[asyncio.Event] = []
        self._look_first = 0

    # ---- life ----

    async def __aenter__(self) -> Self:
        """Connect and start."""
        try:
            await self.connect()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close in order; abruptly when the block failed."""
        if error is None:
            await self.close()
        else:
            self.kill()

    async def connect(self, *, start: bool = True) -> None:
        """Connect, or after `listen` wait for the switch; negotiate and, with `start`, bring the rings up.

        After a hang-up the driver goes on with the features that it has. Raises GuestError, or OSError from the socket.
        """
        await self._open()
        await self.negotiate()
        if self._conf.queue_pairs > self.max_pairs:
            raise GuestError(f"The NIC has {self._conf.queue_pairs} queue pairs, the back end offers {self.max_pairs}.")
        self._make_driver()
        for ring in range(self.low.n_rings):
            await self.set_call(ring, self.low.vring(ring).call_fd)
            await self.request(Request.SET_VRING_ERR, VringFd(ring, has_fd=False))
        if start:
            await self.start()

    async def start(self) -> None:
        """The driver is ready (DRIVER_OK): enable, memory, rings. After `stop` the rings go on where they were."""
        low = self.low
        if self._with(ProtocolFeature.NET_MTU) and self.mtu is not None:
            await self.request(Request.NET_SET_MTU, U64(self.mtu))
        if self.features & Feature.PROTOCOL_FEATURES:
            await self.set_enabled(True)
        await self.request(Request.SET_FEATURES, U64(self.features))
        await self.share_memory(low.regions(), decoys=not self._share)
        for pair in range(self.pairs):
            low.rx_fill(layout=self._rx_layout, pair=pair)
        for ring in range(low.n_rings):
            await self.start_ring(ring, low.vring(ring), self.bases[ring])
        await self._set_driver_ok(True)
        if not self._with(ProtocolFeature.REPLY_ACK):
            # Messages are served in order: with this answer all of them are done, as QEMU makes sure too.
            await self._number(Request.GET_FEATURES)
        self.started = True
        for pair in range(self.pairs):
            low.kick(2 * pair)

    async def stop(self) -> list[int]:
        """Stop the rings: their bases. After this the back end doesn't touch memory."""
        for ring in range(self.low.n_rings):
            self.bases[ring] = await self.stop_ring(ring)
        self.started = False
        await self._set_driver_ok(False)
        return list(self.bases)

    async def reconnect(self) -> None:
        """Hang up and come back with the same memory and rings, resumed behind what is used, as QEMU does (split)."""
        self.hang_up()
        self.bases = self._present_bases()
        await self.connect()

    async def restart(self) -> None:
        """What a reboot does: stop, reset the driver, start with empty rings."""
        await self.stop()
        self.low.reset(self.features)
        self.bases = self._present_bases()
        await self.start()

    async def close(self) -> None:
        """Stop, hang up and free everything; a back end that is gone doesn't matter. May be repeated."""
        if self._sock is not None and self.started:
            with contextlib.suppress(GuestError, OSError):
                await self.stop()
        self.kill()

    def kill(self) -> None:
        """Hang up without a word and free everything, as a killed front end does. May be repeated."""
        self.hang_up()
        self.stop_listening()
        if self._low is not None and not self._low.closed:
            for ring in range(self._low.n_rings):
                asyncio.get_running_loop().remove_reader(self._low.vring(ring).call_fd)
            self._low.close()

    def hang_up(self) -> None:
        """Close the connection only; memory and rings stay."""
        super().hang_up()
        self.started = False

    async def set_enabled(self, enabled: bool, pair: int | None = None) -> None:
        """Enable or disable both rings of a pair, or of all."""
        for ring in range(self.low.n_rings):
            if pair in (None, ring // 2):
                await self.enable_ring(ring, enabled)

    async def announce(self) -> None:
        """Ask for a RARP with this guest's MAC, as after a migration."""
        await self.request(Request.SEND_RARP, RarpMac(self.mac))

    def _present_bases(self) -> list[int]:
        return [self.low.vring_base(ring) for ring in range(self.low.n_rings)]

    def _make_driver(self) -> None:
        protocol_bit = self.offered & Feature.PROTOCOL_FEATURES
        if self._low is not None and not self._low.closed:
            self.features = self._low.features & ~Feature.PROTOCOL_FEATURES | protocol_bit
            return
        self.features = (self.offered & self._wanted) | protocol_bit
        self.pairs = self._conf.queue_pairs if self.features & Feature.MQ else 1
        if self._conf.queue_size & (self._conf.queue_size - 1) and not self.features & Feature.RING_PACKED:
            raise GuestError(f"A ring of {self._conf.queue_size} has to be packed, which the back end doesn't offer.")
        self._low = Driver(replace(self._conf, features=self.features, queue_pairs=self.pairs))
        self.bases = self._present_bases()
        # Receive rings share an event: who receives looks at all of them.
        receive = asyncio.Event()
        self._called = [asyncio.Event() if ring % 2 else receive for ring in range(self._low.n_rings)]
        for ring, event in enumerate(self._called):
            fd = self._low.vring(ring).call_fd
            asyncio.get_running_loop().add_reader(fd, _on_call, fd, event)

    # ---- frames ----

    @property
    def low(self) -> Driver:
        """The raw driver; raises GuestError before `connect`."""
        if self._low is None:
            raise GuestError("The guest was never connected: await connect() first.")
        return self._low

    async def send(
        self,
        frame: bytes,
        *,
        pair: int = 0,
        layout: Layout | None = None,
        header: bytes | NetHeader | None = None,
        kick: bool = True,
    ) -> None:
        """Send one Ethernet frame (without FCS); waits for room as long as patience lasts (TimeoutError)."""
        low, ring = self.low, 2 * pair + 1
        if isinstance(header, NetHeader):
            header = header.pack(low.hdr_len)
        async with asyncio.timeout(self._timeout):
            while True:
                self._called[ring].clear()
                low.tx_reap(pair)
                try:
                    low.tx(frame, header=header, layout=layout, pair=pair)
                    break
                except RingFull:
                    low.kick(ring)
                    if not low.arm(ring):
                        await self._called[ring].wait()
        if kick:
            low.kick(ring)

    async def drain(self) -> None:
        """Wait until the back end has taken every frame sent; raises TimeoutError."""
        low = self.low
        async with asyncio.timeout(self._timeout):
            for pair in range(self.pairs):
                ring = 2 * pair + 1
                while True:
                    self._called[ring].clear()
                    low.tx_reap(pair)
                    if low.counters(ring).in_flight == 0:
                        break
                    if not low.arm(ring):
                        await self._called[ring].wait()

    def receive_nowait(self, pair: int | None = None) -> Received | None:
        """A received frame, by the given pair or by any in turn, or None."""
        for one in self._receiving(pair):
            got = self.low.rx(one)
            if got is not None:
                self.low.kick(2 * one)
                self._look_first = (one + 1) % self.pairs
                return Received(*got, one)
        return None

    def recv_nowait(self) -> bytes | None:
        """A received frame, or None."""
        received = self.receive_nowait()
        return None if received is None else received.frame

    async def receive(self, timeout: float = 10.0, pair: int | None = None) -> Received:  # noqa: ASYNC109 - as recv
        """The next frame with its header and pair, waited for on the call descriptors; TimeoutError."""
        async with asyncio.timeout(timeout):
            while True:
                # Cleared before looking: a call that comes after the look sets it again, so none is missed.
                self._called[0].clear()
                received = self.receive_nowait(pair)
                if received is not None:
                    return received
                if not any(self.low.arm(2 * one) for one in self._receiving(pair)):
                    await self._called[0].wait()

    async def recv(self, timeout: float = 10.0, pair: int | None = None) -> bytes:  # noqa: ASYNC109 - most often called
        """The next frame; TimeoutError after `timeout` seconds."""
        return (await self.receive(timeout, pair)).frame

    def _receiving(self, pair: int | None) -> list[int]:
        """The pairs to look at, in this order: every one is the first in its turn."""
        if pair is not None:
            return [pair]
        return [(self._look_first + i) % self.pairs for i in range(self.pairs)]

    async def generate(self, to: Sequence[Guest], load: Load) -> LoadResult:
        """Closed-loop load to other guests, in a thread; none of them may be used meanwhile."""
        return await asyncio.to_thread(generate, self.low, [guest.low for guest in to], load)

    async def pingpong(self, peer: Guest, count: int, *, interval: float = 0.0, length: int = 60) -> list[int | None]:
        """Round trip times in ns, in a thread; None for a frame that didn't come back within a second."""
        load = Load(dst=peer.mac, src=self.mac, len=length, stall=1.0)
        return await asyncio.to_thread(pingpong, self.low, peer.low, load, count, interval)


def _on_call(fd: int, event: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
    event.set()
