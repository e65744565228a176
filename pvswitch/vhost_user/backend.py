# SPDX-License-Identifier: Apache-2.0
"""What a session asks of a back end: effects as data, the protocol that carries them out, and the step
between.

`session.py` yields effects and never calls anything; `perform()` turns one into a call on the `Backend`,
which `pvswitch.ports` implements on the data plane. Descriptors in a `Region` or `RingSetup` stay the
session's: the back end may use a region's only during the call, a ring's until `stop_ring()` (or
`set_call()`, for the old call) has returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pvswitch.errors import PvswitchError

BACKEND_ERRORS = (OSError, PvswitchError)
"""What a back end raises to refuse; anything else that it raises is a bug."""


class RingNotReady(Exception):
    """A ring's addresses don't translate yet: no error, it is tried again after the next memory change."""


@dataclass(frozen=True, slots=True)
class Region:
    """Guest memory to map: `size` bytes from `offset` of `fd`, at `gpa` for the guest and `uva` for its VMM.

    `fd` is -1 in a region to remove.
    """

    gpa: int
    size: int
    uva: int
    offset: int
    fd: int


@dataclass(frozen=True, slots=True)
class RingSetup:
    """All that is needed to run a ring.

    `desc`, `avail` and `used` are front-end addresses: of a packed ring its descriptors, the driver's and the device's
    event area. `base` is where to go on, as SET_VRING_BASE has it.
    `kick_fd` None: the guest doesn't kick, poll. `call_fd` None: the guest wants no interrupts.
    `features` are the negotiated ones.
    """

    index: int
    num: int
    desc: int
    avail: int
    used: int
    base: int
    kick_fd: int | None
    call_fd: int | None
    features: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class ReplaceMemory:
    """Build a map of exactly these regions, then put it in the place of the old one."""

    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class AddRegion:
    """Map one region more."""

    region: Region


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    """Unmap the region with the same gpa, uva and size."""

    region: Region


@dataclass(frozen=True, slots=True)
class StartRing:
    """Run a ring, and look at it once without waiting for a kick."""

    ring: RingSetup


@dataclass(frozen=True, slots=True)
class StopRing:
    """Stop a running ring; the result is the next avail index."""

    index: int


@dataclass(frozen=True, slots=True)
class EnableRing:
    """Enable or disable a running ring; look at it once when enabled."""

    index: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class SetCall:
    """Give a running ring a new call descriptor, and signal it once."""

    index: int
    fd: int | None


@dataclass(frozen=True, slots=True)
class SetFeatures:
    """The features were negotiated (no ring runs with others)."""

    features: int


@dataclass(frozen=True, slots=True)
class SendRarp:
    """Announce the guest's MAC: broadcast a RARP for it and learn it."""

    mac: bytes


@dataclass(frozen=True, slots=True)
class SetMtu:
    """The front end told the guest this MTU, in bytes."""

    mtu: int


Effect = (
    ReplaceMemory
    | AddRegion
    | RemoveRegion
    | StartRing
    | StopRing
    | EnableRing
    | SetCall
    | SetFeatures
    | SendRarp
    | SetMtu
)


class Backend(Protocol):
    """A port of the data plane. Refusals are OSError or PvswitchError; calls come one at a time."""

    async def replace_memory(self, regions: Sequence[Region]) -> None:
        """Map all of `regions`, then drop what was mapped before; on an error the old map stays."""

    async def add_region(self, region: Region) -> None:
        """Map one region; on an error nothing has changed."""

    async def remove_region(self, region: Region) -> None:
        """Unmap one region. A running ring in it must survive: it may come back with the next region."""

    async def start_ring(self, ring: RingSetup) -> None:
        """Start a stopped ring. RingNotReady: addresses don't translate yet, the session will ask again."""

    async def stop_ring(self, index: int) -> int:
        """Stop a running ring and return its avail index; then nothing touches the ring or its fds."""

    async def enable_ring(self, index: int, enabled: bool) -> None:
        """Enable or disable a running ring."""

    async def set_call(self, index: int, fd: int | None) -> None:
        """Change a running ring's call descriptor; afterwards the old one is no longer used."""

    async def rarp(self, mac: bytes) -> None:
        """Broadcast a RARP for `mac` and learn it."""

    async def set_mtu(self, mtu: int) -> None:
        """Take note of the guest's MTU, in bytes."""

    def features_set(self, features: int) -> None:
        """Take note of the negotiated features."""

    async def disconnected(self) -> None:
        """Stop every ring and drop the memory; then nothing of this front end is touched any more."""


async def perform(effect: Effect, backend: Backend) -> int | None:
    """Carry out one effect; the result is StopRing's index. Raises what the back end raises."""
    match effect:
        case ReplaceMemory(regions):
            await backend.replace_memory(regions)
        case AddRegion(region):
            await backend.add_region(region)
        case RemoveRegion(region):
            await backend.remove_region(region)
        case StartRing(ring):
            await backend.start_ring(ring)
        case StopRing(index):
            return await backend.stop_ring(index)
        case EnableRing(index, enabled):
            await backend.enable_ring(index, enabled)
        case SetCall(index, fd):
            await backend.set_call(index, fd)
        case SetFeatures(features):
            backend.features_set(features)
        case SendRarp(mac):
            await backend.rarp(mac)
        case SetMtu(mtu):
            await backend.set_mtu(mtu)
    return None
