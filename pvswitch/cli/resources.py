# SPDX-License-Identifier: Apache-2.0
"""The commands about single things: port, bridge, fdb, mirror. Each is one edit of the configuration, or one look."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pvswitch.cli import completion
from pvswitch.cli.base import (
    BridgeName,
    Context,
    MacAddress,
    NewName,
    OnPort,
    PortName,
    Vid,
    app,
    client,
    new_settings,
    one_of,
    settings,
)
from pvswitch.cli.keys import list_keys
from pvswitch.errors import PvswitchError

if TYPE_CHECKING:
    from pvswitch.client import Client

port_app = typer.Typer(no_args_is_help=True, help="Add, change and remove ports; how to start a VM on one.")
bridge_app = typer.Typer(no_args_is_help=True, help="Add, change and remove bridges.")
fdb_app = typer.Typer(no_args_is_help=True, help="Add, remove and flush addresses.")
app.add_typer(port_app, name="port")
app.add_typer(bridge_app, name="bridge")
mirror_app = typer.Typer(no_args_is_help=True, help="Add and remove mirrors.")
app.add_typer(fdb_app, name="fdb")
app.add_typer(mirror_app, name="mirror")


class Accel(StrEnum):
    """How QEMU runs the guest."""

    KVM = "kvm"
    TCG = "tcg"


PortSettings = Annotated[
    list[str] | None, typer.Argument(metavar="BRIDGE|KEY=VALUE", autocompletion=completion.bridge_or_port_keys)
]
PortChanges = Annotated[list[str], typer.Argument(metavar="KEY=VALUE", autocompletion=completion.port_keys)]
BridgeSettings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", autocompletion=completion.bridge_keys)]
MirrorSettings = Annotated[list[str], typer.Argument(metavar="KEY=VALUE", autocompletion=completion.mirror_keys)]
BridgeChanges = Annotated[list[str], typer.Argument(metavar="KEY=VALUE", autocompletion=completion.bridge_keys)]
QueuePairs = Annotated[int, typer.Option(help="queue pairs of the VM's device, as many as the port offers", min=1)]


# ---- ports ----


@port_app.command("add")
def port_add(context: Context, name: NewName, given: PortSettings = None) -> None:
    """Add a port: `port add vm1 br0 mtu=9000`, `port add up0 type=tap ifname=tap0 addresses=192.0.2.1/24`."""
    rest = list(given or [])
    bridge = rest.pop(0) if rest and "=" not in rest[0] else None
    add_port(client(context), name, bridge, rest)


def add_port(switch: Client, name: str, bridge: str | None, given: list[str]) -> None:
    """Add a port and say where its other side finds it; PvswitchError when there is one of this name."""
    body = new_settings(given, list_keys("ports"))
    if bridge is not None:
        body["bridge"] = bridge
    config, etag = switch.config()
    if name in config.ports:
        raise PvswitchError(f"port {name} is there already: change it with `pvswitch port set {name} KEY=VALUE`")
    made = switch.put_port(name, body, if_match=etag).model_dump(mode="json")
    print(made.get("socket") or made.get("ifname") or made.get("write") or made.get("read") or name)


@port_app.command("set")
def port_set(context: Context, name: PortName, changes: PortChanges) -> None:
    """Change a port: `port set vm1 mtu=9000 enabled=false labels.rack=a1`; `mtu=` is the default again."""
    patch = settings(changes, list_keys("ports"))
    client(context).patch_port(name, patch)


@port_app.command("del")
def port_del(context: Context, name: PortName) -> None:
    """Remove a port; its VM's connection ends."""
    client(context).delete_port(name)


@port_app.command("qemu-args")
def port_qemu_args(
    context: Context,
    name: PortName,
    qemu_version: Annotated[
        str | None, typer.Option(metavar="X.Y", help="of the QEMU to start; needed from 10.2 on")
    ] = None,
    accel: Annotated[
        Accel, typer.Option(metavar=one_of(Accel), help="tcg: without MSI-X for a QEMU before 10.0, which crashes")
    ] = Accel.KVM,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="of the VM, like 256M or 4G")] = "256M",
    queues: QueuePairs = 1,
) -> None:
    """Print the exact arguments that start a QEMU VM on a port."""
    lines = client(context).attach(
        name, format="qemu", accel=accel.value, memory=memory, queues=queues, qemu_version=qemu_version
    )
    print(lines.text, end="")


@port_app.command("libvirt-xml")
def port_libvirt_xml(context: Context, name: PortName, queues: QueuePairs = 1) -> None:
    """Print the elements that put a libvirt domain on a port."""
    print(client(context).attach(name, format="libvirt", queues=queues).text, end="")


# ---- bridges ----


@bridge_app.command("add")
def bridge_add(context: Context, name: NewName, given: BridgeSettings = None) -> None:
    """Add a bridge: `bridge add lab [aging_time=60 ...]`."""
    add_bridge(client(context), name, list(given or []))


def add_bridge(switch: Client, name: str, given: list[str]) -> None:
    """Add a bridge; PvswitchError when there is one of this name."""
    body = new_settings(given)
    config, etag = switch.config()
    if name in config.bridges:
        raise PvswitchError(f"bridge {name} is there already: change it with `pvswitch bridge set {name} KEY=VALUE`")
    switch.put_bridge(name, body, if_match=etag)


@bridge_app.command("set")
def bridge_set(context: Context, name: BridgeName, changes: BridgeChanges) -> None:
    """Change a bridge: `bridge set br0 aging_time=60`; `aging_time=` is the default again."""
    patch = settings(changes)
    client(context).patch_bridge(name, patch)


@bridge_app.command("del")
def bridge_del(context: Context, name: BridgeName) -> None:
    """Remove a bridge that has no ports."""
    client(context).delete_bridge(name)


# ---- forwarding database ----


@fdb_app.command("add")
def fdb_add(context: Context, bridge: BridgeName, mac: MacAddress, port: OnPort, vid: Vid = 0) -> None:
    """Add a static address: never aged, moved or evicted."""
    client(context).put_fdb(bridge, mac, port, vid=vid)


@fdb_app.command("del")
def fdb_del(context: Context, bridge: BridgeName, mac: MacAddress, vid: Vid = 0) -> None:
    """Remove an address, static or learned."""
    client(context).delete_fdb(bridge, mac, vid=vid)


@fdb_app.command("flush")
def fdb_flush(
    context: Context,
    bridge: BridgeName,
    port: Annotated[str | None, typer.Option(help="only those on this port", autocompletion=completion.ports)] = None,
    vid: Annotated[int | None, typer.Option(help="only those of this VLAN", min=0, max=4094)] = None,
    sticky: Annotated[bool, typer.Option("--sticky", help="those that ports keep, instead of the others")] = False,
) -> None:
    """Forget the learned addresses of a bridge; static and sticky ones stay."""
    client(context).flush_fdb(bridge, port=port, vid=vid, type="sticky" if sticky else "dynamic")


# ---- mirrors ----


@mirror_app.command("add")
def mirror_add(context: Context, name: NewName, bridge: BridgeName, given: MirrorSettings) -> None:
    """Add a mirror: `mirror add m1 br0 select_src_port=vm1 select_dst_port=vm1 output_port=monitor`."""
    switch = client(context)
    body = new_settings(given, list_keys("mirrors"))
    config, etag = switch.config()
    if bridge in config.bridges and name in config.bridges[bridge].mirrors:
        raise PvswitchError(f"mirror {name} is there already: remove it with `pvswitch mirror del {name} {bridge}`")
    switch.put_mirror(bridge, name, body, if_match=etag)


@mirror_app.command("del")
def mirror_del(
    context: Context, name: Annotated[str, typer.Argument(help="of the mirror")], bridge: BridgeName
) -> None:
    """Remove a mirror."""
    client(context).delete_mirror(bridge, name)
