# SPDX-License-Identifier: Apache-2.0
"""Bodies about flows that nobody means well with: refused with a clear answer, and at once."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pvswitch.flows.match import read_match
from tests.control.conftest import Answer, Switch

BRIDGE = "/api/v1/bridges/br0"
HALF = "\ud800"  # of a surrogate pair: JSON may hold it, and nothing can encode it
LONG = "x" * 1_000_000


async def put(switch: Switch, body: object) -> Answer:
    return await switch.ask("PUT", f"{BRIDGE}/flows/f", data=io.BytesIO(json.dumps(body).encode()))


@pytest.mark.parametrize(
    "body",
    [
        {"match": {HALF: 1}, "actions": []},
        {"match": {"in_port": HALF}, "actions": []},
        {"match": {"nw_src": HALF, "dl_type": "0x0800"}, "actions": []},
        {"actions": [HALF, f"output:{HALF}"]},
        {"actions": [], "cookie": HALF},
        {"actions": [], HALF: 1},
        {"flow": f"{HALF}=1,actions={HALF}"},
    ],
    ids=str,
)
async def test_half_a_surrogate_pair_is_no_text(switch: Switch, body: dict[str, Any]) -> None:
    answer = await put(switch, body)
    assert answer.status == 422
    for add in ([body], {"f": body}, {HALF: body}):
        answer = await switch.ask("POST", f"{BRIDGE}/flows:batch", json={"add": add})
        assert answer.status == 422
    answer = await switch.ask("PUT", "/api/v1/config", json={"bridges": {"br0": {"flows": {HALF: body}}}})
    assert answer.status in (422, 428)


async def test_half_a_surrogate_pair_as_a_name(switch: Switch) -> None:
    batches: tuple[dict[str, Any], ...] = (
        {"add": {HALF: {"actions": []}}},
        {"add": [{"name": HALF, "actions": []}]},
        {HALF: 1},
    )
    for body in batches:
        assert (await switch.ask("POST", f"{BRIDGE}/flows:batch", json=body)).status == 422
    assert (await switch.ask("POST", f"{BRIDGE}/flows:batch", json={"delete": [HALF]})).status == 404
    traces: tuple[dict[str, Any], ...] = ({"in_port": "vm1", "fields": {HALF: HALF}}, {"in_port": HALF, "frame": HALF})
    for body in traces:
        assert (await switch.ask("POST", f"{BRIDGE}/trace", json=body)).status == 422
    captures: tuple[dict[str, Any], ...] = ({"ports": [HALF]}, {"filter": HALF})
    for body in captures:
        assert (await switch.ask("POST", "/api/v1/captures", json=body)).status == 422


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({"match": {f"a{i}": 1 for i in range(100_000)}, "actions": []}, 1),
        ({"actions": ["outptu:vm1"] * 100_000}, 1),
        ({"match": {LONG: 1}, "actions": []}, 1),
        ({"match": {"nw_src": LONG, "dl_type": "0x0800"}, "actions": [f"output:{LONG}", LONG]}, 3),
        ({"flow": "a " * 1_000_000}, 1),
        ({"flow": f"actions={'(' * 1_000_000}"}, 1),
    ],
    ids=["fields", "actions", "field", "values", "words", "parentheses"],
)
async def test_what_is_far_too_much_isn_t_looked_at(switch: Switch, body: dict[str, Any], errors: int) -> None:
    answer = await put(switch, body)
    assert (answer.status, len(answer.body["errors"])) == (422, errors)
    assert all(len(error["detail"]) < 1000 for error in answer.body["errors"])


@pytest.mark.parametrize("name", ["", "a,b", "vm1\n", "vm 1", "-", "x" * 64])
async def test_a_port_that_can_t_be_one(switch: Switch, name: str) -> None:
    answer = await put(switch, {"match": {"in_port": name}, "actions": []})
    assert (answer.status, answer.pointers) == (422, ["#/bridges/br0/flows/f/match/in_port"])
    assert "must be the name of a port" in answer.body["detail"]


async def test_a_port_that_goes_while_a_trace_is_asked_for(switch: Switch) -> None:
    """What counts is the configuration when all of the question is there."""

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"in_port": "vm1", '
        assert (await switch.ask("DELETE", "/api/v1/ports/vm1")).status == 204
        yield b'"frame": "ffffffffffff52540000000108060001"}'

    answer = await switch.ask("POST", f"{BRIDGE}/trace", data=slow(), headers={"Content-Type": "application/json"})
    assert (answer.status, answer.pointers) == (422, ["#/in_port"])
    assert switch.dataplane.asked == []


async def test_far_too_many_entries_are_counted_and_not_made(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 MiB of such flows would take tens of gigabytes."""

    def made(*_: object) -> None:
        pytest.fail("entries are made of flows that are refused")

    monkeypatch.setattr("pvswitch.flow_model.compile_flow", made)
    ports = "tcp,tp_src=1-65534,tp_dst=1-65534"
    flows = [f"priority={number},{ports},actions=drop" for number in range(1200)]
    answer = await switch.ask("POST", f"{BRIDGE}/flows:batch", json={"add": flows})
    assert (answer.status, answer.pointers) == (422, ["#/bridges/br0/flows"])
    assert "takes 1080000 entries in the table, of 1000000 at most" in answer.body["detail"]


async def test_masks_are_those_that_the_core_looks_by(switch: Switch) -> None:
    flows = [f"ip,nw_src=10.0.0.0/{i},nw_dst=10.0.0.0/{j},actions=drop" for i in range(1, 33) for j in range(1, 33)]
    same = [f"priority={n},ip,nw_src=10.0.0.0/8,nw_dst=10.0.{n}.0/24,actions=drop" for n in range(256)]
    answer = await switch.ask("POST", f"{BRIDGE}/flows:batch", json={"add": [*flows, *same]})
    assert answer.status == 200, answer.body
    answer = await put(switch, {"match": {"in_port": "vm1"}, "actions": []})
    assert (answer.status, answer.pointers) == (422, ["#/bridges/br0/flows"])
    assert "match by 1025 different masks, of 1024 at most" in answer.body["detail"]


@pytest.mark.parametrize("match", [{}, {"tp_src": "80"}, {"tp_dst": "1-65534"}, {"tp_src": "3-9", "tp_dst": "1-65534"}])
def test_entries_are_counted_as_they_are_made(match: dict[str, Any]) -> None:
    found = read_match({"dl_type": "0x0800", "nw_proto": 6, **match})
    assert found.size == len(list(found.entries()))
