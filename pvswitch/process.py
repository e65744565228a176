# SPDX-License-Identifier: Apache-2.0
"""A switch as a child process with a folder of its own, for those who need one for a while.

`SwitchProcess` writes a configuration file into a temporary folder, runs `pvswitch run -c FILE` there, waits
until the switch says it is ready, and asks it through the command and the HTTP API, exactly as any user
would. Used by `pvswitch.demo`, the system tests and the benchmarks; nothing of the switch itself is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import aiohttp

from pvswitch.errors import PvswitchError

START_SECONDS = 20.0
STOP_SECONDS = 10.0
# A question that the API leaves unanswered for so long counts as an error, not as a slow answer.
ANSWER_SECONDS = 10.0


class SwitchProcessError(PvswitchError):
    """The child did not start, answer or end as it should; the message ends with its log."""


def command() -> list[str]:
    """Return the words that start the `pvswitch` command of this very installation."""
    return [sys.executable, "-c", "import sys; from pvswitch.cli import main; sys.exit(main())"]


class SwitchProcess:
    """One switch in a temporary folder; as `async with` it starts, and is stopped and removed at the end."""

    def __init__(self, config: Mapping[str, Any], launcher: Sequence[str] = ()) -> None:
        """`config` is the configuration document without `runtime_dir` and `state_dir`, which are in the folder.

        `launcher` are words that start the switch by exec, such as those of a network namespace.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="pvswitch-"))
        self.runtime_dir = self.folder / "run"
        self.api = self.runtime_dir / "api.sock"
        self.config_file = self.folder / "switch.yaml"
        own = {"runtime_dir": str(self.runtime_dir), "state_dir": str(self.folder / "state")}
        # JSON is YAML: no quoting to get wrong.
        self.config_file.write_text(json.dumps({**own, **config}, indent=2))
        self._launcher = launcher
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._log: IO[bytes] | None = None

    async def __aenter__(self) -> Self:
        """Start the switch and wait until it is ready."""
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the switch if it runs, and remove the folder."""
        await self.close()

    @property
    def pid(self) -> int:
        """The process id; only while it runs."""
        if self._process is None:
            raise SwitchProcessError("the switch is not running: start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    def log(self) -> str:
        """Return what the switch has written so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def leftovers(self) -> list[Path]:
        """Return what lies in the runtime folder that is not a folder; after a clean end nothing does."""
        return [path for path in self.runtime_dir.rglob("*") if not path.is_dir()]

    def port_socket(self, port: str) -> Path:
        """Return the vhost-user socket of a port that the configuration leaves at its default."""
        return self.runtime_dir / "ports" / f"{port}.sock"

    async def start(self, *, resume: bool = False) -> None:
        """Start the process and wait until /readyz answers 200; with `resume` it goes on from its last revision."""
        await self.spawn(resume=resume)
        await self.wait_until(self._ready, "the switch to be ready", START_SECONDS)

    async def spawn(self, *, resume: bool = False) -> None:
        """Start the process, and leave it at that."""
        options = ("-c", str(self.config_file), *(("--resume",) if resume else ()))
        self._log = (self.folder / "log").open("ab")
        # setpriv execs the switch in place: the same process, killed by the kernel if the parent thread dies.
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", *self._launcher, *command(), "run", *options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._session = aiohttp.ClientSession("http://switch", connector=aiohttp.UnixConnector(str(self.api)))

    async def stop(self) -> int:
        """End the switch by SIGTERM; return its exit status. Raises, and kills it, if that takes too long."""
        process = self._process
        if process is None:
            raise SwitchProcessError("the switch is not running: start it first")
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise SwitchProcessError(f"no end within {STOP_SECONDS:.0f} s of SIGTERM; log:\n{self.log()}") from None
        finally:
            self._process = None
            await self._let_go()

    async def kill(self) -> None:
        """End the switch as `kill -9` does; `start` begins anew in the same folder, with what was left there."""
        process = self._process
        if process is None:
            raise SwitchProcessError("the switch is not running: start it first")
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        self._process = None
        await self._let_go()

    async def close(self) -> None:
        """Stop the switch if it runs and remove its folder; may be called again."""
        try:
            if self._process is not None:
                await self.stop()
        finally:
            await self._let_go()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _let_go(self) -> None:
        """Close what belongs to one run of the switch."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._log is not None:
            self._log.close()
            self._log = None

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> tuple[int, Any]:
        """Ask the API; return the status and the decoded body (None if empty). `path` is the full one."""
        if self._session is None:
            raise SwitchProcessError("the switch is not running: start it first")
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self._session.request(method, path, json=body, headers=headers, timeout=timeout) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text and "json" in answer.content_type else text or None

    async def get(self, path: str) -> Any:
        """Return the body of `GET /api/v1{path}`. Raises `SwitchProcessError` unless the answer is 200."""
        status, body = await self.request("GET", f"/api/v1{path}")
        if status != 200:
            raise SwitchProcessError(f"GET {path} answered {status}: {body}")
        return body

    async def cli(self, *arguments: str) -> str:
        """Run the `pvswitch` command on this switch; return what it prints. Raises if it doesn't succeed."""
        process = await asyncio.create_subprocess_exec(
            *(*command(), "--api", f"unix:{self.api}", *arguments),
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "1000"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(START_SECONDS):
            output, complaint = await process.communicate()
        if process.returncode != 0:
            raise SwitchProcessError(f"pvswitch {shlex.join(arguments)}: {complaint.decode(errors='replace').strip()}")
        return output.decode()

    async def qemu_args(self, port: str, version: tuple[int, int], accel: str, queues: int = 1) -> list[str]:
        """Return the words of `pvswitch port qemu-args PORT`, unchanged, as a shell would split them.

        `version` is that of the QEMU to start, `accel` its accelerator: what to know for ready-made lines.
        `queues` are the guest's queue pairs.
        """
        options = ("--qemu-version", "{}.{}".format(*version), "--accel", accel.split(",")[0], "--queues", str(queues))
        text = await self.cli("port", "qemu-args", port, *options)
        return shlex.split(text.replace("\\\n", " "))

    async def link(self, port: str) -> str:
        """Return a port's link: "up", or the reason why it is down."""
        state = (await self.get(f"/ports/{port}"))["state"]
        return "up" if state["link"] == "up" else str(state["reason"])

    async def wait_link(self, port: str, wanted: str = "up", seconds: float = 10.0) -> None:
        """Wait until a port's link is as wanted: "up" or a reason."""

        async def reached() -> bool:
            return await self.link(port) == wanted

        await self.wait_until(reached, f"port {port} to be {wanted}", seconds)

    async def wait_until(self, reached: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
        """Ask `reached` again and again until it is true; raises after `seconds` or when the switch ends."""
        try:
            async with asyncio.timeout(seconds):
                while not await reached():
                    if not self.running:
                        raise SwitchProcessError(f"the switch ended while waiting for {what}; log:\n{self.log()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise SwitchProcessError(f"waited {seconds:.0f} s for {what}; log:\n{self.log()}") from None

    async def _ready(self) -> bool:
        try:
            status, _ = await self.request("GET", "/readyz")
        except aiohttp.ClientConnectionError:
            return False
        return status == 200
