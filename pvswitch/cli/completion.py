# SPDX-License-Identifier: Apache-2.0
"""What a shell offers after TAB, beyond commands and options: names that the running switch has, and keys.

Fast, and silent when there is no switch: a shell's user has asked for words, not for errors. Each function is an
`autocompletion` of typer, called with the context and the word so far.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pvswitch.client import Client

TIMEOUT_SECONDS = 1.0


def ports(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of ports."""
    return _names(context, incomplete, lambda client: (port.name for port in client.ports()))


def tunnels(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of tunnels."""
    return _names(context, incomplete, lambda client: (tunnel.name for tunnel in client.tunnels()))


def bridges(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of bridges."""
    return _names(context, incomplete, lambda client: (bridge.name for bridge in client.bridges()))


def shown(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names that `show` takes after its subject."""
    subject = str(context.params.get("subject"))
    names = {"ports": ports, "stats": ports, "bridges": bridges, "fdb": bridges, "vlans": bridges}
    names |= {"tunnels": tunnels, "flows": bridges, "drops": ports, "frames": ports}
    return names.get(subject, _nothing)(context, incomplete)


def port_keys(incomplete: str) -> list[str]:
    """Return KEY= and KEY=VALUE of a port."""
    from pvswitch.cli.keys import words

    return [word for word in words("ports") if word.startswith(incomplete)]


def bridge_keys(incomplete: str) -> list[str]:
    """Return KEY= and KEY=VALUE of a bridge."""
    from pvswitch.cli.keys import words

    return [word for word in words("bridges") if word.startswith(incomplete)]


def mirror_keys(incomplete: str) -> list[str]:
    """Return KEY= and KEY=VALUE of a mirror."""
    from pvswitch.cli.keys import words

    return [word for word in words("mirrors") if word.startswith(incomplete)]


def trace_fields(context: typer.Context, incomplete: str) -> list[str]:
    """Return what can follow in "in_port=vm1,tcp,": ports, shorthands, fields."""
    from pvswitch.flows.fields import FIELDS, SHORTHANDS

    before, comma, last = incomplete.rpartition(",")
    if last.startswith("in_port="):
        words = [f"in_port={name}" for name in ports(context, last.removeprefix("in_port="))]
    else:
        words = ["in_port=", *SHORTHANDS, *(f"{name}=" for name in FIELDS)]
    return [f"{before}{comma}{word}" for word in words if word.startswith(last)]


def meter_keys(incomplete: str) -> list[str]:
    """Return KEY= and KEY=VALUE of a meter."""
    from pvswitch.cli.keys import words

    return [word for word in words("meters") if word.startswith(incomplete)]


def flows(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the flows of the bridge that stands before."""
    bridge = str(context.params.get("bridge"))
    return _names(context, incomplete, lambda client: (flow.name for flow in client.flows(bridge)))


def bridge_or_port_keys(context: typer.Context, incomplete: str) -> list[str]:
    """Return what can follow `port add NAME`."""
    return [*bridges(context, incomplete), *port_keys(incomplete)]


def _nothing(*_: object) -> list[str]:
    return []


def _names(context: typer.Context, incomplete: str, ask: Callable[[Client], Iterable[str]]) -> list[str]:
    with contextlib.suppress(Exception):  # whatever it is, TAB must not show it
        from pvswitch.client import Client

        logging.disable()  # of asyncio and aiohttp, to the user's terminal
        given = context.find_root().params
        file = given.get("token_file")
        token = None if file is None else Path(file).read_text(encoding="utf-8").strip()
        with Client(given.get("api"), token=token, ca=given.get("ca"), timeout=TIMEOUT_SECONDS) as client:
            return [name for name in ask(client) if name.startswith(incomplete)]
    return []
