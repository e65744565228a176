# SPDX-License-Identifier: Apache-2.0
"""What offload requests ask for, and what each receiver must get: slow, obvious, made with scapy.

A `Request` is a frame whose sender left something undone, with the net header that says so. `finished` tells what a
guest with given features receives for it: frames with their net headers; results are kept, for scapy takes its time.
Segmentation: virtio 1.2, 5.1.6.2; which flags and IDs segments have: what Linux does (tcp_gso_segment,
__udp_gso_segment); checksums: scapy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from pvswitch.guest import DRIVER_FEATURES, OFFLOAD_FEATURES, Guest
from pvswitch.net_header import GSO_ECN, NEEDS_CSUM, Gso, NetHeader
from pvswitch.vhost_user.features import Feature
from tests.wire.lab import PATIENCE

LARGEST = 14 + 8 + 65_535
"""Bytes of the largest frame that is sent here: two tags and an IPv4 packet of full length."""
BUFFER = 2048
CHECKSUM_AT = {TCP: 16, UDP: 6}

PLAIN = int(DRIVER_FEATURES)
CSUM = PLAIN | Feature.CSUM | Feature.GUEST_CSUM
TSO = CSUM | Feature.HOST_TSO4 | Feature.HOST_TSO6 | Feature.GUEST_TSO4 | Feature.GUEST_TSO6
USO = CSUM | Feature.HOST_USO | Feature.GUEST_USO4 | Feature.GUEST_USO6
ALL = PLAIN | OFFLOAD_FEATURES
ABILITIES: dict[str, int] = {
    "none": PLAIN,
    "none_no_mrg": PLAIN & ~Feature.MRG_RXBUF,
    "csum": CSUM,
    "tso": TSO,
    "tso_no_mrg": TSO & ~Feature.MRG_RXBUF,
    "tso4_only": CSUM | Feature.HOST_TSO4 | Feature.GUEST_TSO4,
    "ecn": TSO | Feature.HOST_ECN | Feature.GUEST_ECN,
    "uso": USO,
    "uso6_only": CSUM | Feature.HOST_USO | Feature.GUEST_USO6,
    "all": ALL,
    "all_no_mrg": ALL & ~Feature.MRG_RXBUF,
    "all_legacy": ALL & ~Feature.VERSION_1 & ~Feature.MRG_RXBUF,
}
"""Guests by what they can do: as senders (CSUM, HOST_*) and as receivers (GUEST_*)."""


@dataclass(frozen=True)
class Request:
    """A frame as it is sent, and what its sender says of it."""

    frame: bytes
    header: NetHeader

    def needs(self) -> int:
        """The features without which a guest must not send this."""
        return Feature.CSUM | _needs(self, "HOST")

    def with_header(self, **changes: int) -> Request:
        """The same frame with another header."""
        return replace(self, header=replace(self.header, **changes))


def _needs(request: Request, side: str) -> int:
    gso = request.header.gso_type
    ecn = Feature[f"{side}_ECN"] if gso & GSO_ECN else 0
    match gso & ~GSO_ECN:
        case Gso.TCPV4:
            return Feature[f"{side}_TSO4"] | ecn
        case Gso.TCPV6:
            return Feature[f"{side}_TSO6"] | ecn
        case Gso.UDP_L4 if side == "HOST":
            return Feature.HOST_USO
        case Gso.UDP_L4:
            return Feature.GUEST_USO6 if IPv6 in Ether(request.frame) else Feature.GUEST_USO4
        case _:
            return 0


def l4_of(packet: Packet) -> Packet:
    """The TCP or UDP header of a packet, and all behind it."""
    found: Packet = packet[TCP] if TCP in packet else packet[UDP]
    return found


def pseudo_sum(packet: Packet) -> int:
    """The ones' complement sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1), not inverted."""
    l4 = l4_of(packet)
    number = 6 if TCP in packet else 17
    length = len(bytes(l4))
    if IP in packet:
        ip = bytes(packet[IP])
        words = ip[12:20] + bytes([0, number]) + length.to_bytes(2, "big")
    else:
        ip6 = bytes(packet[IPv6])
        words = ip6[8:40] + length.to_bytes(4, "big") + bytes([0, 0, 0, number])
    total = sum(int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def rebuilt(packet: Packet) -> bytes:
    """The packet's bytes with every length and checksum computed anew."""
    packet = packet.copy()
    l4 = l4_of(packet)
    del l4.chksum
    if UDP in packet:
        del l4.len
    if IP in packet:
        del packet[IP].len
        del packet[IP].chksum
    else:
        del packet[IPv6].plen
    return bytes(packet)


@cache
def unfinished(data: bytes) -> bytes:
    """The same frame with only the pseudo header's sum where the checksum belongs."""
    packet = Ether(data)
    at = len(data) - len(bytes(l4_of(packet))) + CHECKSUM_AT[type(l4_of(packet))]
    return data[:at] + pseudo_sum(packet).to_bytes(2, "big") + data[at + 2 :]


def request(packet: Packet, gso_size: int = 0, *, ecn: bool = False) -> Request:
    """Ask for a checksum or, with a size, for segments of so many payload bytes."""
    data = rebuilt(packet)
    parsed = Ether(data)
    l4 = l4_of(parsed)
    start = len(data) - len(bytes(l4))
    header = NetHeader(flags=NEEDS_CSUM, csum_start=start, csum_offset=CHECKSUM_AT[type(l4)])
    if gso_size:
        kind = Gso.UDP_L4 if UDP in parsed else Gso.TCPV4 if IP in parsed else Gso.TCPV6
        hdr_len = len(data) - len(bytes(l4.payload))
        header = replace(header, gso_type=kind | (GSO_ECN if ecn else 0), hdr_len=hdr_len, gso_size=gso_size)
    return Request(unfinished(data), header)


@cache
def segments(asked: Request) -> list[bytes]:
    """The frames that a GSO request stands for, complete with checksums."""
    parsed = Ether(asked.frame)
    payload = bytes(l4_of(parsed).payload)
    size = asked.header.gso_size
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    made = []
    for i, part in enumerate(parts):
        one = Ether(asked.frame)
        l4 = l4_of(one)
        l4.remove_payload()
        l4.add_payload(Raw(part))
        if IP in one:
            one[IP].id = (one[IP].id + i) & 0xFFFF
        if TCP in one:
            l4.seq = (l4.seq + i * size) & 0xFFFF_FFFF
            flags = set(str(l4.flags))
            if i > 0:
                flags -= set("C")
            if i + 1 < len(parts):
                flags -= set("FP")
            l4.flags = "".join(sorted(flags))
        made.append(rebuilt(one))
    return made


@cache
def finished(asked: Request, features: int) -> list[tuple[bytes, NetHeader]]:
    """What a guest that negotiated `features` receives; num_buffers is left at 0."""
    h = asked.header
    partial = NetHeader(flags=NEEDS_CSUM, csum_start=h.csum_start, csum_offset=h.csum_offset)
    takes_sums = bool(features & Feature.GUEST_CSUM)
    payload = len(asked.frame) - h.hdr_len
    if h.gso_type == Gso.NONE or payload <= h.gso_size:
        if takes_sums:
            return [(asked.frame, partial)]
        return [(rebuilt(Ether(asked.frame)), NetHeader())]
    needs = _needs(asked, "GUEST")
    if takes_sums and features & needs == needs:
        return [(asked.frame, replace(h, flags=NEEDS_CSUM))]
    whole = segments(asked)
    if takes_sums:
        return [(unfinished(one), partial) for one in whole]
    return [(one, NetHeader()) for one in whole]


def pattern(length: int) -> Raw:
    """Payload that repeats nowhere at the sizes of segments."""
    return Raw(bytes((i * i + (i >> 8) * 7) & 0xFF for i in range(length)))


OPTIONS = [("Timestamp", (0x01020304, 0x05060708)), ("NOP", None), ("NOP", None)]


@cache
def requests(src: str, dst: str) -> dict[str, Request]:
    """Every kind of request, by name."""
    ethernet = Ether(src=src, dst=dst)
    v4 = IP(src="192.0.2.1", dst="192.0.2.2", id=0xFFFE)
    v4_options = IP(src="192.0.2.1", dst="192.0.2.2", id=7, options=b"\x94\x04\x00\x00")
    v6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
    extended = v6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]) / IPv6ExtHdrDestOpt(options=[PadN()])
    tcp = TCP(sport=1024, dport=80, seq=0xFFFF_FF00, ack=77, flags="PA")
    udp = UDP(sport=1024, dport=53)
    tag, tags = Dot1Q(vlan=7, prio=5), Dot1AD(vlan=100) / Dot1Q(vlan=200)
    return {
        # a checksum
        "tcp4": request(ethernet / v4 / tcp / pattern(1000)),
        "tcp4_odd": request(ethernet / v4 / tcp / pattern(999)),
        "tcp4_nothing": request(ethernet / v4 / TCP(sport=1, dport=2, flags="S", options=OPTIONS)),
        "udp4": request(ethernet / v4 / udp / pattern(300)),
        "udp4_zero": request(ethernet / v4 / udp / Raw(zero_sum(ethernet / v4 / udp))),
        "tcp6": request(ethernet / v6 / tcp / pattern(1440)),
        "udp6": request(ethernet / v6 / udp / pattern(1)),
        "udp6_extended": request(ethernet / extended / udp / pattern(100)),
        "tcp4_vlan": request(ethernet / tag / v4 / tcp / pattern(1460)),
        "udp4_qinq": request(ethernet / tags / v4_options / udp / pattern(1400)),
        "udp4_large": request(ethernet / v4 / udp / pattern(9000)),
        # segments
        "tso4": request(ethernet / v4 / tcp / pattern(40_000), 1448),
        "tso4_even": request(ethernet / v4 / tcp / pattern(3 * 1460), 1460),
        "tso4_one": request(ethernet / v4 / tcp / pattern(1460), 1460),
        "tso4_odd": request(ethernet / v4 / tcp / pattern(5001), 1001),
        "tso4_fin": request(ethernet / v4_options / tcp_with("FPAC", OPTIONS) / pattern(5000), 1400),
        "tso4_vlan": request(ethernet / tag / v4 / tcp / pattern(30_000), 1400),
        "tso4_largest": request(ethernet / tags / v4 / tcp / pattern(65_535 - 40), 1460),
        "tso6": request(ethernet / v6 / tcp / pattern(20_000), 1428),
        "tso6_extended": request(ethernet / tags / extended / tcp / pattern(9001), 1300),
        "tso4_ecn": request(ethernet / v4 / tcp_with("PAC", []) / pattern(5000), 1400, ecn=True),
        "tso6_ecn": request(ethernet / v6 / tcp_with("PAC", OPTIONS) / pattern(5000), 1400, ecn=True),
        "uso4": request(ethernet / v4 / udp / pattern(10_000), 1200),
        "uso6": request(ethernet / tag / v6 / udp / pattern(7001), 999),
        "uso4_small": request(ethernet / v4 / udp / pattern(64), 1),
    }


def tcp_with(flags: str, options: Sequence[tuple[str, object]]) -> TCP:
    return TCP(sport=1024, dport=80, seq=1, ack=2, flags=flags, window=500, urgptr=0, options=options)


def zero_sum(front: Packet) -> bytes:
    """Two bytes of payload that make the checksum 0, which UDP sends as 0xffff (RFC 768)."""
    data = rebuilt(front / Raw(b"\0\0"))
    checksum = Ether(data)[UDP].chksum
    return int(checksum).to_bytes(2, "big")


async def receive(guest: Guest, asked: Request, name: str) -> int:
    """Take what this request becomes for this guest, and compare; how many frames that were."""
    wanted = finished(asked, guest.features)
    for i, (data, header) in enumerate(wanted):
        got = await guest.receive(PATIENCE)
        where = f"{name}: frame {i + 1} of {len(wanted)}"
        assert got.frame == data, where + difference(got.frame, data)
        fits = -(-(guest.low.hdr_len + len(data)) // guest.low.conf.rx_buf_size)
        buffers = got.header.num_buffers
        assert got.header == replace(header, num_buffers=buffers), where
        assert buffers == (fits if guest.features & Feature.MRG_RXBUF else 1), where
    return len(wanted)


def difference(got: bytes, wanted: bytes) -> str:
    """Where two frames differ, for people."""
    if len(got) != len(wanted):
        return f": {len(got)} bytes, not {len(wanted)}"
    at = next(i for i in range(len(got)) if got[i] != wanted[i])
    return f" differs at {at}:\n{Ether(got).show2(dump=True)}\nshould be\n{Ether(wanted).show2(dump=True)}"


def sendable(guest: Guest, dst: str) -> dict[str, Request]:
    """The requests that this guest's features allow."""
    every = requests(guest.mac.hex(":"), dst)
    return {name: one for name, one in every.items() if guest.features & one.needs() == one.needs()}
