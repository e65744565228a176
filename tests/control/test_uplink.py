# SPDX-License-Identifier: Apache-2.0
"""What a packet socket asks of a card's driver, against a driver of the test: few kernels here have such a card."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Any

import pytest
from structlog.testing import capture_logs

from pvswitch import uplink
from pvswitch.model import AfPacketPort

LRO, OTHERS = 1 << 15, 1 << 28 | 1 << 8 | 1 << 7
PORT = AfPacketPort.model_validate({"type": "af_packet", "ifname": "eth1"})


class Value(ctypes.Structure):
    """struct ethtool_value of linux/ethtool.h."""

    _fields_ = (("cmd", ctypes.c_uint32), ("data", ctypes.c_uint32))


class Card:
    """A driver: its flags, and what it answers to an attempt to set them."""

    def __init__(self, flags: int, refusal: int = 0) -> None:
        self.flags = flags
        self.refusal = refusal
        self.attempts = 0

    def ioctl(self, _: Any, request: int, argument: bytes) -> None:
        assert request == 0x8946  # SIOCETHTOOL
        assert len(argument) == 40
        name, pointer = struct.unpack("16sP16x", argument)
        assert name.rstrip(b"\0") == b"eth1"
        value = Value.from_address(pointer)
        if value.cmd == 0x25:  # ETHTOOL_GFLAGS
            if self.flags < 0:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            value.data = self.flags
            return
        assert value.cmd == 0x26  # ETHTOOL_SFLAGS
        self.attempts += 1
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.flags = value.data


@pytest.mark.parametrize(
    ("card", "flags", "attempts", "words"),
    [
        (Card(LRO | OTHERS), OTHERS, 1, []),
        (Card(OTHERS), OTHERS, 0, []),
        (Card(-1), -1, 0, []),
        (Card(LRO, errno.EPERM), LRO, 1, ["ethtool -K eth1 lro off"]),
        (Card(LRO, errno.EOPNOTSUPP), LRO, 1, ["ethtool -K eth1 lro off"]),
    ],
    ids=["on", "off", "unknown", "forbidden", "fixed"],
)
def test_lro_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, card: Card, flags: int, attempts: int, words: list[str]
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", card.ioctl)
    with socket.socket() as sock, capture_logs() as logs:
        uplink._switch_off_lro(sock, PORT)
    assert (card.flags, card.attempts) == (flags, attempts)
    assert len(logs) == len(words)
    assert all(word in log["event"] for word, log in zip(words, logs, strict=True))
