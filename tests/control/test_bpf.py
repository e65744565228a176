# SPDX-License-Identifier: Apache-2.0
"""Filters: what libpcap makes of them, what is refused before it, and that no name goes to a resolver."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest

from pvswitch import bpf
from pvswitch.bpf import MAX_EXPRESSION, MAX_INSTRUCTIONS, FilterError, compile_filter
from pvswitch.capture_model import MAX_SNAPLEN, CaptureBody
from pvswitch.datapath import MAX_FILTER, MAX_FRAME
from pvswitch.model import SwitchConfig
from tests.conftest import RequirePeer

TAKEN = [
    "arp",
    "tcp port 80",
    "port http or https",
    "udp portrange 6000-6008",
    "ip proto ospf",
    r"ip proto \tcp",
    "host 10.0.0.1 and not ip6",
    "src 1.2.3.4 or 5.6.7.8",
    "net 10.0.0.0/8",
    "net 2001:db8::/32",
    "ip6 host fe80::1",
    "ether host 52:54:00:00:00:01",
    "ether proto 0x88b5",
    "vlan 10 and arp",
    "tcp[tcpflags] & (tcp-syn|tcp-ack) != 0",
    "icmp[icmptype] = icmp-echo",
    "ip[6:2] & 0x1fff = 0",
    "tcp && !port ssh",
    "greater 100 and not broadcast",
]
NAMES = [
    "host example.com",
    "example.com",
    "localhost",
    "src host a or b",
    "port 80 and ip foo",
    "port 80 and (src foo)",
    "net home",
    "gateway router",
    "ether host printer",
    r"host \host",
    "not(dst evil.example)",
    "dst evil.example[0] = 1",
    "ip6 host 12:zz::",
]


@pytest.mark.parametrize("expression", TAKEN)
def test_libpcap_makes_what_tcpdump_makes(expression: str, require_peer: RequirePeer) -> None:
    program = compile_filter(expression, 96)
    wanted = subprocess.run(
        [require_peer("tcpdump", package="tcpdump"), "-ddd", "-y", "EN10MB", "-s", "96", expression],
        capture_output=True,
        timeout=30,
        check=True,
    )
    lines = [tuple(map(int, line.split())) for line in wanted.stdout.decode().splitlines()[1:]]
    assert [*struct.iter_unpack("=HBBI", program)] == lines


def test_no_expression_is_no_filter() -> None:
    assert compile_filter(" ", 96) == b""


@pytest.mark.parametrize("expression", NAMES)
def test_names_that_somebody_would_have_to_look_up_are_refused(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "_library", lambda: pytest.fail("libpcap was asked"))
    with pytest.raises(FilterError, match="write addresses as numbers"):
        compile_filter(expression, 96)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("tcp port", "libpcap says: can't parse filter expression: syntax error"),
        ("port nosuchservice", "libpcap says: unknown port 'nosuchservice'"),
        ("inbound", "'inbound' is nothing that a frame says"),
        ("arp\nor ip", "printable ASCII"),
        ("arp or ü", "printable ASCII"),
        ("arp or " * 200 + "ip", f"has 1402 characters, and {MAX_EXPRESSION} are possible"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_reason(expression: str, words: str) -> None:
    with pytest.raises(FilterError) as error:
        compile_filter(expression, 96)
    assert words in str(error.value)


def test_a_filter_has_no_more_instructions_than_the_core_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "MAX_INSTRUCTIONS", 3)
    with pytest.raises(FilterError, match="becomes 4 instructions, and 3 are possible"):
        compile_filter("ether proto 0x88b5", 96)


def test_the_bounds_are_those_of_the_core() -> None:
    assert (MAX_INSTRUCTIONS, MAX_SNAPLEN) == (MAX_FILTER, MAX_FRAME)
    length = CaptureBody.model_json_schema()["properties"]["filter"]["maxLength"]
    assert length == SwitchConfig.model_json_schema()["$defs"]["Recorder"]["properties"]["filter"]["maxLength"]


def test_without_libpcap_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_LIBRARIES", ("libpcap-is-not-here.so",))
    bpf._library.cache_clear()
    try:
        with pytest.raises(FilterError, match=r"apt-get install libpcap0\.8"):
            compile_filter("arp", 96)
        assert compile_filter("", 96) == b""
    finally:
        bpf._library.cache_clear()


def test_a_switch_without_filters_never_loads_libpcap() -> None:
    code = "import pvswitch.daemon, sys; sys.exit('libpcap' in open('/proc/self/maps').read())"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
