# SPDX-License-Identifier: Apache-2.0
"""What is asked about a frame, and what the core found out, with names in the place of its numbers.

`tracer` makes it, `story` tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "parsed", "taken", "vlan", "flow", "action", "bpdu", "sender", "learn", "fdb", "storm", "flood", "mirror", "drop"
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A frame that would come by a port; of a tunnel's, by which network and from whom (None: the first there is)."""

    in_port: str
    frame: bytes
    tun_id: int | None = None
    tun_src: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A step as enum pvs_step_kind has it: `a`, `b` and `c` are its numbers; `name` is what one of them names.

    Of `taken` and `drop` it is the reason ("none": no drop), of `flow` the flow's (None: none matches), of `fdb` the
    port's, of `mirror` the mirror's. `remote` is the host that `fdb` finds the address behind.
    """

    kind: Kind
    a: int = 0
    b: int = 0
    c: int = 0
    name: str | None = None
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the frame; see struct pvs_trace_copy. `drop` is None where it leaves."""

    port: str
    head: bytes
    length: int
    drop: str | None = None
    vid: int = 0
    remote: str | None = None
    mirror: str | None = None
    tun_id: int | None = None


@dataclass(frozen=True, slots=True)
class Nearly:
    """A flow that nearly matched: the one word of its mask in which the frame differs."""

    flow: str
    word: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What would become of a frame. `key` is what flows look at in it; `omitted` counts steps and copies untold."""

    drop: str | None
    flow: str | None
    steps: tuple[Step, ...]
    copies: tuple[Copy, ...]
    key: tuple[int, ...] = ()
    nearly: tuple[Nearly, ...] = ()
    omitted: int = 0
