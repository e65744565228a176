# SPDX-License-Identifier: Apache-2.0
"""POST /bridges/{br}/trace and `pvswitch trace` on an API whose data plane is a fake: what is asked, shown, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from pvswitch.errors import ApplyError
from pvswitch.trace.frame import build
from pvswitch.trace.record import Asked, Copy, Step, Traced
from tests.control.command import Command
from tests.control.conftest import Switch
from tests.control.test_cli_every import complete

PATH = "/api/v1/bridges/br0/trace"
FRAME = build({"dl_type": "0x0800", "nw_proto": 6, "tp_dst": 443})
VXLAN = {
    "bridge": "br0",
    "type": "vxlan",
    "vni": {"10": 1010, "20": 1020},
    "local": "192.0.2.1",
    "remotes": ["192.0.2.2"],
}


async def ask(switch: Switch, body: Any, path: str = PATH) -> Any:
    return await switch.ask("POST", path, json=body)


async def test_fields_become_a_frame_and_steps_words(switch: Switch) -> None:
    tagged = FRAME[:12] + bytes.fromhex("8100000a") + FRAME[12:]
    steps = (Step("parsed"), Step("taken"), Step("vlan", 0, 1), Step("fdb"), Step("flood", 1))
    switch.dataplane.traced = Traced(None, None, steps, (Copy("vm2", tagged, len(tagged), vid=10),))
    fields = {"dl_type": "0x0800", "nw_proto": 6, "tp_dst": 443}
    etag = switch.controller.etag
    answer = await ask(switch, {"in_port": "vm1", "fields": fields})
    assert (answer.status, switch.controller.etag) == (200, etag)
    assert "ETag" not in answer.headers
    assert switch.dataplane.asked == [Asked("vm1", FRAME)]
    assert answer.body["frame"] == FRAME.hex()
    assert [step["step"] for step in answer.body["steps"]] == ["parse", "take", "vlan", "fdb", "flood", "egress"]
    assert answer.body["steps"][2] == {
        "step": "vlan",
        "detail": "in no VLAN (trunk port)",
        "vid": 0,
        "accepted": True,
    }
    (copy,) = answer.body["verdict"]["egress"]
    assert copy == {"port": "vm2", "edits": ["push_vlan 10"], "length": 68, "head": tagged.hex()}
    assert "reason" not in answer.body["verdict"]


async def test_a_frame_is_taken_as_it_is(switch: Switch) -> None:
    answer = await ask(switch, {"in_port": "vm2", "frame": FRAME.hex().upper()})
    assert (answer.status, switch.dataplane.asked) == (200, [Asked("vm2", FRAME)])
    assert answer.body["verdict"] == {"egress": [], "reason": "no_destination"}


async def test_what_came_by_a_tunnel(switch: Switch) -> None:
    await switch.ask("PUT", "/api/v1/ports/vx", json=VXLAN)
    body = {"in_port": "vx", "frame": FRAME.hex(), "tun_id": 1020, "tun_src": "192.0.2.2"}
    assert (await ask(switch, body)).status == 200
    assert (await ask(switch, {"in_port": "vx", "fields": {"tun_id": 1010}})).status == 200
    assert switch.dataplane.asked == [Asked("vx", FRAME, 1020, "192.0.2.2"), Asked("vx", build({}), 1010)]


@pytest.mark.parametrize(
    ("body", "pointers", "words"),
    [
        ({}, ["#/in_port"], "is missing"),
        ({"in_port": "vm9", "frame": FRAME.hex()}, ["#/in_port"], "there is no port 'vm9' on bridge 'br0'"),
        ({"in_port": "vm1"}, ["#"], "needs one of `frame` and `fields`"),
        ({"in_port": "vm1", "frame": FRAME.hex(), "fields": {}}, ["#"], "needs one of `frame` and `fields`"),
        ({"in_port": "vm1", "frame": "5254"}, ["#/frame"], "has 2 bytes: a frame has 14 to 65568"),
        ({"in_port": "vm1", "frame": "00" * 65569}, ["#/frame"], "has 65569 bytes"),
        ({"in_port": "vm1", "frame": "0" * 29}, ["#/frame"], "hexadecimal"),
        ({"in_port": "vm1", "frame": "zz" * 20}, ["#/frame"], "hexadecimal"),
        ({"in_port": "vm1", "frame": 7}, ["#/frame"], "must be text"),
        ({"in_port": "vm1", "fields": []}, ["#/fields"], "must be a mapping"),
        ({"in_port": "vm1", "fields": {"tp_dst": 80}}, ["#/fields/tp_dst"], "needs a protocol with ports"),
        (
            {"in_port": "vm1", "fields": {"dl_typ": 1, "dl_src": "x"}},
            ["#/fields/dl_typ", "#/fields/dl_src"],
            "2 values",
        ),
        ({"in_port": "vm1", "fields": {"in_port": "vm2"}}, ["#/fields/in_port"], "is not 'vm1'"),
        ({"in_port": "vm1", "fields": {}, "tun_id": 7}, ["#/tun_id"], "is of tunnels"),
        ({"in_port": "vm1", "fields": {}, "tun_src": "192.0.2.1"}, ["#/tun_src"], "is of tunnels"),
        ({"in_port": "vm1", "fields": {"tun_id": 7}}, ["#/fields/tun_id"], "is of tunnels"),
        ({"in_port": "vx", "fields": {}, "tun_id": 7}, ["#/tun_id"], "port 'vx' has no network 7"),
        ({"in_port": "vx", "fields": {"tun_id": "7/0xff"}}, ["#/fields/tun_id"], "must be one number"),
        ({"in_port": "vx", "fields": {"tun_id": 7}}, ["#/fields/tun_id"], "port 'vx' has no network 7"),
        ({"in_port": "vx", "fields": {"tun_id": 1010}, "tun_id": 1020}, ["#/fields/tun_id"], "is not 1020"),
        ({"in_port": "vx", "fields": {}, "tun_src": "2001:db8::1"}, ["#/tun_src"], "are not of one family"),
        ({"in_port": "vx", "fields": {}, "tun_src": "nobody"}, ["#/tun_src"], "must be an address"),
        ({"in_port": "vm1", "fields": {}, "port": 1}, ["#/port"], "unknown key"),
    ],
)
async def test_what_is_refused(switch: Switch, body: Any, pointers: list[str], words: str) -> None:
    await switch.ask("PUT", "/api/v1/ports/vx", json=VXLAN)
    answer = await ask(switch, body)
    assert (answer.status, answer.type) == (422, "application/problem+json")
    assert answer.pointers == pointers
    assert words in answer.body["detail"]
    assert switch.dataplane.asked == []


async def test_a_port_of_another_bridge_and_no_bridge(switch: Switch) -> None:
    answer = await ask(switch, {"in_port": "vm1", "fields": {}}, "/api/v1/bridges/lan/trace")
    assert answer.pointers == ["#/in_port"]
    answer = await ask(switch, {"in_port": "vm1", "fields": {}}, "/api/v1/bridges/no/trace")
    assert answer.status == 404
    assert (await switch.ask("POST", PATH, data=b"{")).status == 400


async def test_a_port_that_goes_meanwhile(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(_: Asked) -> Traced:
        raise ApplyError("port 'vm1' has changed meanwhile: repeat the trace", "#/ports/vm1")

    monkeypatch.setattr(switch.dataplane, "trace", gone)
    answer = await ask(switch, {"in_port": "vm1", "fields": {}})
    assert (answer.status, answer.pointers) == (409, ["#/ports/vm1"])


# ---- the command


async def test_the_command_tells_a_story(pv: Command, switch: Switch) -> None:
    steps = (Step("parsed"), Step("taken"), Step("vlan", 0, 1), Step("fdb", 1, name="vm2"))
    switch.dataplane.traced = Traced(None, None, steps, (Copy("vm2", FRAME, len(FRAME)),))
    result = await pv("trace", "br0", "in_port=vm1,tcp,tp_dst=443")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines() == [
        "parse   52:54:00:00:00:01 > 52:54:00:00:00:02, TCP, 192.0.2.1:49152 > 192.0.2.2:443, syn, 64 bytes",
        "take    port vm1 takes it",
        "vlan    in no VLAN (trunk port)",
        "fdb     52:54:00:00:00:02 is at port vm2",
        "egress  port vm2: as it came",
        "verdict leaves by vm2",
    ]


async def test_json_and_yaml_are_the_body_of_the_api(pv: Command, switch: Switch) -> None:
    words = ("trace", "br0", "in_port=vm1", "--frame", FRAME.hex(":"), "-f")
    as_json = json.loads((await pv(*words, "json")).out)
    assert as_json == (await ask(switch, {"in_port": "vm1", "frame": FRAME.hex()})).body
    assert YAML(typ="safe").load((await pv(*words, "yaml")).out) == as_json


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["tcp"], 2, "say the port that it comes by"),
        (["in_port=vm1,tp_dst=80"], 2, "tp_dst: needs a protocol"),
        (["in_port=vm1,priority=7"], 2, "priority is of flows"),
        (["in_port=vm1,tcp", "--frame", FRAME.hex()], 2, "--frame is the whole frame"),
        (["in_port=vm1", "--frame", "5"], 2, "two digits each"),
        (["in_port=vx,tun_id=7/0xff", "--frame", FRAME.hex()], 2, "tun_id is one number beside --frame"),
        (["in_port=vm1,tun_id=7"], 1, "is of tunnels"),
        (["in_port=vm9"], 1, "there is no port 'vm9' on bridge 'br0'"),
        (["in_port=vm1", "--tun-src", "192.0.2.2"], 1, "is of tunnels"),
    ],
)
async def test_what_the_command_refuses(pv: Command, words: list[str], status: int, said: str) -> None:
    result = await pv("trace", "br0", *words)
    assert (result.status, said in " ".join(result.err.split())) == (status, True), result


async def test_a_tunnels_network_stands_beside_a_frame(pv: Command, switch: Switch) -> None:
    await switch.ask("PUT", "/api/v1/ports/vx", json=VXLAN)
    await pv("trace", "br0", "in_port=vx,tun_id=0x3f2", "--frame", FRAME.hex(), "--tun-src", "192.0.2.2")
    assert switch.dataplane.asked == [Asked("vx", FRAME, 1010, "192.0.2.2")]


async def test_ports_and_fields_are_completed(switch: Switch) -> None:
    assert await complete(switch, "pvswitch trace br0 in_port=v") == ["in_port=vm1", "in_port=vm2"]
    assert await complete(switch, "pvswitch trace br0 in_port=vm1,tp_") == [
        "in_port=vm1,tp_src=",
        "in_port=vm1,tp_dst=",
    ]
