# SPDX-License-Identifier: Apache-2.0
"""From one configuration to the next: the difference, and its application as a whole or not at all.

`plan(old, new)` is pure. `Controller` owns the configuration that is in force and is the only one
to change it, one change at a time: prepare (everything that can fail), write the revision (the last
that can fail, and undoes the first), commit (cannot fail), then retire what is no longer used. So
what is in force is always on disk, and what was refused never is: whenever the process is killed,
`--resume` finds the configuration that was last answered for, or the one whose answer was under way.
What stands behind it is a `Dataplane`: `pvswitch.ports` in a running switch, a fake one in tests.
Used by the API and the daemon, on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

from pvswitch.capture_plane import CapturePlane, RecorderPlane
from pvswitch.errors import ApplyError, PvswitchError
from pvswitch.events import MAX_CHANGES, ConfigEvent, Events, changed_resources
from pvswitch.model import (
    Change,
    ConfigModel,
    Plan,
    Port,
    Revision,
    SwitchConfig,
)
from pvswitch.revisions import Revisions
from pvswitch.state import (
    FdbEntry,
    FlowStats,
    MeterStats,
    PortState,
    PortStats,
    QueuePerf,
    Rebalance,
    VlanInfo,
    WorkerPerf,
)
from pvswitch.trace.record import Asked, Traced
from pvswitch.tunnel_plane import TunnelPlane

NAMED = 3
"""Flows that a change of them names."""


class Dataplane(Protocol):
    """What carries a configuration out, and knows the state."""

    @property
    def tunnels(self) -> TunnelPlane:
        """The tunnels, and what a control plane tells them."""

    @property
    def captures(self) -> CapturePlane:
        """Frames that pass by ports, for who reads them."""

    @property
    def recorder(self) -> RecorderPlane:
        """The last drops, and frames that were sampled."""

    async def prepare(self, new: SwitchConfig) -> object:
        """Do all that can fail; raises ApplyError, with everything undone, when something does."""

    async def undo(self, prepared: object) -> None:
        """Free what was prepared, where it is not to be put in force after all."""

    async def commit(self, prepared: object) -> None:
        """Put what was prepared in force; cannot fail."""

    async def retire(self, prepared: object) -> None:
        """Free what is no longer used."""

    def port_state(self, name: str) -> PortState:
        """Return what a port is doing."""

    def port_stats(self, name: str) -> PortStats:
        """Return a port's counters."""

    def fdb(self, bridge: str) -> Iterable[FdbEntry]:
        """Return a bridge's addresses, static ones included; they may change while they are looked at."""

    def fdb_entry(self, bridge: str, vid: int, mac: str) -> FdbEntry | None:
        """Return what a bridge knows of one address, or None."""

    def fdb_flush(
        self,
        bridge: str,
        *,
        port: str | None = None,
        vid: int | None = None,
        mac: str | None = None,
        sticky: bool | None = None,
    ) -> int:
        """Forget learned entries that match all that is given; `sticky`: only those, or only others."""

    def fdb_count(self, bridge: str) -> int:
        """Return how many addresses a bridge knows."""

    def vlans(self, bridge: str) -> Iterable[VlanInfo]:
        """Return a bridge's VLANs in order: members and counters."""

    async def trace(self, asked: Asked) -> Traced:
        """Return what would become of a frame; nothing changes. Raises ApplyError where its port goes meanwhile."""

    def flow_stats(self, bridge: str, names: Iterable[str] | None = None) -> dict[str, FlowStats]:
        """Return what a bridge's flows have counted, by name: all of them, or those of `names` that are there."""

    def flow_name(self, bridge: str, counter: int) -> str | None:
        """Return the name of the flow of a bridge that has this counter, or None."""

    def flow_memory(self, bridge: str) -> int:
        """Return how many bytes a bridge's flows take in the core."""

    def meter_stats(self, bridge: str, name: str) -> MeterStats:
        """Return what a meter of a bridge has counted."""

    def totals(self) -> dict[str, int]:
        """Return counters of the whole switch."""

    def lost(self) -> dict[str, int]:
        """Return how many events and punted frames found no room on their way up, by what they were."""

    def perf(self) -> list[WorkerPerf]:
        """Return what each worker spends."""

    def queue_perf(self) -> Iterable[QueuePerf]:
        """Return what each running queue that frames are taken from costs; they may change while they are looked at."""

    async def rebalance(self, *, dry_run: bool) -> Rebalance:
        """Measure for a moment, and move queues between workers where that helps. Raises ApplyError."""

    def ready(self) -> bool:
        """Return whether frames are being forwarded."""


class StaleError(PvswitchError):
    """The configuration has changed since the caller read it; nothing was changed (HTTP 412)."""


def etag_of(config: SwitchConfig) -> str:
    """Return the hash of the canonical document: equal for equal configurations, in any run."""
    canonical = json.dumps(config.plain(), sort_keys=True, separators=(",", ":"))
    whole = hashlib.sha256(canonical.encode())
    for bridge in sorted(config.bridges):
        flows = config.bridges[bridge].flows
        if flows:
            whole.update(f"\n{bridge}\n".encode())
            whole.update(b"".join([name.encode() + flows[name].digest for name in sorted(flows)]))
    return whole.hexdigest()[:32]


# ---- the difference ----


def plan(old: SwitchConfig, new: SwitchConfig) -> Plan:
    """Return the ordered steps from `old` to `new`; none when they are equal.

    The order lets every step find what it needs: ports go before the bridges they leave, and
    bridges are there before the ports that join them.
    """
    return Plan(
        changes=(
            *_settings(old, new),
            *_recorder(old, new),
            *(_removed("port", name, disruptive=True) for name in old.ports if name not in new.ports),
            *(_added("bridge", name, "") for name in new.bridges if name not in old.bridges),
            *_changed("bridge", old.bridges, new.bridges, frozenset()),
            *_changed("port", old.ports, new.ports, Port.DISRUPTIVE),
            *(
                _added("port", name, f" on bridge {new.port_bridge(name)}")
                for name in new.ports
                if name not in old.ports
            ),
            *(_removed("bridge", name, disruptive=False) for name in old.bridges if name not in new.bridges),
        )
    )


def _settings(old: SwitchConfig, new: SwitchConfig) -> Iterator[Change]:
    for key in SwitchConfig.RESTART:
        if getattr(old, key) != getattr(new, key):
            yield Change(
                op="change",
                pointer=f"#/{key}",
                disruptive=True,
                keys=(key,),
                detail=f"{key} takes a restart of the switch",
            )


def _recorder(old: SwitchConfig, new: SwitchConfig) -> Iterator[Change]:
    """A part of the document that is neither a bridge nor a port, and changes while the switch runs."""
    for change in _changed("", {"recorder": old.recorder}, {"recorder": new.recorder}, frozenset()):
        yield change.model_copy(
            update={"pointer": "#/recorder", "detail": change.detail.replace("change  recorder", "change recorder")}
        )


def _added(kind: str, name: str, where: str) -> Change:
    return Change(op="add", pointer=f"#/{kind}s/{name}", disruptive=False, detail=f"add {kind} {name}{where}")


def _removed(kind: str, name: str, *, disruptive: bool) -> Change:
    return Change(op="remove", pointer=f"#/{kind}s/{name}", disruptive=disruptive, detail=f"remove {kind} {name}")


def _changed(kind: str, old: dict[str, Any], new: dict[str, Any], disruptive: frozenset[str]) -> Iterator[Change]:
    for name, after in new.items():
        if (before := old.get(name)) is None or before is after or before == after:
            continue
        # Ports of different types have different keys.
        keys = tuple(key for key in type(after).model_fields if getattr(before, key, None) != getattr(after, key))
        drops = not disruptive.isdisjoint(keys)
        words = ", ".join(_difference(key, getattr(before, key, None), getattr(after, key)) for key in keys)
        detail = f"change {kind} {name}: {words}" + (f"; {_ends(before)}" if drops else "")
        yield Change(op="change", pointer=f"#/{kind}s/{name}", disruptive=drops, keys=keys, detail=detail)


def _difference(key: str, before: Any, after: Any) -> str:
    if key != "flows":
        return f"{key} {_word(before)} -> {_word(after)}"
    groups = {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [
            name for name, flow in after.items() if (old := before.get(name, flow)) is not flow and old != flow
        ],
    }
    return f"flows {', '.join(f'{len(names)} {word} ({_some(names)})' for word, names in groups.items() if names)}"


def _some(names: list[str]) -> str:
    """Return the first few of very many names."""
    return "; ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


def _ends(port: Port) -> str:
    """Return what a disruptive change does to a port as it was."""
    if "ifname" in type(port).model_fields:
        return "its interface is opened anew"
    if "local" in type(port).model_fields:
        return "its tunnel begins anew"
    return "its files begin anew" if "read" in type(port).model_fields else "its VM's connection ends"


def _plain(item: ConfigModel) -> dict[str, Any]:
    plain: dict[str, Any] = item.model_dump(mode="json", exclude_defaults=True)
    return plain


def _word(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        plain = all(isinstance(item, int) for item in value)
        return json.dumps(value) if plain else f"{len(value)} entries"
    if isinstance(value, ConfigModel):
        return json.dumps(value.model_dump(mode="json"))
    if isinstance(value, dict) and any(isinstance(item, ConfigModel) for item in value.values()):
        return ", ".join(f"{name} {json.dumps(_plain(item))}" for name, item in value.items())
    return json.dumps(value) if isinstance(value, bool | dict) else str(value)


# ---- its application ----


class Controller:
    """The configuration in force, and the only way to change it."""

    def __init__(
        self, dataplane: Dataplane, config: SwitchConfig, revisions: Revisions, events: Events | None = None
    ) -> None:
        """`config` is what `start` puts in force."""
        self._dataplane = dataplane
        self._revisions = revisions
        self._events = events or Events()
        self._config = config
        self._etag = etag_of(config)
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Plan]] = set()

    @property
    def config(self) -> SwitchConfig:
        """The configuration in force."""
        return self._config

    @property
    def etag(self) -> str:
        """The hash of the configuration in force, without quotes."""
        return self._etag

    async def start(self, actor: str = "start") -> Plan:
        """Put the first configuration in force, from nothing; raises ApplyError, StorageError."""
        async with self._lock:
            nothing = self._config.model_copy(update={"bridges": {}, "ports": {}})
            difference = plan(nothing, self._config)
            await self._carry_out(self._config, difference, actor)
            return difference

    async def apply(self, new: SwitchConfig, *, dry_run: bool = False, actor: str = "unknown") -> Plan:
        """Replace the whole configuration; see `edit`."""
        return await self.edit(lambda _: new, dry_run=dry_run, actor=actor)

    async def edit(
        self,
        change: Callable[[SwitchConfig], SwitchConfig],
        *,
        if_match: Collection[str] | None = None,
        dry_run: bool = False,
        actor: str = "unknown",
    ) -> Plan:
        """Replace the configuration by `change(configuration)`, all or nothing; return the difference.

        `actor` says in the revision who wants it. Raises StaleError when `if_match` is given without
        the etag in force, ApplyError when the new configuration cannot be put to work, StorageError
        when its revision cannot be written, and whatever `change` raises. Once begun, an edit is
        carried through even if the caller is cancelled.
        """
        task = asyncio.create_task(self._edit(change, if_match, dry_run, actor))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def check(self, if_match: Collection[str] | None) -> None:
        """Raise StaleError when `if_match` is given without the etag in force."""
        if if_match is not None and self._etag not in if_match:
            raise StaleError("the configuration has changed meanwhile: read it again and repeat the change")

    async def close(self) -> None:
        """Wait for the edits that are under way: what is behind the controller may be taken down afterwards."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Plan]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even where the caller has gone

    async def _edit(
        self,
        change: Callable[[SwitchConfig], SwitchConfig],
        if_match: Collection[str] | None,
        dry_run: bool,
        actor: str,
    ) -> Plan:
        async with self._lock:
            self.check(if_match)
            new, difference = await asyncio.to_thread(_changed_by, change, self._config)
            _refuse_restart(difference)
            if not dry_run and difference.changes:
                await self._carry_out(new, difference, actor)
            return difference

    async def _carry_out(self, new: SwitchConfig, difference: Plan, actor: str) -> None:
        etag = await asyncio.to_thread(etag_of, new)
        prepared = await self._dataplane.prepare(new)
        try:
            revision = await self._record(new, etag, difference, actor)
        except BaseException:
            await self._dataplane.undo(prepared)
            raise
        await self._dataplane.commit(prepared)
        self._config, self._etag = new, etag
        self._events.publish(
            ConfigEvent(
                revision=revision.number,
                etag=etag,
                actor=actor,
                changes=changed_resources(difference.changes),
                changes_omitted=max(0, len(difference.changes) - MAX_CHANGES),
            )
        )
        await self._dataplane.retire(prepared)

    async def _record(self, new: SwitchConfig, etag: str, difference: Plan, actor: str) -> Revision:
        """Have the new configuration on disk: as it is at a start that finds it there, else as a new revision."""
        last = self._revisions.last()
        if last is not None and last.etag == etag:
            return last
        summary = [change.detail for change in difference.changes]
        return await asyncio.to_thread(self._revisions.write, new, etag, actor, summary)


def _changed_by(change: Callable[[SwitchConfig], SwitchConfig], config: SwitchConfig) -> tuple[SwitchConfig, Plan]:
    """Return what a change makes of a configuration, and the difference; in a thread, as that may be very large."""
    new = change(config)
    return new, plan(config, new)


def _refuse_restart(difference: Plan) -> None:
    """Refuse changes of what the running process has built on."""
    pointers = [change.pointer for change in difference.changes if change.pointer[2:] in SwitchConfig.RESTART]
    if pointers:
        keys = ", ".join(pointer[2:] for pointer in pointers)
        raise ApplyError(
            f"{keys} cannot change while the switch runs: put it into the file and restart the switch", pointers[0]
        )
