# SPDX-License-Identifier: Apache-2.0
"""`pvswitch capture`: frames that pass by ports into a file or a pipe, as pcapng.

The stream is handed on as it comes. Ctrl-C (and SIGTERM) ends the capture at the switch, and what it still has is
written before the command ends; so does a reader of the pipe that goes. What was captured and lost is said on stderr.
Nobody knows how long a pipe takes: it is opened before there is a capture, and written to by threads that don't outlive
the command, without a buffer that Python would empty at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import stat
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    with contextlib.ExitStack() as stack:
        pipe = stack.enter_context(_opened(write)) if _is_pipe(write) else None
        raise typer.Exit(asyncio.run(_capture(async_client(context), wanted, write, pipe)))


async def _capture(client: AsyncClient, body: dict[str, Any], write: str, pipe: io.FileIO | None) -> int:
    from pvswitch.pcapng import Tally

    tally = Tally()
    async with client:
        made = await client.create_capture(body)
        try:
            with _opened(write) if pipe is None else contextlib.nullcontext(pipe) as file:
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


def _is_pipe(write: str) -> bool:
    """Return whether it is a named pipe, which is opened when it has a reader: a capture would wait, and end."""
    try:
        return stat.S_ISFIFO(Path(write).stat().st_mode)
    except OSError:
        return False


def _opened(write: str) -> io.FileIO:
    """Return what is written to, without a buffer."""
    try:
        return io.FileIO(sys.stdout.fileno(), "wb", closefd=False) if write == "-" else io.FileIO(write, "wb")
    except OSError as error:
        raise PvswitchError(f"{write} can't be written: {error.strerror}") from None


async def _copy(client: AsyncClient, capture: str, file: io.FileIO, tally: Tally) -> None:
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
        if not copying.done():
            raise PvswitchError("the rest was not written: its reader takes nothing")
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


async def _hand_on(client: AsyncClient, capture: str, file: io.FileIO, tally: Tally) -> None:
    async with contextlib.aclosing(client.capture_stream(capture)) as pieces:
        async for piece in pieces:
            tally.feed(piece)
            try:
                await _written(file, piece)
            except BrokenPipeError:
                tally.finished = True
                return
            except OSError as error:
                raise PvswitchError(f"the capture can't be written: {error.strerror}") from None


async def _written(file: io.FileIO, piece: bytes) -> None:
    """Write it all, in a thread: a pipe that is full must keep neither Ctrl-C from being heard nor the command here."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: OSError | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def work() -> None:
        failed = None
        try:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
        except OSError as error:
            failed = error
        except ValueError:  # it was closed meanwhile: nobody waits any more
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, failed)

    threading.Thread(target=work, daemon=True).start()
    await done
