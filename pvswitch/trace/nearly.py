# SPDX-License-Identifier: Apache-2.0
"""In which field a frame differs from a flow that nearly matched: what the flow wants there, and what the frame has.

The core names the one word of the flow's mask that differs; the fields in it are those of `pvswitch.flows`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pvswitch.flows.compiled import key_of
from pvswitch.flows.fields import FIELDS, PRESENT, WORDS, Field
from pvswitch.flows.match import Match

_TAG = ("dl_vlan", "dl_vlan_pcp", "vlan_tci")
_OWN = {"dl_vlan": 0x1FFF, "dl_vlan_pcp": 0xF000}
"""The bits of the tag that are a field's, where three fields share it."""


class Difference(NamedTuple):
    """A field in which a frame differs from a flow."""

    field: str
    wanted: str
    found: str


def difference(match: Match, key: Sequence[int], word: int, in_port: str) -> Difference | None:
    """Return the one field of a word in which a frame with this key differs; None where there are more, or none."""
    found = [*_differences(match, key, word, in_port)]
    if found and all(item.field in _TAG for item in found):
        return found[0]
    return found[0] if len(found) == 1 else None


def _differences(match: Match, key: Sequence[int], word: int, in_port: str) -> Iterator[Difference]:
    frame = key_of(key)
    low = 64 * (WORDS - 1 - word)
    ranges = {name: (first, last) for name, first, last in match.ranges}
    for name, wanted in match.fields().items():
        if name == "in_port":
            if word == 0 and match.in_port != in_port:
                yield Difference(name, str(wanted), in_port)
            continue
        field = FIELDS[name]
        if field.shift >= low + 64 or field.shift + field.bits <= low:
            continue
        full = (1 << field.bits) - 1
        found = frame >> field.shift & full
        differs = bool((found ^ match.key >> field.shift) & match.mask >> field.shift & _OWN.get(name, full))
        if name in ranges:
            differs = not ranges[name][0] <= found <= ranges[name][1]
        if differs:
            yield Difference(name, str(wanted), _shown(field, found))


def _shown(field: Field, value: int) -> str:
    """Return what a frame has in a field."""
    if field.name in _TAG and not value & PRESENT:
        return "absent (there is no tag)"
    return str(field.show(field, value, 3 if field.name == "nw_frag" else field.full))
