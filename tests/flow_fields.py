# SPDX-License-Identifier: Apache-2.0
"""What flows look at in a frame, the slow and obvious way: bytes -> fields, and whether a match fits them.

Written from ovs-fields(7) and the RFCs of the headers. A field that a frame doesn't have is 0. Numbers, addresses
included, are plain integers. `FIELDS` says how a field's value is written; a match is the `match` of a flow in the
configuration: names of fields with values, `VALUE/MASK`, or `LOW-HIGH`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from tests.property.reference import Frame, take_apart
from tests.vlans import Tags

IPV4, IPV6, ARP, RARP, NO_TYPE = 0x0800, 0x86DD, 0x0806, 0x8035, 0x05FF
ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS = 0, 43, 44, 51, 60
HEADER = {TCP: 20, UDP: 8, SCTP: 12, ICMP: 8, ICMPV6: 4}
"""Bytes that the header of a protocol has at least."""
SNAP = bytes.fromhex("aaaa03000000")
TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns")
FRAGMENTS = {"no": (0, 3), "yes": (1, 1), "first": (1, 3), "later": (3, 3), "not_later": (0, 2)}
ANY_FRAGMENT, LATER_FRAGMENT = 1, 2


# How far flows see into a frame, and how much of an L4 header they look at.
IN_SIGHT = 496
LOOKED_AT = {TCP: 20, UDP: 8, SCTP: 12, ICMP: 8, ICMPV6: 24}


def number(data: bytes | bytearray) -> int:
    """A number as headers have it."""
    return int.from_bytes(data, "big")


# ---- a frame's headers ----


@dataclass
class Headers:
    """A frame taken apart. Places are within `frame.rest`, which begins with the ethertype behind the tags.

    `l3` and `l4` are None where there is no such header that is known and whole; `end` is where the IP packet ends.
    """

    frame: Frame
    dl_type: int = NO_TYPE
    l3: int | None = None
    l4: int | None = None
    end: int = 0
    behind: int | None = None
    """Of IPv6: where its extension headers end; None where one is cut short."""
    fields: dict[str, int] = field(default_factory=dict)

    @property
    def cut(self) -> bool:
        """Whether an extension header of IPv6 is cut short."""
        return self.dl_type == IPV6 and self.l3 is not None and self.behind is None

    @property
    def hides(self) -> bool:
        """Whether its L4 is out of the sight of flows (RFC 8883 lets nodes see so far and no further)."""
        if self.dl_type != IPV6 or self.l3 is None or self.later:
            return False
        start = 12 + 4 * len(self.frame.tags)
        wanted = None if self.behind is None else self.behind + LOOKED_AT.get(self.proto, 0)
        return start + self.end > IN_SIGHT and (wanted is None or start + wanted > IN_SIGHT)

    @property
    def proto(self) -> int:
        """The protocol behind the IP header and its extensions."""
        return self.fields.get("nw_proto", 0)

    @property
    def later(self) -> bool:
        """Whether it is a fragment, and not the first one."""
        return bool(self.fields.get("nw_frag", 0) & LATER_FRAGMENT)


def headers_of(data: bytes) -> Headers | None:
    """The headers of a frame; None when one of its first two tags is cut short: that isn't forwarded."""
    frame = take_apart(data)
    if frame is None:
        return None
    found = Headers(frame)
    at = _ethertype(found)
    found.fields = {
        "dl_dst": number(frame.macs[:6]),
        "dl_src": number(frame.macs[6:]),
        "dl_type": found.dl_type,
        **vlan_fields(frame.tags),
    }
    if found.dl_type == IPV4:
        _ipv4(found, at)
    elif found.dl_type == IPV6:
        _ipv6(found, at)
    elif found.dl_type in (ARP, RARP):
        _arp(found, at)
    return found


def vlan_fields(tags: Tags) -> dict[str, int]:
    """Of the outermost tag. Its DEI can't be seen: in its place stands that there is a tag."""
    tci = tags[0].pcp << 13 | 0x1000 | tags[0].vid if tags else 0
    return {"vlan_tci": tci}


def _ethertype(found: Headers) -> int:
    """Find out the type, and where what it announces begins."""
    rest = found.frame.rest
    if number(rest[:2]) >= 0x600:
        found.dl_type = number(rest[:2])
        return 2
    if rest[2:8] == SNAP and len(rest) >= 10 and number(rest[8:10]) >= 0x600:
        found.dl_type = number(rest[8:10])
        return 10
    return len(rest)


def _arp(found: Headers, at: int) -> None:
    """Ethernet's ARP for IPv4 only, whole (RFC 826)."""
    arp = found.frame.rest[at : at + 28]
    if len(arp) < 28 or arp[:6] != bytes.fromhex("000108000604"):
        return
    operation = number(arp[6:8])
    found.fields |= {
        "nw_proto": operation if operation < 256 else 0,
        "arp_sha": number(arp[8:14]),
        "nw_src": number(arp[14:18]),
        "arp_tha": number(arp[18:24]),
        "nw_dst": number(arp[24:28]),
    }


def _ipv4(found: Headers, at: int) -> None:
    """RFC 791. Nothing of a header that contradicts itself or the frame's length."""
    packet = found.frame.rest[at:]
    size = (packet[0] & 15) * 4 if packet else 0
    if size < 20 or len(packet) < size or not size <= number(packet[2:4]) <= len(packet):
        return
    found.l3, found.end = at, at + number(packet[2:4])
    fraction = number(packet[6:8])
    fragment = (ANY_FRAGMENT if fraction & 0x3FFF else 0) | (LATER_FRAGMENT if fraction & 0x1FFF else 0)
    found.fields |= {
        "nw_src": number(packet[12:16]),
        "nw_dst": number(packet[16:20]),
        "nw_proto": packet[9],
        "nw_tos": packet[1] & 0xFC,
        "nw_ttl": packet[8],
        "nw_frag": fragment,
    }
    _transport(found, at + size)


def _ipv6(found: Headers, at: int) -> None:
    """RFC 8200, section 4: extension headers are walked up to one that isn't, or is cut short."""
    packet = found.frame.rest[at:]
    if len(packet) < 40 or number(packet[4:6]) > len(packet) - 40:
        return
    found.l3, found.end = at, at + 40 + number(packet[4:6])
    found.fields |= {
        "ipv6_src": number(packet[8:24]),
        "ipv6_dst": number(packet[24:40]),
        "nw_tos": number(packet[:2]) >> 4 & 0xFC,
        "nw_ttl": packet[7],
        "nw_frag": 0,
        "nw_proto": packet[6],
    }
    place: int | None = at + 40
    while (
        place is not None
        and not found.later
        and found.proto in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS)
    ):
        place = _extension(found, place)
    found.behind = place
    if place is not None:
        _transport(found, place)


def _extension(found: Headers, at: int) -> int | None:
    """Where the next header begins, which is `proto` from now on; None if this one is cut short."""
    extension = found.frame.rest[at : found.end]
    if len(extension) < 8:
        return None
    size = 8 * (extension[1] + 1)
    if found.proto == AUTHENTICATION:
        size = 4 * (extension[1] + 2)
    elif found.proto == FRAGMENT:
        size = 8
        if number(extension[2:4]) & 0xFFF9:
            found.fields["nw_frag"] = ANY_FRAGMENT
        if number(extension[2:4]) & 0xFFF8:
            # Of what follows nothing is known: what it says is next is so in the first fragment.
            found.fields["nw_frag"] = ANY_FRAGMENT | LATER_FRAGMENT
            return at + size
    if len(extension) < size:
        return None
    found.fields["nw_proto"] = extension[0]
    return at + size


def _transport(found: Headers, at: int) -> None:
    """Ports; of ICMP its type and code; of TCP its flags. A later fragment has none of it."""
    segment = found.frame.rest[at : found.end]
    proto = found.proto
    known = (TCP, UDP, SCTP, ICMP if found.dl_type == IPV4 else ICMPV6)
    if found.later or proto not in known or len(segment) < HEADER[proto]:
        return
    found.l4 = at
    size = 1 if proto in (ICMP, ICMPV6) else 2
    found.fields |= {"tp_src": number(segment[:size]), "tp_dst": number(segment[size : 2 * size])}
    if proto == TCP:
        found.fields["tcp_flags"] = number(segment[12:14]) & 0xFFF
    if proto == ICMPV6 and segment[0] in (135, 136) and segment[1] == 0 and len(segment) >= 24:
        found.fields["nd_target"] = number(segment[8:24])


# ---- a match ----


def _integer(text: str) -> int:
    return int(text, 0)


def _mac(text: str) -> int:
    return int(text.replace(":", ""), 16)


def _ipv4_address(text: str) -> int:
    return int(IPv4Address(text))


def _ipv6_address(text: str) -> int:
    return int(IPv6Address(text))


@dataclass(frozen=True)
class Field:
    """A field as it is written: what it is in `Headers.fields`, its bits, and how a value is read."""

    name: str
    bits: int
    read: Callable[[str], int] = _integer
    place: int = 0
    """Its lowest bit in that field."""


FIELDS: Mapping[str, Field] = {
    "tun_id": Field("tun_id", 32),
    "dl_src": Field("dl_src", 48, _mac),
    "dl_dst": Field("dl_dst", 48, _mac),
    "dl_type": Field("dl_type", 16),
    "vlan_tci": Field("vlan_tci", 16),
    "dl_vlan_pcp": Field("vlan_tci", 3, place=13),
    "nw_src": Field("nw_src", 32, _ipv4_address),
    "nw_dst": Field("nw_dst", 32, _ipv4_address),
    "arp_spa": Field("nw_src", 32, _ipv4_address),
    "arp_tpa": Field("nw_dst", 32, _ipv4_address),
    "arp_sha": Field("arp_sha", 48, _mac),
    "arp_tha": Field("arp_tha", 48, _mac),
    "arp_op": Field("nw_proto", 8),
    "ipv6_src": Field("ipv6_src", 128, _ipv6_address),
    "ipv6_dst": Field("ipv6_dst", 128, _ipv6_address),
    "nw_proto": Field("nw_proto", 8),
    "nw_tos": Field("nw_tos", 8),
    "nw_ttl": Field("nw_ttl", 8),
    "tp_src": Field("tp_src", 16),
    "tp_dst": Field("tp_dst", 16),
    "tcp_flags": Field("tcp_flags", 12),
    "icmp_type": Field("tp_src", 8),
    "icmp_code": Field("tp_dst", 8),
    "nd_target": Field("nd_target", 128, _ipv6_address),
}
RANGES = ("tp_src", "tp_dst")


def fits(match: Mapping[str, object], in_port: str, fields: Mapping[str, int]) -> bool:
    """Whether a match fits a frame that came by a port."""
    return all(
        value == in_port if key == "in_port" else _fits_one(key, str(value), fields) for key, value in match.items()
    )


def _fits_one(key: str, value: str, fields: Mapping[str, int]) -> bool:
    if key == "dl_vlan":
        tci, vid = fields.get("vlan_tci", 0), int(value, 0)
        return tci == 0 if vid == 0xFFFF else bool(tci) and tci & 0xFFF == vid
    if key == "dl_vlan_pcp" and not fields.get("vlan_tci", 0):
        return False
    if key == "nw_frag":
        wanted, mask = FRAGMENTS[value]
        return fields.get("nw_frag", 0) & mask == wanted
    if key == "tcp_flags" and value[0] in "+-":
        wanted, mask = _signed_flags(value)
        return fields.get("tcp_flags", 0) & mask == wanted
    known = FIELDS[key]
    seen = fields.get(known.name, 0) >> known.place & ((1 << known.bits) - 1)
    if key in RANGES and "-" in value:
        low, high = (int(end, 0) for end in value.split("-"))
        return low <= seen <= high
    wanted, mask = value_and_mask(known, value)
    return seen & mask == wanted & mask


def value_and_mask(known: Field, text: str) -> tuple[int, int]:
    """A value as it is written, with its mask, if there is one: all ones otherwise."""
    value, _, mask = text.partition("/")
    every = (1 << known.bits) - 1
    if not mask:
        return known.read(value), every
    if known.read in (_ipv4_address, _ipv6_address) and mask.isdigit():
        return known.read(value), every ^ (every >> int(mask))
    return known.read(value), known.read(mask)


def _signed_flags(text: str) -> tuple[int, int]:
    """`+syn-ack`: these are set, those aren't, others may be as they like."""
    wanted = mask = 0
    for sign, name in ((part[0], part[1:]) for part in text.replace("+", " +").replace("-", " -").split()):
        bit = 1 << TCP_FLAGS.index(name)
        mask |= bit
        wanted |= bit if sign == "+" else 0
    return wanted, mask
