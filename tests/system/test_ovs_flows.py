# SPDX-License-Identifier: Apache-2.0
"""The same flows and frames on Open vSwitch 3.1 and on the reference of ours: where they differ, and why.

Flows are given to `ovs-ofctl add-flow` as we print them, frames to Open vSwitch's userspace datapath
(tests.system.ovs_dummy). What leaves is compared byte for byte, and so are the counters of flows. What Open vSwitch
does otherwise is a rule of tests.system.ovs_rules: with all of them every frame has to come out as it does, and each of
them has to make a difference to the frame that stands beside it here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pvswitch.flows.actions import read_actions
from pvswitch.flows.match import range_masks, read_match
from pvswitch.flows.text import read_flow, show_flow
from tests.conftest import RequirePeer
from tests.flow_edits import ones_sum
from tests.flow_fields import RANGES, SCTP, TCP, UDP, fits
from tests.flow_reference import Flow, FlowSwitch, Meter, Table
from tests.flow_samples import frames, tables, word
from tests.property.reference import Bridge, Guest, Port
from tests.system.ovs_dummy import OvsDummy
from tests.system.ovs_rules import EVERY, OvsSwitch, Rule

PORTS = ("p0", "p1", "p2")
PLENTY = 1 << 30
SECOND = 1000


@pytest.fixture(scope="module")
def ovs(require_peer: RequirePeer) -> Iterator[OvsDummy]:
    with OvsDummy(PORTS, require_peer) as found:
        yield found


def texts(flow: Flow, priority: int, cookie: int) -> list[str]:
    """A flow as we print it; of each range one for each of its masks, since Open vSwitch has no ranges."""
    found: list[dict[str, object]] = [{}]
    for key, value in flow.match.items():
        each = [value]
        if key in RANGES and "-" in str(value):
            first, last = (int(end) for end in str(value).split("-"))
            each = [f"{one:#x}/{mask:#x}" for one, mask in range_masks(first, last)]
        found = [{**match, key: one} for match in found for one in each]
    keys = {"priority": priority, "cookie": f"{cookie:#x}", "actions": flow.actions}
    return [show_flow({**keys, "match": match}) for match in found]


def expressible(flow: Flow) -> Flow:
    """The flow without what OpenFlow 1.1 and later refuse: only with these `push_vlan` can be had.

    They want every edit to be of a header that the flow asks for.
    """
    if not any(action.startswith("push_vlan") for action in flow.actions):
        return flow
    kind, proto = flow.match.get("dl_type"), flow.match.get("nw_proto")
    tags = 1 if flow.match.get("dl_vlan", 0xFFFF) != 0xFFFF else 0
    kept = []
    for action in flow.actions:
        word = action.partition(":")[0]
        allowed = {
            "push_vlan": tags < 2,
            **dict.fromkeys(("pop_vlan", "set_vlan_vid", "set_vlan_pcp"), tags > 0),
            **dict.fromkeys(("mod_nw_src", "mod_nw_dst"), kind == "0x0800"),
            **dict.fromkeys(("mod_nw_tos", "dec_ttl"), kind in ("0x0800", "0x86dd")),
            **dict.fromkeys(("mod_tp_src", "mod_tp_dst"), proto in (TCP, UDP, SCTP)),
        }
        if allowed.get(word, True):
            tags += {"push_vlan": 1, "pop_vlan": -1}.get(word, 0)
            kept.append(action)
    return replace(flow, actions=kept or ["drop"])


def reference(flows: Sequence[Flow], rules: frozenset[Rule] = EVERY) -> FlowSwitch:
    """What has to come: ports that carry every VLAN and have a link, and buffers without end."""
    switch = OvsSwitch(rules)
    switch.bridges["br0"] = Bridge(8192, 300)
    for number, name in enumerate(PORTS):
        switch.ports[name] = Port(number, "br0", guest=Guest(buffer=PLENTY, posted=[PLENTY]))
    switch.tables["br0"] = Table([*flows, Flow("rest", {}, ["normal"], -1)])
    return switch


def expected(switch: FlowSwitch, port: str, frame: bytes) -> dict[str, list[bytes]]:
    """What leaves when a frame comes by a port."""
    switch.transmit(port, frame, SECOND, ())
    found = {name: switch.ports[name].inbox for name in PORTS}
    for one in switch.ports.values():
        one.inbox = []
    return found


def in_order(flows: Sequence[Flow]) -> tuple[list[Flow], list[str]]:
    """Flows by their order, and their text: each with a priority of its own, since names are no order there."""
    ordered = sorted(flows, key=lambda flow: (-flow.priority, flow.name))
    return ordered, [text for i, flow in enumerate(ordered) for text in texts(flow, 1000 - i, i)]


quick = settings(
    max_examples=int(os.environ.get("PVSWITCH_TEST_TABLES", "300")),
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
"""Nothing is tried again with less of it: that takes longer than the test."""


@quick
@given(data=st.data())
def test_every_difference_is_a_rule(ovs: OvsDummy, data: st.DataObject) -> None:
    seen = data.draw(st.lists(frames(), min_size=1, max_size=3))
    flows, lines = in_order([expressible(flow) for flow in data.draw(tables(seen, PORTS))])
    ovs.set_flows(lines)
    model = reference(flows)
    for frame in seen:
        port = data.draw(st.sampled_from(PORTS))
        assert ovs.exchange(port, [frame]) == expected(model, port, frame), f"{lines}\n{port} {frame.hex()}"
    counted = ovs.counters()
    assert counted == {i: (flow.packets, flow.bytes) for i, flow in enumerate(flows)}


@quick
@given(data=st.data())
def test_without_rules_it_is_ours(data: st.DataObject) -> None:
    seen = data.draw(st.lists(frames(), min_size=1, max_size=3))
    flows, _ = in_order(data.draw(tables(seen, PORTS)))
    without = reference(flows, frozenset())
    ours = FlowSwitch()
    ours.bridges, ours.tables = {"br0": Bridge(8192, 300)}, {"br0": Table([replace(flow) for flow in flows])}
    ours.ports = {name: replace(port) for name, port in reference([]).ports.items()}
    for frame in seen:
        assert expected(without, "p0", frame) == expected(ours, "p0", frame)


@quick
@given(data=st.data())
def test_what_it_prints_of_flows_we_read(ovs: OvsDummy, data: st.DataObject) -> None:
    seen = data.draw(st.lists(frames(), min_size=1, max_size=2))
    # It prints as OpenFlow 1.0 has it, which hasn't that action.
    older = [flow for flow in data.draw(tables(seen, PORTS)) if not any("push" in action for action in flow.actions)]
    flows, lines = in_order(older)
    ovs.set_flows(lines)
    printed = [line for line in ovs.ofctl("--names", "dump-flows", "br0").splitlines() if "cookie" in line]
    found: dict[str, list[tuple[object, object]]] = {}
    for line in printed:
        # What it calls it when an untagged frame gets a tag by it, as it does with us.
        read = read_flow(
            line.strip().replace("table=0, ", "").replace("mod_vlan_", "set_vlan_").replace("strip_vlan", "pop_vlan")
        )
        found.setdefault(read["cookie"], []).append((read_match(read["match"]), read_actions(read["actions"])))
    for i, flow in enumerate(flows):
        ours = [read_flow(line) for line in lines if line.startswith(f"cookie={i:#x},")]
        wanted = {read_match(one["match"]) for one in ours}
        assert {match for match, _ in found[f"{i:#x}"]} == wanted
        assert {actions for _, actions in found[f"{i:#x}"]} == {read_actions(flow.actions)}


# ---- each rule ----


@dataclass(frozen=True)
class Sample:
    """A frame that comes by p0, and the flow that it meets."""

    frame: bytes
    actions: Sequence[str]
    match: Mapping[str, object] = field(default_factory=dict)


def ethernet(*words: str, src: str = "020000000002") -> bytes:
    """A frame of these words in hex, behind its addresses."""
    return bytes.fromhex("020000000001" + src + "".join(words))


def ipv4(proto: int, body: bytes, *, fragment: int = 0, size: int = 0) -> bytes:
    """A packet from 10.0.0.1 to 10.0.0.2."""
    head = bytearray(bytes.fromhex("45000000abcd000040000000") + bytes([10, 0, 0, 1, 10, 0, 0, 2]))
    head[2:4], head[6:8], head[9] = word(size or 20 + len(body)), word(fragment), proto
    head[10:12] = word(0xFFFF - ones_sum(head))
    return b"\x08\0" + bytes(head) + body


def ipv6(following: int, body: bytes) -> bytes:
    """A packet from 2001:db8::1 to 2001:db8::2."""
    addresses = "20010db8000000000000000000000001" + "20010db8000000000000000000000002"
    return bytes.fromhex("86dd60000000") + word(len(body)) + bytes([following, 64]) + bytes.fromhex(addresses) + body


PING = bytes.fromhex("0800f7ff00000000")
MACS = ethernet()
BACK = ["in_port"]
V6 = {"dl_type": "0x86dd"}
SOLICIT = bytes.fromhex("8700000000000000") + bytes.fromhex("20010db8000000000000000000000001")
SAMPLES: Mapping[Rule, Sample] = {
    Rule.OWN: Sample(ethernet("88b5", src="020000000001"), ["normal"]),
    Rule.DEI: Sample(ethernet("8100100788b5"), ["set_vlan_vid:5", *BACK]),
    Rule.TWO_TAGS: Sample(ethernet("810000078100000588b5"), ["push_vlan:0x8100", *BACK]),
    Rule.PRIORITY_0: Sample(ethernet("8100000088b5"), ["normal"]),
    Rule.LATER_SUM: Sample(MACS + ipv4(6, bytes(range(24)), fragment=1), ["mod_nw_src:10.0.0.9", *BACK]),
    Rule.SIGHT: Sample(MACS + ipv6(60, bytes([59, 62]) + bytes(502)), BACK, {**V6, "nw_proto": 59}),
    Rule.EXTENSION: Sample(MACS + ipv6(0, b"\x11"), BACK, {**V6, "nw_ttl": 64}),
    Rule.NO_HEADER: Sample(MACS + ipv4(17, bytes(8), size=100), ["dec_ttl", *BACK]),
    Rule.PROTOCOL_0: Sample(MACS + ipv4(0, b"payload"), ["mod_nw_src:10.0.0.9", *BACK]),
    Rule.ICMP_TYPE: Sample(MACS + ipv4(1, PING), ["mod_tp_src:0", *BACK]),
    Rule.SCTP_FRAGMENT: Sample(MACS + ipv4(132, bytes(16), fragment=0x2000), ["mod_tp_src:7", *BACK]),
    Rule.ND_OPTIONS: Sample(
        MACS + ipv6(58, SOLICIT + b"\1\1\2\0\0\0\0\1" * 2),
        BACK,
        {**V6, "nw_proto": 58, "icmp_type": 135, "icmp_code": 0, "nd_target": "2001:db8::1"},
    ),
}


def test_each_rule_has_a_sample() -> None:
    assert SAMPLES.keys() == EVERY


@pytest.mark.parametrize("rule", SAMPLES, ids=lambda rule: rule.name)
def test_each_rule_makes_a_difference(ovs: OvsDummy, rule: Rule) -> None:
    sample = SAMPLES[rule]
    flows, lines = in_order([Flow("f", sample.match, sample.actions), Flow("rest", {}, ["drop"], 1)])
    ovs.set_flows(lines)
    came = ovs.exchange("p0", [sample.frame])
    assert came == expected(reference(flows), "p0", sample.frame)
    assert came != expected(reference(flows, EVERY - {rule}), "p0", sample.frame)
    assert came != expected(reference(flows, frozenset()), "p0", sample.frame)


# ---- what is set otherwise there ----


def test_first_fragments_have_no_ports_by_default(ovs: OvsDummy) -> None:
    """OpenFlow 1.0 wanted it so; the tests above run with `nx-match`, which is how ours does it."""
    frame = MACS + ipv4(17, bytes.fromhex("0035005000100000") + bytes(8), fragment=0x2000)
    match = {"dl_type": "0x0800", "nw_proto": 17, "nw_frag": "first", "tp_src": 53}
    flows, lines = in_order([Flow("f", match, BACK), Flow("rest", {}, ["drop"], 1)])
    ovs.set_flows(lines)
    ours = expected(reference(flows), "p0", frame)
    assert ours["p0"] == [frame]
    assert ovs.exchange("p0", [frame]) == ours
    ovs.ofctl("set-frags", "br0", "normal")
    try:
        assert ovs.exchange("p0", [frame])["p0"] == []
    finally:
        ovs.ofctl("set-frags", "br0", "nx-match")


def test_protected_ports_are_apart_whatever_flows_say(ovs: OvsDummy) -> None:
    frame = ethernet("88b5")
    for name in ("p0", "p1"):
        ovs.vsctl("set", "port", name, "protected=true")
    try:
        for action in ("normal", "flood", "all", "output:p1"):
            flows, lines = in_order([Flow("f", {}, [action])])
            ovs.set_flows(lines)
            model = reference(flows)
            model.ports["p0"].isolated = model.ports["p1"].isolated = True
            to_p2 = [] if action == "output:p1" else [frame]
            assert ovs.exchange("p0", [frame]) == expected(model, "p0", frame) == {"p0": [], "p1": [], "p2": to_p2}
    finally:
        for name in ("p0", "p1"):
            ovs.vsctl("set", "port", name, "protected=false")


def test_networks_of_tunnels_are_matched_alike(ovs: OvsDummy) -> None:
    """No tunnel ends here: what would become of its frames is asked by `ofproto/trace`."""
    values = ["0x5", "0x5/0xf", "0x100/0xff00", "0x0"]
    for value in values:
        ovs.set_flows([f"{text}" for text in texts(Flow("f", {"tun_id": value}, BACK), 1000, 1)])
        for network in (0, 5, 0x15, 0x105, 0x1FF, 0xFFFFFF):
            traced = ovs.appctl("ofproto/trace", "br0", f"in_port=p0,tun_id={network:#x},dl_type=0x88b5")
            fits_there = re.search(r"^ 0\. .*priority 1000", traced, re.MULTILINE) is not None
            assert fits_there == fits({"tun_id": value}, "p0", {"tun_id": network}), f"{value} and {network:#x}"


@pytest.mark.parametrize(
    ("bands", "limit"),
    [
        ("pktps,burst,stats,bands=type=drop,rate=10,burst_size=5", Meter(10, 5, packets=True)),
        ("kbps,burst,stats,bands=type=drop,rate=8,burst_size=5", Meter(1000, 625)),
    ],
    ids=["frames", "bytes"],
)
def test_meters_let_the_same_frames_pass(ovs: OvsDummy, bands: str, limit: Meter) -> None:
    """As many at once, and as many later on: time stands still there but for what it is told."""
    frame = ethernet("88b5").ljust(120, b"\0")
    flows, _ = in_order([Flow("f", {}, ["meter:1", *BACK])])
    model = reference(flows)
    model.tables["br0"].meters["1"] = limit
    model.now_ns = SECOND * 1_000_000_000
    ovs.appctl("time/stop")
    ovs.set_flows(["cookie=0,priority=1000 actions=meter:1,in_port"], [f"meter=1,{bands}"])
    passed = []
    for wait in (0, 100, 350, 2000):
        if wait:
            ovs.appctl("time/warp", str(wait))
        model.now_ns += wait * 1_000_000
        ours = [part for _ in range(12) for part in expected(model, "p0", frame)["p0"]]
        assert ovs.exchange("p0", [frame] * 12)["p0"] == ours
        passed.append(len(ours))
    assert passed == ([5, 1, 3, 5] if limit.packets else [5, 1, 2, 5])
