# SPDX-License-Identifier: Apache-2.0
"""Mirrors and policies as they are configured: the API's resource, every value that is refused, what a dry run says.

What they do to frames is another matter (tests/wire). A refusal is tried both as one resource's edit and as the whole
document; whatever is refused leaves the revision as it was.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from pvswitch.controller import plan
from pvswitch.errors import InvalidDocument
from pvswitch.validation import parse
from tests.control.command import Command
from tests.control.conftest import MAC, Answer, Switch

V1 = "/api/v1"
MIRRORS = f"{V1}/bridges/br0/mirrors"
BODY: dict[str, Any] = {"select_src_port": ["vm1"], "output_port": "vm2"}
DEFAULTS = {"select_src_port": [], "select_dst_port": [], "select_vlan": [], "drops": False}


async def put(switch: Switch, name: str = "m1", body: object = None, **options: Any) -> Answer:
    return await switch.ask("PUT", f"{MIRRORS}/{name}", json=BODY if body is None else body, **options)


# ---- the resource ----


async def test_a_mirror_comes_changes_and_goes(switch: Switch) -> None:
    etag = switch.controller.etag
    made = await put(switch)
    assert (made.status, made.body) == (201, {"name": "m1", **DEFAULTS, **BODY})
    assert made.headers["ETag"] == f'"{switch.controller.etag}"' != f'"{etag}"'
    assert (await switch.ask("GET", f"{MIRRORS}/m1")).body == made.body
    assert (await switch.ask("GET", f"{V1}/bridges/br0")).body["mirrors"]["m1"] == {**DEFAULTS, **BODY}

    changed = await put(switch, body={"output_vlan": 99, "snaplen": 96, "select_vlan": ["1-3", 10], "drops": True})
    assert (changed.status, changed.body["output_vlan"], changed.body["snaplen"]) == (200, 99, 96)
    assert (changed.body["select_src_port"], changed.body["drops"]) == ([], True)
    assert "output_port" not in changed.body, "PUT replaces"

    assert (await put(switch, "m2")).status == 201
    page = await switch.ask("GET", MIRRORS)
    assert ([item["name"] for item in page.body["items"]], page.body["next"]) == (["m1", "m2"], None)
    first = await switch.ask("GET", f"{MIRRORS}?limit=1")
    rest = await switch.ask("GET", f"{MIRRORS}?limit=1&cursor={first.body['next']}")
    assert [item["name"] for item in (*first.body["items"], *rest.body["items"])] == ["m1", "m2"]

    gone = await switch.ask("DELETE", f"{MIRRORS}/m1")
    assert (gone.status, gone.body) == (204, None)
    assert (await switch.ask("DELETE", f"{MIRRORS}/m1")).status == 404
    assert set(switch.controller.config.bridges["br0"].mirrors) == {"m2"}


async def test_what_was_read_can_be_written_back(switch: Switch) -> None:
    await put(switch)
    etag = switch.controller.etag
    again = await put(switch, body=(await switch.ask("GET", f"{MIRRORS}/m1")).body)
    assert (again.status, switch.controller.etag) == (200, etag)
    other = await put(switch, body={**BODY, "name": "m2"})
    assert (other.status, other.pointers) == (422, ["#/bridges/br0/mirrors/m1/name"])


@pytest.mark.parametrize("path", [f"{V1}/bridges/br9/mirrors", f"{V1}/bridges/br9/mirrors/m1", f"{MIRRORS}/m9"])
async def test_what_is_not_there(switch: Switch, path: str) -> None:
    assert (await switch.ask("GET", path)).status == 404
    if path != f"{V1}/bridges/br9/mirrors":
        assert (await switch.ask("DELETE", path)).status == 404
    if "br9/mirrors/" in path:
        assert (await switch.ask("PUT", path, json=BODY)).status == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_if_match(switch: Switch, method: str) -> None:
    await put(switch)
    etag = switch.controller.etag
    options: dict[str, Any] = {"json": {**BODY, "snaplen": 60}} if method == "PUT" else {}
    for stale in ('"0"', f'W/"{etag}"'):
        answer = await switch.ask(method, f"{MIRRORS}/m1", headers={"If-Match": stale}, **options)
        assert (answer.status, answer.body["type"]) == (412, "/problems/stale"), stale
        assert switch.controller.etag == etag
    answer = await switch.ask(method, f"{MIRRORS}/m1", headers={"If-Match": f'"{etag}"'}, **options)
    assert answer.status == (200 if method == "PUT" else 204)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_other_methods(switch: Switch, method: str) -> None:
    await put(switch)
    answer = await switch.ask(method, f"{MIRRORS}/m1", json={})
    assert (answer.status, set(answer.headers["Allow"].split(", "))) == (405, {"DELETE", "GET", "PUT"})


@pytest.mark.parametrize("body", [BODY, {"select_dst_port": ["vm1"], "output_vlan": 9}, {"output_port": "vm1"}])
async def test_a_port_that_a_mirror_names_stays(switch: Switch, body: dict[str, Any]) -> None:
    await put(switch, body=body)
    etag = switch.controller.etag
    answer = await switch.ask("DELETE", f"{V1}/ports/vm1")
    assert (answer.status, answer.type) == (409, "application/problem+json")
    assert answer.pointers == ["#/bridges/br0/mirrors/m1"]
    assert "'m1'" in answer.body["detail"]
    assert switch.controller.etag == etag
    moved = await switch.ask("PATCH", f"{V1}/ports/vm1", json={"bridge": "lan"})
    assert moved.status == 422
    assert all(pointer.startswith("#/bridges/br0/mirrors/m1/") for pointer in moved.pointers)
    await switch.ask("DELETE", f"{MIRRORS}/m1")
    assert (await switch.ask("DELETE", f"{V1}/ports/vm1")).status == 204


async def test_a_bridge_that_is_replaced_has_no_mirrors(switch: Switch) -> None:
    await put(switch)
    assert (await switch.ask("PATCH", f"{V1}/bridges/br0", json={"aging_time": 7})).body["mirrors"].keys() == {"m1"}
    patched = await switch.ask("PATCH", f"{V1}/bridges/br0", json={"mirrors": {"m1": {"snaplen": 60}, "m2": BODY}})
    assert patched.body["mirrors"]["m1"] == {**DEFAULTS, **BODY, "snaplen": 60}
    assert (await switch.ask("PATCH", f"{V1}/bridges/br0", json={"mirrors": {"m1": None}})).body["mirrors"].keys() == {
        "m2"
    }
    assert (await switch.ask("PUT", f"{V1}/bridges/br0", json={})).body["mirrors"] == {}


# ---- what is refused ----

# What it is -> (the mirror, places in it, a part of the first message)
WRONG: dict[str, tuple[Any, list[str], str]] = {
    "no output": ({"select_src_port": ["vm1"]}, [""], "needs one of `output_port` and `output_vlan`"),
    "nothing at all": ({}, [""], "needs one of"),
    "both outputs": ({"output_port": "vm2", "output_vlan": 9}, [""], "needs one of"),
    "unknown output": ({"output_port": "vm9"}, ["/output_port"], "no port 'vm9'"),
    "unknown source": ({**BODY, "select_src_port": ["vm1", "vm9"]}, ["/select_src_port/1"], "no port 'vm9'"),
    "unknown destination": ({**BODY, "select_dst_port": ["vm9"]}, ["/select_dst_port/0"], "no port 'vm9'"),
    "another bridge's output": ({"output_port": "far"}, ["/output_port"], "is on bridge 'lan'"),
    "another bridge's source": ({**BODY, "select_src_port": ["far"]}, ["/select_src_port/0"], "is on bridge 'lan'"),
    "another bridge's destination": (
        {"output_vlan": 9, "select_dst_port": ["vm1", "far"]},
        ["/select_dst_port/1"],
        "is on bridge 'lan'",
    ),
    "its own output as source": (
        {"output_port": "vm1", "select_src_port": ["vm1"]},
        ["/select_src_port/0"],
        "is the output of a mirror",
    ),
    "its own output as destination": (
        {"output_port": "vm1", "select_dst_port": ["vm2", "vm1"]},
        ["/select_dst_port/1"],
        "is the output of a mirror",
    ),
    "snaplen below": ({**BODY, "snaplen": 13}, ["/snaplen"], "at least 14"),
    "snaplen 0": ({**BODY, "snaplen": 0}, ["/snaplen"], "at least 14"),
    "snaplen above": ({**BODY, "snaplen": 65536}, ["/snaplen"], "at most 65535"),
    "snaplen as text": ({**BODY, "snaplen": "60"}, ["/snaplen"], "whole number"),
    "VLAN 0": ({"output_vlan": 0}, ["/output_vlan"], "at least 1"),
    "VLAN 4095": ({"output_vlan": 4095}, ["/output_vlan"], "at most 4094"),
    "VLAN as text": ({"output_vlan": "9"}, ["/output_vlan"], "whole number"),
    "selected VLAN": ({**BODY, "select_vlan": [4095]}, ["/select_vlan"], "4095"),
    "selected VLANs": ({**BODY, "select_vlan": "10-20"}, ["/select_vlan"], "list"),
    "ports as text": ({**BODY, "select_src_port": "vm1"}, ["/select_src_port"], "list"),
    "drops as number": ({**BODY, "drops": 1}, ["/drops"], "true or false"),
    "unknown key": ({**BODY, "select_all": True}, ["/select_all"], "unknown key"),
    "a list": ([], [""], ""),
    "several at once": (
        {"select_src_port": ["vm9"], "snaplen": 1, "output_vlan": 5000},
        ["/output_vlan", "/select_src_port/0", "/snaplen"],
        "",
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_refused(switch: Switch, what: str) -> None:
    body, places, message = WRONG[what]
    await switch.ask("PUT", f"{V1}/ports/far", json={"bridge": "lan"})
    etag = switch.controller.etag
    if isinstance(body, dict):
        alone = await put(switch, body=body)
        assert (alone.status, alone.type) == (422, "application/problem+json"), alone.body
        assert sorted(alone.pointers) == [f"#/bridges/br0/mirrors/m1{place}" for place in places]
        assert message in alone.body["errors"][0]["detail"]
    document = switch.controller.config.document()
    document["bridges"]["br0"]["mirrors"] = {"m1": body}
    whole = await switch.ask("PUT", f"{V1}/config", json=document, headers={"If-Match": "*"})
    assert whole.status == 422
    assert sorted(whole.pointers) == [f"#/bridges/br0/mirrors/m1{place}" for place in places]
    assert switch.controller.etag == etag


async def test_the_output_of_one_is_not_selected_by_another(switch: Switch) -> None:
    await put(switch)
    for key in ("select_src_port", "select_dst_port"):
        answer = await put(switch, "m2", {key: ["vm2"], "output_vlan": 9})
        assert (answer.status, answer.pointers) == (422, [f"#/bridges/br0/mirrors/m2/{key}/0"])
        taken = await put(switch, "m2", {"output_port": "vm1"})
        assert (taken.status, taken.pointers) == (422, ["#/bridges/br0/mirrors/m1/select_src_port/0"])
    assert (await put(switch, "m2", {"output_port": "vm2"})).status == 201, "but two may send to it"


async def test_32_mirrors_and_no_more(switch: Switch) -> None:
    for i in range(32):
        assert (await put(switch, f"m{i}")).status == 201
    answer = await put(switch, "one-more")
    assert (answer.status, answer.pointers) == (422, ["#/bridges/br0/mirrors"])
    assert (await put(switch, "m31", {"output_vlan": 9})).status == 200
    far = await switch.ask("PUT", f"{V1}/bridges/lan/mirrors/m0", json={"output_vlan": 9})
    assert far.status == 201, "each bridge has as many"


@pytest.mark.parametrize("name", ["-m", "m%2Fx", "m" * 64, "m%20x"])
async def test_names(switch: Switch, name: str) -> None:
    from yarl import URL

    url = URL(f"http://switch{MIRRORS}/{name}", encoded=True)
    async with switch.session.put(url, json=BODY) as response:
        assert response.status == 422
        assert (await response.json(content_type=None))["errors"][0]["pointer"].startswith("#/bridges/br0/mirrors/")


async def test_shaping_and_back_pressure(switch: Switch) -> None:
    """Either in any order, not both; policing is another matter."""
    path, shaped, waits = f"{V1}/ports/vm1", {"shaping": {"rate_kbps": 1000}}, {"on_full": "backpressure"}
    for first, second in ((shaped, waits), (waits, shaped)):
        assert (await switch.ask("PATCH", path, json=first)).status == 200
        answer = await switch.ask("PATCH", path, json=second)
        assert (answer.status, answer.pointers) == (422, ["#/ports/vm1/on_full"])
        assert (await switch.ask("PATCH", path, json={"policing": {"rate_kbps": 1}})).status == 200
        assert (await switch.ask("PATCH", path, json=dict.fromkeys((*first, "policing")))).status == 200


# ---- dry runs and plans ----

OLD: dict[str, Any] = {
    "bridges": {"br0": {"mirrors": {"m1": BODY}}},
    "ports": {"vm1": {}, "vm2": {}},
}


@pytest.mark.parametrize(
    ("mirrors", "named"),
    [
        ({}, ["m1"]),
        ({"m1": BODY, "m2": BODY}, ["m1", "m2"]),
        ({"m2": BODY}, ["m1", "m2"]),
        ({"m1": {**BODY, "snaplen": 60}}, ["m1", "snaplen"]),
        ({"m1": {"output_vlan": 9}}, ["m1", "output_vlan"]),
    ],
)
def test_a_plan_names_the_mirrors(mirrors: dict[str, Any], named: list[str]) -> None:
    """And what was is not what will be, in words too."""
    old, new = parse(OLD), parse({**OLD, "bridges": {"br0": {"mirrors": mirrors}}})
    (change,) = plan(old, new).changes
    where = (change.op, change.pointer, change.keys, change.disruptive)
    assert where == ("change", "#/bridges/br0", ("mirrors",), False)
    was, _, is_now = change.detail.removeprefix("change bridge br0: mirrors ").partition(" -> ")
    assert was != is_now
    assert all(name in change.detail for name in named)
    assert "None" not in change.detail


async def test_a_dry_run_of_a_changed_mirror(switch: Switch, pv: Command, tmp_path: Any) -> None:
    await put(switch)
    document = switch.controller.config.document()
    document["bridges"]["br0"]["mirrors"]["m1"]["snaplen"] = 60
    etag = switch.controller.etag
    answer = await switch.ask("PUT", f"{V1}/config?dry_run=true", json=document, headers={"If-Match": "*"})
    assert [(change["pointer"], change["disruptive"]) for change in answer.body["changes"]] == [
        ("#/bridges/br0", False)
    ]
    file = tmp_path / "lab.yaml"
    file.write_text(json.dumps(document))
    said = await pv("apply", str(file), "--dry-run")
    assert "change bridge br0: mirrors m1" in said.out
    assert switch.controller.etag == etag


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"port_security": {"max_macs": 1, "sticky": True}}, "port_security"),
        ({"storm_control": {"broadcast_pps": 100}}, "storm_control"),
        ({"policing": {"rate_kbps": 1000}}, "policing"),
        ({"shaping": {"rate_kbps": 1000, "burst_bytes": 65550}}, "shaping"),
    ],
)
def test_policies_change_live(settings: dict[str, Any], key: str) -> None:
    """No connection ends, neither when they come nor when they change or go."""
    old, new = parse(OLD), parse({**OLD, "ports": {**OLD["ports"], "vm1": settings}})
    for before, after in ((old, new), (new, old)):
        (change,) = plan(before, after).changes
        assert (change.pointer, change.keys, change.disruptive) == ("#/ports/vm1", (key,), False)


@pytest.mark.parametrize(
    ("kbps", "burst"),
    [(1, 131_072), (104_857, 131_072), (104_858, 131_072), (105_000, 131_250), (10**9, 1_250_000_000)],
)
def test_a_burst_follows_from_the_rate(kbps: int, burst: int) -> None:
    """10 ms at this rate, 131072 at least; one that is given is kept, and what was read means the same again."""
    config = parse(
        {"ports": {"vm1": {"policing": {"rate_kbps": kbps}, "shaping": {"rate_kbps": 1, "burst_bytes": 70000}}}}
    )
    port = config.ports["vm1"]
    assert port.policing is not None
    assert port.shaping is not None
    assert (port.policing.burst_bytes, port.shaping.burst_bytes) == (burst, 70000)
    assert parse(config.document()) == config


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7"),
        ("192.0.2.7/24", "192.0.2.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1/10", "fe80::/10"),
    ],
)
def test_networks_are_written_in_one_way(given: str, read: str) -> None:
    config = parse({"ports": {"vm1": {"port_security": {"allowed_ips": [given], "allowed_macs": [MAC.upper()]}}}})
    rules = config.ports["vm1"].port_security
    assert rules is not None
    assert (rules.allowed_ips, rules.allowed_macs) == ((read,), (MAC,))
    assert parse(config.document()) == config


@pytest.mark.parametrize(
    ("many", "form"), [("allowed_ips", "10.0.{}.{}"), ("allowed_macs", "02:00:00:00:{:02x}:{:02x}")]
)
def test_1024_senders_and_no_more(many: str, form: str) -> None:
    values = [form.format(*divmod(i, 256)) for i in range(1025)]
    parse({"ports": {"vm1": {"port_security": {many: values[:1024]}}}})
    with pytest.raises(InvalidDocument, match="at most 1024"):
        parse({"ports": {"vm1": {"port_security": {many: values}}}})


async def test_senders_are_set_by_the_command(switch: Switch, pv: Command) -> None:
    macs = f"port_security.allowed_macs={MAC},02:00:00:00:00:02"
    done = await pv("port", "set", "vm1", macs, "port_security.allowed_ips=192.0.2.1")
    assert (done.status, done.err) == (0, "")
    rules = switch.controller.config.ports["vm1"].port_security
    assert rules is not None
    assert (rules.allowed_macs, rules.allowed_ips) == ((MAC, "02:00:00:00:00:02"), ("192.0.2.1",))
