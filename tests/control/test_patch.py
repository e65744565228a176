# SPDX-License-Identifier: Apache-2.0
"""PATCH: some keys are changed, the others stay (RFC 7396)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.api.call import merged
from pvswitch.api.request import PATCH_TYPES
from tests.control.conftest import Switch

V1 = "/api/v1"
CONFIG = f"{V1}/config"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # the examples of RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging_is_that_of_the_rfc(target: Any, patch: Any, result: Any) -> None:
    before = json.dumps([target, patch])
    assert merged(target, patch) == result
    assert json.dumps([target, patch]) == before


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES, VALUES)
def test_a_patch_applied_twice_is_applied_once(target: Any, patch: Any) -> None:
    once = merged(target, patch)
    assert merged(once, patch) == once


@pytest.mark.parametrize("kind", [*PATCH_TYPES, "application/json; charset=utf-8"])
async def test_a_port_keeps_what_is_not_named(switch: Switch, kind: str) -> None:
    path = f"{V1}/ports/vm2"
    before = (await switch.ask("GET", path)).body
    answer = await switch.ask(
        "PATCH", path, data=json.dumps({"labels": {"a": "b"}, "mtu": None}), headers={"Content-Type": kind}
    )
    assert answer.status == 200
    expected = before | {"labels": {"a": "b"}}
    del expected["mtu"]
    assert answer.body == expected
    assert answer.headers["ETag"] == f'"{switch.controller.etag}"'
    more = await switch.ask("PATCH", path, json={"labels": {"c": "d", "a": None}})
    assert more.body["labels"] == {"c": "d"}


async def test_null_goes_back_to_the_default(switch: Switch) -> None:
    await switch.ask("PUT", f"{V1}/bridges/lan", json={"aging_time": 5, "flood_unknown": False})
    answer = await switch.ask("PATCH", f"{V1}/bridges/lan", json={"aging_time": None})
    assert (answer.body["aging_time"], answer.body["flood_unknown"]) == (300, False)


async def test_what_was_read_can_be_patched_back(switch: Switch) -> None:
    path, etag = f"{V1}/ports/vm1", switch.controller.etag
    got = await switch.ask("GET", path)
    answer = await switch.ask("PATCH", path, json=got.body)
    assert (answer.status, switch.controller.etag) == (200, etag)
    other = await switch.ask("PATCH", path, json={"name": "vm2"})
    assert (other.status, other.pointers) == (422, ["#/ports/vm1/name"])


async def test_what_is_absent_can_not_be_patched(switch: Switch) -> None:
    assert (await switch.ask("PATCH", f"{V1}/ports/vm9", json={})).status == 404
    assert (await switch.ask("PATCH", f"{V1}/bridges/none", json={})).status == 404


async def test_a_patch_of_one_resource_honours_if_match(switch: Switch) -> None:
    body, etag = {"labels": {"a": "b"}}, f'"{switch.controller.etag}"'
    for path in (f"{V1}/ports/vm1", f"{V1}/bridges/lan"):
        assert (await switch.ask("PATCH", path, json=body, headers={"If-Match": '"0"'})).status == 412
    assert (await switch.ask("PATCH", f"{V1}/ports/vm1", json=body, headers={"If-Match": etag})).status == 200
    assert (await switch.ask("PATCH", f"{V1}/ports/vm1", json=body, headers={"If-Match": etag})).status == 412


async def test_the_whole_configuration_is_patched(switch: Switch) -> None:
    patch = {"ports": {"vm1": None, "vm2": {"enabled": False}, "vm3": {"bridge": "lan"}}}
    etag = f'"{switch.controller.etag}"'
    assert (await switch.ask("PATCH", CONFIG, json=patch)).status == 428
    assert (await switch.ask("PATCH", CONFIG, json=patch, headers={"If-Match": '"0"'})).status == 412
    dry = await switch.ask("PATCH", f"{CONFIG}?dry_run=true", json=patch, headers={"If-Match": etag})
    assert [change["pointer"] for change in dry.body["changes"]] == ["#/ports/vm1", "#/ports/vm2", "#/ports/vm3"]
    assert set(switch.controller.config.ports) == {"vm1", "vm2"}
    real = await switch.ask("PATCH", CONFIG, json=patch, headers={"If-Match": etag})
    assert (real.status, real.body) == (200, dry.body)
    ports = switch.controller.config.ports
    assert (set(ports), ports["vm2"].enabled, ports["vm2"].mtu) == ({"vm2", "vm3"}, False, 1500)


@pytest.mark.parametrize("path", [CONFIG, f"{V1}/ports/vm1", f"{V1}/bridges/br0"])
@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", "{}", 415),
        ("application/x-www-form-urlencoded", "{}", 415),
        ("application/json-patch+json", "[]", 415),
        ("application/json", "[]", 422),
        ("application/json", "null", 422),
        ("application/json", "{", 400),
        ("application/json", '{"bridges": 7}', 422),
        ("application/json", '{"vni": 1}', 422),
    ],
)
async def test_bad_patches_change_nothing(switch: Switch, path: str, kind: str, body: str, status: int) -> None:
    etag = switch.controller.etag
    answer = await switch.ask("PATCH", path, data=body, headers={"Content-Type": kind, "If-Match": "*"})
    assert (answer.status, answer.type) == (status, "application/problem+json")
    if status == 415:
        assert answer.headers["Accept-Patch"] == "application/merge-patch+json, application/json"
    assert switch.controller.etag == etag


async def test_what_takes_a_restart_is_a_conflict_in_a_patch_too(switch: Switch) -> None:
    patch = {"state_dir": "/elsewhere", "ports": {"vm1": None}}
    answer = await switch.ask("PATCH", CONFIG, json=patch, headers={"If-Match": "*", **MERGE})
    assert (answer.status, answer.pointers) == (409, ["#/state_dir"])
    assert "vm1" in switch.controller.config.ports


async def test_an_edit_of_one_port_leaves_the_others_as_they_are(switch: Switch) -> None:
    before = switch.controller.config.ports["vm2"]
    for method, body in (("PUT", {"bridge": "br0"}), ("PATCH", {"mtu": 1400}), ("DELETE", None)):
        assert (await switch.ask(method, f"{V1}/ports/vm1", json=body)).status < 300
        assert switch.controller.config.ports["vm2"] is before, "judged anew: with many ports that is what takes long"
