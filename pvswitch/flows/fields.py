# SPDX-License-Identifier: Apache-2.0
"""What a flow can match: a table of the fields, and their values as text, as JSON and as numbers.

The core compares twelve words of 64 bits (see struct pvs_flow_conf); here they are one number of 768 bits, the first
word highest, so that a field is a shift and a width. Values are those of ovs-fields(7), written as ovs-ofctl(8) prints
them. Used by `match` only, and by who shows a key field by field (`FIELDS`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

WORDS = 12  # PVS_FLOW_WORDS
Value = tuple[int, int]  # a value, and a mask whose bits count


class BadValue(ValueError):
    """A value can't be read; the sentence follows the name of its field."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field: where it is in a key, and how its values are written."""

    name: str
    shift: int
    bits: int
    read: Callable[[Field, str], Value]
    show: Callable[[Field, int, int], str | int]
    masked: bool = True  # whether it takes a mask
    top: int = -1  # the largest value; -1: what its bits hold

    @property
    def full(self) -> int:
        """The mask of an exact value."""
        return 0xFFF if self.name == "tcp_flags" else (1 << self.bits) - 1

    @property
    def largest(self) -> int:
        """The largest value."""
        return self.full if self.top < 0 else self.top


# ---- numbers ----

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
"""Of a port, a meter or a mirror."""
LONGEST = 128
"""Characters of a value, or of an action: more than any that is right has."""

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19}")


def number(text: str, top: int) -> int:
    """Return a decimal or hexadecimal number from 0 to `top`; BadValue."""
    if _NUMBER.fullmatch(text) is None:
        raise BadValue("must be a number, like 80 or 0x50")
    value = int(text, 0)
    if value > top:
        raise BadValue(f"must be at most {top}")
    return value


def _read_number(field: Field, text: str) -> Value:
    value, slash, mask = text.partition("/")
    if slash and not field.masked:
        raise BadValue("takes no mask: leave it out")
    bits = number(mask, field.full) if slash else field.full
    return number(value, field.largest) & bits, bits


def _show_decimal(field: Field, value: int, mask: int) -> str | int:
    return value if mask == field.full else f"{value:#x}/{mask:#x}"


def _show_hex(field: Field, value: int, mask: int) -> str:
    return f"{value:#x}" if mask == field.full else f"{value:#x}/{mask:#x}"


def _show_hex4(field: Field, value: int, mask: int) -> str:
    return f"0x{value:04x}" if mask == field.full else f"0x{value:04x}/0x{mask:04x}"


def _read_tos(field: Field, text: str) -> Value:
    value, _ = _read_number(field, text)
    if value & 3:
        raise BadValue("must be a multiple of 4: its two lowest bits are ECN, which flows don't look at")
    return value, 0xFC


def _show_tos(_: Field, value: int, __: int) -> int:
    return value


# ---- addresses ----

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}")


def mac_number(text: str) -> int:
    """Return a MAC address as a number, its first byte highest; BadValue."""
    if _MAC.fullmatch(text) is None:
        raise BadValue("must be a MAC address like 52:54:00:12:34:56")
    return int(text.replace(":", "").replace("-", ""), 16)


def mac_text(value: int) -> str:
    """Return a number as a MAC address."""
    return value.to_bytes(6, "big").hex(":")


def ipv4_number(text: str) -> int:
    """Return an IPv4 address as a number; BadValue."""
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
    except (OSError, ValueError):
        raise BadValue("must be an IPv4 address like 192.0.2.1") from None


def ipv4_text(value: int) -> str:
    """Return a number as an IPv4 address."""
    return socket.inet_ntop(socket.AF_INET, value.to_bytes(4, "big"))


def _read_mac(field: Field, text: str) -> Value:
    value, slash, mask = text.partition("/")
    bits = mac_number(mask) if slash else field.full
    return mac_number(value) & bits, bits


def _show_mac(field: Field, value: int, mask: int) -> str:
    return mac_text(value) if mask == field.full else f"{mac_text(value)}/{mac_text(mask)}"


def _prefix_mask(text: str, bits: int) -> int:
    """Return the mask of a prefix length."""
    length = number(text, bits)
    return ((1 << length) - 1) << (bits - length)


def _prefix_length(mask: int, bits: int) -> int | None:
    """Return the length of a prefix whose mask this is; None: it is none."""
    host = mask ^ ((1 << bits) - 1)
    return bits - host.bit_length() if host & (host + 1) == 0 else None


def _read_ipv4(field: Field, text: str) -> Value:
    value, slash, mask = text.partition("/")
    bits = field.full
    if slash:
        bits = ipv4_number(mask) if "." in mask else _prefix_mask(mask, 32)
    return ipv4_number(value) & bits, bits


def _show_ipv4(_: Field, value: int, mask: int) -> str:
    return _show_address(ipv4_text, 32, value, mask)


def _ipv6_number(text: str) -> int:
    try:
        if "%" in text:
            raise ValueError
        return int(ipaddress.IPv6Address(text))
    except ValueError:
        raise BadValue("must be an IPv6 address like 2001:db8::1") from None


def _read_ipv6(field: Field, text: str) -> Value:
    value, slash, mask = text.partition("/")
    bits = field.full
    if slash:
        bits = _ipv6_number(mask) if ":" in mask else _prefix_mask(mask, 128)
    return _ipv6_number(value) & bits, bits


def _show_ipv6(_: Field, value: int, mask: int) -> str:
    return _show_address(lambda number: str(ipaddress.IPv6Address(number)), 128, value, mask)


def _show_address(show: Callable[[int], str], bits: int, value: int, mask: int) -> str:
    length = _prefix_length(mask, bits)
    if length == bits:
        return show(value)
    return f"{show(value)}/{show(mask) if length is None else length}"


# ---- words ----

_FRAGMENTS = {"no": (0, 3), "yes": (1, 1), "first": (1, 3), "later": (3, 3), "not_later": (0, 2)}
_FRAGMENT_WORDS = {bits: word for word, bits in _FRAGMENTS.items()}


def _read_fragment(_: Field, text: str) -> Value:
    if text not in _FRAGMENTS:
        raise BadValue(f"must be one of {', '.join(_FRAGMENTS)}")
    return _FRAGMENTS[text]


def _show_fragment(_: Field, value: int, mask: int) -> str:
    return _FRAGMENT_WORDS[value, mask]


_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]")
_FLAG_BITS = {name: 1 << i for i, name in enumerate(_FLAGS)}
_SIGNED = re.compile(r"(?:[+-](?:[a-z]+|\[[248]00\]))+")


def _flag(name: str) -> int:
    if name not in _FLAG_BITS:
        raise BadValue(f"has `{name}`: the flags are {', '.join(_FLAGS)}")
    return _FLAG_BITS[name]


def _read_flags(field: Field, text: str) -> Value:
    """Read +syn-ack (these, whatever the others), syn|ack (these and no others), or a number with a mask."""
    if text[:1].isdigit():
        return _read_number(field, text)
    if text[:1] not in ("+", "-"):
        return sum({_flag(name) for name in text.split("|")}), field.full
    if _SIGNED.fullmatch(text) is None:
        raise BadValue("must be like +syn-ack, syn|ack or 0x002/0x012")
    value = mask = 0
    for sign, name in re.findall(r"([+-])([a-z]+|\[[248]00\])", text):
        if mask & _flag(name):
            raise BadValue(f"has `{name}` twice: keep one")
        mask |= _flag(name)
        value |= _flag(name) if sign == "+" else 0
    return value, mask


def _show_flags(field: Field, value: int, mask: int) -> str | int:
    if mask == field.full:
        return "|".join(name for name, bit in _FLAG_BITS.items() if value & bit) or 0
    names = [(bit, name) for name, bit in _FLAG_BITS.items() if mask & bit]
    return "".join(f"{'+' if value & bit else '-'}{name}" for bit, name in names)


# ---- tags ----

PRESENT = 0x1000  # in vlan_tci: there is a tag
UNTAGGED = 0xFFFF  # of dl_vlan: there is none


def _read_vid(_: Field, text: str) -> Value:
    if "/" in text:
        raise BadValue("takes no mask: use vlan_tci, like 0x1000/0x1000")
    value = number(text, UNTAGGED)
    if value == UNTAGGED:
        return 0, 0xFFFF
    if value > 4095:
        raise BadValue("must be from 0 to 4095, or 0xffff for frames without a tag")
    return value | PRESENT, 0x1FFF


def _show_vid(_: Field, value: int, __: int) -> int:
    return value & 0xFFF


def _read_pcp(_: Field, text: str) -> Value:
    if "/" in text:
        raise BadValue("takes no mask: use vlan_tci, like 0x9000/0x9000")
    return number(text, 7) << 13 | PRESENT, 0xF000


def _show_pcp(_: Field, value: int, __: int) -> int:
    return value >> 13


# ---- the table ----


def _at(word: int, low: int) -> int:
    return (WORDS - 1 - word) * 64 + low


IN_PORT_SHIFT = _at(0, 32)
"""Where the slot of the port stands, in 32 bits."""

# In the order of ovs-ofctl(8); `in_port` isn't here: its value is a name until it is known which slot that has.
FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("tun_id", _at(0, 0), 32, _read_number, _show_hex),
        Field("dl_vlan", _at(2, 0), 16, _read_vid, _show_vid),
        Field("dl_vlan_pcp", _at(2, 0), 16, _read_pcp, _show_pcp),
        Field("vlan_tci", _at(2, 0), 16, _read_number, _show_hex4),
        Field("dl_src", _at(2, 16), 48, _read_mac, _show_mac),
        Field("dl_dst", _at(1, 16), 48, _read_mac, _show_mac),
        Field("dl_type", _at(1, 0), 16, _read_number, _show_hex4, masked=False),
        Field("nw_src", _at(5, 0), 32, _read_ipv4, _show_ipv4),
        Field("nw_dst", _at(7, 0), 32, _read_ipv4, _show_ipv4),
        Field("ipv6_src", _at(5, 0), 128, _read_ipv6, _show_ipv6),
        Field("ipv6_dst", _at(7, 0), 128, _read_ipv6, _show_ipv6),
        Field("arp_spa", _at(5, 0), 32, _read_ipv4, _show_ipv4),
        Field("arp_tpa", _at(7, 0), 32, _read_ipv4, _show_ipv4),
        Field("nw_proto", _at(3, 56), 8, _read_number, _show_decimal, masked=False),
        Field("arp_op", _at(3, 56), 8, _read_number, _show_decimal, masked=False),
        Field("arp_sha", _at(8, 16), 48, _read_mac, _show_mac),
        Field("arp_tha", _at(9, 16), 48, _read_mac, _show_mac),
        Field("nw_tos", _at(3, 48), 8, _read_tos, _show_tos, masked=False),
        Field("nw_ttl", _at(3, 40), 8, _read_number, _show_decimal, masked=False),
        Field("nw_frag", _at(3, 32), 8, _read_fragment, _show_fragment),
        Field("icmp_type", _at(3, 16), 16, _read_number, _show_decimal, masked=False, top=255),
        Field("icmp_code", _at(3, 0), 16, _read_number, _show_decimal, masked=False, top=255),
        Field("tp_src", _at(3, 16), 16, _read_number, _show_decimal),
        Field("tp_dst", _at(3, 0), 16, _read_number, _show_decimal),
        Field("nd_target", _at(11, 0), 128, _read_ipv6, _show_ipv6),
        Field("tcp_flags", _at(8, 0), 16, _read_flags, _show_flags),
    )
}

SHORTHANDS: dict[str, tuple[int, int | None]] = {
    "ip": (0x0800, None),
    "icmp": (0x0800, 1),
    "tcp": (0x0800, 6),
    "udp": (0x0800, 17),
    "sctp": (0x0800, 132),
    "ipv6": (0x86DD, None),
    "icmp6": (0x86DD, 58),
    "tcp6": (0x86DD, 6),
    "udp6": (0x86DD, 17),
    "sctp6": (0x86DD, 132),
    "arp": (0x0806, None),
    "rarp": (0x8035, None),
}
"""What ovs-ofctl(8) abbreviates: the EtherType, and the protocol."""
