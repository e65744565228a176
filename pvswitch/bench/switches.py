# SPDX-License-Identifier: Apache-2.0
"""The switches under test, each started afresh for one turn, with vhost-user sockets to listen on.

A switch that is measured with frames has one busy poll thread on the processor that it is given. `Running` tells what
such a thread has spent: pvswitch by GET /api/v1/perf, OVS-DPDK by `pmd-stats-show`. Both count the cycles of rounds
that moved frames and leave out idle polls. testpmd counts nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pvswitch.bench.errors import MissingPeer
from pvswitch.bench.features import FEATURES, Feature
from pvswitch.bench.ovs import Ovs
from pvswitch.bench.testpmd import VhostLoop
from pvswitch.bench.work import OVS, PVSWITCH, TESTPMD
from pvswitch.process import SwitchProcess

HUGEPAGES = 1500
"""Pages of 2 MiB for OVS-DPDK and a testpmd beside it."""
DEFAULT_MACS = 8192
ETHERNET = 14


@dataclass(frozen=True)
class Wanted:
    """What a switch is asked for. Without `cpu` nothing is pinned, and pvswitch polls as `polling` says."""

    ports: int
    cpu: int | None
    polling: str = "busy"
    frame: int = 1514
    macs: int = 1
    gso: bool = False
    on_full: str = "drop"
    feature: str | None = None
    huge: bool = False

    @property
    def names(self) -> list[str]:
        """The ports' names."""
        return [f"p{number}" for number in range(self.ports)]

    @property
    def addresses(self) -> int:
        """For how many addresses there has to be room."""
        return max(DEFAULT_MACS, 2 * self.macs)


@dataclass(frozen=True)
class Spent:
    """What a switch has spent on packets: cycles, and how many it took from its ports, in how many bursts if it tells.

    Of a tunnel also the UDP messages that its host's stack took or gave, and the frames that the other host was sent.
    """

    cycles: float
    packets: int
    bursts: int = 0
    messages: int = 0
    carried: int = 0


class Running(Protocol):
    """A switch that runs."""

    @property
    def sockets(self) -> Sequence[Path]:
        """Where it listens, port by port; where it is a `client`, it connects to whoever listens there."""

    @property
    def client(self) -> bool:
        """Whether the guests have to listen."""

    @property
    def pid(self) -> int:
        """The process that forwards."""

    @property
    def beside(self) -> Sequence[int]:
        """Further processes that belong to the measurement."""

    async def begin(self) -> None:
        """Begin to count."""

    async def spent(self) -> Spent | None:
        """What was spent since then; None where that can't be known."""

    async def addresses(self) -> int | None:
        """How many addresses it has learned; None where it learns none."""


class _Pvswitch:
    client = False
    beside: Sequence[int] = ()

    def __init__(self, switch: SwitchProcess, names: Sequence[str]) -> None:
        self._switch = switch
        self._before = Spent(0, 0)
        self.sockets = [switch.port_socket(name) for name in names]

    @property
    def pid(self) -> int:
        return self._switch.pid

    async def begin(self) -> None:
        self._before = await self._total()

    async def spent(self) -> Spent | None:
        after = await self._total()
        before = self._before
        return Spent(after.cycles - before.cycles, after.packets - before.packets, after.bursts - before.bursts)

    async def addresses(self) -> int | None:
        _, text = await self._switch.request("GET", "/metrics")
        return sum(int(float(value)) for value in re.findall(r"^pvswitch_fdb_entries\{.*\} (\S+)$", text, re.MULTILINE))

    async def _total(self) -> Spent:
        workers: list[dict[str, Any]] = (await self._switch.get("/perf"))["items"]
        return Spent(*(sum(each[key] for each in workers) for key in ("cycles", "packets", "burst_count")))


class _Ovs:
    beside: Sequence[int] = ()

    def __init__(self, switch: Ovs, *, client: bool) -> None:
        self._switch = switch
        self.client = client
        self.sockets = [*switch.sockets.values()]

    @property
    def pid(self) -> int:
        return self._switch.pid

    async def begin(self) -> None:
        await self._switch.clear_stats()

    async def spent(self) -> Spent | None:
        stats = await self._switch.stats()
        return Spent(stats.processing_cycles_per_packet * stats.packets, stats.packets)

    async def addresses(self) -> int | None:
        return await self._switch.addresses()


class _VhostLoop:
    client = False
    beside: Sequence[int] = ()

    def __init__(self, loop: VhostLoop, sockets: Sequence[Path]) -> None:
        self._loop = loop
        self.sockets = sockets

    @property
    def pid(self) -> int:
        return self._loop.pid

    async def begin(self) -> None:
        pass

    async def spent(self) -> Spent | None:
        return None

    async def addresses(self) -> int | None:
        return None


def pvswitch_running(switch: SwitchProcess, names: Sequence[str]) -> Running:
    """Return what is asked of a switch that runs, with these ports."""
    return _Pvswitch(switch, names)


def ovs_running(switch: Ovs, *, client: bool = False) -> Running:
    """Return what is asked of an OVS-DPDK that runs."""
    return _Ovs(switch, client=client)


def pvswitch_config(wanted: Wanted) -> dict[str, Any]:
    """Return pvswitch's configuration."""
    pinned = {} if wanted.cpu is None else {"cpus": [wanted.cpu]}
    feature = Feature() if wanted.feature is None else FEATURES[wanted.feature]
    return {
        "datapath": {"polling": wanted.polling, **pinned},
        "bridges": {"br0": {"fdb_size": wanted.addresses, **feature.bridge}},
        "ports": {name: {"on_full": wanted.on_full, **feature.ports.get(name, {})} for name in wanted.names},
    }


@asynccontextmanager
async def _pvswitch(wanted: Wanted) -> AsyncIterator[Running]:
    async with SwitchProcess(pvswitch_config(wanted)) as switch:
        yield pvswitch_running(switch, wanted.names)


def ovs_made(wanted: Wanted) -> Ovs:
    """Return OVS-DPDK, not started yet."""
    mtu = 1500 if wanted.gso else max(1500, wanted.frame - ETHERNET)
    return Ovs(wanted.names, pmd_cpu=wanted.cpu or 0, macs=wanted.addresses, mtu=mtu, tso=wanted.gso)


@asynccontextmanager
async def _ovs(wanted: Wanted) -> AsyncIterator[Running]:
    require_hugepages(OVS, wanted.huge)
    async with ovs_made(wanted) as switch:
        for call in (FEATURES[wanted.feature].ovs or ()) if wanted.feature is not None else ():
            await switch.vsctl(*call)
        yield ovs_running(switch, client=wanted.gso)


@asynccontextmanager
async def _testpmd(wanted: Wanted) -> AsyncIterator[Running]:
    require_hugepages(TESTPMD, wanted.huge)
    with tempfile.TemporaryDirectory(prefix="pvswitch-bench-") as folder:
        sockets = [Path(folder) / name for name in wanted.names]
        async with VhostLoop(sockets, cpu=wanted.cpu or 0, frame=wanted.frame, gso=wanted.gso) as loop:
            await loop.command("start")
            yield _VhostLoop(loop, sockets)


def require_hugepages(what: str, huge: bool) -> None:
    """Raise MissingPeer for what runs on hugepages where there are none."""
    if not huge:
        raise MissingPeer(f"{what} needs {HUGEPAGES} hugepages of 2 MiB, which can't be had: run this as root")


SWITCHES: Mapping[str, Callable[[Wanted], AbstractAsyncContextManager[Running]]] = {
    PVSWITCH: _pvswitch,
    OVS: _ovs,
    TESTPMD: _testpmd,
}
