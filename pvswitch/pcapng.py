# SPDX-License-Identifier: Apache-2.0
"""pcapng (draft-ietf-opsawg-pcapng) as it is streamed: the blocks of a live capture, and a count of what passes by.

Each function returns the bytes of one block, little-endian, whole and padded; times are nanoseconds since 1970. The
stream is one section; an interface is described before its first packet, and numbered by the order of descriptions.
`Tally` reads the blocks of a stream as they pass by, and counts: it is for who only hands the bytes on.

Capture files of others are read by `pvswitch.capture_file`. Imports nothing of pvswitch; anyone may call it.
"""

from __future__ import annotations

import struct

CONTENT_TYPE = "application/x-pcapng"

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_ETHERNET = 1  # LINKTYPE_ETHERNET
_COMMENT = 1  # opt_comment, of every block
_USERAPPL = 4  # of the section
_IF_NAME, _IF_TSRESOL, _IF_FILTER = 2, 9, 11
_EPB_FLAGS, _EPB_DROPCOUNT = 2, 4
_ISB_START, _ISB_END, _ISB_RECEIVED, _ISB_DROPPED, _ISB_DELIVERED = 2, 3, 4, 5, 8
_INBOUND, _OUTBOUND = 1, 2
_MAX_BLOCK = 1 << 20

_EDGE = struct.Struct("<II")  # type and length
_LENGTH = struct.Struct("<I")
_OPTION = struct.Struct("<HH")
_COUNT = struct.Struct("<Q")
_TIME = struct.Struct("<II")
_PACKET_HEAD = struct.Struct("<IIIII")
_END = b"\0\0\0\0"
_FLAGS = {
    inbound: _OPTION.pack(_EPB_FLAGS, 4) + _LENGTH.pack(_INBOUND if inbound else _OUTBOUND) for inbound in (True, False)
}


def section(application: str) -> bytes:
    """Return how a stream begins; its length isn't known before its end."""
    head = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    return _block(_SECTION, head + _text(_USERAPPL, application) + _END)


def interface(name: str, snaplen: int, expression: str = "") -> bytes:
    """Return the description of an interface: Ethernet, times in nanoseconds; `expression` is the capture's filter."""
    options = _text(_IF_NAME, name) + _option(_IF_TSRESOL, b"\x09")
    if expression:
        options += _option(_IF_FILTER, b"\0" + expression.encode())  # 0: as libpcap writes filters
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snaplen) + options + _END)


def packet(
    number: int, time_ns: int, data: bytes, length: int, *, inbound: bool, lost: int = 0, comment: str = ""
) -> bytes:
    """Return a packet of interface `number`: the first bytes of `length`; `lost` ones are missing before it."""
    head = _PACKET_HEAD.pack(number, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length)
    options = _FLAGS[inbound]
    if lost:
        options += _option(_EPB_DROPCOUNT, _COUNT.pack(lost))
    if comment:
        options += _text(_COMMENT, comment)
    return _block(_PACKET, b"".join((head, data, b"\0" * (-len(data) % 4), options, _END)))


def statistics(number: int, start_ns: int, end_ns: int, *, delivered: int, lost: int) -> bytes:
    """Return what became of the frames of an interface: `delivered` are in the stream, `lost` found no room."""
    options = b"".join(
        (
            _option(_ISB_START, _time(start_ns)),
            _option(_ISB_END, _time(end_ns)),
            _option(_ISB_RECEIVED, _COUNT.pack(delivered + lost)),
            _option(_ISB_DROPPED, _COUNT.pack(lost)),
            _option(_ISB_DELIVERED, _COUNT.pack(delivered)),
        )
    )
    return _block(_STATISTICS, _LENGTH.pack(number) + _time(end_ns) + options + _END)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return b"".join((_EDGE.pack(kind, length), body, _LENGTH.pack(length)))


def _option(code: int, value: bytes) -> bytes:
    return b"".join((_OPTION.pack(code, len(value)), value, b"\0" * (-len(value) % 4)))


def _text(code: int, text: str) -> bytes:
    return _option(code, text.encode("utf-8", "replace")[:65535])


def _time(time_ns: int) -> bytes:
    return _TIME.pack(time_ns >> 32, time_ns & 0xFFFFFFFF)


class Tally:
    """Counts what passes by: packets, and those that the stream says are missing."""

    def __init__(self) -> None:
        """Begin at the begin of a stream."""
        self.packets = 0
        self.finished = False
        """Whether the stream has come to its end, with its statistics."""
        self._missing = 0  # as the packets say
        self._dropped = 0  # as the statistics say, which know those after the last packet, too
        self._buffer = bytearray()

    @property
    def lost(self) -> int:
        """Packets that found no room."""
        return max(self._missing, self._dropped)

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere. ValueError when this is no stream of the functions above."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _EDGE.size:
            kind, length = _EDGE.unpack_from(self._buffer, at)
            if not 12 <= length <= _MAX_BLOCK or length % 4:
                raise ValueError("this is no pcapng stream")
            if len(self._buffer) - at < length:
                break
            self._count(kind, self._buffer[at + 8 : at + length - 4])
            at += length
        del self._buffer[:at]

    def _count(self, kind: int, body: bytearray) -> None:
        if kind == _PACKET:
            self.packets += 1
            (captured,) = _LENGTH.unpack_from(body, 12)
            self._missing += _counted(body, _PACKET_HEAD.size + captured + -captured % 4, _EPB_DROPCOUNT)
        elif kind == _STATISTICS:
            self.finished = True
            self._dropped += _counted(body, 12, _ISB_DROPPED)


def _counted(body: bytearray, at: int, wanted: int) -> int:
    """Return the value of an option that counts; 0 where it is missing."""
    while at + _OPTION.size <= len(body):
        code, length = _OPTION.unpack_from(body, at)
        if code == 0:
            break
        if code == wanted and length == _COUNT.size:
            return int(_COUNT.unpack_from(body, at + _OPTION.size)[0])
        at += _OPTION.size + length + -length % 4
    return 0
