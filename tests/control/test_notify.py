# SPDX-License-Identifier: Apache-2.0
"""What a service manager hears: from the notifier alone, and from a whole switch. The manager is a real socket."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pvswitch.notify import Notifier, Pulse

SECONDS = 20.0  # within which a message must come


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    async def hear(self) -> dict[str, str]:
        async with asyncio.timeout(SECONDS):
            data = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return dict(line.split("=", 1) for line in data.decode().split("\n"))

    async def hear_until(self, name: str) -> dict[str, str]:
        while name not in (heard := await self.hear()):
            pass
        return heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@pvswitch-test-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
    manager = Manager(name)
    yield manager
    manager.socket.close()


@pytest.fixture
async def notifier(manager: Manager) -> AsyncIterator[Notifier]:
    notifier = Notifier(manager.address, watchdog_seconds=0.02)
    yield notifier
    await notifier.close()


async def test_words(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("forwarding")
    assert await manager.hear() == {"READY": "1", "STATUS": "forwarding"}
    notifier.reloading()
    heard = await manager.hear()
    assert heard["RELOADING"] == "1"
    assert int(heard["MONOTONIC_USEC"]) > 0
    notifier.stopping()
    assert await manager.hear() == {"STOPPING": "1"}


async def test_signs_of_life_end_when_a_worker_is_stuck(
    manager: Manager, notifier: Notifier, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sleeping worker is alive; one that is awake must have turned."""
    rounds: Iterator[list[Pulse]] = itertools.chain(
        [[None, 5], [None, 6], [7, None], [None, None], [None, None], [3, 9]], itertools.repeat([3, 10])
    )
    looks = 0
    stuck = asyncio.Event()

    def pulses() -> list[Pulse]:
        nonlocal looks
        looks += 1
        if looks == 12:
            stuck.set()
        return next(rounds)

    notifier.watch(pulses)
    async with asyncio.timeout(SECONDS):
        await stuck.wait()
    await notifier.close()
    heard = [await manager.hear() for _ in range(6)]
    assert heard == [{"WATCHDOG": "1"}] * 6  # looks 7 to 12 found worker 0 where it had been
    with pytest.raises(BlockingIOError):
        manager.socket.recv(4096)
    assert "workers=[0]" in capsys.readouterr().out


async def test_a_manager_that_takes_nothing_is_not_waited_for(manager: Manager, notifier: Notifier) -> None:
    for _ in range(10_000):
        notifier.stopping()
    assert await manager.hear() == {"STOPPING": "1"}


async def test_a_manager_that_is_not_there_is_no_reason_to_fail(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"), watchdog_seconds=0.01)
    notifier.ready("forwarding")
    await notifier.close()
    await notifier.close()


def test_what_the_environment_asks_for(manager: Manager) -> None:
    def asked(**environment: str) -> float | None:
        notifier = Notifier.from_environment(environment)
        asyncio.run(notifier.close())
        return notifier.watchdog_seconds

    mine, other = str(os.getpid()), str(os.getppid())
    assert asked() is None
    assert asked(NOTIFY_SOCKET=manager.address) is None
    assert asked(WATCHDOG_USEC="30000000") == 30
    assert asked(WATCHDOG_USEC="30000000", WATCHDOG_PID=mine) == 30
    assert asked(WATCHDOG_USEC="30000000", WATCHDOG_PID=other) is None
    assert asked(WATCHDOG_USEC="0") is None
    assert asked(WATCHDOG_USEC="soon") is None


async def test_a_switch_from_start_to_end(manager: Manager, tmp_path: Path) -> None:
    lab = tmp_path / "lab.yaml"
    lab.write_text(f"runtime_dir: {tmp_path}/run\nstate_dir: {tmp_path}/state\nports: {{vm1: {{}}}}\n")
    code = "import sys; from pvswitch.cli import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "run", "-c", str(lab)),
        env={**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"},
        stderr=subprocess.PIPE,
    )
    try:
        assert (await manager.hear())["STATUS"].startswith("forwarding; bridges: 1, ports: 1; API at ")
        assert await manager.hear_until("WATCHDOG") == {"WATCHDOG": "1"}
        lab.write_text(lab.read_text().replace("vm1: {}", "vm1: {}, vm2: {}"))
        process.send_signal(signal.SIGHUP)
        await manager.hear_until("RELOADING")
        assert "ports: 2" in (await manager.hear_until("READY"))["STATUS"]
        lab.write_text("nonsense: 1\n")
        process.send_signal(signal.SIGHUP)
        await manager.hear_until("RELOADING")
        assert "ports: 2" in (await manager.hear_until("READY"))["STATUS"]
        process.send_signal(signal.SIGTERM)
        await manager.hear_until("STOPPING")
        async with asyncio.timeout(SECONDS):
            _, log = await process.communicate()
        assert process.returncode == 0, log.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
