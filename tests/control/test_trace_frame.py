# SPDX-License-Identifier: Apache-2.0
"""Frames made from fields: what scapy makes of them, their checksums, what is refused; and heads read and compared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, LLC, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet

from pvswitch.trace.frame import build
from pvswitch.trace.head import describe, edits, parse

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"


def again(frame: bytes) -> bytes:
    """The frame as scapy writes it when it counts lengths and checksums itself."""
    packet = Ether(frame)
    layer: Packet | None = packet
    while layer:
        for name in ("len", "plen", "chksum", "cksum"):
            if name in layer.fields and layer.name not in ("SCTPChunkInit",):
                del layer.fields[name]
        layer = layer.payload
    return bytes(packet)


IN_LAYERS: dict[str, tuple[dict[str, Any], list[type[Packet]], dict[str, Any]]] = {
    "nothing": ({}, [Ether], {"type": 0x88B5}),
    "tcp": (
        {"dl_type": "0x0800", "nw_proto": 6, "nw_src": "10.0.0.1", "tp_dst": "80", "tcp_flags": "+syn+ece-ack"},
        [Ether, IP, TCP],
        {"dst": "192.0.2.2", "dport": 80, "flags": "SE", "ttl": 64},
    ),
    "udp in VLAN 10": (
        {"dl_vlan": 10, "dl_vlan_pcp": 5, "nw_proto": 17, "tp_src": 5000, "tp_dst": "80-90", "nw_tos": 184},
        [Ether, Dot1Q, IP, UDP],
        {"vlan": 10, "prio": 5, "sport": 5000, "dport": 80, "tos": 184},
    ),
    "vlan_tci": (
        {"vlan_tci": "0x500a/0x1fff", "nw_ttl": 3},
        [Ether, Dot1Q, IP, UDP],
        {"vlan": 10, "prio": 2, "ttl": 3},
    ),
    "icmp": ({"nw_proto": 1}, [Ether, IP, ICMP], {"type": 8, "code": 0}),
    "icmp by type": ({"icmp_type": 3, "icmp_code": 4}, [Ether, IP, ICMP], {"code": 4}),
    "sctp": ({"nw_proto": 132, "tp_dst": 36412}, [Ether, IP, SCTP], {"dport": 36412}),
    "another protocol": ({"nw_proto": 89}, [Ether, IP], {"proto": 89}),
    "multicast": ({"nw_dst": "224.129.2.3"}, [Ether, IP, UDP], {}),
    "tcp over IPv6": ({"dl_type": 0x86DD, "nw_proto": 6}, [Ether, IPv6, TCP], {"dport": 80, "hlim": 64, "flags": "S"}),
    "icmp6": ({"ipv6_dst": "ff02::1", "nw_proto": 58}, [Ether, IPv6, ICMPv6EchoRequest], {"hlim": 64}),
    "solicitation": (
        {"nd_target": "fe80::1:2:3"},
        [Ether, IPv6, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr],
        {"hlim": 255, "tgt": "fe80::1:2:3", "dst": "ff02::1:ff02:3"},
    ),
    "advertisement": (
        {"dl_type": 0x86DD, "nw_proto": 58, "icmp_type": 136, "nd_target": "fe80::1"},
        [Ether, IPv6, ICMPv6ND_NA, ICMPv6NDOptDstLLAddr],
        {"R": 0, "S": 1, "O": 1},
    ),
    "arp request": (
        {"arp_op": 1, "arp_spa": "10.0.0.1", "arp_tpa": "10.0.0.2"},
        [Ether, ARP],
        {"op": 1, "psrc": "10.0.0.1", "pdst": "10.0.0.2", "hwdst": "00:00:00:00:00:00"},
    ),
    "arp reply": ({"arp_op": 2, "arp_sha": A}, [Ether, ARP], {"op": 2, "hwsrc": A, "hwdst": "52:54:00:00:00:02"}),
    "arp by nw_src": ({"dl_type": "0x0806", "nw_dst": "10.0.0.9"}, [Ether, ARP], {"pdst": "10.0.0.9"}),
    "first fragment": ({"nw_frag": "first", "nw_proto": 6}, [Ether, IP, TCP], {"frag": 0, "dport": 80}),
    "later fragment": ({"nw_frag": "later", "nw_proto": 6}, [Ether, IP], {"frag": 185, "proto": 6}),
    "later fragment, IPv6": (
        {"ipv6_src": "fe80::1", "nw_frag": "later"},
        [Ether, IPv6, IPv6ExtHdrFragment],
        {"offset": 185, "nh": 17},
    ),
}


@pytest.mark.parametrize("case", IN_LAYERS)
def test_scapy_reads_what_was_meant(case: str) -> None:
    fields, layers, values = IN_LAYERS[case]
    frame = build(fields)
    packet = Ether(frame)
    found = [packet.getlayer(i) for i in range(len(layers))]
    assert [type(layer) for layer in found] == layers
    for key, value in values.items():
        last = next(layer for layer in reversed(found) if layer is not None and key in layer.fields)
        assert last.fields[key] == value, key
    assert len(frame) >= 64
    if "later" not in case and "fragment" not in case:
        assert again(frame) == frame


def test_rarp() -> None:
    frame = build({"dl_type": 0x8035, "dl_src": A})
    packet = ARP(frame[14:])  # scapy knows it by no ethertype
    assert (packet.op, packet.hwsrc, packet.hwdst) == (3, A, A)
    assert frame[:6] == b"\xff" * 6


def test_802_2_has_a_length_in_the_place_of_the_type() -> None:
    frame = build({"dl_type": "0x05ff", "dl_dst": "01:80:c2:00:00:00"})
    assert Ether(frame).getlayer(LLC) is not None or frame[14:17] == b"\x42\x42\x03"
    assert int.from_bytes(frame[12:14], "big") == len(frame) - 14


@pytest.mark.parametrize(
    ("fields", "dst"),
    [
        ({"nw_dst": "224.129.2.3"}, "01:00:5e:01:02:03"),
        ({"ipv6_dst": "ff02::1:2"}, "33:33:00:01:00:02"),
        ({"nw_dst": "255.255.255.255"}, "ff:ff:ff:ff:ff:ff"),
        ({"arp_op": 1}, "ff:ff:ff:ff:ff:ff"),
        ({"arp_op": 2}, "52:54:00:00:00:02"),
        ({"nd_target": "2001:db8::1:2"}, "33:33:ff:01:00:02"),
        ({"nw_dst": "224.0.0.1", "dl_dst": B}, B),
    ],
)
def test_the_destination_follows(fields: dict[str, Any], dst: str) -> None:
    assert build(fields)[:6].hex(":") == dst


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dl_src": "52:54"}, "dl_src: '52:54' is not a MAC address"),
        ({"nw_src": "10.0.0"}, "nw_src: '10.0.0' is not an IPv4 address"),
        ({"nw_src": "::1"}, "nw_src: '::1' is not an IPv4 address"),
        ({"tp_dst": "http"}, "tp_dst: 'http' is not a number"),
        ({"tp_dst": 65536}, "tp_dst: 65536 is not from 0 to 65535"),
        ({"nw_proto": 256}, "nw_proto: 256 is not from 0 to 255"),
        ({"nw_proto": -1}, "nw_proto: -1 is not a number"),
        ({"dl_vlan_pcp": 8}, "dl_vlan_pcp: 8 is not from 0 to 7"),
        ({"tcp_flags": "+sin"}, "tcp_flags: 'sin' is not one of"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(fields)


_MACS = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))
_WORDS = st.integers(0, 0xFFFF)
FIELDS = st.fixed_dictionaries(
    {"dl_type": st.sampled_from([0x0800, 0x86DD, 0x0806, 0x8035, 0x88B5])},
    optional={
        "dl_src": _MACS,
        "dl_dst": _MACS,
        "dl_vlan": st.one_of(st.integers(0, 4095), st.just(0xFFFF)),
        "dl_vlan_pcp": st.integers(0, 7),
        "nw_src": st.ip_addresses(v=4).map(str),
        "nw_dst": st.ip_addresses(v=4).map(str),
        "ipv6_src": st.ip_addresses(v=6).map(str),
        "ipv6_dst": st.ip_addresses(v=6).map(str),
        "nw_proto": st.sampled_from([1, 2, 6, 17, 58, 132]),
        "nw_tos": st.integers(0, 63).map(lambda dscp: dscp << 2),
        "nw_ttl": st.integers(0, 255),
        "tp_src": st.integers(0, 255),
        "tp_dst": st.integers(0, 255),
    },
)


@given(FIELDS)
def test_lengths_and_checksums_are_scapys(fields: dict[str, Any]) -> None:
    frame = build(fields)
    assert len(frame) >= 64
    assert again(frame) == frame


@given(FIELDS)
def test_a_head_says_what_the_frame_was_made_from(fields: dict[str, Any]) -> None:
    head = parse(build(fields))
    arp = fields["dl_type"] in (0x0806, 0x8035)
    for key, value in head.values.items():
        given = fields.get(key.replace("arp_spa", "nw_src").replace("arp_tpa", "nw_dst") if arp else key)
        if given is not None and not key.startswith(("icmp", "arp_op")):
            assert value == str(given), key
    assert edits(build(fields), build(fields)) == []


PLAIN = {"dl_src": A, "dl_dst": B, "nw_src": "10.0.0.1", "nw_dst": "10.0.0.2", "nw_proto": 6, "tcp_flags": "syn"}


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({}, {"dl_vlan": 10}, ["push_vlan 10"]),
        ({}, {"dl_vlan": 10, "dl_vlan_pcp": 3}, ["push_vlan 10 priority 3"]),
        ({"dl_vlan": 10}, {}, ["pop_vlan"]),
        ({"dl_vlan": 10}, {"dl_vlan": 20}, ["set_vlan_vid 20"]),
        ({"dl_vlan": 10}, {"dl_vlan": 10, "dl_vlan_pcp": 1}, ["set_vlan_pcp 1"]),
        ({}, {"dl_src": B}, [f"mod_dl_src {B}"]),
        ({}, {"nw_src": "10.0.0.9"}, ["mod_nw_src 10.0.0.9", "checksum ip", "checksum tcp"]),
        ({}, {"tp_dst": 22}, ["mod_tp_dst 22", "checksum tcp"]),
        ({}, {"nw_ttl": 63}, ["dec_ttl", "checksum ip"]),
        ({}, {"nw_ttl": 9}, ["mod_nw_ttl 9", "checksum ip"]),
        ({}, {"nw_tos": 8, "dl_vlan": 5}, ["push_vlan 5", "mod_nw_tos 8", "checksum ip"]),
    ],
)
def test_edits(before: dict[str, Any], after: dict[str, Any], wanted: list[str]) -> None:
    first, second = build({**PLAIN, **before}), build({**PLAIN, **after})
    assert edits(first[:128], second[:128]) == wanted


def tagged(*tags: tuple[int, int]) -> bytes:
    frame = build(PLAIN)
    words = b"".join(tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") for tpid, tci in tags)
    return frame[:12] + words + frame[12:]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ([(0x8100, 20)], [(0x88A8, 10), (0x8100, 20)], ["push_vlan 10 0x88a8"]),
        ([(0x88A8, 10), (0x8100, 20)], [(0x8100, 20)], ["pop_vlan"]),
        ([(0x88A8, 10), (0x8100, 20)], [(0x88A8, 11), (0x8100, 20)], ["set_vlan_vid 11"]),
        ([(0x8100, 10)], [(0x88A8, 10)], ["pop_vlan", "push_vlan 10 0x88a8"]),
        ([(0x8100, 10)], [(0x8100, 30), (0x8100, 20)], ["set_vlan_vid 20", "push_vlan 30"]),
        ([(0x8100, 10), (0x8100, 20)], [(0x8100, 30)], ["pop_vlan", "set_vlan_vid 30"]),
    ],
)
def test_edits_of_tags(before: list[tuple[int, int]], after: list[tuple[int, int]], wanted: list[str]) -> None:
    assert edits(tagged(*before), tagged(*after)) == wanted


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (PLAIN, f"{A} > {B}, TCP, 10.0.0.1:49152 > 10.0.0.2:80, syn, 64 bytes"),
        (
            {**PLAIN, "dl_vlan": 7, "nw_proto": 1},
            f"{A} > {B}, VLAN 7, ICMP, 10.0.0.1 > 10.0.0.2, echo request, 68 bytes",
        ),
        (
            {"dl_type": 0x86DD, "nw_proto": 17, "tp_dst": 53, "dl_dst": B, "dl_src": A},
            f"{A} > {B}, UDP over IPv6, [2001:db8::1]:49152 > [2001:db8::2]:53, 64 bytes",
        ),
        (
            {"nd_target": "2001:db8::9", "dl_src": A},
            f"{A} > 33:33:ff:00:00:09, ICMPv6, 2001:db8::1 > ff02::1:ff00:9, neighbour solicitation, for 2001:db8::9, "
            "86 bytes",
        ),
        ({"arp_op": 1, "dl_src": A}, f"{A} > ff:ff:ff:ff:ff:ff, ARP request, 192.0.2.1 > 192.0.2.2, 64 bytes"),
        ({"dl_type": "0x88cc", "dl_src": A, "dl_dst": B}, f"{A} > {B}, type 0x88cc, 64 bytes"),
        ({**PLAIN, "nw_frag": "later"}, f"{A} > {B}, TCP, 10.0.0.1 > 10.0.0.2, a later fragment, 64 bytes"),
    ],
)
def test_a_frame_in_one_line(fields: dict[str, Any], words: str) -> None:
    frame = build(fields)
    assert describe(frame, len(frame)) == words


@given(st.binary(max_size=160))
def test_any_bytes_can_be_read(data: bytes) -> None:
    parse(data)
    assert describe(data, len(data)).endswith(("bytes", "header"))


@given(st.integers(0, 4), st.binary(max_size=60), st.sampled_from([0x0800, 0x86DD, 0x0806]))
def test_any_packet_can_be_read(cut: int, data: bytes, kind: int) -> None:
    frame = build({"dl_type": kind})[: 14 + cut] + data
    assert describe(frame, len(frame))
