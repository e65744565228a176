# SPDX-License-Identifier: Apache-2.0
"""Flows and meters by the API: as JSON and as OVS text, one by one and in batches, by name and by match."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.control.conftest import Answer, Switch

V1 = "/api/v1"
FLOWS = f"{V1}/bridges/br0/flows"
BATCH = f"{V1}/bridges/br0/flows:batch"
METERS = f"{V1}/bridges/br0/meters"
TEXT = "priority=100,tcp,in_port=vm1,nw_dst=10.0.0.0/24,tp_dst=80"
BODY: dict[str, Any] = {
    "priority": 100,
    "match": {"in_port": "vm1", "dl_type": "0x0800", "nw_dst": "10.0.0.0/24", "nw_proto": 6, "tp_dst": 80},
    "actions": ["set_vlan_vid:20", "output:vm2"],
}
DEFAULTS = {"cookie": "0x0", "idle_timeout": 0, "hard_timeout": 0}
STATS = {"packets": 3, "bytes": 180, "duration": 10.0, "idle": 5.0}


async def put(switch: Switch, name: str, body: object, **options: Any) -> Answer:
    return await switch.ask("PUT", f"{FLOWS}/{quote(name, safe='')}", json=body, **options)


def flows(switch: Switch) -> set[str]:
    return set(switch.controller.config.bridges["br0"].flows)


async def test_a_flow_comes_changes_and_goes(switch: Switch) -> None:
    made = await put(switch, "web", BODY)
    assert (made.status, made.body) == (201, {"name": "web", **BODY, **DEFAULTS, "stats": STATS})
    assert made.headers["ETag"] == f'"{switch.controller.etag}"'
    assert (await switch.ask("GET", f"{FLOWS}/web")).body == made.body
    again = await put(switch, "web", made.body)
    assert (again.status, again.body) == (200, made.body), "what was read can be written back"
    changed = await put(switch, "web", {"actions": []})
    assert (changed.status, changed.body["actions"], changed.body["match"]) == (200, ["drop"], {})
    assert (await switch.ask("DELETE", f"{FLOWS}/web")).status == 204
    assert (await switch.ask("DELETE", f"{FLOWS}/web")).status == 404
    assert flows(switch) == set()


async def test_a_flow_without_a_name_is_named_by_its_match(switch: Switch) -> None:
    made = await put(switch, TEXT, BODY)
    assert (made.status, made.body["name"]) == (201, TEXT)
    for name in (TEXT, "tp_dst=0x50,nw_dst=10.0.0.77/24,tcp,in_port=vm1,priority=100"):
        found = await switch.ask("GET", f"{FLOWS}/{quote(name, safe='')}")
        assert (found.status, found.body["name"]) == (200, TEXT)
    assert (await switch.ask("DELETE", f"{FLOWS}/{quote('priority=100, ' + TEXT, safe='')}")).status == 204
    wrong = await put(switch, "priority=5,tcp", {"actions": ["drop"]})
    assert (wrong.status, wrong.pointers) == (422, ["#/bridges/br0/flows/priority=5,tcp"])
    assert "'priority=32768'" in wrong.body["detail"]


async def test_text_is_taken_in_the_place_of_keys(switch: Switch) -> None:
    made = await put(switch, "f", {"flow": "cookie=5,idle_timeout=9,udp,tp_dst=53,actions=normal"})
    assert (made.status, made.body["cookie"], made.body["match"]["tp_dst"]) == (201, "0x5", 53)
    assert (made.body["idle_timeout"], made.body["priority"]) == (9, 32768)
    for body, pointer in (
        ({"flow": "tcp,tp_dst=x,actions=drop"}, "#/bridges/br0/flows/f/match/tp_dst"),
        ({"flow": 7}, "#/bridges/br0/flows/f/flow"),
        ({"flow": "actions=drop", "priority": 5}, "#/bridges/br0/flows/f/flow"),
        ({"actions": ["output:vm9"]}, "#/bridges/br0/flows/f/actions/0"),
        ({"actions": ["drop"], "name": "g"}, "#/bridges/br0/flows/f/name"),
    ):
        refused = await put(switch, "f", body)
        assert (refused.status, refused.pointers) == (422, [pointer])


async def test_pages_and_filters(switch: Switch) -> None:
    lines = [f"cookie={i % 2},dl_vlan={i},in_port=vm{1 + i % 2},actions=drop" for i in range(1, 6)]
    assert (await switch.ask("POST", BATCH, json={"add": "\n".join(lines)})).body["added"] == 5
    first = await switch.ask("GET", f"{FLOWS}?limit=2")
    rest = await switch.ask("GET", f"{FLOWS}?cursor={first.body['next']}")
    names = [item["name"] for item in (*first.body["items"], *rest.body["items"])]
    assert (len(first.body["items"]), rest.body["next"], names) == (2, None, sorted(flows(switch)))
    assert all(item["stats"] == STATS for item in first.body["items"])
    assert len((await switch.ask("GET", f"{FLOWS}?cookie=0x1")).body["items"]) == 3
    assert len((await switch.ask("GET", f"{FLOWS}?port=vm1")).body["items"]) == 2
    assert (await switch.ask("GET", f"{FLOWS}?cookie=x")).pointers == ["?cookie"]
    assert (await switch.ask("GET", f"{FLOWS}?port=vm9")).pointers == ["?port"]
    assert (await switch.ask("DELETE", f"{FLOWS}?port=vm9")).status == 422
    assert len(flows(switch)) == 5
    assert (await switch.ask("DELETE", f"{FLOWS}?cookie=1/1")).status == 204
    assert len(flows(switch)) == 2
    assert (await switch.ask("DELETE", FLOWS)).status == 204
    assert flows(switch) == set()


async def test_a_batch_is_made_as_a_whole(switch: Switch) -> None:
    await put(switch, "old", {"actions": ["drop"], "priority": 1})
    await put(switch, "kept", {"actions": ["drop"], "priority": 2})
    body = {
        "delete": ["old", "priority=2"],
        "add": [
            BODY,
            {"flow": "name=text,priority=3,actions=drop"},
            {"name": "mine", "actions": ["normal"], "stats": {}},
        ],
    }
    revision = switch.revisions.last()
    refused = await switch.ask("POST", BATCH, json=body)
    assert (refused.status, refused.pointers) == (404, ["#/delete/1"])
    assert (switch.revisions.last(), flows(switch)) == (revision, {"old", "kept"})
    done = await switch.ask("POST", BATCH, json={**body, "delete": ["old"]})
    assert (done.status, done.body) == (200, {"added": 3, "changed": 0, "removed": 1})
    assert flows(switch) == {"kept", TEXT, "text", "mine"}
    again = await switch.ask(
        "POST", BATCH, json={"add": {"mine": "actions=drop", "kept": {"actions": [], "priority": 2}}}
    )
    assert again.body == {"added": 0, "changed": 1, "removed": 0}
    listed = await switch.ask("GET", FLOWS)
    assert (await switch.ask("POST", BATCH, json={"add": listed.body["items"]})).body["changed"] == 0


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (
            {"add": [{"match": {"x": 1}, "actions": ["drop"]}, "table=1,actions=drop", 7]},
            ["#/add/0/match/x", "#/add/1/table", "#/add/2"],
        ),
        ({"add": {"a": "tcp", "b": {"actions": ["x"]}}}, ["#/add/a/actions", "#/add/b/actions/0"]),
        ({"add": "ip,actions=drop\nfoo,actions=drop\n"}, ["#/add/line 2/foo"]),
        ({"add": ["ip,actions=drop", "dl_type=0x800,actions=normal"]}, ["#/add/1"]),
        ({"add": [{"name": 5, "actions": ["drop"]}]}, ["#/add/0/name"]),
        ({"add": 7}, ["#/add"]),
        ({"delete": "x"}, ["#/delete"]),
        ({"remove": ["x"]}, ["#/remove"]),
        ({"add": ["actions=output:vm9"]}, ["#/bridges/br0/flows/priority=32768/actions/0"]),
        ({"add": {"a": "ip,actions=drop", "b": "ip,actions=normal"}}, ["#/bridges/br0/flows/b"]),
    ],
)
async def test_a_batch_is_refused_with_every_error(switch: Switch, body: Any, pointers: list[str]) -> None:
    refused = await switch.ask("POST", BATCH, json=body)
    assert (refused.status, refused.pointers) == (422, pointers)
    assert flows(switch) == set()


async def test_what_flows_name_stays(switch: Switch) -> None:
    await switch.ask("PUT", f"{V1}/bridges/br0/mirrors/w", json={"output_vlan": 9})
    assert (await switch.ask("PUT", f"{METERS}/slow", json={"rate_kbps": 1000})).status == 201
    await put(switch, "f", {"actions": ["meter:slow", "mirror:w", "output:vm2"]})
    for path in (f"{METERS}/slow", f"{V1}/bridges/br0/mirrors/w", f"{V1}/ports/vm2"):
        refused = await switch.ask("DELETE", path)
        assert (refused.status, refused.pointers) == (409, ["#/bridges/br0/flows/f"])
        assert "flow 'f' of bridge 'br0' names" in refused.body["detail"]
    assert (await switch.ask("DELETE", f"{FLOWS}/f")).status == 204
    for path in (f"{METERS}/slow", f"{V1}/bridges/br0/mirrors/w", f"{V1}/ports/vm2"):
        assert (await switch.ask("DELETE", path)).status == 204


async def test_meters(switch: Switch) -> None:
    made = await switch.ask("PUT", f"{METERS}/slow", json={"rate_pps": 100})
    counted = {"packets": 5, "bytes": 300, "dropped_packets": 2, "dropped_bytes": 120}
    assert (made.status, made.body) == (
        201,
        {"name": "slow", "rate_pps": 100, "burst_packets": 10, "stats": counted},
    )
    assert (await switch.ask("PUT", f"{METERS}/slow", json=made.body)).status == 200
    assert [item["name"] for item in (await switch.ask("GET", METERS)).body["items"]] == ["slow"]
    assert (await switch.ask("GET", f"{METERS}/slow")).body == made.body
    refused = await switch.ask("PUT", f"{METERS}/m2", json={})
    assert (refused.status, refused.pointers) == (422, ["#/bridges/br0/meters/m2"])
    assert (await switch.ask("DELETE", f"{METERS}/slow")).status == 204
    assert (await switch.ask("DELETE", f"{METERS}/slow")).status == 404


async def test_the_document_has_flows_and_keeps_them(switch: Switch) -> None:
    await put(switch, "web", BODY)
    before = switch.controller.config.bridges["br0"].flows["web"]
    await switch.ask("PATCH", f"{V1}/ports/vm2", json={"mtu": 9000})
    assert switch.controller.config.bridges["br0"].flows["web"] is before, "not read again"
    document = await switch.ask("GET", f"{V1}/config")
    assert document.body["bridges"]["br0"]["flows"] == {"web": {**BODY, **DEFAULTS}}
    last = switch.revisions.last()
    assert last is not None
    assert switch.revisions.read(last.number) == document.body
    etag = switch.controller.etag
    same = await switch.ask("PUT", f"{V1}/config", json=document.body, headers={"If-Match": "*"})
    assert (same.body["changes"], switch.controller.etag) == ([], etag)
    patch = {"bridges": {"br0": {"flows": {"web": {"match": {"tp_dst": 81}}}}}}
    changed = await switch.ask("PATCH", f"{V1}/config", json=patch, headers={"If-Match": "*"})
    assert changed.body["changes"][0]["detail"] == "change bridge br0: flows 1 changed (web)"
    assert (await switch.ask("GET", f"{FLOWS}/web")).body["match"] == {**BODY["match"], "tp_dst": 81}
    assert switch.controller.etag != etag


async def test_many_changed_flows_are_told_in_few_words(switch: Switch) -> None:
    lines = [f"dl_src=52:54:00:00:{i >> 8:02x}:{i & 255:02x},actions=drop" for i in range(10_000)]
    done = await switch.ask("POST", BATCH, json={"add": "\n".join(lines)})
    assert done.body["added"] == 10_000
    last = switch.revisions.last()
    assert last is not None
    assert last.summary[0].startswith("change bridge br0: flows 10000 added (priority=32768,dl_src=52:54:00:00:00:00; ")
    assert len(last.summary[0]) < 200
    assert len(json.dumps(last.summary)) < 300
