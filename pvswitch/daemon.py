# SPDX-License-Identifier: Apache-2.0
"""The running switch: composes every room, owns every task, and ends it all cleanly.

`run()` is what `pvswitch run` calls. Order of the start: folders, poll threads, ports, API; a failure anywhere undoes
what came before and is one sentence on stderr with exit status 1. The end (SIGTERM, SIGINT) is the reverse: no socket
file, thread, task or process is left. SIGHUP rereads the file and replaces the whole configuration, logging the
difference; a bad file changes nothing. A signal that comes during the start is heeded as soon as the switch runs.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import structlog
import uvloop

from pvswitch import __version__
from pvswitch.api.access import Access
from pvswitch.api.app import make_app
from pvswitch.api.schemas import Info
from pvswitch.api.server import ApiServer
from pvswitch.api.tls import Tls
from pvswitch.config import load
from pvswitch.controller import Controller
from pvswitch.datapath import Datapath
from pvswitch.errors import PvswitchError
from pvswitch.events import Events
from pvswitch.flow_expiry import FlowExpiry
from pvswitch.identity import Identity
from pvswitch.model import SwitchConfig
from pvswitch.notify import Notifier, Pulse
from pvswitch.ports import Ports
from pvswitch.revisions import Revisions, adopted
from pvswitch.values import MAX_CPU

log = structlog.get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(config_path: Path | None = None, *, resume: bool = False, verbose: bool = False) -> int:
    """Run the switch in the foreground until a signal ends it; return the exit status: 0 or 1.

    With `resume` it starts from the last revision in the file's `state_dir`, from the file where there is none.
    """
    _set_up_logging(verbose)
    try:
        config = load(config_path) if config_path is not None else SwitchConfig()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, config_path, resume=resume))
    except PvswitchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def serve(config: SwitchConfig, config_path: Path | None, *, resume: bool = False) -> None:
    """Serve `config` until SIGTERM or SIGINT. Raises PvswitchError when the start fails."""
    _raise_descriptor_limit()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=_name_helper))
    with _Signals() as signals, Revisions(config.state_dir) as revisions:
        if resume:
            config = _resumed(revisions, config, config_path)
        await _serve(config, config_path, revisions, signals)


def _name_helper() -> None:
    """Give a thread that waits for disks and the like a name, by which `top -H` tells it from the event loop's."""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("pvs-helper")


async def _serve(config: SwitchConfig, config_path: Path | None, revisions: Revisions, signals: _Signals) -> None:
    _make_folders(config)
    access = Access(config.api.tokens_file)
    tls = None if config.api.tls is None else Tls(config.api.tls.cert, config.api.tls.key)
    async with AsyncExitStack() as stack:
        datapath = _start_datapath(config)
        stack.callback(datapath.close)
        events = Events()
        ports = Ports(datapath, events, Identity.kept(config.state_dir))
        stack.push_async_callback(ports.close)
        controller = Controller(ports, config, revisions, events)
        stack.push_async_callback(controller.close)
        await controller.start("start" if config_path is None else f"start -c {config_path}")
        gc.freeze()  # what is there now stays: looking through very many flows again and again would hold up the loop
        ports.start()
        expiry = FlowExpiry(controller, ports)
        stack.push_async_callback(expiry.close)
        expiry.start()
        api = ApiServer(
            make_app(controller, ports, revisions, events, _info(config_path), access),
            config.api.socket,
            # never looser than this: who may start a VM on a port need not be who may change the switch
            mode=0o660,
            gid=config.socket_gid() if config.socket_group is not None else None,
            listen=config.api.listen,
            tls=tls,
        )
        stack.push_async_callback(api.close)
        await api.start()
        log.info(
            "switch running",
            api=str(config.api.socket),
            listen=api.tcp_name,
            bridges=len(config.bridges),
            ports=len(config.ports),
            workers=datapath.workers,
            copy_kernel=datapath.copy_kernel,
        )
        notifier = Notifier.from_environment()
        stack.push_async_callback(notifier.close)
        notifier.ready(_status(controller))
        notifier.watch(lambda: _pulses(datapath))
        keys = [reader for reader in (access, tls) if reader is not None]
        while await signals.next() == {signal.SIGHUP}:
            notifier.reloading()
            _reload_keys(keys)
            await _reload(controller, config_path)
            notifier.ready(_status(controller))
        log.info("switch ending")
        notifier.stopping()


def _resumed(revisions: Revisions, config: SwitchConfig, config_path: Path | None) -> SwitchConfig:
    """Return the configuration of the last revision; `config`, the file's, where there is none.

    What takes a restart can't be edited while the switch runs: it is the file's, so that a restart is all it takes.
    """
    last = revisions.last()
    if last is None:
        log.info("nothing to resume, starting from the file", state_dir=str(revisions.folder), file=str(config_path))
        return config
    own = ("state_dir",) if config_path is None else SwitchConfig.RESTART
    try:
        resumed = adopted(revisions.read(last.number), config, own)
    except (KeyError, PvswitchError) as error:
        raise PvswitchError(
            f"revision {last.number} in {revisions.folder} can't be resumed: {error}; start without --resume, from the "
            "configuration file"
        ) from error
    log.info("resuming", revision=last.number, time=last.time, actor=last.actor)
    return resumed


def _info(config_path: Path | None) -> Info:
    return Info(
        version=__version__,
        pid=os.getpid(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        config_file=None if config_path is None else str(config_path),
    )


def _status(controller: Controller) -> str:
    """Return what the switch is, for `systemctl status`."""
    config = controller.config
    return f"forwarding; bridges: {len(config.bridges)}, ports: {len(config.ports)}; API at {config.api.socket}"


def _pulses(datapath: Datapath) -> list[Pulse]:
    """Return what each worker has done so far, for the watchdog."""
    perfs = [datapath.perf(worker) for worker in range(datapath.workers)]
    return [None if perf.sleeping else perf.loops for perf in perfs]


def _start_datapath(config: SwitchConfig) -> Datapath:
    conf = config.datapath
    _check_cpus(conf.cpus)
    datapath = Datapath(workers=conf.workers, cpus=conf.cpus, polling=conf.polling, poll_us=conf.poll_us)
    try:
        datapath.start()
    except OSError as error:
        datapath.close()
        raise PvswitchError(
            f"{conf.workers} poll threads can't be started: {error.strerror}; see `ulimit -u` and the machine's memory"
        ) from error
    return datapath


def _check_cpus(cpus: Sequence[int]) -> None:
    """Raise PvswitchError for a processor that isn't there, or that the kernel keeps from this process.

    Looked at here and not in the document: what a process may use can change while its configuration stays.
    """
    possible = _possible_cpus()
    if missing := [cpu for cpu in cpus if cpu not in possible]:
        raise PvswitchError(
            f"datapath.cpus: this process can't run on processor {missing[0]}: name some of {_ranges(possible)}, or "
            "leave `cpus` out and the workers unpinned"
        )


def _possible_cpus() -> set[int]:
    """Return the processors that a thread of this process can be pinned to, whatever its own affinity is now."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(MAX_CPU + 1))  # the kernel leaves out what is not there or not in the cpuset
    try:
        return os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, own)


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as people write them: "0-3,8"."""
    runs = itertools.groupby(enumerate(sorted(numbers)), lambda item: item[1] - item[0])
    pairs = [(run[0], run[-1]) for run in ([number for _, number in items] for _, items in runs)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


# ---- signals ----


class _Signals:
    """The signals that reload or end the switch: none is lost, and none cuts the start or the end short."""

    def __init__(self) -> None:
        """Heed them as a context manager."""
        self._wake = asyncio.Event()
        self._seen: set[signal.Signals] = set()

    def __enter__(self) -> Self:
        """Begin to remember them."""
        for signum in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signum, self._note, signum)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them to the system again."""
        for signum in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(signum)

    async def next(self) -> set[signal.Signals]:
        """Wait for signals; return those that came since the last call."""
        await self._wake.wait()
        self._wake.clear()
        seen, self._seen = self._seen, set()
        return seen

    def _note(self, signum: signal.Signals) -> None:
        self._seen.add(signum)
        self._wake.set()


def _reload_keys(keys: Sequence[Access | Tls]) -> None:
    """Read tokens and certificate again; what is of no use is logged, and the old stays in use."""
    for reader in keys:
        try:
            reader.reload()
        except PvswitchError as error:
            log.error("reload refused, the old tokens and certificate stay", error=str(error))


async def _reload(controller: Controller, config_path: Path | None) -> None:
    if config_path is None:
        log.warning("SIGHUP ignored: the switch was started without a configuration file (-c FILE)")
        return
    try:
        config = await asyncio.to_thread(load, config_path)  # a large file takes a while
        plan = await controller.apply(config, actor=f"SIGHUP, {config_path}")
    except PvswitchError as error:
        log.error("reload refused, nothing was changed", file=str(config_path), error=str(error))
        return
    except Exception:  # as in an answer of the API: a fault in one change must not end the forwarding
        log.exception("reload failed", file=str(config_path))
        return
    for change in plan.changes:
        log.info("reloaded", change=change.detail, disruptive=change.disruptive)
    log.info("reload done", file=str(config_path), changes=len(plan.changes))


# ---- the process ----


def _set_up_logging(verbose: bool) -> None:
    """One line for each event on stderr; colours only on a terminal."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # one with local variables would show tokens
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _raise_descriptor_limit() -> None:
    """Every port takes a dozen descriptors or more: use what the kernel allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_folders(config: SwitchConfig) -> None:
    """Make the folders of the sockets, open to all to enter: the sockets in them carry the permissions."""
    for folder in (config.runtime_dir, config.socket_dir):
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o755)  # whatever the umask is
        except OSError as error:
            raise PvswitchError(
                f"the folder {folder} can't be made: {error.strerror}; set runtime_dir to one that user "
                f"{os.geteuid()} may write"
            ) from error
