# SPDX-License-Identifier: Apache-2.0
"""Trace through the real data path, case by case: what each step finds, and the example of the docs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ruamel.yaml import YAML

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from pvswitch.trace.frame import build
from tests.system.conftest import running_switch
from tests.wire.lab import stats

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = Path(__file__).parents[2] / "docs" / "trace.md"
A, B, NOBODY, MULTICAST = (f"02:00:00:00:00:{i:02x}" for i in (1, 2, 0xFF, 3))
CONFIG: dict[str, Any] = {
    "bridges": {
        "br0": {
            "fdb": [{"mac": B, "vid": 10, "port": "trunk"}, {"mac": B, "vid": 0, "port": "small"}],
            "mirrors": {
                "watch": {"select_src_port": ["seen"], "output_port": "mon", "snaplen": 60},
                "fate": {"select_src_port": ["safe"], "output_port": "mon", "drops": True},
            },
        },
        "flows": {
            "flows": {
                "ssh": "priority=200,tcp,tp_dst=22,actions=normal",
                "web": "priority=100,tcp,in_port=f1,tp_dst=80,actions=mod_nw_dst:10.0.0.9,set_vlan_vid:20,output:f2",
                "metered": "priority=90,udp,tp_dst=53,actions=meter:few,output:f2",
                "ttl": "priority=80,udp,nw_ttl=1,actions=dec_ttl,output:f2",
                "deny": "priority=0,actions=drop",
            },
            "meters": {"few": {"rate_pps": 1, "burst_packets": 1}},
        },
        "quiet": {"flood_unknown": False, "forward_bpdu": False},
    },
    "ports": {
        "access": {"bridge": "br0", "tag": 10},
        "access2": {"bridge": "br0", "tag": 10},
        "trunk": {"bridge": "br0"},
        "small": {"bridge": "br0", "mtu": 68},
        "safe": {"bridge": "br0", "port_security": {"allowed_macs": [A]}},
        "seen": {"bridge": "br0"},
        "mon": {"bridge": "br0"},
        "down": {"bridge": "br0", "enabled": False},
        "policed": {"bridge": "br0", "policing": {"rate_kbps": 1}},
        "f1": {"bridge": "flows"},
        "f2": {"bridge": "flows"},
        "quiet1": {"bridge": "quiet"},
        "quiet2": {"bridge": "quiet"},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def switch() -> AsyncIterator[SwitchProcess]:
    async with running_switch(CONFIG) as switch, contextlib.AsyncExitStack() as stack:
        for port in CONFIG["ports"]:
            if port != "down":
                await stack.enter_async_context(Guest(switch.port_socket(port)))
        yield switch


async def trace(switch: SwitchProcess, in_port: str, bridge: str = "br0", **fields: Any) -> dict[str, Any]:
    """Trace a frame from A to nobody, but for what `fields` say; or the `frame` in it."""
    frame = fields.pop("frame", None) or build({"dl_src": A, "dl_dst": NOBODY, **fields})
    body = {"in_port": in_port, "frame": frame.hex()}
    status, answer = await switch.request("POST", f"/api/v1/bridges/{bridge}/trace", body)
    assert status == 200, answer
    return dict(answer)


def step(answer: dict[str, Any], kind: str) -> dict[str, Any]:
    """The only step of a kind."""
    (found,) = [item for item in answer["steps"] if item["step"] == kind]
    return dict(found)


def leaving(answer: dict[str, Any]) -> dict[str, list[str]]:
    """The edits of each copy that leaves."""
    return {copy["port"]: copy["edits"] for copy in answer["verdict"]["egress"] if "drop" not in copy}


async def test_known_unicast_gets_the_vlans_tag(switch: SwitchProcess) -> None:
    answer = await trace(switch, "access", dl_dst=B)
    assert (step(answer, "vlan")["vid"], step(answer, "fdb")["port"]) == (10, "trunk")
    assert step(answer, "learn")["state"] == "new"
    assert leaving(answer) == {"trunk": ["push_vlan 10"]}


async def test_unknown_unicast_is_flooded_in_its_vlan(switch: SwitchProcess) -> None:
    answer = await trace(switch, "access")
    assert step(answer, "fdb")["state"] == "unknown"
    tagged = ["push_vlan 10"]
    assert leaving(answer) == {
        **{"access2": [], "trunk": tagged, "small": tagged, "safe": tagged, "seen": tagged},
        "policed": tagged,
    }
    assert step(answer, "flood")["ports"] == 6


async def test_a_tag_is_taken_off(switch: SwitchProcess) -> None:
    assert leaving(await trace(switch, "trunk", dl_vlan=10))["access2"] == ["pop_vlan"]


async def test_tags_that_a_port_does_not_take(switch: SwitchProcess) -> None:
    answer = await trace(switch, "access", dl_vlan=20)
    assert (step(answer, "vlan")["accepted"], answer["verdict"]) == (False, {"egress": [], "reason": "vlan_filtered"})
    assert "change `vlan_mode`, `tag` or `trunks` of port access" in step(answer, "drop")["detail"]


async def test_port_security_and_a_mirror_of_drops(switch: SwitchProcess) -> None:
    answer = await trace(switch, "safe", dl_src=B)
    assert answer["verdict"]["reason"] == "port_security"
    (copy,) = answer["verdict"]["egress"]
    assert (copy["port"], copy["mirror"]) == ("mon", "fate")
    assert (await trace(switch, "safe"))["verdict"].get("reason") is None


async def test_a_mirror_that_cuts(switch: SwitchProcess) -> None:
    answer = await trace(switch, "seen", dl_dst=B, dl_vlan=10)
    copies = {copy["port"]: copy for copy in answer["verdict"]["egress"]}
    assert {name: copy.get("mirror") for name, copy in copies.items()} == {"trunk": None, "mon": "watch"}
    assert (copies["mon"]["length"], copies["mon"]["edits"]) == (60, ["cut to 60 bytes"])
    assert [item["mirror"] for item in answer["steps"] if item["step"] == "egress" and "mirror" in item] == ["watch"]


@pytest.mark.parametrize(
    ("in_port", "bridge", "fields", "reason"),
    [
        ("down", "br0", {}, "link_down"),
        ("mon", "br0", {}, "mirror_output"),
        ("quiet1", "quiet", {}, "no_destination"),
        ("quiet1", "quiet", {"dl_dst": "01:80:c2:00:00:02"}, "bpdu"),
        ("trunk", "br0", {"dl_dst": B, "dl_vlan": 10}, "same_port"),
        ("policed", "br0", {"frame": bytes.fromhex("02" * 12 + "88b5").ljust(60_000, b"\0")}, None),
        ("access", "br0", {"frame": bytes.fromhex("02" * 12 + "8100")}, "malformed"),
    ],
)
async def test_a_frame_that_goes_nowhere(
    switch: SwitchProcess, in_port: str, bridge: str, fields: dict[str, Any], reason: str | None
) -> None:
    answer = await trace(switch, in_port, bridge, **fields)
    assert answer["verdict"].get("reason") == reason
    if reason is not None:
        assert reason in " ".join(item.get("reason", "") for item in answer["steps"])
        assert answer["verdict"]["egress"] == []


async def test_a_copy_that_is_too_large(switch: SwitchProcess) -> None:
    large = build({"dl_src": A, "dl_dst": B, "nw_proto": 17}).ljust(200, b"\0")
    answer = await trace(switch, "trunk", frame=large)
    (copy,) = answer["verdict"]["egress"]
    assert (copy["port"], copy["drop"], leaving(answer)) == ("small", "mtu_exceeded", {})
    assert "raise `mtu` of port small" in step(answer, "egress")["detail"]


async def test_the_flow_that_matched(switch: SwitchProcess) -> None:
    answer = await trace(switch, "f1", "flows", nw_proto=6, nw_dst="10.0.0.1", tp_dst=80)
    found = step(answer, "flow")
    assert (found["flow"], found["priority"]) == ("web", 100)
    actions = [(item["action"], item["effect"]) for item in answer["steps"] if item["step"] == "action"]
    assert actions == [("mod_nw_dst:10.0.0.9", True), ("set_vlan_vid:20", True), ("output:f2", True)]
    edits = ["push_vlan 20", "mod_nw_dst 10.0.0.9", "checksum ip", "checksum tcp"]
    assert leaving(answer) == {"f2": edits}


async def test_flows_that_nearly_matched(switch: SwitchProcess) -> None:
    answer = await trace(switch, "f1", "flows", nw_proto=6, tp_dst=81)
    assert (step(answer, "flow")["flow"], answer["verdict"]["reason"]) == ("deny", "flow_drop")
    near = {
        (item["flow"], item["field"], item["wanted"], item["found"])
        for item in answer["steps"]
        if item["step"] == "nearly"
    }
    assert near == {("ssh", "tp_dst", "22", "81"), ("web", "tp_dst", "80", "81")}
    answer = await trace(switch, "f2", "flows", nw_proto=6, tp_dst=80)
    near = {
        (item["flow"], item["field"], item["wanted"], item["found"])
        for item in answer["steps"]
        if item["step"] == "nearly"
    }
    assert near == {("ssh", "tp_dst", "22", "80"), ("web", "in_port", "f1", "f2")}


async def test_a_ttl_that_ends(switch: SwitchProcess) -> None:
    answer = await trace(switch, "f1", "flows", nw_proto=17, nw_ttl=1)
    assert (step(answer, "flow")["flow"], answer["verdict"]["reason"]) == ("ttl", "ttl_exceeded")


async def test_a_trace_uses_up_no_meter(switch: SwitchProcess) -> None:
    for _ in range(3):
        answer = await trace(switch, "f1", "flows", nw_proto=17, tp_dst=53)
        assert leaving(answer) == {"f2": []}


TUNNEL = {
    "ports": {
        "vm": {"tag": 10},
        "vx": {
            "type": "vxlan",
            "vni": {"10": 1010, "20": 1020},
            "local": "127.0.0.1",
            "remotes": ["127.0.0.2"],
            "dst_port": 14789,
        },
    }
}


async def test_tunnels() -> None:
    """To all remotes, to one that is known, from a network and a remote."""
    async with running_switch(TUNNEL) as switch, Guest(switch.port_socket("vm")):
        (copy,) = (await trace(switch, "vm"))["verdict"]["egress"]
        assert (copy["port"], copy["vid"], copy["tun_id"], "remote" in copy) == ("vx", 10, 1010, False)
        await switch.cli("tunnel", "mac", "add", "vx", "1010", "10", B, "127.0.0.2")
        answer = await trace(switch, "vm", dl_dst=B)
        assert (step(answer, "fdb")["port"], step(answer, "fdb")["remote"]) == ("vx", "127.0.0.2")
        assert [item["remote"] for item in answer["verdict"]["egress"]] == ["127.0.0.2"]
        frame = build({"dl_src": A, "dl_dst": NOBODY}).hex()
        for tun_id, vid, ports in ((1010, 10, ["vm"]), (1020, 20, [])):
            body = {"in_port": "vx", "frame": frame, "tun_id": tun_id, "tun_src": "127.0.0.2"}
            status, answer = await switch.request("POST", "/api/v1/bridges/br0/trace", body)
            assert (status, step(answer, "vlan")["vid"], [*leaving(answer)]) == (200, vid, ports)


async def test_nothing_changes(switch: SwitchProcess) -> None:
    before = {port: await stats(switch, port) for port in CONFIG["ports"]}
    for port in ("access", "trunk", "safe", "seen"):
        await trace(switch, port, dl_src=MULTICAST)
    assert {port: await stats(switch, port) for port in CONFIG["ports"]} == before
    page = await switch.get("/bridges/br0/fdb")
    assert {item["type"] for item in page["items"]} == {"static"}


async def test_by_the_command(switch: SwitchProcess) -> None:
    out = await switch.cli("trace", "br0", f"in_port=access,tcp,dl_src={A},dl_dst={B},tp_dst=80")
    assert out.splitlines()[-2:] == ["egress  port trunk: push_vlan 10", "verdict leaves by trunk"]


def example(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


async def test_the_example_of_the_docs() -> None:
    (config,), examples = example("yaml"), example("text")
    assert examples
    async with running_switch(YAML(typ="safe").load(config)) as switch, contextlib.AsyncExitStack() as stack:
        for port in ("vm1", "vm2", "uplink", "web1", "web2"):
            await stack.enter_async_context(Guest(switch.port_socket(port)))
        for text in examples:
            command, _, output = text.partition("\n")
            assert await switch.cli(*command.removeprefix("$ pvswitch ").split()) == output
