# SPDX-License-Identifier: Apache-2.0
"""Every command and every option of the command, on the running API; and what is told about them elsewhere.

The commands are read from the command itself: one without an example here fails, and so does an option.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from pvswitch import cli, daemon, demo, pcapng
from pvswitch.api.tls import Tls
from pvswitch.client import Event
from pvswitch.events import BrokenEvent, ResetEvent
from tests.control.command import Command, run
from tests.control.conftest import MAC, Switch
from tests.control.served import running
from tests.control.test_access import certificate

ROOT = Path(__file__).parents[2]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Give every command that does something, with its words."""
    for name, child in getattr(command, "commands", {}).items():
        if not getattr(child, "commands", None):
            yield " ".join((*path, name)), child
        yield from leaves(child, (*path, name))


COMMAND = typer.main.get_command(cli.app)
LEAVES = dict(leaves(COMMAND))


@dataclass
class Example:
    """A command line, how it ends, and a part of what it prints (of its refusal, when it is one)."""

    line: str
    said: str = ""
    status: int = 0


# In order: an example finds what those before it have left. {file}: a configuration with vm2's mtu at 9000.
EXAMPLES = [
    Example("check {file}", "valid; bridges: 2, ports: 2"),
    Example("bridge add lab aging_time=60 flood_unknown=false"),
    Example("bridge set lab aging_time=30 flood_unknown="),
    Example("show bridges lab", "aging_time     30"),
    Example("bridge set nowhere aging_time=30", "there is no bridge 'nowhere'", 1),
    Example("port add p1 lab mtu=9000 rxq_affinity=0,0 labels.rack=a1", "/ports/p1.sock"),
    Example("port add p2 bridge=lab mode=client socket=/tmp/cli-p2.sock", "/tmp/cli-p2.sock"),
    Example("port add up0 lab type=tap ifname=tap-cli addresses=192.0.2.1/24,2001:db8::1/64", "tap-cli"),
    Example("port add nic lab type=af_packet ifname=eth-cli promisc=false", "eth-cli"),
    Example("port add replay lab type=pcap read=/tmp/cli-in.pcap speed=0.5 loop=true", "/tmp/cli-in.pcap"),
    Example("port add tape lab type=pcap write=/tmp/cli-out.pcap", "/tmp/cli-out.pcap"),
    Example("port add tape2 lab type=pcap write=/tmp/cli-out.pcap", "the file that port 'tape' writes already", 1),
    Example("port add tape2 lab type=pcap", "a file to `read`, one to `write`, or both", 1),
    Example("show ports replay -f json", '"speed": 0.5'),
    Example("show ports", "read=/tmp/cli-in.pcap"),
    Example("doctor replay", "link up; read: /tmp/cli-in.pcap; played 3 frames, finished"),
    Example("port set replay speed=0 loop="),
    Example("port qemu-args replay", "port 'replay' has type pcap", 1),
    Example("port del replay"),
    Example("port del tape"),
    Example("show tunnels", "no tunnels: add one"),
    Example("port add vx lab type=vxlan vni=100 local=192.0.2.1 remotes=192.0.2.2,192.0.2.3", "vx"),
    Example("port add vx2 lab type=vxlan vni=100 local=192.0.2.1 remotes=192.0.2.2", "belongs to port 'vx' already", 1),
    Example('port add gn lab type=geneve vni={"10":1010,"20-29":"2020-2029"} local=192.0.2.1', "gn"),
    Example("port add gr lab type=gre key=7 local=2001:db8::1 remotes=2001:db8::2 tos=184", "gr"),
    Example("show ports", "192.0.2.1 -> 192.0.2.2 192.0.2.3"),
    Example("show tunnels", "11 by VLAN"),
    Example("show tunnels vx -f json", '"mtu": 1450'),
    Example("doctor vx", "link up; vxlan at 192.0.2.1, remotes: 192.0.2.2, 192.0.2.3; frames of up to 1450 bytes"),
    Example("tunnel remote add vx 100 192.0.2.9"),
    Example("show tunnels", "192.0.2.9 (external)"),
    Example("tunnel remote add vx 101 192.0.2.9", "no network of tunnel 'vx' with VNI '101'", 1),
    Example("tunnel remote add p1 100 192.0.2.9", "there is no tunnel 'p1'", 1),
    Example("tunnel remote del vx 100 192.0.2.9"),
    Example("tunnel remote del vx 100 192.0.2.2", "is a remote of the configuration", 1),
    Example("tunnel mac add gn 2025 25 52:54:00:00:00:09 192.0.2.2"),
    Example("tunnel mac add gn 2025 24 52:54:00:00:00:09 192.0.2.2", "must be 25, the VLAN that 2025 is mapped to", 1),
    Example("tunnel mac del gn 2025 25 52:54:00:00:00:09"),
    Example("tunnel mac del gn 2025 25 52:54:00:00:00:09", "there is no address", 1),
    Example("port set vx on_full=backpressure", "doesn't go with tunnels", 1),
    Example("trace lab in_port=p1,tcp,tp_dst=80", "verdict dropped: no_destination"),
    Example("trace lab in_port=gn,tun_id=2025 --tun-src 192.0.2.2 -f json", '"reason": "no_destination"'),
    Example("trace lab in_port=p1 --frame ffffffffffff5254000000018899", "type 0x8899, 14 bytes"),
    Example("trace br0 in_port=p1", "there is no port 'p1' on bridge 'br0'", 1),
    Example("port del vx"),
    Example("port del gn"),
    Example("port del gr"),
    Example("port set p1 mtu= enabled=false"),
    Example("show vlans lab", "no VLANs: every port is a trunk of all of them"),
    Example("port set p1 vlan_mode=native-untagged tag=10 trunks=20,100-102"),
    Example("show vlans lab", "lab     101  p1 p2 up0 nic"),
    Example("show vlans lab -f json", '"tagged": false'),
    Example("port set p1 vlan_mode= tag=10", "ports.p1.trunks: is not for access ports", 1),
    Example("port set p1 vlan_mode= tag= trunks="),
    Example("show ports p1", "enabled"),
    Example("show ports up0 -f json", '"192.0.2.1/24",'),
    Example("port set up0 addresses="),
    Example("port set nic type=tap", "ports.nic.promisc: `promisc` is a key of af_packet ports", 1),
    Example("port set nic type=tap promisc="),
    Example("port qemu-args p1 --qemu-version 9.2 --accel tcg --memory 1G --queues 2", "reconnect-ms=1000"),
    Example("port libvirt-xml p1 --queues 2", "queues='2'"),
    Example("port qemu-args up0", "port 'up0' has type tap: a VM starts on a port of type vhost-user", 1),
    Example("port libvirt-xml up0", "port 'up0' has type tap", 1),
    Example("fdb add lab 52:54:00:00:00:09 p1 --vid 0"),
    Example("show fdb lab", "52:54:00:00:00:09"),
    Example("fdb/show lab", "   p1     0  52:54:00:00:00:09  static"),
    Example("fdb del lab 52:54:00:00:00:09 --vid 0"),
    Example("fdb flush lab --port p1 --vid 0"),
    Example("fdb flush lab --sticky"),
    Example("fdb flush lab --sticky --port p9", "there is no port 'p9'", 1),
    Example("mirror add watch lab select_src_port=p1,nic select_dst_port=p1 output_port=p2 snaplen=96 drops=true"),
    Example("mirror add watch lab output_port=p2", "mirror watch is there already", 1),
    Example("mirror add rspan lab select_vlan=10,20-22 output_vlan=99"),
    Example("mirror add none lab select_src_port=p1", "needs one of `output_port` and `output_vlan`", 1),
    Example("mirror add loop lab select_dst_port=p2 output_vlan=99", "port 'p2' is the output of a mirror", 1),
    Example("mirror add short lab output_port=p2 snaplen=13", "snaplen: must be at least 14", 1),
    Example("mirror add far br0 output_port=p2", "port 'p2' is on bridge 'lab'", 1),
    Example("mirror add watch nowhere output_port=p2", "there is no bridge 'nowhere'", 1),
    Example("mirror add odd lab output_port", "KEY=VALUE", 2),
    Example("show bridges lab -f json", '"output_vlan": 99'),
    Example("show config", "select_vlan"),
    Example("port del p2", "mirror 'watch' of bridge 'lab' names port 'p2'", 1),
    Example("mirror del watch lab"),
    Example("mirror del watch lab", "there is no mirror 'watch'", 1),
    Example("mirror del rspan nowhere", "there is no bridge 'nowhere'", 1),
    Example("mirror del rspan lab"),
    Example("meter add slow lab rate_kbps=1000"),
    Example("meter add slow lab rate_pps=10", "meter slow is there already", 1),
    Example("meter add odd lab burst_bytes=70000", "needs one of `rate_kbps` and `rate_pps`", 1),
    Example("show flows", "no flows: every frame is forwarded as `normal` says"),
    Example("flow add lab priority=9,ip,in_port=p1,nw_dst=10.0.0.0/24,actions=meter:slow,output:p2"),
    Example("flow add lab priority=1,arp,actions=normal --name arps"),
    Example("flow add lab tcp,actions=resubmit(,2) --name f", "`resubmit` of Open vSwitch is not available", 1),
    Example("flow add lab actions=output:p9", "there is no port 'p9'", 1),
    Example("flow add lab", "give one flow, or a file of them", 2),
    Example("flow add lab #", "there is no flow in this text", 2),
    Example("flow add lab --file {file} --name f", "--name goes with one flow", 2),
    Example("flow add lab -f {flows}", "added: 2, changed: 0"),
    Example("flow add lab -f /nowhere/flows", "cannot be read: No such file", 1),
    Example("flow dump lab", "n_packets=3, n_bytes=180, idle_age=5, name=arps, priority=1,arp actions=NORMAL"),
    Example("dump-flows lab", "priority=9,ip,in_port=p1,nw_dst=10.0.0.0/24 actions=meter:slow,output:p2"),
    Example("show flows", "ip,in_port=p1,nw_dst=10.0.0.0/24"),
    Example("show flows lab -f json", '"actions": ['),
    Example("meter del slow lab", "names meter 'slow'", 1),
    Example("flow del lab priority=9,ip,nw_dst=10.0.0.9/24,in_port=p1"),
    Example("flow del lab priority=9,ip", "there is no flow 'priority=9,ip'", 1),
    Example("flow flush lab --cookie 0x5/0xf --port p1"),
    Example("add-flow lab priority=5,tcp,tp_dst=80,actions=drop"),
    Example("add-flow lab #", "there is no flow in this text", 2),
    Example("del-flows lab"),
    Example("flow dump lab"),
    Example("flow flush lab"),
    Example("meter del slow lab"),
    Example("meter del slow lab", "there is no meter 'slow'", 1),
    Example("port set p1 port_security.max_macs=2 port_security.sticky=true storm_control.broadcast_pps=100"),
    Example("port set p1 policing.rate_kbps=1000 shaping.rate_kbps=2000"),
    Example("show ports p1 -f json", '"burst_bytes": 131072'),
    Example("port set p1 on_full=backpressure", "on_full: doesn't go with `shaping`", 1),
    Example("port set p1 policing.rate_kbps=0", "policing.rate_kbps: must be at least 1", 1),
    Example("port set p1 shaping= policing= port_security= storm_control="),
    Example("doctor", "p1: admin_down: port p1 is switched off"),
    Example("doctor up0", "up0: "),
    Example("port del p2"),
    Example("port del p2", "there is no port 'p2'", 1),
    Example("show", "waiting_for_frontend"),
    Example("show stats vm1 --format json", '"rx_packets": 7'),
    Example("show perf -o yaml", "cycles_per_packet: 100.0"),
    Example("show perf", "worker0"),
    Example("show perf --queues", "vm1"),
    Example("show perf --queues -f json", '"name": "vm1/0"'),
    Example("show stats --queues", "--queues goes with `show perf`", 2),
    Example("rebalance --dry-run", "1 queue moves (not done)"),
    Example("rebalance --dry-run -f yaml", "from: 0"),
    Example("rebalance", "1 queue moves\n"),
    Example("rebalance --format json", '"applied": false'),
    Example("show drops", "vm2   vm1   tx    guest_rx_full"),
    Example("show drops p1", "no drops: nothing was dropped yet"),
    Example("show drops vm3", "there is no port 'vm3'", 1),
    Example("show frames vm3", "there is no port 'vm3'", 1),
    Example("flow flush lab --port vm3", "there is no port 'vm3'", 1),
    Example("show drops -f json", '"reason": "guest_rx_full"'),
    Example("show frames vm1", "52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff, type 0x88b5"),
    Example("show captures", "no captures: make one"),
    Example("capture vm1 vm2 -w {file}.pcapng --direction in --filter arp --snaplen 96 --count 9 --seconds 9"),
    Example("capture vm9 -w {file}.pcapng", "ports[0]: there is no port 'vm9'", 1),
    Example("capture vm1 -w {file}.pcapng --filter nobody", "'nobody' is a name", 1),
    Example("capture vm1", "name where to write", 2),
    Example("show events", "add ports/p1"),
    Example("show revisions", "add port p1"),
    Example("show revisions 1", "number: 1"),
    Example("show revisions first", "is no revision", 2),
    Example("show config", "aging_time: 30"),
    Example("show config br0", "takes no name", 2),
    Example("show -n 2", "-n goes with --watch", 2),
    Example("show ports --watch --interval 7", "vm1"),
    Example("show events --watch", "reset"),
    Example("apply {file} --dry-run", "no          change port vm2: mtu 1500 -> 9000"),
    Example("apply {file} -f yaml", "disruptive: true"),
    Example("apply --revision 1 --format table", "no          change port vm2: mtu 9000 -> 1500"),
    Example("apply --revision 999", "there is no revision '999'", 1),
    Example("apply", "name a FILE or a --revision", 2),
    Example("apply {file} --revision 1", "name a FILE or a --revision", 2),
    Example("add-br ovs aging_time=9"),
    Example("add-br ovs", "bridge ovs is there already", 1),
    Example("add-br --may-exist ovs"),
    Example("--may-exist add-br ovs"),
    Example("--may-exist del-br ovs", "--may-exist goes with add-br and add-port", 2),
    Example("--if-exists add-br ovs", "--if-exists goes with del-br and del-port", 2),
    Example("list-br", "br0\nlan\novs\n"),
    Example("add-port ovs o1 mtu=9000", "/ports/o1.sock"),
    Example("add-port ovs o1", "port o1 is there already", 1),
    Example("add-port --may-exist ovs o1"),
    Example("--may-exist add-port ovs o1"),
    Example("add-port --may-exist br0 o1", "port o1 is on bridge ovs, not on br0", 1),
    Example("list-ports ovs", "o1\n"),
    Example("list-ports nowhere", "there is no bridge 'nowhere'", 1),
    Example("list port o1 -f yaml", "mtu: 9000"),
    Example("list Bridge", "ovs"),
    Example("list controller", "", 2),
    Example("del-port br0 o1", "port o1 is on bridge ovs, not on br0", 1),
    Example("del-port ovs o1"),
    Example("del-port o1", "there is no port 'o1'", 1),
    Example("del-port --if-exists o1"),
    Example("--if-exists del-port ovs o1"),
    Example("del-br ovs"),
    Example("del-br ovs", "there is no bridge 'ovs'", 1),
    Example("del-br --if-exists ovs"),
    Example("--if-exists del-br ovs"),
    Example("bridge add empty"),
    Example("bridge del empty"),
    Example("run -c {file} --resume -v", "daemon.run(resume=True, verbose=True)"),
    Example("demo --keep", "demo.main(True)"),
    Example("bench --list --cases 64-*", "64-packed-mrg"),
    Example("bench --list --cases nothing", "No case matches 'nothing'", 1),
    Example("bench --quick --rounds 2 --seconds 0.5 --cpus 2,3", "rounds=2, seconds=0.5, cpus=(2, 3)"),
    Example("bench --cases tcp --switch pvswitch --switch bridge", "patterns=['tcp'], switches=['pvswitch', 'bridge']"),
    Example("bench --json a.json --svg a.svg --table a.txt", "json=PosixPath('a.json'), svg=PosixPath('a.svg')"),
    Example("bench --cpus 1", "--cpus takes two processors", 2),
    Example("bench --compare {file} {file}", "is no result of `pvswitch bench --json`", 1),
]


CAPTURED = "capturing on vm1 vm2; Ctrl-C ends it\n0 frames captured, none lost\n"


def command_of(line: str) -> tuple[str, list[str]]:
    """Return the command of a line, and the words after it (those before it, too)."""
    words = line.split()
    before = [word for word in words if words.index(word) == 0 and word.startswith("--")]
    words = words[len(before) :]
    size = next((size for size in (3, 2) if " ".join(words[:size]) in LEAVES), 1)
    return " ".join(words[:size]), [*before, *words[size:]]


def test_every_command_has_an_example() -> None:
    assert {command_of(example.line)[0] for example in EXAMPLES} == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_has_an_example(name: str) -> None:
    lines = [command_of(example.line) for example in EXAMPLES]
    given = {word for command, words in lines if command == name for word in words}
    for param in LEAVES[name].params:
        if param.param_type_name != "argument":
            assert given & {*param.opts, *param.secondary_opts}, param.opts


async def test_the_examples(pv: Command, switch: Switch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lab.yaml"
    document = switch.controller.config.document()
    document["ports"]["vm2"]["mtu"] = 9000
    file.write_text(json.dumps(document))
    flows = tmp_path / "flows.txt"
    flows.write_text("# two of them\ncookie=5,in_port=p1,actions=normal\nudp,actions=drop\n")
    files = {"{file}": str(file), "{file}.pcapng": f"{file}.pcapng", "{flows}": str(flows)}
    monkeypatch.setattr(daemon, "run", lambda config, **options: print(f"daemon.run({_words(options)})") or 0)
    monkeypatch.setattr("pvswitch.bench.command.main", lambda options: print(options) or 0)
    monkeypatch.setattr(demo, "main", lambda keep: print(f"demo.main({keep})") or 0)
    monkeypatch.setattr("time.sleep", _interrupt)
    monkeypatch.setattr("pvswitch.client.operations.follow", _one_event)
    for example in EXAMPLES:
        captures = switch.dataplane.captures
        captures.pieces, captures.short = [pcapng.statistics(0, 0, 0, delivered=0, lost=0)], True
        result = await pv(*(files.get(word, word) for word in example.line.split()))
        status = 130 if "--watch" in example.line else example.status
        said = result.err if example.status else result.out
        assert (result.status, example.said in said) == (status, True), (example, result)
        if example.status == 1:
            assert result.out == ""
            assert result.err.count("\n") == 1
        elif not example.status:
            assert result.err == ("" if "capture vm1" not in example.line else CAPTURED)


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def _interrupt(_: float) -> None:
    raise KeyboardInterrupt


async def _one_event(*_: Any) -> Any:
    yield Event("a-1", ResetEvent(lost=3))
    raise KeyboardInterrupt


# ---- global options ----


def test_the_global_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the root's options once, where the API isn't needed for it."""
    assert {opt for param in COMMAND.params for opt in param.opts} == {
        *("--api", "--token-file", "--ca", "--may-exist", "--if-exists"),
        *("--install-completion", "--show-completion"),
    }
    token = tmp_path / "token"
    for content, words in (("", "one token"), ("two tokens", "one token"), (None, "cannot be read")):
        if content is not None:
            token.write_text(content)
        refused = run("--token-file", str(token if content is not None else tmp_path / "missing"), "show")
        assert (refused.status, words in refused.err) == (1, True)
    missing = run("--api", "https://127.0.0.1:1", "--ca", str(tmp_path / "missing"), "show")
    assert (missing.status, "no file of certificates" in missing.err) == (1, True)
    monkeypatch.setenv("PVSWITCH_CA", str(tmp_path / "missing"))
    assert run("--api", "https://127.0.0.1:1", "show").err == missing.err


def pvswitch(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    code = "import sys; from pvswitch.cli import main; sys.argv[0] = 'pvswitch'; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"PATH": os.environ["PATH"], "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_installed(tmp_path: Path, shell: str) -> None:
    script = pvswitch(_PVSWITCH_COMPLETE=f"source_{shell}").stdout
    assert f"_PVSWITCH_COMPLETE=complete_{shell}" in script
    assert pvswitch("--show-completion", shell).stdout.strip() == script.strip()
    installed = pvswitch("--install-completion", shell, HOME=str(tmp_path))
    assert installed.returncode == 0, installed.stderr
    assert any("pvswitch" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


async def test_a_switch_on_tcp_by_token_and_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path, "tls")
    for role in ("read", "write"):
        (tmp_path / role).write_text(f"secret-to-{role}\n")
    tokens = tmp_path / "tokens"
    digests = {role: hashlib.sha256(f"secret-to-{role}".encode()).hexdigest() for role in ("read", "write")}
    tokens.write_text("".join(f"{role} {role} {digest}\n" for role, digest in digests.items()))
    tokens.chmod(0o600)
    monkeypatch.delenv("PVSWITCH_API", raising=False)
    async with running(tmp_path, tokens, Tls(cert, key)) as api:

        async def ask(*words: str) -> tuple[int, str]:
            result = await asyncio.to_thread(run, "--api", f"https://127.0.0.1:{api.port}", *words)
            return result.status, result.err if result.status else ""

        trusted = ("--ca", str(cert))
        assert await ask(*trusted, "--token-file", str(tmp_path / "read"), "show") == (0, "")
        assert await ask(*trusted, "--token-file", str(tmp_path / "write"), "port", "set", "vm1", "mtu=1500") == (0, "")
        status, words = await ask(*trusted, "--token-file", str(tmp_path / "read"), "port", "set", "vm1", "mtu=9000")
        assert (status, words.count("\n")) == (1, 1)
        status, words = await ask(*trusted, "show")
        assert (status, "token" in words, words.count("\n")) == (1, True, 1)
        monkeypatch.setenv("PVSWITCH_TOKEN", "secret-to-read")
        status, words = await ask("show")
        assert (status, "is not trusted" in words, "--ca" in words, words.count("\n")) == (1, True, True, 1)
        monkeypatch.setenv("PVSWITCH_CA", str(cert))
        assert await ask("show") == (0, "")


# ---- completion ----


async def complete(switch: Switch, line: str, **environment: str) -> list[str]:
    """Return what bash would offer after `line`."""
    words = line.split(" ")
    done = await asyncio.to_thread(
        pvswitch,
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        _PVSWITCH_COMPLETE="complete_bash",
        **{"PVSWITCH_API": f"unix:{switch.socket}", **environment},
    )
    assert done.stderr == ""
    return done.stdout.split()


async def test_names_of_the_running_switch_are_completed(switch: Switch) -> None:
    assert await complete(switch, "pvswitch port set ") == ["vm1", "vm2"]
    assert await complete(switch, "pvswitch port qemu-args vm2") == ["vm2"]
    assert await complete(switch, "pvswitch bridge del ") == ["br0", "lan"]
    assert await complete(switch, "pvswitch show stats v") == ["vm1", "vm2"]
    assert await complete(switch, "pvswitch show fdb l") == ["lan"]
    assert await complete(switch, f"pvswitch --api {switch.tcp} fdb add lan {MAC} ", PVSWITCH_API="") == ["vm1", "vm2"]


async def test_keys_and_words_are_completed(switch: Switch) -> None:
    assert await complete(switch, "pvswitch port set vm1 on_f") == ["on_full=drop", "on_full=backpressure"]
    assert {"lan", "mtu=", "type=tap", "promisc=false"} <= set(await complete(switch, "pvswitch port add vm9 "))
    assert await complete(switch, "pvswitch bridge set br0 ag") == ["aging_time="]
    assert await complete(switch, "pvswitch mirror add m br0 output_") == ["output_port=", "output_vlan="]
    assert await complete(switch, "pvswitch mirror add m l") == ["lan"]
    assert "revisions" in await complete(switch, "pvswitch show ")
    assert "add-br" not in await complete(switch, "pvswitch ")


async def test_completion_is_silent_without_a_switch(switch: Switch, tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path}/none.sock", "nonsense"):
        assert await complete(switch, "pvswitch port set ", PVSWITCH_API=address) == []


# ---- the ends of a process ----


@pytest.mark.parametrize("words", [("check", "{file}"), ("--help",)])
def test_a_reader_that_has_gone_is_no_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("{}")
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from pvswitch.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(file) if word == "{file}" else word for word in words)],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == cli.REFUSED


@pytest.mark.parametrize("words", [("show", "--watch"), ("show", "events", "--watch", "-f", "json")])
async def test_ctrl_c_ends_a_watch_quietly(switch: Switch, words: tuple[str, ...]) -> None:
    code = "import sys; from pvswitch.cli import main; sys.exit(main())"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "--api", f"unix:{switch.socket}", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        listening = asyncio.create_task(process.stdout.readline())
        while not listening.done():  # an event a moment, until the first is printed
            await asyncio.wait([listening], timeout=0.05)
            switch.events.publish(BrokenEvent(port="vm1", bridge="br0", detail="x"))
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


# ---- the manual page ----


def test_the_manual_page_is_up_to_date() -> None:
    script: list[str | Path] = [sys.executable, ROOT / "scripts" / "make-man", "--check"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = (ROOT / "docs" / "man" / "pvswitch.1").read_text()
    for name in LEAVES:
        assert f"pvswitch {name}".replace("-", "\\-") in text.replace("\\-", "-").replace("-", "\\-"), name


@pytest.mark.skipif(shutil.which("groff") is None, reason="apt install groff")
def test_the_manual_page_has_no_warnings() -> None:
    page = ROOT / "docs" / "man" / "pvswitch.1"
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- json and yaml ----


@pytest.mark.parametrize("subject", ["ports", "bridges", "fdb", "stats", "perf", "events", "revisions", "config"])
async def test_yaml_says_the_same_as_json(pv: Command, switch: Switch, subject: str) -> None:
    await pv("port", "set", "vm1", "labels.note=no", "mtu=9000")
    switch.dataplane.learn("br0", MAC, "vm1")
    as_json = json.loads((await pv("show", subject, "-f", "json")).out)
    assert YAML(typ="safe").load((await pv("show", subject, "-f", "yaml")).out) == as_json
