# SPDX-License-Identifier: Apache-2.0
"""`Guest` over a real vhost-user socket, against a slow switch of two ports made of the reference device."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pvswitch import driver
from pvswitch.driver import Layout
from pvswitch.generator import Load
from pvswitch.guest import DRIVER_FEATURES, FRONTEND_PROTOCOL_FEATURES, Guest, GuestError
from pvswitch.vhost_user.backend import Region, RingNotReady, RingSetup
from pvswitch.vhost_user.client import VhostUserClient
from pvswitch.vhost_user.features import Feature, ProtocolFeature
from pvswitch.vhost_user.messages import Request, VringState
from pvswitch.vhost_user.server import VhostUserServer
from pvswitch.vhost_user.session import Offer
from tests.oracle import ReferenceDevice, ReferenceRing

PAIRS = 4
OFFER = Offer(
    features=int(DRIVER_FEATURES | Feature.PROTOCOL_FEATURES),
    protocol_features=int(FRONTEND_PROTOCOL_FEATURES),
    queue_pairs=PAIRS,
)


class SlowPort:
    """A back end: what its guest sends goes to `peer`, by the pair it came by or the first that is enabled there.

    What doesn't fit is dropped.
    """

    def __init__(self) -> None:
        self.peer = self
        self.features = 0
        self.mtu = 0
        self.regions: list[driver.Region] = []
        self.setups: dict[int, RingSetup] = {}
        self.devices: dict[int, ReferenceDevice] = {}

    @property
    def device(self) -> ReferenceDevice | None:
        return self.devices.get(0)

    async def replace_memory(self, regions: Sequence[Region]) -> None:
        old, self.regions = self.regions, [_copy(region) for region in regions]
        for region in old:
            os.close(region.fd)

    async def add_region(self, region: Region) -> None:
        self.regions.append(_copy(region))

    async def remove_region(self, region: Region) -> None:
        raise OSError("not needed here")

    async def start_ring(self, ring: RingSetup) -> None:
        if not any(r.uva <= ring.desc < r.uva + r.size for r in self.regions):
            raise RingNotReady
        fds = {"kick_fd": os.dup(ring.kick_fd or 0), "call_fd": os.dup(ring.call_fd or 0)}
        self.setups[ring.index] = replace(ring, **fds)  # type: ignore[arg-type]
        pair = ring.index // 2
        if 2 * pair in self.setups and 2 * pair + 1 in self.setups:
            setups = self.setups[2 * pair], self.setups[2 * pair + 1]
            rx, tx = (_vring(setup) for setup in setups)
            bases = (setups[0].base, setups[1].base)
            self.devices[pair] = ReferenceDevice(self.regions, rx, tx, self.features, base=bases)
            asyncio.get_running_loop().add_reader(tx.kick_fd, self.pump, pair)
            self.pump(pair)

    async def stop_ring(self, index: int) -> int:
        device = self.devices[index // 2]
        ring = (device.rx, device.tx)[index % 2]
        assert isinstance(ring, ReferenceRing)
        base = ring.last_avail
        self._drop_ring(index)
        return base

    def _drop_ring(self, index: int) -> None:
        setup = self.setups.pop(index)
        asyncio.get_running_loop().remove_reader(setup.kick_fd or 0)
        for fd in (setup.kick_fd, setup.call_fd):
            os.close(fd or 0)
        if index ^ 1 not in self.setups and index // 2 in self.devices:
            self.devices.pop(index // 2).close()

    async def enable_ring(self, index: int, enabled: bool) -> None:
        self.setups[index] = replace(self.setups[index], enabled=enabled)

    async def set_call(self, index: int, fd: int | None) -> None:
        old = self.setups[index]
        self.setups[index] = replace(old, call_fd=os.dup(fd or 0))
        os.close(old.call_fd or 0)
        if index // 2 in self.devices:
            device = self.devices[index // 2]
            ring = (device.rx, device.tx)[index % 2]
            ring.vring = _vring(self.setups[index])
            os.eventfd_write(ring.vring.call_fd, 1)

    async def rarp(self, mac: bytes) -> None:
        self.peer.give(b"\xff" * 6 + mac + b"\x80\x35" + bytes(46), 0)

    async def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu

    def features_set(self, features: int) -> None:
        self.features = features

    async def disconnected(self) -> None:
        for index in list(self.setups):
            self._drop_ring(index)
        for region in self.regions:
            os.close(region.fd)
        self.regions = []

    def give(self, frame: bytes, pair: int) -> None:
        enabled = [p for p in self.devices if self.setups[2 * p].enabled]
        if enabled:
            self.devices[pair if pair in enabled else enabled[0]].give(frame)

    def pump(self, pair: int) -> None:
        if pair not in self.devices or not {2 * pair, 2 * pair + 1} <= set(self.setups):
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.setups[2 * pair + 1].kick_fd or 0)
        device = self.devices[pair]
        device.tx.ask_for_kicks(True)
        while (taken := device.take()) is not None:
            device.tx.ask_for_kicks(True)
            self.peer.give(taken[1], pair)


def _copy(region: Region) -> driver.Region:
    return driver.Region(region.gpa, region.size, region.uva, region.offset, os.dup(region.fd))


def _vring(ring: RingSetup) -> driver.Vring:
    return driver.Vring(ring.num, ring.desc, ring.avail, ring.used, ring.kick_fd or 0, ring.call_fd or 0)


class Bench:
    """Two ports that are each other's peer, with their servers."""

    def __init__(self, path: Path, offer: Offer) -> None:
        self.ports = [SlowPort(), SlowPort()]
        self.ports[0].peer, self.ports[1].peer = self.ports[1], self.ports[0]
        self.paths = [path / "a.sock", path / "b.sock"]
        self.servers = [
            VhostUserServer(p, offer=offer, backend=port) for p, port in zip(self.paths, self.ports, strict=True)
        ]


@asynccontextmanager
async def bench(path: Path, offer: Offer = OFFER) -> AsyncIterator[Bench]:
    b = Bench(path, offer)
    async with AsyncExitStack() as stack:
        for server in b.servers:
            await server.start()
            stack.push_async_callback(server.close)
        yield b


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own; TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def exchange(a: Guest, b: Guest, count: int = 5) -> None:
    for i in range(count):
        frame = b.mac + a.mac + b"\x88\xb5" + bytes([i]) * 60
        await a.send(frame)
        assert await b.recv() == frame
        await b.send(frame[::-1])
        assert await a.recv() == frame[::-1]


@pytest.mark.parametrize(
    "features",
    [
        DRIVER_FEATURES,
        DRIVER_FEATURES & ~Feature.MRG_RXBUF,
        DRIVER_FEATURES & ~Feature.EVENT_IDX,
        DRIVER_FEATURES & ~Feature.INDIRECT_DESC,
        Feature.MRG_RXBUF,
        0,
    ],
)
async def test_frames_go_both_ways(tmp_path: Path, features: int) -> None:
    async with (
        bench(tmp_path) as b,
        Guest(b.paths[0], features=features, regions=3, adjacent=True) as left,
        Guest(b.paths[1], features=features, queue_size=16) as right,
    ):
        assert left.features == features & ~Feature.MQ | Feature.PROTOCOL_FEATURES
        assert b.ports[0].features == left.features
        assert left.low.hdr_len == (12 if features & (Feature.MRG_RXBUF | Feature.VERSION_1) else 10)
        await exchange(left, right, 40)
        await left.drain()
        assert right.low.counters(0).errors == 0


@pytest.mark.parametrize("protocol", [0, ProtocolFeature.REPLY_ACK, FRONTEND_PROTOCOL_FEATURES])
async def test_every_way_to_share_memory(tmp_path: Path, protocol: int) -> None:
    async with (
        bench(tmp_path) as b,
        Guest(b.paths[0], protocol_features=protocol, regions=8, mtu=9000) as left,
        Guest(b.paths[1], protocol_features=protocol, one_file=True, regions=2) as right,
    ):
        assert left.protocol == protocol
        await exchange(left, right)
        assert len(b.ports[0].regions) == 8
        assert b.ports[0].mtu == (9000 if protocol & ProtocolFeature.NET_MTU else 0)


async def test_without_protocol_features(tmp_path: Path) -> None:
    offer = Offer(features=int(DRIVER_FEATURES), protocol_features=0)
    async with bench(tmp_path, offer) as b, Guest(b.paths[0]) as left, Guest(b.paths[1]) as right:
        assert left.protocol == 0
        await exchange(left, right)


async def test_stop_and_start_go_on_where_they_were(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0]) as left, Guest(b.paths[1]) as right:
        await exchange(left, right, 3)
        assert await left.stop() == [3, 3]
        await left.start()
        await exchange(left, right)


async def test_reboot_begins_anew(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0]) as left, Guest(b.paths[1]) as right:
        await exchange(left, right, 3)
        await left.restart()
        await exchange(left, right, 2)
        assert left.low.used_idx(1) == 2


async def test_reconnect_resumes_at_used(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0]) as left, Guest(b.paths[1]) as right:
        await exchange(left, right, 3)
        await b.servers[0].hang_up()
        await left.wait_hang_up()
        assert not left.started
        await left.reconnect()
        assert left.bases == [3, 3]
        await exchange(left, right)


async def test_several_pairs(tmp_path: Path) -> None:
    """Each pair sends, receives and says which it was; stopped, rebooted and reconnected they go on together."""
    async with (
        bench(tmp_path) as b,
        Guest(b.paths[0], queue_pairs=3) as left,
        Guest(b.paths[1], queue_pairs=4) as right,
    ):
        assert (left.pairs, right.pairs, left.max_pairs) == (3, 4, PAIRS)
        assert left.features & Feature.MQ
        assert sorted(b.ports[0].devices) == [0, 1, 2]

        async def by_each_pair() -> None:
            for pair in range(3):
                await left.send(bytes([pair]) * 60, pair=pair)
            got = [await right.receive() for _ in range(3)]
            assert sorted((one.pair, one.frame) for one in got) == [(pair, bytes([pair]) * 60) for pair in range(3)]

        await by_each_pair()
        await left.send(b"one" * 20, pair=2)
        await left.send(b"two" * 20, pair=1)
        assert await right.recv(pair=1) == b"two" * 20
        assert right.receive_nowait(0) is None
        assert await right.recv(pair=2) == b"one" * 20
        assert await left.stop() == [0, 1, 0, 2, 0, 2]
        await left.start()
        await by_each_pair()
        await left.restart()
        await by_each_pair()
        await right.drain()
        await b.servers[0].hang_up()
        await left.wait_hang_up()
        await left.reconnect()
        await by_each_pair()


async def test_every_pair_has_its_turn(tmp_path: Path) -> None:
    async with (
        bench(tmp_path) as b,
        Guest(b.paths[0], queue_pairs=2) as left,
        Guest(b.paths[1], queue_pairs=2) as right,
    ):
        for pair in (0, 0, 0, 1, 1, 1):
            await left.send(bytes(60), pair=pair)
        await left.drain()
        turns = [right.receive_nowait() for _ in range(6)]
        assert [one.pair for one in turns if one is not None] == [0, 1, 0, 1, 0, 1]


async def test_disabled_pair_receives_nothing(tmp_path: Path) -> None:
    async with (
        bench(tmp_path) as b,
        Guest(b.paths[0], queue_pairs=2) as left,
        Guest(b.paths[1], queue_pairs=2) as right,
    ):
        for enabled, wanted in ((False, 0), (True, 1)):
            await right.set_enabled(enabled, 1)
            assert [b.ports[1].setups[ring].enabled for ring in range(4)] == [True, True, enabled, enabled]
            await left.send(bytes(60), pair=1)
            assert (await right.receive()).pair == wanted
        await right.set_enabled(False)
        assert not any(setup.enabled for setup in b.ports[1].setups.values())


async def test_a_guest_without_mq_uses_one_pair_of_its_nic(tmp_path: Path) -> None:
    async with (
        bench(tmp_path) as b,
        Guest(b.paths[0], queue_pairs=4, features=DRIVER_FEATURES & ~Feature.MQ) as left,
        Guest(b.paths[1]) as right,
    ):
        assert (left.pairs, left.low.n_rings, left.max_pairs) == (1, 2, PAIRS)
        await exchange(left, right)


async def test_more_pairs_than_offered(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        guest = Guest(b.paths[0], queue_pairs=PAIRS + 1)
        with pytest.raises(GuestError, match="5 queue pairs, the back end offers 4"):
            await guest.connect()
        guest.kill()


async def test_listening_guest(tmp_path: Path) -> None:
    """It answers a back end that connects, again after a loss, and leaves no socket file."""
    path = tmp_path / "guest.sock"
    path.write_text("stale")
    client = VhostUserClient(path, offer=OFFER, backend=SlowPort())  # without a peer it is its own
    guest = Guest(path)
    guest.listen()
    client.listen()
    await guest.connect()
    for life in range(3):
        assert guest.started
        await guest.send(bytes([life]) * 60)
        assert await guest.recv() == bytes([life]) * 60
        await guest.drain()
        if life == 0:
            await guest.reconnect()
        else:
            await client.hang_up()
            await guest.wait_hang_up()
            await guest.reconnect()
    assert path.exists()
    guest.kill()
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        await guest.connect()
    await client.close()


async def test_memory_not_shared_looks_empty(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0], share=False) as left:
        await left.send(bytes(60))
        device = b.ports[0].device
        assert device is not None
        assert isinstance(device.tx, ReferenceRing)
        assert isinstance(device.rx, ReferenceRing)
        assert (device.tx.pending(), device.rx.pending()) == (0, 0)
        assert left.low.counters(1).in_flight == 1


async def test_kill_leaves_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[1]) as right:
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(3):
            left = Guest(b.paths[0], regions=3)
            await left.connect()
            await exchange(left, right, 1)
            left.kill()
            left.kill()
            await eventually(lambda: b.servers[0].peer is None)
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_refusals_are_errors(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        guest = Guest(b.paths[0])
        with pytest.raises(GuestError, match="never connected"):
            guest.recv_nowait()
        await guest.connect(start=False)
        with pytest.raises(GuestError, match="refused SET_VRING_NUM"):
            await guest.request(Request.SET_VRING_NUM, VringState(0, 3))
        await guest.close()
        with pytest.raises(GuestError, match="isn't connected"):
            await guest.request(Request.GET_FEATURES)
        with pytest.raises(OSError, match="No such file"):
            await Guest(tmp_path / "nobody").connect()


async def test_recv_times_out_and_misses_no_call(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0]) as left, Guest(b.paths[1], queue_size=4) as right:
        with pytest.raises(TimeoutError):
            await right.recv(timeout=0.01)

        def received(count: int) -> bool:
            return right.low.counters(0).frames >= count

        async def send() -> None:
            for i in range(300):
                await left.send(i.to_bytes(2, "big") * 30, layout=Layout(cuts=(12,), indirect=True))
                await left.drain()
                await eventually(partial(received, i + 1))

        sender = asyncio.create_task(send())
        for i in range(300):
            assert await right.recv() == i.to_bytes(2, "big") * 30
        await sender


async def test_send_waits_for_room(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0], queue_size=4) as left, Guest(b.paths[1]) as right:
        for i in range(50):
            await left.send(bytes([i]) * 60, kick=False)
        left.low.kick(1)
        assert [(await right.recv())[0] for _ in range(50)] == list(range(50))


async def test_announce_sends_a_rarp(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0]) as left, Guest(b.paths[1]) as right:
        await left.announce()
        assert (await right.recv())[6:14] == left.mac + b"\x80\x35"


async def test_load_and_latency(tmp_path: Path) -> None:
    async with bench(tmp_path) as b, Guest(b.paths[0]) as left, Guest(b.paths[1]) as right:
        load = Load(right.mac, left.mac, frames=500, level=2, len=300, window=32, stall=30.0)
        result = await left.generate([right], load)
        assert (result.sent, result.received, result.corrupted, result.errors) == (500, 500, 0, 0)
        times = await left.pingpong(right, 10)
        assert None not in times
