# SPDX-License-Identifier: Apache-2.0
"""Checks of flows against the rest of a configuration: what they name is on their bridge, and no two are the same.

Looks at what each bridge knows of its flows together (`Bridge.flow_index`); at single flows only when something is
wrong. Called by `checks.cross_errors`; `naming` also by the API, before something that flows need is removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pvswitch.errors import FieldError
from pvswitch.flow_model import MAX_FLOWS, MAX_MASKS, Flow
from pvswitch.flows.actions import Named

if TYPE_CHECKING:
    from pvswitch.model import Bridge, SwitchConfig


def flow_errors(config: SwitchConfig) -> list[FieldError]:
    """Return every error of flows that takes more than the flow to see."""
    errors: list[FieldError] = []
    for name, bridge in config.bridges.items():
        if not bridge.flows:
            continue
        loc = ("bridges", name, "flows")
        index = bridge.flow_index
        for kind, missing in sorted(index.named):
            message = _missing(config, name, bridge, kind, missing)
            if message is not None:
                errors += [
                    FieldError((*loc, flow, *place), message)
                    for flow in naming(bridge, kind, missing)
                    for place in _places(bridge.flows[flow], kind, missing)
                ]
        for flow, first in index.twice:
            message = f"has the priority and the match of flow {first!r}, so that one would never count: keep one"
            errors.append(FieldError((*loc, flow), message))
        if index.entries > MAX_FLOWS:
            message = f"takes {index.entries} entries in the table, of {MAX_FLOWS} at most: use fewer flows or ranges"
            errors.append(FieldError(loc, message))
        if index.masks > MAX_MASKS:
            message = (
                f"match by {index.masks} different masks, of {MAX_MASKS} at most, each of which may cost a frame a "
                "search: use fewer shapes of match"
            )
            errors.append(FieldError(loc, message))
    return errors


def naming(bridge: Bridge, kind: Named, name: str) -> list[str]:
    """Return the names of the flows of a bridge that name a port, a meter or a mirror."""
    if not bridge.flows or (kind, name) not in bridge.flow_index.named:
        return []
    return [key for key, flow in bridge.flows.items() if (kind, name) in flow.compiled.names]


def _missing(config: SwitchConfig, bridge_name: str, bridge: Bridge, kind: Named, name: str) -> str | None:
    """Return what is wrong with what a flow names; None: it is there."""
    if kind == "port":
        if name not in config.ports:
            return f"there is no port {name!r}"
        other = config.ports[name].bridge
        return None if other == bridge_name else f"port {name!r} is on bridge {other!r}, not on this one"
    if name in (bridge.meters if kind == "meter" else bridge.mirrors):
        return None
    return f"there is no {kind} {name!r} on this bridge: add it under `{kind}s`"


def _places(flow: Flow, kind: Named, name: str) -> Iterator[tuple[str | int, ...]]:
    """Give where in a flow a name stands."""
    if kind == "port" and flow.match.get("in_port") == name:
        yield ("match", "in_port")
    word = {"port": "output"}.get(kind, kind)
    for index, action in enumerate(flow.actions):
        if action == f"{word}:{name}":
            yield ("actions", index)
