# SPDX-License-Identifier: Apache-2.0
"""What the vhost-user tests share: a scripted back end, a front end's socket, a count of descriptors."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pvswitch.vhost_user.backend import (
    BACKEND_ERRORS,
    Effect,
    EnableRing,
    Region,
    RingNotReady,
    RingSetup,
    SetCall,
    StartRing,
    StopRing,
)
from pvswitch.vhost_user.connection import Endpoint
from pvswitch.vhost_user.fds import FdBag
from pvswitch.vhost_user.features import Feature, ProtocolFeature
from pvswitch.vhost_user.messages import (
    HEADER_SIZE,
    MESSAGES,
    NEED_REPLY,
    U64,
    VERSION,
    Header,
    MemRegion,
    MemTable,
    Payload,
    Request,
    VringAddr,
    VringFd,
    VringState,
    encode_request,
)
from pvswitch.vhost_user.session import Message, Offer, Phase, ProtocolError, Session

FEATURES = int(
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.ANY_LAYOUT
    | Feature.MRG_RXBUF
    | Feature.GUEST_ANNOUNCE
    | Feature.MTU
    | Feature.PROTOCOL_FEATURES
)
PROTOCOL = int(
    ProtocolFeature.REPLY_ACK
    | ProtocolFeature.RARP
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.MQ
)
OFFER = Offer(features=FEATURES, protocol_features=PROTOCOL)
REGION = MemRegion(gpa=0, size=1 << 20, uva=0x7F00_0000_0000, offset=0)
WAIT = 10.0
"""Seconds that anything may take before a test fails; nothing depends on taking less."""


def open_fds() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def startable(ring: RingSetup) -> bool:
    """What the core says of a ring's size, place and base; EINVAL if it is false."""
    if ring.features & Feature.RING_PACKED:
        return ring.desc % 16 == ring.avail % 4 == ring.used % 4 == 0 and ring.base & 0x7FFF < ring.num
    return ring.desc % 16 == ring.avail % 2 == ring.used % 4 == 0 and ring.num & (ring.num - 1) == 0


def phase_of(end: Session | Endpoint) -> Phase:
    """The phase as it is now, where a checker of types would think that it is still what a test has seen before."""
    return end.phase


def new_fd() -> int:
    """A descriptor of its own, as a peer would send one."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def ring_addr(index: int, *, shift: int = 0) -> VringAddr:
    """Addresses inside REGION, each ring's its own."""
    start = REGION.uva + index * 0x10000 + shift
    return VringAddr(index, 0, desc=start, used=start + 0x4000, avail=start + 0x2000)


class Conversation:
    """Drives a Session without any server: scripted results, every effect kept and checked for legality."""

    def __init__(self, offer: Offer = OFFER) -> None:
        self.session = Session(offer)
        self.effects: list[Effect] = []
        self.failures: dict[type, list[Exception]] = {}
        self.running: dict[int, RingSetup] = {}
        self.base = 7

    def fail(self, effect: type, *errors: Exception) -> None:
        """Have the next effects of this type raise."""
        self.failures.setdefault(effect, []).extend(errors)

    def perform(self, effect: Effect) -> int | None:
        self.effects.append(effect)
        self._check(effect)
        if self.failures.get(type(effect)):
            raise self.failures[type(effect)].pop(0)
        if isinstance(effect, StartRing) and not startable(effect.ring):
            raise OSError(errno.EINVAL, "Invalid argument")
        match effect:
            case StartRing(ring):
                self.running[ring.index] = ring
            case StopRing(index):
                del self.running[index]
                return self.base
        return None

    def _check(self, effect: Effect) -> None:
        match effect:
            case StartRing(ring):
                assert ring.index not in self.running
                assert 0 < ring.num <= 32768
                assert 0 <= ring.base <= 0xFFFF_FFFF
                for fd in (ring.kick_fd, ring.call_fd):
                    assert fd is None or os.fstat(fd)
            case StopRing(index) | EnableRing(index, _) | SetCall(index, _):
                assert index in self.running
            case _:
                pass

    def raw(self, header: Header, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes | None:
        work = self.session.handle(Message(header, payload, FdBag(fds)))
        try:
            effect = next(work)
            while True:
                try:
                    result = self.perform(effect)
                except (RingNotReady, *BACKEND_ERRORS) as error:
                    effect = work.throw(error)
                else:
                    effect = work.send(result)
        except StopIteration as done:
            reply: bytes | None = done.value
            return reply

    def say(
        self,
        request: int,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> Any:
        """Send one message; the decoded answer, an acknowledgement's number, or None."""
        body = payload.pack() if payload is not None else b""
        header = Header(request, VERSION | (NEED_REPLY if need_reply else 0), len(body))
        reply = self.raw(header, body, fds)
        return None if reply is None else decode_reply(request, reply)

    def negotiate(self, features: int = FEATURES, protocol: int = PROTOCOL) -> None:
        self.say(Request.SET_PROTOCOL_FEATURES, U64(protocol))
        self.say(Request.SET_FEATURES, U64(features))

    def give_memory(self) -> None:
        self.say(Request.SET_MEM_TABLE, MemTable((REGION,)), [new_fd()])

    def setup_ring(self, index: int, *, num: int = 256, base: int = 0) -> None:
        """Size, base, addresses, kick and call, in QEMU's order."""
        self.say(Request.SET_VRING_NUM, VringState(index, num))
        self.say(Request.SET_VRING_BASE, VringState(index, base))
        self.say(Request.SET_VRING_ADDR, ring_addr(index))
        self.say(Request.SET_VRING_KICK, VringFd(index, True), [new_fd()])
        self.say(Request.SET_VRING_CALL, VringFd(index, True), [new_fd()])

    def run(self) -> None:
        """Everything up to two running, enabled rings."""
        self.negotiate()
        self.give_memory()
        for index in (0, 1):
            self.say(Request.SET_VRING_ENABLE, VringState(index, 1))
            self.setup_ring(index)
        assert sorted(self.running) == [0, 1]

    def of(self, kind: type) -> list[Any]:
        """The effects of one type so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]


def refuses(
    talk: Conversation,
    request: int,
    payload: Payload | None = None,
    fds: Sequence[int] = (),
    match: str | None = None,
) -> None:
    """With NEED_REPLY the answer isn't 0 and the conversation goes on; without, it ends."""
    talk.session.protocol_features |= ProtocolFeature.REPLY_ACK
    copies = [new_fd() for _ in fds]
    assert talk.say(request, payload, copies, need_reply=True) != 0
    with pytest.raises(ProtocolError, match=match):
        talk.say(request, payload, fds)


def decode_reply(request: int, reply: bytes) -> Any:
    """Check a reply's header as QEMU does, and decode its payload."""
    header = Header.unpack(reply[:HEADER_SIZE])
    assert header.request == request
    assert header.flags == 5
    assert header.size == len(reply) - HEADER_SIZE
    spec = MESSAGES.get(request)
    payload = (spec.reply or U64 if spec is not None else U64).unpack(reply[HEADER_SIZE:])
    return payload.value if isinstance(payload, U64) else payload


@dataclass
class FakeBackend:
    """Records what is asked of it; `hook` may raise or wait."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    hook: Callable[[str], Any] | None = None
    running: set[int] = field(default_factory=set)

    async def _note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if self.hook is not None:
            outcome = self.hook(name)
            if outcome is not None:
                await outcome

    async def replace_memory(self, regions: Sequence[Region]) -> None:
        await self._note("replace_memory", tuple(regions))

    async def add_region(self, region: Region) -> None:
        await self._note("add_region", region)

    async def remove_region(self, region: Region) -> None:
        await self._note("remove_region", region)

    async def start_ring(self, ring: RingSetup) -> None:
        await self._note("start_ring", ring)
        self.running.add(ring.index)

    async def stop_ring(self, index: int) -> int:
        await self._note("stop_ring", index)
        self.running.remove(index)
        return 42

    async def enable_ring(self, index: int, enabled: bool) -> None:
        await self._note("enable_ring", index, enabled)

    async def set_call(self, index: int, fd: int | None) -> None:
        await self._note("set_call", index, fd)

    async def rarp(self, mac: bytes) -> None:
        await self._note("rarp", mac)

    async def set_mtu(self, mtu: int) -> None:
        await self._note("set_mtu", mtu)

    def features_set(self, features: int) -> None:
        self.calls.append(("features_set", features))

    async def disconnected(self) -> None:
        await self._note("disconnected")
        self.running.clear()

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class FrontEnd:
    """A front end's end of the socket: blocking, with a deadline; for use in a thread."""

    def __init__(self, end: Path | socket.socket) -> None:
        """Connect to a path, or take over a socket that is connected."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) if isinstance(end, Path) else end
        self.sock.settimeout(10)
        try:
            if isinstance(end, Path):
                self.sock.connect(str(end))
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes with descriptors, and close the latter here."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], rights)
        finally:
            for fd in fds:
                os.close(fd)

    def say(
        self,
        request: Request,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        self.send_raw(encode_request(request, payload, need_reply=need_reply), fds)

    def ask(
        self,
        request: Request,
        payload: Payload | None = None,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> Any:
        self.say(request, payload, fds, need_reply=need_reply)
        data = b""
        while len(data) < HEADER_SIZE or len(data) < HEADER_SIZE + Header.unpack(data[:HEADER_SIZE]).size:
            more = self.sock.recv(4096)
            assert more, "the server hung up instead of answering"
            data += more
        return decode_reply(request, data)

    def hung_up(self) -> bool:
        """Wait until the server closes; True if nothing was sent before that."""
        try:
            return self.sock.recv(4096) == b""
        except ConnectionResetError:
            return True


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 (the conditions are another object's state)
            await asyncio.sleep(0.005)


def run_rings(peer: FrontEnd) -> None:
    peer.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL))
    peer.say(Request.SET_FEATURES, U64(FEATURES))
    peer.say(Request.SET_MEM_TABLE, MemTable((REGION,)), [new_fd()])
    for index in (0, 1):
        peer.say(Request.SET_VRING_NUM, VringState(index, 256))
        peer.say(Request.SET_VRING_ADDR, ring_addr(index))
        peer.say(Request.SET_VRING_CALL, VringFd(index, True), [new_fd()])
        peer.say(Request.SET_VRING_KICK, VringFd(index, True), [new_fd()])
        peer.say(Request.SET_VRING_ENABLE, VringState(index, 1))
    assert peer.ask(Request.GET_FEATURES) == FEATURES
