# SPDX-License-Identifier: Apache-2.0
"""The commands about what tunnels are told beside their configuration: remotes, and the addresses behind them."""

from __future__ import annotations

from typing import Annotated

import typer

from pvswitch.cli import completion
from pvswitch.cli.base import Context, MacAddress, app, client

tunnel_app = typer.Typer(
    no_args_is_help=True, help="Tell tunnels of remotes and addresses, until their port or the switch goes."
)
remote_app = typer.Typer(no_args_is_help=True, help="Add and remove remotes of one network.")
mac_app = typer.Typer(no_args_is_help=True, help="Add and remove addresses behind remotes.")
app.add_typer(tunnel_app, name="tunnel")
tunnel_app.add_typer(remote_app, name="remote")
tunnel_app.add_typer(mac_app, name="mac")

Tunnel = Annotated[str, typer.Argument(metavar="PORT", autocompletion=completion.tunnels)]
Vni = Annotated[int, typer.Argument(metavar="VNI", help="the network; of GRE the key, 0 where it has none", min=0)]
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="of the remote")]
VlanId = Annotated[int, typer.Argument(metavar="VID", help="VLAN ID; 0: none", min=0, max=4094)]


@remote_app.command("add")
def remote_add(context: Context, port: Tunnel, vni: Vni, address: Address) -> None:
    """Add a remote: it gets a copy of what is flooded in this network."""
    client(context).put_tunnel_remote(port, vni, address)


@remote_app.command("del")
def remote_del(context: Context, port: Tunnel, vni: Vni, address: Address) -> None:
    """Remove a remote that was added so."""
    client(context).delete_tunnel_remote(port, vni, address)


@mac_app.command("add")
def mac_add(context: Context, port: Tunnel, vni: Vni, vid: VlanId, mac: MacAddress, address: Address) -> None:
    """Say which remote an address is behind."""
    client(context).put_tunnel_mac(port, vni, mac, address, vid=vid)


@mac_app.command("del")
def mac_del(context: Context, port: Tunnel, vni: Vni, vid: VlanId, mac: MacAddress) -> None:
    """Forget an address that was told."""
    client(context).delete_tunnel_mac(port, vni, mac, vid=vid)
