# SPDX-License-Identifier: Apache-2.0
"""The list of guest memory regions of one front end, and every check that needs no look at the file.

Pure: a change returns a new map, which the session keeps once the back end has followed. What needs fstat
or mmap (file long enough, page alignment) is the back end's to check. Refusals are `Refused`, in one
sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvswitch.vhost_user.messages import MemRegion

ADDRESS_SPACE = 1 << 64
MAX_FILE = (1 << 63) - 1
"""Bytes: off_t is signed."""


class Refused(Exception):
    """A well-formed request that isn't granted: a non-zero answer where one was asked for, else the end."""


def check_region(region: MemRegion) -> None:
    """Raise Refused for a region that is empty, or wraps around in any of its three address spaces."""
    if region.size == 0:
        raise Refused(f"the memory region at {region.gpa:#x} is empty")
    if region.gpa + region.size > ADDRESS_SPACE or region.uva + region.size > ADDRESS_SPACE:
        raise Refused(f"the memory region at {region.gpa:#x} of {region.size:#x} bytes wraps around")
    if region.offset + region.size > MAX_FILE:
        raise Refused(f"the memory region at {region.gpa:#x} ends beyond any file: offset {region.offset:#x}")


def _meet(start: int, other: int, size: int, other_size: int) -> bool:
    return start < other + other_size and other < start + size


def _overlap(a: MemRegion, b: MemRegion) -> bool:
    return _meet(a.gpa, b.gpa, a.size, b.size) or _meet(a.uva, b.uva, a.size, b.size)


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Regions that overlap neither in guest physical nor in front-end addresses."""

    regions: tuple[MemRegion, ...] = ()

    @classmethod
    def build(cls, regions: Sequence[MemRegion], slots: int) -> MemoryMap:
        """A whole new map; raises Refused."""
        result = cls()
        for region in regions:
            result = result.add(region, slots)
        return result

    def add(self, region: MemRegion, slots: int) -> MemoryMap:
        """The map with one region more, at most `slots`; raises Refused."""
        check_region(region)
        if len(self.regions) >= slots:
            raise Refused(f"all {slots} memory slots are in use")
        for other in self.regions:
            if _overlap(region, other):
                raise Refused(f"the memory region at {region.gpa:#x} overlaps the one at {other.gpa:#x}")
        return MemoryMap((*self.regions, region))

    def find(self, wanted: MemRegion) -> MemRegion:
        """The region of the same guest address, front-end address and size; raises Refused."""
        key = (wanted.gpa, wanted.uva, wanted.size)
        for region in self.regions:
            if (region.gpa, region.uva, region.size) == key:
                return region
        raise Refused(f"no memory region of {wanted.size:#x} bytes at {wanted.gpa:#x} was added before")

    def without(self, region: MemRegion) -> MemoryMap:
        """The map without `region`."""
        return MemoryMap(tuple(other for other in self.regions if other is not region))

    @property
    def size(self) -> int:
        """Bytes of guest memory in all regions."""
        return sum(region.size for region in self.regions)
