# SPDX-License-Identifier: Apache-2.0
"""The client over real unix sockets, on two event loops; the time between its attempts passes when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.client import VhostUserClient
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import U64, Header, Request, VringFd, VringState, encode_request
from pvswitch.vhost_user.session import Offer, Phase

from .fakes import FEATURES, OFFER, PROTOCOL, WAIT, FakeBackend, FrontEnd, new_fd, open_fds, phase_of, run_rings, until


class Clock:
    """What call_later() was asked for; nothing happens before `go()`."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._call: Callable[[], None] | None = None

    def schedule(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        assert self._call is None, "one attempt at a time is planned"
        self.waits.append(seconds)
        self._call = call
        return cast(asyncio.TimerHandle, self)

    def cancel(self) -> None:
        self._call = None

    @property
    def planned(self) -> bool:
        return self._call is not None

    def go(self) -> None:
        """Let the time pass until the next attempt."""
        call, self._call = self._call, None
        assert call is not None
        call()


class Listener:
    """A front end that listens, as QEMU with server=on,wait=off."""

    def __init__(self, path: Path, backlog: int = 5) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT)
        self.sock.bind(str(path))
        self.sock.listen(backlog)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.path.unlink()

    async def accept(self) -> FrontEnd:
        return FrontEnd((await asyncio.to_thread(self.sock.accept))[0])


@contextlib.asynccontextmanager
async def connecting(
    path: Path, watch: Callable[[VhostUserClient], None] = lambda _: None, **options: Any
) -> AsyncIterator[tuple[VhostUserClient, FakeBackend, Clock]]:
    """A client with a fake back end and clock, which must leave no descriptor, task or plan."""
    await asyncio.to_thread(int)  # the thread pool's own descriptors, if any, come first
    tasks, before = len(asyncio.all_tasks()), open_fds()
    backend, clock = FakeBackend(), Clock()
    client = VhostUserClient(
        path, offer=OFFER, backend=backend, schedule=clock.schedule, on_change=lambda: watch(client), **options
    )
    await client.start()
    try:
        yield client, backend, clock
    finally:
        await client.close()
    assert not clock.planned
    assert open_fds() == before
    assert len(asyncio.all_tasks()) == tasks
    assert backend.running == set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm1.sock"


# ---- a good front end


async def test_a_whole_life(path: Path) -> None:
    changes: list[Phase] = []
    with Listener(path) as listener:
        async with connecting(path, lambda client: changes.append(client.phase)) as (client, backend, clock):
            with await listener.accept() as peer:
                await asyncio.to_thread(run_rings, peer)
                assert phase_of(client) is Phase.READY
                assert client.peer is not None
                assert (client.peer.pid, client.peer.uid) == (os.getpid(), os.getuid()), "those of who listens"
                assert await asyncio.to_thread(peer.ask, Request.GET_VRING_BASE, VringState(1, 0)) == VringState(1, 42)
                assert not clock.planned
            await until(lambda: client.peer is None)
            assert backend.names()[-1] == "disconnected"
            assert client.last_error is None
            assert clock.waits == [0.1]
            assert phase_of(client) is Phase.WAITING_FOR_FRONTEND
    seen = [phase for i, phase in enumerate(changes) if i == 0 or changes[i - 1] != phase]
    assert seen[:3] == [Phase.DRIVER_NOT_STARTED, Phase.QUEUE_DISABLED, Phase.READY]


async def test_the_socket_is_found_again_by_itself(path: Path) -> None:
    """With the loop's own timers: a front end comes late, goes, and comes back."""
    client = VhostUserClient(path, offer=OFFER, backend=FakeBackend())
    await client.start()
    try:
        for _ in range(2):
            with Listener(path) as listener, await listener.accept() as peer:
                await asyncio.to_thread(run_rings, peer)
                assert client.phase is Phase.READY
            await until(lambda: client.peer is None)
    finally:
        await client.close()


async def test_hanging_up_and_a_new_offer(path: Path) -> None:
    with Listener(path) as listener:
        async with connecting(path) as (client, _, clock):
            with await listener.accept() as peer:
                assert await asyncio.to_thread(peer.ask, Request.GET_FEATURES) == FEATURES
                client.offer = Offer(features=FEATURES & ~Feature.MRG_RXBUF, protocol_features=PROTOCOL)
                await client.hang_up()
                assert await asyncio.to_thread(peer.hung_up)
            assert client.last_error is None
            clock.go()
            with await listener.accept() as peer:
                assert await asyncio.to_thread(peer.ask, Request.GET_FEATURES) == FEATURES & ~Feature.MRG_RXBUF


# ---- nobody there


async def test_waits_grow_and_the_cause_is_logged_once(path: Path) -> None:
    changes: list[str | None] = []
    with capture_logs() as logs:
        async with connecting(path, lambda client: changes.append(client.last_error)) as (client, _, clock):
            for _ in range(6):
                clock.go()
            assert clock.waits == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
            assert client.phase is Phase.WAITING_FOR_FRONTEND
            assert str(client.last_error) == "No such file or directory"
            with socket.socket(socket.AF_UNIX) as killed:
                killed.bind(str(path))
            clock.go()
            clock.go()
            assert str(client.last_error) == "Connection refused"
            os.unlink(path)  # noqa: PTH108 (pathlib's is taken for something that blocks)
            with Listener(path) as listener:
                clock.go()
                assert not clock.planned
                assert client.last_error is None
                (await listener.accept()).close()
                await until(lambda: client.peer is None)
    assert changes[:2] == ["No such file or directory", "Connection refused"]
    causes = [line["cause"] for line in logs if "cause" in line]
    assert causes == ["No such file or directory", "Connection refused"]
    assert {line["log_level"] for line in logs} == {"info"}, "nothing of this is unusual"


async def test_waits_begin_anew_once_features_were_negotiated(path: Path) -> None:
    async with connecting(path) as (client, _, clock):
        for _ in range(3):
            clock.go()
        assert clock.waits[-1] == 0.8
        with Listener(path) as listener:
            clock.go()
            with await listener.accept() as peer:
                await asyncio.to_thread(run_rings, peer)
            await until(lambda: client.peer is None)
        assert clock.waits[4:] == [0.1]
        clock.go()
        assert clock.waits[4:] == [0.1, 0.2]


async def test_one_that_hangs_up_at_once_is_left_alone_for_longer_and_longer(path: Path) -> None:
    with Listener(path) as listener:
        async with connecting(path) as (client, backend, clock):
            for attempt in range(8):
                (await listener.accept()).close()
                await until(lambda: client.peer is None)
                assert len(clock.waits) == attempt + 1
                clock.go()
            assert clock.waits[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
            assert backend.names().count("disconnected") == 8


async def test_one_that_negotiates_and_hangs_up_makes_no_busy_loop_either(path: Path) -> None:
    with Listener(path) as listener:
        async with connecting(path) as (client, _, clock):
            for _ in range(3):
                with await listener.accept() as peer:
                    await asyncio.to_thread(run_rings, peer)
                await until(lambda: client.peer is None)
                clock.go()
            for _ in range(2):  # what an earlier one negotiated helps no later one
                (await listener.accept()).close()
                await until(lambda: client.peer is None)
                clock.go()
            assert clock.waits == [0.1, 0.1, 0.1, 0.2, 0.4]


async def test_a_full_queue_of_connections_is_waited_out(path: Path) -> None:
    with Listener(path, backlog=0) as listener, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(path))
        async with connecting(path) as (client, _, clock):
            assert str(client.last_error) == "Resource temporarily unavailable"
            (await listener.accept()).close()
            clock.go()
            assert client.last_error is None
            with await listener.accept() as peer:
                assert await asyncio.to_thread(peer.ask, Request.GET_FEATURES) == FEATURES


def bind_datagrams(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, bind_datagrams])
async def test_a_path_that_is_something_else(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    async with connecting(path) as (client, _, clock):
        assert client.last_error
        assert clock.planned


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    client = VhostUserClient(tmp_path / ("x" * 108), offer=OFFER, backend=FakeBackend())
    with pytest.raises(PvswitchError, match="107 are possible"):
        client.bind()
    await client.close()


# ---- the end


async def test_closing_before_the_beginning(path: Path) -> None:
    client = VhostUserClient(path, offer=OFFER, backend=FakeBackend())
    client.bind()
    await client.close()


async def test_closing_ends_a_connection_and_plans_none(path: Path) -> None:
    with Listener(path) as listener:
        async with connecting(path) as (client, backend, clock):
            with await listener.accept() as peer:
                await asyncio.to_thread(run_rings, peer)
                await client.close()
                assert await asyncio.to_thread(peer.hung_up)
            assert client.last_error is None
            assert backend.names()[-1] == "disconnected"
            assert clock.waits == []
            await client.close()


# ---- bad front ends: the same session is behind it


def too_many_fds(peer: FrontEnd) -> None:
    peer.send_raw(encode_request(Request.GET_FEATURES), [new_fd() for _ in range(9)])


def half_a_message(peer: FrontEnd) -> None:
    peer.send_raw(encode_request(Request.SET_VRING_KICK, VringFd(0, True))[:13], [new_fd()])


def no_request(peer: FrontEnd) -> None:
    peer.send_raw(Header(Request.GET_FEATURES, 5, 0).pack())


def not_offered(peer: FrontEnd) -> None:
    peer.say(Request.SET_FEATURES, U64(FEATURES | Feature.RING_PACKED))


def no_such_ring(peer: FrontEnd) -> None:
    peer.say(Request.SET_VRING_ENABLE, VringState(2, 1))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (too_many_fds, "more than 8 file descriptors"),
        (half_a_message, "not complete after 0.1 s"),
        (no_request, "aren't a request's"),
        (not_offered, "ring_packed not offered"),
        (no_such_ring, "there is no ring 2"),
    ],
)
async def test_hostile_front_ends(path: Path, attack: Callable[[FrontEnd], None], reason: str) -> None:
    with Listener(path) as listener:
        async with connecting(path, message_timeout=0.1) as (client, _, clock):
            with await listener.accept() as peer:
                await asyncio.to_thread(attack, peer)
                assert await asyncio.to_thread(peer.hung_up)
            await until(lambda: client.peer is None)
            assert reason in str(client.last_error)
            assert phase_of(client) is (Phase.FEATURES_REFUSED if attack is not_offered else Phase.WAITING_FOR_FRONTEND)
            clock.go()
            assert reason in str(client.last_error), "kept until one has negotiated"
            with await listener.accept() as peer:
                await asyncio.to_thread(run_rings, peer)
                assert client.last_error is None
                assert phase_of(client) is Phase.READY
