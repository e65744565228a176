# SPDX-License-Identifier: Apache-2.0
"""A private OVS-DPDK: a userspace bridge (NORMAL switching) with vhost-user ports, in a temporary folder.

No system service is used or touched: database, sockets and logs lie in the folder, both daemons end with the
`async with` block (or with the thread that started them). Needs Debian's openvswitch-switch-dpdk, root and
hugepages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pvswitch.bench.errors import BenchError, MissingPeer

VSWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DEADLINE = 60.0
FOLDER_VARIABLES = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")


class OvsError(BenchError):
    """OVS-DPDK did not do what was asked; the message says what."""


@dataclass(frozen=True)
class PmdStats:
    """What `pmd-stats-show` says of the one poll thread since the last clear."""

    packets: int
    cycles_per_packet: float
    processing_cycles_per_packet: float


class Ovs:
    """OVS-DPDK with one bridge and the named dpdkvhostuser ports; `sockets[name]` is where it listens.

    `macs` addresses fit into its table, `mtu` is that of all ports. `tso` is its `userspace-tso-enable`; as only ports
    of type dpdkvhostuserclient offer TSO then, all are, and it is the guests that have to listen on `sockets`.
    `settings` are further ones of its start, as `other_config:key=value`. `launcher` are words that start the switch by
    exec, such as those of a network namespace; `memory` is what it takes of hugepages, in MiB.
    """

    def __init__(
        self,
        ports: Sequence[str],
        *,
        pmd_cpu: int = 0,
        macs: int = 8192,
        mtu: int = 1500,
        tso: bool = False,
        settings: Sequence[str] = (),
        launcher: Sequence[str] = (),
        memory: int = 1024,
    ) -> None:
        """Nothing is started yet; the folder is made."""
        self._ports = ports
        self._pmd_cpu = pmd_cpu
        self._macs = macs
        self._mtu = mtu
        self._tso = tso
        self._settings = settings
        self._launcher = launcher
        self._memory = memory
        self._folder = Path(tempfile.mkdtemp(prefix="pvswitch-ovs-"))
        self._daemons: list[asyncio.subprocess.Process] = []
        self._environment = {
            **os.environ,
            **{name: str(self._folder) for name in FOLDER_VARIABLES},
            # DPDK keeps its runtime files under this one.
            "XDG_RUNTIME_DIR": str(self._folder),
        }
        self.sockets = {name: self._folder / name for name in ports}

    async def __aenter__(self) -> Self:
        """Start it and add the ports; raises MissingPeer where it isn't installed."""
        try:
            if shutil.which(VSWITCHD) is None:
                raise MissingPeer("OVS-DPDK not found: apt-get install openvswitch-switch-dpdk")
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it."""
        await self.close()

    async def close(self) -> None:
        """Stop both daemons and remove the folder; may be called again."""
        for daemon in reversed(self._daemons):
            with contextlib.suppress(ProcessLookupError):
                daemon.terminate()
            try:
                async with asyncio.timeout(10):
                    await daemon.wait()
            except TimeoutError:
                daemon.kill()
                await daemon.wait()
        self._daemons.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The process that forwards; only while it runs."""
        return self._daemons[-1].pid

    async def clear_stats(self) -> None:
        """Start counting cycles anew."""
        await self.appctl("dpif-netdev/pmd-stats-clear")

    async def stats(self) -> PmdStats:
        """Return the poll thread's cycles per packet since the last clear."""
        output = (await self.appctl("dpif-netdev/pmd-stats-show")).split("main thread:")[0]

        def number(pattern: str) -> float:
            found = re.search(pattern, output)
            if found is None:
                raise OvsError(f"no {pattern!r} in pmd-stats-show, no packet was forwarded:\n{output}")
            return float(found[1])

        return PmdStats(
            packets=int(number(r"packets received: (\d+)")),
            cycles_per_packet=number(r"avg cycles per packet: ([\d.]+)"),
            processing_cycles_per_packet=number(r"avg processing cycles per packet: ([\d.]+)"),
        )

    async def set(self, table: str, record: str, *columns: str) -> None:
        """Set columns of a record, as `ovs-vsctl set` does."""
        await self.vsctl("set", table, record, *columns)

    async def add_flow(self, flow: str) -> None:
        """Add an OpenFlow rule to the bridge, as `ovs-ofctl add-flow` does."""
        await self._call("ovs-ofctl", "add-flow", "br0", flow)

    async def add_flows(self, file: Path) -> None:
        """Add the OpenFlow rules of a file, all of them or none."""
        await self._call("ovs-ofctl", "-O", "OpenFlow14", "--bundle", "add-flows", "br0", str(file))

    async def keep_flows(self, count: int) -> None:
        """Let the switch remember so many flows of traffic from now on; by itself it begins with 10,000, and learns."""
        await self.appctl("upcall/set-flow-limit", str(count))

    async def addresses(self) -> int:
        """Return how many addresses the bridge knows."""
        output = await self.appctl("fdb/stats-show", "br0")
        found = re.search(r"MAC entries in the table: (\d+)/", output)
        if found is None:
            raise OvsError(f"no number of addresses in fdb/stats-show:\n{output}")
        return int(found[1])

    async def _start(self) -> None:
        database = self._folder / "conf.db"
        await self._call("ovsdb-tool", "create", str(database), SCHEMA)
        socket = self._folder / "db.sock"
        await self._daemon(
            "ovsdb-server", str(database), f"--remote=punix:{socket}", f"--unixctl={self._folder}/db.ctl"
        )
        await self._wait_for(socket)
        await self.vsctl("--no-wait", "init")
        await self.vsctl(
            *("--no-wait", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true"),
            f"other_config:pmd-cpu-mask={1 << self._pmd_cpu:#x}",
            f"other_config:dpdk-lcore-mask={1 << self._pmd_cpu:#x}",
            f"other_config:userspace-tso-enable={str(self._tso).lower()}",
            f"other_config:dpdk-socket-mem={self._memory}",
            "other_config:dpdk-extra=--no-pci --in-memory --file-prefix pvswitch-ovs",
            *self._settings,
        )
        await self._daemon(
            *(*self._launcher, VSWITCHD, f"unix:{socket}", f"--unixctl={self._folder}/switch.ctl"),
            *("-vconsole:off", f"--log-file={self._folder}/switch.log"),
        )
        await self._wait_for(self._folder / "switch.ctl")
        words = ["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"]
        words += [f"other-config:mac-table-size={self._macs}"]
        for port in self._ports:
            words += ["--", "add-port", "br0", port, "--", "set", "Interface", port, f"mtu_request={self._mtu}"]
            if self._tso:
                words += ["type=dpdkvhostuserclient", f"options:vhost-server-path={self.sockets[port]}"]
            else:
                words += ["type=dpdkvhostuser"]
        await self.vsctl(*words)
        for port in () if self._tso else self._ports:
            await self._wait_for(self.sockets[port])

    async def _daemon(self, *arguments: str) -> None:
        self._daemons.append(
            await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", "--", *arguments),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        )

    async def vsctl(self, *arguments: str) -> str:
        """Return what ovs-vsctl prints; it returns once the switch does as it says."""
        return await self._call(
            "ovs-vsctl", f"--db=unix:{self._folder}/db.sock", f"--timeout={DEADLINE:.0f}", *arguments
        )

    async def appctl(self, *arguments: str) -> str:
        """Return what ovs-appctl prints."""
        return await self._call(
            "ovs-appctl", f"--target={self._folder}/switch.ctl", f"--timeout={DEADLINE:.0f}", *arguments
        )

    async def _call(self, *arguments: str) -> str:
        """Run a program to its end; return what it prints. Raises OvsError, at once when a daemon ends meanwhile."""
        process = await asyncio.create_subprocess_exec(
            *arguments,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        answer = asyncio.create_task(process.communicate())
        ends = [asyncio.create_task(daemon.wait()) for daemon in self._daemons]
        try:
            await asyncio.wait([answer, *ends], timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                gone = any(end.done() for end in ends)
                why = "OVS-DPDK ended" if gone else f"no answer in {DEADLINE:.0f} s"
                raise OvsError(f"{arguments[0]} failed: {why}{self._log()}")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            output, _ = await answer
            for end in ends:
                end.cancel()
        if process.returncode != 0:
            raise OvsError(f"{' '.join(arguments)} failed: {output.decode(errors='replace').strip()}{self._log()}")
        return output.decode(errors="replace")

    async def _wait_for(self, path: Path) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                while not _exists(path):  # noqa: ASYNC110 (another process makes the file)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise OvsError(f"OVS-DPDK made no {path.name} within {DEADLINE:.0f} s{self._log()}") from None

    def _log(self) -> str:
        log = self._folder / "switch.log"
        return "\n" + "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""


def _exists(path: Path) -> bool:
    return path.exists()
