# SPDX-License-Identifier: Apache-2.0
"""The `pvswitch` command: a thin face on the HTTP API, and the way to start a switch.

Exit status: 0 done, 1 refused, 2 usage, 3 no switch running; what was refused is on stderr. What
takes long to import is imported where it is used, so that `pvswitch --help` is quick.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pvswitch.errors import FieldError, InvalidDocument, PvswitchError

if TYPE_CHECKING:
    from pvswitch.client import ApiError, Client

REFUSED = 1
NO_SWITCH = 3

app = typer.Typer(
    name="pvswitch",
    help="A virtual switch for VM labs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
port_app = typer.Typer(no_args_is_help=True, help="Add, change and remove ports; how to start a VM on one.")
bridge_app = typer.Typer(no_args_is_help=True, help="Add and remove bridges.")
fdb_app = typer.Typer(no_args_is_help=True, help="Add, remove and flush addresses.")
app.add_typer(port_app, name="port")
app.add_typer(bridge_app, name="bridge")
app.add_typer(fdb_app, name="fdb")


class Subject(StrEnum):
    """What `show` shows."""

    PORTS = "ports"
    BRIDGES = "bridges"
    FDB = "fdb"
    STATS = "stats"
    PERF = "perf"
    CONFIG = "config"


class Form(StrEnum):
    """How `show` shows it."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Accel(StrEnum):
    """How QEMU runs the guest."""

    KVM = "kvm"
    TCG = "tcg"


Context = typer.Context
Name = Annotated[str, typer.Argument(metavar="NAME")]
BridgeName = Annotated[str, typer.Argument(metavar="BRIDGE")]
MacAddress = Annotated[str, typer.Argument(metavar="MAC")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="a configuration, like configs/two-vms.yaml")]
Vid = Annotated[int, typer.Option(help="VLAN ID", min=0, max=4094)]
QueuePairs = Annotated[int, typer.Option(help="queue pairs of the VM's device, as many as the port offers", min=1)]


def main() -> int:
    """Run the command of sys.argv; return the exit status."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else REFUSED if end.code else 0
    except PvswitchError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT
    return 0


def _complain(error: PvswitchError) -> int:
    """Say on stderr what was refused; return the exit status."""
    from pvswitch.client import ApiError, NotRunning

    print(_words(error) if isinstance(error, ApiError) else error, file=sys.stderr)
    return NO_SWITCH if isinstance(error, NotRunning) else REFUSED


def _words(error: ApiError) -> str:
    """Return the refusal in one line; one line for each value where several are wrong."""
    if error.status != 422 or len(error.errors) < 2:
        return str(error)
    lines = []
    for item in error.errors:
        place = _field_error(item).place
        lines.append(f"{place}: {item['detail']}" if place else str(item["detail"]))
    return "\n".join(lines)


def _field_error(item: dict[str, Any]) -> FieldError:
    """Return an error of the API with its JSON pointer as a place."""
    parts = str(item["pointer"]).removeprefix("#").split("/")[1:]
    names = [part.replace("~1", "/").replace("~0", "~") for part in parts]
    loc = [int(name) if name.isdigit() and i > 1 else name for i, name in enumerate(names)]  # .fdb[0]
    return FieldError(tuple(loc), str(item["detail"]))


def _usage(message: str) -> NoReturn:
    raise typer.BadParameter(message)


def _client(context: Context) -> Client:
    from pvswitch.client import Client
    from pvswitch.model import default_api_socket

    return Client(context.find_root().obj or f"unix:{default_api_socket()}")


@app.callback()
def _global(
    context: Context,
    api: Annotated[
        str | None,
        typer.Option(
            metavar="unix:PATH|http://HOST:PORT",
            envvar="PVSWITCH_API",
            help="the switch to talk to; default: api.sock in the runtime folder",
        ),
    ] = None,
) -> None:
    context.obj = api


# ---- the switch ----


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", metavar="FILE", help="default: an empty bridge br0")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="log more")] = False,
) -> None:
    """Run the switch in the foreground; SIGHUP reloads the file, SIGTERM ends it cleanly."""
    from pvswitch import daemon

    raise typer.Exit(daemon.run(config, verbose=verbose))


@app.command()
def check(file: File) -> None:
    """Validate a configuration without starting; every error with its line."""
    from pvswitch.config import load

    config = load(file)
    print(f"{file}: valid; bridges: {len(config.bridges)}, ports: {len(config.ports)}")


@app.command()
def show(
    context: Context,
    subject: Annotated[Subject, typer.Argument()] = Subject.PORTS,
    form: Annotated[Form, typer.Option("-f", "-o", "--format", help="json and yaml are stable")] = Form.TABLE,
    watch: Annotated[bool, typer.Option("--watch", help="again every second, until Ctrl-C")] = False,
) -> None:
    """Show what the switch has and does."""
    from pvswitch import show as view

    view.show(_client(context), subject.value, form.value, watch=watch)


@app.command()
def apply(
    context: Context,
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the difference")] = False,
) -> None:
    """Replace the whole configuration of the running switch, showing the difference first."""
    from pvswitch.client import ApiError
    from pvswitch.config import read

    source = read(file)
    client = _client(context)
    _, etag = client.config()
    try:
        difference = client.put_config(source.document, if_match=etag, dry_run=True)
        for change in difference["changes"]:
            print(change["detail"])
        if not difference["changes"]:
            print("no difference")
        elif not dry_run:
            client.put_config(source.document, if_match=etag)
    except ApiError as error:
        if error.status == 422 and error.errors:
            raise source.error(InvalidDocument([_field_error(item) for item in error.errors])) from None
        raise


@app.command()
def doctor(
    context: Context, name: Annotated[str | None, typer.Argument(metavar="[PORT]", show_default=False)] = None
) -> None:
    """Say why a port has no link, in one sentence with the remedy."""
    from pvswitch.client import ROOT, port_path
    from pvswitch.doctor import diagnose

    client = _client(context)
    ports = client.items(f"{ROOT}/ports") if name is None else [client.get(port_path(name))]
    if not ports:
        print("the switch runs, and has no ports: add one with `pvswitch port add NAME`")
    for finding in diagnose(ports, local=client.address.startswith("unix:")):
        print(f"{finding.port}: {finding.message}")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="leave it running, and say how to look at it")] = False,
) -> None:
    """Two guests on a switch, talking, with the numbers on screen."""
    from pvswitch import demo as demonstration

    raise typer.Exit(demonstration.main(keep))


# ---- KEY=VALUE ----


def apply_settings(body: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Return `body` with settings like "mtu=9000", "labels.rack=a1", "mtu=" (the default again)."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            _usage(f"{setting!r} must be KEY=VALUE, like mtu=9000 or features.indirect=false")
        *path, last = key.split(".", 1)  # a label's name may have dots
        here = body
        for part in path:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                _usage(f"{part!r} has no keys of its own")
        if text == "":
            here.pop(last, None)
        else:
            here[last] = text if path == ["labels"] else _value(text)
    return body


def _value(text: str) -> Any:
    """Return a value: JSON where it is some (9000, true, {...}), else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# ---- ports ----


@port_app.command("add")
def port_add(context: Context, name: Name, settings: Settings = None) -> None:
    """Add a port: `port add vm1 [BRIDGE] [mtu=9000 ...]`."""
    from pvswitch.client import port_path

    words = list(settings or [])
    body: dict[str, Any] = {}
    if words and "=" not in words[0]:
        body["bridge"] = words.pop(0)
    body = apply_settings(body, words)
    client = _client(context)
    document, etag = client.config()
    if name in document["ports"]:
        raise PvswitchError(f"port {name} is there already: change it with `pvswitch port set {name} KEY=VALUE`")
    print(client.put(port_path(name), body, if_match=etag)["socket"])


@port_app.command("set")
def port_set(
    context: Context, name: Name, settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...")]
) -> None:
    """Change a port: `port set vm1 mtu=9000 enabled=false labels.rack=a1`; `mtu=` is the default again."""
    from pvswitch.client import port_path

    client = _client(context)
    document, etag = client.config()
    if name not in document["ports"]:
        raise PvswitchError(f"there is no port {name!r}: `pvswitch show ports` lists them")
    client.put(port_path(name), apply_settings(document["ports"][name], settings), if_match=etag)


@port_app.command("del")
def port_del(context: Context, name: Name) -> None:
    """Remove a port; its VM's connection ends."""
    from pvswitch.client import port_path

    _client(context).delete(port_path(name))


@port_app.command("qemu-args")
def port_qemu_args(
    context: Context,
    name: Name,
    qemu_version: Annotated[
        str | None, typer.Option(metavar="X.Y", help="of the QEMU to start; needed from 10.2 on")
    ] = None,
    accel: Annotated[Accel, typer.Option(help="tcg: without MSI-X for a QEMU before 10.0, which crashes")] = Accel.KVM,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="of the VM, like 256M or 4G")] = "256M",
    queues: QueuePairs = 1,
) -> None:
    """Print the exact arguments that start a QEMU VM on a port."""
    from pvswitch.client import port_path

    query: dict[str, str | int] = {"format": "qemu", "accel": accel.value, "memory": memory, "queues": queues}
    if qemu_version is not None:
        query["qemu_version"] = qemu_version
    print(_client(context).get(f"{port_path(name)}/attach", **query)["text"], end="")


@port_app.command("libvirt-xml")
def port_libvirt_xml(context: Context, name: Name, queues: QueuePairs = 1) -> None:
    """Print the elements that put a libvirt domain on a port."""
    from pvswitch.client import port_path

    print(_client(context).get(f"{port_path(name)}/attach", format="libvirt", queues=queues)["text"], end="")


# ---- bridges ----


@bridge_app.command("add")
def bridge_add(context: Context, name: Name, settings: Settings = None) -> None:
    """Add a bridge: `bridge add lab [aging_time=60 ...]`."""
    from pvswitch.client import bridge_path

    body = apply_settings({}, settings or [])
    client = _client(context)
    document, etag = client.config()
    if name in document["bridges"]:
        raise PvswitchError(f"bridge {name} is there already: change it with `pvswitch apply FILE`")
    client.put(bridge_path(name), body, if_match=etag)


@bridge_app.command("del")
def bridge_del(context: Context, name: Name) -> None:
    """Remove a bridge that has no ports."""
    from pvswitch.client import bridge_path

    _client(context).delete(bridge_path(name))


# ---- forwarding database ----


@fdb_app.command("add")
def fdb_add(
    context: Context,
    bridge: BridgeName,
    mac: MacAddress,
    port: Annotated[str, typer.Argument(metavar="PORT")],
    vid: Vid = 0,
) -> None:
    """Add a static address: never aged, moved or evicted."""
    from pvswitch.client import fdb_path

    _client(context).put(fdb_path(bridge, mac, vid), {"port": port})


@fdb_app.command("del")
def fdb_del(context: Context, bridge: BridgeName, mac: MacAddress, vid: Vid = 0) -> None:
    """Remove an address, static or learned."""
    from pvswitch.client import fdb_path

    _client(context).delete(fdb_path(bridge, mac, vid))


@fdb_app.command("flush")
def fdb_flush(
    context: Context,
    bridge: BridgeName,
    port: Annotated[str | None, typer.Option(help="only those on this port")] = None,
    vid: Annotated[int | None, typer.Option(help="only those of this VLAN", min=0, max=4094)] = None,
) -> None:
    """Forget the learned addresses of a bridge; static ones stay."""
    from pvswitch.client import fdb_path

    wanted: dict[str, str | int] = {"type": "dynamic"}
    if port is not None:
        wanted["port"] = port
    if vid is not None:
        wanted["vid"] = vid
    _client(context).delete(fdb_path(bridge), **wanted)
