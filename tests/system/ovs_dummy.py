# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch with ports made of files: its userspace datapath, given frames and asked what leaves, without a network.

Its ports are of type `dummy`, as in its own tests: a command hands a frame to a port, and what leaves by a port is
appended to a pcap file. So nothing is padded, lost or late, time can be stopped, and neither root nor hugepages are
needed. Frames go by one port at a time; a marker behind them says when they have been dealt with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.conftest import RequirePeer

VSWITCHD = "ovs-vswitchd"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PACKAGE = "openvswitch-switch"
DEADLINE = 30.0
MARKER = bytes.fromhex("0e000000ff00 0e000000ff01 88b7 6d61726b6572")
MARKED = "marked"
"""The port by which markers leave."""
OWN_COOKIES = 0xFFFE
PCAP_HEADER, RECORD_HEADER = 24, 16


class OvsError(Exception):
    """Open vSwitch did not do what was asked; the message says what it answered."""


class OvsDummy:
    """A bridge br0 with these ports. A context manager that leaves nothing behind."""

    def __init__(self, ports: Sequence[str], require_peer: RequirePeer) -> None:
        """Skip (in CI: fail) where it isn't installed."""
        for program in (VSWITCHD, "ovsdb-server", "ovsdb-tool"):
            require_peer(program, package=PACKAGE)
        require_peer("ovs-ofctl", package="openvswitch-common")
        self.ports = ports
        self._folder = Path(tempfile.mkdtemp(prefix="pvswitch-ovs-"))
        names = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        self._environment = {**os.environ, **dict.fromkeys(names, str(self._folder))}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._control: socket.socket | None = None
        self._asked = 0
        self._read = dict.fromkeys((*ports, MARKED), PCAP_HEADER)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; may be repeated."""
        if self._control is not None:
            self._control.close()
            self._control = None
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---- flows ----

    def set_flows(self, flows: Iterable[str], meters: Iterable[str] = ()) -> None:
        """Have these flows and meters and no others.

        What no flow fits is forwarded by `normal`.
        """
        self.ofctl("-O", "OpenFlow13", "del-meters", "br0")
        for meter in meters:
            self.ofctl("-O", "OpenFlow13", "add-meter", "br0", meter)
        marker = f"priority=65535,cookie=0xffff,dl_dst={MARKER[:6].hex(':')},actions=output:{MARKED}"
        lines = ["delete", f"add {marker}", "add priority=0,cookie=0xfffe,actions=normal"]
        newer: list[str] = []
        for flow in flows:
            # OpenFlow 1.0 knows neither of these; later versions refuse what it takes.
            (newer if "push_vlan" in flow or "meter" in flow else lines).append(f"add {flow}")
        self.ofctl("add-flows", "br0", "-", text="\n".join(lines) + "\n")
        if newer:
            self.ofctl("-O", "OpenFlow13", "add-flows", "br0", "-", text="\n".join(newer) + "\n")
        self.appctl("fdb/flush", "br0")

    def counters(self) -> dict[int, tuple[int, int]]:
        """Frames and bytes of the flows with each cookie."""
        self.appctl("revalidator/purge")
        found: dict[int, tuple[int, int]] = {}
        for line in self.ofctl("dump-flows", "br0").splitlines():
            words = dict(
                part.split("=", 1) for part in line.replace(" actions=", ", actions=").split(", ") if "=" in part
            )
            if " cookie" in words:
                which = int(words[" cookie"], 16)
                packets, size = found.get(which, (0, 0))
                found[which] = (packets + int(words["n_packets"]), size + int(words["n_bytes"]))
        return {which: counted for which, counted in found.items() if which < OWN_COOKIES}

    # ---- frames ----

    def exchange(self, port: str, frames: Sequence[bytes]) -> dict[str, list[bytes]]:
        """Frames come by a port; what leaves, by port."""
        for frame in frames:
            self.appctl("netdev-dummy/receive", port, frame.hex())
            # Nothing that an earlier frame left in a cache has a say.
            self.appctl("netdev-dummy/receive", port, MARKER.hex())
            self._wait_for_marker()
            self.appctl("revalidator/purge")
        return {name: self._left_by(name) for name in self.ports}

    def _wait_for_marker(self) -> None:
        end = time.monotonic() + DEADLINE
        while MARKER not in self._left_by(MARKED):
            if time.monotonic() > end:
                raise OvsError(f"a frame was not dealt with in {DEADLINE:.0f} s{self._log()}")
            time.sleep(0.0005)

    def _left_by(self, port: str) -> list[bytes]:
        """What has left by a port since the last look."""
        with (self._folder / f"{port}.pcap").open("rb") as file:
            file.seek(self._read[port])
            data = file.read()
        found, at = [], 0
        while at + RECORD_HEADER <= len(data):
            length = int.from_bytes(data[at + 8 : at + 12], "little")
            if at + RECORD_HEADER + length > len(data):
                break
            found.append(data[at + RECORD_HEADER : at + RECORD_HEADER + length])
            at += RECORD_HEADER + length
        self._read[port] += at
        return found

    # ---- programs ----

    def appctl(self, command: str, *arguments: str) -> str:
        """What ovs-appctl would print."""
        assert self._control is not None
        self._asked += 1
        request = {"id": self._asked, "method": command, "params": arguments}
        self._control.sendall(json.dumps(request).encode())
        text = ""
        while True:
            part = self._control.recv(1 << 20)
            if not part:
                raise OvsError(f"Open vSwitch ended{self._log()}")
            text += part.decode()
            with contextlib.suppress(json.JSONDecodeError):
                answer = json.loads(text)
                break
        if answer["error"] is not None:
            raise OvsError(f"{command} {' '.join(arguments)}: {answer['error']}")
        return str(answer["result"])

    def ofctl(self, *arguments: str, text: str = "") -> str:
        """What ovs-ofctl prints."""
        return self._run("ovs-ofctl", *arguments, text=text)

    def vsctl(self, *arguments: str) -> str:
        """What ovs-vsctl prints; it returns once the switch does as it says."""
        return self._run("ovs-vsctl", f"--db=unix:{self._folder}/db.sock", f"--timeout={DEADLINE:.0f}", *arguments)

    def _run(self, *words: str, text: str = "") -> str:
        done = subprocess.run(
            words,
            env=self._environment,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
            check=False,
        )
        output = done.stdout.decode()
        if done.returncode != 0:
            raise OvsError(f"{' '.join(words)}: {output.strip()}\n{text}{self._log()}")
        return output

    # ---- start ----

    def _start(self) -> None:
        database = self._folder / "conf.db"
        self._run("ovsdb-tool", "create", str(database), SCHEMA)
        remote = self._folder / "db.sock"
        self._daemon("ovsdb-server", str(database), f"--remote=punix:{remote}", f"--unixctl={self._folder}/db.ctl")
        self._wait_for(remote)
        self.vsctl("--no-wait", "init")
        control = self._folder / "switch.ctl"
        words = ["--enable-dummy=system", "--disable-system", "-vconsole:off", f"--log-file={self._folder}/switch.log"]
        self._daemon(VSWITCHD, f"unix:{remote}", f"--unixctl={control}", *words)
        self._wait_for(control)
        self._control = socket.socket(socket.AF_UNIX)
        self._control.settimeout(DEADLINE)
        self._control.connect(str(control))
        words = ["set", "Open_vSwitch", ".", "other_config:vlan-limit=2", "--", "add-br", "br0", "--"]
        words += ["set", "bridge", "br0", "datapath_type=dummy", "fail-mode=secure", "other-config:forward-bpdu=true"]
        for port in (*self.ports, MARKED):
            words += ["--", "add-port", "br0", port, "--", "set", "Interface", port, "type=dummy"]
            words += ["mtu_request=9000", f"options:tx_pcap={self._folder}/{port}.pcap"]
        self.vsctl(*words)
        # By default the ports of a first fragment are 0, as OpenFlow 1.0 wants it.
        self.ofctl("set-frags", "br0", "nx-match")
        # Nothing is flooded to the port of markers, nor to the host.
        for port in (MARKED, "br0"):
            self.ofctl("mod-port", "br0", port, "no-flood")

    def _daemon(self, *words: str) -> None:
        null = subprocess.DEVNULL
        killed = ("setpriv", "--pdeathsig", "KILL", "--")
        self._daemons.append(
            subprocess.Popen([*killed, *words], env=self._environment, stdin=null, stdout=null, stderr=null)
        )

    def _wait_for(self, path: Path) -> None:
        end = time.monotonic() + DEADLINE
        while not path.exists():
            if time.monotonic() > end:
                raise OvsError(f"no {path.name} within {DEADLINE:.0f} s{self._log()}")
            time.sleep(0.02)

    def _log(self) -> str:
        log = self._folder / "switch.log"
        return "\n" + "\n".join(log.read_text().splitlines()[-10:]) if log.exists() else ""
