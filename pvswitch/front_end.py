# SPDX-License-Identifier: Apache-2.0
"""The front end's half of vhost-user, played as QEMU does: for guests without a VM.

`FrontEnd` is the conversation alone: it connects or listens, negotiates, and knows the messages for memory and
rings. What lies in memory and rings is the business of `pvswitch.guest.Guest`, which is built on it.

Order of messages: QEMU's hw/virtio/vhost.c and vhost-user.c, as PROTOCOL names it: on connect features and the
call descriptors; when the driver starts [MTU], ENABLE, FEATURES, memory, then NUM BASE ADDR KICK CALL of each ring;
on stop GET_VRING_BASE of each ring. Belongs to one event loop; nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from pvswitch.driver import Region, Vring
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
    Request,
    VringAddr,
    VringFd,
    VringState,
    encode_request,
)

FRONTEND_PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.RARP
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""What this front end knows of the vhost-user protocol."""

_DRIVER_OK = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK


class GuestError(PvswitchError):
    """The back end refused, hung up or didn't answer in time."""


class FrontEnd:
    """One vhost-user connection at a time; `timeout` (seconds) is the patience with every single answer."""

    def __init__(self, socket_path: str | os.PathLike[str], *, protocol_features: int, timeout: float) -> None:
        """Nothing happens yet. `protocol_features` are what to accept when offered."""
        self.path = Path(socket_path)
        self.offered = 0
        """Virtio features that the back end offered; `protocol` what was negotiated of the vhost-user ones."""
        self.protocol = 0
        self.max_pairs = 1
        """Queue pairs that the back end offered."""
        self._wanted_protocol = protocol_features
        self._timeout = timeout
        self._listener: socket.socket | None = None
        self._sock: socket.socket | None = None
        self._requests = asyncio.Lock()
        self._slots_filled = False

    # ---- the socket ----

    def listen(self) -> None:
        """Be the socket's server, for a port of mode `client`: every later connection is the switch's to make.

        Makes the socket file, in the place of an old one, as QEMU does. Raises OSError. May be repeated.
        """
        if self._listener is not None:
            return
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(str(self.path))
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
        self._listener = listener

    def stop_listening(self) -> None:
        """Remove the socket file; a connection stays. May be repeated."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)

    def hang_up(self) -> None:
        """Close the connection only."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def wait_hang_up(self) -> None:
        """Wait until the back end closes the connection; raises TimeoutError. No request may run meanwhile."""
        sock = self._connected()
        async with asyncio.timeout(self._timeout), self._requests:
            with contextlib.suppress(ConnectionError):
                while await asyncio.get_running_loop().sock_recv(sock, 4096):
                    pass
        self.hang_up()

    async def _open(self) -> None:
        """Connect, or where this side listens wait for the switch. Raises TimeoutError, or OSError from the socket."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            if self._listener is not None:
                self._sock, _ = await loop.sock_accept(self._listener)
                return
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, str(self.path))
            except BaseException:
                sock.close()
                raise
            self._sock = sock

    def _connected(self) -> socket.socket:
        if self._sock is None:
            raise GuestError("The guest isn't connected: await connect() first.")
        return self._sock

    # ---- messages ----

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

    async def negotiate(self) -> None:
        """Learn what the back end offers and settle the protocol; virtio features come when the driver starts."""
        self.protocol = 0
        self.max_pairs = 1
        self._slots_filled = False
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

    async def share_memory(self, regions: Sequence[Region], *, decoys: bool = False) -> None:
        """Give the back end memory: the whole table each time; slots once per connection, for they stay over a stop.

        With `decoys` it gets files of the same shape that nobody writes to, as from a VM with share=off.
        """
        if self._slots_filled:
            return
        fds = _decoys(regions) if decoys else [region.fd for region in regions]
        try:
            described = [MemRegion(r.gpa, r.size, r.uva, r.mmap_offset) for r in regions]
            if self._with(ProtocolFeature.CONFIGURE_MEM_SLOTS):
                for region, fd in zip(described, fds, strict=True):
                    await self.request(Request.ADD_MEM_REG, MemSlot(region), [fd])
                self._slots_filled = True
            else:
                await self.request(Request.SET_MEM_TABLE, MemTable(tuple(described)), fds)
        finally:
            if decoys:
                for fd in fds:
                    os.close(fd)

    async def set_call(self, ring: int, fd: int) -> None:
        """Tell by which descriptor the guest wants to be called."""
        await self.request(Request.SET_VRING_CALL, VringFd(ring, has_fd=True), [fd])

    async def start_ring(self, ring: int, vring: Vring, base: int) -> None:
        """Describe a ring that goes on at `base` (split: an index; packed: avail and used half); then it runs."""
        await self.request(Request.SET_VRING_NUM, VringState(ring, vring.num))
        await self.request(Request.SET_VRING_BASE, VringState(ring, base))
        addresses = VringAddr(ring, 0, vring.desc_uva, vring.used_uva, vring.avail_uva)
        await self.request(Request.SET_VRING_ADDR, addresses)
        await self.request(Request.SET_VRING_KICK, VringFd(ring, has_fd=True), [vring.kick_fd])
        await self.set_call(ring, vring.call_fd)

    async def stop_ring(self, ring: int) -> int:
        """Stop a ring: its base. After this the back end doesn't touch it."""
        reply = await self.request(Request.GET_VRING_BASE, VringState(ring, 0))
        assert isinstance(reply, VringState)
        return reply.num

    async def enable_ring(self, ring: int, enabled: bool) -> None:
        """Enable or disable a ring."""
        await self.request(Request.SET_VRING_ENABLE, VringState(ring, int(enabled)))

    async def _set_driver_ok(self, ok: bool) -> None:
        if self._with(ProtocolFeature.STATUS):
            await self.request(Request.SET_STATUS, U64(_DRIVER_OK if ok else 0))

    def _with(self, feature: ProtocolFeature) -> bool:
        return bool(self.protocol & feature)

    async def _number(self, request: Request) -> int:
        reply = await self.request(request, Empty())
        assert isinstance(reply, U64)
        return reply.value

    # ---- bytes ----

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
    fds = []
    for region in regions:
        fd = os.memfd_create("pvswitch-decoy", os.MFD_CLOEXEC)
        fds.append(fd)
        os.ftruncate(fd, region.mmap_offset + region.size)
    return fds
