# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a frame: what they say in one line, and how those of two frames differ.

`parse` reads headers as far as they are there; `edits` gives the actions that make one head of the other, in the
words of Open vSwitch's actions: "push_vlan 10", "mod_nw_src 10.0.0.1", "dec_ttl". Pure.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from pvswitch.trace.frame import ARP, FRAGMENT, ICMP, ICMP6, IPV4, IPV6, RARP, SCTP, TCP, TCP_FLAGS, UDP

C_TAG, S_TAG = 0x8100, 0x88A8
TAGS = frozenset({C_TAG, S_TAG, 0x9100})
EXTENSIONS = frozenset({0, 43, 44, 51, 60, 135, 139})  # of IPv6: headers before the one of layer 4 (IANA)
PROTOCOLS = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMP6: "ICMPv6", SCTP: "SCTP", 2: "IGMP", 47: "GRE", 50: "ESP"}
ARP_OPERATIONS = {1: "request", 2: "reply", 3: "reverse request", 4: "reverse reply"}
ICMP_TYPES = {
    (ICMP, 0): "echo reply",
    (ICMP, 3): "destination unreachable",
    (ICMP, 8): "echo request",
    (ICMP, 11): "time exceeded",
    (ICMP6, 1): "destination unreachable",
    (ICMP6, 2): "packet too big",
    (ICMP6, 128): "echo request",
    (ICMP6, 129): "echo reply",
    (ICMP6, 133): "router solicitation",
    (ICMP6, 134): "router advertisement",
    (ICMP6, 135): "neighbour solicitation",
    (ICMP6, 136): "neighbour advertisement",
}
_SUMS = {ICMP: 2, TCP: 16, UDP: 6, ICMP6: 2, SCTP: 8}  # where the checksum stands


@dataclass(frozen=True, slots=True)
class Tag:
    """A VLAN tag."""

    tpid: int
    tci: int

    @property
    def vid(self) -> int:
        """The VLAN ID."""
        return self.tci & 0xFFF

    @property
    def pcp(self) -> int:
        """The priority."""
        return self.tci >> 13


@dataclass(slots=True)
class Head:
    """What a head says. `values` are fields by their names in a match, as text."""

    tags: tuple[Tag, ...] = ()
    dl_type: int = 0
    proto: int | None = None
    later: bool = False  # a fragment that is not the first one
    values: dict[str, str] = field(default_factory=dict)
    sums: dict[str, bytes] = field(default_factory=dict)  # checksums by what they are of


def parse(data: bytes) -> Head:
    """Return what the first bytes of a frame say; what isn't there is left out."""
    head = Head()
    if len(data) < 14:
        return head
    head.values = {"dl_src": data[6:12].hex(":"), "dl_dst": data[:6].hex(":")}
    at, tags = 12, list[Tag]()
    while len(data) >= at + 6 and _word(data, at) in TAGS:
        tags.append(Tag(_word(data, at), _word(data, at + 2)))
        at += 4
    head.tags, head.dl_type = tuple(tags), _word(data, at)
    body = data[at + 2 :]
    if head.dl_type == IPV4:
        _ipv4(head, body)
    elif head.dl_type == IPV6:
        _ipv6(head, body)
    elif head.dl_type in (ARP, RARP) and len(body) >= 28:
        head.values |= {
            "arp_op": str(_word(body, 6)),
            "arp_sha": body[8:14].hex(":"),
            "arp_spa": str(ipaddress.IPv4Address(body[14:18])),
            "arp_tha": body[18:24].hex(":"),
            "arp_tpa": str(ipaddress.IPv4Address(body[24:28])),
        }
    return head


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _ipv4(head: Head, body: bytes) -> None:
    size = 4 * (body[0] & 15) if body else 0
    if len(body) < 20 or body[0] >> 4 != 4 or size < 20:
        return
    head.values |= {
        "nw_src": str(ipaddress.IPv4Address(body[12:16])),
        "nw_dst": str(ipaddress.IPv4Address(body[16:20])),
        "nw_tos": str(body[1] & 0xFC),
        "nw_ttl": str(body[8]),
    }
    head.sums["ip"] = body[10:12]
    head.proto, head.later = body[9], bool(_word(body, 6) & 0x1FFF)
    _l4(head, body[size:])


def _ipv6(head: Head, body: bytes) -> None:
    if len(body) < 40 or body[0] >> 4 != 6:
        return
    head.values |= {
        "ipv6_src": str(ipaddress.IPv6Address(body[8:24])),
        "ipv6_dst": str(ipaddress.IPv6Address(body[24:40])),
        "nw_tos": str(_word(body, 0) >> 4 & 0xFC),
        "nw_ttl": str(body[7]),
    }
    proto, rest = body[6], body[40:]
    while proto in EXTENSIONS and len(rest) >= 8:
        if proto == FRAGMENT:
            head.later = bool(_word(rest, 2) & 0xFFF8)
        size = 8 if proto == FRAGMENT else 4 * (rest[1] + 2) if proto == 51 else 8 * (rest[1] + 1)
        proto, rest = rest[0], rest[size:]
        if head.later:
            break
    head.proto = proto
    _l4(head, rest)


def _l4(head: Head, body: bytes) -> None:
    if head.later or head.proto not in _SUMS:
        return
    if head.proto in (ICMP, ICMP6) and len(body) >= 4:
        head.values |= {"icmp_type": str(body[0]), "icmp_code": str(body[1])}
        if head.proto == ICMP6 and body[0] in (135, 136) and len(body) >= 24:
            head.values["nd_target"] = str(ipaddress.IPv6Address(body[8:24]))
    elif len(body) >= 4:
        head.values |= {"tp_src": str(_word(body, 0)), "tp_dst": str(_word(body, 2))}
    if head.proto == TCP and len(body) >= 14:
        flags = _word(body, 12) & 0xFFF
        head.values["tcp_flags"] = "|".join(name for name, bit in TCP_FLAGS.items() if flags & bit) or "none"
    at = _SUMS[head.proto]
    size = 4 if head.proto == SCTP else 2
    if len(body) >= at + size:
        head.sums[PROTOCOLS[head.proto].lower()] = body[at : at + size]


# ---- in words


def describe(data: bytes, length: int) -> str:
    """Return a frame in one line."""
    head = parse(data)
    values = head.values
    if not values:
        return f"{length} bytes, no Ethernet header"
    parts = [f"{values['dl_src']} > {values['dl_dst']}", *(_tag_words(tag) for tag in head.tags)]
    if "nw_src" in values or "ipv6_src" in values:
        parts += _ip_words(head)
    elif "arp_op" in values:
        operation = ARP_OPERATIONS.get(int(values["arp_op"]), values["arp_op"])
        parts.append(f"{'ARP' if head.dl_type == ARP else 'RARP'} {operation}")
        parts.append(f"{values['arp_spa']} > {values['arp_tpa']}")
    else:
        parts.append("802.2" if head.dl_type < 0x600 else f"type {head.dl_type:#06x}")
    return ", ".join([*parts, f"{length} bytes"])


def _tag_words(tag: Tag) -> str:
    name = {C_TAG: "VLAN", S_TAG: "S-VLAN"}.get(tag.tpid, f"VLAN ({tag.tpid:#06x})")
    return f"{name} {tag.vid}" + (f" priority {tag.pcp}" if tag.pcp else "")


def _ip_words(head: Head) -> Iterator[str]:
    values = head.values
    src, dst = (values.get(f"nw_{end}") or values[f"ipv6_{end}"] for end in ("src", "dst"))
    assert head.proto is not None
    name = PROTOCOLS.get(head.proto, f"protocol {head.proto}")
    yield name if "nw_src" in values or head.proto == ICMP6 else f"{name} over IPv6"
    if "tp_src" in values:
        six = ":" in src
        src, dst = (
            f"[{ip}]:{values[key]}" if six else f"{ip}:{values[key]}" for ip, key in ((src, "tp_src"), (dst, "tp_dst"))
        )
    yield f"{src} > {dst}"
    if "tcp_flags" in values:
        yield values["tcp_flags"]
    if "icmp_type" in values:
        kind = int(values["icmp_type"])
        yield ICMP_TYPES.get((head.proto, kind), f"type {kind} code {values['icmp_code']}")
    if "nd_target" in values:
        yield f"for {values['nd_target']}"
    if head.later:
        yield "a later fragment"


# ---- two heads


def edits(before: bytes, after: bytes) -> list[str]:
    """Return what makes the second head of the first one, as actions; what only one of them has is no edit."""
    old, new = parse(before), parse(after)
    found = _tag_edits(old.tags, new.tags)
    for key, value in new.values.items():
        was = old.values.get(key, value)
        if was == value:
            continue
        if key == "nw_ttl":
            fewer = int(was) - int(value)
            found += ["dec_ttl"] * fewer if 0 < fewer <= 3 else [f"mod_nw_ttl {value}"]
        else:
            found.append(f"mod_{key} {value}")
    found += [f"checksum {of}" for of, value in new.sums.items() if old.sums.get(of, value) != value]
    return found


def _tag_edits(old: tuple[Tag, ...], new: tuple[Tag, ...]) -> list[str]:
    """Return what is done to the tags: those that stay are the innermost ones."""
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old[::-1], new[::-1], strict=False)))
    gone, come = old[: len(old) - same], new[: len(new) - same]
    kept = min(len(gone), len(come))
    while kept and gone[len(gone) - kept].tpid != come[len(come) - kept].tpid:
        kept -= 1  # no action changes what kind of tag it is
    found = ["pop_vlan"] * (len(gone) - kept)
    for was, tag in zip(gone[len(gone) - kept :], come[len(come) - kept :], strict=True):
        if tag.vid != was.vid:
            found.append(f"set_vlan_vid {tag.vid}")
        if tag.pcp != was.pcp:
            found.append(f"set_vlan_pcp {tag.pcp}")
    for tag in come[: len(come) - kept][::-1]:
        kind = "" if tag.tpid == C_TAG else f" {tag.tpid:#06x}"
        priority = f" priority {tag.pcp}" if tag.pcp else ""
        found.append(f"push_vlan {tag.vid}{kind}{priority}")
    return found
