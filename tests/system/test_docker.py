# SPDX-License-Identifier: Apache-2.0
"""The image, and the lab of docker/compose.yaml, on a real Docker engine."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing_peer
from tests.system.docker_engine import Engine, running_engine, what_is_missing

pytestmark = pytest.mark.timeout(600)  # the first build fetches packages

MAX_MIB = 130  # of the image, without the base that it stands on
USER = "10001"
NET_ADMIN_AND_NET_RAW = 1 << 12 | 1 << 13
LOCKED = (
    *("--network", "none", "--read-only", "--security-opt", "no-new-privileges:true", "--cap-drop", "ALL"),
    *("--tmpfs", f"/run/pvswitch:uid={USER},gid={USER},mode=0755", "--health-interval", "1s"),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    if (missing := what_is_missing()) is not None:
        missing_peer(missing)
    with running_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    # The stage has a name of its own to be kept: the next build finds its layers.
    engine.build("docker/Dockerfile", "pvswitch-build", "--target", "build")
    engine.build("docker/Dockerfile", "pvswitch")
    return "pvswitch"


@pytest.fixture(scope="module")
def guest_image(engine: Engine) -> str:
    engine.build("docker/guest/Dockerfile", "pvswitch-guest")
    return "pvswitch-guest"


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text("ports: {vm1: {}, vm2: {}}\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def started(engine: Engine, image: str, lab: Path) -> Iterator[list[str]]:
    """The containers that a test starts, removed at its end."""
    containers: list[str] = []
    yield containers
    for container in containers:
        engine.docker("rm", "--force", "--volumes", container)


def run_switch(engine: Engine, lab: Path, started: list[str], *options: str) -> str:
    mount = ("--volume", f"{lab}:/etc/pvswitch/lab.yaml:ro")
    started.append(engine.docker("run", "--detach", *LOCKED, *mount, *options, "pvswitch").strip().splitlines()[-1])
    engine.wait_health(started[-1], "healthy")
    return started[-1]


def in_image(engine: Engine, words: str) -> str:
    return engine.docker("run", "--rm", "--network", "none", "--entrypoint", "sh", "pvswitch", "-c", words).strip()


def test_image_is_small_and_holds_no_tools(engine: Engine, image: str) -> None:
    size = engine.inspect(image)["Size"] - engine.inspect(engine.base)["Size"]
    assert size < MAX_MIB << 20
    assert (
        in_image(engine, "command -v gcc cc make pip pip3 git; ls /src /opt/pvswitch/bin/pip 2>/dev/null; true") == ""
    )
    assert (
        in_image(engine, "ls /opt/pvswitch/lib/python3*/site-packages | grep -E '^(pip|setuptools|tests)$' || true")
        == ""
    )


def test_image_says_how_it_runs(engine: Engine, image: str) -> None:
    config = engine.inspect(image)["Config"]
    assert config["User"] == "pvswitch"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["as-pvswitch", "pvswitch"]
    assert config["Cmd"] == ["run", "--resume", "-c", "/etc/pvswitch/lab.yaml"]
    assert config["Healthcheck"]["Test"] == ["CMD", "as-pvswitch", "healthcheck"]
    assert list(config["Volumes"]) == ["/var/lib/pvswitch"]
    assert not config.get("ExposedPorts")
    assert "valid" in engine.docker("run", "--rm", "--network", "none", image, "check", "/etc/pvswitch/lab.yaml")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_vhost_user_needs_no_capability(engine: Engine, lab: Path, started: list[str]) -> None:
    switch = run_switch(engine, lab, started)
    status = engine.status(switch)
    assert status["Uid"].split() == [USER] * 4
    assert status["Gid"].split() == [USER] * 4
    for which in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[which], 16) == 0, which
    assert status["NoNewPrivs"] == "1"
    assert "Read-only file system" in engine.docker("exec", switch, "touch", "/opt/pvswitch/here", check=False)
    assert "vm2" in engine.docker("exec", switch, "pvswitch", "show", "ports")


def test_uplinks_need_two_capabilities(engine: Engine, lab: Path, started: list[str]) -> None:
    """SETUID and SETGID are for the entry point alone: the switch is not root and can't be again."""
    lab.write_text("ports: {vm1: {}, host: {type: tap, ifname: pvs-tap0, addresses: [192.0.2.1/24]}}\n")
    adds = ("NET_ADMIN", "NET_RAW", "SETUID", "SETGID")
    options = [word for add in adds for word in ("--cap-add", add)]
    switch = run_switch(engine, lab, started, "--user", "root", "--device", "/dev/net/tun", *options)
    status = engine.status(switch)
    assert status["Uid"].split() == [USER] * 4
    assert status["Groups"].split() == [USER]
    for which in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[which], 16) == NET_ADMIN_AND_NET_RAW, which
    assert status["NoNewPrivs"] == "1"
    assert "pvs-tap0" in engine.docker("exec", switch, "ls", "/sys/class/net").split()
    state = json.loads(engine.docker("exec", switch, "as-pvswitch", "pvswitch", "show", "ports", "-f", "json"))
    assert {port["name"]: port["state"]["link"] for port in state["items"]} == {"host": "up", "vm1": "down"}


def test_sigterm_ends_it_cleanly(engine: Engine, lab: Path, started: list[str]) -> None:
    volume = engine.docker("volume", "create").strip()
    switch = run_switch(engine, lab, started, "--volume", f"{volume}:/run/pvswitch/ports")
    folder = Path(engine.inspect(volume)["Mountpoint"])
    assert sorted(path.name for path in folder.iterdir()) == ["vm1.sock", "vm2.sock"]
    before = time.monotonic()
    engine.docker("stop", "--time", "30", switch)
    assert time.monotonic() - before < 20  # far from SIGKILL
    state = engine.inspect(switch)["State"]
    assert state["ExitCode"] == 0
    assert list(folder.iterdir()) == []
    assert "Traceback" not in engine.docker("logs", switch)


def test_sighup_rereads_the_file(engine: Engine, lab: Path, started: list[str]) -> None:
    switch = run_switch(engine, lab, started)
    lab.write_text("ports: {vm1: {}, vm2: {}, vm3: {}}\n")
    engine.docker("kill", "--signal", "HUP", switch)
    engine.wait(lambda: "vm3" in engine.docker("exec", switch, "pvswitch", "show", "ports"), "the new port", 60, switch)


def test_a_switch_that_does_not_answer_is_unhealthy(engine: Engine, lab: Path, started: list[str]) -> None:
    switch = run_switch(engine, lab, started, "--health-retries", "1", "--health-timeout", "20s")
    os.kill(engine.inspect(switch)["State"]["Pid"], signal.SIGSTOP)
    engine.wait_health(switch, "unhealthy")


def test_a_bad_file_is_one_sentence(engine: Engine, lab: Path, started: list[str]) -> None:
    lab.write_text("ports: {vm1: {speed: 9}}\n")
    words = engine.docker(
        "run", "--rm", *LOCKED, "--volume", f"{lab}:/etc/pvswitch/lab.yaml:ro", "pvswitch", check=False
    )
    assert "Traceback" not in words
    assert "speed" in words


@pytest.fixture
def compose(engine: Engine, image: str, guest_image: str) -> Iterator[Engine]:
    engine.compose("up", "--detach", "--no-build")
    yield engine
    engine.compose("down", "--volumes", "--timeout", "5")


def last_reply(engine: Engine, guest: str) -> int:
    """The sequence number of the last ping that was answered, -1 before the first."""
    replies = re.findall(r"bytes from 10\.0\.0\.\d+: seq=(\d+)", engine.docker("logs", guest))
    return int(replies[-1]) if replies else -1


def wait_for_reply(engine: Engine, guest: str, number: int) -> None:
    engine.wait(lambda: last_reply(engine, guest) >= number, f"reply {number}", 120, guest)


def test_lab_pings_and_outlives_a_killed_switch(compose: Engine) -> None:
    switch, *guests = (compose.compose("ps", "-q", name).split()[-1] for name in ("switch", "vm1", "vm2"))
    for guest in guests:
        wait_for_reply(compose, guest, 3)
        assert int(compose.status(guest)["CapEff"], 16) == 0
        assert compose.docker("exec", guest, "ls", "/run/pvswitch").split() == ["ports"]
    compose.docker("exec", switch, "pvswitch", "port", "add", "vm3", "mtu=9000")
    births = [compose.inspect(guest)["State"]["StartedAt"] for guest in guests]

    compose.docker("kill", switch)
    assert compose.inspect(switch)["State"]["Running"] is False
    seen = [last_reply(compose, guest) for guest in guests]
    compose.docker("start", switch)
    compose.wait_health(switch, "healthy")
    for guest, last in zip(guests, seen, strict=True):
        wait_for_reply(compose, guest, last + 3)
    assert [compose.inspect(guest)["State"]["StartedAt"] for guest in guests] == births
    assert "vm3" in compose.docker("exec", switch, "pvswitch", "show", "ports")
