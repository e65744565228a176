# SPDX-License-Identifier: Apache-2.0
"""From steps to words: each kind of step, flows that nearly matched, edits of what leaves; names for numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.datapath import DROP_REASONS
from pvswitch.datapath.core import lib
from pvswitch.datapath.trace import _KINDS, TracedCopy, TracedStep, TraceResult
from pvswitch.drop_words import DROPS, explain, table
from pvswitch.flow_model import Flow
from pvswitch.flows.compiled import words_of
from pvswitch.flows.fields import FIELDS as FIELDS_OF_FLOWS
from pvswitch.flows.fields import Field
from pvswitch.flows.match import read_match
from pvswitch.trace.frame import build
from pvswitch.trace.model import Trace, TraceStep
from pvswitch.trace.nearly import _shown
from pvswitch.trace.record import Copy, Nearly, Step, Traced
from pvswitch.trace.story import TELLERS, Scene, tell
from pvswitch.trace.text import lines
from pvswitch.tracer import GONE, Known, named
from pvswitch.validation import parse

ROOT = Path(__file__).parents[2]
A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
FIELDS = {"dl_src": A, "dl_dst": B, "nw_src": "10.0.0.1", "nw_dst": "10.0.0.2", "nw_proto": 6, "tp_dst": 80}
FRAME = build(FIELDS)
CONFIG = parse(
    {
        "bridges": {"br0": {}},
        "ports": {
            "vm1": {"tag": 10},
            "vm2": {},
            "up": {"vlan_mode": "native-tagged", "tag": 5},
            "vx": {"type": "vxlan", "vni": {"10": 1010}, "local": "192.0.2.1", "remotes": ["192.0.2.2"]},
        },
    }
)
FLOWS = {
    "web": Flow.model_validate("priority=100,tcp,tp_dst=80,actions=set_vlan_vid:20,pop_vlan,output:vm2"),
    "ssh": Flow.model_validate("priority=90,tcp,in_port=vm2,tp_dst=22,actions=drop"),
    "ports": Flow.model_validate(
        {"priority": 80, "match": {"dl_type": 2048, "nw_proto": 6, "tp_dst": "81-90"}, "actions": []}
    ),
    "tag": Flow.model_validate("priority=70,dl_vlan=10,dl_vlan_pcp=3,actions=normal"),
}


def key(fields: dict[str, Any], in_port: int = 1) -> tuple[int, ...]:
    """What flows look at, made by the flows' own reading of these fields."""
    words = words_of(read_match({"dl_type": "0x0800", **fields}).key)
    return (in_port << 32 | words[0], *words[1:])


def story(*steps: Step, in_port: str = "vm1", frame: bytes = FRAME, **traced: Any) -> Trace:
    record = Traced(**{"drop": None, "flow": None, "steps": steps, "copies": (), **traced})
    return tell(Scene(CONFIG, "br0", in_port, frame, FLOWS, record))


def said(step: Step, **traced: Any) -> TraceStep:
    """The words for one step."""
    (told,) = story(step, **traced).steps
    return told


@pytest.mark.parametrize(
    ("step", "in_port", "wanted"),
    [
        (Step("parsed", 0x0800), "vm1", f"{A} > {B}, TCP, 10.0.0.1:49152 > 10.0.0.2:80, syn, 64 bytes"),
        (Step("taken"), "vm1", "port vm1 takes it"),
        (
            Step("taken", name="link_down"),
            "vm1",
            "port vm1 doesn't take it (link_down)",
        ),
        (Step("vlan", 10, 1), "vm1", "in VLAN 10 (access port with tag 10)"),
        (Step("vlan", 0, 1), "vm2", "in no VLAN (trunk port)"),
        (Step("vlan", 5, 1), "up", "in VLAN 5 (native-tagged port with tag 5)"),
        (Step("vlan", 10, 1), "vx", "in VLAN 10 (by the tunnel's map of networks)"),
        (Step("vlan", 7, 0), "vm1", "port vm1 (access port with tag 10) takes no frames with these tags"),
        (Step("flow"), "vm1", "no flow matches: normal"),
        (Step("bpdu", 1), "vm1", "link-local address: forwarded"),
        (Step("bpdu", 0), "vm1", "link-local address: not forwarded"),
        (Step("sender", 1), "vm1", f"{A} may be at port vm1"),
        (Step("sender", 0), "vm1", f"{A} may not be at port vm1"),
        (Step("learn", 0), "vm1", f"nothing to learn of {A}"),
        (Step("learn", 1), "vm1", f"{A} is known at port vm1"),
        (Step("learn", 2), "vm1", f"{A} would be learned at port vm1"),
        (Step("learn", 3), "vm1", f"{A} would move to port vm1"),
        (Step("fdb", 0), "vm1", f"nobody knows where {B} is"),
        (Step("fdb", 1, 2, 0, "vm2"), "vm1", f"{B} is at port vm2"),
        (Step("fdb", 1, 2, 3, "vx", "192.0.2.2"), "vm1", f"{B} is at port vx, behind 192.0.2.2"),
        (Step("storm", 0, 1), "vm1", "broadcast: port vm1 may send more now"),
        (Step("storm", 2, 0), "vm1", "unknown unicast: port vm1 may send no more now"),
        (Step("flood", 1), "vm1", "flooded to 1 port"),
        (Step("flood", 3), "vm1", "flooded to 3 ports"),
        (Step("mirror", 0, name="watch"), "vm1", "mirror watch gets a copy"),
    ],
)
def test_a_step_in_words(step: Step, in_port: str, wanted: str) -> None:
    assert wanted in said(step, in_port=in_port).detail


def test_a_drop_is_told_once_with_its_remedy() -> None:
    steps = (Step("taken", name="port_security"), Step("drop", name="port_security"))
    told = story(*steps, drop="port_security").steps
    assert [item.step for item in told] == ["take", "drop"]
    assert told[1].reason == "port_security"
    assert told[1].detail.startswith("dropped (port_security): the port's `port_security` doesn't allow this sender")
    assert told[1].detail.endswith("allow the address in `port_security` of port vm1, or correct the guest's")


def test_every_kind_of_step_has_its_words() -> None:
    kinds = [name for name in dir(lib) if name.startswith("PVS_STEP_")]
    assert sorted(getattr(lib, name) for name in kinds) == sorted(_KINDS)
    assert set(TELLERS) == set(_KINDS.values())


# ---- flows


def test_the_flow_that_matched_and_its_actions() -> None:
    steps = [Step("flow", 7, name="web"), Step("action", 3, 0, 1), Step("action", 3, 1, 0), Step("action", 0, 2, 1)]
    told = story(*steps, flow="web").steps
    assert [step.detail for step in told] == [
        "web matches: priority=100,tcp,tp_dst=80 actions=set_vlan_vid:20,pop_vlan,output:vm2",
        "set_vlan_vid:20",
        "pop_vlan: nothing, there is no tag",
        "output:vm2",
    ]
    assert (told[0].flow, told[0].priority, told[0].actions) == (
        "web",
        100,
        ["set_vlan_vid:20", "pop_vlan", "output:vm2"],
    )
    assert [step.effect for step in told] == [None, True, False, True]


def test_a_flow_that_has_changed_meanwhile() -> None:
    assert (
        said(Step("flow", 7, name="other"), flow="other").detail
        == "other matches, and has changed meanwhile: repeat the trace"
    )
    assert said(Step("action", 0, 4, 1), flow="other").detail == "action 4"


@pytest.mark.parametrize(
    ("flow", "word", "fields", "wanted"),
    [
        ("web", 3, {"nw_proto": 6, "tp_dst": 81}, [("tp_dst", "80", "81")]),
        ("web", 3, {"nw_proto": 17, "tp_dst": 80}, [("nw_proto", "6", "17")]),
        ("web", 3, {"nw_proto": 17, "tp_dst": 9}, []),
        ("ssh", 0, {"nw_proto": 6, "tp_dst": 22}, [("in_port", "vm2", "vm1")]),
        ("ports", 3, {"nw_proto": 6, "tp_dst": 80}, [("tp_dst", "81-90", "80")]),
        ("ports", 3, {"nw_proto": 6, "tp_dst": 85}, []),
        ("tag", 2, {"dl_vlan": 11, "dl_vlan_pcp": 3}, [("dl_vlan", "10", "11")]),
        ("tag", 2, {"dl_vlan": 10, "dl_vlan_pcp": 4}, [("dl_vlan_pcp", "3", "4")]),
        (
            "tag",
            2,
            {"dl_src": A},
            [("dl_vlan", "10", "absent (there is no tag)")],
        ),
    ],
)
def test_a_flow_that_nearly_matched(
    flow: str, word: int, fields: dict[str, Any], wanted: list[tuple[str, ...]]
) -> None:
    told = story(Step("flow"), key=key(fields), nearly=(Nearly(flow, word), Nearly("gone", 3))).steps
    assert [(step.field, step.wanted, step.found) for step in told[1:]] == wanted
    for step, (name, wants, has) in zip(told[1:], wanted, strict=True):
        words = f"{flow} nearly matches (priority {FLOWS[flow].priority}): {name} is {has}, and it wants {wants}"
        assert step.detail == words


@given(st.sampled_from([*FIELDS_OF_FLOWS.values()]), st.data())
def test_whatever_a_frame_has_can_be_shown(field: Field, data: st.DataObject) -> None:
    values = st.sampled_from([0, 1, 3]) if field.name == "nw_frag" else st.integers(0, (1 << field.bits) - 1)
    assert _shown(field, data.draw(values))


def test_an_action_stands_before_its_own_steps() -> None:
    flows = {"f": Flow.model_validate("actions=mod_tp_dst:1,normal,output:vm2")}
    steps = (
        *(Step("parsed"), Step("vlan", 10, 1), Step("flow", name="f"), Step("action", 17, 0, 1), Step("fdb")),
        *(Step("flood", 2), Step("action", 4, 1, 1), Step("action", 0, 2, 1)),
    )
    told = tell(Scene(CONFIG, "br0", "vm1", FRAME, flows, Traced(None, "f", steps, ()))).steps
    assert [item.action or item.step for item in told] == [
        *("parse", "vlan", "flow", "mod_tp_dst:1", "normal", "fdb", "flood", "output:vm2")
    ]


def test_flows_that_would_not_have_counted_are_no_near_misses() -> None:
    near = (Nearly("web", 3), Nearly("ports", 3))
    told = story(Step("flow", 7, name="ssh"), flow="ssh", key=key({"nw_proto": 6, "tp_dst": 23}), nearly=near).steps
    assert [item.flow for item in told] == ["ssh", "web"]


def test_addresses_that_a_flow_has_changed_are_not_those_of_the_frame() -> None:
    flows = {"nat": Flow.model_validate(f"actions=mod_dl_dst:{A},normal")}
    record = Traced(None, "nat", (Step("fdb"), Step("learn", 2)), ())
    told = tell(Scene(CONFIG, "br0", "vm1", FRAME, flows, record)).steps
    assert told[0].detail == "nobody knows where the destination is"
    assert told[1].detail == f"{A} would be learned at port vm1"


# ---- what leaves


def test_copies_and_the_verdict() -> None:
    tagged = build({**FIELDS, "dl_vlan": 10})
    copies = (
        Copy("vm2", tagged[:128], len(tagged), vid=10),
        Copy("up", FRAME, len(FRAME), drop="mtu_exceeded", vid=10),
        Copy("vx", FRAME, len(FRAME), vid=10, remote="192.0.2.2", tun_id=7),
        Copy("vm1", FRAME[:60], 60, mirror="watch"),
    )
    told = story(copies=copies)
    assert [step.detail for step in told.steps] == [
        "port vm2: push_vlan 10",
        f"port up: dropped (mtu_exceeded): {explain('mtu_exceeded', 'tx', 'up', 'br0')}",
        "port vx: to 192.0.2.2 in network 7, as it came",
        "port vm1 (mirror watch): cut to 60 bytes",
    ]
    assert [(copy.port, copy.drop, copy.edits) for copy in told.verdict.egress] == [
        ("vm2", None, ["push_vlan 10"]),
        ("up", "mtu_exceeded", []),
        ("vx", None, []),
        ("vm1", None, ["cut to 60 bytes"]),
    ]
    assert told.verdict.egress[0].head == tagged.hex()
    assert lines(told)[-1] == "verdict leaves by vm2, vx, vm1; not by up (mtu_exceeded)"


def test_lines_are_aligned() -> None:
    told = story(Step("parsed"), Step("taken"), Step("drop", name="no_destination"), drop="no_destination")
    assert lines(told)[1:2] == ["take    port vm1 takes it"]
    assert lines(told)[-1] == "verdict dropped: no_destination"
    assert {line[7] for line in lines(told)} == {" "}
    assert lines(story())[-1] == "verdict goes nowhere"


# ---- names for numbers


def known(**changes: Any) -> Known:
    values: dict[str, Any] = {
        "ports": {1: "vm1", 2: "vm2"},
        "address": {3: "192.0.2.2"}.get,
        "number": {"192.0.2.2": 3}.get,
        "flow_name": {7: "web"}.get,
        "flows": lambda: None,
        "mirrors": ["watch"],
    }
    return Known(**{**values, **changes})


def test_numbers_of_the_core_get_their_names() -> None:
    drop = DROP_REASONS.index("mtu_exceeded")
    steps = (
        TracedStep("taken", 0, 0, 0),
        TracedStep("flow", 7, 0, 0),
        TracedStep("fdb", 1, 2, 3),
        TracedStep("fdb", 1, 9, 0),
        TracedStep("mirror", 0, 0, 0),
        TracedStep("mirror", 5, 0, 0),
        TracedStep("drop", drop, 0, 0),
    )
    copies = (
        TracedCopy(2, None, 10, 0, None, None, 64, FRAME),
        TracedCopy(9, "mtu_exceeded", 10, 3, 0, 7, 64, FRAME),
    )
    traced = named(TraceResult(None, 7, (0,) * 12, steps, copies, 2), known())
    assert (traced.flow, traced.omitted) == ("web", 2)
    assert [(step.kind, step.name, step.remote) for step in traced.steps] == [
        ("taken", None, None),
        ("flow", "web", None),
        ("fdb", "vm2", "192.0.2.2"),
        ("fdb", GONE, None),
        ("mirror", "watch", None),
        ("mirror", GONE, None),
        ("drop", "mtu_exceeded", None),
    ]
    assert traced.copies == (
        Copy("vm2", FRAME, 64, None, 10),
        Copy(GONE, FRAME, 64, "mtu_exceeded", 10, "192.0.2.2", "watch", 7),
    )


# ---- the words of drops


def test_every_reason_has_its_words() -> None:
    assert set(DROPS) == set(DROP_REASONS) - {"none"}
    for reason, drop in DROPS.items():
        for at in re.findall("rx|tx", drop.at):
            words = explain(reason, "rx" if at == "rx" else "tx", "vm1", "br0")
            assert "{" not in words
            assert "rx:" not in words


def test_the_table_in_the_docs_has_these_words() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert table() in text, "put pvswitch.drop_words.table() into docs/troubleshooting.md"
