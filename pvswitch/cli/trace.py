# SPDX-License-Identifier: Apache-2.0
"""`pvswitch trace`: what would become of a frame, as a story of one line per step."""

from __future__ import annotations

import string
from typing import Annotated, Any

import typer

from pvswitch.cli import completion
from pvswitch.cli.base import BridgeName, Context, Form, Format, app, client, usage


@app.command()
def trace(
    context: Context,
    bridge: BridgeName,
    given: Annotated[
        str,
        typer.Argument(
            metavar="in_port=PORT[,FIELD=VALUE...]",
            help="the port, and fields as in a flow: in_port=vm1,tcp,tp_dst=80",
            autocompletion=completion.trace_fields,
        ),
    ],
    frame: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="the frame itself, in the place of fields; `:` and spaces may be in it"),
    ] = None,
    tun_src: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="where in_port is a tunnel: the remote that it comes from")
    ] = None,
    form: Format = Form.TABLE,
) -> None:
    """Say what would become of a frame, step by step; nothing changes: `trace br0 in_port=vm1,tcp,tp_dst=80`."""
    from pvswitch import show as view

    told = client(context).trace(bridge, _body(given, frame, tun_src))
    view.traced(told, form.value)


def _body(given: str, frame: str | None, tun_src: str | None) -> dict[str, Any]:
    """Return what the API is asked; ends with status 2 for what can't be."""
    from pvswitch.errors import InvalidDocument
    from pvswitch.flows.text import read_flow

    try:
        flow = read_flow(given, actions=False)
    except InvalidDocument as error:
        usage("; ".join(f"{item.loc[-1]}: {item.message}" for item in error.errors))
    fields = flow.pop("match")
    if others := [key for key in flow if key != "match"]:
        usage(f"{others[0]} is of flows, and no frame has it: leave it out")
    if "in_port" not in fields:
        usage("say the port that it comes by: in_port=PORT")
    body: dict[str, Any] = {"in_port": fields.pop("in_port")}
    if tun_src is not None:
        body["tun_src"] = tun_src
    if frame is None:
        return {**body, "fields": fields}
    if "tun_id" in fields:
        try:
            body["tun_id"] = int(str(fields.pop("tun_id")), 0)
        except ValueError:  # one with a mask
            usage("tun_id is one number beside --frame: leave the mask out")
    if fields:
        usage(f"--frame is the whole frame: leave {next(iter(fields))} out, or --frame")
    octets = "".join(char for char in frame if char not in ": ")
    if len(octets) % 2 or not all(char in string.hexdigits for char in octets):
        usage("--frame takes bytes in hexadecimal, two digits each")
    return {**body, "frame": octets}
