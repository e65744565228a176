# SPDX-License-Identifier: Apache-2.0
"""The commands about flows and meters: flows in the text of ovs-ofctl(8), one by one or as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvswitch.cli import completion
from pvswitch.cli.base import BridgeName, Context, NewName, app, client, new_settings, usage
from pvswitch.errors import PvswitchError

if TYPE_CHECKING:
    from pvswitch.client import Client
    from pvswitch.state import FlowStats

flow_app = typer.Typer(no_args_is_help=True, help="Add, remove and print flows.")
meter_app = typer.Typer(no_args_is_help=True, help="Add and remove meters.")
app.add_typer(flow_app, name="flow")
app.add_typer(meter_app, name="meter")

FlowText = Annotated[
    str | None, typer.Argument(metavar="TEXT", show_default=False, help="like priority=9,ip,in_port=vm1,actions=drop")
]
FlowFile = Annotated[
    Path | None, typer.Option("-f", "--file", metavar="FILE", help="flows, one in a line; - is stdin: all or none")
]
FlowName = Annotated[
    str, typer.Argument(metavar="NAME|MATCH", help="its name, or priority and match", autocompletion=completion.flows)
]
MeterSettings = Annotated[list[str], typer.Argument(metavar="KEY=VALUE", autocompletion=completion.meter_keys)]


@flow_app.command("add")
def flow_add(
    context: Context,
    bridge: BridgeName,
    text: FlowText = None,
    file: FlowFile = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="without one its match is its name")] = None,
) -> None:
    """Add a flow, or replace it: `flow add br0 "priority=100,in_port=vm1,ip,nw_dst=10.0.0.0/24,actions=drop"`."""
    if (text is None) == (file is None):
        usage("give one flow, or a file of them with -f")
    if text is not None:
        refuse_nothing(text)
    if name is not None and text is None:
        usage("--name goes with one flow: in a file write name=... before actions=")
    add_flows(client(context), bridge, text if file is None else _read(file), name)


def refuse_nothing(text: str) -> None:
    """End with status 2 for a text without a flow, like "$FLOW" of a script where that isn't set."""
    if not any(line.partition("#")[0].strip() for line in text.splitlines()):
        usage("there is no flow in this text: write one like priority=9,ip,in_port=vm1,actions=drop")


def add_flows(switch: Client, bridge: str, text: str | None, name: str | None = None) -> None:
    """Add the flows of a text, one in each line, all or none."""
    body: Any = text or "" if name is None else {name: text}
    done = switch.change_flows(bridge, {"add": body})
    if name is None and done.added + done.changed != 1:
        print(f"added: {done.added}, changed: {done.changed}")


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise PvswitchError(f"{file} cannot be read: {reason}") from None


@flow_app.command("del")
def flow_del(context: Context, bridge: BridgeName, name: FlowName) -> None:
    """Remove a flow, by its name or its whole match: `flow del br0 "priority=100,ip,in_port=vm1"`."""
    client(context).delete_flow(bridge, name)


@flow_app.command("dump")
def flow_dump(context: Context, bridge: BridgeName) -> None:
    """Print a bridge's flows with their counters, as `ovs-ofctl dump-flows` does; `flow add -f` reads that again."""
    dump_flows(client(context), bridge)


def dump_flows(switch: Client, bridge: str) -> None:
    """Print flows in the order in which they are looked at."""
    from pvswitch.flows.text import show_flow

    for flow in sorted(switch.flows(bridge), key=lambda flow: (-flow.priority, flow.name)):
        print(f" {show_flow(flow.model_dump(), flow.name, _counters(flow.stats))}")


def _counters(count: FlowStats | None) -> list[str]:
    if count is None:
        return []
    words = [f"duration={count.duration:.3f}s", f"n_packets={count.packets}", f"n_bytes={count.bytes}"]
    return [*words, f"idle_age={int(count.idle)}"]


@flow_app.command("flush")
def flow_flush(
    context: Context,
    bridge: BridgeName,
    port: Annotated[
        str | None, typer.Option(help="only those that name this port", autocompletion=completion.ports)
    ] = None,
    cookie: Annotated[str | None, typer.Option(metavar="N[/MASK]", help="only those with this cookie")] = None,
) -> None:
    """Remove all flows of a bridge, or those that the options name."""
    client(context).flush_flows(bridge, port=port, cookie=cookie)


# ---- meters ----


@meter_app.command("add")
def meter_add(context: Context, name: NewName, bridge: BridgeName, given: MeterSettings) -> None:
    """Add a meter: `meter add slow br0 rate_kbps=10000`; flows use it with meter:slow in their actions."""
    switch = client(context)
    body = new_settings(given)
    if any(meter.name == name for meter in switch.meters(bridge)):
        raise PvswitchError(f"meter {name} is there already: remove it with `pvswitch meter del {name} {bridge}`")
    switch.put_meter(bridge, name, body)


@meter_app.command("del")
def meter_del(context: Context, name: Annotated[str, typer.Argument(help="of the meter")], bridge: BridgeName) -> None:
    """Remove a meter that no flow names."""
    client(context).delete_meter(bridge, name)
