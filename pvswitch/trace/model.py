# SPDX-License-Identifier: Apache-2.0
"""What a trace is asked and what it answers: the bodies of `POST /bridges/{br}/trace`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from pvswitch.model import ConfigModel
from pvswitch.values import MAX_GRE_KEY, HostAddress, Int, Name, refuse

MIN_BYTES, MAX_BYTES = 14, 65_568
"""Of a frame: an Ethernet header, and what the core takes."""


def _check_frame(value: object) -> object:
    if value is None:
        return value
    if not isinstance(value, str) or not re.fullmatch("([0-9A-Fa-f]{2})*", value):
        refuse("must be text: bytes in hexadecimal, two digits each")
    if not MIN_BYTES <= len(value) // 2 <= MAX_BYTES:
        refuse(f"has {len(value) // 2} bytes: a frame has {MIN_BYTES} to {MAX_BYTES}")
    return value


Hex = Annotated[
    str,
    BeforeValidator(
        _check_frame,
        json_schema_input_type=Annotated[
            str, Field(pattern="^([0-9A-Fa-f]{2})*$", min_length=2 * MIN_BYTES, max_length=2 * MAX_BYTES)
        ],
    ),
]
StepName = Literal[
    "parse",
    "take",
    "vlan",
    "flow",
    "nearly",
    "action",
    "bpdu",
    "sender",
    "learn",
    "fdb",
    "storm",
    "flood",
    "mirror",
    "egress",
    "drop",
]


class TraceBody(ConfigModel):
    """A frame that would come by a port: its bytes, or the fields of a match that it is made from."""

    in_port: Name = Field(description="the port that it comes by")
    frame: Hex | None = Field(None, description="its bytes in hexadecimal, from the Ethernet header on, without FCS")
    fields: dict[str, Any] | None = Field(
        None, description="as in the match of a flow; what is missing gets sensible values"
    )
    tun_id: Annotated[Int, Field(ge=0, le=MAX_GRE_KEY)] | None = Field(
        None, description="of a tunnel's frame: the VNI or key that it comes in; absent: the tunnel's only one"
    )
    tun_src: HostAddress | None = Field(
        None, description="of a tunnel's frame: the remote that it comes from; absent: the first one"
    )


class TraceStep(BaseModel):
    """One step of a frame's way. Keys that say nothing about it are absent."""

    step: StepName
    detail: str = Field(description="the step in words")
    reason: str | None = Field(None, description="why the frame, or this copy of it, is dropped")
    port: str | None = None
    remote: str | None = Field(None, description="of a tunnel: the host behind which the address is")
    vid: int | None = Field(None, description="VLAN ID; 0: in no VLAN")
    accepted: bool | None = Field(None, description="of vlan, bpdu and sender: it goes on")
    state: str | None = Field(
        None, description="of learn: none, refreshed, new, moved; of fdb: known, unknown; of storm: the class of frames"
    )
    flow: str | None = Field(None, description="a flow's name")
    priority: int | None = None
    actions: list[str] | None = None
    field: str | None = Field(None, description="of nearly: the field in which the frame differs from the flow,")
    wanted: str | None = Field(None, description="what the flow wants there,")
    found: str | None = Field(None, description="and what the frame has")
    action: str | None = None
    effect: bool | None = Field(None, description="of an action: whether it did something")
    ports: int | None = Field(None, description="of flood: how many")
    mirror: str | None = None
    edits: list[str] | None = Field(
        None, description="of egress: how the frame that leaves differs from the one that came"
    )


class TraceEgress(BaseModel):
    """A copy of the frame, on its way out."""

    port: str
    drop: str | None = Field(None, description="why it does not leave; absent: it does")
    edits: list[str] = Field(description="how it differs from the frame that came, like `push_vlan 10`")
    vid: int | None = Field(None, description="of a tunnel: the VLAN whose network it goes by; 0: none")
    remote: str | None = Field(None, description="of a tunnel: who gets it; absent: all remotes")
    tun_id: int | None = Field(None, description="of a tunnel: set_tunnel's network; absent: by its VLAN")
    mirror: str | None = Field(None, description="the mirror that it is of")
    length: int = Field(description="bytes")
    head: str = Field(description="the first of them, in hexadecimal; the rest is as it came")


class TraceVerdict(BaseModel):
    """What becomes of the frame."""

    egress: list[TraceEgress]
    reason: str | None = Field(None, description="why it is dropped as a whole; absent: it is not")


class Trace(BaseModel):
    """What would become of a frame, step by step."""

    in_port: str
    frame: str = Field(description="the frame in hexadecimal")
    steps: list[TraceStep]
    verdict: TraceVerdict
    omitted: int = Field(0, description="steps and copies that there were beyond those told")
