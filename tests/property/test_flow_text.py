# SPDX-License-Identifier: Apache-2.0
"""Flows in text and back: whatever flow, it is printed and read again as itself, and means the same to the core."""

from __future__ import annotations

from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from pvswitch.errors import InvalidDocument
from pvswitch.flow_model import Flow
from pvswitch.flows.fields import FIELDS
from pvswitch.flows.match import range_masks, read_match
from pvswitch.flows.text import named_by_match, read_flow, read_flows, show_flow

MANY = settings(max_examples=300, deadline=None)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)


def whole(top: int) -> st.SearchStrategy[str]:
    """A number as people write it."""
    return st.integers(0, top).flatmap(lambda n: st.sampled_from([str(n), hex(n)]))


def masked(top: int) -> st.SearchStrategy[str]:
    return st.builds(lambda value, mask: f"{value}/{mask}", whole(top), whole(top)) | whole(top)


def address(kind: Literal[4, 6]) -> st.SearchStrategy[str]:
    one = st.ip_addresses(v=kind).map(str)
    lengths = st.integers(0, 32 if kind == 4 else 128).map(str)
    return one | st.builds(lambda value, mask: f"{value}/{mask}", one, lengths | one)


MACS = st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":"))
MAC_MASKS = MACS | st.builds(lambda value, mask: f"{value}/{mask}", MACS, MACS)
PORTS = masked(65535) | st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(
    lambda ends: f"{min(ends)}-{max(ends)}"
)
FLAGS = masked(0xFFF) | st.lists(st.sampled_from(["fin", "syn", "rst", "ack"]), min_size=1, unique=True).flatmap(
    lambda names: st.sampled_from(["|".join(names), "".join(f"+{n}" for n in names), "".join(f"-{n}" for n in names)])
)

LINK = {
    "in_port": NAMES,
    "tun_id": masked(0xFFFFFFFF),
    "dl_src": MAC_MASKS,
    "dl_dst": MAC_MASKS,
}
TAGS = st.sampled_from(
    [{}, {"dl_vlan": whole(4095)}, {"dl_vlan": whole(4095), "dl_vlan_pcp": whole(7)}, {"vlan_tci": masked(0xFFFF)}]
).flatmap(st.fixed_dictionaries)
IP = {"nw_tos": st.integers(0, 63).map(lambda n: n * 4), "nw_ttl": whole(255)}
FRAGMENTS = {"nw_frag": st.sampled_from(["no", "yes", "first", "not_later"])}


def layers() -> st.SearchStrategy[dict[str, Any]]:
    """Fields above Ethernet that go together."""
    found = []
    versions: tuple[tuple[int, str, Literal[4, 6]], ...] = ((0x0800, "nw", 4), (0x86DD, "ipv6", 6))
    for kind, one, version in versions:
        common = {**IP, **FRAGMENTS, f"{one}_src": address(version), f"{one}_dst": address(version)}
        icmp = 1 if version == 4 else 58
        for protocol, more in (
            (None, {}),
            (6, {"tp_src": PORTS, "tp_dst": PORTS, "tcp_flags": FLAGS}),
            (17, {"tp_src": PORTS, "tp_dst": PORTS}),
            (132, {"tp_src": PORTS, "tp_dst": PORTS}),
            (icmp, {"icmp_type": whole(255), "icmp_code": whole(255)}),
            (47, {}),
        ):
            fixed: dict[str, Any] = {"dl_type": st.just(kind)}
            if protocol is not None:
                fixed["nw_proto"] = st.just(protocol)
            found.append(st.fixed_dictionaries(fixed, optional={**common, **more}))
    arp = {
        "arp_spa": address(4),
        "arp_tpa": address(4),
        "arp_sha": MAC_MASKS,
        "arp_tha": MAC_MASKS,
        "arp_op": whole(255),
    }
    kinds = st.sampled_from(["0x0806", "0x8035"])
    found.append(st.fixed_dictionaries({"dl_type": kinds}, optional=arp))
    discovery = {"dl_type": st.just("0x86dd"), "nw_proto": st.just(58), "icmp_type": st.sampled_from([135, 136])}
    found.append(st.fixed_dictionaries({**discovery, "nd_target": address(6)}))
    found.append(st.fixed_dictionaries({"dl_type": whole(0xFFFF)}))
    return st.one_of(st.just({}), *found)


MATCHES = st.builds(
    lambda link, tags, above: {**link, **tags, **above}, st.fixed_dictionaries({}, optional=LINK), TAGS, layers()
)
ACTION = st.one_of(
    st.sampled_from(["in_port", "pop_vlan", "dec_ttl", "push_vlan:0x8100"]),
    st.builds(lambda kind, name: f"{kind}:{name}", st.sampled_from(["meter", "mirror"]), NAMES),
    st.builds(lambda kind, mac: f"{kind}:{mac}", st.sampled_from(["mod_dl_src", "mod_dl_dst"]), MACS),
    st.builds(lambda kind, n: f"{kind}:{n}", st.sampled_from(["mod_tp_src", "mod_tp_dst"]), whole(65535)),
    whole(0xFFFFFFFF).map(lambda n: f"set_tunnel:{n}"),
    whole(4095).map(lambda n: f"set_vlan_vid:{n}"),
)
SENT = st.one_of(st.sampled_from(["normal", "flood", "all"]), NAMES.map(lambda name: f"output:{name}"))
LIMITED = ("push_", "meter")
LISTS = st.just(["drop"]) | st.builds(
    lambda edits, last: [*edits, last],
    st.lists(ACTION, max_size=6).filter(
        lambda some: all(some.count(word) <= (2 if word[:5] == "push_" else 1) for word in some if word[:5] in LIMITED)
    ),
    SENT,
)
FLOWS = st.fixed_dictionaries(
    {"match": MATCHES, "actions": LISTS},
    optional={
        "priority": st.integers(0, 65535),
        "cookie": whole((1 << 64) - 1),
        "idle_timeout": st.integers(0, 65535),
        "hard_timeout": st.integers(0, 65535),
    },
)


@given(FLOWS)
@MANY
def test_text_and_back(document: dict[str, Any]) -> None:
    flow = Flow.model_validate(document)
    text = show_flow(flow.model_dump(), "mine", ["duration=1.5s", "n_packets=3"])
    found = read_flow(text)
    assert found.pop("name") == "mine"
    again = Flow.model_validate(found)
    assert again == flow
    assert again.compiled == flow.compiled
    assert show_flow(again.model_dump(), "mine", ["duration=1.5s", "n_packets=3"]) == text


@given(FLOWS)
@MANY
def test_what_is_printed_as_json_is_canonical(document: dict[str, Any]) -> None:
    flow = Flow.model_validate(document)
    assert Flow.model_validate_json(flow.model_dump_json()) == flow
    assert read_match(flow.match) == flow.identity[1]


@given(FLOWS)
@MANY
def test_the_name_says_the_match(document: dict[str, Any]) -> None:
    flow = Flow.model_validate(document)
    assert named_by_match(flow.match_name) == flow.match_name


@given(st.lists(FLOWS, max_size=5), st.data())
@MANY
def test_files(documents: list[dict[str, Any]], data: st.DataObject) -> None:
    flows = [Flow.model_validate(document) for document in documents]
    lines = []
    for flow in flows:
        lines += [
            *data.draw(st.lists(st.sampled_from(["", "# more", "   "]), max_size=2)),
            show_flow(flow.model_dump()),
        ]
    assert [Flow.model_validate(found) for _, found in read_flows("\n".join(lines))] == flows


@given(MATCHES)
@MANY
def test_keys_are_within_their_masks(fields: dict[str, Any]) -> None:
    for key, mask in read_match(fields).entries():
        assert key & ~mask == 0


@given(st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(sorted), st.integers(0, 65535))
@MANY
def test_a_range_is_its_masks(ends: list[int], value: int) -> None:
    masks = range_masks(*ends)
    for number in {value, *ends, ends[0] - 1, ends[1] + 1} & set(range(65536)):
        assert sum(number & mask == found for found, mask in masks) == (ends[0] <= number <= ends[1])
    assert len(masks) <= 30


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*FIELDS, "tcp", "=", ",", "1", "/", "actions=", "drop", " "])).map("".join)
)
@MANY
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        flow = Flow.model_validate(read_flow(text))
    except (InvalidDocument, ValueError):
        return
    assert Flow.model_validate(read_flow(show_flow(flow.model_dump()))) == flow
