# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a frame in words: right for what scapy makes, and one line for whatever bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from pvswitch.frame_words import summary

ETHER = Ether(src="52:54:00:00:00:01", dst="52:54:00:00:00:02")
WHO = "52:54:00:00:00:01 > 52:54:00:00:00:02"
V4: dict[str, Any] = {"src": "192.0.2.1", "dst": "192.0.2.2"}
V6: dict[str, Any] = {"src": "2001:db8::1", "dst": "2001:db8::2"}


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (IP(**V4) / TCP(sport=1024, dport=80), "TCP 192.0.2.1:1024 > 192.0.2.2:80"),
        (IP(**V4, options=b"\1\1\1\1") / UDP(sport=7, dport=53), "UDP 192.0.2.1:7 > 192.0.2.2:53"),
        (IP(**V4, frag=100) / Raw(b"\0" * 8), "protocol 0 192.0.2.1 > 192.0.2.2"),
        (IP(**V4, frag=100, proto=17) / Raw(b"\0" * 8), "UDP 192.0.2.1 > 192.0.2.2"),
        (IP(**V4) / ICMP(), "ICMP 192.0.2.1 > 192.0.2.2"),
        (IPv6(**V6) / UDP(sport=7, dport=53), "UDP [2001:db8::1]:7 > [2001:db8::2]:53"),
        (ARP(op=1, psrc="192.0.2.1", pdst="192.0.2.2"), "ARP who-has 192.0.2.2 tell 192.0.2.1"),
        (ARP(op=2, psrc="192.0.2.1", hwsrc="52:54:00:00:00:01"), "ARP 192.0.2.1 is-at 52:54:00:00:00:01"),
        (Dot1Q(vlan=10) / IP(**V4) / ICMP(), "vlan 10, ICMP 192.0.2.1 > 192.0.2.2"),
        (Dot1AD(vlan=7) / Dot1Q(vlan=10, type=0x88B5), "vlan 7, vlan 10, type 0x88b5"),
    ],
)
def test_what_scapy_makes(packet: Packet, words: str) -> None:
    assert summary(bytes(ETHER / packet)) == f"{WHO}, {words}"


def test_what_is_too_short_is_told_as_far_as_it_goes() -> None:
    assert summary(b"") == ""
    assert summary(bytes(13)) == "13 bytes"
    assert summary(bytes(ETHER)[:12] + b"\x00\x2e" + bytes(46)) == f"{WHO}, 802.3"
    assert summary(bytes(ETHER / IP(**V4))[:30]) == f"{WHO}, type 0x0800"


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\x88\xa8"]))
def test_whatever_bytes_are_one_line(data: bytes, kind: bytes) -> None:
    assert "\n" not in summary(bytes(12) + kind + data)
