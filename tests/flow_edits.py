# SPDX-License-Identifier: Apache-2.0
"""Edits of a frame by the actions of a flow, the slow and obvious way: bytes in, bytes out.

Other headers stay where they were found when the frame came, behind its first two tags; only `normal` looks again.
What a checksum covers is summed before and after, and the checksum changed by the difference: one that was right is
right again, one that was wrong is wrong by as much as before. `sums` tells from nothing but the bytes which of them are
right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address

from tests.flow_fields import IPV4, IPV6, SCTP, TCP, UDP, Headers, headers_of, number
from tests.vlans import C_TAG, S_TAG, Tag

CHECKSUM_AT = {TCP: 16, UDP: 6}
PORTS = (TCP, UDP, SCTP)


def ones_sum(data: bytes | bytearray) -> int:
    """The ones' complement sum of 16 bit words (RFC 1071), from 1 to 0xffff; 0 only of nothing but zeros."""
    total = sum(number(data[at : at + 2].ljust(2, b"\0")) for at in range(0, len(data), 2))
    return (total - 1) % 0xFFFF + 1 if total else 0


def moved_sum(checksum: int, old: bytes | bytearray, new: bytes | bytearray) -> int:
    """A checksum over data of which `old` has become `new`."""
    if old == new:
        return checksum
    total = (0xFFFF - checksum) - ones_sum(old) + ones_sum(new)
    return 0xFFFF - ((total - 1) % 0xFFFF + 1)


def crc32c(data: bytes | bytearray) -> int:
    """The checksum of SCTP (RFC 9260, appendix A), as a number whose first byte is the first one on the wire."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return number((crc ^ 0xFFFFFFFF).to_bytes(4, "little"))


class Edited:
    """A frame that is being edited."""

    def __init__(self, headers: Headers) -> None:
        self.look_at(headers)

    def look_at(self, headers: Headers) -> None:
        """It is this one from now on."""
        self.headers = headers
        self.macs = bytearray(headers.frame.macs)
        self.tags = list(headers.frame.tags)
        self.rest = bytearray(headers.frame.rest)

    def look_again(self) -> bool:
        """For `normal`: behind a tag that was taken off there may be another. False: one that is cut short."""
        if len(self.tags) < 2 and number(self.rest[:2]) in (C_TAG, S_TAG):
            headers = headers_of(self.data())
            if headers is None:
                return False
            self.look_at(headers)
        return True

    def data(self) -> bytes:
        """The frame as it is by now."""
        words = [value for tag in self.tags for value in (tag.tpid, tag.pcp << 13 | tag.dei << 12 | tag.vid)]
        return bytes(self.macs) + b"".join(word.to_bytes(2, "big") for word in words) + bytes(self.rest)

    def apply(self, word: str, argument: str) -> None:
        """Carry out an action that edits."""
        EDITS[word](self, argument)

    # ---- Ethernet, tags ----

    def _set_mac(self, at: int, mac: str) -> None:
        self.macs[at : at + 6] = bytes.fromhex(mac.replace(":", ""))

    def _push(self, tpid: str) -> None:
        """Another tag in front, of VLAN 0 and priority 0."""
        self.tags.insert(0, Tag(0, tpid=int(tpid, 0)))

    def _pop(self, _: str) -> None:
        del self.tags[:1]

    def _set_tag(self, **changes: int) -> None:
        first = self.tags.pop(0) if self.tags else Tag(0, tpid=C_TAG)
        self.tags.insert(0, first._replace(**changes))

    # ---- IP ----

    def _set_address(self, offset: int, address: str) -> None:
        at = self.headers.l3
        if self.headers.dl_type != IPV4 or at is None:
            return
        self._set_ip(offset, IPv4Address(address).packed)

    def _set_ip(self, offset: int, new: bytes) -> None:
        """Change bytes of the IPv4 header, and all checksums that cover them."""
        at = self.headers.l3
        assert at is not None
        header = bytes(self.rest[at : at + 20])
        self.rest[at + offset : at + offset + len(new)] = new
        changed = self.rest[at : at + 20]
        self._move_sum(at + 10, header, changed)
        if self.headers.l4 is not None and offset >= 12:
            self._move_transport_sum(header[12:20], changed[12:20])

    def _set_tos(self, value: str) -> None:
        at, dscp = self.headers.l3, int(value, 0) & 0xFC
        if at is None:
            return
        if self.headers.dl_type == IPV4:
            self._set_ip(1, bytes([dscp | self.rest[at + 1] & 3]))
        else:
            word = number(self.rest[at : at + 2]) & ~0x0FC0 | dscp << 4
            self.rest[at : at + 2] = word.to_bytes(2, "big")

    @property
    def ttl(self) -> int | None:
        """The time to live, or hop limit; None: it has none."""
        at = self.headers.l3
        return None if at is None else self.rest[at + (8 if self.headers.dl_type == IPV4 else 7)]

    def decrement_ttl(self) -> None:
        """One hop less; there has to be one."""
        at = self.headers.l3
        assert at is not None
        if self.headers.dl_type == IPV4:
            self._set_ip(8, bytes([self.rest[at + 8] - 1]))
        else:
            assert self.headers.dl_type == IPV6
            self.rest[at + 7] -= 1

    # ---- transport ----

    def _set_port(self, offset: int, value: str) -> None:
        at, proto = self.headers.l4, self.headers.proto
        if at is None or proto not in PORTS:
            return
        packet = self.rest[at : self.headers.end]
        old = bytes(packet[:4])
        packet[offset : offset + 2] = int(value, 0).to_bytes(2, "big")
        if proto == SCTP and not self._sctp_is_cut():
            before, after = sctp_sum(self.rest[at : self.headers.end]), sctp_sum(packet)
            packet[8:12] = (number(packet[8:12]) ^ before ^ after).to_bytes(4, "big")
        self.rest[at : self.headers.end] = packet
        self._move_transport_sum(old, bytes(packet[:4]))

    def _sctp_is_cut(self) -> bool:
        """Of a fragment the checksum can't be told: it depends on what isn't here."""
        return self.headers.fields["nw_frag"] != 0

    def _move_sum(self, at: int, old: bytes | bytearray, new: bytes | bytearray) -> None:
        """The header's checksum; both with the same checksum in them, which cancels out."""
        self.rest[at : at + 2] = moved_sum(number(self.rest[at : at + 2]), old, new).to_bytes(2, "big")

    def _move_transport_sum(self, old: bytes | bytearray, new: bytes | bytearray) -> None:
        at, proto = self.headers.l4, self.headers.proto
        if at is None or proto not in CHECKSUM_AT:
            return
        place = at + CHECKSUM_AT[proto]
        if proto == UDP and number(self.rest[place : place + 2]) == 0:
            return
        self._move_sum(place, old, new)
        if proto == UDP and number(self.rest[place : place + 2]) == 0:
            self.rest[place : place + 2] = b"\xff\xff"


EDITS: Mapping[str, Callable[[Edited, str], None]] = {
    "push_vlan": Edited._push,
    "pop_vlan": Edited._pop,
    "set_vlan_vid": lambda frame, value: frame._set_tag(vid=int(value, 0)),
    "set_vlan_pcp": lambda frame, value: frame._set_tag(pcp=int(value, 0)),
    "mod_dl_dst": lambda frame, value: frame._set_mac(0, value),
    "mod_dl_src": lambda frame, value: frame._set_mac(6, value),
    "mod_nw_src": lambda frame, value: frame._set_address(12, value),
    "mod_nw_dst": lambda frame, value: frame._set_address(16, value),
    "mod_nw_tos": Edited._set_tos,
    "mod_tp_src": lambda frame, value: frame._set_port(0, value),
    "mod_tp_dst": lambda frame, value: frame._set_port(2, value),
}


def sctp_sum(packet: bytes | bytearray) -> int:
    """What the checksum of an SCTP packet should be."""
    return crc32c(bytes(packet[:8]) + bytes(4) + bytes(packet[12:]))


def sums(frame: Edited) -> dict[str, bool]:
    """Which checksums a frame has, and whether they are right; of fragments only the header's can be told."""
    headers = frame.headers
    if headers.l3 is None:
        return {}
    packet = frame.rest[headers.l3 : headers.end]
    found = {}
    if headers.dl_type == IPV4:
        found["header"] = ones_sum(packet[: (packet[0] & 15) * 4]) == 0xFFFF
    if headers.l4 is None or headers.fields["nw_frag"]:
        return found
    segment, proto = frame.rest[headers.l4 : headers.end], headers.proto
    if proto == SCTP:
        found["transport"] = number(segment[8:12]) == sctp_sum(segment)
    elif proto == UDP and segment[6:8] == b"\0\0":
        found["none"] = True
    elif proto in CHECKSUM_AT:
        addresses = packet[12:20] if headers.dl_type == IPV4 else packet[8:40]
        pseudo = addresses + bytes([0, proto]) + len(segment).to_bytes(4, "big")
        found["transport"] = ones_sum(pseudo + segment) == 0xFFFF
    return found
