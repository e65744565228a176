# SPDX-License-Identifier: Apache-2.0
"""The whole API against its own description: schemathesis asks a running switch for what that allows, and what not.

Over the unix socket and over TCP with a token. As root the switch lives in a network namespace of its own, so that taps
and packet sockets may be asked for; a thread's subprocesses inherit its namespace. Left out are streams, whose
answers have no end. The seeds are fixed: a failure comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from requests.adapters import HTTPAdapter
from schemathesis import Case
from schemathesis.specs.openapi.checks import ignored_auth
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from pvswitch import __version__
from pvswitch.api.openapi import describe
from pvswitch.process import SwitchProcess
from tests.system.conftest import from_environment

if TYPE_CHECKING:
    from schemathesis.specs.openapi.schemas import OpenApiOperation

EXAMPLES = from_environment("PVSWITCH_TEST_API_EXAMPLES", 25)
TOKEN = "t" * 64
CLONE_NEWNET = 0x40000000
CONFIG: dict[str, Any] = {"bridges": {"br0": {}}, "ports": {"vm1": {}, "vm2": {"mtu": 1500}}}
CHECKS = {
    # values that are right one by one can be wrong together, stale, in the way of others, or without If-Match
    "positive_data_acceptance": {"expected-statuses": ["2xx", 404, 409, 412, 422, 428]},
    "missing_required_header": {"expected-statuses": [428]},
    # what is stale is refused first, whatever else is wrong with it
    "negative_data_rejection": {"expected-statuses": [400, 404, 405, 409, 412, 415, 422, 428]},
}

pytestmark = pytest.mark.timeout(600)


class UnixAdapter(HTTPAdapter):
    """Sends every request of a session to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._pool = UnixPool(path)

    def get_connection_with_tls_context(self, *_: object, **__: object) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()


class UnixPool(HTTPConnectionPool):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", maxsize=4)
        self._path = path

    def _new_conn(self) -> HTTPConnection:
        return UnixConnection(self._path)


class UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


@contextlib.contextmanager
def namespace() -> Iterator[None]:
    """Put this thread, and what it starts, into a network namespace with nothing but `lo`; not without root."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
            yield
        finally:
            if libc.setns(home, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


@dataclass
class Target:
    """A running switch, and a way to it."""

    base: str
    session: requests.Session
    excluded: list[Any]

    def check(self, case: Case[OpenApiOperation]) -> None:
        case.call_and_validate(self.base, self.session, excluded_checks=self.excluded, timeout=30)


SCHEMA = schemathesis.openapi.from_dict(
    describe(__version__),
    config=schemathesis.Config.from_dict({"checks": CHECKS}),
).exclude(path=["/api/v1/events", "/api/v1/captures/{id}/stream"])
SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchProcess]:
    """One that ends cleanly, whatever was asked of it."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"fuzz write {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    tokens.chmod(0o600)
    switch = SwitchProcess({**CONFIG, "api": {"listen": "127.0.0.1:0", "tokens_file": str(tokens)}})
    with asyncio.Runner() as runner, namespace():
        runner.run(switch.start())
        try:
            yield switch
            log = switch.log()
            assert switch.running, f"the switch died; log:\n{log}"
            assert runner.run(switch.stop()) == 0
            assert "Traceback" not in log, log
        finally:
            runner.run(switch.close())


@pytest.fixture(scope="module")
def unix(switch: SwitchProcess) -> Iterator[Target]:
    with requests.Session() as session:
        session.mount("http://", UnixAdapter(switch.api))
        # the socket asks for no token, so the check that one is missed has nothing to find
        yield Target("http://localhost", session, [ignored_auth])


@pytest.fixture(scope="module")
def tcp(switch: SwitchProcess) -> Iterator[Target]:
    match = re.search(r"listen=(127\.0\.0\.1:[1-9][0-9]*)", switch.log())
    assert match is not None
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        yield Target(f"http://{match[1]}", session, [])


def test_the_description_is_the_one_that_is_served(unix: Target) -> None:
    assert unix.session.get(f"{unix.base}/openapi.json", timeout=30).json() == describe(__version__)


@SCHEMA.parametrize()
@SETTINGS
def test_over_the_unix_socket(case: Case[OpenApiOperation], unix: Target) -> None:
    unix.check(case)


@SCHEMA.parametrize()
@SETTINGS
def test_over_tcp_with_a_token(case: Case[OpenApiOperation], tcp: Target) -> None:
    tcp.check(case)


def test_one_request_after_the_other(unix: Target) -> None:
    """What one answer names is used in the next request, as the description's links say."""

    class Sequence(SCHEMA.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            document = unix.session.get(f"{unix.base}/api/v1/config", timeout=30).json() | CONFIG
            answer = unix.session.put(
                f"{unix.base}/api/v1/config", json=document, headers={"If-Match": "*"}, timeout=30
            )
            assert answer.status_code == 200, answer.text

        def get_call_kwargs(self, case: Case[OpenApiOperation]) -> dict[str, Any]:
            return {"session": unix.session, "timeout": 30, "base_url": unix.base}

        def validate_response(self, response: Any, case: Case[OpenApiOperation], **_: Any) -> None:
            case.validate_response(response, excluded_checks=unix.excluded)

    Sequence.run(settings=settings(SETTINGS, max_examples=max(1, EXAMPLES // 2), stateful_step_count=10))
