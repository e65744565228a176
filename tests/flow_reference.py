# SPDX-License-Identifier: Apache-2.0
"""Flows the slow and obvious way: the reference switch, with a table of flows on each bridge.

Written from API.md, ovs-fields(7) and ovs-actions(7). A table is a list that is searched from its first flow to its
last; actions are carried out one after the other, on bytes (tests.flow_edits). What `normal` does is what the
reference switch does without flows, to the frame as it is by then. Counters, drop reasons, inboxes: as there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from tests.flow_edits import Edited, sums
from tests.flow_fields import Headers, fits, headers_of
from tests.property.reference import Address, Frame, Port, ReferenceSwitch
from tests.vlans import enter

SENDING = ("normal", "output", "flood", "all", "in_port")
DEEP = ("mod_nw_src", "mod_nw_dst", "mod_nw_tos", "mod_tp_src", "mod_tp_dst", "dec_ttl")
FLAT = frozenset(["in_port", "tun_id", "dl_src", "dl_dst", "dl_type", "dl_vlan", "dl_vlan_pcp", "vlan_tci"])


@dataclass
class Flow:
    """A flow as in the configuration, and what it has counted."""

    name: str
    match: Mapping[str, object]
    actions: Sequence[str]
    priority: int = 32768
    packets: int = 0
    bytes: int = 0

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Its actions, each with its argument."""
        parts = [action.partition(":") for action in self.actions]
        return [(word, argument) for word, _, argument in parts]


@dataclass
class Meter:
    """A token bucket: so many a second on average, so many at once; bytes, or frames."""

    per_second: int
    depth: int
    packets: bool = False
    tokens: Fraction | None = None
    seen_ns: int = 0
    offered: int = 0
    dropped: int = 0

    def lets_pass(self, size: int, now_ns: int) -> bool:
        """Whether a frame is within the rate; it is taken from the bucket then."""
        need = 1 if self.packets else size
        grown = Fraction((now_ns - self.seen_ns) * self.per_second, 1_000_000_000)
        self.tokens = Fraction(self.depth) if self.tokens is None else min(Fraction(self.depth), self.tokens + grown)
        self.seen_ns = now_ns
        self.offered += 1
        if self.tokens < need:
            self.dropped += 1
            return False
        self.tokens -= need
        return True


@dataclass
class Table:
    """A bridge's flows and meters."""

    flows: list[Flow] = field(default_factory=list)
    meters: dict[str, Meter] = field(default_factory=dict)

    @property
    def deep(self) -> bool:
        """Whether anything in it looks at, or edits, what is behind Ethernet."""
        steps = (word for flow in self.flows for word, _ in flow.steps)
        return any(word in DEEP for word in steps) or any(not FLAT.issuperset(flow.match) for flow in self.flows)

    def lookup(self, in_port: str, fields: Mapping[str, int]) -> Flow | None:
        """The flow of the highest priority that fits; among equals the one whose name sorts first."""
        ordered = sorted(self.flows, key=lambda flow: (-flow.priority, flow.name))
        return next((flow for flow in ordered if fits(flow.match, in_port, fields)), None)


@dataclass
class Walk:
    """A frame on its way through the actions of a flow."""

    port: Port
    frame: Edited
    now_ns: int
    after: Collection[Address]
    size: int
    """As it came."""
    named: set[str] = field(default_factory=set)
    """Mirrors that get it whatever they select."""
    left: list[Port] = field(default_factory=list)
    decided: int = 0
    """Copies, those included that are dropped where they would have left."""
    reason: str | None = None
    """Why it went nowhere: the first of the reasons that there were."""


class FlowSwitch(ReferenceSwitch):
    """The reference switch; `tables` by bridge. A bridge without a table does `normal` with every frame."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Table] = {}
        self.now_ns = 0

    def transmit(
        self, name: str, frame: bytes, now: int, after: Collection[Address], *, pair: int = 0, bad_header: bool = False
    ) -> None:
        """As in the reference switch; on a bridge whose flows look so deep, a frame that hides its L4 is malformed."""
        table, headers = self.tables.get(self.ports[name].bridge), headers_of(frame)
        hides = table is not None and table.deep and headers is not None and self._hides(headers)
        super().transmit(name, frame, now, after, pair=pair, bad_header=bad_header or hides)

    def _forward(self, port: Port, frame: Frame, now: int, after: Collection[Address]) -> str | None:
        """As in the reference switch, but by what the flow that fits says."""
        table = self.tables.get(port.bridge)
        if table is None or not port.enabled or self._is_output(port):
            return super()._forward(port, frame, now, after)
        data = frame.tagged(frame.tags)
        headers = self._headers(data)
        flow = table.lookup(self.name_of(port), headers.fields)
        if flow is None:
            return super()._forward(port, frame, now, after)
        flow.packets += 1
        flow.bytes += len(data)
        walk = Walk(port, Edited(headers), self.now_ns or now * 1_000_000_000, after, len(data))
        reason = self._walk(walk, flow, table)
        inside = enter(port.vlan, frame.tags)
        tags = frame.tags if inside is None else inside
        for number, mirror in enumerate(self.bridges[port.bridge].mirrors):
            if f"m{number}" in walk.named:
                mirror = replace(mirror, src=frozenset(), dst=frozenset(), vlans=frozenset(), drops=True)
            self._mirror(mirror, port, frame, tags, walk.left, dropped=reason is not None)
        return reason

    def _hides(self, headers: Headers) -> bool:
        """Whether a frame's L4 is out of sight."""
        return headers.hides

    def _headers(self, data: bytes) -> Headers:
        """The headers of a frame that is forwarded."""
        found = headers_of(data)
        assert found is not None
        return found

    def name_of(self, port: Port) -> str:
        """What a port is called."""
        return next(name for name, other in self.ports.items() if other is port)

    def _walk(self, walk: Walk, flow: Flow, table: Table) -> str | None:
        """Carry out the actions; why the frame as a whole goes nowhere, or None."""
        for word, argument in flow.steps:
            if not self._act(walk, table, word, argument):
                break
        if walk.decided:
            return None
        if walk.reason is not None:
            return walk.reason
        return "no_destination" if any(word in SENDING for word, _ in flow.steps) else "flow_drop"

    def _act(self, walk: Walk, table: Table, word: str, argument: str) -> bool:
        """Carry out an action; whether those behind it are carried out as well."""
        match word:
            case "output":
                if self.ports[argument] is not walk.port:
                    self._send(walk, self.ports[argument])
            case "in_port":
                self._send(walk, walk.port)
            case "flood" | "all":
                for other in self._flooded(walk.port):
                    self._send(walk, other)
            case "normal":
                self._normal(walk)
            case "meter":
                return self._metered(walk, table.meters[argument])
            case "mirror":
                walk.named.add(argument)
            case "dec_ttl":
                return self._hop(walk)
            case "drop" | "set_tunnel":
                pass
            case _:
                return self._edit(walk, word, argument)
        return True

    def _edit(self, walk: Walk, word: str, argument: str) -> bool:
        right = sums(walk.frame)
        walk.frame.apply(word, argument)
        if "vlan" not in word:
            assert sums(walk.frame) == right, f"{word} made a checksum wrong, or right"
        return True

    def _flooded(self, source: Port) -> list[Port]:
        """The ports that `flood` sends to."""
        return [
            other
            for other in self.ports.values()
            if other is not source
            and other.bridge == source.bridge
            and other.link
            and not self._is_output(other)
            and not (source.isolated and other.isolated)
        ]

    def _send(self, walk: Walk, target: Port) -> None:
        """A copy of the frame as it is by now, whatever the port's VLANs."""
        walk.decided += 1
        if not target.link:
            target.tx_drops["link_down"] += 1
        elif self._is_output(target):
            target.tx_drops["mirror_output"] += 1
        elif target is not walk.port and target.isolated and walk.port.isolated:
            target.tx_drops["isolated"] += 1
        elif target.mtu and len(walk.frame.rest) - 2 > target.mtu:
            target.tx_drops["mtu_exceeded"] += 1
        else:
            walk.left.append(target)
            self._put(target, walk.frame.data())

    def _normal(self, walk: Walk) -> None:
        edited = walk.frame
        visible = edited.look_again()
        frame = Frame(bytes(edited.macs), tuple(edited.tags), bytes(edited.rest))
        inside = enter(walk.port.vlan, frame.tags) if visible else None
        reason: str | None = "vlan_filtered"
        if inside is not None:
            reason = self._switch(walk.port, frame, inside, walk.now_ns // 1_000_000_000, walk.after, walk.left)
        if reason is None:
            walk.decided += 1
        else:
            walk.reason = walk.reason or reason

    def _metered(self, walk: Walk, meter: Meter) -> bool:
        if meter.lets_pass(walk.size, walk.now_ns):
            return True
        walk.reason = walk.reason or "meter"
        return False

    def _hop(self, walk: Walk) -> bool:
        ttl = walk.frame.ttl
        if ttl is None:
            return True
        if ttl <= 1:
            walk.reason = walk.reason or "ttl_exceeded"
            return False
        walk.frame.decrement_ttl()
        return True
