# SPDX-License-Identifier: Apache-2.0
"""The command, against a running API: what it prints, where, and with which exit status."""

from __future__ import annotations

import asyncio
import grp
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pvswitch import client, show
from pvswitch.model import VhostUserPort
from tests.control.command import Command, run
from tests.control.conftest import MAC, Switch
from tests.control.malformed import MALFORMED


async def test_show_without_argument_is_the_ports(pv: Command) -> None:
    result = await pv("show")
    assert result.status == 0
    rows = result.out.splitlines()
    assert rows[0].split()[:4] == ["PORT", "BRIDGE", "LINK", "REASON"]
    assert rows[1].split()[:4] == ["vm1", "br0", "down", "waiting_for_frontend"]


@pytest.mark.parametrize("subject", ["ports", "bridges", "fdb", "stats", "perf", "config"])
@pytest.mark.parametrize("form", ["table", "json", "yaml"])
async def test_every_subject_in_every_form(pv: Command, switch: Switch, subject: str, form: str) -> None:
    switch.dataplane.learn("br0", MAC, "vm1")
    result = await pv("show", subject, "-f", form)
    assert (result.status, result.err) == (0, "")
    if form == "json":
        assert json.loads(result.out)
    else:
        assert {"ports": "vm1", "bridges": "lan", "fdb": MAC, "stats": "no_destination", "perf": "worker0"}.get(
            subject, "br0"
        ) in result.out


async def test_json_is_the_apis(pv: Command, switch: Switch) -> None:
    answer = await switch.ask("GET", "/api/v1/ports")
    assert json.loads((await pv("show", "ports", "-o", "json")).out) == answer.body


async def test_the_address_can_come_from_the_environment(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVSWITCH_API", switch.tcp)
    result = await asyncio.to_thread(run, "show", "bridges")
    assert "lan" in result.out


async def test_ports(pv: Command, switch: Switch) -> None:
    added = await pv("port", "add", "vm9", "lan", "mtu=9000", "labels.rack=7", "features.indirect=false")
    assert (added.status, added.out.strip()) == (0, str(switch.controller.config.port_socket("vm9")))
    port = switch.controller.config.ports["vm9"]
    assert isinstance(port, VhostUserPort)
    assert (port.mtu, port.labels, port.features.indirect) == (9000, {"rack": "7"}, False)
    again = await pv("port", "add", "vm9", "lan")
    assert (again.status, "port set" in again.err) == (1, True)
    assert (await pv("port", "set", "vm9", "mtu=", "enabled=false")).status == 0
    port = switch.controller.config.ports["vm9"]
    assert (port.mtu, port.enabled, port.labels) == (None, False, {"rack": "7"})
    assert (await pv("port", "del", "vm9")).status == 0
    assert "vm9" not in switch.controller.config.ports


async def test_bridges_and_addresses(pv: Command, switch: Switch) -> None:
    assert (await pv("bridge", "add", "new", "aging_time=5")).status == 0
    assert switch.controller.config.bridges["new"].aging_time == 5
    assert (await pv("bridge", "add", "new")).status == 1
    assert (await pv("bridge", "del", "new")).status == 0
    held = await pv("bridge", "del", "br0")
    assert (held.status, held.err) == (1, "bridge 'br0' still has ports: move or remove vm1, vm2 first\n")
    assert (await pv("fdb", "add", "br0", MAC, "vm1")).status == 0
    switch.dataplane.learn("br0", "02:00:00:00:00:01", "vm2")
    assert (await pv("fdb", "flush", "br0", "--port", "vm1")).status == 0
    assert len(switch.dataplane.fdb("br0")) == 2
    assert (await pv("fdb", "flush", "br0", "--vid", "0")).status == 0
    assert (await pv("fdb", "del", "br0", MAC)).status == 0
    assert switch.dataplane.fdb("br0") == []


async def test_the_lines_for_a_vm(pv: Command) -> None:
    kvm = (await pv("port", "qemu-args", "vm2")).out
    tcg = (await pv("port", "qemu-args", "vm2", "--accel", "tcg", "--qemu-version", "7.2", "--memory", "1G")).out
    assert tcg.replace("1G", "256M") == kvm.replace("host_mtu=1500", "host_mtu=1500,vectors=0")
    assert "mode='client'" in (await pv("port", "libvirt-xml", "vm2")).out
    assert "mq=on,vectors=10" in (await pv("port", "qemu-args", "vm2", "--queues", "4")).out
    assert "queues='4'" in (await pv("port", "libvirt-xml", "vm2", "--queues", "4")).out


async def test_the_doctor(pv: Command, switch: Switch, tmp_path: Path) -> None:
    result = await pv("doctor")
    assert result.status == 0
    socket_path = switch.controller.config.port_socket("vm1")
    assert f"vm1: waiting_for_frontend: no VM is connected to {socket_path}" in result.out
    assert f"vm1: {socket_path} is gone" in result.out  # the fake made no sockets
    one = await pv("doctor", "vm2")
    assert "vm1" not in one.out
    assert (await pv("doctor", "vm9")).status == 1


async def test_apply_shows_the_difference_first(pv: Command, switch: Switch, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    document = switch.controller.config.document()
    document["ports"]["vm2"]["mtu"] = 9000
    file.write_text(json.dumps(document))
    dry = await pv("apply", str(file), "--dry-run")
    assert (dry.status, dry.out) == (0, "DISRUPTIVE  CHANGE\nno          change port vm2: mtu 1500 -> 9000\n")
    assert switch.controller.config.ports["vm2"].mtu == 1500
    assert (await pv("apply", str(file))).out == dry.out
    assert switch.controller.config.ports["vm2"].mtu == 9000
    assert (await pv("apply", str(file))).out == "no difference\n"


@pytest.mark.parametrize("arguments", [("apply", "{file}"), ("apply", "--revision", "1")])
async def test_apply_changes_nothing_when_somebody_else_was_faster(
    pv: Command, switch: Switch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(json.dumps(switch.controller.config.document()))
    await pv("port", "set", "vm2", "mtu=9000")

    def looked_at(*_: object) -> None:
        with client.Client(f"unix:{switch.socket}") as other:
            other.patch_port("vm1", {"mtu": 1400})

    monkeypatch.setattr(show, "difference", looked_at)
    result = await pv(*(str(file) if word == "{file}" else word for word in arguments))
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "repeat the command" in result.err
    ports = switch.controller.config.ports
    assert (ports["vm1"].mtu, ports["vm2"].mtu) == (1400, 9000)


async def test_apply_gives_the_switchs_errors_their_lines(pv: Command, switch: Switch, tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("ports:\n  vm1:\n    mtu: 1\n    tag: 5000\n")
    etag = switch.controller.etag
    result = await pv("apply", str(file))
    assert result.status == 1
    assert [line.partition(" ")[0] for line in result.err.splitlines()] == [f"{file}:3:5:", f"{file}:4:5:"]
    assert switch.controller.etag == etag


@pytest.mark.parametrize("what", MALFORMED)
def test_check_names_every_place(tmp_path: Path, what: str) -> None:
    document, places, _ = MALFORMED[what]
    file = tmp_path / "lab.yaml"
    file.write_text(json.dumps(document))
    result = run("check", str(file))
    assert (result.status, result.out) == (1, "")
    lines = result.err.splitlines()
    assert len(lines) == len(places)
    assert all(f": {place}: " in line for place, line in zip(places, lines, strict=True))
    assert all(line.startswith(f"{file}:1:") for line in lines)


def test_check_is_content(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("ports: {vm1: {}}\n")
    assert run("check", str(file)).out == f"{file}: valid; bridges: 1, ports: 1\n"


async def test_refusals_are_one_line_with_status_1(pv: Command, switch: Switch) -> None:
    etag = switch.controller.etag
    for arguments, message in (
        (("port", "set", "vm1", "mtu=big"), "ports.vm1.mtu: must be a whole number"),
        (("port", "set", "vm9", "mtu=1500"), "there is no port 'vm9'"),
        (("port", "add", "x", "br9"), "ports.x.bridge: there is no bridge 'br9': declare it"),
        (("port", "del", "vm9"), "there is no port 'vm9'"),
        (("fdb", "add", "br0", "01:00:5e:00:00:01", "vm1"), "bridges.br0.fdb[0].mac: is a multicast"),
        (("fdb", "flush", "br9"), "there is no bridge 'br9'"),
        (("port", "qemu-args", "vm1", "--memory", "lots"), "?memory must be like 256M"),
        (("port", "qemu-args", "vm1", "--queues", "9"), "port 'vm1' offers 8 queue pairs"),
        (("port", "set", "vm1", "rxq_affinity=[0,1]"), "ports.vm1.rxq_affinity[1]: there is no worker 1"),
    ):
        result = await pv(*arguments)
        assert (result.status, result.out) == (1, ""), arguments
        assert result.err.startswith(message), arguments
        assert result.err.count("\n") == 1
    two = await pv("port", "set", "vm1", "mtu=1", "vni=1")
    assert two.err.splitlines() == [
        "ports.vm1.mtu: must be at least 68",
        "ports.vm1.vni: `vni` is a key of vxlan and geneve ports, and this is none: set `type`, or leave the key out",
    ]
    assert switch.controller.etag == etag


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("show", "frogs"),
        ("show", "--format", "xml"),
        ("port", "set", "vm1", "mtu"),
        ("port", "set", "vm1", "=5"),
        ("port", "set", "vm1"),
        ("fdb", "add", "br0"),
        ("fdb", "flush", "br0", "--vid", "4095"),
        ("check",),
    ],
)
async def test_usage_errors_have_status_2(pv: Command, arguments: tuple[str, ...]) -> None:
    result = await pv(*arguments)
    assert (result.status, result.out) == (2, "")
    assert result.err


def test_no_switch_running_has_status_3(tmp_path: Path) -> None:
    missing = run("--api", f"unix:{tmp_path}/api.sock", "show")
    assert (missing.status, missing.out) == (3, "")
    assert "pvswitch run" in missing.err
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    assert run("--api", f"unix:{dead}", "show").status == 3
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert run("--api", f"http://127.0.0.1:{sock.getsockname()[1]}", "show").status == 3


def test_a_wrong_address_is_refused() -> None:
    result = run("--api", "ftp://x", "show")
    assert (result.status, "unix:PATH" in result.err) == (1, True)


def test_no_permission_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "api.sock"
    path.touch()
    monkeypatch.setattr(grp, "getgrgid", lambda gid: type("G", (), {"gr_name": "kvm"}))
    monkeypatch.setattr(asyncio.SelectorEventLoop, "create_unix_connection", refuse)
    result = run("--api", f"unix:{path}", "show")
    assert result.status == 1
    assert "join the group kvm" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(("form", "separator"), [("table", "\n\n"), ("json", "\n"), ("yaml", "---\n")])
def test_watch_on_a_pipe_prints_one_after_the_other(monkeypatch: pytest.MonkeyPatch, form: str, separator: str) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(client.Client, "ports", lambda self: [])
    result = run("show", "ports", "--watch", "-n", "0.5", "-f", form)
    assert (result.status, waits) == (130, [0.5] * 3)
    assert result.out.count(separator) == 3
    if form == "json":
        assert [json.loads(line) for line in result.out.splitlines()] == [{"items": [], "next": None}] * 3


def test_help_is_quick_to_import() -> None:
    code = (
        "import sys; sys.argv = ['pvswitch', '--help']; from pvswitch.cli import main; main();"
        "print({'aiohttp', 'pydantic', 'ruamel.yaml', 'pvswitch.datapath', 'pvswitch.model'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"
