# SPDX-License-Identifier: Apache-2.0
"""Capture files: what packets a pcap or pcapng file holds, and the bytes of a pcap file to be written.

`packets` is a generator over a binary file, which it reads once, from where it stands to its end, in small pieces; of a
file that only claims to hold much, nothing more is allocated than MAX_PACKET and some tables of bounded length. All
that can be wrong with a file's content is a `CaptureError`, whatever its bytes are; what the operating system refuses
is an OSError as always. Formats: pcap of microseconds and nanoseconds in both byte orders (draft-ietf-opsawg-pcap),
pcapng with sections of both orders (draft-ietf-opsawg-pcapng). Link type Ethernet only.

Knows nothing of switches and ports; imports nothing of pvswitch. Anyone may call it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, NamedTuple

MAX_PACKET = 262_144  # MAXIMUM_SNAPLEN of libpcap
"""The longest packet whose bytes are read; of a longer one it is told only that it was there."""

ETHERNET = 1  # LINKTYPE_ETHERNET
_NS = 1_000_000_000
_PIECE = 65_536  # what is passed over at a time
_MAX_INTERFACES = 4096  # of one section of a pcapng file
_MAX_OPTIONS = 65_536  # of an interface

_PCAP_MAGIC: dict[bytes, tuple[Literal["<", ">"], int]] = {  # byte order, nanoseconds of a unit
    bytes.fromhex("d4c3b2a1"): ("<", 1000),
    bytes.fromhex("a1b2c3d4"): (">", 1000),
    bytes.fromhex("4d3cb2a1"): ("<", 1),
    bytes.fromhex("a1b23c4d"): (">", 1),
}
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6  # block types of pcapng
_SECTION_MAGIC = _SECTION.to_bytes(4, "big")  # the same in both byte orders
_ORDERS: dict[bytes, Literal["<", ">"]] = {bytes.fromhex("4d3c2b1a"): "<", bytes.fromhex("1a2b3c4d"): ">"}
_TSRESOL, _TSOFFSET = 9, 14  # options of an interface
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"\xfd7zXZ": "unxz", b"BZh": "bunzip2"}


class CaptureError(Exception):
    """A file is no capture that can be read, or is damaged; the sentence says how."""


class CaptureTruncated(CaptureError):
    """A file ends in the middle of a record; what came before was whole."""


class Packet(NamedTuple):
    """A packet of a capture. `data` is shorter than `length` where not all of it was captured, or can be given."""

    time_ns: int
    data: bytes
    length: int


# ---- reading


def packets(file: BinaryIO) -> Iterator[Packet]:
    """Give the packets of a capture in their order. Raises CaptureError, then or before the first one.

    Those longer than MAX_PACKET, and those of an interface that is no Ethernet beside one that is, come without data.
    """
    magic = file.read(4)
    if magic in _PCAP_MAGIC:
        return (yield from _pcap(file, *_PCAP_MAGIC[magic]))
    if magic == _SECTION_MAGIC:
        return (yield from _pcapng(file))
    for prefix, tool in _COMPRESSED.items():
        if magic.startswith(prefix[:4]):
            raise CaptureError(f"is compressed: unpack it with {tool}")
    raise CaptureError("is no capture: pcap and pcapng files can be read")


def starts_as_capture(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (4 at least) is meant to be a capture."""
    return head[:4] in _PCAP_MAGIC or head[:4] == _SECTION_MAGIC


def _exactly(file: BinaryIO, size: int) -> bytes:
    """Read so many bytes; `size` is bounded by the caller."""
    data = file.read(size)
    if len(data) < size:
        raise CaptureTruncated("ends in the middle of a record")
    return data


def _pass_over(file: BinaryIO, size: int) -> None:
    while size > 0:
        size -= len(_exactly(file, min(size, _PIECE)))


def _data(file: BinaryIO, size: int) -> bytes:
    """Read a packet's bytes; none of one that is too long."""
    if size <= MAX_PACKET:
        return _exactly(file, size)
    _pass_over(file, size)
    return b""


def _wrong_link(link: int) -> CaptureError:
    return CaptureError(f"holds link type {link}: only Ethernet (1) can be read, so capture on an Ethernet interface")


def _pcap(file: BinaryIO, order: str, unit_ns: int) -> Iterator[Packet]:
    head = file.read(20)
    if len(head) < 20:
        raise CaptureError("ends within its header, and is no capture")
    major, _, _, _, _, link = struct.unpack(f"{order}HHiIII", head)
    if major != 2:
        raise CaptureError(f"is a pcap file of version {major}: only version 2 can be read")
    if link & 0xFFFF != ETHERNET:  # above: whether frames end with their FCS
        raise _wrong_link(link & 0xFFFF)
    record = struct.Struct(f"{order}IIII")
    while head := file.read(record.size):
        if len(head) < record.size:
            raise CaptureTruncated("ends in the middle of a record")
        seconds, fraction, captured, length = record.unpack(head)
        yield Packet(seconds * _NS + fraction * unit_ns, _data(file, captured), length)


@dataclass(slots=True)
class _Interface:
    """What a section of a pcapng file says of an interface: a timestamp is in units of 1 / `units` seconds."""

    link: int
    snaplen: int
    units: int = 1_000_000
    offset_ns: int = 0

    def time_ns(self, high: int, low: int) -> int:
        return (high << 32 | low) * _NS // self.units + self.offset_ns


@dataclass(slots=True)
class _Section:
    """One section of a pcapng file."""

    order: str
    interfaces: list[_Interface] = field(default_factory=list)

    def unpack(self, layout: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack(self.order + layout, data)

    def interface(self, number: int) -> _Interface:
        if number >= len(self.interfaces):
            raise CaptureError(f"is damaged: a packet is of interface {number}, which the file does not describe")
        return self.interfaces[number]


def _pcapng(file: BinaryIO) -> Iterator[Packet]:
    """Read from behind the type of the first block."""
    section = _section(file)
    time_ns = 0
    while head := file.read(4):
        if len(head) < 4:
            raise CaptureTruncated("ends in the middle of a record")
        if head == _SECTION_MAGIC:
            section = _section(file)
            continue
        (kind,) = section.unpack("I", head)
        (total,) = section.unpack("I", _exactly(file, 4))
        if total < 12 or total % 4:
            raise CaptureError(f"is damaged: it has a block of {total} bytes")
        left, packet = total - 12, None
        if kind == _INTERFACE:
            left -= _describe(file, section, left)
        elif kind in _PACKET_BLOCKS:
            packet, used = _PACKET_BLOCKS[kind](file, section, left, time_ns)
            left -= used
        _end_block(file, section, left, total)
        if packet is not None:
            time_ns = packet.time_ns
            yield packet


def _end_block(file: BinaryIO, section: _Section, left: int, total: int) -> None:
    """Pass over what a block has left, and see that it ends as it begins."""
    _pass_over(file, left)
    if section.unpack("I", _exactly(file, 4)) != (total,):
        raise CaptureError("is damaged: a block does not end where it says")


def _section(file: BinaryIO) -> _Section:
    """Read a section's header from behind its type."""
    length, magic = _exactly(file, 4), _exactly(file, 4)
    if magic not in _ORDERS:
        raise CaptureError("is damaged: a section has no byte order")
    section = _Section(_ORDERS[magic])
    (total,) = section.unpack("I", length)
    if total < 28 or total % 4:
        raise CaptureError(f"is damaged: it has a section's header of {total} bytes")
    major, _ = section.unpack("HH", _exactly(file, 4))
    if major != 1:
        raise CaptureError(f"is a pcapng file of version {major}: only version 1 can be read")
    _end_block(file, section, total - 20, total)
    return section


def _describe(file: BinaryIO, section: _Section, size: int) -> int:
    """Read the description of an interface; return how many of its `size` bytes that took."""
    if size < 8:
        raise CaptureError("is damaged: the description of an interface is too short")
    if len(section.interfaces) == _MAX_INTERFACES:
        raise CaptureError(f"has more than {_MAX_INTERFACES} interfaces")
    link, _, snaplen = section.unpack("HHI", _exactly(file, 8))
    interface = _Interface(link, snaplen)
    options = _exactly(file, min(size - 8, _MAX_OPTIONS))
    at = 0
    while at + 4 <= len(options):
        code, length = section.unpack("HH", options[at : at + 4])
        value = options[at + 4 : at + 4 + length]
        if code == 0 or len(value) < length:
            break
        if code == _TSRESOL and length == 1:
            interface.units = 1 << (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == _TSOFFSET and length == 8:
            interface.offset_ns = section.unpack("q", value)[0] * _NS
        at += 4 + (length + 3 & ~3)
    section.interfaces.append(interface)
    return 8 + len(options)


def _given(file: BinaryIO, section: _Section, interface: _Interface, captured: int, room: int) -> bytes:
    """Read a packet's bytes, of which the block has `room` at most; none where they are no Ethernet frame."""
    if captured > room:
        raise CaptureError("is damaged: a packet is longer than its block")
    if interface.link != ETHERNET:
        if all(other.link != ETHERNET for other in section.interfaces):
            raise _wrong_link(interface.link)
        _pass_over(file, captured)
        return b""
    return _data(file, captured)


def _packet(file: BinaryIO, section: _Section, size: int, _: int) -> tuple[Packet, int]:
    if size < 20:
        raise CaptureError("is damaged: a packet's block is too short")
    number, high, low, captured, length = section.unpack("IIIII", _exactly(file, 20))
    interface = section.interface(number)
    data = _given(file, section, interface, captured, size - 20)
    return Packet(interface.time_ns(high, low), data, length), 20 + captured


def _old_packet(file: BinaryIO, section: _Section, size: int, _: int) -> tuple[Packet, int]:
    if size < 20:
        raise CaptureError("is damaged: a packet's block is too short")
    number, _drops, high, low, captured, length = section.unpack("HHIIII", _exactly(file, 20))
    interface = section.interface(number)
    data = _given(file, section, interface, captured, size - 20)
    return Packet(interface.time_ns(high, low), data, length), 20 + captured


def _simple_packet(file: BinaryIO, section: _Section, size: int, time_ns: int) -> tuple[Packet, int]:
    """Such a packet has no time of its own: it gets that of the one before."""
    if size < 4:
        raise CaptureError("is damaged: a packet's block is too short")
    (length,) = section.unpack("I", _exactly(file, 4))
    interface = section.interface(0)
    captured = min(length, interface.snaplen) if interface.snaplen else length
    return Packet(time_ns, _given(file, section, interface, captured, size - 4), length), 4 + captured


_PACKET_BLOCKS = {_PACKET: _packet, _OLD_PACKET: _old_packet, _SIMPLE_PACKET: _simple_packet}


# ---- writing: pcap of nanoseconds, of this machine's byte order

_RECORD = struct.Struct("=IIII")


def pcap_header() -> bytes:
    """Return how a file begins."""
    return struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, MAX_PACKET, ETHERNET)


def pcap_record_header(time_ns: int, length: int) -> bytes:
    """Return what stands before a frame of `length` bytes, MAX_PACKET at most."""
    seconds, fraction = divmod(time_ns, _NS)
    return _RECORD.pack(seconds & 0xFFFFFFFF, fraction, length, length)


def pcap_record_size(data: bytes | bytearray, at: int) -> int:
    """Return the bytes of the record that begins at a place of what is to be written."""
    return _RECORD.size + int(_RECORD.unpack_from(data, at)[2])
