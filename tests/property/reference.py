# SPDX-License-Identifier: Apache-2.0
"""A reference switch: dicts and lists, one frame at a time, written from API.md and IEEE 802.1Q, not from the core.

It knows the whole of what a port may see: bytes received, counters, drop reasons, reports. Where the contract leaves
a choice (which of several entries is evicted) it is told what the switch chose and checks that it was allowed to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

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
    at, tags = 12, []
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
        bridge, dst = self.bridges[port.bridge], frame.macs[:6]
        if not port.enabled:
            return "link_down"
        inside = enter(port.vlan, frame.tags)
        if inside is None:
            return "vlan_filtered"
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
            return self._flood(port, bridge, frame, inside)
        if target is port:
            return "same_port"
        self._deliver(port, target, frame, inside)
        return None

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

    def _flood(self, port: Port, bridge: Bridge, frame: Frame, inside: Tags) -> str | None:
        if not is_group(frame.macs) and not bridge.flood_unknown:
            return "no_destination"
        others = [
            other
            for other in self.ports.values()
            if other is not port
            and other.bridge == port.bridge
            and other.link
            and not (port.isolated and other.isolated)
            and leave(other.vlan, inside) is not None
        ]
        for other in others:
            self._deliver(port, other, frame, inside)
        return None if others else "no_destination"

    def _deliver(self, source: Port, port: Port, frame: Frame, inside: Tags) -> None:
        tags = leave(port.vlan, inside)
        copy = b"" if tags is None else frame.tagged(tags)
        if not port.link:
            reason: str | None = "link_down"
        elif source.isolated and port.isolated:
            reason = "isolated"
        elif tags is None:
            reason = "vlan_filtered"
        elif port.mtu and len(frame.rest) - 2 > port.mtu:
            reason = "mtu_exceeded"
        else:
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
