# SPDX-License-Identifier: Apache-2.0
"""The virtio-net header as a guest reads and writes it (virtio 1.2, 5.1.6).

Constants and one dataclass; anyone may import it.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from enum import IntEnum

NEEDS_CSUM = 1
"""Flag: the checksum from `csum_start` on is not finished; it holds the pseudo header's sum."""
DATA_VALID = 2
"""Flag: the checksum was seen to be right."""
GSO_ECN = 0x80
"""Bit beside a TCP type: the first segment only gets CWR."""

_FORMAT = struct.Struct("<BBHHHHH")


class Gso(IntEnum):
    """What kind of frame is to be cut into segments: `gso_type`."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


@dataclass(frozen=True, slots=True)
class NetHeader:
    """A net header; offsets and sizes in bytes. `num_buffers` means something in received frames only."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    def pack(self, length: int) -> bytes:
        """Return it as it lies before a frame; `length` is 12, or 10 without `num_buffers`."""
        return _FORMAT.pack(*astuple(self))[:length]
