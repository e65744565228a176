# SPDX-License-Identifier: Apache-2.0
"""What the core reports, and what it is told: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TunnelKind = Literal["vxlan", "geneve", "gre"]

# ---- what the core reports ----


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in the data path. `old_port` only for `moved`, `detail` only for `broken`.

    `vtep` is the one that an address is behind, 0 for none; of `vtep` (a tunnel has learned it) and `too_big` (the
    kernel refused a packet to it, which doesn't fit its path) the one that it is about.
    """

    kind: Literal["learned", "moved", "broken", "vtep", "too_big"]
    time_ns: int
    port: int
    vid: int = 0
    mac: str = ""
    old_port: int = 0
    detail: str = ""
    vtep: int = 0


@dataclass(frozen=True, slots=True)
class Punt:
    """A frame handed to the control plane: raw bytes from the Ethernet header on."""

    time_ns: int
    port: int
    vid: int
    reason: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class FdbItem:
    """One entry of an FDB. `port` is a port's reference, `age` in seconds (0 for static), `vtep` 0 for none."""

    mac: str
    vid: int
    port: int
    age: int
    type: Literal["dynamic", "static", "sticky"]
    vtep: int = 0


@dataclass(frozen=True, slots=True)
class RingStatus:
    """A ring now. The two indices are read from guest memory and 0 while it is stopped.

    `silent`: the guest has made nothing available yet, as far as its memory shows. `cycles` were spent on taking frames
    from it (0 for a ring that receives). `worker` polls it; it means something only while the ring runs.
    """

    running: bool
    enabled: bool
    silent: bool
    used_idx: int
    avail_idx: int
    kicks: int
    packets: int
    bytes: int
    notifications: int
    notifications_suppressed: int
    cycles: int
    worker: int


@dataclass(frozen=True, slots=True)
class PortCounters:
    """Counters by name, and drops by reason (only reasons that occurred), in the switch's view."""

    values: dict[str, int]
    rx_drops: dict[str, int]
    tx_drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class Perf:
    """What one worker has done since it was made; cycles are of the CPU's time stamp counter.

    `burst_histogram` is indexed by the number of frames in a burst. `queue_full` are copies that found no room.
    """

    busy_cycles: int
    idle_cycles: int
    total_cycles: int
    packets: int
    loops: int
    sleeps: int
    learn_skipped: int
    bursts: int
    queue_full: int
    notifications: int
    notifications_suppressed: int
    kicks: int
    burst_histogram: tuple[int, ...]
    cycles_per_second: int
    sleeping: bool


# ---- what the core is told ----


@dataclass(frozen=True, slots=True)
class RingConf:
    """How to run a ring; addresses are the front end's. A descriptor of None: none was given.

    `base` is where a packed ring goes on, as SET_VRING_BASE says; a split one knows by itself.
    `worker` polls the ring's pair, -1: the one with the fewest rings. The first ring of a pair to start decides.
    """

    desc: int
    avail: int
    used: int
    num: int
    base: int
    features: int
    enabled: bool
    kick_fd: int | None
    call_fd: int | None
    worker: int = -1


@dataclass(frozen=True, slots=True)
class UplinkConf:
    """A queue of an uplink.

    `fd` is a tap, a packet socket or a datagram socket to who reads and writes a file, non-blocking, with a virtio-net
    header of 10 bytes; it stays the caller's, open until the queue is stopped. `uso`: the kernel takes UDP frames to be
    segmented; a file takes nothing unfinished. `worker` fetches from it, -1: that with the fewest queues.
    An endpoint's `fd` is the socket that packets of tunnels of the kind `tunnel` come by.
    """

    kind: Literal["tap", "packet", "file", "endpoint"]
    fd: int
    uso: bool = False
    worker: int = -1
    tunnel: TunnelKind = "vxlan"


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue of an uplink now. `error`: errno of what last went wrong since it was started, 0 = nothing."""

    running: bool
    error: int
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    cycles: int
    worker: int
