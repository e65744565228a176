# SPDX-License-Identifier: Apache-2.0
"""What would become of a frame, asked of the core and told with names: the data plane's part of `pvswitch trace`.

The core knows ports, flows, mirrors and VTEPs by numbers; `Known` says what those are called now. What comes out is a
`trace.record.Traced`, which `trace.story` puts into words. Used by `ports.py`, on the event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pvswitch.datapath import DatapathHandle, FlowTable
from pvswitch.datapath.trace import (
    TraceConf,
    TracedCopy,
    TracedStep,
    TraceResult,
    drop_reason,
    flow_nearly,
    trace_frame,
)
from pvswitch.errors import ApplyError
from pvswitch.model import TunnelPort
from pvswitch.trace.record import Asked, Copy, Nearly, Step, Traced
from pvswitch.tunnel_checks import network_numbers

GONE = "(gone)"


@dataclass(frozen=True, slots=True)
class Known:
    """What numbers of the core are called: ports by their references, hosts by VTEP, flows by counter, mirrors.

    `flows` gives the bridge's table of flows as it is by now, None where it has none.
    """

    ports: Mapping[int, str]
    address: Callable[[int], str | None]
    number: Callable[[str], int]
    flow_name: Callable[[int], str | None]
    flows: Callable[[], FlowTable | None]
    mirrors: Sequence[str]


async def trace(port: DatapathHandle, settings: object, asked: Asked, known: Known) -> Traced:
    """Return what would become of a frame; ApplyError when the port goes meanwhile."""
    conf = TraceConf(asked.frame)
    if isinstance(settings, TunnelPort):
        conf = _of_tunnel(settings, asked, known.number)
    try:
        result = await trace_frame(port, conf)
    except OSError as error:
        if error.errno == errno.EINVAL:  # it can't be parsed: traffic counts it as this
            return Traced("malformed", None, (Step("parsed"), Step("drop", name="malformed")), ())
        if error.errno != errno.ENOENT:
            raise
        raise gone(asked.in_port) from error
    return named(result, known)


def gone(port: str) -> ApplyError:
    """Return what is to be said when a port goes before its frame is looked at."""
    return ApplyError(f"port {port!r} has changed meanwhile: repeat the trace", f"#/ports/{port}")


def _of_tunnel(settings: TunnelPort, asked: Asked, number: Callable[[str], int]) -> TraceConf:
    """Return a frame with the network and the sender that it came by; the first ones where none are named."""
    networks = network_numbers(settings)
    vid, tun_id = next((pair for pair in networks if asked.tun_id in (None, pair[1] or 0)), networks[0])
    source = asked.tun_src or next(iter(settings.remotes), None)
    return TraceConf(asked.frame, tun_id or 0, vid, number(source) if source is not None else 0)


def named(result: TraceResult, known: Known) -> Traced:
    """Return it with names in the place of numbers."""
    table = known.flows()
    nearly = flow_nearly(table, result.key) if table is not None else []
    flows = ((known.flow_name(counter), word) for counter, word in nearly)
    return Traced(
        drop=result.drop,
        flow=None if result.counter is None else known.flow_name(result.counter),
        steps=tuple(_step(step, result, known) for step in result.steps),
        copies=tuple(_copy(copy, known) for copy in result.copies),
        key=result.key,
        nearly=tuple(dict.fromkeys(Nearly(name, word) for name, word in flows if name is not None)),
        omitted=result.omitted,
    )


def _step(step: TracedStep, result: TraceResult, known: Known) -> Step:
    name = remote = None
    match step.kind:
        case "taken" | "drop":
            name = drop_reason(step.a)
        case "flow" if result.counter is not None:
            name = known.flow_name(result.counter) or GONE
        case "fdb" if step.a:
            name = known.ports.get(step.b, GONE)
            remote = known.address(step.c) if step.c else None
        case "mirror":
            name = _mirror(step.a, known)
    return Step(step.kind, step.a, step.b, step.c, name, remote)


def _copy(copy: TracedCopy, known: Known) -> Copy:
    return Copy(
        port=known.ports.get(copy.port, GONE),
        head=copy.head,
        length=copy.length,
        drop=copy.drop,
        vid=copy.vid,
        remote=known.address(copy.vtep) if copy.vtep else None,
        mirror=None if copy.mirror is None else _mirror(copy.mirror, known),
        tun_id=copy.tun_id,
    )


def _mirror(number: int, known: Known) -> str:
    return known.mirrors[number] if number < len(known.mirrors) else GONE
