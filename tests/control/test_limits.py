# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC110 (what is waited for can only be asked)
"""What the API takes at most, of bytes, time and clients: each limit is answered, and the next client served."""

from __future__ import annotations

import asyncio
import socket

import pytest
from structlog.testing import capture_logs

from pvswitch.api import access as access_module
from pvswitch.api import connection as connection_module
from pvswitch.api import request as request_module
from pvswitch.api import server as server_module
from tests.control.served import Start, problem_of

V1 = "/api/v1"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA B: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
    ],
)
async def test_what_is_no_request_is_told_so(start: Start, request_bytes: bytes, status: int) -> None:
    api = await start()
    for unix in (False, True):
        answer = await api.raw(request_bytes, unix=unix)
        assert problem_of(answer)[0] == status
        assert b"\r\nServer: pvswitch\r\n" in answer
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer


async def test_slow_headers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "HEADER_SECONDS", 0.2)
    api = await start()
    status, body = problem_of(await api.raw(b"GET / HTTP/1.1\r\nHost: local"))
    assert (status, body["type"]) == (408, "/problems/timeout")
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    async with asyncio.timeout(20):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b'{"status": "ok"}')).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        assert problem_of(await reader.read())[0] == 408, "the second request of a connection"
    writer.close()


async def test_an_idle_client_is_sent_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.2)
    api = await start()
    assert await api.raw(b"") == b""
    answer = await api.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")


async def test_a_slow_body(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.2)
    api = await start()
    head = f"PUT {V1}/ports/vm9 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n".encode()
    answer = await api.raw(head, b"{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert "vm9" not in api.dataplane.config.ports


async def test_bodies_that_break(start: Start) -> None:
    api = await start()
    head = f"PUT {V1}/ports/vm9 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer = await api.raw(f"{head}Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    status, body = problem_of(answer)
    assert (status, "Content-Encoding" in body["detail"]) == (400, True)
    with capture_logs() as logs:
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(f"{head}Content-Length: 2\r\n\r\n{{".encode())
        writer.close()
        async with asyncio.timeout(20):
            while not logs:
                await asyncio.sleep(0.01)
    assert [(entry["event"], entry["status"]) for entry in logs] == [("request", 400)]
    assert "vm9" not in api.dataplane.config.ports


async def test_a_client_that_takes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "WRITE_SECONDS", 0.2)
    api = await start()
    monkeypatch.setattr(api.dataplane, "totals", lambda: {f"counter_{i}": i for i in range(200_000)})
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", api.port))
        await loop.sock_sendall(client, f"GET {V1}/stats HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(20):
            while api.server._listeners[1]._connections:
                await asyncio.sleep(0.01)


async def test_too_many_connections(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_PER_ADDRESS", 2)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    api = await start()
    writers = []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writers.append(writer)
    for _ in range(3):
        _, writer = await asyncio.open_unix_connection(str(api.socket))
        writers.append(writer)
    for unix in (False, True):
        status, body = problem_of(await api.raw(b"", unix=unix))
        assert (status, "close some" in body["detail"]) == (503, True)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(20):
        while (await api.raw(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"))[9:12] != b"200":
            await asyncio.sleep(0.01)


async def test_too_many_requests_under_way(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "MAX_REQUESTS", 1)
    api = await start()
    head = f"PUT {V1}/ports/vm9 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(head)
    async with asyncio.timeout(20):
        while (await api.ask("GET", "/healthz"))[0] != 503:
            await asyncio.sleep(0.01)
        status, _, headers = await api.ask("GET", "/healthz")
        assert (status, headers["Retry-After"]) == (503, "1")
        assert (await api.ask("GET", "/healthz", unix=True))[0] == 200, "the machine's own users have their own"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
        writer.close()
        while (await api.ask("GET", "/healthz"))[0] != 200:
            await asyncio.sleep(0.01)


async def test_expectations(start: Start) -> None:
    api = await start()
    head = f"PUT {V1}/ports/vm9 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n"
    asked = await api.raw(f"{head}Expect: 100-continue\r\n\r\n".encode(), b"{}")
    assert asked.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")
    assert (await api.raw(f"{head}Expect: wonders\r\n\r\n".encode(), b"{}")).startswith(b"HTTP/1.1 200 ")
