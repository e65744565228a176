# SPDX-License-Identifier: Apache-2.0
"""The `pvswitch` command: a thin face on the HTTP API, and the way to start a switch.

Exit status: 0 done, 1 refused, 2 usage, 3 no switch running; what was refused is on stderr. What takes long to
import is imported where it is used, so that `pvswitch --help` is quick. `switch` has the commands about the whole,
`resources` those about ports, bridges and addresses, `flows` those about flows and meters, `tunnels` those about what
tunnels are told, `captures` the one that writes frames, `trace` says what becomes of one, `ovs` has their names in
Open vSwitch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pvswitch.cli import captures, flows, ovs, resources, switch, trace, tunnels
from pvswitch.cli.base import Context, Options, app, usage, words
from pvswitch.errors import PvswitchError

__all__ = ["app", "captures", "flows", "main", "ovs", "resources", "switch", "trace", "tunnels"]

REFUSED = 1
NO_SWITCH = 3
INTERRUPTED = 130  # as a shell reports SIGINT

# In the help the commands about the whole come first, in whatever order modules are imported.
app.registered_commands.sort(key=lambda command: getattr(command.callback, "__module__", "") != switch.__name__)


def main() -> int:
    """Run the command of sys.argv; return the exit status."""
    try:
        app()
    except SystemExit as end:
        return _flushed(end.code if isinstance(end.code, int) else REFUSED if end.code else 0)
    except PvswitchError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return _flushed(0)


def _flushed(status: int) -> int:
    """Return the status when all is written; 1, quietly, when nobody reads it any more (`pvswitch show | head -1`)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        return REFUSED
    return status


def _complain(error: PvswitchError) -> int:
    """Say on stderr what was refused; return the exit status."""
    from pvswitch.client import ApiError, NotRunning

    print(words(error) if isinstance(error, ApiError) else error, file=sys.stderr)
    return NO_SWITCH if isinstance(error, NotRunning) else REFUSED


@app.callback()
def _global(
    context: Context,
    api: Annotated[
        str | None,
        typer.Option(
            metavar="unix:PATH|http://HOST:PORT|https://HOST:PORT",
            envvar="PVSWITCH_API",
            help="the switch to talk to; default: api.sock in the runtime folder",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="file with the token for TCP; without it the token is $PVSWITCH_TOKEN"),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="PVSWITCH_CA", help="certificates to trust for https"),
    ] = None,
    may_exist: Annotated[bool, typer.Option("--may-exist", hidden=True)] = False,
    if_exists: Annotated[bool, typer.Option("--if-exists", hidden=True)] = False,
) -> None:
    command = str(context.invoked_subcommand)
    if may_exist and command not in ("add-br", "add-port"):
        usage("--may-exist goes with add-br and add-port")
    if if_exists and command not in ("del-br", "del-port"):
        usage("--if-exists goes with del-br and del-port")
    context.obj = Options(api, token_file, ca, may_exist, if_exists)
