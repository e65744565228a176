# SPDX-License-Identifier: Apache-2.0
"""A match: which frames a flow is for. Read from fields and values, printed canonically, and as the bits compared.

`read_match` takes what JSON has ({"nw_dst": "10.0.0.0/24", "tp_dst": "80-90"}) and finds every error at once; two
matches for the same frames are equal, however they were written. `Match.fields` prints it as JSON, their `text` as
ovs-ofctl(8) does, and `Match.entries` gives the keys and masks that the core compares: several where a range takes
several masks. Prerequisites are those of ovs-fields(7).
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.flows.fields import FIELDS, IN_PORT_SHIFT, LONGEST, NAME, PRESENT, SHORTHANDS, BadValue, Field

IPV4, IPV6 = 0x0800, 0x86DD
_ARP = frozenset({0x0806, 0x8035})
_IP = frozenset({IPV4, IPV6})
_PORTS = frozenset({6, 17, 132})
_ICMP = frozenset({(IPV4, 1), (IPV6, 58)})
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_FULL_IN_PORT = 0xFFFFFFFF << IN_PORT_SHIFT
MAX_FIELDS = len(FIELDS) + 1  # and in_port
_ORDER = {name: place for place, name in enumerate(["tun_id", "in_port", *(n for n in FIELDS if n != "tun_id")])}

# What stands at the same place of a key has a name of its own in ARP and in ICMP.
_IN_ARP = {"nw_src": "arp_spa", "nw_dst": "arp_tpa", "nw_proto": "arp_op"}
_IN_ICMP = {"tp_src": "icmp_type", "tp_dst": "icmp_code"}

# How OpenFlow 1.2 and later, and others, call what we have.
SYNONYMS = {
    "eth_src": "dl_src",
    "eth_dst": "dl_dst",
    "eth_type": "dl_type",
    "vlan_vid": "dl_vlan",
    "vlan_pcp": "dl_vlan_pcp",
    "ip_src": "nw_src",
    "ip_dst": "nw_dst",
    "ip_proto": "nw_proto",
    "ip_frag": "nw_frag",
    "ip_dscp": "nw_tos",
    "nw_tos_shifted": "nw_tos",
    "tcp_src": "tp_src",
    "tcp_dst": "tp_dst",
    "udp_src": "tp_src",
    "udp_dst": "tp_dst",
    "sctp_src": "tp_src",
    "sctp_dst": "tp_dst",
    "icmpv6_type": "icmp_type",
    "icmpv6_code": "icmp_code",
    "tunnel_id": "tun_id",
}
# Of Open vSwitch, and not here.
FOREIGN = frozenset(
    {
        *("ct_state", "ct_zone", "ct_mark", "ct_label", "ct_nw_src", "ct_nw_dst", "ct_nw_proto", "ct_tp_src"),
        *("ct_tp_dst", "ct_ipv6_src", "ct_ipv6_dst", "metadata", "pkt_mark", "skb_priority", "recirc_id", "dp_hash"),
        *("conj_id", "actset_output", "in_port_oxm", "packet_type", "ipv6_label", "nw_ecn", "ip_ecn", "nd_sll"),
        *("nd_tll", "nd_reserved", "nd_options_type", "mpls", "mplsm", "mpls_label", "mpls_tc", "mpls_bos"),
        *("mpls_ttl", "tun_src", "tun_dst", "tun_ipv6_src", "tun_ipv6_dst", "tun_flags", "tun_gbp_id"),
        *("tun_gbp_flags", "tun_erspan_idx", "vlan_tci1", "nsh_flags", "nsh_ttl", "nsh_spi", "nsh_si"),
    }
)
_FOREIGN_RUNS = re.compile(r"(x{0,2}reg[0-9]+|tun_metadata[0-9]+)")


@dataclass(frozen=True, slots=True)
class Match:
    """Which frames. `key` and `mask` are the words of a struct pvs_flow_conf as one number, without the port's slot.

    `ranges` are of tp_src and tp_dst, where one mask can't say them: name, first, last.
    """

    in_port: str | None = None
    key: int = 0
    mask: int = 0
    ranges: tuple[tuple[str, int, int], ...] = ()

    def value(self, name: str) -> int | None:
        """Return a field's value where all of its bits count."""
        field = FIELDS[name]
        if (self.mask >> field.shift) & field.full != field.full:
            return None
        return (self.key >> field.shift) & field.full

    def fields(self) -> MatchFields:
        """Return it field by field, in the order of ovs-ofctl(8); to be read again by `read_match`."""
        found = MatchFields(self)
        ranges = {name: f"{first}-{last}" for name, first, last in self.ranges}
        tagged = bool(self.key >> FIELDS["vlan_tci"].shift & PRESENT)
        shown = _shown(self.mask, self.value("dl_type"), self.value("nw_proto"), tagged)
        if self.in_port is not None or ranges:
            names = {*ranges, *(field.name for field, _ in shown), *(["in_port"] if self.in_port is not None else [])}
            found.update(dict.fromkeys(sorted(names, key=_ORDER.__getitem__), 0))
        if self.in_port is not None:
            found["in_port"] = self.in_port
        found.update(ranges)
        for field, mask in shown:
            found[field.name] = field.show(field, (self.key >> field.shift) & mask, mask)
        return found

    @property
    def size(self) -> int:
        """How many entries it takes."""
        return math.prod(len(range_masks(first, last)) for _, first, last in self.ranges)

    def entries(self) -> Iterator[tuple[int, int]]:
        """Give the keys and masks that together are this match."""
        pairs = [(self.key, self.mask | (_FULL_IN_PORT if self.in_port is not None else 0))]
        for name, first, last in self.ranges:
            shift = FIELDS[name].shift
            masks = range_masks(first, last)
            pairs = [(key | v << shift, mask | m << shift) for key, mask in pairs for v, m in masks]
        return iter(pairs)


_BY_LENGTH = sorted(SHORTHANDS.items(), key=lambda item: item[1][1] is None)  # those with a protocol first


class MatchFields(dict[str, str | int]):
    """A match field by field, and what it was made from."""

    __slots__ = ("match",)

    def __init__(self, match: Match) -> None:
        """Begin without fields."""
        self.match = match

    def text(self) -> str:
        """Return it as ovs-ofctl(8) prints it: "tcp,in_port=vm1,tp_dst=80"; "" matches every frame."""
        kind, protocol = self.match.value("dl_type"), self.get("nw_proto")
        for name, pair in _BY_LENGTH:
            if kind == pair[0] and pair[1] in (None, protocol):
                said = ("dl_type",) if pair[1] is None else ("dl_type", "nw_proto")
                return ",".join([name, *(f"{key}={value}" for key, value in self.items() if key not in said)])
        return ",".join(f"{key}={value}" for key, value in self.items())


@functools.lru_cache(maxsize=1024)
def _shown(mask: int, kind: int | None, protocol: int | None, tagged: bool) -> tuple[tuple[Field, int], ...]:
    """Return the fields that a mask looks at, in order, and the bits of each. `tagged`: the key has a VLAN tag."""
    found = []
    for name in sorted(FIELDS, key=_ORDER.__getitem__):
        field = FIELDS[name]
        bits = (mask >> field.shift) & ((1 << field.bits) - 1)
        if bits and _lacks(name, kind, protocol) is None and _is_named(name, tagged, bits):
            found.append((field, bits))
    return tuple(found)


def _is_named(name: str, tagged: bool, mask: int) -> bool:
    """Return whether bits of vlan_tci, which three fields share, are this one's; of all other fields they are."""
    if name not in ("dl_vlan", "dl_vlan_pcp", "vlan_tci"):
        return True
    parts = tagged and mask in (0x1FFF, 0xF000, 0xFFFF)
    wanted = {"dl_vlan": 0x0FFF, "dl_vlan_pcp": 0xE000}.get(name)
    return not parts if wanted is None else parts and mask & wanted == wanted


@functools.lru_cache(maxsize=1024)
def range_masks(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Return the fewest values and masks, of 16 bits, that together are the numbers from `first` to `last`."""
    found = []
    while first <= last:
        size = first & -first or 1 << 16
        while size > last - first + 1:
            size >>= 1
        found.append((first, 0xFFFF & ~(size - 1)))
        first += size
    return tuple(found)


# ---- reading ----


def read_match(given: Mapping[str, object]) -> Match:
    """Return the match that these fields and values say; InvalidDocument with every error, each at its field."""
    if len(given) > MAX_FIELDS:
        raise InvalidDocument([FieldError((), f"has {len(given)} fields, and there are {MAX_FIELDS}: leave some out")])
    errors: list[FieldError] = []
    in_port: str | None = None
    values: dict[str, tuple[int, int]] = {}
    ranges: dict[str, tuple[int, int]] = {}
    for name, value in given.items():
        try:
            if name == "in_port":
                in_port = _port_name(value)
            elif name in FIELDS:
                _read_field(FIELDS[name], _plain_text(value), values, ranges)
            else:
                raise BadValue(unknown_field(str(name)))
        except BadValue as error:
            errors.append(FieldError((str(name),), str(error)))
    known = values.keys() | ranges.keys()
    errors += _misplaced(known, given, values)
    if errors:
        raise InvalidDocument(errors)
    key = mask = 0
    for name, (value, bits) in values.items():
        key |= value << FIELDS[name].shift
        mask |= bits << FIELDS[name].shift
    return Match(in_port, key, mask, tuple((name, *ranges[name]) for name in ("tp_src", "tp_dst") if name in ranges))


def _plain_text(value: object) -> str:
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise BadValue(f"is longer than {LONGEST} characters, which no value is")
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadValue("must be text or a whole number")


def _port_name(value: object) -> str:
    if not isinstance(value, str) or NAME.fullmatch(value) is None:
        raise BadValue("must be the name of a port: names, not numbers, say which one")
    return value


def _read_field(
    field: Field, text: str, values: dict[str, tuple[int, int]], ranges: dict[str, tuple[int, int]]
) -> None:
    """Put what a field wants into `values`, or, where that takes several masks, into `ranges`."""
    pair = _RANGE.fullmatch(text)
    if pair is None:
        values[field.name] = field.read(field, text)
        return
    if field.name not in ("tp_src", "tp_dst"):
        raise BadValue("can't be a range: ranges are for tp_src and tp_dst")
    first, last = int(pair[1]), int(pair[2])
    if not first <= last <= 65535:
        raise BadValue("must be a range from 0 to 65535, the lower number first")
    masks = range_masks(first, last)
    if len(masks) == 1:
        values[field.name] = masks[0]
    else:
        ranges[field.name] = first, last


def unknown_field(name: str) -> str:
    """Return what is to be said of a field that isn't there."""
    if name in SHORTHANDS:
        kind, protocol = SHORTHANDS[name]
        more = "" if protocol is None else f' and "nw_proto": {protocol}'
        return f'is of OVS text: write "dl_type": "0x{kind:04x}"{more}'
    if name in SYNONYMS:
        return f"isn't a field here: write `{SYNONYMS[name]}`, which is the same"
    if name in FOREIGN or _FOREIGN_RUNS.fullmatch(name):
        return f"`{name}` of Open vSwitch is not available in this switch: leave it out"
    close = difflib.get_close_matches(name[:LONGEST], [*FIELDS, "in_port"], n=1)
    return f"unknown field: did you mean `{close[0]}`?" if close else f"unknown field: there are {', '.join(_ORDER)}"


# ---- what goes together ----


def _misplaced(
    names: set[str], given: Mapping[str, object], values: dict[str, tuple[int, int]]
) -> Iterator[FieldError]:
    """Give the errors of fields that don't go with the others, once each of them is right by itself."""
    kind, protocol = _exact(values, "dl_type"), _exact(values, "nw_proto")
    wrong = set(given) - names  # what these say isn't known, so nothing is said of what needs them
    if wrong & {"dl_type", "nw_proto"}:
        return
    if kind in _ARP:
        protocol = None
    for name in FIELDS:
        if name not in names:
            continue
        own = _alias(name, kind, protocol)
        if own != name and own in names:
            yield FieldError((name,), f"is the same as `{own}` here: keep one")
        elif own != name and own in ("icmp_type", "icmp_code"):
            value, mask = values.get(name, (0, 0))
            if mask != 0xFFFF or value > 255:
                yield FieldError((name,), f"is `{own}` here, which is one number from 0 to 255")
        elif (missing := _lacks(own, kind, protocol)) is not None:
            yield FieldError((name,), f"needs {missing}")
        elif name == "nd_target" and not wrong & {"icmp_type", "icmp_code", "tp_src", "tp_dst"}:
            yield from _discovery(values)
        elif name in ("tp_src", "tp_dst", "tcp_flags", "icmp_type", "icmp_code") and values.get("nw_frag") == (3, 3):
            yield FieldError((name,), "is in the first fragment only: leave out `nw_frag` later, or this")
    for name in ("dl_vlan", "dl_vlan_pcp"):
        if name in names and "vlan_tci" in names:
            yield FieldError((name,), "is a part of `vlan_tci`: keep one")
    if "dl_vlan_pcp" in names and values.get("dl_vlan", (PRESENT, 0))[0] & PRESENT == 0:
        yield FieldError(("dl_vlan_pcp",), "is of a tag, and `dl_vlan` 0xffff says that there is none: keep one")


def _discovery(values: dict[str, tuple[int, int]]) -> Iterator[FieldError]:
    """Give what is wrong where a flow is to look at the target of neighbour discovery (RFC 4861)."""
    kind = values.get("icmp_type", values.get("tp_src", (-1, 0)))[0]
    code = values.get("icmp_code", values.get("tp_dst", (0, 0)))[0]
    if kind not in (135, 136) or code != 0:
        yield FieldError(("nd_target",), "needs `icmp_type` 135 or 136, and no other `icmp_code` than 0")


def _exact(values: dict[str, tuple[int, int]], name: str) -> int | None:
    return values[name][0] if name in values else None


def _alias(name: str, kind: int | None, protocol: int | None) -> str:
    """Return the name that a field has in frames of this EtherType and protocol."""
    if kind in _ARP:
        return _IN_ARP.get(name, name)
    return _IN_ICMP.get(name, name) if (kind, protocol) in _ICMP else name


def _lacks(name: str, kind: int | None, protocol: int | None) -> str | None:
    """Return, in words, which other fields a field needs, where it doesn't have them."""
    match name:
        case "nw_src" | "nw_dst":
            return None if kind == IPV4 else "`dl_type` 0x0800 (in text: ip)"
        case "ipv6_src" | "ipv6_dst":
            return None if kind == IPV6 else "`dl_type` 0x86dd (in text: ipv6)"
        case "nw_proto" | "nw_tos" | "nw_ttl" | "nw_frag":
            return None if kind in _IP else "`dl_type` 0x0800 or 0x86dd (in text: ip, ipv6)"
        case "arp_op" | "arp_spa" | "arp_tpa" | "arp_sha" | "arp_tha":
            return None if kind in _ARP else "`dl_type` 0x0806 or 0x8035 (in text: arp, rarp)"
        case "tp_src" | "tp_dst":
            known = kind in _IP and protocol in _PORTS
            return None if known else "a protocol with ports: `nw_proto` 6, 17 or 132 (in text: tcp, udp, sctp)"
        case "tcp_flags":
            known = kind in _IP and protocol == 6
            return None if known else "`nw_proto` 6 (in text: tcp, tcp6)"
        case "icmp_type" | "icmp_code":
            return None if (kind, protocol) in _ICMP else "ICMP or ICMPv6 (in text: icmp, icmp6)"
        case "nd_target":
            return None if (kind, protocol) == (IPV6, 58) else "ICMPv6 (in text: icmp6)"
    return None
