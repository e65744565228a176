# SPDX-License-Identifier: Apache-2.0
"""From what the core found out about a frame to a story in words: one step after the other, then what leaves.

`tell` is pure: the record (`record.Traced`), the frame and the configuration in, a `model.Trace` out. `TELLERS` has
one function for each kind of step. What it says of drops are the words of `pvswitch.drop_words`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pvswitch.drop_words import explain
from pvswitch.flow_model import Flow
from pvswitch.model import SwitchConfig, TunnelPort
from pvswitch.trace.head import Head, describe, edits, parse
from pvswitch.trace.model import Trace, TraceEgress, TraceStep, TraceVerdict
from pvswitch.trace.nearly import difference
from pvswitch.trace.record import Copy, Step, Traced

STORMS = ("broadcast", "multicast", "unknown unicast")
LEARNED = ("none", "refreshed", "new", "moved")
NO_EFFECT = {
    "output": "it came by that port, or it has gone",
    "pop_vlan": "there is no tag",
    "mirror": "the mirror has gone",
    "meter": "the meter has gone",
}
"""Why an action does nothing; of the others: the frame has no such header."""
WITH_STEPS = frozenset({"normal", "flood", "all"})
"""Actions with steps of their own."""


@dataclass(frozen=True)
class Scene:
    """What a story is about: where the frame comes in, its bytes, the flows of the bridge by name."""

    config: SwitchConfig
    bridge: str
    in_port: str
    frame: bytes
    flows: Mapping[str, Flow]
    traced: Traced

    @cached_property
    def head(self) -> Head:
        """What the frame's headers say."""
        return parse(self.frame)

    @property
    def flow(self) -> Flow | None:
        """The flow that matched, as far as the configuration still has it."""
        return self.flows.get(self.traced.flow or "")


def tell(scene: Scene) -> Trace:
    """Return the story."""
    traced = scene.traced
    egress = [_egress(scene, copy) for copy in traced.copies]
    steps = [told for step in _ordered(scene) for told in TELLERS[step.kind](scene, step)]
    if traced.drop is not None:
        words = explain(traced.drop, "rx", scene.in_port, scene.bridge)
        steps.append(TraceStep(step="drop", detail=f"dropped ({traced.drop}): {words}", reason=traced.drop))
    steps += [_leaves(scene, copy) for copy in egress]
    verdict = TraceVerdict(egress=egress, reason=traced.drop)
    return Trace(in_port=scene.in_port, frame=scene.frame.hex(), steps=steps, verdict=verdict, omitted=traced.omitted)


def _ordered(scene: Scene) -> list[Step]:
    """Return the steps with each action before those that are its own: the core notes it when it is done."""
    done: list[Step] = []
    own: list[Step] = []
    for step in scene.traced.steps:
        if step.kind == "action":
            done += [step, *own] if _action_of(scene, step) in WITH_STEPS else [*own, step]
            own = []
        else:
            own.append(step)
            if step.kind == "flow":  # what came before it is no action's
                done, own = [*done, *own], []
    return [*done, *own]


# ---- the steps


def _parsed(scene: Scene, _: Step) -> Iterator[TraceStep]:
    yield TraceStep(step="parse", detail=describe(scene.frame, len(scene.frame)), port=scene.in_port)


def _taken(scene: Scene, step: Step) -> Iterator[TraceStep]:
    if step.name is None:
        yield TraceStep(step="take", detail=f"port {scene.in_port} takes it", port=scene.in_port, accepted=True)
        return
    words = f"port {scene.in_port} doesn't take it ({step.name})"
    yield TraceStep(step="take", detail=words, port=scene.in_port, accepted=False, reason=step.name)


def _vlan(scene: Scene, step: Step) -> Iterator[TraceStep]:
    where = f"in VLAN {step.a}" if step.a else "in no VLAN"
    port = scene.config.ports.get(scene.in_port)
    mode = "" if port is None else f" ({_mode(port)})"
    words = where + mode if step.b else f"port {scene.in_port}{mode} takes no frames with these tags"
    yield TraceStep(step="vlan", detail=words, vid=step.a, accepted=bool(step.b))


def _mode(port: Any) -> str:
    if isinstance(port, TunnelPort) and isinstance(port.networks, dict):
        return "by the tunnel's map of networks"
    mode = port.effective_vlan_mode
    return f"{mode} port" + (f" with tag {port.tag}" if mode != "trunk" else "")


def _flow(scene: Scene, step: Step) -> Iterator[TraceStep]:
    if step.name is None:
        yield TraceStep(step="flow", detail="no flow matches: normal")
    else:
        yield _matched(step.name, scene.flows.get(step.name))
    for near in scene.traced.nearly:
        if (flow := scene.flows.get(near.flow)) is None or not _comes_first(near.flow, flow, scene):
            continue
        if (differs := difference(flow.identity[1], scene.traced.key, near.word, scene.in_port)) is None:
            continue
        name, wanted, found = differs
        words = f"{near.flow} nearly matches (priority {flow.priority}): {name} is {found}, and it wants {wanted}"
        yield TraceStep(
            step="nearly",
            detail=words,
            flow=near.flow,
            priority=flow.priority,
            field=name,
            wanted=wanted,
            found=found,
        )


def _comes_first(name: str, flow: Flow, scene: Scene) -> bool:
    """Return whether a flow, had it matched, would have been the one that counts."""
    best = scene.flow
    return best is None or (-flow.priority, name) < (-best.priority, scene.traced.flow or "")


def _matched(name: str, flow: Flow | None) -> TraceStep:
    if flow is None:
        return TraceStep(step="flow", detail=f"{name} matches, and has changed meanwhile: repeat the trace", flow=name)
    actions = list(flow.actions)
    own = "" if name == flow.match_name else f"{name} matches: "
    words = f"{own}{flow.match_name} actions={','.join(actions)}"
    return TraceStep(step="flow", detail=words, flow=name, priority=flow.priority, actions=actions)


def _action(scene: Scene, step: Step) -> Iterator[TraceStep]:
    action = _action_of(scene, step)
    kind = action.partition(":")[0]
    words = action if step.c else f"{action}: nothing, {NO_EFFECT.get(kind, 'the frame has no such header')}"
    yield TraceStep(step="action", detail=words, flow=scene.traced.flow, action=action, effect=bool(step.c))


def _action_of(scene: Scene, step: Step) -> str:
    actions = scene.flow.actions if scene.flow is not None else ()
    return actions[step.b] if step.b < len(actions) else f"action {step.b}"


def _bpdu(_: Scene, step: Step) -> Iterator[TraceStep]:
    words = f"link-local address: {'' if step.a else 'not '}forwarded"
    yield TraceStep(step="bpdu", detail=words, accepted=bool(step.a))


def _sender(scene: Scene, step: Step) -> Iterator[TraceStep]:
    sender = _mac(scene, "dl_src")
    allowed = f"{sender} may be at port {scene.in_port}"
    words = allowed if step.a else f"{sender} may not be at port {scene.in_port}"
    yield TraceStep(step="sender", detail=words, port=scene.in_port, accepted=bool(step.a))


def _mac(scene: Scene, key: str) -> str:
    """Return an address of the frame; its part in it, where a flow may have changed it by then."""
    flow = scene.flow
    changed = flow is not None and any(action.startswith(f"mod_{key}:") for action in flow.actions)
    return "the source" if changed and key == "dl_src" else "the destination" if changed else scene.head.values[key]


def _learn(scene: Scene, step: Step) -> Iterator[TraceStep]:
    source, port = _mac(scene, "dl_src"), scene.in_port
    words = (
        f"nothing to learn of {source}",
        f"{source} is known at port {port}",
        f"{source} would be learned at port {port}",
        f"{source} would move to port {port}",
    )
    yield TraceStep(step="learn", detail=words[step.a], port=port, state=LEARNED[step.a])


def _fdb(scene: Scene, step: Step) -> Iterator[TraceStep]:
    destination = _mac(scene, "dl_dst")
    if not step.a:
        yield TraceStep(step="fdb", detail=f"nobody knows where {destination} is", state="unknown")
        return
    behind = "" if step.remote is None else f", behind {step.remote}"
    words = f"{destination} is at port {step.name}{behind}"
    yield TraceStep(step="fdb", detail=words, state="known", port=step.name, remote=step.remote)


def _storm(scene: Scene, step: Step) -> Iterator[TraceStep]:
    kind = STORMS[step.a]
    words = f"{kind}: port {scene.in_port} may send {'more' if step.b else 'no more'} now"
    yield TraceStep(step="storm", detail=words, state=kind, accepted=bool(step.b))


def _flood(_: Scene, step: Step) -> Iterator[TraceStep]:
    yield TraceStep(step="flood", detail=f"flooded to {step.a} port{'' if step.a == 1 else 's'}", ports=step.a)


def _mirror(_: Scene, step: Step) -> Iterator[TraceStep]:
    yield TraceStep(step="mirror", detail=f"mirror {step.name} gets a copy", mirror=step.name)


def _dropped(_: Scene, __: Step) -> Iterator[TraceStep]:
    """Tell nothing: the drop of the whole frame is told once, where its steps end."""
    yield from ()


TELLERS: dict[str, Callable[[Scene, Step], Iterator[TraceStep]]] = {
    "parsed": _parsed,
    "taken": _taken,
    "vlan": _vlan,
    "flow": _flow,
    "action": _action,
    "bpdu": _bpdu,
    "sender": _sender,
    "learn": _learn,
    "fdb": _fdb,
    "storm": _storm,
    "flood": _flood,
    "mirror": _mirror,
    "drop": _dropped,
}


# ---- what leaves


def _egress(scene: Scene, copy: Copy) -> TraceEgress:
    changes = edits(scene.frame[: max(len(copy.head), 14)], copy.head)
    whole = len(scene.frame) + 4 * (len(parse(copy.head).tags) - len(scene.head.tags))
    if copy.length < whole:
        changes.append(f"cut to {copy.length} bytes")
    return TraceEgress(
        port=copy.port,
        drop=copy.drop,
        edits=changes,
        vid=copy.vid if _is_tunnel(scene, copy.port) else None,
        remote=copy.remote,
        tun_id=copy.tun_id,
        mirror=copy.mirror,
        length=copy.length,
        head=copy.head.hex(),
    )


def _leaves(scene: Scene, copy: TraceEgress) -> TraceStep:
    of = f" (mirror {copy.mirror})" if copy.mirror is not None else ""
    by = f"port {copy.port}{of}"
    if copy.drop is not None:
        words = f"{by}: dropped ({copy.drop}): {explain(copy.drop, 'tx', copy.port, scene.bridge)}"
    else:
        words = f"{by}: {_to(scene, copy)}{', '.join(copy.edits) or 'as it came'}"
    return TraceStep(
        step="egress",
        detail=words,
        port=copy.port,
        reason=copy.drop,
        vid=copy.vid,
        remote=copy.remote,
        mirror=copy.mirror,
        edits=copy.edits,
    )


def _is_tunnel(scene: Scene, port: str) -> bool:
    return isinstance(scene.config.ports.get(port), TunnelPort)


def _to(scene: Scene, copy: TraceEgress) -> str:
    """Return whom a tunnel sends it to."""
    if not _is_tunnel(scene, copy.port):
        return ""
    network = "" if copy.tun_id is None else f" in network {copy.tun_id}"
    return f"to {copy.remote or 'all remotes'}{network}, "
