# SPDX-License-Identifier: Apache-2.0
"""The model: what is filled in, what is refused, and that reading back changes nothing."""

from __future__ import annotations

import contextlib
import grp
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pvswitch import model
from pvswitch.config import load
from pvswitch.controller import etag_of
from pvswitch.errors import ConfigError, InvalidDocument
from pvswitch.model import (
    AfPacketPort,
    AnyPort,
    PcapPort,
    SwitchConfig,
    TapPort,
    VhostUserPort,
)
from pvswitch.state import LinkReason, link_message
from pvswitch.validation import parse
from tests.control.malformed import MALFORMED


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_documents_name_every_place(what: str) -> None:
    document, places, message = MALFORMED[what]
    with pytest.raises(InvalidDocument) as caught:
        parse(document)
    assert [error.place for error in caught.value.errors] == places
    assert message in caught.value.errors[0].message
    assert "Input should" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        {f"key{i}": 1 for i in range(5000)},
        {"ports": {"vm1": {f"key{i}": 1 for i in range(5000)}}},
        {"ports": {"vm1": {"labels": {f"key{i:04}": i for i in range(5000)}}}},
    ],
)
def test_of_too_many_errors_the_first_are_named(document: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument) as caught:
        parse(document)
    assert (len(caught.value.errors), caught.value.omitted) == (1000, 4000)
    assert str(caught.value).endswith("; and 4000 more")
    file = tmp_path / "lab.yaml"
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError) as refused:
        load(file)
    assert str(refused.value).splitlines()[1000:] == [f"{file}: 4000 more values are wrong: mend these first"]


@pytest.mark.parametrize("document", [None, [], "text", 7])
def test_what_is_no_mapping_is_refused(document: Any) -> None:
    with pytest.raises(InvalidDocument, match="mapping"):
        parse(document)


def test_defaults_are_filled_in() -> None:
    config = parse({"runtime_dir": "/r", "ports": {"vm1": {}}})
    assert list(config.bridges) == ["br0"]
    assert config.port_bridge("vm1") == "br0"
    assert config.port_socket("vm1") == Path("/r/ports/vm1.sock")
    assert config.api.socket == Path("/r/api.sock")
    assert config.socket_mode_bits() == 0o660
    assert config.bridges["br0"].aging_time == 300
    port = config.ports["vm1"]
    assert isinstance(port, VhostUserPort)
    assert port.mtu is None
    assert (port.queues, port.mode, port.on_full, port.backpressure_ms) == (8, "server", "drop", 10)
    assert port.rxq_affinity == ()
    assert set(port.features.model_dump().values()) == {True}


def test_models_made_in_python_are_filled_in_too() -> None:
    config = SwitchConfig(runtime_dir=Path("/r"), ports={"vm1": VhostUserPort(mtu=9000)})
    assert config.port_socket("vm1") == Path("/r/ports/vm1.sock")
    with pytest.raises(pydantic.ValidationError):
        SwitchConfig(ports={"vm1": VhostUserPort(bridge="nowhere")})


def test_a_configuration_is_frozen() -> None:
    config = parse({})
    with pytest.raises(pydantic.ValidationError):
        setattr(config, "socket_mode", "0666")  # noqa: B010 (a type checker refuses the plain form, rightly)


@pytest.mark.parametrize("written", ["52-54-00-AB-CD-EF", "52:54:00:ab:cd:ef", "52:54:00:AB:CD:EF"])
def test_macs_are_normalised(written: str) -> None:
    config = parse({"bridges": {"b": {"fdb": [{"mac": written, "port": "p"}]}}, "ports": {"p": {}}})
    assert config.bridges["b"].fdb[0].mac == "52:54:00:ab:cd:ef"


def test_workers_processors_and_who_polls_what() -> None:
    keys = {"queues": 16, "rxq_affinity": [15, 0, 15]}
    config = parse({"datapath": {"workers": 16, "cpus": [*range(15), 1023]}, "ports": {"vm1": keys}})
    assert config.datapath.cpus[-1] == 1023
    port = config.ports["vm1"]
    assert isinstance(port, VhostUserPort)
    assert port.rxq_affinity == (15, 0, 15)
    assert parse({"datapath": {"workers": 2, "cpus": []}}).datapath.cpus == ()


def test_waiting_is_said_by_who_connects() -> None:
    reason = LinkReason.WAITING_FOR_FRONTEND
    assert "server=on,wait=off" in link_message(reason, "vm1", "/x.sock", mode="client")
    assert "server=on" not in link_message(reason, "vm1", "/x.sock")


def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert parse({}).state_dir == Path("/var/lib/pvswitch")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/lab")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert parse({}).state_dir == Path("/home/lab/.local/state/pvswitch")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert parse({}).state_dir == Path("/state/pvswitch")
    assert parse({"state_dir": "/elsewhere"}).document()["state_dir"] == "/elsewhere"


def test_uplinks_are_filled_in() -> None:
    ports = parse(
        {
            "ports": {
                "t": {
                    "type": "tap",
                    "ifname": "tap0",
                    "netns": "/var/run/netns/lab",
                    "addresses": ["2001:DB8::0:1/64"],
                },
                "p": {"type": "af_packet", "ifname": "eth1", "netns": "/proc/7/ns//net"},
            }
        }
    ).ports
    tap, packet = ports["t"], ports["p"]
    assert isinstance(tap, TapPort)
    assert (tap.bridge, tap.queues, tap.netns, tap.addresses) == ("br0", 1, "lab", ("2001:db8::1/64",))
    assert isinstance(packet, AfPacketPort)
    assert (packet.promisc, packet.netns) == (True, "/proc/7/ns/net")


def test_a_pcap_port_is_filled_in() -> None:
    port = parse({"ports": {"f": {"type": "pcap", "read": "//lab//a.pcap", "speed": 2}}}).ports["f"]
    assert isinstance(port, PcapPort)
    assert (port.read, port.write, port.speed, port.loop) == (Path("/lab/a.pcap"), None, 2.0, False)


def test_several_ports_may_play_one_file() -> None:
    port = {"type": "pcap", "read": "/a"}
    assert (
        len(parse({"ports": {"x": port, "y": {**port, "write": "/x"}, "z": {"type": "pcap", "write": "/z"}}}).ports)
        == 3
    )


def test_only_a_vhost_user_port_has_a_socket() -> None:
    config = parse({"ports": {"t": {"type": "tap", "ifname": "tap0"}}})
    assert "socket" not in config.document()["ports"]["t"]
    with pytest.raises(KeyError):
        config.port_socket("t")


@pytest.mark.parametrize(
    "port",
    [
        {},
        {"type": "vhost-user", "mode": "client"},
        {"type": "tap", "ifname": "tap0", "addresses": ["192.0.2.1/24"]},
        {"type": "af_packet", "ifname": "eth1", "promisc": False},
        {"type": "tap"},
        {"type": "tap", "ifname": "tap 0"},
        {"type": "tap", "ifname": "tap0", "socket": "/s"},
        {"type": "af_packet", "ifname": "eth1", "queues": 1},
        {"type": "pcap", "read": "/a", "speed": 0.5, "loop": True},
        {"type": "pcap", "write": "/a"},
        {"type": "pcap"},
        {"type": "pcap", "read": "/a", "speed": -1},
        {"type": "pcap", "read": "/a", "ifname": "eth1"},
        {"type": "vxlan"},
        {"type": "vxlan", "vni": 7, "local": "192.0.2.1", "tos": "inherit", "udp_csum": "auto"},
        {"type": "vxlan", "vni": {"10": 7, "11-20": "11-20"}, "local": "192.0.2.1", "tos": 4, "udp_csum": False},
        {"type": "vxlan", "vni": {"ten": 7}, "local": "192.0.2.1"},
        {"type": "vxlan", "vni": {}, "local": "192.0.2.1"},
        {"type": "geneve", "vni": 7, "local": "192.0.2.1", "tos": 3},
        {"type": "gre", "local": "192.0.2.1"},
        {"type": "gre", "local": "192.0.2.1", "key": 1 << 31},
        {"type": "gre", "local": "192.0.2.1", "vni": 7},
        {"ifname": "tap0"},
        {"queues": 17},
    ],
)
def test_the_schema_of_ports_says_what_is_taken(port: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(TypeAdapter(AnyPort).json_schema())
    try:
        parse({"ports": {"x": port}})
    except InvalidDocument:
        assert not validator.is_valid(port)
    else:
        assert validator.is_valid(port)


@pytest.mark.parametrize("listen", ["127.0.0.1:8080", "[::1]:8080", "127.8.8.8:1"])
def test_loopback_addresses_may_listen(listen: str) -> None:
    assert parse({"api": {"listen": listen}}).api.listen == listen


def test_the_runtime_folder_depends_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert model.default_runtime_dir() == Path("/run/pvswitch")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert parse({}).api.socket == Path("/run/user/1000/pvswitch/api.sock")


def test_the_sockets_group(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        gr_gid = 4242

    def known(name: str) -> Group:
        if name != "kvm":
            raise KeyError(name)
        return Group()

    monkeypatch.setattr(grp, "getgrnam", known)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert parse({}).socket_gid() == 4242
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [4242])
    assert parse({}).socket_gid() == 4242
    monkeypatch.setattr(os, "getgroups", lambda: [7])
    assert parse({}).socket_gid() == os.getegid()


@pytest.mark.parametrize("reason", LinkReason)
def test_every_reason_has_a_sentence(reason: LinkReason) -> None:
    message = link_message(reason, "vm1", "/x.sock", "detail")
    assert message.endswith("(detail)")
    assert "{" not in message
    assert ":" in message  # what is wrong: what to do about it


NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,8}\Z")


MACS = st.integers(0, 255).map("02:00:00:00:00:{:02x}".format)
NETWORKS = st.ip_addresses().map(str) | st.builds("{}/{}".format, st.ip_addresses(v=4), st.integers(0, 32))
RATES = st.fixed_dictionaries(
    {"rate_kbps": st.integers(1, 10**9)}, optional={"burst_bytes": st.integers(65_550, 4 * 10**9)}
)
PPS = st.integers(1, 10**9)
POLICIES: dict[str, st.SearchStrategy[Any]] = {
    "port_security": st.fixed_dictionaries(
        {},
        optional={
            "max_macs": st.integers(1, 10**6),
            "sticky": st.booleans(),
            "allowed_macs": st.lists(MACS, max_size=3),
            "allowed_ips": st.lists(NETWORKS, max_size=3),
        },
    ).filter(lambda rules: not rules.get("sticky") or "max_macs" in rules),
    "storm_control": st.fixed_dictionaries(
        {}, optional={f"{kind}_pps": PPS for kind in ("broadcast", "multicast", "unknown")}
    ),
    "policing": RATES,
    "shaping": RATES,
}
VLANS = st.lists(st.integers(0, 4094) | st.sampled_from(["10-20", "0-4094", "7-7"]), max_size=3)


@st.composite
def mirrors(draw: st.DrawFn, ports: list[str]) -> dict[str, Any]:
    """Of a bridge with these ports: each is selected, or an output, or neither."""
    outputs = [port for port in ports if draw(st.booleans())]
    others = st.lists(st.sampled_from([port for port in ports if port not in outputs] or [""]).filter(bool), max_size=3)
    selected = others if set(ports) - set(outputs) else st.just([])
    found = {}
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        to_vlan = not outputs or draw(st.booleans())
        output = {"output_vlan": st.integers(1, 4094)} if to_vlan else {"output_port": st.sampled_from(outputs)}
        optional = {
            "select_src_port": selected,
            "select_dst_port": selected,
            "select_vlan": VLANS,
            "snaplen": st.integers(14, 65535),
            "drops": st.booleans(),
        }
        found[name] = draw(st.fixed_dictionaries(output, optional=optional))
    return found


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    bridges = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    ports = {
        name: {"bridge": draw(st.sampled_from(bridges))}
        | draw(st.fixed_dictionaries({}, optional={"mtu": st.integers(68, 65535), "enabled": st.booleans()}))
        | draw(st.fixed_dictionaries({}, optional={"labels": st.dictionaries(NAMES, NAMES, max_size=2)}))
        | draw(st.fixed_dictionaries({}, optional={"queues": st.integers(2, 16), "mode": st.just("client")}))
        | draw(st.fixed_dictionaries({}, optional={"rxq_affinity": st.lists(st.integers(0, 3), max_size=2)}))
        | draw(st.fixed_dictionaries({}, optional=POLICIES))
        for name in draw(st.lists(NAMES, max_size=5, unique=True))
    }
    for i, port in enumerate(ports.values()):
        kind = draw(st.sampled_from(["vhost-user", "vhost-user", "tap", "af_packet", "pcap"]))
        if kind != "vhost-user":
            for key in ("queues", "mode", "rxq_affinity"):
                port.pop(key, None)
        if kind == "pcap":
            optional = {"speed": st.floats(0, 1000) | st.integers(0, 9), "loop": st.booleans()}
            files = draw(
                st.sampled_from([{"read": "/in"}, {"write": f"/out{i}"}, {"read": "/in", "write": f"/out{i}"}])
            )
            port |= {"type": kind, **files} | draw(st.fixed_dictionaries({}, optional=optional))
        elif kind != "vhost-user":
            port |= {"type": kind, "ifname": f"if{i}"}
            port |= draw(st.fixed_dictionaries({}, optional={"netns": st.sampled_from(["lab", "/run/netns/x", "/n"])}))
            port["mtu"] = min(port.get("mtu", 1500), 65521)
    static = {
        bridge: [
            {"mac": f"02:00:00:00:00:{i:02x}", "port": name}
            for i, name in enumerate(ports)
            if ports[name]["bridge"] == bridge
        ]
        for bridge in bridges
    }
    bridge_settings = {
        name: {
            "fdb": static[name],
            "mirrors": draw(mirrors([port for port, conf in ports.items() if conf["bridge"] == name])),
        }
        for name in bridges
    }
    return {"bridges": bridge_settings, "ports": ports, "datapath": {"workers": 4}}


@given(documents())
def test_a_document_read_back_is_the_same_configuration(document: dict[str, Any]) -> None:
    config = parse(document)
    again = parse(config.document())
    assert again == config
    assert etag_of(again) == etag_of(config)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["bridges", "ports", "api", "datapath", "socket_mode", "x"]), JUNK)
    | st.builds(lambda junk: {"ports": {"vm1": junk}, "bridges": {"br0": junk}}, JUNK)
    | st.builds(lambda junk: {"datapath": {"workers": junk, "cpus": [junk]}}, JUNK)
    | st.builds(lambda junk: {"ports": {"vm1": {"rxq_affinity": [junk, 0], "queues": junk}}}, JUNK)
    | st.builds(
        lambda junk, kind: {"ports": {"x": {"type": kind, "ifname": junk, "netns": junk, "addresses": [junk]}}},
        JUNK,
        st.sampled_from(["tap", "af_packet"]) | JUNK,
    )
    | st.builds(
        lambda read, write, speed: {"ports": {"x": {"type": "pcap", "read": read, "write": write, "speed": speed}}},
        *(JUNK | st.just("/a") for _ in range(3)),
    )
    | st.builds(lambda junk: {"bridges": {"br0": {"fdb": [junk, {"port": junk, "mac": junk}]}}}, JUNK)
    | st.builds(
        lambda junk, key: {"bridges": {"br0": {"mirrors": {"m": {"output_vlan": 9, key: junk}, "n": junk}}}},
        JUNK,
        st.sampled_from(
            ["select_src_port", "select_dst_port", "select_vlan", "output_port", "output_vlan", "snaplen", "drops"]
        ),
    )
    | st.builds(
        lambda junk, key, inner: {"ports": {"vm1": {key: {inner: junk}}, "vm2": {key: junk}}},
        JUNK,
        st.sampled_from([*POLICIES]),
        st.sampled_from(["max_macs", "sticky", "allowed_macs", "allowed_ips", "broadcast_pps", "rate_kbps"]),
    )
)
def test_junk_is_refused_in_words_or_taken(document: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidDocument):
        parse(document)
