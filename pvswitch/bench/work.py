# SPDX-License-Identifier: Apache-2.0
"""What a case is made of, as data: guests, frames, the kinds of work, and the figures that come of it.

A case's `work` says what is done; `measure` knows how, by its type. `figure` names the one figure by which switches are
compared (`FIGURES` has them all). What pvswitch has to reach is in `targets` (how many times as good as a peer), in
`against` (as compared with another case) and in `limit` (in itself). The cases themselves are in `cases`.

Frames are counted without FCS. All rings have 1,024 descriptors unless a case says otherwise; the window, the number of
frames in flight, is always so small that neither ring can overflow, so that every lost frame is somebody's fault. Where
the receiver is meant to be overrun the case says so (`loss_allowed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PVSWITCH, OVS, TESTPMD, BRIDGE, QEMU_TAP = "pvswitch", "OVS-DPDK", "testpmd io", "bridge", "QEMU tap"
KERNEL = "kernel vxlan"

NET_HEADER = 12
RING = 1024
WINDOW = 256
# The largest TCP frame of a Linux guest: 45 segments of 1,448 bytes and their headers.
GSO_FRAME, GSO_SIZE = 65226, 1448


class Figure(NamedTuple):
    """A kind of figure: its unit, digits after the point, and whether more of it is better."""

    unit: str
    digits: int
    more_is_better: bool = True


FIGURES: Mapping[str, Figure] = {
    "mpps": Figure("Mpps", 3),
    "gbits": Figure("Gbit/s", 2),
    "cycles": Figure("cycles/packet", 0, more_is_better=False),
    "burst": Figure("frames/burst", 1),
    "per_message": Figure("frames/message", 1),
    "loss": Figure("% lost", 2, more_is_better=False),
    "p50_us": Figure("us p50", 1, more_is_better=False),
    "p99_us": Figure("us p99", 1, more_is_better=False),
    "first_us": Figure("us, first frame", 0, more_is_better=False),
    "next_us": Figure("us, next frame", 0, more_is_better=False),
    "seconds": Figure("s", 2, more_is_better=False),
    "rule_bytes": Figure("bytes/rule", 0, more_is_better=False),
    "table_bytes": Figure("bytes/rule in the core", 0, more_is_better=False),
    "cpu": Figure("% of a core", 3, more_is_better=False),
    "switch_cores": Figure("cores, switch", 2, more_is_better=False),
    "qemu_cores": Figure("cores, QEMU", 2, more_is_better=False),
    "other_cores": Figure("cores, others", 2, more_is_better=False),
}


# ---- what is done


@dataclass(frozen=True)
class Guests:
    """Driver guests with one queue pair each: active ones, in pairs of sender and receiver, and idle ones beside them.

    Packed rings come with IN_ORDER. Sizes in bytes; a receive buffer holds the net header too. With `shuffle` buffers
    lie in memory in another order than in the rings.
    """

    active: int = 2
    idle: int = 0
    packed: bool = False
    mrg: bool = True
    gso: bool = False
    shuffle: bool = False
    queue_size: int = RING
    rx_buffer: int = 2048
    tx_buffer: int = 2048


@dataclass(frozen=True)
class Frames:
    """Driver guests send in a closed loop: level 0 to 2 as in the driver, `macs` destinations, or all are flooded.

    With `tuples` it is UDP, from and to so many different pairs of ports in turn (`rules` knows which).
    `rx_pps` is what a receiver takes at most in a second (0: whatever comes); `on_full` is pvswitch's own setting.
    `feature` is one of `features.FEATURES`; the last `watchers` of a flood's receivers are outputs of mirrors.
    """

    size: int
    guests: Guests = Guests()
    level: int = 1
    macs: int = 1
    tuples: int = 0
    flood: bool = False
    window: int = WINDOW
    rx_pps: int = 0
    on_full: str = "drop"
    feature: str | None = None
    watchers: int = 0


@dataclass(frozen=True)
class Latency:
    """Frames at a share of the highest rate, which is measured first: one way, from sender to receiver."""

    frames: Frames
    share: float


@dataclass(frozen=True)
class Circle:
    """testpmd's virtio-user ports: frames circle through the switch for ever."""

    size: int
    packed: bool = False


@dataclass(frozen=True)
class Tcp:
    """One TCP stream each way between two QEMU guests."""


@dataclass(frozen=True)
class Uplink:
    """One TCP stream each way between a QEMU guest and the host's network stack."""


@dataclass(frozen=True)
class Idle:
    """Connected guests with started rings, adaptive polling, no traffic."""

    guests: int


@dataclass(frozen=True)
class Silence:
    """The round trip of a frame after so many seconds without one, and of the next."""

    polling: str
    seconds: float


@dataclass(frozen=True)
class TunnelTcp:
    """One TCP stream each way between two QEMU guests on two hosts, through a VXLAN."""


@dataclass(frozen=True)
class TunnelFrames:
    """Frames go `out` by the switch under test into a VXLAN, or come `in` by it; see `tunnel_frames`.

    With `single` the hosts' network cards neither cut nor sum: packets go one by one.
    """

    frames: Frames
    way: str
    single: bool = False


@dataclass(frozen=True)
class TunnelFlood:
    """A broadcast goes to a guest on the same host, which closes the loop, and to all remotes of a VXLAN."""

    frames: Frames
    remotes: int


@dataclass(frozen=True)
class FlowFrames:
    """Frames of many tuples pass a table of so many flow rules of so many shapes of masks; see `rules`."""

    frames: Frames
    rules: int
    masks: int


@dataclass(frozen=True)
class FlowBatch:
    """So many rules are added at once to a table that has `before` of them; nothing is sent."""

    before: int
    rules: int = 10_000


@dataclass(frozen=True)
class Watched:
    """Frames, and somebody who looks on; see `watched`. Cycles are those of a frame taken, `flows` pvswitch's, as text.

    `watcher` is "" for nobody, "drops" for a reader of the flight recorder, or of a capture: "some" has one of a
    thousand frames and is read, "all" has all and is read as fast as that goes, "unread" has all and isn't read.
    """

    frames: Frames
    watcher: str = ""
    flows: tuple[str, ...] = ()


Work = (
    Frames
    | Latency
    | Circle
    | Tcp
    | Uplink
    | Idle
    | Silence
    | TunnelTcp
    | TunnelFrames
    | TunnelFlood
    | FlowFrames
    | FlowBatch
    | Watched
)


class Against(NamedTuple):
    """Of a figure there may be at most so many times what another case has, on the same switch in the same round."""

    case: str
    figure: str
    times: float


@dataclass(frozen=True)
class Case:
    """One row of the matrix. `seconds` is for how long it is measured unless the command says otherwise.

    What isn't `usual` is measured only where a pattern names it.
    With `each_part` a target is to be reached in each part of a turn (direction of a stream), not over all together.
    """

    name: str
    text: str
    work: Work
    figure: str = "mpps"
    switches: tuple[str, ...] = (PVSWITCH, OVS, TESTPMD)
    targets: Mapping[str, float] = field(default_factory=dict)
    against: Against | None = None
    limit: float | None = None
    seconds: float = 1.0
    quick: bool = False
    loss_allowed: bool = False
    each_part: bool = False
    usual: bool = True
