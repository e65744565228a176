# SPDX-License-Identifier: Apache-2.0
"""Hundreds of hostile front ends, one after the other, while two guests ping each other through the same switch.

Each conversation begins by asking for the features, so that it is certain that the switch listens; what follows is
one of the ways below to be no good. Everything random comes from the conversation's number: a failure names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pvswitch.driver import Desc
from pvswitch.guest import (
    DRIVER_FEATURES,
    FRONTEND_PROTOCOL_FEATURES,
    OFFLOAD_FEATURES,
    Guest,
    GuestError,
)
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import (
    HEADER_SIZE,
    NEED_REPLY,
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
from tests.system.conftest import from_environment
from tests.wire.lab import PATIENCE, flush_frames, frame, held, until, until_holds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

CONVERSATIONS = from_environment("PVSWITCH_TEST_HOSTILE", 500)
# The first ones fill caches of the switch (allocator, imports); after them nothing may grow any more.
WARM_UP = 20
MEMORY = 1 << 20
FEATURES = int(DRIVER_FEATURES & ~Feature.MTU | OFFLOAD_FEATURES | Feature.PROTOCOL_FEATURES)
PROTOCOL = int(FRONTEND_PROTOCOL_FEATURES)
AVAIL, USED = 4096, 8192
GPA, UVA = 0x10000, 0x7F00_0000_0000


class Conversation:
    """A connected socket with everything random about it; `wild` is how likely a value makes no sense."""

    def __init__(self, sock: socket.socket, rng: random.Random) -> None:
        self.sock = sock
        self.rng = rng
        self.wild = rng.choice([0.0, 0.02, 0.3])

    async def send(self, data: bytes, fds: list[int] | None = None) -> None:
        """Descriptors go with the first byte; what the switch doesn't want to read is dropped with the socket."""
        try:
            sent = socket.send_fds(self.sock, [data], fds) if fds else 0
            async with asyncio.timeout(0.5):
                await asyncio.get_running_loop().sock_sendall(self.sock, data[sent:])
        except BlockingIOError:
            return

    async def drain(self) -> None:
        """Take what has been answered so far."""
        with contextlib.suppress(BlockingIOError):
            self.sock.recv(65_536)

    @contextlib.contextmanager
    def descriptors(self, most: int = 8) -> Iterator[list[int]]:
        """Some of everything that can be sent; the other ends are closed with them."""
        made: list[int] = []
        keep: list[int] = []
        for _ in range(self.rng.randint(0, most)):
            match self.rng.randint(0, 6):
                case 0 | 1:
                    made.append(os.eventfd(self.rng.choice([0, 1, 0xFFFF_FFFE]), os.EFD_CLOEXEC))
                case 2 | 3:
                    made.append(os.memfd_create("hostile", os.MFD_CLOEXEC))
                    os.ftruncate(made[-1], self.rng.choice([0, 1, 4096, MEMORY, MEMORY + 4096]))
                case 4:
                    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                    self.rng.shuffle(made_ends := list(ends))
                    made.append(made_ends[0])
                    keep.append(made_ends[1])
                case 5:
                    made.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
                case _:
                    one, other = socket.socketpair()
                    made.append(one.detach())
                    keep.append(other.detach())
        try:
            yield made
        finally:
            for fd in made + keep:
                os.close(fd)

    def number(self, *plausible: int) -> int:
        """What could be meant; or an edge, or noise."""
        if self.rng.random() >= self.wild:
            return self.rng.choice(plausible)
        edges = (0, 1, 2, 3, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF)
        return self.rng.choice([*edges, self.rng.getrandbits(32)])

    def wide(self, *plausible: int) -> int:
        """The same in 64 bits."""
        if self.rng.random() >= self.wild:
            return self.rng.choice(plausible)
        edges = (0, 4095, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096)
        return self.rng.choice([*edges, self.rng.getrandbits(64)])

    @contextlib.contextmanager
    def fitting(self, payload: Payload) -> Iterator[list[int]]:
        """The descriptors that belong to a message, or any."""
        if self.rng.random() < self.wild:
            with self.descriptors() as fds:
                yield fds
            return
        made: list[int] = []
        if isinstance(payload, MemTable | MemSlot):
            for _ in payload.regions if isinstance(payload, MemTable) else (payload,):
                made.append(os.memfd_create("hostile", os.MFD_CLOEXEC))
                os.ftruncate(made[-1], 2 * MEMORY)
                self.write_rings(made[-1])
        elif isinstance(payload, VringFd) and payload.has_fd:
            made.append(os.eventfd(self.rng.choice([0, 1]), os.EFD_CLOEXEC))
        try:
            yield made
        finally:
            for fd in made:
                os.close(fd)

    def write_rings(self, fd: int) -> None:
        """Noise, but for an avail ring that makes a few heads available, so that the descriptors are looked at."""
        heads = struct.pack(
            "<HH16H", 0, self.number(8) & 0xFFFF, *(self.number(*range(16)) & 0xFFFF for _ in range(16))
        )
        os.pwrite(fd, self.rng.randbytes(MEMORY // 8), 0)
        os.pwrite(fd, heads, AVAIL)
        os.pwrite(fd, bytes(4), USED)

    def region(self) -> MemRegion:
        return MemRegion(self.wide(GPA), self.wide(MEMORY, MEMORY // 2), self.wide(UVA), self.wide(0))

    def payload(self, request: Request) -> Payload:
        """One that belongs to the request, with values between plausible and absurd."""
        ring, wide = self.number(0, 1, 0, 1, 2, 3, 15), self.wide
        match request:
            case Request.SET_FEATURES | Request.SET_PROTOCOL_FEATURES | Request.SET_STATUS | Request.NET_SET_MTU:
                return U64(wide(FEATURES if request is Request.SET_FEATURES else PROTOCOL))
            case Request.SET_MEM_TABLE:
                return MemTable(tuple(self.region() for _ in range(self.number(1, 1, 1, 2) & 7)))
            case Request.ADD_MEM_REG | Request.REM_MEM_REG:
                return MemSlot(self.region())
            case Request.SET_VRING_NUM:
                return VringState(ring, self.number(16, 256))
            case Request.SET_VRING_BASE | Request.GET_VRING_BASE | Request.SET_VRING_ENABLE:
                return VringState(ring, self.number(0, 1))
            case Request.SET_VRING_ADDR:
                return VringAddr(ring, self.number(0), wide(UVA), wide(UVA + USED), wide(UVA + AVAIL))
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                return VringFd(ring & 0xFF, has_fd=self.rng.random() < 0.9)
            case Request.SEND_RARP:
                return RarpMac(self.rng.randbytes(6))
            case _:
                return Empty()


# ---- the ways to be no good ----


async def random_bytes(talk: Conversation) -> None:
    """Noise, with descriptors among it."""
    for _ in range(talk.rng.randint(1, 8)):
        with talk.descriptors() as fds:
            await talk.send(talk.rng.randbytes(talk.rng.randint(1, 4096)), fds)


async def random_payloads(talk: Conversation) -> None:
    """Headers that are right, with payloads that aren't: also shorter and longer than they say."""
    for _ in range(talk.rng.randint(1, 12)):
        request = talk.rng.choice([*[int(r) for r in Request], talk.rng.randint(0, 60)])
        body = talk.rng.randbytes(talk.rng.choice([0, 4, 8, 16, 24, 40, 72, 300]))
        size = talk.rng.choice([len(body)] * 6 + [0, 4096, 0xFFFF_FFFF])
        flags = VERSION | talk.rng.choice([0, NEED_REPLY, NEED_REPLY])
        with talk.descriptors() as fds:
            await talk.send(struct.pack("=III", request, flags, size) + body, fds)
        await talk.drain()


SETUP = [
    *(Request.SET_FEATURES, Request.SET_MEM_TABLE, Request.SET_VRING_NUM, Request.SET_VRING_ADDR),
    *(Request.SET_VRING_BASE, Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ENABLE),
]


async def random_order(talk: Conversation) -> None:
    """Messages that are right by themselves, in any order, again and again; the rings hold noise."""
    await talk.send(encode_request(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL)))
    likely = talk.rng.choice([SETUP, SETUP, list(Request)])
    for _ in range(talk.rng.randint(5, 100)):
        request = talk.rng.choice(likely if talk.rng.random() < 0.9 else list(Request))
        payload = talk.payload(request)
        with talk.fitting(payload) as fds:
            await talk.send(encode_request(request, payload, need_reply=talk.rng.random() < 0.5), fds)
        await talk.drain()


async def right_order(talk: Conversation) -> None:
    """As QEMU does it, with noise in the rings; then anything."""
    await talk.send(encode_request(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL)))
    talk.wild = 0.0
    for request in [*SETUP[:2], *SETUP[2:] * 6]:
        payload = talk.payload(request)
        with talk.fitting(payload) as fds:
            await talk.send(encode_request(request, payload, need_reply=True), fds)
    await asyncio.sleep(talk.rng.choice([0, 0.002]))
    talk.wild = 0.1
    await random_order(talk)


async def half_a_message(talk: Conversation) -> None:
    """It begins well, and then nothing more comes."""
    message = encode_request(Request.SET_MEM_TABLE, MemTable((MemRegion(GPA, MEMORY, UVA, 0),)), need_reply=True)
    with talk.descriptors() as fds:
        await talk.send(message[: talk.rng.randint(1, len(message) - 1)], fds)
    await asyncio.sleep(talk.rng.choice([0, 0, 0.01]))


async def hang_up_at_once(talk: Conversation) -> None:
    """Ask, and don't wait for the answer."""
    for _ in range(talk.rng.randint(0, 20)):
        await talk.send(encode_request(Request.GET_FEATURES, Empty()))


async def surplus_descriptors(talk: Conversation) -> None:
    """More than any message may carry, so that the kernel cuts them off."""
    with talk.descriptors(most=60) as fds:
        await talk.send(encode_request(Request.SET_MEM_TABLE, talk.payload(Request.SET_MEM_TABLE)), fds)
    await talk.drain()


WAYS: list[Callable[[Conversation], Awaitable[None]]] = [
    random_bytes,
    random_payloads,
    random_order,
    random_order,
    right_order,
    right_order,
    half_a_message,
    hang_up_at_once,
    surplus_descriptors,
]


async def converse(path: Path, number: int) -> None:
    """One hostile conversation; the switch may hang up whenever it wants."""
    rng = random.Random(number)
    sock = await connected(path)
    with sock, contextlib.suppress(ConnectionError, TimeoutError):
        await rng.choice(WAYS)(Conversation(sock, rng))


async def connected(path: Path) -> socket.socket:
    """A socket on which the switch answers: it turns front ends away until the last one is gone."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, str(path))
                await loop.sock_sendall(sock, encode_request(Request.GET_FEATURES, Empty()))
                answer = await loop.sock_recv(sock, HEADER_SIZE + 8)
                if answer:
                    assert Header.unpack(answer[:HEADER_SIZE]).request == Request.GET_FEATURES
                    return sock
            except (ConnectionError, BlockingIOError):
                pass
            except BaseException:
                sock.close()
                raise
            sock.close()
            await asyncio.sleep(0.001)


async def hostile_driver(path: Path, number: int) -> None:
    """A front end that is right, and a driver that writes anything into its rings."""
    rng = random.Random(number)
    (await connected(path)).close()
    async with asyncio.timeout(PATIENCE):
        while True:
            pairs = rng.choice((1, 1, 4))
            guest = Guest(path, queue_size=16, queue_pairs=pairs, features=DRIVER_FEATURES | OFFLOAD_FEATURES)
            try:
                await guest.connect()
                break
            except (GuestError, ConnectionError):
                guest.kill()
    low = guest.low
    low.memory(low.scratch_gpa, 2048)[:] = rng.randbytes(2048)  # net headers that ask for anything
    for ring in range(low.n_rings):
        for i in range(16):
            addr = rng.choice([low.scratch_gpa, low.scratch_gpa + 32, rng.getrandbits(64), 0])
            length = rng.choice([0, 12, 16, 64, 1500, 0xFFFF_FFFF])
            low.set_desc(ring, i, Desc(addr, length, rng.randint(0, 7), rng.choice([0, i + 1, 15, 16, 65_535])))
        for i in range(16):
            low.set_avail_entry(ring, i, rng.choice([*range(16), 16, 65_535]))
        low.set_avail_idx(ring, low.used_idx(ring) + rng.choice([1, 8, 16, 17, rng.getrandbits(16)]))
        low.kick(ring, force=True)
    await asyncio.sleep(rng.choice([0, 0.005]))
    guest.kill()


# ---- the others ----


async def ping_for_ever(a: Guest, b: Guest, done: asyncio.Event) -> int:
    """There and back, with nothing between; how often. A lost frame is a TimeoutError."""
    count = 0
    while not done.is_set():
        for sender, receiver in ((a, b), (b, a)):
            sent = frame(receiver.mac, sender.mac, seed=count)
            await sender.send(sent)
            while (got := await receiver.recv(PATIENCE)) != sent:
                assert got[6:12] not in (a.mac, b.mac), "a frame of theirs came twice or changed"
        count += 1
        await asyncio.sleep(0)
    return count


async def test_hostile_conversations_disturb_nobody(switch: SwitchProcess, stack: contextlib.AsyncExitStack) -> None:
    a, b = [await stack.enter_async_context(Guest(switch.port_socket(port))) for port in "ab"]
    evil = switch.port_socket("c")
    for one, other in ((a, b), (b, a)):
        await one.announce()
        await flush_frames([other], one)
    done = asyncio.Event()
    pings = asyncio.create_task(ping_for_ever(a, b, done))
    try:
        before = (0, 0, 0)
        for number in range(WARM_UP + CONVERSATIONS):
            if number == WARM_UP:
                await switch.wait_link("c", "waiting_for_frontend")
                await until(lambda: held(switch.pid)[2] == 2, "the memory of the first ones to be unmapped")
                before = held(switch.pid)
            try:
                await (hostile_driver if number % 10 == 9 else converse)(evil, number)
            except BaseException as error:
                error.add_note(f"in conversation {number}")
                raise
            assert switch.running, f"the switch died after conversation {number}:\n{switch.log()}"
            assert not pings.done(), f"the pings ended in conversation {number}"
    finally:
        done.set()
        count = await pings
    assert count > CONVERSATIONS

    (await connected(evil)).close()  # the last one is gone
    async with Guest(evil) as again:
        sent = frame(a.mac, again.mac)
        await again.send(sent)
        while await a.recv(PATIENCE) != sent:
            pass

    await switch.wait_link("c", "waiting_for_frontend")
    await until_holds(switch.pid, before)
    assert "Traceback" not in switch.log()
