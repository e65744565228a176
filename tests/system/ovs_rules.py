# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch's flows as the reference of ours and a list of rules, each a way in which it does something else.

`OvsSwitch` with all of them is Open vSwitch 3.1, userspace datapath, vlan-limit 2; with none of them it is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from enum import Enum

from tests.flow_edits import CHECKSUM_AT, Edited, moved_sum
from tests.flow_fields import HEADER, ICMP, ICMPV6, IPV4, IPV6, Headers, number
from tests.flow_reference import Flow, FlowSwitch, Table, Walk
from tests.property.reference import Address, Frame, Port
from tests.vlans import Tag, Tags


class Rule(Enum):
    """What Open vSwitch does and we don't."""

    OWN = "a frame to its own source address goes nowhere: it learns before it looks"
    DEI = "a tag that is changed, or put on, has no DEI"
    TWO_TAGS = "it has room for two tags in all: a push onto two loses the inner one"
    PRIORITY_0 = "`normal` takes off a tag with VID 0 and priority 0, and all that it sees behind it"
    LATER_SUM = "a changed address changes payload of later fragments of TCP and UDP, as if a checksum were there"
    SIGHT = "it looks at the whole of a frame, however long the headers before L4 are"
    EXTENSION = "with an extension header that is cut short IPv6 has addresses, and nothing else"
    NO_HEADER = "an IP header that is not valid has TTL 0: dec_ttl drops the frame"
    PROTOCOL_0 = "the header of IP is not edited when its protocol is 0, or not known"
    ICMP_TYPE = "mod_tp_src and mod_tp_dst change the type and the code of ICMP"
    SCTP_FRAGMENT = "a changed port of a first fragment changes the checksum of SCTP as if there were no more of it"
    ND_OPTIONS = "neighbour discovery has no target if one of its addresses is told twice"


EVERY = frozenset(Rule)


class OvsSwitch(FlowSwitch):
    """Open vSwitch, as far as its frames differ from ours by these rules."""

    def __init__(self, rules: frozenset[Rule] = EVERY) -> None:
        super().__init__()
        self.rules = rules
        self.sent_tags: list[Tag] = []

    def _headers(self, data: bytes) -> Headers:
        headers = super()._headers(data)
        fields = headers.fields
        if headers.dl_type == IPV6 and headers.l3 is not None:
            if headers.cut and Rule.EXTENSION in self.rules:
                fields |= {"nw_proto": 0, "nw_tos": 0, "nw_ttl": 0, "nw_frag": 0}
            if "nd_target" in fields and Rule.ND_OPTIONS in self.rules:
                assert headers.l4 is not None
                if repeats_itself(headers.frame.rest[headers.l4 + 24 : headers.end]):
                    fields["nd_target"] = 0
        return headers

    def _hides(self, headers: Headers) -> bool:
        return Rule.SIGHT not in self.rules and super()._hides(headers)

    def _act(self, walk: Walk, table: Table, word: str, argument: str) -> bool:
        frame = walk.frame
        if Rule.SCTP_FRAGMENT in self.rules:
            frame._sctp_is_cut = lambda: False  # type: ignore[method-assign]
        if word == "push_vlan" and Rule.TWO_TAGS in self.rules:
            del frame.tags[1:]
        if word in ("mod_nw_src", "mod_nw_dst", "mod_nw_tos") and self._unknown(walk):
            return True
        if word in ("mod_nw_src", "mod_nw_dst") and Rule.LATER_SUM in self.rules:
            return self._set_address(walk, word, argument)
        if word in ("mod_tp_src", "mod_tp_dst") and Rule.ICMP_TYPE in self.rules:
            self._set_icmp(walk.frame, 0 if word == "mod_tp_src" else 1, int(argument) & 0xFF)
        return super()._act(walk, table, word, argument)

    def _set_address(self, walk: Walk, word: str, argument: str) -> bool:
        frame, headers = walk.frame, walk.frame.headers
        if headers.dl_type == IPV4 and headers.later and headers.l3 is not None and headers.proto in CHECKSUM_AT:
            at = headers.l3 + (frame.rest[headers.l3] & 15) * 4
            if headers.end - at >= HEADER[headers.proto]:
                headers.l4 = at  # for this action only
        try:
            frame.apply(word, argument)
        finally:
            if headers.later:
                headers.l4 = None
        return True

    def _set_icmp(self, frame: Edited, offset: int, value: int) -> None:
        at, kind = frame.headers.l4, (frame.headers.dl_type, frame.headers.proto)
        if at is not None and kind in ((IPV4, ICMP), (IPV6, ICMPV6)):
            old = bytes(frame.rest[at : at + 2])
            frame.rest[at + offset] = value
            checksum = moved_sum(number(frame.rest[at + 2 : at + 4]), old, frame.rest[at : at + 2])
            frame.rest[at + 2 : at + 4] = checksum.to_bytes(2, "big")

    def _unknown(self, walk: Walk) -> bool:
        return walk.frame.headers.proto == 0 and Rule.PROTOCOL_0 in self.rules

    def _hop(self, walk: Walk) -> bool:
        headers = walk.frame.headers
        if headers.dl_type not in (IPV4, IPV6) or not self._unknown(walk):
            return super()._hop(walk)
        if "nw_ttl" not in headers.fields:
            return Rule.NO_HEADER not in self.rules
        headers.fields["nw_ttl"] -= 1
        return headers.fields["nw_ttl"] > 0

    def _send(self, walk: Walk, target: Port) -> None:
        self._commit(walk)
        super()._send(walk, target)

    def _commit(self, walk: Walk) -> None:
        """It compares from the innermost tag, takes off from the first one that isn't right, and puts on the rest."""
        if Rule.DEI not in self.rules:
            return
        tags, before = walk.frame.tags, self.sent_tags
        same = 0
        for old, new in zip(reversed(before), reversed(tags), strict=False):
            if old._replace(dei=0) != new._replace(dei=0):
                break
            same += 1
        changed = len(tags) - same
        tags[:] = [tag._replace(dei=0) for tag in tags[:changed]] + before[len(before) - same :]
        self.sent_tags = list(tags)

    def _walk(self, walk: Walk, flow: Flow, table: Table) -> str | None:
        self.sent_tags = list(walk.frame.tags)
        return super()._walk(walk, flow, table)

    def _normal(self, walk: Walk) -> None:
        kept, sent, decided = list(walk.frame.tags), self.sent_tags, walk.decided
        if Rule.PRIORITY_0 in self.rules:
            walk.frame.tags[:] = itertools.takewhile(lambda tag: tag.vid or tag.pcp, kept)
        self._commit(walk)
        super()._normal(walk)
        walk.frame.tags[:] = kept
        if walk.decided == decided:
            self.sent_tags = sent

    def _switch(
        self, port: Port, frame: Frame, inside: Tags, now: int, after: Collection[Address], left: list[Port]
    ) -> str | None:
        if frame.macs[:6] == frame.macs[6:] and Rule.OWN in self.rules:
            self._learn(port, self.bridges[port.bridge], (inside[0].vid if inside else 0, frame.macs[6:]), now, after)
            return "same_port"
        return super()._switch(port, frame, inside, now, after, left)


def repeats_itself(options: bytes | bytearray) -> bool:
    """Whether a link-layer address (RFC 4861, 4.6.1) is there once more."""
    seen = set()
    while len(options) >= 8 and 0 < options[1] * 8 <= len(options):
        if options[0] in (1, 2) and options[1] == 1:
            if options[0] in seen:
                return True
            if any(options[2:8]):
                seen.add(options[0])
        options = options[options[1] * 8 :]
    return False
