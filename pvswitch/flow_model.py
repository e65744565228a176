# SPDX-License-Identifier: Apache-2.0
"""What a flow and a meter are in the configuration: frozen models, whose values `pvswitch.flows` reads and prints.

A flow that exists is valid, and canonical: equal matches have equal `match`. What the core wants of it is worked out
once for each object (`compiled`), so that an edit of one flow costs nothing for those beside it. `pvswitch.model` has
the rest of the document, and hands these on.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from pvswitch.errors import InvalidDocument, printable
from pvswitch.flows.actions import Action, Named, read_actions
from pvswitch.flows.compiled import Compiled, compile_flow
from pvswitch.flows.fields import BadValue, number
from pvswitch.flows.match import Match, MatchFields, read_match
from pvswitch.flows.text import DEFAULT_PRIORITY, match_name, read_flow
from pvswitch.port_model import DEFAULT_BURST, MAX_BURST, MAX_KBPS, MIN_BURST, ConfigModel, Pps
from pvswitch.values import Int, is_name, refuse

MAX_MASKS = 1024  # PVS_MAX_MASKS, of a bridge
MAX_FLOWS = 1_000_000  # PVS_MAX_FLOWS, of a bridge; a range counts as the masks it takes
MAX_METERS = 256  # PVS_MAX_METERS, of a bridge
MAX_COOKIE = (1 << 64) - 1


def _nested(error: InvalidDocument) -> ValidationError:
    """Return errors as pydantic has them, below the value under validation."""
    return ValidationError.from_exception_data(
        "flow",
        [
            InitErrorDetails(
                type=PydanticCustomError("refused", "{message}", {"message": item.message}), loc=item.loc, input=None
            )
            for item in error.errors
        ],
    )


def _check_match(value: object) -> MatchFields:
    if not isinstance(value, Mapping):
        refuse('must be a mapping of fields to values, like {"in_port": "vm1", "dl_type": "0x0800"}')
    try:
        return read_match(value).fields()
    except InvalidDocument as error:
        raise _nested(error) from None


def _check_actions(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        refuse('must be a list of actions, like ["set_vlan_vid:20", "output:uplink"]')
    try:
        if all(type(text) is str for text in value):
            return _known_actions(tuple(value))[0]
        return tuple(action.text() for action in read_actions(value))
    except InvalidDocument as error:
        raise _nested(error) from None


@functools.lru_cache(maxsize=1024)
def _known_actions(texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Action, ...]]:
    """Return actions as they are printed, and as they are meant: of thousands of flows many have the same."""
    actions = read_actions(texts)
    return tuple(action.text() for action in actions), actions


def _check_cookie(value: object) -> str:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadValue("must be a number, or one in text like 0x12")
        return hex(number(str(value), MAX_COOKIE))
    except BadValue as error:
        refuse(str(error))


_VALUE = str | Annotated[int, Field(ge=0)]


class Flow(ConfigModel):
    """What is done with the frames that match, in the place of `normal`."""

    priority: Int = Field(DEFAULT_PRIORITY, ge=0, le=65535, description="the highest that matches counts")
    match: Annotated[dict[str, str | int], PlainValidator(_check_match, json_schema_input_type=dict[str, _VALUE])] = (
        Field(default_factory=dict, description="fields and values, as ovs-fields(7); every frame when empty")
    )
    actions: Annotated[tuple[str, ...], BeforeValidator(_check_actions, json_schema_input_type=list[str])] = Field(
        description="in order, as ovs-actions(7): output:vm2, set_vlan_vid:20, drop ..."
    )
    cookie: Annotated[str, BeforeValidator(_check_cookie, json_schema_input_type=_VALUE)] = Field(
        "0x0", description="a number of 64 bits, for who made it"
    )
    idle_timeout: Int = Field(0, ge=0, le=65535, description="seconds without a frame until it is removed; 0 = never")
    hard_timeout: Int = Field(0, ge=0, le=65535, description="seconds until it is removed; 0 = never")

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, data: object) -> object:
        """Take OVS text in the place of a mapping."""
        if not isinstance(data, str):
            return data
        try:
            flow = read_flow(data, judged=False)
        except InvalidDocument as error:
            raise _nested(error) from None
        if "name" in flow:
            refuse("has a `name` in its text, and one where it stands: leave `name=` out")
        return flow

    @functools.cached_property
    def text(self) -> str:
        """It as JSON, as answers and revisions have it."""
        return json.dumps(self.model_dump(mode="json"))

    @functools.cached_property
    def digest(self) -> bytes:
        """The hash of what it says."""
        return hashlib.sha256(self.text.encode()).digest()

    @functools.cached_property
    def _fields(self) -> MatchFields:
        return self.match if isinstance(self.match, MatchFields) else read_match(self.match).fields()

    @property
    def _match(self) -> Match:
        return self._fields.match

    @functools.cached_property
    def compiled(self) -> Compiled:
        """What the core is told of it, but for slots and counter."""
        return compile_flow(self._match, self.priority, _known_actions(self.actions)[1])

    @functools.cached_property
    def identity(self) -> tuple[int, Match]:
        """What no two flows of a bridge may share."""
        return self.priority, self._match

    @functools.cached_property
    def match_name(self) -> str:
        """Its name where it is given none."""
        return match_name(self.priority, self._fields)

    @property
    def size(self) -> int:
        """How many entries the core compares for it, known without making them."""
        return self._match.size

    @property
    def timed(self) -> bool:
        """Whether it goes by itself."""
        return bool(self.idle_timeout or self.hard_timeout)


def _check_flows(given: object) -> object:
    """Return flows by name. Those that are models are as they were; only the others are read and judged."""
    if not isinstance(given, Mapping):
        return given
    flows: dict[object, Flow] = {}
    errors: list[InitErrorDetails] = []
    for name, item in given.items():
        if type(item) is Flow:
            flow = flows[name] = item
        else:
            try:
                flow = flows[name] = Flow.model_validate(item)
            except ValidationError as error:
                errors += [_below(name, inner) for inner in error.errors(include_url=False, include_input=False)]
                continue
        if (message := _wrong_name(name, flow)) is not None:
            kind = PydanticCustomError("refused", "{message}", {"message": message})
            errors.append(InitErrorDetails(type=kind, loc=(printable(str(name)),), input=None))
    if errors:
        raise ValidationError.from_exception_data("flows", errors)
    return flows


def _below(name: object, error: ErrorDetails) -> InitErrorDetails:
    """Return an error of a flow as one of all flows."""
    kind = PydanticCustomError(error["type"], "{message}", {"message": error["msg"], **error.get("ctx", {})})
    return InitErrorDetails(type=kind, loc=(printable(str(name)), *error["loc"]), input=None)


def _wrong_name(name: object, flow: Flow) -> str | None:
    """Return what is wrong with the name of a flow: one as ports have them, or its priority and match."""
    if isinstance(name, str) and (is_name(name) or name == flow.match_name):
        return None
    if isinstance(name, str) and "=" in name:
        return f"is not the flow's priority and match as they are printed, {flow.match_name!r}: use that, or a name"
    return (
        "is not a name: use 1 to 63 of A-Z a-z 0-9 _ . - with a letter or a digit first, or the flow's priority and "
        f"match, {flow.match_name!r}"
    )


Flows = Annotated[
    dict[str, Flow],
    BeforeValidator(_check_flows, json_schema_input_type=dict[str, Flow | str]),
]


@dataclass(frozen=True)
class FlowIndex:
    """What there is to know of a bridge's flows together: worked out once for each configuration of a bridge."""

    named: frozenset[tuple[Named, str]]  # ports, meters and mirrors
    entries: int  # that the core compares
    masks: int  # that they have: what it looks them up by
    timed: tuple[str, ...]  # those that go by themselves
    twice: tuple[tuple[str, str], ...]  # flows with priority and match of another one: its name behind theirs

    @classmethod
    def of(cls, flows: Mapping[str, Flow]) -> FlowIndex:
        """Look at every flow; of too many entries only the number is known, for they would take all memory."""
        entries = sum(flow.size for flow in flows.values())
        if entries > MAX_FLOWS:
            return cls(frozenset(), entries, 0, (), ())
        first: dict[tuple[int, Match], str] = {}
        named: set[tuple[Named, str]] = set()
        masks: set[tuple[int, bytes]] = set()
        twice, timed = [], []
        for name, flow in flows.items():
            named |= flow.compiled.names
            masks.update([(mask, rest) for _, _, mask, rest in flow.compiled.entries])
            if (other := first.setdefault(flow.identity, name)) != name:
                twice.append((name, other))
            if flow.timed:
                timed.append(name)
        return cls(frozenset(named), entries, len(masks), tuple(timed), tuple(twice))


class Meter(ConfigModel):
    """A rate that flows with `meter:NAME` in their actions share; what is more is dropped."""

    rate_kbps: Int | None = Field(None, ge=1, le=MAX_KBPS, description="10^3 bit/s, of whole frames without FCS")
    burst_bytes: Int | None = Field(
        None, ge=MIN_BURST, le=MAX_BURST, description="at once; default: 10 ms at this rate, 131072 at least"
    )
    rate_pps: Pps | None = Field(None, description="or frames a second, as they are on a wire")
    burst_packets: Pps | None = Field(None, description="at once; default: a tenth of a second's")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: object) -> object:
        """Write out the burst that follows from the rate."""
        if not isinstance(data, Mapping):
            return data
        filled: dict[str, Any] = dict(data)
        kbps, pps = filled.get("rate_kbps"), filled.get("rate_pps")
        if type(kbps) is int and 0 < kbps <= MAX_KBPS and filled.get("burst_bytes") is None:
            filled["burst_bytes"] = max(DEFAULT_BURST, kbps * 1000 // 8 // 100)
        if type(pps) is int and pps > 0 and filled.get("burst_packets") is None:
            filled["burst_packets"] = max(1, pps // 10)
        return filled

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        """Refuse what has no rate, or two."""
        by_bytes = self.rate_kbps is not None
        if by_bytes == (self.rate_pps is not None):
            refuse("needs one of `rate_kbps` and `rate_pps`")
        if (self.burst_packets if by_bytes else self.burst_bytes) is not None:
            key, goes = ("burst_packets", "rate_pps") if by_bytes else ("burst_bytes", "rate_kbps")
            refuse(f"has `{key}`, which goes with `{goes}`: leave it out")
        return self
