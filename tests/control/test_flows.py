# SPDX-License-Identifier: Apache-2.0
"""Flows as values: what text and JSON say, every refusal by name, canonical printing as ovs-ofctl, the core's words."""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import Any

import pytest

from pvswitch.datapath.core import ffi, lib
from pvswitch.errors import InvalidDocument
from pvswitch.flow_model import MAX_FLOWS, MAX_MASKS, MAX_METERS, Flow, Meter
from pvswitch.flows import actions, compiled
from pvswitch.flows.fields import FIELDS, WORDS
from pvswitch.flows.match import range_masks, read_match
from pvswitch.flows.text import named_by_match, read_flow, read_flows, show_flow
from pvswitch.validation import parse_part

# How it is written, and what `ovs-ofctl parse-flow` of Open vSwitch 3.1 prints of it.
CANONICAL = [
    (
        "arp,arp_op=1,arp_spa=10.9.9.9/8,arp_tha=52:54:00:00:00:01/ff:ff:00:00:00:00",
        "arp,arp_spa=10.0.0.0/8,arp_op=1,arp_tha=52:54:00:00:00:00/ff:ff:00:00:00:00",
    ),
    ("arp,nw_src=10.0.0.1,nw_proto=3", "arp,arp_spa=10.0.0.1,arp_op=3"),
    ("icmp6,icmp_type=135,icmp_code=0,nd_target=fe80::1", None),
    ("icmp6,icmp_type=136,nd_target=fe80::/64", None),
    ("ip,nw_proto=1,tp_src=8", "icmp,icmp_type=8"),
    ("icmp,icmp_type=8,icmp_code=1", None),
    ("vlan_tci=0x1000/0x1000", None),
    ("vlan_tci=0", "vlan_tci=0x0000"),
    ("vlan_tci=0x1005/0x1fff", "dl_vlan=5"),
    ("vlan_tci=0x5/0xfff", "vlan_tci=0x0005/0x0fff"),
    ("vlan_tci=0x3000/0xf000", "dl_vlan_pcp=1"),
    ("vlan_tci=0x1000/0xffff", "dl_vlan=0,dl_vlan_pcp=0"),
    ("dl_vlan=0xffff", "vlan_tci=0x0000"),
    ("dl_vlan=5,dl_vlan_pcp=3", None),
    ("dl_type=0x0800,nw_proto=6,tp_dst=80", "tcp,tp_dst=80"),
    ("dl_type=0x88cc", None),
    ("ip,nw_proto=47,nw_frag=yes", None),
    ("ip,nw_frag=not_later", None),
    ("ip,nw_src=10.0.0.1/255.0.255.0", "ip,nw_src=10.0.0.0/255.0.255.0"),
    ("ip,nw_src=10.0.0.1/8,nw_dst=0.0.0.0/0", "ip,nw_src=10.0.0.0/8"),
    ("tcp,tcp_flags=0x002/0x012", "tcp,tcp_flags=+syn-ack"),
    ("tcp,tcp_flags=0x003", "tcp,tcp_flags=fin|syn"),
    ("tcp,tcp_flags=+[200]-fin", "tcp,tcp_flags=-fin+[200]"),
    ("tcp,tcp_flags=0", "tcp,tcp_flags=0"),
    ("rarp", None),
    ("sctp6,tp_src=7", None),
    ("udp6,ipv6_src=fe80::1/ffff::ff00,tp_dst=0x50/0xfff0", "udp6,ipv6_src=fe80::/ffff::ff00,tp_dst=0x50/0xfff0"),
    ("ipv6,ipv6_dst=2001:DB8:0::1/32", "ipv6,ipv6_dst=2001:db8::/32"),
    ("dl_dst=01:00:00:00:00:00/01:00:00:00:00:00", None),
    ("tun_id=5/255,in_port=3,ip,nw_tos=32,nw_ttl=3", "ip,tun_id=0x5/0xff,in_port=3,nw_tos=32,nw_ttl=3"),
    ("in_port=3 dl_vlan=5   dl_type=0x0800", "ip,in_port=3,dl_vlan=5"),
]


@pytest.mark.parametrize(("written", "printed"), CANONICAL)
def test_a_match_is_printed_as_open_vswitch_prints_it(written: str, printed: str | None) -> None:
    match = read_match(read_flow(f"{written} actions=drop")["match"])
    assert match.fields().text() == (printed or written)
    assert read_match(match.fields()) == match


@pytest.mark.skipif(shutil.which("ovs-ofctl") is None, reason="ovs-ofctl is missing: apt install openvswitch-common")
@pytest.mark.parametrize(("written", "printed"), CANONICAL)
def test_open_vswitch_says_the_same(written: str, printed: str | None) -> None:
    flow = f"priority=7,{written},actions=drop"
    answer = subprocess.run(["ovs-ofctl", "parse-flow", flow], capture_output=True, text=True, check=True).stdout
    ours = Flow.model_validate(flow)
    assert f"ADD {ours.match_name} actions=drop" in answer


ACTIONS = (
    "output:vm1,in_port,ALL,flood,Normal,mirror:m,meter:r,push_vlan:0x88a8,pop_vlan,set_vlan_vid:20,set_vlan_pcp:3,"
    "mod_dl_src:52:54:00:00:00:01,mod_dl_dst:FF:FF:FF:FF:FF:FF,mod_nw_src:10.0.0.1,mod_nw_dst:10.0.0.2,mod_nw_tos:184,"
    "mod_tp_src:5,mod_tp_dst:0x50,dec_ttl,set_tunnel:5"
)


def test_every_action_is_read_and_printed() -> None:
    flow = Flow.model_validate(f"actions={ACTIONS}")
    assert len(flow.actions) == len(actions.KINDS) - 1
    text = show_flow(flow.model_dump())
    assert text.endswith(
        "actions=output:vm1,IN_PORT,ALL,FLOOD,NORMAL,mirror:m,meter:r,push_vlan:0x88a8,pop_vlan,set_vlan_vid:20,"
        "set_vlan_pcp:3,mod_dl_src:52:54:00:00:00:01,mod_dl_dst:ff:ff:ff:ff:ff:ff,mod_nw_src:10.0.0.1,"
        "mod_nw_dst:10.0.0.2,mod_nw_tos:184,mod_tp_src:5,mod_tp_dst:80,dec_ttl,set_tunnel:0x5"
    )
    assert Flow.model_validate(text) == flow


def test_the_text_of_the_contract() -> None:
    flow = read_flow("priority=100,in_port=vm1,ip,nw_dst=10.0.0.0/24,actions=drop")
    assert Flow.model_validate(flow).model_dump(exclude_defaults=True) == {
        "priority": 100,
        "match": {"in_port": "vm1", "dl_type": "0x0800", "nw_dst": "10.0.0.0/24"},
        "actions": ("drop",),
    }
    json = {"in_port": "vm1", "dl_type": "0x0800", "nw_dst": "10.0.0.0/24", "nw_proto": 6, "tp_dst": "80"}
    made = Flow.model_validate({"priority": 100, "match": json, "actions": ["set_vlan_vid:20", "output:uplink"]})
    assert made.match == {**json, "tp_dst": 80}
    assert made.match_name == "priority=100,tcp,in_port=vm1,nw_dst=10.0.0.0/24,tp_dst=80"
    assert named_by_match("tp_dst=0x50,nw_dst=10.0.0.9/24, tcp,in_port=vm1 priority=100") == made.match_name


def test_what_was_dumped_is_read_again_without_its_counters() -> None:
    flow = Flow.model_validate("cookie=0x12,idle_timeout=5,hard_timeout=9,priority=7,tcp,tp_dst=80,actions=normal")
    counters = ("duration=3.215s", "n_packets=5", "n_bytes=700", "idle_age=1")
    line = show_flow(flow.model_dump(), "web", counters)
    assert line == (
        "cookie=0x12, duration=3.215s, n_packets=5, n_bytes=700, idle_age=1, idle_timeout=5, hard_timeout=9, name=web, "
        "priority=7,tcp,tp_dst=80 actions=NORMAL"
    )
    found = read_flow(line)
    assert (found.pop("name"), Flow.model_validate(found)) == ("web", flow)
    assert "name=" not in show_flow(flow.model_dump(), flow.match_name)


def test_a_file_of_flows() -> None:
    text = (
        "# a comment\n\n priority=5,ip actions=drop # and another\r\nNXST_FLOW reply (xid=0x4):\ntcp,actions=normal\n"
    )
    assert [line for line, _ in read_flows(text)] == [3, 5]
    with pytest.raises(InvalidDocument) as refused:
        read_flows("ip,actions=drop\nbogus,actions=drop\ntcp,tp_dst=x,actions=nothing")
    assert [error.loc[:2] for error in refused.value.errors] == [
        ("line 2", "bogus"),
        ("line 3", "match"),
        ("line 3", "actions"),
    ]


# ---- refusals ----

REFUSED = [
    ("table=1,actions=drop", "table", "there is one table"),
    ("ct_state=+trk,actions=drop", "match/ct_state", "`ct_state` of Open vSwitch is not available"),
    ("reg0=1,actions=drop", "match/reg0", "`reg0` of Open vSwitch is not available"),
    ("eth_src=52:54:00:00:00:01,actions=drop", "match/eth_src", "write `dl_src`"),
    ("tpp_dst=1,actions=drop", "match/tpp_dst", "did you mean `tp_dst`"),
    ("actions=resubmit(,1)", "actions/0", "`resubmit` of Open vSwitch is not available"),
    ("actions=ct(commit,zone=1)", "actions/0", "`ct` of Open vSwitch"),
    ("actions=learn(table=1,a=b),group:1,controller,conjunction(1,1/2)", "actions/3", "`conjunction` of Open"),
    ("actions=mod_vlan_vid:5", "actions/0", "write set_vlan_vid"),
    ("actions=strip_vlan", "actions/0", "write pop_vlan"),
    ("actions=set_field:5->tun_id", "actions/0", "`set_field` isn't an action here"),
    ("actions=dec_ttl(1,2)", "actions/0", "can't have parentheses"),
    ("actions=vm1", "actions/0", "write output:vm1"),
    ("actions=output", "actions/0", "needs a port"),
    ("actions=normal:1", "actions/0", "takes nothing behind it"),
    ("actions=drop,normal", "actions/0", "stands alone"),
    ("actions=normal,output:vm1,normal", "actions/2", "possible once"),
    ("actions=push_vlan:0x8100,push_vlan:0x8100,push_vlan:0x8100,normal", "actions/2", "possible twice"),
    ("actions=push_vlan:0x9100", "actions/0", "must be 0x8100 or 0x88a8"),
    ("actions=set_vlan_vid:4096", "actions/0", "at most 4095"),
    ("actions=mod_nw_tos:5", "actions/0", "multiple of 4"),
    ("ip,actions=" + ",".join(["dec_ttl"] * 33), "actions", "at most 32"),
    ("ip,actions=output:a," + ",".join(["dec_ttl,output:a"] * 8) + ",dec_ttl", "actions", "8 different forms"),
    ("actions=meter:m,meter:n,output:a,meter:m", "actions/3", "`meter:m` is there already"),
    ("actions=all,flood,all,flood,normal", "actions", "more than 4"),
    ("nw_src=10.0.0.1,actions=drop", "match/nw_src", "needs `dl_type` 0x0800"),
    ("ip,ipv6_src=::1,actions=drop", "match/ipv6_src", "needs `dl_type` 0x86dd"),
    ("nw_proto=6,actions=drop", "match/nw_proto", "needs `dl_type`"),
    ("ip,tp_dst=80,actions=drop", "match/tp_dst", "needs a protocol with ports"),
    ("udp,tcp_flags=+syn,actions=drop", "match/tcp_flags", "needs `nw_proto` 6"),
    ("tcp,icmp_type=8,actions=drop", "match/icmp_type", "needs ICMP"),
    ("ip,arp_op=1,actions=drop", "match/arp_op", "needs `dl_type` 0x0806"),
    ("icmp6,nd_target=fe80::1,actions=drop", "match/nd_target", "needs `icmp_type` 135"),
    ("tcp,nw_frag=later,tp_dst=80,actions=drop", "match/tp_dst", "first fragment only"),
    ("dl_vlan=5,vlan_tci=0x1005,actions=drop", "match/dl_vlan", "a part of `vlan_tci`"),
    ("dl_vlan=0xffff,dl_vlan_pcp=3,actions=drop", "match/dl_vlan_pcp", "is of a tag"),
    ("arp,arp_spa=1.2.3.4,nw_src=1.2.3.4,actions=drop", "match/nw_src", "the same as `arp_spa`"),
    ("icmp,tp_src=8/15,actions=drop", "match/tp_src", "is `icmp_type` here"),
    ("dl_vlan=5/7,actions=drop", "match/dl_vlan", "takes no mask"),
    ("dl_type=5/7,actions=drop", "match/dl_type", "takes no mask"),
    ("tcp,udp,actions=drop", "match/nw_proto", "is given twice"),
    ("tcp,tp_dst=80,tp_dst=81,actions=drop", "match/tp_dst", "is given twice"),
    ("ip,nw_tos=5,actions=drop", "match/nw_tos", "multiple of 4"),
    ("ip,nw_ttl=256,actions=drop", "match/nw_ttl", "at most 255"),
    ("ip,nw_ttl=1-5,actions=drop", "match/nw_ttl", "can't be a range"),
    ("tcp,tp_dst=90-80,actions=drop", "match/tp_dst", "the lower number first"),
    ("tcp,tp_dst=080,actions=drop", "match/tp_dst", "must be a number"),
    ("tcp,tcp_flags=+syn+foo,actions=drop", "match/tcp_flags", "has `foo`"),
    ("tcp,tcp_flags=+syn-syn,actions=drop", "match/tcp_flags", "twice"),
    ("ip,nw_frag=maybe,actions=drop", "match/nw_frag", "must be one of no, yes"),
    ("ip,nw_src=10.0.0/8,actions=drop", "match/nw_src", "must be an IPv4 address"),
    ("ipv6,ipv6_src=fe80::1%eth0,actions=drop", "match/ipv6_src", "must be an IPv6 address"),
    ("dl_src=52:54,actions=drop", "match/dl_src", "must be a MAC address"),
    ("tun_id=0x100000000,actions=drop", "match/tun_id", "at most 4294967295"),
    ("priority=x,actions=drop", "priority", "must be a whole number"),
    ("priority=65536,actions=drop", "priority", "must be at most 65535"),
    ("cookie=-1,actions=drop", "cookie", "must be a number"),
    ("idle_timeout=65536,actions=drop", "idle_timeout", "must be at most 65535"),
    ("tcp", "actions", "is missing"),
    ("nonsense,actions=drop", "nonsense", "needs a value"),
    ("name=x,actions=drop", "", "leave `name=` out"),
]


@pytest.mark.parametrize(("text", "place", "words"), REFUSED, ids=[text[:60] for text, _, _ in REFUSED])
def test_refused_by_name(text: str, place: str, words: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_part(Flow, text, ())
    assert any(
        error.pointer == f"#/{place}".rstrip("/") and words in error.message for error in refused.value.errors
    ), refused.value


@pytest.mark.parametrize(
    ("match", "place", "words"),
    [
        ({"tcp": True}, "tcp", 'write "dl_type": "0x0800" and "nw_proto": 6'),
        ({"in_port": 3}, "in_port", "names, not numbers"),
        ({"nw_ttl": True}, "nw_ttl", "must be text or a whole number"),
        ({"nw_ttl": 1.5}, "nw_ttl", "must be text or a whole number"),
        ({"dl_src": None}, "dl_src", "must be text or a whole number"),
        ({"nw_ttl": -1}, "nw_ttl", "must be a number"),
    ],
)
def test_json_is_refused_by_name(match: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_part(Flow, {"match": match, "actions": ["drop"]}, ("bridges", "br0", "flows", "f"))
    assert [error.pointer for error in refused.value.errors] == [f"#/bridges/br0/flows/f/match/{place}"]
    assert words in str(refused.value)


def test_every_error_at_once() -> None:
    with pytest.raises(InvalidDocument) as refused:
        parse_part(Flow, {"priority": -1, "match": {"foo": 1, "dl_src": "x"}, "actions": ["drop", "xyz", 3]}, ())
    assert [error.pointer for error in refused.value.errors] == [
        "#/priority",
        "#/match/foo",
        "#/match/dl_src",
        "#/actions/1",
        "#/actions/2",
    ]


def test_what_just_fits() -> None:
    Flow.model_validate("ip,actions=output:a," + ",".join(["dec_ttl,pop_vlan,output:a"] * 8))
    Flow.model_validate("actions=all,flood,all,normal")
    Flow.model_validate("actions=push_vlan:0x8100,push_vlan:0x88a8," + ",".join(["output:a"] * 30))


# ---- meters ----


def test_meters_fill_in_their_burst() -> None:
    assert Meter(rate_kbps=1000).model_dump(exclude_none=True) == {"rate_kbps": 1000, "burst_bytes": 131_072}
    assert Meter(rate_kbps=10_000_000).burst_bytes == 12_500_000
    assert Meter(rate_pps=1000).model_dump(exclude_none=True) == {"rate_pps": 1000, "burst_packets": 100}
    assert Meter(rate_pps=1).burst_packets == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "needs one of"),
        ({"rate_kbps": 1, "rate_pps": 1}, "needs one of"),
        ({"rate_kbps": 1, "burst_packets": 1}, "goes with `rate_pps`"),
        ({"rate_pps": 1, "burst_bytes": 70000}, "goes with `rate_kbps`"),
        ({"rate_kbps": 1, "burst_bytes": 1}, "at least 65550"),
        ({"rate": 1}, "unknown key"),
    ],
)
def test_meters_that_are_refused(body: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidDocument, match=words):
        parse_part(Meter, body, ())


# ---- the core's words ----


def test_numbers_are_the_cores() -> None:
    assert compiled.FLOW.size == ffi.sizeof("struct pvs_flow_conf")
    assert compiled.ACTION.size == ffi.sizeof("struct pvs_flow_action")
    assert (WORDS, actions.MAX_ACTIONS, actions.MAX_VARIANTS) == (
        lib.PVS_FLOW_WORDS,
        lib.PVS_MAX_ACTIONS,
        lib.PVS_MAX_VARIANTS,
    )
    core = (lib.PVS_MAX_FLOWS, lib.PVS_MAX_MASKS, lib.PVS_MAX_METERS)
    assert core == (MAX_FLOWS, MAX_MASKS, MAX_METERS)
    names = {"mod_": "SET_", "set_tunnel": "SET_TUNNEL"}
    for kind, number in compiled.KIND_NUMBERS.items():
        name = kind.upper()
        for ours, theirs in names.items():
            name = name.replace(ours.upper(), theirs)
        assert getattr(lib, f"PVS_ACT_{name}") == number
    assert len(compiled.KIND_NUMBERS) == lib.PVS_ACT_KINDS


def test_a_flow_in_the_cores_words() -> None:
    flow = Flow.model_validate(
        "priority=9,tcp,in_port=vm1,dl_vlan=5,dl_dst=52:54:00:00:00:01,nw_src=10.0.0.0/8,tp_dst=80,"
        "actions=meter:m,set_vlan_vid:7,output:vm2"
    )
    slots: dict[tuple[Any, str], int] = {("port", "vm1"): 3, ("port", "vm2"): 4, ("meter", "m"): 2}
    data, count, acts, n_actions = compiled.table([(flow.compiled, 77)], slots)
    assert (count, n_actions) == (1, 3)
    entry = ffi.from_buffer("struct pvs_flow_conf[]", data)[0]
    assert list(entry.key) == [
        3 << 32,
        0x525400000001 << 16 | 0x0800,
        0x1005,
        6 << 56 | 80,
        *(0, 0x0A000000, 0, 0, 0, 0, 0, 0),
    ]
    assert list(entry.mask) == [
        0xFFFFFFFF << 32,
        0xFFFFFFFFFFFFFFFF,
        0x1FFF,
        0xFF << 56 | 0xFFFF,
        *(0, 0xFF000000, 0, 0, 0, 0, 0, 0),
    ]
    assert (entry.priority, entry.counter, entry.first, entry.n_actions) == (9, 77, 0, 3)
    found = ffi.from_buffer("struct pvs_flow_action[]", acts)
    assert [(a.kind, a.slot, a.value) for a in found] == [
        (lib.PVS_ACT_METER, 2, 0),
        (lib.PVS_ACT_SET_VLAN_VID, 0, 7),
        (lib.PVS_ACT_OUTPUT, 4, 0),
    ]
    assert flow.compiled.names == {("port", "vm1"), ("port", "vm2"), ("meter", "m")}
    assert compiled.key_of(compiled.words_of(flow.identity[1].key)) == flow.identity[1].key


@pytest.mark.parametrize(
    ("field", "value", "word", "key", "mask"),
    [
        ("tun_id", "5/7", 0, 5, 7),
        ("dl_src", "52:54:00:00:00:01", 2, 0x525400000001 << 16, 0xFFFFFFFFFFFF0000),
        ("arp_sha", "52:54:00:00:00:01", 8, 0x525400000001 << 16, 0xFFFFFFFFFFFF0000),
        ("arp_tha", "52:54:00:00:00:01", 9, 0x525400000001 << 16, 0xFFFFFFFFFFFF0000),
        ("nw_tos", "32", 3, 32 << 48, 0xFC << 48),
        ("nw_ttl", "3", 3, 3 << 40, 0xFF << 40),
        ("nw_frag", "later", 3, 3 << 32, 3 << 32),
        ("nw_frag", "not_later", 3, 0, 2 << 32),
        ("tp_src", "80", 3, 80 << 16, 0xFFFF << 16),
        ("tcp_flags", "+syn-ack", 8, 2, 0x12),
        ("tcp_flags", "syn", 8, 2, 0xFFF),
    ],
)
def test_where_fields_are(field: str, value: str, word: int, key: int, mask: int) -> None:
    found, bits = FIELDS[field].read(FIELDS[field], value)
    shift = FIELDS[field].shift
    words, masks = compiled.words_of(found << shift), compiled.words_of(bits << shift)
    assert (words[word], masks[word]) == (key, mask)
    assert sum(words) == key


def test_addresses_of_ipv6_take_two_words() -> None:
    field = FIELDS["ipv6_dst"]
    value, mask = field.read(field, "2001:db8::5/64")
    assert compiled.words_of(value << field.shift)[6:8] == (0x20010DB800000000, 0)
    assert compiled.words_of(mask << field.shift)[6:8] == (0xFFFFFFFFFFFFFFFF, 0)


def test_ranges_become_masks() -> None:
    flow = Flow.model_validate(
        {"match": {"dl_type": 0x0800, "nw_proto": 17, "tp_src": "1-65534", "tp_dst": "80-90"}, "actions": []}
    )
    assert flow.match["tp_dst"] == "80-90"
    assert len(range_masks(1, 65534)) == 30
    _, count, _, n_actions = compiled.table([(flow.compiled, 0)], {})
    assert (count, n_actions) == (30 * len(range_masks(80, 90)), 0)
    assert flow.actions == ("drop",)
    whole = Flow.model_validate("tcp,tp_dst=80-95,actions=drop")
    assert whole.match["tp_dst"] == "0x50/0xfff0"
    assert whole == Flow.model_validate("tcp,tp_dst=0x50/0xfff0,actions=drop")


def test_equal_actions_are_told_once() -> None:
    flows = [Flow.model_validate(f"dl_vlan={vid},actions=set_vlan_vid:7,normal") for vid in range(1, 5)]
    data, count, _, n_actions = compiled.table(((flow.compiled, i) for i, flow in enumerate(flows)), {})
    assert (count, n_actions) == (4, 2)
    assert [struct.unpack_from("=4I", data, i * compiled.FLOW.size + 192)[1] for i in range(4)] == [0, 1, 2, 3]
