# SPDX-License-Identifier: Apache-2.0
"""Requests that must be refused: by name, as problem+json, with nothing changed."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvswitch.errors import FieldError
from tests.control.conftest import Answer, Switch
from tests.control.malformed import MALFORMED

V1 = "/api/v1"
FDB = f"{V1}/bridges/br0/fdb"
ANY = {"If-Match": "*"}


def assert_problem(answer: Answer, status: int) -> None:
    assert answer.status == status, answer.body
    assert answer.type == "application/problem+json"
    assert answer.body["status"] == status
    assert answer.body["type"].startswith("/problems/")
    assert answer.body["title"]
    assert answer.body["detail"]


def place(pointer: str) -> str:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.removeprefix("#/").split("/")]
    loc = [int(part) if part.isdigit() and i > 1 else part for i, part in enumerate(parts)]
    return FieldError(tuple(loc), "").place


@pytest.mark.parametrize("what", MALFORMED)
async def test_malformed_configurations(switch: Switch, what: str) -> None:
    document, places, message = MALFORMED[what]
    etag = switch.controller.etag
    answer = await switch.ask("PUT", f"{V1}/config", json=document, headers=ANY)
    assert_problem(answer, 422)
    assert [place(pointer) for pointer in answer.pointers] == places
    assert message in answer.body["errors"][0]["detail"]
    assert switch.controller.etag == etag
    assert switch.dataplane.calls == ["prepare", "commit", "retire"]  # those of the start


BODIES = [
    ("PUT", f"{V1}/ports/vm1", {"bridge": "br9"}, "#/ports/vm1/bridge"),
    ("PUT", f"{V1}/ports/vm1", {}, "#/ports/vm1/bridge"),
    ("PUT", f"{V1}/ports/vm1", {"bridge": "br0", "mtu": "9000"}, "#/ports/vm1/mtu"),
    ("PUT", f"{V1}/ports/vm1", {"bridge": "br0", "tag": 4095}, "#/ports/vm1/tag"),
    ("PUT", f"{V1}/ports/vm1", {"bridge": "br0", "name": "vm2"}, "#/ports/vm1/name"),
    ("PUT", f"{V1}/ports/-bad", {"bridge": "br0"}, "#/ports/-bad"),
    ("PUT", f"{V1}/ports/a%2Fb", {"bridge": "br0"}, "#/ports/a~1b"),
    ("PUT", f"{V1}/ports/{'p' * 64}", {"bridge": "br0"}, f"#/ports/{'p' * 64}"),
    ("PUT", f"{V1}/ports/vm1", [], "#"),
    ("PUT", f"{V1}/ports/vm1", 7, "#"),
    ("PUT", f"{V1}/bridges/br0", {"aging_time": 1.5}, "#/bridges/br0/aging_time"),
    ("PUT", f"{V1}/bridges/br0", {"meters": {"m": {}}}, "#/bridges/br0/meters/m"),
    ("PUT", f"{V1}/bridges/br0", {"flows": {"f": {}}}, "#/bridges/br0/flows/f/actions"),
    ("PUT", f"{V1}/bridges/br0", {"flows": []}, "#/bridges/br0/flows"),
    ("PUT", f"{V1}/bridges/br0", "text", "#"),
    ("PUT", f"{FDB}/0/52:54:00:00:00:01", {"port": "vm9"}, "#/bridges/br0/fdb/0/port"),
    ("PUT", f"{FDB}/0/52:54:00:00:00:01", {}, "#/port"),
    ("PUT", f"{FDB}/0/52:54:00:00:00:01", {"port": "vm1", "x": 1}, "#/x"),
    ("PUT", f"{FDB}/0/01:00:00:00:00:01", {"port": "vm1"}, "#/bridges/br0/fdb/0/mac"),
    ("PUT", f"{FDB}/4095/52:54:00:00:00:01", {"port": "vm1"}, "#/vid"),
    ("PUT", f"{FDB}/0/52:54", {"port": "vm1"}, "#/mac"),
]


@pytest.mark.parametrize(("method", "path", "body", "pointer"), BODIES)
async def test_wrong_values(switch: Switch, method: str, path: str, body: Any, pointer: str) -> None:
    from yarl import URL

    etag = switch.controller.etag
    url = URL(f"http://switch{path}", encoded=True)
    async with switch.session.request(method, url, json=body) as response:
        answer = Answer(response.status, response.content_type, await response.json(content_type=None), {})
    assert_problem(answer, 422)
    assert answer.pointers == [pointer]
    assert switch.controller.etag == etag


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        (f"{V1}/ports?limit=0", "?limit"),
        (f"{V1}/ports?limit=x", "?limit"),
        (f"{V1}/ports?limit=99999999999999999999", "?limit"),
        (f"{V1}/ports?limit=1&limit=2", "?limit"),
        (f"{V1}/ports?cursor=%25", "?cursor"),
        (f"{V1}/ports?cursor=_w==", "?cursor"),
        (f"{V1}/ports?offset=1", "?offset"),
        (f"{FDB}?type=old", "?type"),
        (f"{FDB}?vid=-1", "?vid"),
        (f"{FDB}?vid=4095", "?vid"),
        (f"{FDB}?port=vm9", "?port"),
        (f"{V1}/ports/vm1/attach?format=vmware", "?format"),
        (f"{V1}/ports/vm1/attach?qemu_version=new", "?qemu_version"),
        (f"{V1}/ports/vm1/attach?memory=1%20-x", "?memory"),
        (f"{V1}/ports/vm1/attach?queues=0", "?queues"),
        (f"{V1}/ports/vm1/attach?queues=17", "?queues"),
        (f"{V1}/ports/vm1/attach?queues=9", "?queues"),  # 8 are offered
        (f"{V1}/ports/vm1/attach?format=libvirt&queues=9", "?queues"),
        (f"{V1}/stats?x=1", "?x"),
        ("/openapi.json?x=1", "?x"),
    ],
)
async def test_wrong_queries(switch: Switch, path: str, pointer: str) -> None:
    answer = await switch.ask("GET", path)
    assert_problem(answer, 422)
    assert answer.pointers == [pointer]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", f"{V1}/ports/vm9", 404),
        ("GET", f"{V1}/ports/vm9/stats", 404),
        ("GET", f"{V1}/ports/vm9/attach", 404),
        ("GET", f"{V1}/bridges/br9", 404),
        ("GET", f"{V1}/bridges/br9/fdb", 404),
        ("DELETE", f"{V1}/bridges/br9/fdb", 404),
        ("DELETE", f"{V1}/bridges/br9", 404),
        ("DELETE", f"{FDB}/0/52:54:00:00:00:99", 404),
        ("GET", f"{V1}/bridges/br9/vlans", 404),
        ("GET", f"{V1}/bridges/br9/mirrors", 404),
        ("GET", f"{V1}/bridges/br0/mirrors/m9", 404),
        ("GET", f"{V1}/bridges/br9/meters", 404),
        ("GET", f"{V1}/bridges/br0/meters/m9", 404),
        ("GET", f"{V1}/bridges/br9/flows", 404),
        ("GET", f"{V1}/bridges/br0/flows/f9", 404),
        ("DELETE", f"{V1}/bridges/br9/flows", 404),
        ("DELETE", f"{V1}/bridges/br0/flows/f9", 404),
        ("DELETE", f"{V1}/bridges/br0/flows/priority=5,tcp", 404),
        ("GET", f"{V1}/config/revisions/99", 404),
        ("POST", f"{V1}/ports", 405),
        ("POST", "/metrics", 405),
        ("DELETE", f"{V1}/config", 405),
        ("TRACE", f"{V1}/ports", 405),
    ],
)
async def test_what_is_not_there(switch: Switch, method: str, path: str, status: int) -> None:
    answer = await switch.ask(method, path)
    assert_problem(answer, status)
    if status == 405:
        assert "GET" in answer.headers["Allow"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"ports": {}, "ports": {}}', "'ports' is given twice"),
        (b'{"ports": {"vm1": {"mtu": NaN}}}', "NaN"),
        (b'{"ports": {"vm1": {"mtu": 1e999}}}', "too large"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 50 + b"1" + b"}" * 50, "nested"),
        (b'{"x": "\xff"}', "UTF-8"),
        (b"\xff\xfe{}", "UTF-8"),
    ],
)
async def test_bodies_that_are_no_json(switch: Switch, raw: bytes, message: str) -> None:
    for path in (f"{V1}/config", f"{V1}/ports/vm1", f"{V1}/bridges/br0", f"{FDB}/0/52:54:00:00:00:01"):
        answer = await switch.ask("PUT", path, data=raw, headers=ANY)
        assert_problem(answer, 400)
        assert message in answer.body["detail"]


async def test_half_a_surrogate_pair_is_no_text(switch: Switch) -> None:
    raw = b'{"bridge": "br0", "labels": {"a": "\\ud800"}}'
    answer = await switch.ask("PUT", f"{V1}/ports/vm1", data=raw)
    assert_problem(answer, 422)
    assert answer.pointers == ["#/ports/vm1/labels/a"]


async def test_bodies_have_a_limit(switch: Switch) -> None:
    answer = await switch.ask("PUT", f"{V1}/config", data=io.BytesIO(b" " * ((8 << 20) + 1)), headers=ANY)
    assert_problem(answer, 413)


async def test_a_bug_is_a_problem_too(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, int]:
        raise ZeroDivisionError

    monkeypatch.setattr(switch.dataplane, "totals", fail)
    assert_problem(await switch.ask("GET", f"{V1}/stats"), 500)


@pytest.mark.parametrize("name", ["Host", "Origin"])
@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example:80", False),
        ("10.0.0.1", False),
        ("[::", False),
    ],
)
async def test_other_sites_are_refused_on_tcp(switch: Switch, name: str, value: str, allowed: bool) -> None:
    headers = {name: value if name == "Host" else f"http://{value}"}
    async with aiohttp.ClientSession() as session, session.get(switch.tcp + "/healthz", headers=headers) as response:
        body = await response.json(content_type=None)
        answer = Answer(response.status, response.content_type, body, {})
    if allowed:
        assert answer.status == 200
    else:
        assert_problem(answer, 403)


async def test_the_unix_socket_takes_any_host(switch: Switch) -> None:
    assert (await switch.ask("GET", "/healthz", headers={"Host": "evil.example"})).status == 200


PATHS = ["/config", "/ports/vm1", "/bridges/br0", "/bridges/br0/fdb/0/52:54:00:00:00:01"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(PATHS),
    raw=st.binary(max_size=40)
    | JUNK.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(["ports", "bridges", "api", "port"]), JUNK).map(
        lambda value: json.dumps(value).encode()
    ),
)
def test_no_body_is_an_internal_error(path: str, raw: bytes, tmp_path_factory: Any) -> None:
    """Without the fixture: many bodies, quickly."""
    import asyncio

    from aiohttp import web

    from pvswitch.api.app import make_app
    from pvswitch.api.schemas import Info
    from pvswitch.api.server import ApiServer
    from pvswitch.controller import Controller
    from pvswitch.events import Events
    from pvswitch.revisions import Revisions
    from pvswitch.validation import parse
    from tests.control.fake import FakeDataplane

    async def ask() -> int:
        config = parse({"runtime_dir": "/r", "ports": {"vm1": {}}})
        dataplane = FakeDataplane(config=config)
        with Revisions(tmp_path_factory.mktemp("state")) as revisions:
            controller = Controller(dataplane, config, revisions)
            app = make_app(controller, dataplane, revisions, Events(), Info(version="0", pid=1, started=""))
            return await answer(app)

    async def answer(app: web.Application) -> int:
        socket = tmp_path_factory.mktemp("api") / "api.sock"
        server = ApiServer(app, socket)
        await server.start()
        try:
            async with aiohttp.ClientSession("http://switch", connector=aiohttp.UnixConnector(str(socket))) as client:
                response = await client.put(f"{V1}{path}", data=raw, headers=ANY)
                await response.read()
                return response.status
        finally:
            await server.close()

    assert asyncio.run(ask()) in (200, 201, 400, 409, 422)
