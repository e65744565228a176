# SPDX-License-Identifier: Apache-2.0
"""Which port a reference of the core means, also of those that are gone: their frames are still being read.

`ports.py` notes every port when it goes to work; captures and the flight recorder look up. The last REMEMBERED ports
are known, far more than there can be at once.
"""

from __future__ import annotations

from typing import NamedTuple

REMEMBERED = 4096
_INDEX = 0xFFFF  # of a reference: generation << 16 | index


class KnownPort(NamedTuple):
    """A port, and its bridge."""

    name: str
    bridge: str


class KnownPorts:
    """The ports by their references."""

    def __init__(self) -> None:
        """Begin empty."""
        self._ports: dict[int, KnownPort] = {}
        self._indices: dict[int, int] = {}  # -> the last reference with it

    def note(self, ref: int, name: str, bridge: str) -> None:
        """Remember a port; a known one may be on another bridge now."""
        if ref not in self._ports:
            self._indices[ref & _INDEX] = ref
            while len(self._ports) >= REMEMBERED:
                del self._ports[next(iter(self._ports))]
        self._ports[ref] = KnownPort(name, bridge)

    def get(self, ref: int) -> KnownPort | None:
        """Return a port; None for 0, and for one that is gone for long."""
        return self._ports.get(ref)

    def name(self, ref: int) -> str | None:
        """Return a port's name."""
        port = self._ports.get(ref)
        return None if port is None else port.name

    def has(self, name: str) -> bool:
        """Whether there is, or was, a port of this name."""
        return any(port.name == name for port in self._ports.values())

    def name_of_index(self, index: int) -> str | None:
        """Return the name of the last port with this index."""
        return self.name(self._indices.get(index, 0))
