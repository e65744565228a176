# SPDX-License-Identifier: Apache-2.0
"""What a flow does with a frame: actions as text ("set_vlan_vid:20"), read, checked and printed.

`KINDS` is the table: what each action is called, and how its argument is written. Names are not looked up here; who
has a bridge checks them. Text is that of ovs-actions(7), in lower case; what Open vSwitch has under another name, or
has and this switch hasn't, is refused by name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pvswitch.errors import FieldError, InvalidDocument
from pvswitch.flows.fields import LONGEST, NAME, BadValue, ipv4_number, mac_number, mac_text, number

MAX_ACTIONS = 32  # PVS_MAX_ACTIONS
MAX_VARIANTS = 8  # PVS_MAX_VARIANTS: different forms of a frame that leave
MAX_TAGS = 2  # that are pushed
MAX_FLOODS = 4  # PVS_MAX_FLOODS

Named = Literal["port", "meter", "mirror"]


class Action(NamedTuple):
    """One action: its kind, a key of KINDS; the name of what it is about, or its number."""

    kind: str
    name: str = ""
    value: int = 0

    def text(self) -> str:
        """Return it as OVS text."""
        kind = KINDS[self.kind]
        if kind.named is not None:
            return f"{self.kind}:{self.name}"
        return self.kind if kind.read is None else f"{self.kind}:{kind.show(self.value)}"


class Kind(NamedTuple):
    """What an action is: what its argument names, or how that is read and printed; neither, and it has none."""

    named: Named | None = None
    read: Callable[[str], int] | None = None
    show: Callable[[int], str] = str
    edits: bool = False  # whether the frame that leaves is another one
    sends: bool = False  # whether the frame, as it is by now, leaves


def _up_to(top: int) -> Callable[[str], int]:
    return lambda text: number(text, top)


def _tpid(text: str) -> int:
    value = number(text, 0xFFFF)
    if value not in (0x8100, 0x88A8):
        raise BadValue("must be 0x8100 or 0x88a8")
    return value


def _tos(text: str) -> int:
    value = number(text, 255)
    if value & 3:
        raise BadValue("must be a multiple of 4: its two lowest bits are ECN, which stays as it is")
    return value


def _ipv4_text(value: int) -> str:
    return ".".join(str(byte) for byte in value.to_bytes(4, "big"))


# In the order of enum pvs_flow_action_kind, with `drop`, which is no action there.
KINDS: dict[str, Kind] = {
    "output": Kind(named="port", sends=True),
    "in_port": Kind(sends=True),
    "all": Kind(sends=True),
    "flood": Kind(sends=True),
    "normal": Kind(sends=True),
    "mirror": Kind(named="mirror"),
    "meter": Kind(named="meter"),
    "push_vlan": Kind(read=_tpid, show=lambda value: f"0x{value:04x}", edits=True),
    "pop_vlan": Kind(edits=True),
    "set_vlan_vid": Kind(read=_up_to(4095), edits=True),
    "set_vlan_pcp": Kind(read=_up_to(7), edits=True),
    "mod_dl_src": Kind(read=mac_number, show=mac_text, edits=True),
    "mod_dl_dst": Kind(read=mac_number, show=mac_text, edits=True),
    "mod_nw_src": Kind(read=ipv4_number, show=_ipv4_text, edits=True),
    "mod_nw_dst": Kind(read=ipv4_number, show=_ipv4_text, edits=True),
    "mod_nw_tos": Kind(read=_tos, edits=True),
    "mod_tp_src": Kind(read=_up_to(65535), edits=True),
    "mod_tp_dst": Kind(read=_up_to(65535), edits=True),
    "dec_ttl": Kind(edits=True),
    "set_tunnel": Kind(read=_up_to(0xFFFFFFFF), show=hex),
    "drop": Kind(),
}

# What Open vSwitch has too, under these names.
SYNONYMS = {
    "mod_vlan_vid": "set_vlan_vid",
    "mod_vlan_pcp": "set_vlan_pcp",
    "strip_vlan": "pop_vlan",
    "set_tunnel64": "set_tunnel",
    "local": "output:PORT",
    "set_field": "an action like mod_dl_src:MAC or set_vlan_vid:N",
    "load": "an action like mod_dl_src:MAC or set_vlan_vid:N",
    "goto_table": "all of it in one table",
}
FOREIGN = frozenset(
    {
        *("resubmit", "ct", "ct_clear", "nat", "learn", "delete_learned", "group", "controller", "conjunction"),
        *("clone", "note", "exit", "sample", "multipath", "bundle", "bundle_load", "enqueue", "set_queue"),
        *("pop_queue", "move", "push", "pop", "fin_timeout", "check_pkt_larger", "encap", "decap", "dec_nsh_ttl"),
        *("push_mpls", "pop_mpls", "set_mpls_label", "set_mpls_tc", "set_mpls_ttl", "dec_mpls_ttl", "mod_nw_ecn"),
        *("mod_nw_ttl", "clear_actions", "write_actions", "write_metadata", "output_trunc", "unroll_xlate"),
    }
)
_WORD = re.compile(r"[A-Za-z_0-9]+")
_WHAT = {"port": "a port", "meter": "a meter", "mirror": "a mirror"}


def read_action(text: str) -> Action:
    """Return one action; BadValue says what is wrong with it."""
    if len(text) > LONGEST:
        raise BadValue(f"is longer than {LONGEST} characters, which no action is")
    word, colon, argument = text.strip().partition(":")
    known = KINDS.get(word.lower())
    if known is None:
        raise BadValue(_unknown(text.strip()))
    word = word.lower()
    if known.named is None and known.read is None:
        if colon:
            raise BadValue(f"`{word}` takes nothing behind it: leave out `:{argument}`")
        return Action(word)
    if not argument:
        raise BadValue(f"`{word}` needs {_WHAT[known.named] if known.named else 'a value'}: write {word}:...")
    if known.named is not None:
        if NAME.fullmatch(argument) is None:
            raise BadValue(f"`{word}` needs the name of {_WHAT[known.named]}, and {argument!r} is none")
        return Action(word, name=argument)
    assert known.read is not None
    try:
        return Action(word, value=known.read(argument))
    except BadValue as error:
        raise BadValue(f"`{word}` {error}") from None


def _unknown(text: str) -> str:
    found = _WORD.match(text)
    word = found[0].lower() if found else text
    if word in SYNONYMS:
        return f"`{word}` isn't an action here: write {SYNONYMS[word]}"
    if word in KINDS:
        return f"`{text}` can't have parentheses here: write {word}{':...' if KINDS[word].read else ''}"
    if word in FOREIGN:
        return f"`{word}` of Open vSwitch is not available in this switch: leave it out"
    close = difflib.get_close_matches(word, KINDS, n=1)
    if close:
        return f"unknown action `{text}`: did you mean `{close[0]}`?"
    if NAME.fullmatch(text):
        return f"unknown action `{text}`: if it is a port, write output:{text}"
    return f"unknown action `{text}`: there are {', '.join(KINDS)}"


def read_actions(given: Sequence[object]) -> tuple[Action, ...]:
    """Return a flow's actions, `drop` where there are none; InvalidDocument with every error, each at its index."""
    if len(given) > MAX_ACTIONS:
        raise InvalidDocument([FieldError((), f"has {len(given)} actions: at most {MAX_ACTIONS} are possible")])
    errors: list[FieldError] = []
    actions: list[Action] = []
    for index, item in enumerate(given):
        if not isinstance(item, str):
            errors.append(FieldError((index,), "must be text like output:vm1"))
            continue
        try:
            actions.append(read_action(item))
        except BadValue as error:
            errors.append(FieldError((index,), str(error)))
    if not errors:
        errors = _together(actions)
    if errors:
        raise InvalidDocument(errors)
    return tuple(actions) or (Action("drop"),)


def _together(actions: Sequence[Action]) -> list[FieldError]:
    """Return what is wrong with actions that are right one by one."""
    errors = []
    kinds = [action.kind for action in actions]
    if "drop" in kinds and len(kinds) > 1:
        errors.append(FieldError((kinds.index("drop"),), "`drop` stands alone: leave it out, or all the others"))
    for kind, most in (("push_vlan", MAX_TAGS), ("normal", 1)):
        if (many := [index for index, word in enumerate(kinds) if word == kind])[most:]:
            times = "once" if most == 1 else "twice"
            errors.append(FieldError((many[most],), f"`{kind}` is possible {times} in a flow"))
    for index, action in enumerate(actions):
        if action.kind == "meter" and action in actions[:index]:
            message = f"`{action.text()}` is there already, and a meter counts a frame once: leave it out"
            errors.append(FieldError((index,), message))
    if sum(kind in ("all", "flood", "normal") for kind in kinds) > MAX_FLOODS:
        errors.append(FieldError((), f"has more than {MAX_FLOODS} of `all`, `flood` and `normal`: leave some out"))
    if variants(actions) > MAX_VARIANTS:
        message = f"makes more than {MAX_VARIANTS} different forms of a frame: leave some changes out"
        errors.append(FieldError((), message))
    return errors


def variants(actions: Sequence[Action]) -> int:
    """Return how many different forms of a frame there are beside that in which it came: runs of changes."""
    count, fresh = 0, True  # fresh: the next change begins another form
    for action in actions:
        if KINDS[action.kind].edits:
            count += fresh
            fresh = False
        elif KINDS[action.kind].sends:
            fresh = True
    return count
