# SPDX-License-Identifier: Apache-2.0
"""Switches at the end of a VXLAN, for cases of frames: the one under test, and a pvswitch as the other end.

The switch under test is on host `near` of `underlay`, with the first processor to itself. Frames go out by it, or come
in by it; the guest on the far host is another end of the same generator, so that every frame is checked and the loop is
closed. The far pvswitch shares the generator's processor: it sleeps until there is something, and goes before the
generator then (SCHED_FIFO). What the two hosts' stacks do for a packet is done by who sends it, up to the socket of who
receives it: it counts as the sender's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvswitch.bench.ovs_tunnel import OvsHost
from pvswitch.bench.switches import Running, Spent, Wanted, ovs_running, pvswitch_running, require_hugepages
from pvswitch.bench.underlay import NOBODY, Hosts, add_sinks, address, datagrams, joined, messages, tunnel
from pvswitch.bench.work import OVS, PVSWITCH, TunnelFlood, TunnelFrames
from pvswitch.process import SwitchProcess

Made = AbstractAsyncContextManager[Running]
BEFORE_OTHERS = ("chrt", "--fifo", "1")


class _Tunnelled:
    """A switch at the end of a tunnel, and its peer. With `snmp` the near stack's messages are the switch's own."""

    def __init__(
        self,
        near: Running,
        sockets: Sequence[Path],
        hosts: Hosts,
        frame: int,
        *,
        beside: Sequence[int] = (),
        snmp: bool,
    ) -> None:
        self._near = near
        self._hosts = hosts
        self._frame = frame
        self._snmp = snmp
        self._messages = self._carried = 0
        self.sockets = sockets
        self.client = near.client
        self.beside = beside

    @property
    def pid(self) -> int:
        return self._near.pid

    async def begin(self) -> None:
        self._messages, self._carried = self._counted()
        await self._near.begin()

    async def spent(self) -> Spent | None:
        spent = await self._near.spent()
        after, carried = self._counted()
        messages = after - self._messages if self._snmp else 0
        return None if spent is None else replace(spent, messages=messages, carried=carried - self._carried)

    async def addresses(self) -> int | None:
        return await self._near.addresses()

    def _counted(self) -> tuple[int, int]:
        return sum(messages(self._hosts.near)), datagrams(self._hosts.far, self._frame)


def _config(wanted: Wanted, number: int, remotes: Sequence[str], ports: Sequence[str], **datapath: Any) -> Any:
    return {
        "datapath": datapath,
        "bridges": {"br0": {"fdb_size": wanted.addresses}},
        "ports": {**{name: {} for name in ports}, "tunnel": tunnel(number, remotes)},
    }


@asynccontextmanager
async def _pvswitch(
    hosts: Hosts, wanted: Wanted, remotes: Sequence[str], ports: Sequence[str]
) -> AsyncIterator[Running]:
    config = _config(wanted, 1, remotes, ports, polling=wanted.polling, cpus=[wanted.cpu])
    async with SwitchProcess(config, hosts.near.launcher) as switch:
        yield pvswitch_running(switch, ports)


@asynccontextmanager
async def _ovs(hosts: Hosts, wanted: Wanted, remotes: Sequence[str], ports: Sequence[str]) -> AsyncIterator[Running]:
    require_hugepages(OVS, wanted.huge)
    async with OvsHost(hosts.near, 1, remotes, ports, pmd_cpu=wanted.cpu or 0) as switch:
        for remote in remotes:
            if remote != address(2):
                await switch.set_neighbour(remote, NOBODY)
        yield ovs_running(switch.switch)


NEAR = {PVSWITCH: _pvswitch, OVS: _ovs}


def pair(switch: str, work: TunnelFrames, other_cpu: int) -> Callable[[Wanted], Made]:
    """Return what starts the switch under test and the other end, which runs on `other_cpu`."""

    @asynccontextmanager
    async def start(wanted: Wanted) -> AsyncIterator[Running]:
        # OVS-DPDK takes packets from a veth as from a wire.
        async with joined(single=work.single or switch == OVS, gro=switch != OVS) as hosts:
            config = _config(wanted, 2, [address(1)], ["vm"], polling="interrupt", cpus=[other_cpu])
            async with (
                NEAR[switch](hosts, wanted, [address(2)], ["vm"]) as near,
                SwitchProcess(config, [*hosts.far.launcher, *BEFORE_OTHERS]) as far,
            ):
                sockets = [*near.sockets, far.port_socket("vm")]
                yield _Tunnelled(
                    near,
                    sockets if work.way == "out" else sockets[::-1],
                    hosts,
                    wanted.frame,
                    beside=[far.pid],
                    snmp=switch == PVSWITCH,
                )

    return start


def flood(switch: str, work: TunnelFlood) -> Callable[[Wanted], Made]:
    """Return what starts a switch whose tunnels have so many remotes, all of them sinks; its guests are local."""

    @asynccontextmanager
    async def start(wanted: Wanted) -> AsyncIterator[Running]:
        async with joined(single=switch == OVS, gro=switch != OVS) as hosts:
            remotes = await add_sinks(hosts.near, work.remotes)
            async with NEAR[switch](hosts, wanted, remotes, wanted.names) as near:
                yield _Tunnelled(near, near.sockets, hosts, wanted.frame, snmp=switch == PVSWITCH)

    return start
