# SPDX-License-Identifier: Apache-2.0
"""The Python client against the running API: every call, awaited and waited for; events that go on after a loss."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pvswitch.api.app import make_app
from pvswitch.api.routes import ROUTES
from pvswitch.api.schemas import Info
from pvswitch.api.server import ApiServer
from pvswitch.client import ApiError, AsyncClient, Client, NotRunning, events
from pvswitch.client.faces import operation, stream
from pvswitch.client.operations import Operations
from pvswitch.client.transport import Transport
from pvswitch.errors import PvswitchError
from pvswitch.events import BrokenEvent, Events
from pvswitch.model import SwitchConfig
from tests.control.conftest import MAC, Switch

# What `put_config` sends: nothing but bridge br0, in the folders of the switch.
DOCUMENT: dict[str, Any] = {}

INTO_A_TUNNEL = dict.fromkeys(("mtu", "socket", "mode", "queues", "features", "rxq_affinity"))
INTO_A_TUNNEL |= {"type": "vxlan", "vni": 7, "local": "2001:db8::1"}

# Each call once, in an order in which each finds what it needs and nothing is left behind.
CALLS: dict[str, Callable[[Any], Any]] = {
    "config": lambda c: c.config(),
    "put_bridge": lambda c: c.put_bridge("new", {"aging_time": 5}),
    "patch_bridge": lambda c: c.patch_bridge("new", {"aging_time": None}),
    "bridge": lambda c: c.bridge("new"),
    "bridges": lambda c: c.bridges(),
    "put_port": lambda c: c.put_port("p", {"bridge": "new", "mtu": 9000}),
    "patch_port": lambda c: c.patch_port("p", {"mtu": 1500, "labels": {"rack": "7"}}),
    "port": lambda c: c.port("p"),
    "ports": lambda c: c.ports(),
    "port_stats": lambda c: c.port_stats("p"),
    "attach": lambda c: c.attach("p", qemu_version="9.2", accel="tcg", memory="1G", queues=2),
    "put_fdb": lambda c: c.put_fdb("new", MAC, "p"),
    "fdb_entry": lambda c: c.fdb_entry("new", MAC),
    "vlans": lambda c: c.vlans("new"),
    "fdb": lambda c: c.fdb("new", port="p", vid=0, type="static"),
    "delete_fdb": lambda c: c.delete_fdb("new", MAC),
    "trace": lambda c: c.trace("new", {"in_port": "p", "fields": {"dl_type": "0x0806"}}),
    "put_meter": lambda c: c.put_meter("new", "slow", {"rate_pps": 10}),
    "meter": lambda c: c.meter("new", "slow"),
    "meters": lambda c: c.meters("new"),
    "put_flow": lambda c: c.put_flow("new", "priority=5,tcp", {"flow": "priority=5,tcp,actions=drop"}),
    "flow": lambda c: c.flow("new", "tcp,priority=5"),
    "flows": lambda c: c.flows("new"),
    "change_flows": lambda c: c.change_flows("new", {"add": {"a": "cookie=9,actions=meter:slow,normal"}}),
    "delete_flow": lambda c: c.delete_flow("new", "priority=5,tcp"),
    "flush_flows": lambda c: c.flush_flows("new", cookie="9"),
    "delete_meter": lambda c: c.delete_meter("new", "slow"),
    "put_mirror": lambda c: c.put_mirror("new", "m", {"output_port": "p", "snaplen": 96}),
    "mirror": lambda c: c.mirror("new", "m"),
    "mirrors": lambda c: c.mirrors("new"),
    "delete_mirror": lambda c: c.delete_mirror("new", "m"),
    "flush_fdb": lambda c: c.flush_fdb("new", port="p", vid=0),
    "put_config": lambda c: c.put_config(DOCUMENT, dry_run=True),
    "patch_config": lambda c: c.patch_config({"ports": {"p": INTO_A_TUNNEL}}),
    "tunnels": lambda c: c.tunnels(),
    "tunnel": lambda c: c.tunnel("p"),
    "put_tunnel_remote": lambda c: c.put_tunnel_remote("p", 7, "2001:db8::2"),
    "tunnel_remote": lambda c: c.tunnel_remote("p", 7, "2001:db8::2"),
    "tunnel_remotes": lambda c: c.tunnel_remotes("p", 7),
    "delete_tunnel_remote": lambda c: c.delete_tunnel_remote("p", 7, "2001:db8::2"),
    "put_tunnel_mac": lambda c: c.put_tunnel_mac("p", 7, MAC, "2001:db8::2", vid=5),
    "tunnel_mac": lambda c: c.tunnel_mac("p", 7, MAC, vid=5),
    "tunnel_macs": lambda c: c.tunnel_macs("p", 7),
    "delete_tunnel_mac": lambda c: c.delete_tunnel_mac("p", 7, MAC, vid=5),
    "change_tunnel": lambda c: c.change_tunnel("p", {"remove": {"remotes": [{"vni": 7, "address": "2001:db8::2"}]}}),
    "delete_port": lambda c: c.delete_port("p", if_match="*"),
    "delete_bridge": lambda c: c.delete_bridge("new"),
    "revisions": lambda c: c.revisions(),
    "revision": lambda c: c.revision(1),
    "restore": lambda c: c.restore(1, dry_run=True),
    "recent_events": lambda c: c.recent_events(types=["config"]),
    "events": lambda c: c.events(last_event_id="lost", types=["config", "link"]),
    "stats": lambda c: c.stats(),
    "perf": lambda c: c.perf(),
    "queue_perf": lambda c: c.queue_perf(),
    "rebalance": lambda c: c.rebalance(dry_run=True),
    "create_capture": lambda c: c.create_capture({"ports": ["vm1"], "filter": "arp"}),
    "captures": lambda c: c.captures(),
    "capture": lambda c: c.capture("00000001"),
    "capture_stream": lambda c: c.capture_stream("00000001"),
    "delete_capture": lambda c: c.delete_capture("00000001"),
    "drops": lambda c: c.drops(port="vm2", bridge="br0", direction="tx", reason="guest_rx_full", limit=9),
    "frames": lambda c: c.frames(port="vm1", bridge="br0", limit=9),
    "version": lambda c: c.version(),
    "healthz": lambda c: c.healthz(),
    "readyz": lambda c: c.readyz(),
    "metrics": lambda c: c.metrics(),
    "openapi": lambda c: c.openapi(),
}
ENDLESS = {"events"}


def everything(client: Client) -> dict[str, Any]:
    """Make every call; of an endless one take the first result."""
    results: dict[str, Any] = {}
    for name, call in CALLS.items():
        result = call(client)
        if name in ENDLESS:
            results[name] = [next(result)]
            result.close()
        else:
            results[name] = list(result) if isinstance(result, Iterator) else result
    return results


async def everything_awaited(client: AsyncClient) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, call in CALLS.items():
        result = call(client)
        if name in ENDLESS:
            results[name] = [await anext(result)]
            await result.aclose()
        elif isinstance(result, AsyncIterator):
            results[name] = [item async for item in result]
        else:
            results[name] = await result
    return results


def use(address: str) -> dict[str, Any]:
    with Client(address) as client:
        return everything(client)


def test_no_call_is_left_out() -> None:
    assert set(CALLS) == {
        name for name in dir(Operations) if isinstance(inspect.getattr_static(Operations, name), operation | stream)
    }


async def test_every_call_by_both_clients(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = switch.controller.config.document()
    monkeypatch.setitem(globals(), "DOCUMENT", {**whole, "bridges": {"br0": {}}, "ports": {}})
    switch.dataplane.captures.short = True
    asked: set[tuple[str, str]] = set()
    real = Transport.open

    def noted(self: Transport, method: str, path: str, *rest: Any) -> Any:
        asked.add((method, path))
        return real(self, method, path, *rest)

    monkeypatch.setattr(Transport, "open", noted)
    async with AsyncClient(f"unix:{switch.socket}") as client:
        awaited = await everything_awaited(client)
    waited_for = await asyncio.to_thread(use, switch.tcp)
    assert {name: type(value) for name, value in awaited.items()} == {
        name: type(value) for name, value in waited_for.items()
    }
    assert isinstance(awaited["config"].document, SwitchConfig)
    assert awaited["patch_port"].mtu == 1500
    assert awaited["port"].state.link == "down"
    assert [entry.mac for entry in awaited["fdb"]] == [MAC]
    assert [change.op for change in awaited["put_config"].changes] == ["remove"] * 3 + ["remove"] * 2
    assert "reconnect-ms" in awaited["attach"].text
    assert {event.data.type for event in awaited["recent_events"]} == {"config"}
    assert awaited["events"][0].data.type == "reset"
    assert (awaited["rebalance"].moves[0].source, awaited["rebalance"].applied) == (0, False)
    assert awaited["revisions"][-1].number == 1
    assert (awaited["tunnel"].local, awaited["tunnel_macs"][0].remote) == ("2001:db8::1", "2001:db8::2")
    assert (awaited["tunnel_remote"].origin, awaited["change_tunnel"].removed) == ("external", 0)
    assert (awaited["create_capture"].ports, awaited["capture"].filter) == (("vm1",), "arp")
    assert (awaited["drops"][0].in_port, awaited["frames"][0].out_port) == ("vm1", "vm2")
    assert "pvswitch_port_rx_packets_total" in awaited["metrics"]
    for route in ROUTES:
        pattern = re.sub(r"{\w+}", "[^/]+", route.path)
        assert any(method == route.method and re.fullmatch(pattern, path) for method, path in asked), route


async def test_a_collection_is_read_page_by_page(switch: Switch) -> None:
    async with AsyncClient(f"unix:{switch.socket}") as client:
        ports = {f"p{i:03}": {"bridge": "br0"} for i in range(1001)}
        await client.patch_config({"ports": ports})
        assert [port.name for port in await client.ports()] == sorted([*ports, "vm1", "vm2"])


async def test_an_edit_of_what_somebody_else_has_changed_is_refused(switch: Switch) -> None:
    async with AsyncClient(f"unix:{switch.socket}") as client:
        _, etag = await client.config()
        await client.patch_port("vm1", {"mtu": 1500}, if_match=etag)
        for edit in (
            client.patch_port("vm1", {"mtu": 9000}, if_match=etag),
            client.put_config({}, if_match=etag),
            client.restore(1, if_match=etag),
            client.delete_port("vm1", if_match=etag),
        ):
            with pytest.raises(ApiError) as refused:
                await edit
            assert refused.value.status == 412
        assert (await client.port("vm1")).mtu == 1500


async def test_what_was_read_can_be_written(switch: Switch) -> None:
    async with AsyncClient(f"unix:{switch.socket}") as client:
        document, etag = await client.config()
        assert (await client.put_config(document, if_match=etag)).changes == []
        assert (await client.put_port("vm2", await client.port("vm2"))).mtu == 1500


async def test_a_refusal_says_every_wrong_value(switch: Switch) -> None:
    async with AsyncClient(f"unix:{switch.socket}") as client:
        with pytest.raises(ApiError) as refused:
            await client.patch_port("vm1", {"mtu": 1, "enabled": 0})
    assert (refused.value.status, refused.value.detail) == (422, str(refused.value))
    assert [error["pointer"] for error in refused.value.errors] == ["#/ports/vm1/enabled", "#/ports/vm1/mtu"]


def test_nobody_there(tmp_path: Path) -> None:
    with Client(f"unix:{tmp_path}/api.sock") as client:
        with pytest.raises(NotRunning, match="pvswitch run"):
            client.ports()
        with pytest.raises(NotRunning):
            next(client.events())


async def test_a_blocking_client_is_refused_on_an_event_loop(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        Client(f"unix:{tmp_path}/api.sock").ports()


@pytest.mark.parametrize("address", ["", "unix:", "ftp://x", "http:", "https://", "/run/api.sock"])
def test_addresses_that_are_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVSWITCH_API", "nowhere")
    with pytest.raises(PvswitchError, match="no address of a switch"):
        Client(address)


@asynccontextmanager
async def stranger(answer: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """Serve something that is not the API; give its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


async def test_the_token_comes_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"status": "ok"})

    async with stranger(answer) as address:
        for token in (None, "of-the-argument"):
            async with AsyncClient(address, token=token) as client:
                await client.healthz()
        monkeypatch.setenv("PVSWITCH_TOKEN", "of-the-environment")
        async with AsyncClient(address) as client:
            await client.healthz()
    assert seen == [None, "Bearer of-the-argument", "Bearer of-the-environment"]


@pytest.mark.parametrize("token", ["two\nlines", "two words", "schlüssel"])
def test_a_token_that_is_none(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVSWITCH_TOKEN", token)
    with pytest.raises(PvswitchError, match="not one word of plain characters"):
        Client("http://127.0.0.1:1")


async def test_tls_where_there_is_none() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async with stranger(answer) as address, AsyncClient(address.replace("http:", "https:")) as client:
        with pytest.raises(NotRunning, match=r"with TLS .*: use http://"):
            await client.healthz()


async def test_a_group_of_the_switchs_machine_need_not_be_here() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"socket_group": "of-another-machine"})

    async with stranger(answer) as address, AsyncClient(address) as client:
        assert (await client.config()).document.socket_group == "of-another-machine"


async def test_answers_of_something_else_are_one_sentence() -> None:
    answers = iter([web.Response(text="<html>"), web.json_response({"status": "odd"}), web.Response(status=502)])

    async def answer(_: web.Request) -> web.Response:
        return next(answers)

    async with stranger(answer) as address, AsyncClient(address) as client:
        with pytest.raises(NotRunning, match="no switch answers"):
            await client.healthz()
        with pytest.raises(PvswitchError, match="another version"):
            await client.healthz()
        with pytest.raises(ApiError, match="the switch answered 502"):
            await client.healthz()


async def test_an_answer_that_does_not_come() -> None:
    never = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with stranger(answer) as address, AsyncClient(address, timeout=0.05) as client:
        with pytest.raises(NotRunning, match=r"nothing came for 0\.05 s"):
            await client.healthz()
        never.set()


def test_the_client_needs_no_data_plane() -> None:
    code = (
        "import sys, pvswitch.client; rooms = {'datapath', 'ports', 'controller', 'daemon', 'uplink', '_native'};"
        "print(sorted(rooms & {name.split('.')[1] for name in sys.modules if name.startswith('pvswitch.')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


# ---- events ----


def broken(detail: str) -> BrokenEvent:
    return BrokenEvent(port="vm1", bridge="br0", detail=detail)


def detail(event: events.Event) -> str:
    assert isinstance(event.data, BrokenEvent)
    return event.data.detail


@asynccontextmanager
async def api(switch: Switch, bus: Events) -> AsyncIterator[None]:
    """Serve the same switch once more, at an address of its own, with this bus."""
    info = Info(version="0.1.0", pid=1, started="2025-01-01T00:00:00Z")
    app = make_app(switch.controller, switch.dataplane, switch.revisions, bus, info)
    server = ApiServer(app, switch.socket.parent / "again.sock", mode=0o660)
    await server.start()
    try:
        yield
    finally:
        await server.close()


async def test_events_go_on_after_a_loss(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.01)
    bus = Events()
    async with AsyncClient(f"unix:{switch.socket.parent}/again.sock") as client, asyncio.timeout(20):
        stream = client.events(last_event_id=bus.id_of(0), types=["broken"])
        bus.publish(broken("first"))
        async with api(switch, bus):
            assert detail(await anext(stream)) == "first"
        bus.closed = False  # the loss is of the connection only: the bus has kept its events
        bus.publish(broken("while nobody listened"))
        second = asyncio.create_task(anext(stream))
        async with api(switch, bus):
            assert detail(await second) == "while nobody listened"
            await stream.aclose()


async def test_a_switch_that_does_not_come_back_ends_the_stream(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.01)
    async with AsyncClient(f"unix:{switch.socket.parent}/again.sock", timeout=0.1) as client, asyncio.timeout(20):
        stream = client.events(last_event_id="of another life")
        async with api(switch, Events()):
            assert (await anext(stream)).data.type == "reset"
        with pytest.raises(NotRunning):
            await anext(stream)


async def test_what_a_stream_may_hold() -> None:
    reset = b'data: {"type": "reset",\r\ndata: "time": "2025-01-01T00:00:00Z"}\r\n'

    async def lines() -> AsyncIterator[bytes]:
        whole = b": keep-alive\r\n\r\nid: a-1\r\n\r\nid: a-2\r\nevent: reset\r\n" + reset + b"\r\n"
        whole += b'id: a-3\ndata: {"type": "of a newer switch"}\n\n' + b"id:a-4\nretry: 5\n" + reset + b"\n" + reset
        for line in whole.splitlines(keepends=True):
            yield line

    place = events.Place()
    found = [(event.id, event.data.type) async for event in events.parse(lines(), place)]
    assert found == [("a-2", "reset"), ("a-4", "reset")]  # the last one was cut off
    assert place.id == "a-4"


def test_the_environment_names_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVSWITCH_API", raising=False)
    assert Client().address.endswith("pvswitch/api.sock")
    monkeypatch.setenv("PVSWITCH_API", "https://switch.example:1")
    assert Client().address == os.environ["PVSWITCH_API"]
