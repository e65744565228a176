# SPDX-License-Identifier: Apache-2.0
"""The words of ovs-vsctl, ovs-appctl and ovs-ofctl for who has them in the fingers or in scripts (docs/from-ovs.md).

They are the other commands by another name, and hidden from the help. `--may-exist` and `--if-exists` are taken
before the command, as in ovs-vsctl, and after it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pvswitch.cli import completion, flows
from pvswitch.cli.base import BridgeName, Context, Form, Format, NewName, app, client, one_of, options
from pvswitch.cli.resources import BridgeSettings, add_bridge, add_port
from pvswitch.errors import PvswitchError

if TYPE_CHECKING:
    from pvswitch.model import SwitchConfig

MayExist = Annotated[bool, typer.Option("--may-exist", help="nothing to do when it is there already")]
IfExists = Annotated[bool, typer.Option("--if-exists", help="nothing to do when it isn't there")]
PortSettings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", autocompletion=completion.port_keys)]


class Table(StrEnum):
    """What `list` lists."""

    BRIDGE = "bridge"
    PORT = "port"


@app.command("add-br", hidden=True)
def add_br(context: Context, name: NewName, given: BridgeSettings = None, may_exist: MayExist = False) -> None:
    """Add a bridge."""
    switch = client(context)
    if (may_exist or options(context).may_exist) and name in switch.config().document.bridges:
        return
    add_bridge(switch, name, list(given or []))


@app.command("del-br", hidden=True)
def del_br(context: Context, name: BridgeName, if_exists: IfExists = False) -> None:
    """Remove a bridge that has no ports."""
    switch = client(context)
    if (if_exists or options(context).if_exists) and name not in switch.config().document.bridges:
        return
    switch.delete_bridge(name)


@app.command("list-br", hidden=True)
def list_br(context: Context) -> None:
    """Print the names of the bridges."""
    for bridge in client(context).bridges():
        print(bridge.name)


@app.command("add-port", hidden=True)
def add_port_to(
    context: Context,
    bridge: BridgeName,
    name: NewName,
    given: PortSettings = None,
    may_exist: MayExist = False,
) -> None:
    """Add a port to a bridge."""
    switch = client(context)
    if may_exist or options(context).may_exist:
        config = switch.config().document
        if name in config.ports:
            _check_bridge(config, name, bridge)
            return
    add_port(switch, name, bridge, list(given or []))


@app.command("del-port", hidden=True)
def del_port(
    context: Context,
    first: Annotated[str, typer.Argument(metavar="BRIDGE|PORT", autocompletion=completion.ports)],
    second: Annotated[
        str | None, typer.Argument(metavar="PORT", show_default=False, autocompletion=completion.ports)
    ] = None,
    if_exists: IfExists = False,
) -> None:
    """Remove a port, from the bridge that is named or from any."""
    switch = client(context)
    config, etag = switch.config()
    name = first if second is None else second
    if name not in config.ports and (if_exists or options(context).if_exists):
        return
    if second is not None and name in config.ports:
        _check_bridge(config, name, first)
    switch.delete_port(name, if_match=etag)


@app.command("list-ports", hidden=True)
def list_ports(context: Context, bridge: BridgeName) -> None:
    """Print the names of a bridge's ports."""
    switch = client(context)
    switch.bridge(bridge)  # refuses a name that isn't there
    for name in sorted(switch.config().document.bridge_ports(bridge)):
        print(name)


@app.command("list", hidden=True)
def list_table(
    context: Context,
    table: Annotated[Table, typer.Argument(metavar=one_of(Table), case_sensitive=False)],
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    form: Format = Form.TABLE,
) -> None:
    """Show bridges or ports."""
    from pvswitch import show as view

    view.show(client(context), f"{table.value}s", name, form.value)


@app.command("fdb/show", hidden=True)
def fdb_show(context: Context, bridge: BridgeName) -> None:
    """Print a bridge's addresses in the columns of ovs-appctl."""
    print(" port  VLAN  MAC                Age")
    for entry in client(context).fdb(bridge):
        age = "static" if entry.age is None else f"{entry.age:3.0f}"
        print(f"{entry.port:>5}  {entry.vid:>4}  {entry.mac}  {age}")


@app.command("add-flow", hidden=True)
def add_flow(context: Context, bridge: BridgeName, text: Annotated[str, typer.Argument(metavar="TEXT")]) -> None:
    """Add a flow."""
    flows.refuse_nothing(text)
    flows.add_flows(client(context), bridge, text)


@app.command("dump-flows", hidden=True)
def dump_flows(context: Context, bridge: BridgeName) -> None:
    """Print a bridge's flows with their counters."""
    flows.dump_flows(client(context), bridge)


@app.command("del-flows", hidden=True)
def del_flows(context: Context, bridge: BridgeName) -> None:
    """Remove all flows of a bridge."""
    client(context).flush_flows(bridge)


def _check_bridge(config: SwitchConfig, name: str, bridge: str) -> None:
    """Raise PvswitchError for a port of another bridge."""
    if (actual := config.port_bridge(name)) != bridge:
        raise PvswitchError(f"port {name} is on bridge {actual}, not on {bridge}: name that one, or leave it out")
