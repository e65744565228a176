# SPDX-License-Identifier: Apache-2.0
"""Frames, and tables of flows that have something to do with them, as hypothesis strategies.

Frames are made of few addresses and numbers, by hand rather than by scapy, so that whatever is wrong in a header can be
had. Flows look at what one of the frames has: exactly, with a mask, or so that it just doesn't fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from pvswitch.flows.match import Match, read_match
from tests.flow_edits import CHECKSUM_AT, ones_sum, sctp_sum
from tests.flow_fields import (
    ARP,
    FRAGMENTS,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    RARP,
    SCTP,
    SNAP,
    TCP,
    TCP_FLAGS,
    UDP,
    headers_of,
)
from tests.flow_reference import Flow

HOSTS = [bytes([2, 0, 0, 0, 0, i]) for i in range(1, 5)]
GROUPS = [b"\xff" * 6, bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")]
ADDRESSES = [IPv4Address(a).packed for a in ("10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.1.255", "0.0.0.0")]
LONG_ADDRESSES = [IPv6Address(a).packed for a in ("2001:db8::1", "2001:db8::2", "fe80::1", "ff02::1:ff00:1", "::")]
PORT_NUMBERS = [0, 22, 80, 81, 90, 53, 443, 32768, 65535]
TAGS = ["81000007", "88a82005", "8100b000", "8100ffff", "81001005", "88a80000"]
LENGTHS = [0, 1, 2, 5, 8, 20, 46, 200, 1400]


def word(value: int, size: int = 2) -> bytes:
    return value.to_bytes(size, "big")


# ---- frames ----


def transport(proto: int, pseudo: bytes, draw: st.DrawFn) -> bytes:
    """A segment or message with its payload, its checksum right for this pseudo header (without its length)."""
    ports = word(draw(st.sampled_from(PORT_NUMBERS))) + word(draw(st.sampled_from(PORT_NUMBERS)))
    seed, length = draw(st.integers(0, 255)), draw(st.sampled_from(LENGTHS))
    payload = bytes((seed + i * 7) & 0xFF for i in range(length))
    if proto == SCTP:
        whole = bytearray(ports + bytes(8) + payload)
        whole[8:12] = word(sctp_sum(whole), 4)
        return bytes(whole)
    if proto == TCP:
        flags = draw(st.sampled_from([0x02, 0x12, 0x10, 0x18, 0x04, 0x11, 0x1C2, 0xFFF, 0]))
        options = draw(st.sampled_from([b"", b"", b"\1\1\1\0", b"\2\4\5\xb4\1\1\1\0"]))
        head = ports + bytes(8) + word((5 + len(options) // 4) << 12 | flags) + word(500) + bytes(4) + options
        at = 16
    elif proto == UDP:
        head, at = ports + word(8 + length) + bytes(2), 6
    elif proto == ICMP:
        head, at = draw(st.sampled_from([b"\x08\0", b"\0\0", b"\3\1", b"\x0b\0"])) + bytes(6), 2
    else:
        kind = draw(st.sampled_from([b"\x87\0", b"\x88\0", b"\x80\0", b"\x87\1", b"\2\0"]))
        head, at = kind + bytes(6), 2
        if kind[0] in (135, 136):
            lengths = [0, 8, 16, 7]
            payload = (
                draw(st.sampled_from(LONG_ADDRESSES))
                + b"\1\1\2\0\0\0\0\1\2\1\2\0\0\0\0\2"[: draw(st.sampled_from(lengths))]
            )
    whole = bytearray(head + payload)
    if proto == ICMP:
        pseudo = b""
    elif pseudo:
        pseudo += len(whole).to_bytes(4, "big")
    whole[at : at + 2] = word(0xFFFF - ones_sum(pseudo + whole))
    if proto == UDP and (whole[at : at + 2] == b"\0\0"):
        whole[at : at + 2] = b"\xff\xff"
    if proto in CHECKSUM_AT:
        wrong = draw(
            st.sampled_from([None] * 6 + ([b"\0\0"] if proto == UDP else [b"\x12\x34"]) + [b"\xff\xff", b"\x12\x34"])
        )
        whole[at : at + 2] = wrong if wrong is not None else whole[at : at + 2]
    return bytes(whole)


protocols = st.sampled_from([TCP, TCP, UDP, UDP, SCTP, 47, 0, 255])


@st.composite
def ipv4_packets(draw: st.DrawFn) -> bytes:
    proto = draw(st.sampled_from([ICMP, ICMPV6]) | protocols)
    source, target = draw(st.sampled_from(ADDRESSES)), draw(st.sampled_from(ADDRESSES))
    body = transport(proto, source + target + bytes([0, proto]), draw) if proto not in (47, 0, 255) else b"payload"
    options = draw(st.sampled_from([b"", b"", b"", b"\x94\4\0\0", b"\1" * 40]))
    tos, ttl = draw(st.sampled_from([0, 0x28, 0xB8, 0xBB, 3])), draw(st.sampled_from([64, 64, 64, 255, 2, 1, 0]))
    fragment = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 0x2010, 0x0010, 0x8000]))
    size = 20 + len(options)
    head = bytearray([0x40 | size // 4, tos, *word(size + len(body)), 0xAB, 0xCD, *word(fragment), ttl, proto, 0, 0])
    head += source + target + options
    head[10:12] = word(0xFFFF - ones_sum(head))
    return bytes(head) + body


@st.composite
def ipv6_packets(draw: st.DrawFn) -> bytes:
    proto = draw(st.sampled_from([ICMPV6, ICMPV6, ICMP]) | protocols)
    source, target = draw(st.sampled_from(LONG_ADDRESSES)), draw(st.sampled_from(LONG_ADDRESSES))
    body = transport(proto, source + target + bytes([0, proto]), draw) if proto not in (47, 0, 255) else b"payload"
    extensions = b""
    following = 59 if proto in (0, 255) else proto
    kinds = st.sampled_from([0, 60, 43, 44, 51])
    for kind in draw(st.just([]) | st.lists(kinds, max_size=3)):
        if kind == 44:
            offset = draw(st.sampled_from([0, 1, 8, 9, 0x1230, 0x1231, 6]))
            extensions = bytes([following, 0, *word(offset), 1, 2, 3, 4]) + extensions
        elif kind == 51:
            extensions = bytes([following, 1]) + bytes(10) + extensions
        else:
            units = draw(st.sampled_from([0, 1]))
            extensions = bytes([following, units, 1, 4 + 8 * units]) + bytes(4 + 8 * units) + extensions
        following = kind
    klass, hops = draw(st.sampled_from([0, 0x28, 0xB8, 0xBB, 3])), draw(st.sampled_from([64, 64, 255, 2, 1, 0]))
    label = draw(st.sampled_from([0, 0xFFFFF, 0x12345]))
    head = word(6 << 28 | klass << 20 | label, 4) + word(len(extensions + body)) + bytes([following, hops])
    return head + source + target + extensions + body


@st.composite
def arp_packets(draw: st.DrawFn) -> bytes:
    operation = draw(st.sampled_from([1, 1, 2, 3, 255, 256, 0]))
    start = draw(st.sampled_from(["000108000604"] * 8 + ["000608000604", "000186dd0604", "000108000804"]))
    ends = [draw(st.sampled_from(HOSTS)) + draw(st.sampled_from(ADDRESSES)) for _ in range(2)]
    return bytes.fromhex(start) + word(operation) + b"".join(ends)


@st.composite
def frames(draw: st.DrawFn, tags: int = 3) -> bytes:
    """A frame with up to so many tags; sometimes a byte is wrong, or the end is missing."""
    start = draw(st.sampled_from(HOSTS * 2 + GROUPS)) + draw(st.sampled_from(HOSTS))
    words = draw(st.just([]) | st.lists(st.sampled_from(TAGS), max_size=tags))
    kind = draw(st.sampled_from([IPV4, IPV4, IPV4, IPV6, IPV6, ARP, RARP, 0x88B5, 46, 0x5FF]))
    packet = {IPV4: ipv4_packets(), IPV6: ipv6_packets(), ARP: arp_packets(), RARP: arp_packets()}
    body = draw(
        packet.get(kind, st.sampled_from([b"", b"other payload", b"\x42\x42\3" + bytes(40), SNAP + b"\x01\x02"]))
    )
    if kind > 0x600 and draw(st.integers(0, 7)) == 0:
        body, kind = SNAP + word(kind) + body, min(len(body) + 8, 1500)
    frame = bytearray(start + bytes.fromhex("".join(words)) + word(kind) + body)
    flaw = draw(st.sampled_from(["none"] * 6 + ["padded", "padded", "cut", "byte"]))
    if flaw == "padded":
        frame += bytes(max(0, 60 - len(frame))) or b"\xee" * 7
    elif flaw == "cut":
        frame = frame[: draw(st.integers(14 + 4 * len(words), max(14 + 4 * len(words), min(len(frame), 130))))]
    elif flaw == "byte" and len(frame) > 14 + 4 * len(words):
        at = draw(st.integers(14 + 4 * len(words), min(len(frame), 100) - 1))
        frame[at] = draw(st.sampled_from([0, 1, 0x45, 0xFF, 44, 6]))
    return bytes(frame)


# ---- matches ----


def written(key: str, value: int) -> str:
    """A field's value as in the configuration."""
    if key.startswith(("dl_src", "dl_dst", "arp_sha", "arp_tha")):
        return value.to_bytes(6, "big").hex(":")
    if key in ("nw_src", "nw_dst", "arp_spa", "arp_tpa"):
        return str(IPv4Address(value))
    if key in ("ipv6_src", "ipv6_dst", "nd_target"):
        return str(IPv6Address(value))
    return f"{value:#x}" if key in ("dl_type", "vlan_tci", "tcp_flags") else str(value)


WIDTHS = {
    **dict.fromkeys(("dl_src", "dl_dst", "arp_sha", "arp_tha"), 48),
    **dict.fromkeys(("nw_src", "nw_dst", "arp_spa", "arp_tpa"), 32),
    **dict.fromkeys(("ipv6_src", "ipv6_dst", "nd_target"), 128),
    **dict.fromkeys(("tp_src", "tp_dst", "vlan_tci"), 16),
    "tcp_flags": 12,
}
"""Fields that can have a mask."""
LIMITS = {"nw_proto": 255, "arp_op": 255, "nw_ttl": 255, "icmp_type": 255, "icmp_code": 255}
SEEN_AS = {"arp_op": "nw_proto", "arp_spa": "nw_src", "arp_tpa": "nw_dst", "icmp_type": "tp_src", "icmp_code": "tp_dst"}
PREFIXES = ("nw_src", "nw_dst", "arp_spa", "arp_tpa", "ipv6_src", "ipv6_dst", "nd_target")


def keys_of(fields: dict[str, int]) -> list[str]:
    """The fields that a flow may look at in such a frame, behind those that tell what it is."""
    kind, proto = fields["dl_type"], fields.get("nw_proto", 0)
    found = []
    if kind in (ARP, RARP):
        return ["arp_op", "arp_spa", "arp_tpa", "arp_sha", "arp_tha"]
    if kind == IPV4:
        found = ["nw_src", "nw_dst", "nw_tos", "nw_ttl", "nw_frag"]
    if kind == IPV6:
        found = ["ipv6_src", "ipv6_dst", "nw_tos", "nw_ttl", "nw_frag"]
    if found and proto in (TCP, UDP, SCTP):
        found += ["tp_src", "tp_dst"] * 2
    if found and proto == TCP:
        found += ["tcp_flags", "tcp_flags"]
    if (kind, proto) in ((IPV4, ICMP), (IPV6, ICMPV6)):
        found += ["icmp_type", "icmp_code"]
    return found


@st.composite
def values(draw: st.DrawFn, key: str, seen: int) -> str:
    """A value for a field of which a frame has `seen`."""
    if key == "nw_frag":
        return draw(st.sampled_from([*FRAGMENTS]))
    way = draw(st.sampled_from(["same", "same", "mask", "mask", "near", "range", "words"]))
    if way == "near":
        near = seen ^ 1 << draw(st.integers(0, WIDTHS.get(key, 3) - 1))
        return written(key, near & 0xFC if key == "nw_tos" else min(near, LIMITS.get(key, near)))
    if way == "range" and key in ("tp_src", "tp_dst"):
        low = draw(st.integers(max(0, seen - 12), min(65535, seen + 1)))
        return f"{low}-{draw(st.integers(low, min(65535, low + 40)))}"
    if way == "words" and key == "tcp_flags":
        names = draw(st.lists(st.sampled_from(TCP_FLAGS), min_size=1, max_size=4, unique=True))
        return "".join(("+" if seen >> TCP_FLAGS.index(name) & 1 else "-") + name for name in names)
    if way != "mask" or key not in WIDTHS:
        return written(key, seen)
    width = WIDTHS[key]
    every = (1 << width) - 1
    if draw(st.booleans()):
        prefix = draw(st.integers(1, width))
        mask = every ^ (every >> prefix)
        if key in PREFIXES:
            return f"{written(key, seen & mask)}/{prefix}"
    else:
        mask = draw(st.integers(1, every))
    if key in ("tp_src", "tp_dst"):
        return f"{seen & mask:#x}/{mask:#x}"
    return f"{written(key, seen & mask)}/{written(key, mask)}"


@st.composite
def matches(draw: st.DrawFn, frame: bytes, ports: Sequence[str]) -> dict[str, object]:
    """A match for frames such as this one, which it mostly fits."""
    headers = headers_of(frame)
    found: dict[str, object] = {}
    if draw(st.integers(0, 2)) == 0:
        found["in_port"] = draw(st.sampled_from(ports))
    if headers is None:
        return found
    fields = headers.fields
    for key in ("dl_src", "dl_dst"):
        if draw(st.integers(0, 3)) == 0:
            found[key] = draw(values(key, fields[key]))
    found |= draw(vlan_matches(fields["vlan_tci"]))
    if draw(st.integers(0, 4)) == 0:
        return found
    found["dl_type"] = f"{fields['dl_type']:#06x}"
    keys, proto = keys_of(fields), fields.get("nw_proto", 0)
    chosen = draw(st.lists(st.sampled_from(keys), max_size=3, unique=True)) if keys else []
    needs_proto = {"tp_src", "tp_dst", "tcp_flags", "icmp_type", "icmp_code"} & {*chosen}
    if fields["dl_type"] in (IPV4, IPV6) and (needs_proto or draw(st.booleans())):
        found["nw_proto"] = proto
    for key in chosen:
        found[key] = draw(values(key, fields.get(SEEN_AS.get(key, key), 0)))
    if found.get("nw_frag") == "later":
        found = {key: value for key, value in found.items() if key not in needs_proto}
    elif (fields["dl_type"], proto) == (IPV6, ICMPV6) and fields.get("tp_src") in (135, 136) and draw(st.booleans()):
        found |= {"nw_proto": proto, "icmp_type": fields["tp_src"], "icmp_code": 0}
        found["nd_target"] = draw(values("nd_target", fields.get("nd_target", 0)))
    return found


@st.composite
def vlan_matches(draw: st.DrawFn, tci: int) -> dict[str, object]:
    """What is asked of the outermost tag."""
    way = draw(st.sampled_from(["none"] * 5 + ["vid", "pcp", "both", "tci", "untagged"]))
    near = draw(st.sampled_from([0, 0, 0, 1, 7]))
    found: dict[str, object] = {}
    if way in ("vid", "both"):
        found["dl_vlan"] = (tci & 0xFFF) ^ near
    if way in ("pcp", "both"):
        found["dl_vlan_pcp"] = (tci >> 13) ^ near & 7
    if way == "untagged":
        found["dl_vlan"] = 0xFFFF
    if way == "tci":
        found["vlan_tci"] = draw(st.sampled_from([f"{tci:#x}", "0x1000/0x1000", "0x0", f"{tci & 0x1E0F:#x}/0x1e0f"]))
    return found


# ---- actions, flows ----

ADDRESS_TEXTS = [str(IPv4Address(one)) for one in ADDRESSES]
edits = st.one_of(
    st.sampled_from(["push_vlan:0x8100", "push_vlan:0x88a8", "pop_vlan", "pop_vlan", "dec_ttl", "dec_ttl"]),
    st.sampled_from([0, 5, 7, 4095]).map("set_vlan_vid:{}".format),
    st.sampled_from([0, 3, 7]).map("set_vlan_pcp:{}".format),
    st.sampled_from(HOSTS + GROUPS[:1]).map(lambda mac: f"mod_dl_dst:{mac.hex(':')}"),
    st.sampled_from(HOSTS).map(lambda mac: f"mod_dl_src:{mac.hex(':')}"),
    st.sampled_from(ADDRESS_TEXTS).map("mod_nw_src:{}".format),
    st.sampled_from(ADDRESS_TEXTS).map("mod_nw_dst:{}".format),
    st.sampled_from([0, 4, 0xB8, 0xFC]).map("mod_nw_tos:{}".format),
    st.sampled_from(PORT_NUMBERS).map("mod_tp_src:{}".format),
    st.sampled_from(PORT_NUMBERS).map("mod_tp_dst:{}".format),
)


@st.composite
def action_lists(draw: st.DrawFn, ports: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """Actions in some order, `others` among them, mostly with something that sends the frame at the end."""
    if draw(st.integers(0, 9)) == 0:
        return ["drop"]
    sends = st.sampled_from([*(f"output:{port}" for port in ports), "flood", "all", "in_port"])
    more = st.sampled_from(others) if others else edits
    found = draw(st.lists(st.one_of(edits, edits, sends, more), max_size=5))
    found.insert(draw(st.integers(0, len(found))), "normal") if draw(st.booleans()) else None
    if draw(st.integers(0, 5)):
        found.append(draw(sends))
    pushes = [i for i, action in enumerate(found) if action.startswith("push_vlan")]
    # A meter is asked once for a frame: a flow that names it twice is refused.
    again = [i for i, action in enumerate(found) if action.startswith("meter") and action in found[:i]]
    return [action for i, action in enumerate(found) if i not in pushes[2:] + again] or ["drop"]


@st.composite
def tables(draw: st.DrawFn, seen: Sequence[bytes], ports: Sequence[str], others: Sequence[str] = ()) -> list[Flow]:
    """Flows for these frames. Of two with the same match one has the higher priority: otherwise they are refused."""
    flows: list[Flow] = []
    taken: set[tuple[int, Match]] = set()
    for i in range(draw(st.integers(1, 6))):
        match = draw(st.just({}) | matches(draw(st.sampled_from(seen)), ports)) if i else draw(matches(seen[0], ports))
        priority = draw(st.sampled_from([0, 1, 1, 100, 32768, 65535]))
        while (priority, read_match(match)) in taken:
            priority += 1 if priority < 65535 else -7
        taken.add((priority, read_match(match)))
        flows.append(Flow(f"f{i}", match, draw(action_lists(ports, others)), priority))
    return flows
