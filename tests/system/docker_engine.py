# SPDX-License-Identifier: Apache-2.0
"""A Docker engine for the tests: `scripts/docker-engine` behind a Python face, and images built from this tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 300  # the first time, its base image is made
COMMAND_SECONDS = 300


class Engine:
    """A running engine. Every command has a deadline; one that fails raises AssertionError with what it wrote."""

    def __init__(self, host: str, base: str) -> None:
        self.base = base
        self.environment = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0", "BASE": base}
        # `docker compose` is a plugin of the client, docker-compose its predecessor.
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False, timeout=60)
        self._compose = ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command with this engine; return what it wrote."""
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        assert done.returncode == 0 or not check, f"{words} ended with status {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def docker(self, *words: str, check: bool = True) -> str:
        return self.run("docker", *words, check=check)

    def compose(self, *words: str) -> str:
        return self.run(*self._compose, "-f", "docker/compose.yaml", *words)

    def build(self, dockerfile: str, tag: str, *options: str) -> None:
        base = ("--network", "host", "--build-arg", f"BASE={self.base}")
        self.docker("build", *base, *options, "-f", dockerfile, "-t", tag, ".")

    def inspect(self, what: str) -> Any:
        return json.loads(self.docker("inspect", what))[0]

    def wait(self, reached: Callable[[], bool], what: str, seconds: float, container: str) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            log = self.docker("logs", container)[-4000:]
            assert self.inspect(container)["State"]["Running"], f"the container ended before {what}; log:\n{log}"
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}; log:\n{log}"
            time.sleep(0.2)

    def wait_health(self, container: str, wanted: str) -> None:
        self.wait(lambda: self.inspect(container)["State"]["Health"]["Status"] == wanted, wanted, 60, container)

    def status(self, container: str) -> dict[str, str]:
        """Return /proc/PID/status of a container's first process."""
        pid = self.inspect(container)["State"]["Pid"]
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def what_is_missing() -> str | None:
    """Return why there can be no engine here, with the remedy."""
    if os.geteuid() != 0:
        return "a Docker engine of its own needs root: run the tests as root"
    for program, package in (("dockerd", "docker.io"), ("docker", "docker.io"), ("debootstrap", "debootstrap")):
        if shutil.which(program) is None:
            return f"{program} not found: apt-get install {package}"
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False, timeout=60)
    if plugin.returncode != 0 and shutil.which("docker-compose") is None:
        return "neither `docker compose` nor docker-compose found: apt-get install docker-compose"
    return None


@contextmanager
def running_engine() -> Iterator[Engine]:
    """Run an engine for the body; afterwards nothing of it runs."""
    words = 'echo "$DOCKER_HOST $BASE"; exec cat >/dev/null'
    with subprocess.Popen(
        [str(ROOT / "scripts/docker-engine"), "sh", "-c", words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        host, _, base = process.stdout.readline().strip().partition(" ")
        if not base:
            raise AssertionError(f"no Docker engine: {process.stderr.read()}")
        try:
            yield Engine(host, base)
        finally:
            process.stdin.close()  # `cat` ends, and the engine with it
            status = process.wait(timeout=60)
    assert status == 0, f"the engine ended with status {status}"
