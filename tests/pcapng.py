# SPDX-License-Identifier: Apache-2.0
"""What scapy reads in a pcapng stream."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import IO, Any, cast

from scapy.utils import RawPcapNgReader

_read = cast(Callable[[IO[bytes]], Iterable[tuple[bytes, Any]]], RawPcapNgReader)
"""Its metaclass takes files as well as names."""


def raw_packets(stream: bytes) -> list[tuple[bytes, Any]]:
    """The packets, each with what is noted of it."""
    return [*_read(io.BytesIO(stream))]
