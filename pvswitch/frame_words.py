# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a frame in words, for who looks at drops: addresses, tags, what is inside; one line.

`summary` takes any bytes: what is cut off isn't told. Imports nothing of pvswitch.
"""

from __future__ import annotations

import ipaddress
import struct

_TAGS = (0x8100, 0x88A8)
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_TYPES = {
    _ARP: "ARP",
    0x8035: "RARP",
    0x88CC: "LLDP",
    0x8808: "PAUSE",
    0x8847: "MPLS",
    0x8863: "PPPoE",
    0x8864: "PPPoE",
}
_PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMPv6", 89: "OSPF", 132: "SCTP"}
_WITH_PORTS = (6, 17, 132)


def summary(frame: bytes) -> str:
    """Return who sends what to whom."""
    if len(frame) < 14:
        return f"{len(frame)} bytes" if frame else ""
    words = [f"{frame[6:12].hex(':')} > {frame[:6].hex(':')}"]
    at, kind = 14, _short(frame, 12)
    while kind in _TAGS and len(frame) >= at + 4:
        words.append(f"vlan {_short(frame, at) & 0xFFF}")
        at, kind = at + 4, _short(frame, at + 2)
    inside = frame[at:]
    if kind == _IPV4 and len(inside) >= 20:
        words.append(_ipv4(inside))
    elif kind == _IPV6 and len(inside) >= 40:
        words.append(_transport(inside[6], _address(inside[8:24]), _address(inside[24:40]), inside[40:]))
    elif kind == _ARP and len(inside) >= 28:
        words.append(_arp(inside))
    elif kind < 0x600:
        words.append("802.3")
    else:
        words.append(_TYPES.get(kind, f"type 0x{kind:04x}"))
    return ", ".join(words)


def _short(data: bytes, at: int) -> int:
    return int(struct.unpack_from("!H", data, at)[0])


def _address(data: bytes) -> str:
    return str(ipaddress.ip_address(data))


def _ipv4(packet: bytes) -> str:
    payload = packet[4 * (packet[0] & 0xF) :] if not _short(packet, 6) & 0x1FFF else b""
    return _transport(packet[9], _address(packet[12:16]), _address(packet[16:20]), payload)


def _transport(protocol: int, source: str, destination: str, payload: bytes) -> str:
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    if protocol not in _WITH_PORTS or len(payload) < 4:
        return f"{name} {source} > {destination}"
    if ":" in source:
        source, destination = f"[{source}]", f"[{destination}]"
    return f"{name} {source}:{_short(payload, 0)} > {destination}:{_short(payload, 2)}"


def _arp(packet: bytes) -> str:
    sender, target = _address(packet[14:18]), _address(packet[24:28])
    if _short(packet, 6) == 1:
        return f"ARP who-has {target} tell {sender}"
    return f"ARP {sender} is-at {packet[8:14].hex(':')}"
