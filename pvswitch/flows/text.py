# SPDX-License-Identifier: Apache-2.0
"""Flows as the text of ovs-ofctl(8): "priority=100,tcp,in_port=vm1,tp_dst=80,actions=output:uplink".

`read_flow` makes of a line what the configuration has as JSON, whose values are judged by the same functions;
`read_flows` reads a file of them. `show_flow` prints, also with counters as `ovs-ofctl dump-flows` does, and what was
printed can be read again: counters are left out then, as Open vSwitch leaves them out. A `name=` is ours: absent, a
flow is named by its priority and match (`match_name`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.flows.actions import Action, read_actions
from pvswitch.flows.fields import SHORTHANDS
from pvswitch.flows.match import MatchFields, read_match

DEFAULT_PRIORITY = 32768
MAX_TEXT = 8192
"""Characters of one flow: more than any with all fields, masks and actions has."""

_ACTIONS = re.compile(r"(?:^|(?<=[\s,]))actions?\s*=(.*)$", re.DOTALL)
_WORDS = re.compile(r"[^\s,=]+(?:\s*=\s*[^\s,]*)?")
_NUMBERS = ("priority", "idle_timeout", "hard_timeout")
_COUNTERS = frozenset({"duration", "n_packets", "n_bytes", "idle_age", "hard_age"})
_LOUD = {"normal": "NORMAL", "flood": "FLOOD", "all": "ALL", "in_port": "IN_PORT"}
_REFUSED = {
    "table": "there is one table: leave it out",
    "out_port": "is not available in this switch: leave it out",
    "out_group": "is not available in this switch: leave it out",
    "importance": "is not available in this switch: leave it out",
    "check_overlap": "is not available in this switch: two flows with the same priority and match are always refused",
    "send_flow_rem": "is not available in this switch: leave it out",
    "reset_counts": "is not available in this switch: a flow that is changed begins to count anew",
    "no_packet_counts": "is not available in this switch: leave it out",
    "no_byte_counts": "is not available in this switch: leave it out",
}


# ---- reading ----


def read_flow(text: str, *, actions: bool = True, judged: bool = True) -> dict[str, Any]:
    """Return a flow as JSON has it, and its `name` where the text gives one; InvalidDocument with every error.

    `actions` False: of a flow that is only named, which has none. `judged` False: the caller judges match and actions,
    which of very many flows takes a while; together with other errors they are judged here all the same.
    """
    if len(text) > MAX_TEXT:
        raise InvalidDocument([FieldError((), f"is longer than {MAX_TEXT} characters, which no flow is")])
    errors: list[FieldError] = []
    found = _ACTIONS.search(text)
    flow, match = _read_words(text[: found.start()] if found else text, errors)
    given = split_actions(found[1]) if found else []
    if actions and found is None:
        errors.append(FieldError(("actions",), "is missing: end the flow with actions=..."))
    if not actions and found is not None:
        errors.append(FieldError(("actions",), "is too much: priority and match say which flow it is"))
    for key, work in (("match", lambda: read_match(match)), ("actions", lambda: read_actions(given))):
        try:
            if judged or errors:
                work()
        except InvalidDocument as error:
            errors += [FieldError((key, *item.loc), item.message) for item in error.errors]
    if errors:
        raise InvalidDocument(errors)
    return {**flow, "match": match, **({"actions": given} if actions else {})}


def _read_words(text: str, errors: list[FieldError]) -> tuple[dict[str, Any], dict[str, object]]:
    """Return what stands before the actions: keys of the flow, and of its match."""
    flow: dict[str, Any] = {}
    match: dict[str, object] = {}
    for word in _WORDS.findall(text):
        key, has, value = word.partition("=")
        key, value = key.strip(), value.strip()
        if key in _REFUSED:
            errors.append(FieldError((key,), _REFUSED[key]))
        elif key in _COUNTERS:
            continue
        elif not has and key in SHORTHANDS:
            kind, protocol = SHORTHANDS[key]
            _put(match, "dl_type", f"0x{kind:04x}", ("match",), errors)
            if protocol is not None:
                _put(match, "nw_proto", protocol, ("match",), errors)
        elif not has or not value:
            errors.append(FieldError((key,), f"needs a value: write {key}=..."))
        elif key in ("name", "cookie"):
            _put(flow, key, value, (), errors)
        elif key in _NUMBERS:
            whole = re.fullmatch(r"0|[1-9][0-9]{0,9}", value)
            if whole is None:
                errors.append(FieldError((key,), "must be a whole number"))
            else:
                _put(flow, key, int(value), (), errors)
        else:
            _put(match, key, value, ("match",), errors)
    return flow, match


def _put(target: dict[str, Any], key: str, value: object, loc: tuple[str, ...], errors: list[FieldError]) -> None:
    if key in target and _number(target[key]) != _number(value):
        errors.append(FieldError((*loc, key), f"is given twice, as {target[key]} and as {value}: keep one"))
    target.setdefault(key, value)


def _number(value: object) -> object:
    """Return a number however it is written."""
    try:
        return int(str(value), 0)
    except ValueError:
        return value


def split_actions(text: str) -> list[str]:
    """Return the actions of a text, between commas or spaces that aren't in parentheses."""
    found, depth, word = [], 0, ""
    for char in text:
        if depth == 0 and (char == "," or char.isspace()):
            found.append(word)
            word = ""
            continue
        depth += (char == "(") - (char == ")" and depth > 0)
        word += char
    return [word for word in [*found, word] if word]


def read_flows(text: str, *, judged: bool = True) -> list[tuple[int, dict[str, Any]]]:
    """Return the flows of a file, one in a line, each with the line's number; `#` begins a comment.

    InvalidDocument with every error of every line, its place beginning with the line.
    """
    flows, errors = [], list[FieldError]()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line or re.match(r"(NXST|OFPST)_FLOW reply", line):  # the first line of what ovs-ofctl prints
            continue
        try:
            flows.append((number, read_flow(line, judged=judged)))
        except InvalidDocument as error:
            errors += [FieldError((f"line {number}", *item.loc), item.message) for item in error.errors]
    if errors:
        raise InvalidDocument(errors)
    return flows


# ---- printing ----


def match_name(priority: int, match: MatchFields) -> str:
    """Return the name of a flow that was given none."""
    text = match.text()
    return f"priority={priority},{text}" if text else f"priority={priority}"


def named_by_match(text: str) -> str:
    """Return the name of the flow with this priority and match, however they are written; InvalidDocument."""
    flow = read_flow(text, actions=False)
    for key in flow.keys() - {"priority", "match"}:
        raise InvalidDocument([FieldError((key,), "doesn't say which flow it is: leave it out")])
    return match_name(flow.get("priority", DEFAULT_PRIORITY), read_match(flow["match"]).fields())


def show_actions(actions: Iterable[Action]) -> str:
    """Return actions as ovs-ofctl(8) prints them."""
    return ",".join(_LOUD.get(action.kind) or action.text() for action in actions)


def show_flow(flow: Mapping[str, Any], name: str | None = None, counters: Sequence[str] = ()) -> str:
    """Return a flow of JSON (with defaults where keys are absent) as text; `counters` stand before the rest.

    Its name is there where it has one of its own.
    """
    match = read_match(flow.get("match", {})).fields()
    priority = flow.get("priority", DEFAULT_PRIORITY)
    words = [f"cookie={flow.get('cookie', '0x0')}", *counters]
    words += [f"{key}={flow[key]}" for key in ("idle_timeout", "hard_timeout") if flow.get(key)]
    by_match = match_name(priority, match)
    if name is not None and name != by_match:
        words.append(f"name={name}")
    return f"{', '.join([*words, by_match])} actions={show_actions(read_actions(flow['actions']))}"
