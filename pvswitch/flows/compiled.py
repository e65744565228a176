# SPDX-License-Identifier: Apache-2.0
"""Flows as the core takes them: arrays of struct pvs_flow_conf and struct pvs_flow_action (pvs_api.h), as bytes.

What depends on a flow alone is worked out once (`compile_flow`, which who has the flow keeps); `table` then puts any
number of them together, with the slots that names have on their bridge and the counters that they were given. The
tests hold the numbers here against the core's.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from struct import Struct

from pvswitch.flows.actions import KINDS, Action, Named
from pvswitch.flows.fields import WORDS
from pvswitch.flows.match import Match

FLOW = Struct(f"={2 * WORDS}Q4I")
ACTION = Struct("=IIQ")
KIND_NUMBERS: dict[str, int] = {kind: number for number, kind in enumerate(KINDS) if kind != "drop"}
"""What the core calls each action; `drop` is to have none."""

_ENTRY = Struct(f"=Q{8 * (WORDS - 1)}sQ{8 * (WORDS - 1)}s4I")
_SLOT = 32  # where the port's slot stands in the first word

Slots = Mapping[tuple[Named, str], int]
"""The number of each port, meter and mirror that flows of a bridge name."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A flow without its slots: words of its keys and masks, each the first and the other eleven; its actions."""

    in_port: str | None
    priority: int
    entries: tuple[tuple[int, bytes, int, bytes], ...]
    actions: tuple[Action, ...]

    names: frozenset[tuple[Named, str]]  # of ports, meters and mirrors


def compile_flow(match: Match, priority: int, actions: tuple[Action, ...]) -> Compiled:
    """Return a flow in the core's words."""
    kept = tuple(action for action in actions if action.kind != "drop")
    entries = tuple((*_split(key), *_split(mask)) for key, mask in match.entries())
    names: set[tuple[Named, str]] = set() if match.in_port is None else {("port", match.in_port)}
    for action in kept:
        if (named := KINDS[action.kind].named) is not None:
            names.add((named, action.name))
    return Compiled(match.in_port, priority, entries, kept, frozenset(names))


def _split(words: int) -> tuple[int, bytes]:
    """Return the first of twelve words as a number, and the rest as the machine has them."""
    rest = array("Q", (words & ((1 << 64 * (WORDS - 1)) - 1)).to_bytes(8 * (WORDS - 1), "big"))
    if sys.byteorder == "little":
        rest.byteswap()
    return words >> 64 * (WORDS - 1), rest.tobytes()


def words_of(key: int) -> tuple[int, ...]:
    """Return a key or a mask as the core's twelve words."""
    return tuple(key >> 64 * (WORDS - 1 - i) & 0xFFFFFFFFFFFFFFFF for i in range(WORDS))


def key_of(words: Iterable[int]) -> int:
    """Return twelve words of the core as one number, in which `fields.FIELDS` are found."""
    key = 0
    for word in words:
        key = key << 64 | word
    return key


def table(flows: Iterable[tuple[Compiled, int]], slots: Slots) -> tuple[bytes, int, bytes, int]:
    """Return flows, each with its counter, as both arrays, and how many there are in each.

    They are in the order given, which is that of flows with the same priority. Equal lists of actions are there once.
    """
    entries = bytearray()
    actions = bytearray()
    places: dict[tuple[Action, ...], int] = {}
    count = n_actions = 0
    pack = _ENTRY.pack
    for flow, counter in flows:
        first = places.get(flow.actions)
        if first is None:
            first = places[flow.actions] = n_actions
            for kind, name, value in flow.actions:
                named = KINDS[kind].named
                actions += ACTION.pack(KIND_NUMBERS[kind], slots[named, name] if named else 0, value)
            n_actions += len(flow.actions)
        port = 0 if flow.in_port is None else slots["port", flow.in_port] << _SLOT
        for key, rest, mask, rest_mask in flow.entries:
            entries += pack(key | port, rest, mask, rest_mask, flow.priority, counter, first, len(flow.actions))
            count += 1
    return bytes(entries), count, bytes(actions), n_actions
