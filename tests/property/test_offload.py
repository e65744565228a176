# SPDX-License-Identifier: Apache-2.0
"""The offload engine against scapy: what is asked for, what each receiver gets, byte for byte.

The engine (native/src/offload.c) runs with sanitizers behind a pipe (native/tools/offload_tool.c). The reference knows
what a frame is made of because it made it: a segment is the same scapy packet with less payload and with the fields
that change; lengths and checksums are scapy's own. PVSWITCH_TEST_FRAMES says how many frames are tried.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections import Counter
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import (
    IP,
    TCP,
    UDP,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_RR,
    IPOption_Timestamp,
    in4_pseudoheader,
)
from scapy.layers.inet6 import (
    HAO,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    in6_pseudoheader,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

NATIVE = Path(__file__).resolve().parents[2] / "native"
BATCH = 20
MOST = 24  # segments that one frame is cut into
FRAMES = int(os.environ.get("PVSWITCH_TEST_FRAMES", "600"))

NEEDS_CSUM, ECN = 1, 0x80
CSUM, TSO4, TSO6, TAKES_ECN, USO4, USO6 = 1, 2, 4, 8, 16, 32
ALL = 63
HEAD_MAX, MAX_PIECES = 508, 2048
MALFORMED, ACCEPTED = 0, 1
# gso_type (virtio 1.2, 5.1.6) and the bit that it needs
GSO = {("tcp", 4): (1, TSO4), ("tcp", 6): (4, TSO6), ("udp", 4): (5, USO4), ("udp", 6): (5, USO6)}
NUMBER = {"tcp": 6, "udp": 17}
CSUM_OFFSET = {"tcp": 16, "udp": 6}

# ---- frames ----


@dataclass(frozen=True)
class Shape:
    """What a frame is made of. `lower` is all below L4 with lengths, IDs and checksums left to scapy."""

    lower: Packet
    version: int
    protocol: str
    l3: int
    l4: int
    options: tuple[tuple[str, object], ...]
    flags: str
    seq: int
    ident: int
    data: bytes

    @cached_property
    def packet(self) -> Packet:
        lower = self.lower.copy()
        if self.version == 4:
            lower[IP].id = self.ident
        if self.protocol == "udp":
            l4: Packet = UDP(sport=1111, dport=2222)
        else:
            l4 = TCP(sport=1111, dport=2222, seq=self.seq, ack=99, flags=self.flags, options=list(self.options))
        l4.add_payload(Raw(self.data))
        lower.lastlayer().add_payload(l4)
        return lower

    @cached_property
    def finished(self) -> bytes:
        """With every checksum."""
        return raw(self.packet)

    @property
    def field(self) -> int:
        return self.l4 + CSUM_OFFSET[self.protocol]

    @cached_property
    def partial(self) -> bytes:
        """With the pseudo header's sum in place of the L4 checksum."""
        length = len(self.finished) - self.l4
        under = self.packet[TCP if self.protocol == "tcp" else UDP].underlayer
        if self.version == 4:
            pseudo = in4_pseudoheader(NUMBER[self.protocol], under, length)
        else:
            pseudo = raw(in6_pseudoheader(NUMBER[self.protocol], under, length))
        value = 0xFFFF ^ checksum(pseudo)
        return self.finished[: self.field] + struct.pack(">H", value) + self.finished[self.field + 2 :]

    def with_checksum_zero(self) -> Shape:
        """The same with another end of its payload, so that all sums up to ones; itself where there is no room."""
        if len(self.data) < 2 or len(self.data) % 2:
            return self
        (word,), (missing,) = struct.unpack(">H", self.data[-2:]), struct.unpack_from(">H", self.finished, self.field)
        word += missing
        return replace(self, data=self.data[:-2] + struct.pack(">H", (word & 0xFFFF) + (word >> 16)))

    def share(self, n: int) -> int:
        """The payload of one of `n` segments."""
        return max(1, -(-len(self.data) // n))

    def segments(self, size: int) -> list[Shape]:
        """Cut into pieces of `size` bytes of payload, each a frame of its own."""
        parts = [self.data[at : at + size] for at in range(0, len(self.data), size)]
        cut = []
        for i, part in enumerate(parts):
            flags = self.flags
            if i > 0:
                flags = flags.replace("C", "")
            if i < len(parts) - 1:
                flags = flags.replace("F", "").replace("P", "")
            seq = (self.seq + i * size) % 2**32
            cut.append(replace(self, data=part, flags=flags, seq=seq, ident=(self.ident + i) % 2**16))
        return cut


@dataclass(frozen=True)
class Header:
    """struct virtio_net_hdr without num_buffers."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self, length: int) -> bytes:
        return struct.pack("<BBHHHHH", *astuple(self), 0)[:length]


@dataclass(frozen=True)
class Case:
    """One frame on its way from a sender to a receiver. `sound`: its headers can be cut; `sent`: its bytes."""

    shape: Shape
    header: Header
    sent: bytes
    sound: bool
    allowed: int
    taken: int
    header_len: int
    first: int
    cuts_in: list[int]
    cuts_out: list[int]

    def __repr__(self) -> str:
        rest = ("sound", "allowed", "taken", "header_len", "first", "cuts_in", "cuts_out")
        return f"{self.header} {self.sent[:HEAD_MAX].hex()} {[f'{name} {getattr(self, name)}' for name in rest]}"

    def pack(self) -> bytes:
        return (
            self.header.pack(12)
            + struct.pack("<BBBBB3x", self.allowed, self.taken, self.header_len, len(self.cuts_in), len(self.cuts_out))
            + struct.pack("<II", self.first, len(self.sent))
            + struct.pack(f"<{len(self.cuts_in)}H", *self.cuts_in)
            + struct.pack(f"<{len(self.cuts_out)}H", *self.cuts_out)
            + self.sent
        )


class Batch:
    """Cases for one run of the engine. What it prints is short: pytest would show a megabyte."""

    def __init__(self, cases: list[Case]) -> None:
        self.cases = cases

    def __repr__(self) -> str:
        return f"{len(self.cases)} cases"


# ---- the reference ----


@dataclass(frozen=True)
class Answer:
    """The verdict; how many pieces there are, and those from Case.first on (header and frame)."""

    verdict: int
    n: int
    pieces: list[bytes]


def legal(case: Case) -> bool:
    """Whether the request may be carried out (virtio 1.2, 5.1.6.2, and what the engine promises)."""
    h, shape = case.header, case.shape
    if not h.flags & NEEDS_CSUM:
        return h.gso_type == 0
    if not case.allowed & CSUM or h.csum_start < shape.l3:
        return False
    if h.csum_start + h.csum_offset + 2 > min(len(case.sent), HEAD_MAX):
        return False
    if h.gso_type == 0:
        return True
    kind, bit = GSO[shape.protocol, shape.version]
    if h.gso_type & ~ECN != kind or not case.allowed & bit or h.gso_size == 0:
        return False
    if h.gso_type & ECN and (shape.protocol == "udp" or not case.allowed & TAKES_ECN):
        return False
    if len(shape.data) > MAX_PIECES * h.gso_size:
        return False
    header_end = len(shape.finished) - len(shape.data)
    exact = (h.csum_start, h.csum_offset) == (shape.l4, CSUM_OFFSET[shape.protocol])
    return case.sound and exact and header_end <= min(HEAD_MAX, len(case.sent))


def summed(case: Case) -> bytes:
    """The frame with its checksum computed."""
    h, shape = case.header, case.shape
    if case.sent == shape.partial and h.csum_start + h.csum_offset == shape.field and h.csum_start == shape.l4:
        return shape.finished
    value = checksum(case.sent[h.csum_start :])
    if value == 0 and h.csum_offset == CSUM_OFFSET["udp"]:
        value = 0xFFFF
    at = h.csum_start + h.csum_offset
    return case.sent[:at] + struct.pack(">H", value) + case.sent[at + 2 :]


def pieces_of(case: Case, seen: Counter[str]) -> list[tuple[Header, bytes]]:
    """What the receiver gets for a legal request."""
    h, shape, takes_csum = case.header, case.shape, case.taken & CSUM
    if not h.flags & NEEDS_CSUM:
        seen["plain"] += 1
        return [(Header(), case.sent)]
    ask = Header(flags=NEEDS_CSUM, csum_start=h.csum_start, csum_offset=h.csum_offset)
    if h.gso_type == 0 or len(shape.data) <= h.gso_size:
        seen["checksum passed" if takes_csum else "checksum computed"] += 1
        return [(ask, case.sent) if takes_csum else (Header(), summed(case))]
    needs = CSUM | GSO[shape.protocol, shape.version][1] | (TAKES_ECN if h.gso_type & ECN else 0)
    if case.taken & needs == needs:
        seen["passed whole"] += 1
        header_end = len(shape.finished) - len(shape.data)
        return [(replace(ask, gso_type=h.gso_type, gso_size=h.gso_size, hdr_len=header_end), case.sent)]
    seen["cut, checksum passed" if takes_csum else "cut, checksum computed"] += 1
    return [(ask, s.partial) if takes_csum else (Header(), s.finished) for s in shape.segments(h.gso_size)]


def expected(case: Case, seen: Counter[str]) -> Answer:
    if not legal(case):
        seen["malformed"] += 1
        return Answer(MALFORMED, 0, [])
    pieces = pieces_of(case, seen)
    return Answer(ACCEPTED, len(pieces), [h.pack(case.header_len) + frame for h, frame in pieces[case.first :]])


# ---- the engine ----


@pytest.fixture(scope="module")
def engine() -> Path:
    """The tool, compiled."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", NATIVE, "offload-tool"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return NATIVE / "build" / "offload_tool" / "run"


def answers(engine: Path, cases: list[Case]) -> list[Answer]:
    """Give all cases to one process of the engine."""
    data = b"".join(case.pack() for case in cases)
    done = subprocess.run([engine], input=data, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    out, at, found = done.stdout, 0, []
    for _ in cases:
        verdict, n, written = struct.unpack_from("<III", out, at)
        at += 12
        pieces = []
        for _ in range(written):
            (length,) = struct.unpack_from("<I", out, at)
            pieces.append(out[at + 4 : at + 4 + length])
            at += 4 + length
        found.append(Answer(verdict, n, pieces))
    assert at == len(out)
    return found


# ---- what to try ----

IPV4_OPTIONS = st.lists(
    st.sampled_from(
        [
            IPOption_NOP(),
            IPOption_RR(routers=["0.0.0.0"] * 2),
            IPOption_Timestamp(),
            IPOption_LSRR(routers=["10.9.9.9"]),
        ]
    ),
    max_size=3,
    unique_by=type,
)
# the longest fills 40 bytes
TCP_OPTIONS = st.sampled_from(
    [
        (),
        (),
        (("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))),
        (("MSS", 1460), ("SAckOK", b""), ("WScale", 7)),
        (("NOP", None), ("NOP", None), ("SAck", (1, 2, 3, 4)), ("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)),
        tuple([("NOP", None)] * 40),
        (("WScale", 3),),
    ]
)
TAGS = st.sampled_from(["", "", "Q", "AQ", "QQ"])
FLAGS = st.sampled_from(["A", "PA", "FA", "FPA", "CA", "CEA", "FPACE", "S", "RA", "UPA", "", "FPACENU"])
NUMBERS = st.sampled_from([0, 1, 7, 0xFFF0, 0xFFFF, 0xFFFFFC00, 0xFFFFFFFF, 0x12345678])
# around the borders of the head (128 and 508 bytes), of an MTU and of IP
LENGTHS = st.one_of(
    st.integers(60, 3000),
    st.integers(0, 200),
    st.sampled_from([1448, 1449, 2896, 4096, 9000, 16000]),
    st.sampled_from([30001, 64000]),
)
CUTS = st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 63, 64, 65, 255, 1000, 1514, 4096]), max_size=4)
REQUEST_FAULTS = ["gso_type", "gso_size", "csum_start", "csum_offset", "flags", "allowed"]
FAULTS = [*REQUEST_FAULTS, "short", "version", "ihl", "protocol", "doff"]


def extension(kind: str, size: int) -> Packet:
    """An IPv6 extension header; `size` is a number of bytes of options, where it has any."""
    if kind == "hop":
        return IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(size))])
    if kind == "destination":
        return IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(size))])
    if kind == "home":
        return IPv6ExtHdrDestOpt(options=[HAO(hoa="fd00::beef")])
    return IPv6ExtHdrRouting(addresses=["fd00::a", "fd00::b"], segleft=size % 3)


def lower_ipv4(draw: st.DrawFn) -> tuple[Packet, bool]:
    fragment = draw(st.sampled_from([("DF", 0)] * 24 + [("", 0), ("MF", 0), ("", 5), ("MF", 8000)]))
    options = draw(IPV4_OPTIONS)
    ip = IP(src="10.0.0.1", dst="10.0.0.2", flags=fragment[0], frag=fragment[1], options=options)
    return ip, not ("MF" in fragment[0] or fragment[1])


def lower_ipv6(draw: st.DrawFn) -> tuple[Packet, bool]:
    kinds = draw(
        st.lists(st.sampled_from(["hop", "destination", "home", "routing", "routing", "destination"]), max_size=3)
    )
    fragment = draw(st.sampled_from([False] * 19 + [True]))
    packet = IPv6(src="fd00::1", dst="fd00::2")
    for kind in kinds:
        packet /= extension(kind, draw(st.sampled_from([0, 1, 6, 60, 200])))
    if fragment:
        packet /= IPv6ExtHdrFragment()
    return packet, not fragment


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Shape, bool]:
    """A frame, and whether a checker finds its L4 header."""
    version, protocol = draw(st.sampled_from(sorted(GSO)))[::-1]
    l2 = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    tags = draw(TAGS)
    for tag in tags:
        l2 /= Dot1AD(vlan=100) if tag == "A" else Dot1Q(vlan=7, prio=3)
    lower, sound = lower_ipv4(draw) if version == 4 else lower_ipv6(draw)
    last = lower.lastlayer()
    if version == 4:
        last.proto = NUMBER[protocol]
    else:
        last.nh = NUMBER[protocol]
    data = random.Random(draw(st.integers(0, 2**16))).randbytes(draw(LENGTHS))
    lower = l2 / lower
    shape = Shape(
        lower=lower,
        version=version,
        protocol=protocol,
        l3=14 + 4 * len(tags),
        l4=len(raw(lower)),
        options=draw(TCP_OPTIONS),
        flags=draw(FLAGS),
        seq=draw(NUMBERS),
        ident=draw(NUMBERS) & 0xFFFF,
        data=data,
    )
    return shape, sound


def spoil(draw: st.DrawFn, fault: str, case: Case) -> Case:
    """Make one thing of a case something else, mostly wrong."""
    h, shape, sent = case.header, case.shape, bytearray(case.sent)
    if fault == "gso_type":
        gso_type = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 0x80, 0x81, 0x83, 0x84, 0x85, 0xFF]))
        return replace(case, header=replace(h, gso_type=gso_type))
    if fault == "gso_size":
        sizes = [0, 1] if len(shape.data) > MAX_PIECES else [0]
        return replace(case, header=replace(h, gso_size=draw(st.sampled_from(sizes))))
    if fault == "csum_start":
        near = st.sampled_from([0, 13, 14, shape.l3 - 1, shape.l3, shape.l4 - 1, shape.l4 + 1, shape.l4 + 2])
        return replace(case, header=replace(h, csum_start=draw(st.one_of(near, st.integers(0, 65535)))))
    if fault == "csum_offset":
        offset = draw(st.one_of(st.sampled_from([0, 6, 16, 7, 400]), st.integers(0, 65535)))
        return replace(case, header=replace(h, csum_offset=offset))
    if fault == "flags":
        return replace(case, header=replace(h, flags=draw(st.integers(0, 255))))
    if fault == "allowed":
        return replace(case, allowed=draw(st.integers(0, ALL)))
    if fault == "short":
        return replace(case, sent=case.sent[: draw(st.integers(14, len(shape.finished) - len(shape.data) - 1))])
    if fault == "version":
        sent[shape.l3] ^= 0xF0
    elif fault == "ihl" and shape.version == 4:
        sent[shape.l3] = 0x40 | (sent[shape.l3] + draw(st.integers(1, 15))) % 16
    elif fault == "protocol":
        sent[shape.l3 + (9 if shape.version == 4 else 6)] = draw(st.sampled_from([1, 44, 50, 51, 58, 59, 132, 254]))
    elif fault == "doff" and shape.protocol == "tcp":
        sent[shape.l4 + 12] = draw(st.integers(0, 4)) << 4
    else:
        return case
    return replace(case, sent=bytes(sent), sound=False)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape, sound = draw(shapes())
    if draw(st.sampled_from([False] * 4 + [True])):
        shape = shape.with_checksum_zero()
    asks = draw(st.sampled_from(["gso", "gso", "gso", "gso", "checksum", "plain"]))
    header = Header(hdr_len=draw(st.sampled_from([0, 54, 0xFFFF])))
    if asks != "plain":
        header = replace(header, flags=NEEDS_CSUM, csum_start=shape.l4, csum_offset=CSUM_OFFSET[shape.protocol])
    if asks == "gso":
        ecn = ECN if shape.protocol == "tcp" and draw(st.booleans()) else 0
        size = draw(st.one_of(st.sampled_from([1, 99, 536, 1448, 8960, 65535]), st.integers(1, MOST).map(shape.share)))
        size = max(size, shape.share(MOST))
        header = replace(header, gso_type=GSO[shape.protocol, shape.version][0] | ecn, gso_size=size)
    case = Case(
        shape=shape,
        header=header,
        sent=shape.finished if asks == "plain" else shape.partial,
        sound=sound,
        allowed=ALL,
        taken=draw(st.one_of(st.sampled_from([0, CSUM, ALL]), st.integers(0, ALL))),
        header_len=draw(st.sampled_from([10, 12])),
        first=draw(st.sampled_from([0, 0, 0, 0, 1, 5, 23, 24, 25])),
        cuts_in=draw(CUTS),
        cuts_out=draw(CUTS),
    )
    fault = draw(st.sampled_from(["none"] * 4 * len(FAULTS) + FAULTS))
    return case if fault == "none" else spoil(draw, fault, case)


# ---- the comparison ----


def difference(case: Case, found: Answer, wanted: Answer) -> str:
    """In words that help; empty if there is none."""
    if (found.verdict, found.n) != (wanted.verdict, wanted.n) or len(found.pieces) != len(wanted.pieces):
        return f"found {found.verdict, found.n, len(found.pieces)}, not {wanted.verdict, wanted.n, len(wanted.pieces)}"
    for i, (a, b) in enumerate(zip(found.pieces, wanted.pieces, strict=True)):
        if a != b:
            at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            return f"piece {case.first + i}: at {at} (lengths {len(a)}, {len(b)}): {a[:600].hex()}, not {b[:600].hex()}"
    return ""


@pytest.mark.timeout(120 + FRAMES // 20)
def test_the_engine_does_what_scapy_says(engine: Path) -> None:
    seen: Counter[str] = Counter()

    @given(batch=st.lists(cases(), min_size=BATCH, max_size=BATCH).map(Batch))
    @settings(
        max_examples=max(1, FRAMES // BATCH),
        deadline=None,
        phases=[Phase.reuse, Phase.generate],  # the one frame that differs is named; a batch shrinks for minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    def compare(batch: Batch) -> None:
        wanted = [expected(case, seen) for case in batch.cases]
        for case, found, want in zip(batch.cases, answers(engine, batch.cases), wanted, strict=True):
            seen["frames"] += 1
            seen["pieces"] += want.n
            words = difference(case, found, want)
            assert not words, f"{words}\n{case}"

    compare()
    print(f"differences 0: {dict(seen)}")
    for word in ("malformed", "plain", "checksum passed", "checksum computed", "passed whole"):
        assert seen[word] > 0, word
    assert seen["cut, checksum passed"] > 0
    assert seen["cut, checksum computed"] > 0
