# SPDX-License-Identifier: Apache-2.0
"""What `pvswitch show` prints: tables for people, the API's JSON (or the same as YAML) for programs.

Each subject is fetched and drawn by one pair of functions in `SUBJECTS`. Used by `pvswitch.cli` only.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pvswitch.client import ROOT, AsyncClient, Client, Json, fdb_path, port_path

Format = Literal["table", "json", "yaml"]
WIDE = 1000  # columns where the output is no terminal: one line for each row, for grep and awk


def make_console() -> Console:
    """Return a console for stdout; on a pipe nothing is wrapped or coloured."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def show(client: Client, subject: str, form: Format, *, watch: bool, interval: float = 1.0) -> None:
    """Print a subject once, or again and again until Ctrl-C."""
    fetch, draw = SUBJECTS[subject]
    if not watch:
        _print(client.call(fetch), form, draw)
        return
    try:
        if form != "table":
            while True:
                _print(client.call(fetch), form, draw)
                sys.stdout.flush()
                time.sleep(interval)
        with Live(console=make_console(), auto_refresh=False) as live:
            while True:
                live.update(draw(client.call(fetch)), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return


def _print(data: Any, form: Format, draw: Callable[[Any], RenderableType]) -> None:
    if form == "table":
        console = make_console()
        with console.capture() as capture:
            console.print(draw(data))
        print("\n".join(line.rstrip() for line in capture.get().splitlines()))
    elif form == "json":
        print(json.dumps(data, indent=2))
    else:
        print(to_yaml(data), end="")


def to_yaml(data: Any) -> str:
    """Return JSON values as YAML."""
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(data, stream)
    return stream.getvalue()


# ---- what is fetched: the API's JSON ----


def _page(items: list[Json]) -> Json:
    return {"items": items, "next": None}


async def _ports(client: AsyncClient) -> Json:
    return _page(await client.items(f"{ROOT}/ports"))


async def _bridges(client: AsyncClient) -> Json:
    return _page(await client.items(f"{ROOT}/bridges"))


async def _fdb(client: AsyncClient) -> Json:
    """The addresses of every bridge, each with its `bridge`."""
    bridges = await client.items(f"{ROOT}/bridges")
    return _page(
        [
            {"bridge": bridge["name"], **entry}
            for bridge in bridges
            for entry in await client.items(fdb_path(bridge["name"]))
        ]
    )


async def _stats(client: AsyncClient) -> Json:
    """The totals, and the counters of every port."""
    ports = await client.items(f"{ROOT}/ports")
    return {
        "totals": await client.get(f"{ROOT}/stats"),
        "ports": {port["name"]: await client.get(f"{port_path(port['name'])}/stats") for port in ports},
    }


async def _perf(client: AsyncClient) -> Json:
    return _page(await client.items(f"{ROOT}/perf"))


async def _config(client: AsyncClient) -> Json:
    return (await client.config())[0]


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
    columns = ("PORT", "BRIDGE", "LINK", "REASON", "MTU", "FEATURES", "SOCKET")
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
    yield port["socket"]


def _draw_bridges(data: Json) -> RenderableType:
    keys = ("name", "aging_time", "fdb_size", "forward_bpdu", "flood_unknown")
    columns = ("BRIDGE", "AGING", "FDB SIZE", "BPDU", "FLOOD", "STATIC")
    rows = ([*(bridge[key] for key in keys), len(bridge["fdb"])] for bridge in data["items"])
    return _table(columns, rows, numbers=("AGING", "FDB SIZE", "STATIC"))


def _draw_fdb(data: Json) -> RenderableType:
    if not data["items"]:
        return Text("no addresses: nothing was learned yet")
    columns = ("BRIDGE", "VID", "MAC", "PORT", "TYPE", "AGE")
    rows = (
        [
            *(entry[key] for key in ("bridge", "vid", "mac", "port", "type")),
            None if entry.get("age") is None else f"{entry['age']:.0f} s",
        ]
        for entry in data["items"]
    )
    return _table(columns, rows, numbers=("VID", "AGE"))


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
    columns = ("WORKER", "PACKETS", "CYCLES/PACKET", "BUSY", "POLLS", "SLEEPS", "BURSTS")
    rows = (
        [
            *(worker["name"], worker["packets"]),
            "-" if worker.get("cycles_per_packet") is None else f"{worker['cycles_per_packet']:.0f}",
            f"{worker['busy_share']:.1%}",
            worker["polls"],
            worker["sleeps"],
            " ".join(f"{size}:{count}" for size, count in worker["bursts"].items() if count) or "-",
        ]
        for worker in data["items"]
    )
    return _table(columns, rows, numbers=columns[1:-1])


def _draw_config(data: Json) -> RenderableType:
    return Text(to_yaml(data).rstrip("\n"))


Fetch = Callable[[AsyncClient], Awaitable[Json]]
SUBJECTS: dict[str, tuple[Fetch, Callable[[Any], RenderableType]]] = {
    "ports": (_ports, _draw_ports),
    "bridges": (_bridges, _draw_bridges),
    "fdb": (_fdb, _draw_fdb),
    "stats": (_stats, _draw_stats),
    "perf": (_perf, _draw_perf),
    "config": (_config, _draw_config),
}
