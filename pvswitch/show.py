# SPDX-License-Identifier: Apache-2.0
"""What `pvswitch show` prints: tables for people, the API's JSON (or the same as YAML) for programs.

Each subject is fetched and drawn by one pair of functions in `SUBJECTS`. Used by `pvswitch.cli` only.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pvswitch.trace.text import lines

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pvswitch.client import Client, Event, Json, PlanResult
    from pvswitch.state import Rebalance
    from pvswitch.trace.model import Trace

Format = Literal["table", "json", "yaml"]
WIDE = 1000  # columns where the output is no terminal: one line for each row, for grep and awk
SHOWN = 50  # drops, or frames


def make_console() -> Console:
    """Return a console for stdout; on a pipe nothing is wrapped or coloured."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def show(client: Client, subject: str, name: str | None, form: Format, *, interval: float | None = None) -> None:
    """Print a subject (or the one thing of it that has this name) once, or every `interval` seconds until Ctrl-C."""
    fetch, draw = SUBJECTS[subject] if name is None else NAMED[subject]

    def look() -> Any:
        return fetch(client, name or "")

    if interval is None:
        _print(look(), form, draw)
    elif form == "table" and sys.stdout.isatty():
        with Live(console=make_console(), auto_refresh=False) as live:
            while True:
                live.update(draw(look()), refresh=True)
                time.sleep(interval)
    else:
        while True:
            _print(look(), form, draw, one_of_many=True)
            sys.stdout.flush()
            time.sleep(interval)


def follow_events(client: Client, form: Format) -> None:
    """Print events as they happen, one line (a YAML document) each, until Ctrl-C."""
    for event in client.events():
        data = _event(event)
        if form == "table":
            print("{:<29}  {:<8}  {}".format(*_event_row(data)))
        elif form == "json":
            print(json.dumps(data))
        else:
            print(f"---\n{to_yaml(data)}", end="")
        sys.stdout.flush()


def difference(plan: PlanResult, form: Format) -> None:
    """Print what a configuration would change, or has changed."""
    _print(_plain(plan), form, _draw_difference)


def rebalanced(result: Rebalance, form: Format) -> None:
    """Print which queues have gone to other workers, or would."""
    _print(_plain(result), form, _draw_rebalance)


def traced(told: Trace, form: Format) -> None:
    """Print what would become of a frame: in text a line for each step."""
    _print(_plain(told), form, lambda _: Text("\n".join(lines(told))))


def _print(data: Any, form: Format, draw: Callable[[Any], RenderableType], *, one_of_many: bool = False) -> None:
    """Print data; as `one_of_many` a line of JSON, a YAML document, or a table with an empty line after it."""
    if form == "table":
        console = make_console()
        with console.capture() as capture:
            console.print(draw(data))
        print("\n".join(line.rstrip() for line in capture.get().splitlines()), end="\n\n" if one_of_many else "\n")
    elif form == "json":
        print(json.dumps(data, indent=None if one_of_many else 2))
    else:
        print(f"---\n{to_yaml(data)}" if one_of_many else to_yaml(data), end="")


def to_yaml(data: Any) -> str:
    """Return JSON values as YAML."""
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(data, stream)
    return stream.getvalue()


# ---- what is fetched: the API's JSON ----


def _plain(model: BaseModel) -> Any:
    return model.model_dump(mode="json", exclude_none=True, by_alias=True)


def _page(items: Iterable[BaseModel]) -> Json:
    return {"items": [_plain(item) for item in items], "next": None}


def _fdb(client: Client, name: str) -> Json:
    """The addresses of one bridge or of every one, each with its `bridge`."""
    bridges = [name] if name else [bridge.name for bridge in client.bridges()]
    entries = [{"bridge": bridge, **_plain(entry)} for bridge in bridges for entry in client.fdb(bridge)]
    return {"items": entries, "next": None}


def _vlans(client: Client, name: str) -> Json:
    """The VLANs of one bridge or of every one, each with its `bridge`."""
    bridges = [name] if name else [bridge.name for bridge in client.bridges()]
    found = [{"bridge": bridge, **_plain(vlan)} for bridge in bridges for vlan in client.vlans(bridge)]
    return {"items": found, "next": None}


def _flows(client: Client, name: str) -> Json:
    """The flows of one bridge or of every one, each with its `bridge`, in the order in which they are looked at."""
    bridges = [name] if name else [bridge.name for bridge in client.bridges()]
    found = [
        {"bridge": bridge, **_plain(flow)}
        for bridge in bridges
        for flow in sorted(client.flows(bridge), key=lambda flow: (-flow.priority, flow.name))
    ]
    return {"items": found, "next": None}


def _stats(client: Client, _: str) -> Json:
    """The totals, and the counters of every port."""
    names = [port.name for port in client.ports()]
    return {"totals": client.stats(), "ports": {name: _plain(client.port_stats(name)) for name in names}}


def _events(client: Client, _: str) -> Json:
    """The events that the switch still has."""
    return {"items": [_event(event) for event in client.recent_events()], "next": None}


def _event(event: Event) -> Json:
    return {"id": event.id, **_plain(event.data)}


# ---- how it is drawn ----


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]], numbers: Iterable[str] = ()) -> Table:
    right = set(numbers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(value if isinstance(value, Text) else Text(_cell(value)) for value in row))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _draw_ports(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no ports: add one with `pvswitch port add NAME`")
    columns = ("PORT", "BRIDGE", "LINK", "REASON", "MTU", "FEATURES", "SOCKET, INTERFACE, FILES OR HOSTS")
    return _table(columns, (_port_row(port) for port in data["items"]), numbers=("MTU",))


def _port_row(port: Json) -> Iterator[Any]:
    state = port["state"]
    up = state["link"] == "up"
    yield port["name"]
    yield port["bridge"]
    yield Text(state["link"], style="green" if up else "red")
    yield state.get("reason")
    yield port.get("mtu")
    yield " ".join(state.get("features") or ["-"])
    files = " ".join(f"{key}={port[key]}" for key in ("read", "write") if port.get(key))
    tunnel = f"{port['local']} -> {_some(port['remotes'])}" if "local" in port else ""
    yield port.get("socket") or port.get("ifname") or files or tunnel or None


def _some(words: list[str], most: int = 3) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return f"{' '.join(words[:most]) or '-'}{more}"


def _draw_bridges(data: Json) -> RenderableType:
    keys = ("name", "aging_time", "fdb_size", "forward_bpdu", "flood_unknown")
    columns = ("BRIDGE", "AGING", "FDB SIZE", "BPDU", "FLOOD", "STATIC")
    rows = ([*(bridge[key] for key in keys), len(bridge["fdb"])] for bridge in data["items"])
    return _table(columns, rows, numbers=("AGING", "FDB SIZE", "STATIC"))


def _draw_fdb(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no addresses: nothing was learned yet")
    columns = ("BRIDGE", "VID", "MAC", "PORT", "TYPE", "AGE", "REMOTE")
    rows = (
        [
            *(entry[key] for key in ("bridge", "vid", "mac", "port", "type")),
            None if entry.get("age") is None else f"{entry['age']:.0f} s",
            entry.get("remote"),
        ]
        for entry in data["items"]
    )
    return _table(columns, rows, numbers=("VID", "AGE"))


def _draw_vlans(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no VLANs: every port is a trunk of all of them; set `tag` or `trunks`")
    columns = ("BRIDGE", "VID", "TAGGED", "UNTAGGED", "PACKETS", "BYTES")
    rows = (
        [
            vlan["bridge"],
            vlan["vid"],
            *(
                " ".join(member["port"] for member in vlan["members"] if member["tagged"] is tagged)
                for tagged in (True, False)
            ),
            vlan["packets"],
            vlan["bytes"],
        ]
        for vlan in data["items"]
    )
    return _table(columns, rows, numbers=("VID", "PACKETS", "BYTES"))


def _draw_flows(data: Json) -> RenderableType:
    from pvswitch.flows.match import read_match

    if not data["items"]:
        return Text("no flows: every frame is forwarded as `normal` says; add one with `pvswitch flow add`")
    columns = ("BRIDGE", "NAME", "PRIORITY", "MATCH", "ACTIONS", "PACKETS", "BYTES", "IDLE")
    rows = (
        [
            flow["bridge"],
            None if "=" in flow["name"] else flow["name"],
            flow["priority"],
            read_match(flow["match"]).fields().text() or "any",
            ",".join(flow["actions"]),
            *((stats["packets"], stats["bytes"], f"{stats['idle']:.0f} s") if stats else (None, None, None)),
        ]
        for flow in data["items"]
        for stats in (flow.get("stats"),)
    )
    return _table(columns, rows, numbers=("PRIORITY", "PACKETS", "BYTES", "IDLE"))


def _draw_tunnels(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no tunnels: add one with `pvswitch port add NAME type=vxlan vni=... local=... remotes=...`")
    columns = ("TUNNEL", "BRIDGE", "TYPE", "LOCAL", "PORT", "VNI", "MTU", "REMOTES", "MACS", "DROPS", "ERROR")
    return _table(columns, (_tunnel_row(tunnel) for tunnel in data["items"]), numbers=("PORT", "MTU", "MACS"))


def _tunnel_row(tunnel: Json) -> Iterator[Any]:
    yield from (tunnel.get(key) for key in ("name", "bridge", "type", "local", "dst_port"))
    vni = tunnel.get("vni")
    yield f"{tunnel['vnis']} by VLAN" if isinstance(vni, dict) else vni
    yield tunnel.get("mtu")
    marks = {"static": "", "external": " (external)", "learned": " (learned)"}
    addresses = {remote["address"]: marks[remote["origin"]] for remote in reversed(tunnel["remotes"])}
    yield _some([f"{address}{mark}" for address, mark in reversed(addresses.items())])
    yield tunnel["macs"]
    yield ", ".join(f"{reason}={count}" for reason, count in tunnel["endpoint"]["drops"].items()) or None
    yield tunnel.get("error")


def _draw_stats(data: Json) -> RenderableType:
    keys = ("packets", "bytes", "dropped", "errors")
    columns = ("PORT", *(f"{side} {key}".upper() for side in ("rx", "tx") for key in keys), "DROPS")
    rows = (
        [name, *(stats[f"{side}_{key}"] for side in ("rx", "tx") for key in keys), _drops(stats)]
        for name, stats in data["ports"].items()
    )
    totals = _table(("TOTAL", "COUNT"), data["totals"].items(), numbers=("COUNT",))
    note = Text("rx and tx are the switch's view: a port's tx is what its guest receives", style="dim")
    return Group(_table(columns, rows, numbers=columns[1:-1]), Text(""), totals, Text(""), note)


def _drops(stats: Json) -> str:
    reasons = [
        f"{side} {reason}={count}" for side in ("rx", "tx") for reason, count in stats[f"{side}_drops"].items() if count
    ]
    return ", ".join(reasons) or "-"


def _draw_perf(data: Json) -> RenderableType:
    columns = ("WORKER", "BUSY", "CYCLES/PACKET", "PACKETS", "BURSTS", "MEAN", "FULL")
    more = ("NOTIFIED", "SUPPRESSED", "KICKS", "SLEEPING")
    rows = (
        [
            *(worker["name"], f"{worker['busy_share']:.1%}", _number(worker.get("cycles_per_packet"))),
            *(worker["packets"], worker["burst_count"], _number(worker.get("mean_burst"), 1)),
            *(worker[key] for key in ("queue_full", "notifications", "notifications_suppressed", "kicks", "sleeping")),
        ]
        for worker in data["items"]
    )
    workers = _table((*columns, *more), rows, numbers=(*columns[1:], *more[:-1]))
    sizes = (
        [
            *(worker[key] for key in ("name", "polls", "sleeps")),
            " ".join(f"{size}:{count}" for size, count in worker["bursts"].items() if count) or "-",
        ]
        for worker in data["items"]
    )
    loops = _table(("WORKER", "POLLS", "SLEEPS", "BURSTS BY SIZE"), sizes, numbers=("POLLS", "SLEEPS"))
    return Group(workers, Text(""), loops)


def _draw_queue_perf(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no queues: no guest's driver has started, and no interface is open")
    columns = ("PORT", "QUEUE", "WORKER", "PACKETS", "CYCLES", "CYCLES/PACKET", "BUSY", "PINNED")
    rows = (
        [
            *(queue[key] for key in ("port", "queue", "worker", "packets", "cycles")),
            *(_number(queue.get("cycles_per_packet")), f"{queue['busy_share']:.1%}", queue["pinned"]),
        ]
        for queue in data["items"]
    )
    return _table(columns, rows, numbers=columns[1:-1])


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _draw_rebalance(data: Json) -> RenderableType:
    before, after = data["before"]["workers"], data["after"]["workers"]
    workers = _table(
        ("WORKER", "BUSY BEFORE", "BUSY AFTER"),
        ([i, f"{before[i]:.1%}", f"{after[i]:.1%}"] for i in range(len(before))),
        numbers=("BUSY BEFORE", "BUSY AFTER"),
    )
    message = Text(data["message"] + ("" if data["applied"] or not data["moves"] else " (not done)"))
    if not data["moves"]:
        return Group(message, Text(""), workers)
    columns = ("PORT", "QUEUE", "FROM", "TO", "LOAD")
    rows = ([*(move[key] for key in ("port", "queue", "from", "to")), f"{move['load']:.1%}"] for move in data["moves"])
    return Group(message, Text(""), _table(columns, rows, numbers=columns[1:]), Text(""), workers)


def _draw_drops(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no drops: nothing was dropped yet")
    columns = ("TIME", "PORT", "FROM", "SIDE", "REASON", "COUNT", "LEN", "VID", "FRAME")
    keys = ("time", "port", "in_port", "direction", "reason", "count", "len", "vid", "summary")
    rows = ([drop.get(key) for key in keys] for drop in data["items"])
    return _table(columns, rows, numbers=("COUNT", "LEN", "VID"))


def _draw_frames(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no frames: set `recorder.sample` or wait for traffic")
    columns = ("TIME", "PORT", "TO", "COPIES", "DROPPED", "LEN", "VID", "FRAME")
    keys = ("time", "port", "out_port", "copies", "reason", "len", "vid", "summary")
    rows = ([frame.get(key) for key in keys] for frame in data["items"])
    return _table(columns, rows, numbers=("COPIES", "LEN", "VID"))


def _draw_captures(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no captures: make one with `pvswitch capture PORT -w FILE`")
    columns = ("CAPTURE", "STATE", "STARTED", "DIRECTION", "PACKETS", "BYTES", "LOST", "PORTS", "FILTER")
    rows = (
        [
            *(item[key] for key in ("id", "state", "started", "direction", "packets", "bytes", "lost")),
            _some(item["ports"]) if item["ports"] else "all",
            item["filter"] or None,
        ]
        for item in data["items"]
    )
    return _table(columns, rows, numbers=("PACKETS", "BYTES", "LOST"))


def _draw_revisions(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no revisions: nothing was changed yet")
    columns = ("REVISION", "TIME", "WHO", "CHANGES")
    rows = ([item["number"], item["time"], item["actor"], "; ".join(item["summary"])] for item in data["items"])
    return _table(columns, rows, numbers=("REVISION",))


def _draw_events(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no events: nothing has happened yet; follow them with --watch")
    return _table(("TIME", "EVENT", "WHAT"), (_event_row(event) for event in data["items"]))


def _event_row(event: Json) -> tuple[str, str, str]:
    """Return when, what, and the rest in one line, without what says nothing."""
    rest = {key: value for key, value in event.items() if key not in ("id", "time", "type", "etag", "changes")}
    words = [f"{key}={value}" for key, value in rest.items() if value or key == "vid"]
    changes = [f"{change['op']} {change['pointer'][2:]}" for change in event.get("changes", ())]
    return event["time"], event["type"], " ".join(words) + (": " + ", ".join(changes) if changes else "")


def _draw_config(data: Json) -> RenderableType:
    return Text(to_yaml(data).rstrip("\n"))


def _draw_one(data: Json) -> RenderableType:
    """One thing with all that is known of it."""
    return _table(("KEY", "VALUE"), _flat(data))


def _flat(data: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and not any(isinstance(item, dict) for item in value):
            yield f"{prefix}{key}", " ".join(str(item) for item in value) or None
        else:
            yield f"{prefix}{key}", None if value in ({}, []) else value


def _draw_difference(data: Json) -> RenderableType:
    if not data["changes"]:
        return Text("no difference")
    rows = (
        [Text("yes", style="red") if change["disruptive"] else "no", change["detail"]] for change in data["changes"]
    )
    return _table(("DISRUPTIVE", "CHANGE"), rows)


Fetch = Callable[["Client", str], dict[str, Any]]
Draw = Callable[[Any], RenderableType]
SUBJECTS: dict[str, tuple[Fetch, Draw]] = {
    "ports": (lambda client, _: _page(client.ports()), _draw_ports),
    "bridges": (lambda client, _: _page(client.bridges()), _draw_bridges),
    "fdb": (_fdb, _draw_fdb),
    "vlans": (_vlans, _draw_vlans),
    "flows": (_flows, _draw_flows),
    "tunnels": (lambda client, _: _page(client.tunnels()), _draw_tunnels),
    "stats": (_stats, _draw_stats),
    "perf": (lambda client, _: _page(client.perf()), _draw_perf),
    "queues": (lambda client, _: _page(client.queue_perf()), _draw_queue_perf),
    "drops": (lambda client, _: _page(client.drops(limit=SHOWN)), _draw_drops),
    "frames": (lambda client, _: _page(client.frames(limit=SHOWN)), _draw_frames),
    "captures": (lambda client, _: _page(client.captures()), _draw_captures),
    "events": (_events, _draw_events),
    "revisions": (lambda client, _: _page(client.revisions()), _draw_revisions),
    "config": (lambda client, _: _plain(client.config().document), _draw_config),
}
NAMED: dict[str, tuple[Fetch, Draw]] = {  # those that can be narrowed to one name
    "ports": (lambda client, name: _plain(client.port(name)), _draw_one),
    "bridges": (lambda client, name: _plain(client.bridge(name)), _draw_one),
    "fdb": (_fdb, _draw_fdb),
    "vlans": (_vlans, _draw_vlans),
    "flows": (_flows, _draw_flows),
    "tunnels": (lambda client, name: _plain(client.tunnel(name)), _draw_one),
    "stats": (lambda client, name: _plain(client.port_stats(name)), _draw_one),
    "drops": (lambda client, name: _page(client.drops(port=name, limit=SHOWN)), _draw_drops),
    "frames": (lambda client, name: _page(client.frames(port=name, limit=SHOWN)), _draw_frames),
    "revisions": (lambda client, name: _plain(client.revision(int(name))), _draw_config),
}
