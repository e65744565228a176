# SPDX-License-Identifier: Apache-2.0
"""The API as a program uses it: resources, collections, edits and their conditions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.control.conftest import MAC, Switch

V1 = "/api/v1"
FDB = f"{V1}/bridges/br0/fdb"


async def test_the_configuration_can_be_read_and_written_back(switch: Switch) -> None:
    got = await switch.ask("GET", f"{V1}/config")
    assert got.status == 200
    etag = got.headers["ETag"]
    put = await switch.ask("PUT", f"{V1}/config", json=got.body, headers={"If-Match": etag})
    assert (put.status, put.body, put.headers["ETag"]) == (200, {"changes": [], "disruptive": False}, etag)


async def test_the_configuration_can_be_replaced(switch: Switch) -> None:
    got = await switch.ask("GET", f"{V1}/config")
    got.body["ports"]["vm3"] = {"bridge": "lan"}
    del got.body["ports"]["vm1"]
    options: dict[str, Any] = {"json": got.body, "headers": {"If-Match": got.headers["ETag"]}}
    dry = await switch.ask("PUT", f"{V1}/config?dry_run=true", **options)
    assert [change["pointer"] for change in dry.body["changes"]] == ["#/ports/vm1", "#/ports/vm3"]
    assert dry.body["disruptive"] is True
    assert dry.headers["ETag"] == got.headers["ETag"]
    assert "vm1" in switch.controller.config.ports
    real = await switch.ask("PUT", f"{V1}/config", **options)
    assert real.body == dry.body
    assert real.headers["ETag"] != got.headers["ETag"]
    assert set(switch.dataplane.config.ports) == {"vm2", "vm3"}
    stale = await switch.ask("PUT", f"{V1}/config", **options)
    assert (stale.status, stale.body["type"]) == (412, "/problems/stale")


async def test_replacing_the_configuration_needs_a_condition(switch: Switch) -> None:
    missing = await switch.ask("PUT", f"{V1}/config", json={})
    assert missing.status == 428
    anything = await switch.ask("PUT", f"{V1}/config?dry_run=true", json={}, headers={"If-Match": "*"})
    assert anything.status in (200, 409)
    weak = f'W/"{switch.controller.etag}"'
    assert (await switch.ask("PUT", f"{V1}/config", json={}, headers={"If-Match": weak})).status == 412
    assert (await switch.ask("PUT", f"{V1}/config", json={}, headers={"If-Match": "bare"})).status == 400


async def test_what_takes_a_restart_is_a_conflict(switch: Switch) -> None:
    document = switch.controller.config.document() | {"socket_dir": "/elsewhere"}
    answer = await switch.ask("PUT", f"{V1}/config", json=document, headers={"If-Match": "*"})
    assert answer.status == 409
    assert "restart" in answer.body["detail"]


async def test_a_failed_apply_is_a_conflict_and_changes_nothing(switch: Switch) -> None:
    switch.dataplane.broken.add("vm9")
    etag = switch.controller.etag
    answer = await switch.ask("PUT", f"{V1}/ports/vm9", json={"bridge": "br0"})
    assert (answer.status, answer.pointers) == (409, ["#/ports/vm9"])
    assert switch.controller.etag == etag


async def test_a_port_lives(switch: Switch) -> None:
    path = f"{V1}/ports/vm9"
    assert (await switch.ask("GET", path)).status == 404
    made = await switch.ask("PUT", path, json={"bridge": "lan", "mtu": 9000})
    assert (made.status, made.body["mtu"], made.body["name"]) == (201, 9000, "vm9")
    got = await switch.ask("GET", path)
    assert got.body["state"]["reason"] == "waiting_for_frontend"
    assert got.body["socket"] in got.body["state"]["message"]
    changed = await switch.ask("PUT", path, json=got.body | {"enabled": False})
    assert (changed.status, changed.body["state"]["reason"]) == (200, "admin_down")
    assert (await switch.ask("DELETE", path)).status == 204
    assert (await switch.ask("DELETE", path)).status == 404


async def test_edits_honour_if_match(switch: Switch) -> None:
    old = f'"{switch.controller.etag}"'
    body = {"bridge": "br0"}
    made = await switch.ask("PUT", f"{V1}/ports/a", json=body, headers={"If-Match": old})
    assert made.status == 201
    for method, path in (
        ("PUT", f"{V1}/ports/b"),
        ("DELETE", f"{V1}/ports/a"),
        ("DELETE", f"{V1}/bridges/lan"),
        ("DELETE", FDB),
    ):
        options: dict[str, Any] = {"json": body} if method == "PUT" else {}
        assert (await switch.ask(method, path, headers={"If-Match": old}, **options)).status == 412, path
    new = made.headers["ETag"]
    comma = {"If-Match": '"8,9"'}
    assert (await switch.ask("DELETE", f"{V1}/ports/a", headers=comma)).status == 412, "one etag, of three characters"
    assert (await switch.ask("DELETE", f"{V1}/ports/a", headers={"If-Match": f"{old}, {new}"})).status == 204


async def test_a_bridge_lives(switch: Switch) -> None:
    path = f"{V1}/bridges/new"
    assert (await switch.ask("PUT", path, json={"aging_time": 5})).status == 201
    assert (await switch.ask("PUT", path, json={})).status == 200
    assert (await switch.ask("GET", path)).body["aging_time"] == 300
    assert (await switch.ask("DELETE", path)).status == 204
    in_use = await switch.ask("DELETE", f"{V1}/bridges/br0")
    assert (in_use.status, in_use.pointers) == (409, ["#/ports/vm1", "#/ports/vm2"])


async def test_static_addresses_are_part_of_the_configuration(switch: Switch) -> None:
    path = f"{FDB}/0/{MAC.upper()}"
    assert (await switch.ask("PUT", path, json={"port": "vm1"})).status == 201
    moved = await switch.ask("PUT", path, json={"port": "vm2"})
    assert (moved.status, moved.body["port"], moved.body["name"]) == (200, "vm2", f"0/{MAC}")
    assert switch.controller.config.bridges["br0"].fdb[0].port == "vm2"
    assert (await switch.ask("GET", path)).body["type"] == "static"
    held = await switch.ask("DELETE", f"{V1}/ports/vm2")
    assert held.status == 409
    assert MAC in held.body["detail"]
    assert (await switch.ask("DELETE", path)).status == 204
    assert (await switch.ask("GET", path)).status == 404
    assert switch.controller.config.bridges["br0"].fdb == ()


async def test_learned_addresses_are_listed_filtered_and_flushed(switch: Switch) -> None:
    await switch.ask("PUT", f"{FDB}/0/{MAC}", json={"port": "vm1"})
    etag = switch.controller.etag
    for i, port in enumerate(["vm1", "vm2", "vm2"]):
        switch.dataplane.learn("br0", f"02:00:00:00:00:0{i}", port)

    async def macs(query: str = "") -> list[str]:
        return [item["mac"][-2:] for item in (await switch.ask("GET", FDB + query)).body["items"]]

    assert await macs() == ["00", "01", "02", "01"]
    assert await macs("?port=vm2") == ["01", "02"]
    assert await macs("?type=static") == ["01"]
    assert await macs("?type=dynamic&port=vm1&vid=0") == ["00"]
    assert await macs("?vid=5") == []
    assert (await switch.ask("DELETE", f"{FDB}/0/02:00:00:00:00:02")).status == 204
    assert await macs("?port=vm2") == ["01"]
    assert (await switch.ask("DELETE", f"{FDB}?port=vm2")).status == 204
    assert await macs() == ["00", "01"]
    assert (await switch.ask("DELETE", FDB)).status == 204
    assert await macs() == ["01"]
    assert switch.controller.etag == etag
    assert (await switch.ask("DELETE", f"{FDB}?type=static")).status == 204
    assert await macs() == []


async def test_collections_come_in_pages(switch: Switch) -> None:
    for i in range(5):
        await switch.ask("PUT", f"{V1}/ports/p{i}", json={"bridge": "br0"})
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = (await switch.ask("GET", f"{V1}/ports", params=query)).body
        assert len(page["items"]) <= 3
        seen += [item["name"] for item in page["items"]]
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
        await switch.ask("DELETE", f"{V1}/ports/{seen[-1]}")  # a cursor outlives what it points at
    assert seen == ["p0", "p1", "p2", "p3", "p4", "vm1", "vm2"]


async def test_counters_and_probes(switch: Switch) -> None:
    stats = (await switch.ask("GET", f"{V1}/ports/vm1/stats")).body
    assert (stats["rx_packets"], stats["rx_drops"]) == (7, {"no_destination": 2})
    assert (await switch.ask("GET", f"{V1}/stats")).body == {"rx_packets": 7, "ports": 2}
    assert (await switch.ask("GET", f"{V1}/perf")).body["items"][0]["cycles_per_packet"] == 100.0
    queues = (await switch.ask("GET", f"{V1}/perf/queues")).body
    assert [(queue["name"], queue["worker"], queue["cycles"]) for queue in queues["items"]] == [("vm1/0", 0, 350)]
    assert (await switch.ask("GET", "/healthz")).body == {"status": "ok"}
    assert (await switch.ask("GET", "/readyz")).status == 200
    switch.dataplane.is_ready = False
    assert (await switch.ask("GET", "/readyz")).status == 503
    assert (await switch.ask("GET", "/version")).body["version"] == "0.1.0"


async def test_queues_are_rebalanced(switch: Switch) -> None:
    """The configuration stays as it is: no ETag, no revision."""
    path, etag = f"{V1}/perf/rebalance", switch.controller.etag
    move = {"port": "vm1", "queue": 0, "from": 0, "to": 1, "load": 0.4}
    for query, applied in (("?dry_run=true", False), ("?dry_run=false", True)):
        answer = await switch.ask("POST", path + query)
        assert (answer.status, answer.body["moves"], answer.body["applied"]) == (200, [move], applied)
        assert answer.body["before"] == {"workers": [0.8, 0.0], "busiest": 0.8, "variance": 0.16}
        assert answer.body["after"]["workers"] == [0.4, 0.4]
        assert "ETag" not in answer.headers
    answer = await switch.ask("POST", path)
    assert (answer.body["moves"], answer.body["applied"]) == ([], False)
    assert (switch.controller.etag, len(switch.revisions.all())) == (etag, 1)
    switch.dataplane.workers = 1
    answer = await switch.ask("POST", path)
    assert (answer.status, answer.pointers) == (409, ["#/datapath/workers"])
    assert "raise `datapath.workers`" in answer.body["detail"]
    assert (await switch.ask("POST", f"{path}?dry_run=1")).status == 422
    assert (await switch.ask("GET", path)).status == 405


async def test_the_lines_for_a_vm(switch: Switch) -> None:
    path = f"{V1}/ports/vm2/attach"
    qemu = (await switch.ask("GET", path)).body
    assert "host_mtu=1500" in qemu["text"]
    assert "reconnect=1" in qemu["text"]
    modern = (await switch.ask("GET", f"{path}?format=qemu&qemu_version=9.2.1&memory=1G")).body
    assert "reconnect-ms=1000" in modern["text"]
    assert modern["args"][:2] == ["-m", "1G"]
    assert "vhostuser" in (await switch.ask("GET", f"{path}?format=libvirt")).body["text"]
    several = (await switch.ask("GET", f"{path}?queues=8")).body
    assert "mq=on,vectors=18" in several["args"][-1]
    assert "queues='8'" in (await switch.ask("GET", f"{path}?format=libvirt&queues=8")).body["text"]


async def test_the_description_is_valid_and_complete(switch: Switch) -> None:
    description = (await switch.ask("GET", "/openapi.json")).body
    validate(description)
    assert description["openapi"].startswith("3.1")
    operations = {(method.upper(), path) for path, item in description["paths"].items() for method in item}
    assert ("PUT", "/api/v1/bridges/{br}/fdb/{vid}/{mac}") in operations
    acts = description["paths"]["/api/v1/perf/rebalance"]["post"]
    assert [parameter["name"] for parameter in acts["parameters"]] == ["dry_run"], "no If-Match: it edits nothing"
    runner_app = switch.server._runner.app
    registered = {(route.method, route.resource.canonical) for route in runner_app.router.routes() if route.resource}
    assert operations == {(method, path) for method, path in registered if not path.startswith("/static/")}
    text = json.dumps(description)
    assert '"PortResource"' in text
    assert "resubmit" not in text


@pytest.mark.parametrize("path", ["/api/v1/ports", "/healthz"])
async def test_tcp_answers_as_the_socket_does(switch: Switch, path: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(switch.tcp + path) as response:
        assert response.status == 200
        assert await response.json() == (await switch.ask("GET", path)).body
