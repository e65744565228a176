# SPDX-License-Identifier: Apache-2.0
"""VLANs the slow and obvious way: which tags a copy carries, or that there is none; and what to try it with.

Written from IEEE 802.1Q and ovs-vswitchd.conf.db(5), on lists of tags, one frame and one receiver at a time. Frames are
made by scapy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from pvswitch.datapath import VlanView

C_TAG, S_TAG = 0x8100, 0x88A8
ALL = frozenset(range(4096))


class Tag(NamedTuple):
    """One tag of a frame."""

    vid: int
    pcp: int = 0
    dei: int = 0
    tpid: int = C_TAG


Tags = tuple[Tag, ...]


@dataclass(frozen=True)
class Mode:
    """How a port is set: as in the configuration, with sets instead of lists. Nothing given is everything."""

    mode: str = "trunk"
    tag: int | None = None
    trunks: frozenset[int] = ALL
    cvlans: frozenset[int] = ALL

    @property
    def carried(self) -> frozenset[int]:
        """The VLANs of a trunk; of a native port its own too, and nothing that is in none."""
        if self.mode.startswith("native"):
            assert self.tag is not None
            return (self.trunks | {self.tag}) - {0}
        return self.trunks

    @property
    def view(self) -> VlanView | None:
        """The port's rules in the core's tables."""
        ids = self.cvlans if self.mode == "dot1q-tunnel" else self.trunks
        found = VlanView(self.mode, self.tag or 0, None if ids is ALL else ids)
        return None if self == Mode() else found

    @property
    def keys(self) -> dict[str, Any]:
        """The port's keys in the configuration."""
        found: dict[str, Any] = {"vlan_mode": self.mode}
        if self.tag is not None:
            found["tag"] = self.tag
        for key in ("trunks", "cvlans"):
            if getattr(self, key) is not ALL:
                found[key] = sorted(getattr(self, key))
        return found


MODES: Mapping[str, Mode] = {
    "access10": Mode("access", 10),
    "access10b": Mode("access", 10),
    "access20": Mode("access", 20),
    "trunk": Mode(),
    "trunk_10_20": Mode(trunks=frozenset({10, 20})),
    "trunk_0_30": Mode(trunks=frozenset({0, 30})),
    "tagged10": Mode("native-tagged", 10),
    "tagged10_20": Mode("native-tagged", 10, trunks=frozenset({20})),
    "untagged10": Mode("native-untagged", 10),
    "untagged10_20": Mode("native-untagged", 10, trunks=frozenset({20})),
    "tunnel10": Mode("dot1q-tunnel", 10),
    "tunnel10_0_20": Mode("dot1q-tunnel", 10, cvlans=frozenset({0, 20})),
    "tunnel20_30": Mode("dot1q-tunnel", 20, cvlans=frozenset({30})),
}

STACKS: Mapping[str, Tags] = {
    "untagged": (),
    "priority 0": (Tag(0),),
    "priority 5": (Tag(0, 5),),
    "priority 3, drop eligible": (Tag(0, 3, 1),),
    "priority 6, S-tag": (Tag(0, 6, 0, S_TAG),),
    "10": (Tag(10),),
    "10, priority 7, drop eligible": (Tag(10, 7, 1),),
    "20": (Tag(20, 2),),
    "30": (Tag(30),),
    "40": (Tag(40),),
    "S 10": (Tag(10, 4, 0, S_TAG),),
    "10 20": (Tag(10), Tag(20, 1)),
    "20 10": (Tag(20), Tag(10)),
    "S 10, 20": (Tag(10, 4, 0, S_TAG), Tag(20, 1)),
    "S 10, 40": (Tag(10, 0, 0, S_TAG), Tag(40)),
    "S 20, 30": (Tag(20, 0, 1, S_TAG), Tag(30, 6)),
    "priority 5, 20": (Tag(0, 5), Tag(20)),
    "10, priority 5": (Tag(10), Tag(0, 5)),
    "10 20 30": (Tag(10), Tag(20), Tag(30)),
    "20 30 40": (Tag(20), Tag(30), Tag(40)),
}


def enter(port: Mode, tags: Tags) -> Tags | None:
    """The tags inside the bridge, the outermost being the VLAN's (none, or VID 0: in no VLAN); None: not let in."""
    vid = tags[0].vid if tags else 0
    if port.mode == "dot1q-tunnel":
        assert port.tag is not None
        return (Tag(port.tag, tpid=S_TAG), *tags) if vid in port.cvlans else None
    if port.mode == "access" and (vid or len(tags) > 1):
        return None
    if port.mode != "trunk" and vid == 0:
        assert port.tag is not None
        return (replace_vid(tags[0], port.tag), *tags[1:]) if tags else (Tag(port.tag),)
    return tags if vid in port.carried else None


def replace_vid(tag: Tag, vid: int) -> Tag:
    """A priority tag as that of a VLAN."""
    return tag._replace(vid=vid)


def leave(port: Mode, inside: Tags) -> Tags | None:
    """The tags of a copy that leaves; None: it doesn't."""
    vid = inside[0].vid if inside else 0
    behind = inside[1:]
    match port.mode:
        case "access":
            return () if vid == port.tag and not behind else None
        case "dot1q-tunnel":
            return behind if vid == port.tag and (behind[0].vid if behind else 0) in port.cvlans else None
        case "native-untagged" if vid == port.tag:
            return () if not behind else None
    return inside if vid in port.carried else None


def vlan_of(port: Mode, tags: Tags) -> int | None:
    """The VLAN that a frame comes into."""
    inside = enter(port, tags)
    return None if inside is None else inside[0].vid if inside else 0


def through(source: Mode, target: Mode, tags: Tags) -> Tags | None:
    """The tags with which a frame arrives; None: it doesn't."""
    inside = enter(source, tags)
    return None if inside is None else leave(target, inside)


def build(dst: str, src: str, tags: Sequence[Tag], number: int, size: int = 60) -> bytes:
    """A frame with these tags, recognised by its number."""
    packet: Packet = Ether(dst=dst, src=src)
    for tag in tags:
        kind = Dot1AD if tag.tpid == S_TAG else Dot1Q
        packet /= kind(vlan=tag.vid, prio=tag.pcp, dei=tag.dei)
    inner = packet.lastlayer()
    inner.type = 0x88B5
    below = packet
    for tag in tags:  # the type of each layer announces the next one, whatever scapy would guess
        below.type = tag.tpid
        below = below.payload
    body = number.to_bytes(4, "big")
    return bytes(packet / Raw(body.ljust(max(4, size - 14 - 4 * len(tags)), b"\xa5")))


def number_of(frame: bytes) -> int | None:
    """The number of a frame that `build` made, whatever tags it has now."""
    at = frame.find(b"\x88\xb5", 12, 12 + 4 * 5)
    return None if at < 0 else int.from_bytes(frame[at + 2 : at + 6], "big")


def tags_of(frame: bytes) -> Tags:
    """The tags of a frame that `build` made."""
    found = []
    at = 12
    while (tpid := int.from_bytes(frame[at : at + 2], "big")) in (C_TAG, S_TAG):
        tci = int.from_bytes(frame[at + 2 : at + 4], "big")
        found.append(Tag(tci & 0xFFF, tci >> 13, tci >> 12 & 1, tpid))
        at += 4
    return tuple(found)


def with_tags(frame: bytes, tags: Tags) -> bytes:
    """The frame with these tags in the place of its own."""
    words = [value for tag in tags for value in (tag.tpid, tag.pcp << 13 | tag.dei << 12 | tag.vid)]
    return frame[:12] + b"".join(word.to_bytes(2, "big") for word in words) + frame[12 + 4 * len(tags_of(frame)) :]
