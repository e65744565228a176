# SPDX-License-Identifier: Apache-2.0
"""The commands about the switch as a whole: run, check, show, apply, rebalance, doctor, demo, bench."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from pvswitch.cli import completion
from pvswitch.cli.base import Context, Form, Format, app, client, field_error, one_of, usage
from pvswitch.errors import InvalidDocument

if TYPE_CHECKING:
    from pvswitch.client import Client, PlanResult

File = Annotated[Path, typer.Argument(metavar="FILE", help="a configuration, like configs/two-vms.yaml")]


class Subject(StrEnum):
    """What `show` shows."""

    PORTS = "ports"
    BRIDGES = "bridges"
    FDB = "fdb"
    VLANS = "vlans"
    TUNNELS = "tunnels"
    FLOWS = "flows"
    STATS = "stats"
    PERF = "perf"
    DROPS = "drops"
    FRAMES = "frames"
    CAPTURES = "captures"
    EVENTS = "events"
    REVISIONS = "revisions"
    CONFIG = "config"


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("-c", "--config", metavar="FILE", help="default: an empty bridge br0")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="start from the last revision in state_dir; from FILE if there is none")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="log more")] = False,
) -> None:
    """Run the switch in the foreground; SIGHUP reloads the file, SIGTERM ends it cleanly."""
    from pvswitch import daemon

    raise typer.Exit(daemon.run(config, resume=resume, verbose=verbose))


@app.command()
def check(file: File) -> None:
    """Validate a configuration without starting; every error with its line."""
    from pvswitch.config import load

    config = load(file)
    print(f"{file}: valid; bridges: {len(config.bridges)}, ports: {len(config.ports)}")


@app.command()
def show(
    context: Context,
    subject: Annotated[Subject, typer.Argument(metavar=one_of(Subject))] = Subject.PORTS,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="only this port, bridge or revision",
            autocompletion=completion.shown,
        ),
    ] = None,
    form: Format = Form.TABLE,
    queues: Annotated[bool, typer.Option("--queues", help="with perf: what each queue costs its worker")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again and again, until Ctrl-C")] = False,
    interval: Annotated[
        float | None, typer.Option("-n", "--interval", metavar="SECONDS", help="between two looks; default: 1", min=0.1)
    ] = None,
) -> None:
    """Show what the switch has and does."""
    from pvswitch import show as view

    if name is not None and subject.value not in view.NAMED:
        usage(f"`show {subject.value}` takes no name: {', '.join(view.NAMED)} do")
    if subject is Subject.REVISIONS and name is not None and not name.isdecimal():
        usage(f"{name!r} is no revision: `pvswitch show revisions` lists their numbers")
    if interval is not None and (not watch or subject is Subject.EVENTS):
        usage("-n goes with --watch, and events come as they happen")
    if queues and subject is not Subject.PERF:
        usage("--queues goes with `show perf`")
    switch = client(context)
    if watch and subject is Subject.EVENTS:
        view.follow_events(switch, form.value)
    else:
        shown = "queues" if queues else subject.value
        view.show(switch, shown, name, form.value, interval=(interval or 1.0) if watch else None)


@app.command()
def apply(
    context: Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", show_default=False, help="a configuration, like configs/two-vms.yaml"),
    ] = None,
    revision: Annotated[
        int | None, typer.Option(metavar="N", help="go back to a revision (`show revisions`) instead", min=1)
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show the difference")] = False,
    form: Format = Form.TABLE,
) -> None:
    """Replace the whole configuration of the running switch, showing the difference first."""
    from pvswitch import show as view

    switch = client(context)
    if file is not None and revision is None:
        edit = _of_file(switch, file)
    elif revision is not None and file is None:
        edit = _of_revision(switch, revision)
    else:
        usage("name a FILE or a --revision, and not both")
    difference = edit(dry_run=True)
    view.difference(difference, form.value)
    if difference.changes and not dry_run:
        edit(dry_run=False)


@app.command()
def rebalance(
    context: Context,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would move")] = False,
    form: Format = Form.TABLE,
) -> None:
    """Measure for a second, and move queues from busy workers to others where that helps."""
    from pvswitch import show as view

    view.rebalanced(client(context).rebalance(dry_run=dry_run), form.value)


class Edit(Protocol):
    """A change of the whole configuration as it was found: done, or only looked at."""

    def __call__(self, *, dry_run: bool) -> PlanResult:
        """Return the difference; PvswitchError when it is refused, also when somebody else was faster."""


def _of_file(switch: Client, file: Path) -> Edit:
    from pvswitch.client import ApiError
    from pvswitch.config import read

    source = read(file)
    etag = switch.config().etag

    def edit(*, dry_run: bool) -> PlanResult:
        try:
            return switch.put_config(source.document, if_match=etag, dry_run=dry_run)
        except ApiError as error:
            if error.status == 422 and error.errors:
                raise source.error(InvalidDocument([field_error(item) for item in error.errors])) from None
            raise

    return edit


def _of_revision(switch: Client, revision: int) -> Edit:
    etag = switch.config().etag
    return lambda *, dry_run: switch.restore(revision, if_match=etag, dry_run=dry_run)


@app.command()
def doctor(
    context: Context,
    name: Annotated[
        str | None, typer.Argument(metavar="PORT", show_default=False, autocompletion=completion.ports)
    ] = None,
) -> None:
    """Say why a port has no link, in one sentence with the remedy."""
    from pvswitch.doctor import diagnose

    switch = client(context)
    ports = switch.ports() if name is None else [switch.port(name)]
    if not ports:
        print("the switch runs, and has no ports: add one with `pvswitch port add NAME`")
    shown: list[dict[str, Any]] = [port.model_dump(mode="json", exclude_none=True) for port in ports]
    for finding in diagnose(shown, local=switch.address.startswith("unix:")):
        print(f"{finding.port}: {finding.message}")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="leave it running, and say how to look at it")] = False,
) -> None:
    """Two guests on a switch, talking, with the numbers on screen."""
    from pvswitch import demo as demonstration

    raise typer.Exit(demonstration.main(keep))


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="a few cases in less than two minutes")] = False,
    cases: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="only cases like this: '64-*'; may be repeated")
    ] = None,
    switches: Annotated[
        list[str] | None, typer.Option("--switch", metavar="NAME", help="only this switch; may be repeated")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="turns of each switch in each case; default: 5", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="of each measurement; default: 1, of TCP 5", min=0.05, max=600)
    ] = None,
    cpus: Annotated[
        str | None, typer.Option(metavar="N,N", help="processors of switch and generator; default: the first two cores")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write every sample there")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="write a plot there")] = None,
    table: Annotated[Path | None, typer.Option(metavar="FILE", help="write the table there, too")] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="name the cases, and measure nothing")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="FILE FILE", help="say how far two runs agree, and measure nothing"),
    ] = None,
) -> None:
    """Measure pvswitch next to OVS-DPDK, testpmd and a Linux bridge on this machine, in turns."""
    from pvswitch.bench import command

    if compare is not None:
        raise typer.Exit(command.compare(*compare))
    if list_cases:
        raise typer.Exit(command.show_cases(cases or ()))
    options = command.Options(
        patterns=cases or (),
        switches=switches or (),
        quick=quick,
        rounds=rounds,
        seconds=seconds,
        cpus=_two(cpus) if cpus is not None else None,
        json=json,
        svg=svg,
        table=table,
    )
    raise typer.Exit(command.main(options))


def _two(text: str) -> tuple[int, int]:
    numbers = text.split(",")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        usage(f"--cpus takes two processors, like 2,3, not {text!r}")
    return int(numbers[0]), int(numbers[1])
