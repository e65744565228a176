# SPDX-License-Identifier: Apache-2.0
"""Mirrors the slow and obvious way: what becomes of one frame, copy by copy, on a bridge whose addresses are static.

Written from API.md and from what Open vSwitch calls a mirror (ovs-vswitchd.conf.db(5)), on top of `tests.vlans`: no
bits, no tables. A frame is bytes; what it becomes is bytes by port, and where something is counted as dropped.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from tests.vlans import Mode, Tag, Tags, enter, leave, tags_of, with_tags

BROADCAST = "ff:ff:ff:ff:ff:ff"
PAUSE = "01:80:c2:00:00:01"
SNAPLENS = (14, 60, 128, 129, 1500)


@dataclass(frozen=True)
class Mirror:
    """A mirror as in the configuration; nothing selected is everything."""

    src: frozenset[str] = frozenset()
    dst: frozenset[str] = frozenset()
    vlans: frozenset[int] = frozenset()
    port: str | None = None
    vid: int | None = None
    snaplen: int | None = None
    drops: bool = False

    @property
    def keys(self) -> dict[str, object]:
        """Its keys in the configuration."""
        found: dict[str, object] = {
            "select_src_port": sorted(self.src),
            "select_dst_port": sorted(self.dst),
            "select_vlan": sorted(self.vlans),
            "output_port": self.port,
            "output_vlan": self.vid,
            "snaplen": self.snaplen,
            "drops": self.drops,
        }
        return {key: value for key, value in found.items() if value not in (None, [], False)}


@dataclass
class Fate:
    """What becomes of a frame: copies by receiver, why it goes nowhere, and which copies are dropped, why."""

    copies: dict[str, list[bytes]] = field(default_factory=dict)
    rx_drop: str | None = None
    tx_drops: list[tuple[str, str]] = field(default_factory=list)

    def give(self, port: str, frame: bytes) -> None:
        """One copy for a port."""
        self.copies.setdefault(port, []).append(frame)


@dataclass
class Bridge:
    """Ports with their VLAN modes, those that have a link, mirrors, and addresses: (VID, MAC) -> port."""

    ports: Mapping[str, Mode]
    mirrors: Mapping[str, Mirror]
    known: Mapping[tuple[int, str], str]
    linked: Set[str]

    @property
    def outputs(self) -> set[str]:
        """Ports that take only mirrored frames."""
        return {mirror.port for mirror in self.mirrors.values() if mirror.port is not None}

    def fate(self, source: str, frame: bytes, refused: str | None = None) -> Fate:
        """What becomes of a frame that a port's guest sends; `refused`: by a rule of that port, for this reason."""
        fate = Fate()
        if source in self.outputs:
            fate.rx_drop = "mirror_output"
            return fate
        tags, dst = tags_of(frame), frame[:6].hex(":")
        inside = enter(self.ports[source], tags)
        left: set[str] = set()
        if inside is None:
            inside, fate.rx_drop = tags, "vlan_filtered"
        elif refused is not None:
            fate.rx_drop = refused
        else:
            left = self._forward(fate, source, dst, frame, inside)
        for mirror in self.mirrors.values():
            if self._wants(mirror, source, left, inside, dropped=fate.rx_drop is not None):
                self._mirror(fate, mirror, source, frame, inside)
        return fate

    def _forward(self, fate: Fate, source: str, dst: str, frame: bytes, inside: Tags) -> set[str]:
        """The ordinary copies; the ports by which they leave."""
        if dst == PAUSE:
            fate.rx_drop = "bpdu"
            return set()
        target = None if int(dst[:2], 16) & 1 else self.known.get((inside[0].vid if inside else 0, dst))
        if target == source:
            fate.rx_drop = "same_port"
            return set()
        left = set()
        for port in self.ports if target is None else [target]:
            arrives = leave(self.ports[port], inside)
            reason = None
            if port not in self.linked:
                reason = "link_down"
            elif port in self.outputs:
                reason = "mirror_output"
            elif arrives is None:
                reason = "vlan_filtered"
            if port == source or (reason is not None and target is None):
                continue
            if reason is not None or arrives is None:
                fate.tx_drops.append((port, str(reason)))
                continue
            fate.give(port, with_tags(frame, arrives))
            left.add(port)
        if target is None and not left:
            fate.rx_drop = "no_destination"
        return left

    def _wants(self, mirror: Mirror, source: str, left: Set[str], inside: Tags, *, dropped: bool) -> bool:
        vid = inside[0].vid if inside else 0
        if mirror.vlans and vid not in mirror.vlans:
            return False
        everything = not mirror.src and not mirror.dst
        if dropped and not mirror.drops:
            return False
        return everything or source in mirror.src or bool(left & mirror.dst)

    def _mirror(self, fate: Fate, mirror: Mirror, source: str, frame: bytes, inside: Tags) -> None:
        if mirror.port is not None:
            self._send(fate, mirror, mirror.port, frame, inside)
            return
        assert mirror.vid is not None
        if (inside and inside[0].vid == mirror.vid) or frame[:5] == bytes.fromhex("0180c20000"):
            return
        moved = (inside[0]._replace(vid=mirror.vid), *inside[1:]) if inside else (Tag(mirror.vid),)
        for port in self.ports:
            if port != source and port not in self.outputs:
                self._send(fate, mirror, port, frame, moved)

    def _send(self, fate: Fate, mirror: Mirror, port: str, frame: bytes, inside: Tags) -> None:
        arrives = leave(self.ports[port], inside)
        if arrives is not None and port in self.linked:
            fate.give(port, with_tags(frame, arrives)[: mirror.snaplen])


def random_mirrors(
    chance: random.Random, sources: Sequence[str], monitors: Sequence[str], vids: Sequence[int]
) -> dict[str, Mirror]:
    """Up to six mirrors, which share ports as it comes; `monitors` are never selected."""

    def some(values: Sequence[str]) -> frozenset[str]:
        return frozenset(chance.sample(values, chance.choice([0, 1, 1, 2, 3])))

    found = {}
    for i in range(chance.randint(1, 6)):
        output = chance.choice([*monitors, *monitors, *vids])
        found[f"m{i}"] = Mirror(
            src=some(sources),
            dst=some(sources),
            vlans=frozenset(chance.sample([0, 10, 20, 30, 40], chance.choice([0, 0, 1, 2]))),
            port=output if isinstance(output, str) else None,
            vid=output if isinstance(output, int) else None,
            snaplen=chance.choice([None, None, *SNAPLENS]),
            drops=chance.random() < 0.4,
        )
    return found


def tally(fates: Sequence[Fate]) -> dict[str, Counter[bytes]]:
    """All copies by receiver, each as often as it comes."""
    found: dict[str, Counter[bytes]] = {}
    for fate in fates:
        for port, copies in fate.copies.items():
            found.setdefault(port, Counter()).update(copies)
    return found
