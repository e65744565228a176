# SPDX-License-Identifier: Apache-2.0
"""The server over real unix sockets, on two event loops: nothing a front end does stalls, harms or stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import (
    U64,
    VERSION,
    Header,
    MemTable,
    Request,
    VringFd,
    VringState,
    encode_request,
)
from pvswitch.vhost_user.server import VhostUserServer
from pvswitch.vhost_user.session import Phase

from .fakes import (
    FEATURES,
    OFFER,
    PROTOCOL,
    REGION,
    WAIT,
    FakeBackend,
    FrontEnd,
    new_fd,
    open_fds,
    phase_of,
    run_rings,
    until,
)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[VhostUserServer, FakeBackend]]:
    """A server with a fake back end, which must leave no descriptor, task or file."""
    await asyncio.to_thread(int)  # the thread pool's own descriptors, if any, come first
    tasks, before = len(asyncio.all_tasks()), open_fds()
    backend = FakeBackend()
    server = VhostUserServer(tmp_path / "vm1.sock", offer=OFFER, backend=backend, **options)
    await server.start()
    try:
        yield server, backend
    finally:
        await server.close()
    assert open_fds() == before
    assert len(asyncio.all_tasks()) == tasks
    assert not server.path.exists()
    assert backend.running == set()


async def alive(server: VhostUserServer) -> None:
    """A new front end is served."""

    def talk() -> None:
        with FrontEnd(server.path) as peer:
            assert peer.ask(Request.GET_FEATURES) == FEATURES

    await until(lambda: server.peer is None)
    await asyncio.to_thread(talk)
    await until(lambda: server.peer is None)


async def in_thread(server: VhostUserServer, script: Callable[[FrontEnd], Any]) -> Any:
    def talk() -> Any:
        with FrontEnd(server.path) as peer:
            return script(peer)

    async with asyncio.timeout(WAIT * 2):
        return await asyncio.to_thread(talk)


# ---- a good front end


async def test_a_whole_life(tmp_path: Path) -> None:
    changes: list[Phase] = []
    server: VhostUserServer
    async with serving(tmp_path, on_change=lambda: changes.append(server.phase)) as (server, backend):
        assert phase_of(server) is Phase.WAITING_FOR_FRONTEND
        peer = await asyncio.to_thread(FrontEnd, server.path)
        await asyncio.to_thread(run_rings, peer)
        assert phase_of(server) is Phase.READY
        assert server.peer is not None
        assert (server.peer.pid, server.peer.uid) == (os.getpid(), os.getuid())
        assert server.state is not None
        assert (server.state.started, server.state.memory_bytes) == ((0, 1), REGION.size)
        assert await asyncio.to_thread(peer.ask, Request.GET_VRING_BASE, VringState(1, 0)) == VringState(1, 42)
        assert phase_of(server) is Phase.DRIVER_NOT_STARTED
        peer.close()
        await until(lambda: server.peer is None)
        assert backend.names()[-1] == "disconnected"
        assert server.last_error is None
        await alive(server)
    seen = [phase for i, phase in enumerate(changes) if i == 0 or changes[i - 1] != phase]
    assert seen[:4] == [
        Phase.DRIVER_NOT_STARTED,
        Phase.QUEUE_DISABLED,
        Phase.READY,
        Phase.DRIVER_NOT_STARTED,
    ]


async def test_replies_only_when_asked(tmp_path: Path) -> None:
    def script(peer: FrontEnd) -> None:
        peer.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL), need_reply=True)
        peer.say(Request.SET_OWNER)
        peer.say(Request.SET_FEATURES, U64(FEATURES))
        assert peer.ask(Request.GET_QUEUE_NUM) == 1, "the first reply is this one's"
        assert peer.ask(Request.SET_OWNER, need_reply=True) == 0
        assert peer.ask(Request.GET_CONFIG, U64(0), need_reply=True) == 1
        peer.say(Request.SET_OWNER)
        assert peer.ask(Request.GET_FEATURES) == FEATURES

    async with serving(tmp_path) as (server, _):
        await in_thread(server, script)


async def test_the_next_message_waits_for_this_one(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving(tmp_path) as (server, backend):
        backend.hook = lambda name: gate.wait() if name == "replace_memory" else None
        peer = await asyncio.to_thread(FrontEnd, server.path)
        peer.say(Request.SET_MEM_TABLE, MemTable(()))
        peer.say(Request.SEND_RARP, U64(0))
        await until(lambda: backend.names() == ["replace_memory"])
        for _ in range(20):
            await asyncio.sleep(0)
        assert backend.names() == ["replace_memory"]
        gate.set()
        await until(lambda: backend.names() == ["replace_memory", "rarp"])
        peer.close()


async def test_close_waits_for_the_message_in_work(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with serving(tmp_path) as (server, backend):
        backend.hook = lambda name: gate.wait() if name == "replace_memory" else None
        peer = await asyncio.to_thread(FrontEnd, server.path)
        peer.say(Request.SET_MEM_TABLE, MemTable((REGION,)), [new_fd()])
        peer.say(Request.SEND_RARP, U64(0))
        await until(lambda: backend.calls)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.set()
        await closing
        assert backend.names() == ["replace_memory", "disconnected"]
        assert server.last_error is None
        assert await asyncio.to_thread(peer.hung_up)
        peer.close()


async def test_hang_up_and_a_new_offer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        with await asyncio.to_thread(FrontEnd, server.path) as peer:
            await until(lambda: server.peer)
            server.offer = type(OFFER)(features=FEATURES & ~Feature.MRG_RXBUF, protocol_features=PROTOCOL)
            await server.hang_up()
            assert await asyncio.to_thread(peer.hung_up)
        ask = await in_thread(server, lambda peer: peer.ask(Request.GET_FEATURES))
        assert ask == FEATURES & ~Feature.MRG_RXBUF


# ---- bad front ends


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 19])
async def test_one_that_dies_half_way_through_a_message(tmp_path: Path, cut: int) -> None:
    data = encode_request(Request.SET_VRING_KICK, VringFd(0, True))
    async with serving(tmp_path) as (server, _):
        await in_thread(server, lambda peer: peer.send_raw(data[:cut], [new_fd()]))
        await until(lambda: server.last_error)
        assert "hung up in the middle" in str(server.last_error)
        await alive(server)


@pytest.mark.parametrize("cut", [1, 12, 15])
async def test_one_that_stalls_half_way_through_a_message(tmp_path: Path, cut: int) -> None:
    data = encode_request(Request.SET_VRING_KICK, VringFd(0, True))
    async with serving(tmp_path, message_timeout=0.1) as (server, _):

        def stall(peer: FrontEnd) -> bool:
            peer.send_raw(data[:cut], [new_fd()])
            return peer.hung_up()

        assert await in_thread(server, stall)
        assert "not complete after 0.1 s" in str(server.last_error)
        await alive(server)


async def test_one_that_sends_byte_by_byte_is_served_and_delays_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, backend):
        with await asyncio.to_thread(FrontEnd, server.path) as peer:
            data = encode_request(Request.SET_VRING_CALL, VringFd(0, True)) + encode_request(Request.GET_STATUS)
            for i in range(len(data)):
                peer.send_raw(data[i : i + 1], [new_fd()] if i == 0 else [])
                await asyncio.sleep(0.002)
            assert await asyncio.to_thread(peer.sock.recv, 100) == Header(40, 5, 8).pack() + bytes(8)
            assert backend.names() == []


async def test_a_drip_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    def drip(peer: FrontEnd) -> None:
        payload = Header(Request.SET_MEM_TABLE, VERSION, 264).pack() + bytes(264)
        for i in range(len(payload)):
            peer.send_raw(payload[i : i + 1])
            time.sleep(0.05)

    async with serving(tmp_path, message_timeout=0.2) as (server, _):
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await in_thread(server, drip)
        assert "not complete" in str(server.last_error)


async def test_an_idle_one_may_stay(tmp_path: Path) -> None:
    async with serving(tmp_path, message_timeout=0.05) as (server, _):
        with await asyncio.to_thread(FrontEnd, server.path) as peer:
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(peer.ask, Request.GET_FEATURES) == FEATURES


async def test_a_flood_leaves_the_loop_its_turns(tmp_path: Path) -> None:
    """While a peer sends as fast as it can, the loop turns once per message, and another port is served."""
    stop = threading.Event()

    def flood(peer: FrontEnd) -> None:
        data = encode_request(Request.SET_OWNER) * 200
        while not stop.is_set():
            peer.send_raw(data)

    other = tmp_path / "other"
    other.mkdir()
    async with serving(tmp_path) as (server, _), serving(other) as (second, _):
        flooding = asyncio.create_task(in_thread(server, flood))
        await until(lambda: server.peer)
        for _ in range(5):
            await alive(second)
        handled = 0
        session = server._session
        assert session is not None
        original = session.handle

        def counting(message: Any) -> Any:
            nonlocal handled
            handled += 1
            return original(message)

        session.handle = counting  # type: ignore[method-assign]
        for _ in range(200):
            await asyncio.sleep(0)
        assert 0 < handled <= 201
        stop.set()
        await flooding
        await until(lambda: server.peer is None)


async def test_one_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    def deaf(peer: FrontEnd) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        while True:
            peer.send_raw(encode_request(Request.GET_FEATURES) * 100)

    async with serving(tmp_path, send_timeout=0.1) as (server, _):
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await in_thread(server, deaf)
        await until(lambda: server.peer is None)
        assert "reply was not read" in str(server.last_error)
        await alive(server)


@pytest.mark.parametrize("count", [9, 16, 253])
async def test_cve_2020_10726_too_many_descriptors_with_one_message(tmp_path: Path, count: int) -> None:
    def script(peer: FrontEnd) -> bool:
        peer.send_raw(encode_request(Request.GET_FEATURES), [new_fd() for _ in range(count)])
        return peer.hung_up()

    async with serving(tmp_path) as (server, _):
        before = open_fds()
        assert await in_thread(server, script)
        await until(lambda: server.peer is None)
        assert open_fds() == before
        assert "more than 8 file descriptors" in str(server.last_error)


async def test_descriptors_in_the_middle_of_a_message(tmp_path: Path) -> None:
    def script(peer: FrontEnd) -> bool:
        data = encode_request(Request.SET_VRING_KICK, VringFd(0, True))
        peer.send_raw(data[:12])
        peer.send_raw(data[12:], [new_fd()])
        return peer.hung_up()

    async with serving(tmp_path) as (server, _):
        assert await in_thread(server, script)
        await until(lambda: server.peer is None)
        assert "in the middle of a message" in str(server.last_error)


async def test_an_absurd_header_is_not_waited_for(tmp_path: Path) -> None:
    def script(peer: FrontEnd) -> bool:
        peer.send_raw(Header(Request.SET_MEM_TABLE, VERSION, 2**32 - 1).pack())
        return peer.hung_up()

    async with serving(tmp_path, message_timeout=1000) as (server, _):
        assert await in_thread(server, script)


async def test_many_that_die_leave_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, backend):
        for _ in range(30):
            await in_thread(server, run_rings)
        await until(lambda: server.peer is None)
        assert backend.names().count("disconnected") == 30


async def test_a_restarted_front_end_never_loses_against_its_past(tmp_path: Path) -> None:
    """The old one is dead but not yet dealt with when the new one comes: that one waits, and is served."""
    gate = asyncio.Event()
    async with serving(tmp_path) as (server, backend):
        backend.hook = lambda name: gate.wait() if name == "rarp" else None
        old = await asyncio.to_thread(FrontEnd, server.path)
        old.say(Request.SEND_RARP, U64(0))
        await until(lambda: backend.calls)
        old.close()
        new = await asyncio.to_thread(FrontEnd, server.path)
        for _ in range(50):
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.to_thread(new.ask, Request.GET_FEATURES) == FEATURES
        assert backend.names() == ["rarp", "disconnected"]
        new.close()


async def test_a_second_front_end_is_turned_away(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, backend):
        with await asyncio.to_thread(FrontEnd, server.path) as first:
            assert await asyncio.to_thread(first.ask, Request.GET_FEATURES) == FEATURES
            with capture_logs() as logs:
                for _ in range(5):
                    assert await in_thread(server, lambda peer: peer.hung_up())
            (warning,) = [line for line in logs if line["log_level"] == "warning"]
            assert warning["pid"] == os.getpid()
            assert await asyncio.to_thread(first.ask, Request.GET_FEATURES) == FEATURES
            assert backend.calls == []
        await alive(server)


# ---- refusals and failures


async def test_refused_features_are_remembered(tmp_path: Path) -> None:
    def ask_too_much(peer: FrontEnd) -> bool:
        peer.say(Request.SET_FEATURES, U64(FEATURES | Feature.RING_PACKED))
        return peer.hung_up()

    async with serving(tmp_path) as (server, _):
        assert await in_thread(server, ask_too_much)
        await until(lambda: server.peer is None)
        assert phase_of(server) is Phase.FEATURES_REFUSED
        assert server.refused_features == Feature.RING_PACKED
        assert server.last_error == "SET_FEATURES: ring_packed not offered"
        await alive(server)
        assert phase_of(server) is Phase.FEATURES_REFUSED, "the next one has not got further"
        await in_thread(server, run_rings)
        await until(lambda: server.peer is None)
        assert phase_of(server) is Phase.WAITING_FOR_FRONTEND
        assert server.last_error is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        (PvswitchError("the file is shorter than its region"), "shorter than its region"),
        (ZeroDivisionError("bug"), "internal error: ZeroDivisionError"),
    ],
)
async def test_a_failing_back_end_ends_the_connection_only(tmp_path: Path, error: Exception, reason: str) -> None:
    def fail(name: str) -> None:
        if name == "replace_memory":
            raise error

    async with serving(tmp_path) as (server, backend):
        backend.hook = fail
        with await asyncio.to_thread(FrontEnd, server.path) as peer:
            peer.say(Request.SET_MEM_TABLE, MemTable((REGION,)), [new_fd()])
            assert await asyncio.to_thread(peer.hung_up)
        await until(lambda: server.peer is None)
        assert reason in str(server.last_error)
        await alive(server)


async def test_failures_while_cleaning_up_and_in_on_change_stay_inside(tmp_path: Path) -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("bug")

    async with serving(tmp_path, on_change=fail) as (server, backend):
        backend.hook = fail
        await alive(server)
        await alive(server)


async def test_out_of_descriptors_accepting_pauses_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvswitch.vhost_user.server.ACCEPT_RETRY", 0.02)
    async with serving(tmp_path) as (server, _):
        with socket.socket(socket.AF_UNIX) as peer, capture_logs() as logs, contextlib.ExitStack() as fillers:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            fillers.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    fillers.callback(os.close, os.dup(peer.fileno()))
            peer.connect(str(server.path))
            await until(lambda: any("can be accepted" in line["event"] for line in logs))
            assert server.peer is None
            fillers.close()
            await until(lambda: server.peer)
        await until(lambda: server.peer is None)


# ---- the socket file


async def test_mode_group_and_removal(tmp_path: Path) -> None:
    async with serving(tmp_path, mode=0o640, gid=os.getgid()) as (server, _):
        found = server.path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o640
        assert found.st_gid == os.getgid()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "vm1.sock"))
    async with serving(tmp_path) as (server, backend):
        second = VhostUserServer(server.path, offer=OFFER, backend=backend)
        with pytest.raises(PvswitchError, match="another process listens"):
            second.bind()
        await second.close()
        await until(lambda: server.peer is None)
        await alive(server)
