# SPDX-License-Identifier: Apache-2.0
"""`pvswitch capture`: frames that pass by ports into a file or a pipe, as pcapng.

The stream is handed on as it comes. Ctrl-C (and SIGTERM) ends the capture at the switch, and what it still has is
written before the command ends; so does a reader of the pipe that goes. What was captured and lost is said on stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from pvswitch.cli import completion
from pvswitch.cli.base import Context, app, async_client, one_of, usage
from pvswitch.errors import PvswitchError

if TYPE_CHECKING:
    from pvswitch.client import AsyncClient
    from pvswitch.pcapng import Tally

END_SECONDS = 10.0
"""How long the rest of a stream may take once the capture has been ended."""


class Way(StrEnum):
    """Which frames of a port."""

    BOTH = "both"
    IN = "in"
    OUT = "out"


@app.command()
def capture(
    context: Context,
    ports: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PORT", show_default=False, help="all ports when none is named", autocompletion=completion.ports
        ),
    ] = None,
    write: Annotated[str, typer.Option("-w", "--write", metavar="FILE|-", help="where to; - is a pipe")] = "",
    direction: Annotated[
        Way, typer.Option(metavar=one_of(Way), help="in: what the switch takes from the ports; out: what it sends them")
    ] = Way.BOTH,
    expression: Annotated[
        str, typer.Option("--filter", metavar="EXPRESSION", help="as of tcpdump: 'arp or tcp port 80'")
    ] = "",
    snaplen: Annotated[int | None, typer.Option(help="bytes that are kept of a frame; default: all")] = None,
    count: Annotated[int | None, typer.Option("-c", "--count", help="end after so many frames", min=1)] = None,
    seconds: Annotated[int | None, typer.Option(help="end after so many seconds", min=1)] = None,
) -> None:
    """Write the frames that pass by ports as pcapng, live, until Ctrl-C."""
    if not write:
        usage("name where to write: -w FILE, or -w - for a pipe like `| tcpdump -r -`")
    if write == "-" and sys.stdout.isatty():
        usage("-w - is for a pipe, like `| tcpdump -r -`: name a file for this terminal's sake")
    body = {
        "ports": ports or [],
        "direction": direction.value,
        "filter": expression,
        "snaplen": snaplen,
        "max_packets": count,
        "max_seconds": seconds,
    }
    wanted = {key: value for key, value in body.items() if value is not None}
    raise typer.Exit(asyncio.run(_capture(async_client(context), wanted, write)))


async def _capture(client: AsyncClient, body: dict[str, Any], write: str) -> int:
    from pvswitch.pcapng import Tally

    tally = Tally()
    async with client:
        made = await client.create_capture(body)
        try:
            with _opened(write) as file:
                said = f"capturing on {' '.join(body['ports']) or 'all ports'}; Ctrl-C ends it"
                print(said, file=sys.stderr, flush=True)
                await _copy(client, made.id, file, tally)
        except BaseException:
            with contextlib.suppress(PvswitchError):
                await client.delete_capture(made.id)
            raise
    lost = f", {tally.lost} lost: this reader was too slow" if tally.lost else ", none lost"
    print(f"{tally.packets} frames captured{lost}", file=sys.stderr)
    if not tally.finished:
        print("the stream has no end: the switch has gone", file=sys.stderr)
    return 0 if tally.finished else 1


def _opened(write: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if write == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    try:
        return Path(write).open("wb")
    except OSError as error:
        raise PvswitchError(f"{write} can't be written: {error.strerror}") from None


async def _copy(client: AsyncClient, capture: str, file: BinaryIO, tally: Tally) -> None:
    """Hand the stream on, to its end; a signal ends the capture, and a closed pipe this, too."""
    from pvswitch.client import ApiError

    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()
    with contextlib.suppress(RuntimeError, ValueError):  # in a thread of a program, signals are that program's
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, wanted.set)
    copying = asyncio.create_task(_hand_on(client, capture, file, tally))
    waiting = asyncio.create_task(wanted.wait())
    try:
        await asyncio.wait((copying, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not copying.done():
            await client.delete_capture(capture)
            await asyncio.wait((copying,), timeout=END_SECONDS)
        if copying.done():
            await copying
    except ApiError as error:
        if error.status != 404 or not wanted.is_set():
            raise
        tally.finished = True  # it was ended before its stream had begun
    finally:
        for task in (copying, waiting):
            task.cancel()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)


async def _hand_on(client: AsyncClient, capture: str, file: BinaryIO, tally: Tally) -> None:
    async with contextlib.aclosing(client.capture_stream(capture)) as pieces:
        async for piece in pieces:
            tally.feed(piece)
            try:
                # in a thread: a pipe that is full must not keep Ctrl-C from being heard
                await asyncio.to_thread(_write, file, piece)
            except BrokenPipeError:
                _leave(file)
                tally.finished = True
                return


def _write(file: BinaryIO, piece: bytes) -> None:
    file.write(piece)
    file.flush()


def _leave(file: BinaryIO) -> None:
    """Keep Python from writing the rest at the end: nobody reads it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, file.fileno())
    os.close(null)
