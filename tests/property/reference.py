# SPDX-License-Identifier: Apache-2.0
"""A reference switch: dicts and lists, one frame at a time, written from API.md and IEEE 802.1Q, not from the core.

It knows the whole of what a port may see: bytes received, counters, drop reasons, reports. Where the contract leaves
a choice (which of several entries is evicted) it is told what the switch chose and checks that it was allowed to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.mirrors import Mirror
from tests.vlans import C_TAG, S_TAG, Mode, Tag, Tags, enter, leave

MAX_FRAME = 65_568
SIZE_BINS = (
    *((64, "1_to_64"), (127, "65_to_127"), (255, "128_to_255"), (511, "256_to_511")),
    *((1023, "512_to_1023"), (1522, "1024_to_1522"), (1 << 32, "1523_to_max")),
)
TAGS = 2  # that are looked at; what lies behind is payload
PAUSE = bytes.fromhex("0180c2000001")
NOBODY = bytes(6)


def is_group(mac: bytes) -> bool:
    """Multicast or broadcast: the lowest bit of the first byte (IEEE 802.3, 3.2.3)."""
    return bool(mac[0] & 1)


def is_link_local(mac: bytes) -> bool:
    """01-80-C2-00-00-00 to -0F (IEEE 802.1Q, table 8-1)."""
    return mac[:5] == bytes.fromhex("0180c20000") and mac[5] < 16


Address = tuple[int, bytes]
"""A MAC address in a VLAN."""


@dataclass
class Frame:
    """A frame taken apart: addresses, tags, and the rest from its type on. None of it if a tag is cut short."""

    macs: bytes
    tags: Tags
    rest: bytes

    def tagged(self, tags: Tags) -> bytes:
        """The frame with other tags."""
        words = [value for tag in tags for value in (tag.tpid, tag.pcp << 13 | tag.dei << 12 | tag.vid)]
        return self.macs + b"".join(word.to_bytes(2, "big") for word in words) + self.rest


def take_apart(frame: bytes) -> Frame | None:
    """The parts of a frame; None if a tag is cut short."""
    at = 12
    tags: list[Tag] = []
    while len(tags) < TAGS and (tpid := int.from_bytes(frame[at : at + 2], "big")) in (C_TAG, S_TAG):
        if len(frame) < at + 6:
            return None
        tci = int.from_bytes(frame[at + 2 : at + 4], "big")
        tags.append(Tag(tci & 0xFFF, tci >> 13, tci >> 12 & 1, tpid))
        at += 4
    return Frame(frame[:12], tuple(tags), frame[at:])


@dataclass
class Guest:
    """What is known of a guest: its net header's length, its buffers' size, whether one frame may take several.

    `posted` are the buffers of each of its queue pairs.
    """

    header: int = 12
    buffer: int = 2048
    mergeable: bool = True
    posted: list[int] = field(default_factory=lambda: [0])


@dataclass
class Port:
    """A port. `rx`/`tx` in counters are the switch's view.

    `receiving` is the one queue pair whose receive ring is enabled, `sending` are those whose transmit ring is.
    """

    ref: int
    bridge: str
    enabled: bool = True
    mtu: int = 0
    vlan: Mode = field(default_factory=Mode)
    isolated: bool = False
    guest: Guest | None = None
    receiving: int | None = 0
    sending: set[int] = field(default_factory=lambda: {0})
    counters: Counter[str] = field(default_factory=Counter)
    rx_drops: Counter[str] = field(default_factory=Counter)
    tx_drops: Counter[str] = field(default_factory=Counter)
    inbox: list[bytes] = field(default_factory=list)

    @property
    def link(self) -> bool:
        """Whether it can receive."""
        return self.enabled and self.guest is not None and self.receiving is not None


@dataclass
class Entry:
    """An FDB entry; `seen` in whole seconds."""

    port: int
    seen: int
    static: bool = False


@dataclass
class Bridge:
    """A bridge and its FDB. Entries that are too old stay until they are swept, but don't count as known."""

    limit: int
    aging: int
    forward_bpdu: bool = True
    flood_unknown: bool = True
    punt_bpdu: bool = False
    mirrors: list[Mirror] = field(default_factory=list)
    table: dict[Address, Entry] = field(default_factory=dict)

    def expired(self, entry: Entry, now: int) -> bool:
        """Older than the ageing time, where there is one."""
        return not entry.static and self.aging != 0 and now - entry.seen > self.aging

    def known(self, address: Address, now: int) -> Entry | None:
        """The entry for an address, if there is one and it isn't too old."""
        entry = self.table.get(address)
        return None if entry is None or self.expired(entry, now) else entry

    def live(self, now: int) -> dict[Address, Entry]:
        """What may be shown."""
        return {address: entry for address, entry in self.table.items() if not self.expired(entry, now)}

    def make_room(self, after: Collection[Address]) -> bool:
        """Evict if full; `after` are the addresses that the switch holds now. False when all entries are static."""
        if len(self.table) < self.limit:
            return True
        held = Counter(entry.port for entry in self.table.values() if not entry.static)
        if not held:
            return False
        most = max(held.values())
        victims = [address for address in self.table if address not in after]
        assert len(victims) == 1, f"one entry makes room, not {victims}"
        victim = self.table.pop(victims[0])
        assert not victim.static, "a static entry was evicted"
        assert held[victim.port] == most, f"evicted from a port that holds {held[victim.port]}, the most is {most}"
        return True


class ReferenceSwitch:
    """All ports and bridges; `events` and `punts` are what the core has to report."""

    def __init__(self) -> None:
        self.ports: dict[str, Port] = {}
        self.bridges: dict[str, Bridge] = {}
        self.events: list[tuple[str, int, Address, int]] = []
        self.punts: list[tuple[int, bytes]] = []

    # ---- frames ----

    def transmit(
        self, name: str, frame: bytes, now: int, after: Collection[Address], *, pair: int = 0, bad_header: bool = False
    ) -> None:
        """A guest sends by one of its pairs. `after` as for `Bridge.make_room`."""
        port = self.ports[name]
        parts = take_apart(frame)
        if bad_header or not 14 <= len(frame) <= MAX_FRAME or parts is None:
            port.rx_drops["malformed"] += 1
            return
        self._count_received(port, frame)
        reason = self._forward(port, parts, now, after) if pair in port.sending else "queue_disabled"
        if reason is not None:
            port.rx_drops[reason] += 1

    def _count_received(self, port: Port, frame: bytes) -> None:
        port.counters["rx_packets"] += 1
        port.counters["rx_bytes"] += len(frame)
        size_bin = next(name for upper, name in SIZE_BINS if len(frame) <= upper)
        port.counters[f"rx_{size_bin}_packets"] += 1
        if frame[:6] == b"\xff" * 6:
            port.counters["rx_broadcast_packets"] += 1
        elif is_group(frame):
            port.counters["rx_multicast_packets"] += 1

    def _forward(self, port: Port, frame: Frame, now: int, after: Collection[Address]) -> str | None:
        """Why the frame as a whole goes nowhere, or None."""
        if not port.enabled:
            return "link_down"
        if self._is_output(port):
            return "mirror_output"
        inside = enter(port.vlan, frame.tags)
        left: list[Port] = []
        reason: str | None = "vlan_filtered"
        if inside is None:
            inside = frame.tags
        else:
            reason = self._switch(port, frame, inside, now, after, left)
        for mirror in self.bridges[port.bridge].mirrors:
            self._mirror(mirror, port, frame, inside, left, dropped=reason is not None)
        return reason

    def _switch(
        self, port: Port, frame: Frame, inside: Tags, now: int, after: Collection[Address], left: list[Port]
    ) -> str | None:
        """As `_forward`, of a frame in its VLAN; `left` gets the ports by which it leaves."""
        bridge, dst = self.bridges[port.bridge], frame.macs[:6]
        vid = inside[0].vid if inside else 0
        if is_link_local(dst):
            if bridge.punt_bpdu:
                self.punts.append((port.ref, frame.tagged(frame.tags)))
            if dst == PAUSE or not bridge.forward_bpdu:
                return "bpdu"
        out = None if is_group(dst) else bridge.known((vid, dst), now)
        target = next((p for p in self.ports.values() if out is not None and p.ref == out.port), None)
        self._learn(port, bridge, (vid, frame.macs[6:]), now, after)
        if target is None or target.bridge != port.bridge:
            return self._flood(port, bridge, frame, inside, left)
        if target is port:
            return "same_port"
        self._deliver(port, target, frame, inside, left)
        return None

    def _is_output(self, port: Port) -> bool:
        return any(self.ports.get(mirror.port or "") is port for mirror in self.bridges[port.bridge].mirrors)

    def _mirror(
        self, mirror: Mirror, port: Port, frame: Frame, inside: Tags, left: list[Port], *, dropped: bool
    ) -> None:
        """Send what a mirror wants of this frame: tests.mirrors says it at length."""
        names = {name for name, other in self.ports.items() if other in left}
        everything = not mirror.src and not mirror.dst
        came = everything or any(self.ports.get(name) is port for name in mirror.src)
        vid = inside[0].vid if inside else 0
        if not (came or names & mirror.dst) or (dropped and not mirror.drops):
            return
        if mirror.vlans and vid not in mirror.vlans:
            return
        if mirror.port is not None:
            self._mirror_to(mirror, self.ports[mirror.port], frame, inside)
        elif vid != mirror.vid and not is_link_local(frame.macs):
            assert mirror.vid is not None
            moved = (inside[0]._replace(vid=mirror.vid), *inside[1:]) if inside else (Tag(mirror.vid),)
            for other in self.ports.values():
                if other is not port and other.bridge == port.bridge and not self._is_output(other):
                    self._mirror_to(mirror, other, frame, moved)

    def _mirror_to(self, mirror: Mirror, port: Port, frame: Frame, inside: Tags) -> None:
        tags = leave(port.vlan, inside)
        if tags is None or not port.link:
            return
        whole = frame.tagged(tags)
        copy = whole[: mirror.snaplen]
        cut = len(whole) - len(copy)
        if port.mtu and len(frame.rest) - 2 - cut > port.mtu:
            port.tx_drops["mtu_exceeded"] += 1
        else:
            self._put(port, copy)

    def _learn(self, port: Port, bridge: Bridge, address: Address, now: int, after: Collection[Address]) -> None:
        if is_group(address[1]) or address[1] == NOBODY:
            return
        entry = bridge.table.get(address)
        if entry is None:
            if bridge.make_room(after):
                bridge.table[address] = Entry(port.ref, now)
                self.events.append(("learned", port.ref, address, 0))
            return
        if entry.static:
            return
        if bridge.expired(entry, now):
            self.events.append(("learned", port.ref, address, 0))
        elif entry.port != port.ref:
            self.events.append(("moved", port.ref, address, entry.port))
        bridge.table[address] = Entry(port.ref, now)

    def _flood(self, port: Port, bridge: Bridge, frame: Frame, inside: Tags, left: list[Port]) -> str | None:
        if not is_group(frame.macs) and not bridge.flood_unknown:
            return "no_destination"
        others = [
            other
            for other in self.ports.values()
            if other is not port
            and other.bridge == port.bridge
            and other.link
            and not self._is_output(other)
            and not (port.isolated and other.isolated)
            and leave(other.vlan, inside) is not None
        ]
        for other in others:
            self._deliver(port, other, frame, inside, left)
        return None if others else "no_destination"

    def _deliver(self, source: Port, port: Port, frame: Frame, inside: Tags, left: list[Port]) -> None:
        tags = leave(port.vlan, inside)
        if not port.link:
            port.tx_drops["link_down"] += 1
        elif self._is_output(port):
            port.tx_drops["mirror_output"] += 1
        elif source.isolated and port.isolated:
            port.tx_drops["isolated"] += 1
        elif tags is None:
            port.tx_drops["vlan_filtered"] += 1
        elif port.mtu and len(frame.rest) - 2 > port.mtu:
            port.tx_drops["mtu_exceeded"] += 1
        else:
            left.append(port)
            self._put(port, frame.tagged(tags))

    def _put(self, port: Port, copy: bytes) -> None:
        """Into a guest's buffers, if it has some that fit."""
        reason = self._obstacle(port, copy)
        if reason is not None:
            port.tx_drops[reason] += 1
            return
        port.inbox.append(copy)
        port.counters["tx_packets"] += 1
        port.counters["tx_bytes"] += len(copy)

    def _obstacle(self, port: Port, frame: bytes) -> str | None:
        """Why a copy doesn't fit into a guest's buffers; if it does, they are used."""
        guest, pair = port.guest, port.receiving
        assert guest is not None
        assert pair is not None
        if guest.posted[pair] == 0:
            return "guest_rx_full"
        need = -(-(guest.header + len(frame)) // guest.buffer)
        if need > 1 and not guest.mergeable:
            return "guest_rx_too_small"
        if need > guest.posted[pair]:
            return "guest_rx_full"
        guest.posted[pair] -= need
        return None

    # ---- control ----

    def flush(self, bridge: str, *, port: int | None = None, vid: int | None = None, mac: bytes | None = None) -> int:
        """Remove the dynamic entries that match everything given: how many."""
        table = self.bridges[bridge].table
        gone = [
            key
            for key, entry in table.items()
            if not entry.static and port in (None, entry.port) and vid in (None, key[0]) and mac in (None, key[1])
        ]
        for key in gone:
            del table[key]
        return len(gone)

    def sweep(self, bridge: str, now: int) -> int:
        """Remove what is too old: how many."""
        b = self.bridges[bridge]
        before = len(b.table)
        b.table = b.live(now)
        return before - len(b.table)

    def set_static(self, bridge: str, address: Address, port: int, after: Collection[Address]) -> bool:
        """A static entry in the place of any other; False when only static ones could make room."""
        b = self.bridges[bridge]
        b.table.pop(address, None)
        if not b.make_room(after):
            return False
        b.table[address] = Entry(port, 0, static=True)
        return True
