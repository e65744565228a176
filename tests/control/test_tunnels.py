# SPDX-License-Identifier: Apache-2.0
"""Tunnels without a data plane: what their keys come to, plans, the API, metrics."""

from __future__ import annotations

from typing import Any

import pytest

from pvswitch import vlan
from pvswitch.controller import etag_of, plan
from pvswitch.datapath import VlanView
from pvswitch.model import TunnelPort
from pvswitch.tunnel_checks import meshes, network_numbers
from pvswitch.tunnel_port import outer_headers, settings_of
from pvswitch.validation import parse
from tests.control.conftest import Switch

V1 = "/api/v1"
MAC = "52:54:00:00:00:01"
VX: dict[str, Any] = {"type": "vxlan", "bridge": "br0", "vni": 7, "local": "192.0.2.1", "remotes": ["192.0.2.2"]}
MAPPED = VX | {"vni": {"10": 1010, "20-29": "2020-2029"}}


def tunnel(**keys: Any) -> TunnelPort:
    port = parse({"ports": {"t": {**VX, **keys}}}).ports["t"]
    assert isinstance(port, TunnelPort)
    return port


# ---- what the keys come to


def test_a_map_is_read_in_any_form() -> None:
    """YAML has numbers as keys, JSON has text."""
    port = tunnel(vni={10: 1010, "20-22": "2020-2022", 5: "7"})
    assert network_numbers(port) == ((5, 7), (10, 1010), (20, 2020), (21, 2021), (22, 2022))
    config = parse({"ports": {"t": port}})
    assert parse(config.document()) == config
    assert etag_of(parse(config.document())) == etag_of(config)


@pytest.mark.parametrize(
    ("keys", "bytes_"),
    [
        ({}, 36),
        ({"type": "geneve"}, 36),
        ({"local": "2001:db8::1", "remotes": []}, 56),
        ({"type": "gre", "key": 0}, 28),
        ({"type": "gre", "key": {"1": 1}}, 28),
        ({"type": "gre"}, 24),
        ({"type": "gre", "local": "2001:db8::1", "remotes": [], "key": 5}, 48),
    ],
)
def test_outer_headers(keys: dict[str, Any], bytes_: int) -> None:
    own = {key: value for key, value in VX.items() if key != "vni" or keys.get("type") != "gre"}
    port = parse({"ports": {"t": {**own, **keys}}}).ports["t"]
    assert isinstance(port, TunnelPort)
    assert outer_headers(port) == bytes_


def test_remotes_alone_make_no_other_tunnel() -> None:
    same = settings_of(tunnel())
    alike: tuple[dict[str, Any], ...] = (
        {"remotes": []},
        {"mtu": 1400},
        {"labels": {"a": "b"}},
        {"enabled": False},
        {"udp_csum": True},
    )
    for keys in alike:
        assert settings_of(tunnel(**keys)) == same
    for keys in ({"ttl": 1}, {"tos": 8}, {"df": False}, {"learning": False}, {"icmp_too_big": False}, {"vni": 8}):
        assert settings_of(tunnel(**keys)) != same
    assert settings_of(tunnel(udp_csum=False)) != same


def test_meshes() -> None:
    """Those of one type, network and bridge; a map is another network than one of its VNIs."""
    ports = {
        "a": VX,
        "b": VX | {"local": "192.0.2.9"},
        "c": VX | {"local": "192.0.2.9", "vni": 8},
        "d": VX | {"bridge": "br1", "local": "192.0.2.8"},
        "e": VX | {"type": "geneve"},
        "f": MAPPED | {"local": "192.0.2.8", "remotes": []},
        "g": MAPPED | {"local": "192.0.2.7", "vni": {"20-29": "2020-2029", 10: "1010"}},
    }
    config = parse({"bridges": {"br0": {}, "br1": {}}, "ports": ports})
    assert meshes(config) == {"a": 1, "b": 1, "f": 2, "g": 2}


def test_vlans_of_a_map() -> None:
    port = tunnel(vni=MAPPED["vni"])
    found = vlan.rules(port)
    assert found is not None
    assert (found.mode, found.vlans) == ("mapped", frozenset({10, *range(20, 30)}))
    member = vlan.member("t", found, 20)
    assert member is not None
    assert member.tagged is False
    assert vlan.member("t", found, 11) is None
    assert vlan.member("t", found, 0) is None
    assert vlan.named([port]) == {10, *range(20, 30)}
    assert vlan.rules(tunnel()) is None
    assert vlan.rules(tunnel(tag=5)) == VlanView("access", 5)


@pytest.mark.parametrize(
    ("keys", "disruptive"),
    [
        ({"remotes": []}, False),
        ({"vni": 8}, False),
        ({"ttl": 9, "tos": 8, "df": False, "learning": False, "udp_csum": False, "icmp_too_big": False}, False),
        ({"local": "192.0.2.9"}, True),
        ({"dst_port": 8472}, True),
        ({"type": "geneve"}, True),
    ],
)
def test_what_is_live(keys: dict[str, Any], disruptive: bool) -> None:
    (change,) = plan(parse({"ports": {"t": VX}}), parse({"ports": {"t": {**VX, **keys}}})).changes
    assert change.disruptive is disruptive
    assert ("its tunnel begins anew" in change.detail) is disruptive


def test_ten_thousand_networks() -> None:
    ports = {
        f"t{i}": VX | {"vni": {"1-4000": f"{i * 4000 + 1}-{i * 4000 + 4000}"}, "bridge": f"br{i}"} for i in range(3)
    }
    config = parse({"bridges": {f"br{i}": {} for i in range(3)}, "ports": ports})
    tunnels = [port for port in config.ports.values() if isinstance(port, TunnelPort)]
    assert len(tunnels) == len(ports)
    assert sum(len(network_numbers(port)) for port in tunnels) == 12000


# ---- the API


@pytest.fixture
async def lab(switch: Switch) -> Switch:
    for name, body in (("vx", VX), ("map", MAPPED | {"local": "192.0.2.3"})):
        made = await switch.ask("PUT", f"{V1}/ports/{name}", json=body)
        assert made.status == 201
    return switch


async def test_tunnels_are_shown(lab: Switch) -> None:
    listed = await lab.ask("GET", f"{V1}/tunnels")
    assert [item["name"] for item in listed.body["items"]] == ["map", "vx"]
    one = (await lab.ask("GET", f"{V1}/tunnels/map")).body
    assert (one["vnis"], one["vni"], one["mtu"]) == (11, {"10": 1010, "20-29": "2020-2029"}, 1450)
    assert one["remotes"] == [{"address": "192.0.2.2", "origin": "static"}]
    assert one["endpoint"]["drops"] == {"unknown_vni": 5}
    assert (await lab.ask("GET", f"{V1}/tunnels/vm1")).status == 404
    assert (await lab.ask("GET", f"{V1}/ports/vx")).body["state"]["link"] == "up"
    assert (await lab.ask("GET", f"{V1}/tunnels?limit=1")).body["next"] is not None
    text = (await lab.ask("GET", "/openapi.json")).body
    assert "If-Match" not in str(text["paths"][f"{V1}/tunnels/{{port}}:batch"])


async def test_remotes_live(lab: Switch) -> None:
    path = f"{V1}/tunnels/vx/vnis/7/remotes"
    etag = lab.controller.etag
    assert (await lab.ask("GET", f"{path}/192.0.2.5")).status == 404
    made = await lab.ask("PUT", f"{path}/192.0.2.5")
    assert (made.status, made.body["origin"]) == (201, "external")
    assert (await lab.ask("PUT", f"{path}/192.0.2.5")).status == 200
    assert (await lab.ask("GET", f"{path}/192.0.2.5")).body["vni"] == 7
    listed = (await lab.ask("GET", path)).body["items"]
    assert [(item["name"], item["origin"]) for item in listed] == [("192.0.2.2", "static"), ("192.0.2.5", "external")]
    assert (await lab.ask("DELETE", f"{path}/192.0.2.5")).status == 204
    assert (await lab.ask("DELETE", f"{path}/192.0.2.5")).status == 404
    refused = await lab.ask("DELETE", f"{path}/192.0.2.2")
    assert (refused.status, refused.pointers) == (409, ["#/ports/vx/remotes"])
    assert lab.controller.etag == etag
    assert len(lab.controller.config.ports["vx"].remotes) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("path", "status", "pointers"),
    [
        ("vx/vnis/8/remotes/192.0.2.5", 404, []),
        ("vx/vnis/-1/remotes/192.0.2.5", 404, []),
        ("vx/vnis/%C2%B2/remotes/192.0.2.5", 404, []),
        ("nothing/vnis/7/remotes/192.0.2.5", 404, []),
        ("vm1/vnis/7/remotes/192.0.2.5", 404, []),
        ("vx/vnis/7/remotes/here", 422, ["#/address"]),
        ("vx/vnis/7/remotes/192.0.2.1", 422, ["#/address"]),
        ("vx/vnis/7/remotes/2001:db8::1", 422, ["#/address"]),
        ("vx/vnis/7/remotes/239.1.1.1", 422, ["#/address"]),
        (f"map/vnis/1010/macs/11/{MAC}", 422, ["#/vid"]),
        (f"vx/vnis/7/macs/4095/{MAC}", 422, ["#/vid"]),
        ("vx/vnis/7/macs/0/01:00:5e:00:00:01", 422, ["#/mac"]),
        ("vx/vnis/7/macs/x/y", 422, ["#/vid", "#/mac"]),
    ],
)
async def test_what_is_refused(lab: Switch, path: str, status: int, pointers: list[str]) -> None:
    answer = await lab.ask("PUT", f"{V1}/tunnels/{path}", json={"remote": "192.0.2.5"})
    assert (answer.status, answer.type, answer.pointers) == (status, "application/problem+json", pointers)
    assert lab.dataplane.tunnels.batches == 0


async def test_addresses_live(lab: Switch) -> None:
    path = f"{V1}/tunnels/map/vnis/2025/macs"
    made = await lab.ask("PUT", f"{path}/25/{MAC.upper()}", json={"remote": "192.0.2.5"})
    assert (made.status, made.body) == (201, {"name": f"25/{MAC}", "vid": 25, "mac": MAC, "remote": "192.0.2.5"})
    moved = await lab.ask("PUT", f"{path}/25/{MAC}", json={"remote": "192.0.2.6"})
    assert moved.status == 201
    assert (await lab.ask("GET", f"{path}/25/{MAC}")).body["remote"] == "192.0.2.6"
    assert len((await lab.ask("GET", path)).body["items"]) == 1
    assert (await lab.ask("DELETE", f"{path}/25/{MAC}")).status == 204
    assert (await lab.ask("DELETE", f"{path}/25/{MAC}")).status == 404
    assert (await lab.ask("PUT", f"{path}/25/{MAC}", json={})).pointers == ["#/remote"]
    assert (await lab.ask("PUT", f"{path}/25/{MAC}", json={"remote": "192.0.2.3"})).pointers == ["#/remote"]
    lab.dataplane.tunnels.foreign.add(MAC)
    refused = await lab.ask("PUT", f"{path}/25/{MAC}", json={"remote": "192.0.2.5"})
    assert (refused.status, refused.pointers) == (409, ["#/ports/map"])


async def test_a_batch(lab: Switch) -> None:
    path = f"{V1}/tunnels/map:batch"
    remotes = [{"vni": 2020 + i % 10, "address": f"10.0.{i >> 8}.{i & 255}"} for i in range(1, 9999)]
    macs = [{"vni": 1010, "vid": 10, "mac": MAC, "remote": "192.0.2.5"}]
    done = await lab.ask("POST", path, json={"add": {"remotes": remotes, "macs": macs}})
    assert (done.status, done.body) == (200, {"added": 9999, "removed": 0})
    assert lab.dataplane.tunnels.batches == 1
    more = {"add": {"macs": macs}, "remove": {"remotes": remotes[:5], "macs": [{"vni": 1010, "vid": 10, "mac": MAC}]}}
    assert (await lab.ask("POST", path, json=more)).body == {"added": 1, "removed": 6}
    assert (await lab.ask("POST", path, json={})).body == {"added": 0, "removed": 0}
    assert (await lab.ask("POST", path, json={"add": {"remotes": [*remotes, *remotes]}})).pointers == ["#"]
    wrong = {
        "add": {"remotes": [remotes[0], {"vni": 9, "address": "192.0.2.3"}], "macs": [macs[0] | {"vid": 11}]},
        "remove": {"macs": [{"vni": 1, "mac": MAC}]},
    }
    refused = await lab.ask("POST", path, json=wrong)
    assert refused.status == 422
    assert refused.pointers == [
        *("#/add/remotes/1/vni", "#/add/remotes/1/address", "#/add/macs/0/vid", "#/remove/macs/0/vni"),
    ]
    assert (await lab.ask("POST", f"{V1}/tunnels/vm1:batch", json={})).status == 404
    assert (await lab.ask("POST", path, json={"added": {}})).pointers == ["#/added"]
    assert (await lab.ask("GET", path)).status == 405


async def test_external_addresses_are_not_flushed(lab: Switch) -> None:
    lab.dataplane.learn("br0", MAC, "vx")
    entry = lab.dataplane.learned["br0"][0]
    lab.dataplane.learned["br0"][0] = entry.model_copy(update={"type": "external", "remote": "192.0.2.2"})
    path = f"{V1}/bridges/br0/fdb"
    assert [item["remote"] for item in (await lab.ask("GET", f"{path}?type=external")).body["items"]] == ["192.0.2.2"]
    assert (await lab.ask("DELETE", f"{path}/0/{MAC}")).status == 409
    assert (await lab.ask("DELETE", f"{path}?type=external")).pointers == ["?type"]


async def test_metrics(lab: Switch) -> None:
    async with lab.session.get("http://switch/metrics") as response:
        text = await response.text()
    assert 'pvswitch_tunnel_drops_total{endpoint="vxlan-192.0.2.1-4789",reason="unknown_vni"} 5.0' in text
