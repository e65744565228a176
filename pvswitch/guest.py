# SPDX-License-Identifier: Apache-2.0
"""A guest without a VM: the C driver on a real vhost-user socket, with the front end's part played as QEMU does.

`Guest` is what the demo, the tests and the benchmarks use for a machine on a port:

    async with Guest("/run/pvswitch/ports/vm1.sock") as guest:
        await guest.send(frame)
        answer = await guest.recv(timeout=1)

It can misbehave where that is wanted: `share=False` gives the back end memory that isn't the guest's, `kill` hangs
up without a word, `request` sends any message, and `low` is the raw driver that can write any illegal ring.

Order of messages: QEMU's hw/virtio/vhost.c and vhost-user.c, as PROTOCOL names it: on connect features and the
call descriptors; when the driver starts [MTU], ENABLE, FEATURES, memory, then NUM BASE ADDR KICK CALL of each ring;
on stop GET_VRING_BASE of each ring. Belongs to one event loop; nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pvswitch.driver import (
    Driver,
    DriverConf,
    Layout,
    Load,
    LoadResult,
    NetHeader,
    Region,
    RingFull,
    generate,
    pingpong,
)
from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.features import DeviceStatus, Feature, ProtocolFeature
from pvswitch.vhost_user.messages import (
    HEADER_SIZE,
    MESSAGES,
    REPLY,
    U64,
    VERSION,
    Empty,
    Header,
    MemRegion,
    MemSlot,
    MemTable,
    Payload,
    RarpMac,
    Request,
    VringAddr,
    VringFd,
    VringState,
    encode_request,
)

DRIVER_FEATURES = (
    Feature.VERSION_1
    | Feature.ANY_LAYOUT
    | Feature.MRG_RXBUF
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.GUEST_ANNOUNCE
    | Feature.MTU
)
"""What a guest accepts when offered, unless told otherwise: all that the driver can do."""

FRONTEND_PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""What this front end knows of the vhost-user protocol."""


class GuestError(PvswitchError):
    """The back end refused, hung up or didn't answer in time."""


def random_mac() -> bytes:
    """A locally administered unicast address."""
    return b"\x02" + secrets.token_bytes(5)


class Guest:
    """One virtio-net guest with one queue pair. An async context manager: connected inside, closed after.

    `features` and `protocol_features` are what to accept when offered. Sizes are bytes; `timeout` (seconds) is the
    patience with every single answer, and with a full ring. `regions` to `seed` shape memory and rings (see
    `DriverConf`), `rx_layout` the receive buffers. `mtu` is told to the back end where NET_MTU was negotiated.
    `share=False`: the back end gets memory of the same shape that isn't the guest's, as from a VM with share=off.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        *,
        mac: bytes | None = None,
        features: int = DRIVER_FEATURES,
        protocol_features: int = FRONTEND_PROTOCOL_FEATURES,
        queue_size: int = 256,
        rx_buf_size: int = 2048,
        tx_buf_size: int = 2048,
        mem_size: int = 0,
        regions: int = 1,
        adjacent: bool = False,
        one_file: bool = False,
        seed: int = 1,
        rx_layout: Layout | None = None,
        mtu: int | None = None,
        share: bool = True,
        timeout: float = 10.0,
    ) -> None:
        """Nothing happens before `connect`."""
        self.path = Path(socket_path)
        self.mac = random_mac() if mac is None else mac
        self.mtu = mtu
        self.features = 0
        """Negotiated virtio features; `protocol` the vhost-user ones."""
        self.protocol = 0
        self.offered = 0
        """Features that the back end offered; `max_pairs` the queue pairs."""
        self.max_pairs = 1
        self.started = False
        self.bases = [0, 0]
        """Where each ring goes on: what GET_VRING_BASE answered, or 0."""
        self._wanted = features
        self._wanted_protocol = protocol_features
        self._conf = DriverConf(
            features=0,
            queue_size=queue_size,
            rx_buf_size=rx_buf_size,
            tx_buf_size=tx_buf_size,
            mem_size=mem_size,
            regions=regions,
            adjacent=adjacent,
            one_file=one_file,
            seed=seed,
        )
        self._rx_layout = rx_layout
        self._share = share
        self._slots_filled = False
        self._timeout = timeout
        self._low: Driver | None = None
        self._sock: socket.socket | None = None
        self._requests = asyncio.Lock()
        self._called: list[asyncio.Event] = []

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
        """Connect, negotiate and, with `start`, bring the rings up. Raises GuestError, or OSError from the socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.get_running_loop().sock_connect(sock, str(self.path))
        except BaseException:
            sock.close()
            raise
        self._sock = sock
        await self._negotiate()
        self._make_driver()
        for ring in range(self.low.n_rings):
            await self._set_call(ring)
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
        await self._share_memory()
        low.rx_fill(layout=self._rx_layout)
        for ring in range(low.n_rings):
            await self._start_ring(ring)
        if self._with(ProtocolFeature.STATUS):
            ok = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK
            await self.request(Request.SET_STATUS, U64(ok))
        if not self._with(ProtocolFeature.REPLY_ACK):
            # Messages are served in order: with this answer all of them are done, as QEMU makes sure too.
            await self._number(Request.GET_FEATURES)
        self.started = True
        low.kick(0)

    async def stop(self) -> list[int]:
        """Stop the rings: their bases (next avail index). After this the back end doesn't touch memory."""
        for ring in range(self.low.n_rings):
            reply = await self.request(Request.GET_VRING_BASE, VringState(ring, 0))
            assert isinstance(reply, VringState)
            self.bases[ring] = reply.num
        self.started = False
        if self._with(ProtocolFeature.STATUS):
            await self.request(Request.SET_STATUS, U64(0))
        return list(self.bases)

    async def reconnect(self) -> None:
        """Hang up and come back with the same memory and rings, resumed at used->idx as QEMU does."""
        self.hang_up()
        low = self.low
        self.bases = [low.used_idx(ring) for ring in range(low.n_rings)]
        await self.connect()

    async def restart(self) -> None:
        """What a reboot does: stop, reset the driver, start with empty rings."""
        await self.stop()
        self.low.reset(self.features)
        self.bases = [0, 0]
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
        if self._low is not None and not self._low.closed:
            for ring in range(self._low.n_rings):
                asyncio.get_running_loop().remove_reader(self._low.vring(ring).call_fd)
            self._low.close()

    def hang_up(self) -> None:
        """Close the socket only; memory and rings stay."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self.started = False

    async def wait_hang_up(self) -> None:
        """Wait until the back end closes the connection; raises TimeoutError. No request may run meanwhile."""
        sock = self._connected()
        async with asyncio.timeout(self._timeout), self._requests:
            with contextlib.suppress(ConnectionError):
                while await asyncio.get_running_loop().sock_recv(sock, 4096):
                    pass
        self.hang_up()

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
        layout: Layout | None = None,
        header: bytes | None = None,
        kick: bool = True,
    ) -> None:
        """Send one Ethernet frame (without FCS); waits for room as long as patience lasts (TimeoutError)."""
        low = self.low
        async with asyncio.timeout(self._timeout):
            while True:
                self._called[1].clear()
                low.tx_reap()
                try:
                    low.tx(frame, header=header, layout=layout)
                    break
                except RingFull:
                    low.kick(1)
                    if not low.arm(1):
                        await self._called[1].wait()
        if kick:
            low.kick(1)

    async def drain(self) -> None:
        """Wait until the back end has taken every frame sent; raises TimeoutError."""
        low = self.low
        async with asyncio.timeout(self._timeout):
            while True:
                self._called[1].clear()
                low.tx_reap()
                if low.counters(1).in_flight == 0:
                    return
                if not low.arm(1):
                    await self._called[1].wait()

    def receive_nowait(self) -> tuple[bytes, NetHeader] | None:
        """A received frame with its net header, or None."""
        received = self.low.rx()
        if received is not None:
            self.low.kick(0)
        return received

    def recv_nowait(self) -> bytes | None:
        """A received frame, or None."""
        received = self.receive_nowait()
        return None if received is None else received[0]

    async def recv(self, timeout: float = 10.0) -> bytes:  # noqa: ASYNC109 - the call most often written
        """The next frame, waited for on the call descriptor; TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while True:
                # Cleared before looking: a call that comes after the look sets it again, so none is missed.
                self._called[0].clear()
                frame = self.recv_nowait()
                if frame is not None:
                    return frame
                if not self.low.arm(0):
                    await self._called[0].wait()

    async def generate(self, to: Sequence[Guest], load: Load) -> LoadResult:
        """Closed-loop load to other guests, in a thread; none of them may be used meanwhile."""
        return await asyncio.to_thread(generate, self.low, [guest.low for guest in to], load)

    async def pingpong(self, peer: Guest, count: int, *, interval: float = 0.0, length: int = 60) -> list[int | None]:
        """Round trip times in ns, in a thread; None for a frame that didn't come back within a second."""
        load = Load(dst=peer.mac, src=self.mac, len=length, stall=1.0)
        return await asyncio.to_thread(pingpong, self.low, peer.low, load, count, interval)

    # ---- vhost-user ----

    async def request(
        self,
        request: Request,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        ack: bool | None = None,
    ) -> Payload | None:
        """Send one message, and take its answer where it has one.

        `ack` None asks for an acknowledgement wherever REPLY_ACK allows it, so that a refusal shows at once. Raises
        GuestError for a refusal, a hang-up, an answer out of step, or none in time.
        """
        sock = self._connected()
        reply_type = MESSAGES[request].reply
        asks = reply_type is None and self._with(ProtocolFeature.REPLY_ACK) and ack is not False
        async with self._requests:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._send(sock, encode_request(request, payload, need_reply=asks), fds)
                    if reply_type is None and not asks:
                        return None
                    answer = await self._receive(sock, request)
            except TimeoutError as error:
                raise GuestError(f"The back end didn't answer {request.name} in {self._timeout:g} s.") from error
        if reply_type is not None:
            return reply_type.unpack(answer)
        if U64.unpack(answer).value != 0:
            raise GuestError(f"The back end refused {request.name}.")
        return None

    async def set_enabled(self, enabled: bool) -> None:
        """Enable or disable both rings."""
        for ring in range(2):
            await self.request(Request.SET_VRING_ENABLE, VringState(ring, int(enabled)))

    async def announce(self) -> None:
        """Ask for a RARP with this guest's MAC, as after a migration."""
        await self.request(Request.SEND_RARP, RarpMac(self.mac))

    def _connected(self) -> socket.socket:
        if self._sock is None:
            raise GuestError("The guest isn't connected: await connect() first.")
        return self._sock

    def _with(self, feature: ProtocolFeature) -> bool:
        return bool(self.protocol & feature)

    async def _number(self, request: Request) -> int:
        reply = await self.request(request, Empty())
        assert isinstance(reply, U64)
        return reply.value

    async def _negotiate(self) -> None:
        self.protocol = 0
        self.offered = await self._number(Request.GET_FEATURES)
        if self.offered & Feature.PROTOCOL_FEATURES:
            offer = await self._number(Request.GET_PROTOCOL_FEATURES)
            protocol = offer & self._wanted_protocol
            await self.request(Request.SET_PROTOCOL_FEATURES, U64(protocol))
            self.protocol = protocol
        if self._with(ProtocolFeature.MQ):
            self.max_pairs = await self._number(Request.GET_QUEUE_NUM)
        if self._with(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            await self._number(Request.GET_MAX_MEM_SLOTS)
        await self.request(Request.SET_OWNER)
        self.offered = await self._number(Request.GET_FEATURES)
        protocol_bit = self.offered & Feature.PROTOCOL_FEATURES
        self.features = (self.offered & self._wanted) | protocol_bit
        self._slots_filled = False

    def _make_driver(self) -> None:
        if self._low is not None and not self._low.closed:
            return
        self._low = Driver(replace(self._conf, features=self.features))
        self.bases = [0] * self._low.n_rings
        self._called = [asyncio.Event() for _ in range(self._low.n_rings)]
        for ring, event in enumerate(self._called):
            fd = self._low.vring(ring).call_fd
            asyncio.get_running_loop().add_reader(fd, _on_call, fd, event)

    async def _set_call(self, ring: int) -> None:
        fd = self.low.vring(ring).call_fd
        await self.request(Request.SET_VRING_CALL, VringFd(ring, has_fd=True), [fd])

    async def _start_ring(self, ring: int) -> None:
        vring = self.low.vring(ring)
        await self.request(Request.SET_VRING_NUM, VringState(ring, vring.num))
        await self.request(Request.SET_VRING_BASE, VringState(ring, self.bases[ring]))
        addresses = VringAddr(ring, 0, vring.desc_uva, vring.used_uva, vring.avail_uva)
        await self.request(Request.SET_VRING_ADDR, addresses)
        await self.request(Request.SET_VRING_KICK, VringFd(ring, has_fd=True), [vring.kick_fd])
        await self._set_call(ring)

    async def _share_memory(self) -> None:
        """The whole table each time; slots only once per connection, because they stay over a stop."""
        if self._slots_filled:
            return
        regions = self.low.regions()
        fds = [region.fd for region in regions] if self._share else _decoys(regions)
        try:
            described = [MemRegion(r.gpa, r.size, r.uva, r.mmap_offset) for r in regions]
            if self._with(ProtocolFeature.CONFIGURE_MEM_SLOTS):
                for region, fd in zip(described, fds, strict=True):
                    await self.request(Request.ADD_MEM_REG, MemSlot(region), [fd])
                self._slots_filled = True
            else:
                await self.request(Request.SET_MEM_TABLE, MemTable(tuple(described)), fds)
        finally:
            if not self._share:
                for fd in fds:
                    os.close(fd)

    async def _send(self, sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sent = socket.send_fds(sock, [data], list(fds), socket.MSG_NOSIGNAL)
                break
            except BlockingIOError:
                # The kernel's buffer is full of messages that the back end hasn't read yet.
                await asyncio.sleep(0.001)
            except OSError as error:
                raise GuestError(f"The back end hung up: {error.strerror}.") from error
        await loop.sock_sendall(sock, data[sent:])

    async def _receive(self, sock: socket.socket, request: Request) -> bytes:
        header = Header.unpack(await self._read(sock, HEADER_SIZE))
        if header.request != request or header.flags != VERSION | REPLY:
            raise GuestError(f"The back end is out of step: {request.name} was answered by {header}.")
        return await self._read(sock, header.size)

    async def _read(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
            except ConnectionError as error:
                raise GuestError(f"The back end hung up: {error.strerror}.") from error
            if not more:
                raise GuestError("The back end hung up: see its log for the reason.")
            data += more
        return data


def _decoys(regions: Sequence[Region]) -> list[int]:
    """Files of the same shape that nobody writes to."""
    fds = []
    for region in regions:
        fd = os.memfd_create("pvswitch-decoy", os.MFD_CLOEXEC)
        fds.append(fd)
        os.ftruncate(fd, region.mmap_offset + region.size)
    return fds


def _on_call(fd: int, event: asyncio.Event) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(fd)
    event.set()
