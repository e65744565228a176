# SPDX-License-Identifier: Apache-2.0
"""What is asked of a capture and what is said of one; what the flight recorder has seen: the bodies of the API.

Values only. Every room may import this; it imports the foundation.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from pvswitch.bpf import MAX_EXPRESSION
from pvswitch.port_model import ConfigModel
from pvswitch.values import Int, Name, Text

MAX_PORTS = 1024
MIN_SNAPLEN, MAX_SNAPLEN = 14, 65_568  # an Ethernet header; PVS_MAX_FRAME
MAX_SECONDS = 31_536_000
MAX_COUNT = 1 << 62

Direction = Literal["both", "in", "out"]
CaptureState = Literal["waiting", "running", "ended"]


class CaptureBody(ConfigModel):
    """A capture that is to begin."""

    ports: tuple[Name, ...] = Field(
        (), max_length=MAX_PORTS, description="by name, whatever becomes of them; all, those to come too, when empty"
    )
    direction: Direction = Field(
        "both", description="in: what the switch takes from the ports; out: what it sends them"
    )
    filter: Text = Field("", max_length=MAX_EXPRESSION, description="as of tcpdump, pcap-filter(7), without host names")
    snaplen: Int = Field(MAX_SNAPLEN, ge=MIN_SNAPLEN, le=MAX_SNAPLEN, description="bytes that are kept of a frame")
    max_packets: Int | None = Field(None, ge=1, le=MAX_COUNT, description="it ends with so many")
    max_bytes: Int | None = Field(None, ge=1, le=MAX_COUNT, description="it ends before frames have more bytes")
    max_seconds: Int | None = Field(None, ge=1, le=MAX_SECONDS, description="it ends after so many")

    @field_validator("ports")
    @classmethod
    def _each_once(cls, ports: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(ports))


class CaptureInfo(CaptureBody):
    """A capture that is there."""

    name: str = Field(description="its id")
    id: str = Field(description="of its path")
    state: CaptureState = Field(description="waiting for its reader, running, or ended by one of its limits")
    started: str = Field(description="RFC 3339")
    packets: int = Field(description="frames that went to the reader")
    bytes: int = Field(description="and their bytes, as far as they were kept")
    lost: int = Field(description="frames that found no room: the reader was too slow")


class _Seen(BaseModel):
    name: str = Field(description="worker-number")
    time: str = Field(description="RFC 3339")
    len: int | None = Field(None, description="of the frame; absent when it isn't known")
    vid: int | None = Field(None, description="VLAN it was in; 0: none")
    bytes: str = Field(description="the first of the frame, hexadecimal")
    summary: str = Field(description="what these bytes say, for people")


class DropRecord(_Seen):
    """A drop: what a drop counter of its port has counted."""

    port: str | None = Field(None, description="whose counter it is; absent when the port is gone for long")
    bridge: str | None = None
    in_port: str | None = Field(None, description="that the frame came by; absent when it isn't known")
    direction: Literal["rx", "tx"]
    reason: str
    count: int = Field(description="frames that it stands for: 1, or more that were lost at once")


class FrameRecord(_Seen):
    """A frame that was sampled."""

    port: str | None = Field(None, description="that it came by")
    bridge: str | None = None
    copies: int = Field(description="that left")
    out_port: str | None = Field(None, description="by which the first of them left")
    reason: str | None = Field(None, description="why it went nowhere")
