# SPDX-License-Identifier: Apache-2.0
"""Frames on an interface of a namespace, byte for byte as on the wire: the outermost VLAN tag included.

The kernel takes that tag out of a received frame and tells it beside (packet(7), PACKET_AUXDATA); here it is put back.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Self

from pvswitch.netlink import run_in_namespace

# linux/if_packet.h, linux/if_ether.h
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3
AUXDATA = struct.Struct("=IIIHHHH")  # status, lengths, offsets, TCI, TPID
VLAN_VALID = 1 << 4
TPID_VALID = 1 << 6
ETH_P_8021Q = 0x8100
LARGEST = 1 << 17
BUFFER = 8 << 20


class RawSocket:
    """A packet socket that hears what comes to an interface and not what leaves it. Use it as `async with`."""

    def __init__(self, namespace: Path, interface: str) -> None:
        self._namespace = namespace
        self._interface = interface
        self._sock: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self._sock = await run_in_namespace(self._namespace, self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._sock is not None
        self._sock.close()

    async def send(self, frame: bytes) -> None:
        """Send a frame."""
        assert self._sock is not None
        await asyncio.get_running_loop().sock_sendall(self._sock, frame)

    async def receive(self, seconds: float = 20.0) -> bytes:
        """Return the next frame; TimeoutError."""
        assert self._sock is not None
        async with asyncio.timeout(seconds):
            while True:
                try:
                    data, ancillary, _, _ = self._sock.recvmsg(LARGEST, 256)
                except BlockingIOError:
                    await self._readable()
                    continue
                return with_tag(data, ancillary)

    async def _readable(self) -> None:
        assert self._sock is not None
        loop, fd = asyncio.get_running_loop(), self._sock.fileno()
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(fd)

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.bind((self._interface, ETH_P_ALL))
        return sock


def with_tag(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """Put back the tag that the kernel told beside the frame."""
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tci, tpid = AUXDATA.unpack(data[: AUXDATA.size])
            if status & VLAN_VALID:
                tag = struct.pack("!HH", tpid if status & TPID_VALID else ETH_P_8021Q, tci)
                return frame[:12] + tag + frame[12:]
    return frame
