# SPDX-License-Identifier: Apache-2.0
"""An Ethernet frame from the fields of a match: `{"dl_type": "0x0800", "nw_proto": 6, "tp_dst": 80}`.

What is not named gets a sensible value: addresses of documentation (RFC 5737, RFC 3849), TTL 64, a TCP SYN to port 80,
an ICMP echo request, an ARP request; what follows from others does (the MAC address of an IP multicast, the group of
a neighbour solicitation). Lengths and checksums are right, and a frame has 64 bytes at least. Of a value with a mask
the value counts, of a range its first: the frame is one that such a match fits. Pure; used by the API's trace and by
tests.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]

MIN_FRAME = 64
IPV4, ARP, RARP, IPV6 = 0x0800, 0x0806, 0x8035, 0x86DD
NO_TYPE = 0x05FF  # what a frame of IEEE 802.2 without SNAP has as its dl_type
ICMP, TCP, UDP, FRAGMENT, ICMP6, SCTP = 1, 6, 17, 44, 58, 132
SOLICITATION, ADVERTISEMENT = 135, 136
PRESENT = 0x1000  # in vlan_tci: there is a tag
UNTAGGED = 0xFFFF  # as dl_vlan
LATER_OFFSET = 185  # of a later fragment, in units of 8 bytes: behind a first one of 1,500 bytes
TCP_FLAGS = {name: 1 << bit for bit, name in enumerate(["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"])}
MOST = dict.fromkeys(("dl_type", "vlan_tci", "dl_vlan", "tp_src", "tp_dst", "tcp_flags", "arp_op"), 0xFFFF)
MOST["dl_vlan_pcp"] = 7
"""The largest values of fields that aren't of one byte."""
FRAGMENTS = {"yes": "first", "first": "first", "later": "later"}

_SRC_MAC, _DST_MAC, _BROADCAST = "52:54:00:00:00:01", "52:54:00:00:00:02", "ff:ff:ff:ff:ff:ff"


def build(fields: Fields) -> bytes:
    """Return the frame; ValueError names the field that can't be one."""
    given = {key: value for key, value in fields.items() if value is not None}
    kind = _dl_type(given)
    tags = _tags(given)
    room = MIN_FRAME - 14  # a tag makes a frame longer, and changes nothing behind it
    if kind in (IPV4, IPV6):
        dst, body = _ip(given, kind, room)
    elif kind in (ARP, RARP):
        dst, body = _arp(given, kind)
    else:
        dst, body = _DST_MAC, b""
    if kind < 0x600:  # a length takes the place of the type; what follows is of a spanning tree, which has no SNAP
        body = b"\x42\x42\x03".ljust(max(room, 3), b"\0")
        kind = len(body)
    head = _mac(given, "dl_dst", dst) + _mac(given, "dl_src", _SRC_MAC) + tags + struct.pack("!H", kind)
    return (head + body).ljust(MIN_FRAME, b"\0")


# ---- values


def _text(value: Any) -> str:
    """Return a value without its mask."""
    return str(value).partition("/")[0].strip()


def number(given: Fields, key: str, default: int) -> int:
    """Return a field as a number: 6, "0x0800", "80/0xfff0", "80-90"."""
    if key not in given:
        return default
    try:
        found = int(_text(given[key]).partition("-")[0], 0)
    except ValueError:
        raise ValueError(f"{key}: {given[key]!r} is not a number") from None
    most = MOST.get(key, 0xFF)
    if not 0 <= found <= most:
        raise ValueError(f"{key}: {given[key]!r} is not from 0 to {most}")
    return found


def _mac(given: Fields, key: str, default: str) -> bytes:
    text = _text(given.get(key, default))
    try:
        octets = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        octets = b""
    if len(octets) != 6:
        raise ValueError(f"{key}: {given[key]!r} is not a MAC address")
    return octets


def _address(given: Fields, key: str, default: str) -> bytes:
    version = 6 if ":" in default else 4
    try:
        address = ipaddress.ip_address(_text(given.get(key, default)))
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise ValueError(f"{key}: {given[key]!r} is not an IPv{version} address")
    return address.packed


def _flags(given: Fields) -> int:
    """Return tcp_flags, as a number or by names: "+syn-ack", "syn|ack"."""
    text = _text(given.get("tcp_flags", "syn"))
    if text[:1].isdigit():
        return number(given, "tcp_flags", 0) & 0xFFF
    signed = text if text[:1] in "+-" else "+" + text.replace("|", "+")
    wanted = 0
    for part in signed.replace("-", " -").replace("+", " +").split():
        if part[1:] not in TCP_FLAGS:
            raise ValueError(f"tcp_flags: {part[1:]!r} is not one of {', '.join(TCP_FLAGS)}")
        wanted |= TCP_FLAGS[part[1:]] if part[0] == "+" else 0
    return wanted


def _dl_type(given: Fields) -> int:
    """Return the ethertype, also where it only follows from other fields."""
    if "dl_type" in given:
        return number(given, "dl_type", 0)
    if any(key.startswith("arp_") for key in given):
        return ARP
    if "nd_target" in given or "ipv6_src" in given or "ipv6_dst" in given:
        return IPV6
    layered = ("nw_", "tp_", "icmp_", "tcp_")
    return IPV4 if any(key.startswith(layered) for key in given) else 0x88B5  # IEEE 802's for experiments


def _tags(given: Fields) -> bytes:
    """Return the tag, if there is one: by vlan_tci, or by VID and priority."""
    if "vlan_tci" in given:
        tci = number(given, "vlan_tci", 0)
        return struct.pack("!HH", 0x8100, tci & ~PRESENT & 0xFFFF) if tci & PRESENT else b""
    vid = number(given, "dl_vlan", UNTAGGED)
    if vid == UNTAGGED and "dl_vlan_pcp" not in given:
        return b""
    return struct.pack("!HH", 0x8100, number(given, "dl_vlan_pcp", 0) << 13 | (0 if vid == UNTAGGED else vid))


# ---- what is behind the Ethernet header


def _arp(given: Fields, kind: int) -> tuple[str, bytes]:
    """Return where it goes, and an ARP or RARP packet."""
    operation = number(given, "arp_op", number(given, "nw_proto", 3 if kind == RARP else 1))
    asks = operation % 2 == 1
    src = _mac(given, "dl_src", _SRC_MAC).hex(":")
    dst = _mac(given, "dl_dst", _BROADCAST if asks else _DST_MAC).hex(":")
    knows = {**{"arp_spa": "192.0.2.1", "arp_tpa": "192.0.2.2"}, **_renamed(given, nw_src="arp_spa", nw_dst="arp_tpa")}
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation & 0xFFFF)
    body += _mac(given, "arp_sha", src) + _address({**knows, **given}, "arp_spa", "192.0.2.1")
    unknown = "00:00:00:00:00:00" if kind == ARP else src  # RARP asks for the address of a MAC address
    body += _mac(given, "arp_tha", unknown if asks else dst) + _address({**knows, **given}, "arp_tpa", "192.0.2.2")
    return dst, body


def _renamed(given: Fields, **names: str) -> dict[str, Any]:
    return {new: given[old] for old, new in names.items() if old in given}


def _ip(given: Fields, kind: int, room: int) -> tuple[str, bytes]:
    """Return where it goes, and an IPv4 or IPv6 packet of `room` bytes at least."""
    proto = number(given, "nw_proto", _proto(given, kind))
    if kind == IPV4:
        src, dst = _address(given, "nw_src", "192.0.2.1"), _address(given, "nw_dst", "192.0.2.2")
    else:
        src = _address(given, "ipv6_src", "2001:db8::1")
        dst = _address(given, "ipv6_dst", str(ipaddress.IPv6Address(_ipv6_dst(given, proto))))
    fragment = FRAGMENTS.get(_text(given.get("nw_frag", "no")))
    size = (20 if kind == IPV4 else 40) + (8 if fragment and kind == IPV6 else 0)
    if fragment == "later":
        body = bytes(max(8, room - size))
    else:
        least = max(0, room - size)
        body = _l4(given, kind, proto, src + dst, max(24, (least + 7) & ~7) if fragment else least)
    header = _ipv4 if kind == IPV4 else _ipv6
    return _ip_mac(dst), header(given, proto, src + dst, body, fragment)


def _proto(given: Fields, kind: int) -> int:
    """Return the protocol where none is named: that of the fields that are, else UDP."""
    if "nd_target" in given or any(key.startswith("icmp_") for key in given):
        return ICMP if kind == IPV4 else ICMP6
    return TCP if "tcp_flags" in given else UDP


def _ipv6_dst(given: Fields, proto: int) -> bytes:
    """Return a destination: of a solicitation, the group of the address that it asks for (RFC 4291)."""
    if proto == ICMP6 and number(given, "icmp_type", SOLICITATION if "nd_target" in given else 0) == SOLICITATION:
        target = _address(given, "nd_target", "2001:db8::2")
        return ipaddress.IPv6Address("ff02::1:ff00:0").packed[:13] + target[13:]
    return ipaddress.IPv6Address("2001:db8::2").packed


def _ip_mac(dst: bytes) -> str:
    """Return the MAC address that goes with an IP address: that of its group (RFC 1112, RFC 2464), or any host's."""
    if len(dst) == 16:
        return (b"\x33\x33" + dst[12:]).hex(":") if dst[0] == 0xFF else _DST_MAC
    if dst == b"\xff" * 4:
        return _BROADCAST
    if dst[0] >> 4 != 14:
        return _DST_MAC
    return (b"\x01\x00\x5e" + bytes([dst[1] & 0x7F]) + dst[2:]).hex(":")


def _ipv4(given: Fields, proto: int, addresses: bytes, body: bytes, fragment: str | None) -> bytes:
    flags = {None: 0x4000, "first": 0x2000, "later": LATER_OFFSET}[fragment]  # don't fragment; more fragments
    tos, ttl = number(given, "nw_tos", 0), number(given, "nw_ttl", 64)
    head = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(body), 1, flags, ttl, proto, 0) + addresses
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def _ipv6(given: Fields, proto: int, addresses: bytes, body: bytes, fragment: str | None) -> bytes:
    if fragment is not None:
        place = LATER_OFFSET << 3 if fragment == "later" else 1
        body, proto = struct.pack("!BBHI", proto, 0, place, 1) + body, FRAGMENT
    kind = number(given, "icmp_type", SOLICITATION if "nd_target" in given else 128)
    hops = 255 if proto == ICMP6 and 133 <= kind <= 137 else 64  # RFC 4861: a neighbour's, and from no router
    tos, ttl = number(given, "nw_tos", 0), number(given, "nw_ttl", hops)
    return struct.pack("!IHBB", 6 << 28 | tos << 20, len(body), proto, ttl) + addresses + body


# ---- layer 4


def _l4(given: Fields, kind: int, proto: int, addresses: bytes, room: int) -> bytes:
    """Return the packet's body, with right checksums, of `room` bytes at least."""
    if proto in (ICMP, ICMP6) and (proto == ICMP) == (kind == IPV4):
        return _icmp(given, proto, addresses, room)
    ports = struct.pack("!HH", number(given, "tp_src", 49152), number(given, "tp_dst", 80 if proto == TCP else 9))
    if proto == SCTP:
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)  # INIT
        body = ports + bytes(8) + chunk
        return body[:8] + struct.pack("<I", crc32c(body)) + body[12:] + bytes(max(0, room - len(body)))
    if proto == TCP:
        head = ports + struct.pack("!IIHHHH", 1, 0, 5 << 12 | _flags(given), 65535, 0, 0)
        return _summed(head.ljust(room, b"\0"), 16, proto, addresses)
    if proto == UDP:
        head = (ports + bytes(4)).ljust(max(room, 8), b"\0")
        return _summed(head[:4] + struct.pack("!H", len(head)) + head[6:], 6, proto, addresses)
    return bytes(max(room, 8))


def _icmp(given: Fields, proto: int, addresses: bytes, room: int) -> bytes:
    echo = 8 if proto == ICMP else SOLICITATION if "nd_target" in given else 128
    kind = number(given, "icmp_type", number(given, "tp_src", echo)) & 0xFF
    code = number(given, "icmp_code", number(given, "tp_dst", 0)) & 0xFF
    head = struct.pack("!BBHHH", kind, code, 0, 1, 1)
    if proto == ICMP6 and kind in (SOLICITATION, ADVERTISEMENT):
        asks = kind == SOLICITATION
        head = struct.pack("!BBHI", kind, code, 0, 0 if asks else 0x60000000)  # solicited, override
        head += _address(given, "nd_target", "2001:db8::2")
        head += bytes([1 if asks else 2, 1]) + _mac(given, "dl_src", _SRC_MAC)  # the option with its own MAC address
    else:
        head = head.ljust(room, b"\0")
    return _summed(head, 2, proto, addresses if proto == ICMP6 else b"")


def _summed(body: bytes, at: int, proto: int, addresses: bytes) -> bytes:
    """Return a body with the checksum that it has at `at`; with `addresses` a pseudo header counts in."""
    pseudo = addresses + struct.pack("!II", len(body), proto) if addresses else b""
    found = checksum(pseudo + body)
    if proto == UDP and found == 0:
        found = 0xFFFF  # 0 would say that there is none
    return body[:at] + struct.pack("!H", found) + body[at + 2 :]


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    """Return the checksum of SCTP (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for octet in data:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
