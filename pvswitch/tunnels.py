# SPDX-License-Identifier: Apache-2.0
"""All tunnels of the switch: what they share, their regular work, and what a control plane tells them.

A control plane (an EVPN speaker, say) owns remotes and addresses beside those of the configuration. They are state,
not configuration: they go with their port, and with the switch. A change of them is made as a whole or not at all, and
costs one command for each network that it names, whatever else there is; nothing is published for it.

Once a second (`tick`) what could not be opened is tried again, a part of the tunnels measures the paths to its remotes,
and VTEPs that have been silent are removed. Used by `ports.py`, and by the API as a `tunnel_plane.TunnelPlane`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

import structlog

from pvswitch.datapath import Datapath, Fdb, now_ns
from pvswitch.errors import ApplyError
from pvswitch.model import AnyPort, SwitchConfig, TunnelPort
from pvswitch.state import (
    ExternalRemote,
    TunnelChanges,
    TunnelEndpoint,
    TunnelInfo,
    TunnelMac,
    TunnelRemote,
)
from pvswitch.switch_port import PolledQueue, SwitchPort
from pvswitch.tunnel_checks import network_numbers
from pvswitch.tunnel_ends import Endpoint, Ends, Paths
from pvswitch.tunnel_plane import MacChange, RemoteChange
from pvswitch.tunnel_port import Mac, Segment, TunnelledPort
from pvswitch.vteps import Vteps

log = structlog.get_logger(__name__)

MEASURED_SECONDS = 30
"""How often the paths of a tunnel are measured."""
SHOWN = 1000
"""Remotes that a tunnel's description names."""
SLICE = 4096
"""Addresses that are looked at before others have their turn."""
SOON = 0.05
"""Seconds in which packets that don't fit their path make for one look at it."""


class Tunnels:
    """The tunnels among the ports."""

    def __init__(
        self,
        datapath: Datapath,
        publish: Callable[[], Awaitable[None]],
        fdb_of: Callable[[str], Fdb],
        flush: Callable[[int], None],
    ) -> None:
        """`publish` makes the tables anew, `fdb_of` gives a port's FDB, `flush` forgets what is behind a VTEP."""
        self._datapath = datapath
        self._publish = publish
        self._fdb_of = fdb_of
        self._ends = Ends(datapath)
        self._vteps = Vteps(datapath, flush)
        self._paths = Paths()
        self._ports: dict[str, TunnelledPort] = {}
        self._turns = itertools.count()
        self._work: asyncio.Task[None] | None = None
        self._tight: set[TunnelledPort] = set()
        self._soon: asyncio.Task[None] | None = None

    # ---- for `ports.py`

    def port(self, name: str, settings: TunnelPort, on_link: Callable[[SwitchPort], None]) -> TunnelledPort:
        """Return a new tunnel."""
        return TunnelledPort(
            self._datapath,
            name,
            settings,
            ends=self._ends,
            vteps=self._vteps,
            paths=self._paths,
            on_link=on_link,
            publish=self._publish,
        )

    def know(self, ports: dict[str, SwitchPort]) -> None:
        """Take note of the ports that are in force."""
        self._ports = {name: port for name, port in ports.items() if isinstance(port, TunnelledPort)}

    async def end(self) -> None:
        """End the regular work."""
        tasks = [task for task in (self._work, self._soon) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Free what is left when all tunnels are closed."""
        self._ports = {}
        self._paths.close()
        await self._vteps.close()

    def address(self, number: int) -> str | None:
        """Return the address of a VTEP."""
        return self._vteps.address(number)

    def number(self, address: str) -> int:
        """Return the number of a VTEP, 0 for a host that isn't known."""
        return self._vteps.number(address)

    def changed(self, port: SwitchPort, old: AnyPort, new: AnyPort, fdb: Fdb) -> None:
        """Forget the addresses that were told of networks that a tunnel no longer has, or of another bridge."""
        if isinstance(port, TunnelledPort) and isinstance(old, TunnelPort) and isinstance(new, TunnelPort):
            kept = {*network_numbers(old)} & {*network_numbers(new)} if old.bridge == new.bridge else set()
            numbers = {number or 0 for _, number in kept}
            port.drop_macs(fdb, keep=lambda number: number in numbers)

    def yield_macs(self, ports: Collection[str], statics: Collection[Mac]) -> None:
        """Forget the addresses that these tunnels were told and the configuration has now."""
        for name in ports:
            if name in self._ports:
                self._ports[name].yield_macs(statics)

    def polled(self) -> Iterator[tuple[str, Callable[[], list[PolledQueue]]]]:
        """Iterate over the endpoints' queues."""
        for endpoint in self._ends.endpoints:
            if endpoint in self._ends.endpoints:
                yield endpoint.name, endpoint.polled

    async def move_queue(self, name: str, queue: int, worker: int) -> None:
        """Have another worker fetch from an endpoint's queue; KeyError."""
        endpoint = next((endpoint for endpoint in self._ends.endpoints if endpoint.name == name), None)
        if endpoint is None:
            raise KeyError(name)
        await endpoint.handle.move_queue(queue, worker)

    def too_big(self, name: str, number: int) -> None:
        """Measure a path again, soon: the kernel has refused a packet that doesn't fit it."""
        port, address = self._ports.get(name), self._vteps.address(number)
        if port is None or address is None:
            return
        port.too_big(address)
        self._measure_soon(port)

    def _measure_soon(self, port: TunnelledPort) -> None:
        self._tight.add(port)
        if self._soon is None or self._soon.done():
            self._soon = asyncio.create_task(self._measure_tight(), name="tunnel paths")

    async def _measure_tight(self) -> None:
        await asyncio.sleep(SOON)
        ports, self._tight = self._tight, set()
        await self._measure(ports)

    # ---- the regular work

    def tick(self, config: SwitchConfig | None) -> None:
        """Do what is due, beside everything else."""
        busy = self._work is not None and not self._work.done()
        if not self._ports:
            self._paths.close()
        if config is None or busy or not (self._ports or self._vteps.busy):
            return
        ages = [bridge.aging_time for bridge in config.bridges.values()]
        silence = None if 0 in ages else max(ages, default=0)
        self._work = asyncio.create_task(self._keep(silence), name="tunnels")

    async def _keep(self, silence: int | None) -> None:
        try:
            turn = next(self._turns)
            for endpoint in self._ends.endpoints:
                endpoint.look()
            for port in [port for port in self._ports.values() if port.tunnel is None]:
                await port.revive()
            due = [port for place, port in enumerate(self._ports.values()) if (place + turn) % MEASURED_SECONDS == 0]
            await self._measure(due)
            self._paths.tidy()
            await self._vteps.tidy(silence)
        except Exception:  # the next turn tries again
            log.exception("tunnels not looked after")

    async def _measure(self, ports: Collection[TunnelledPort]) -> None:
        changed = [port for port in ports if not port.ending and await port.measure()]
        for port in changed:
            log.info("room of a tunnel changed", port=port.name, room=port.room)
        if changed:
            await self._publish()

    # ---- what there is to see

    def names(self) -> list[str]:
        """Return the names of the tunnels."""
        return [*self._ports]

    def endpoints(self) -> list[TunnelEndpoint]:
        """Return where packets come in."""
        return [_endpoint(endpoint) for endpoint in self._ends.endpoints]

    async def info(self, name: str) -> TunnelInfo:
        """Return what there is to say of a tunnel; KeyError."""
        port = self._ports[name]
        learned = await self._learned(port)
        settings = port.settings
        found = [TunnelRemote(address=address, origin="static") for address in port.statics]
        told = ((vni, address) for vni, segment in port.told.items() for address in segment.remotes)
        found += [
            TunnelRemote(address=address, origin="external", vni=vni) for vni, address in itertools.islice(told, SHOWN)
        ]
        found += [TunnelRemote(address=address, origin="learned") for address in learned]
        total = len(port.statics) + sum(len(segment.remotes) for segment in port.told.values()) + len(learned)
        room = port.room or None
        return TunnelInfo(
            name=name,
            bridge=settings.bridge or "",
            type=port.endpoint.kind,
            local=settings.local,
            dst_port=settings.udp_port,
            vni=settings.networks,
            vnis=len(port.numbers),
            remotes=found[:SHOWN],
            remotes_omitted=total - len(found[:SHOWN]),
            macs=sum(len(segment.macs) for segment in port.told.values()),
            room=room,
            mtu=port.effective_mtu(),
            endpoint=_endpoint(port.endpoint),
            error=port.error(),
        )

    async def _learned(self, port: TunnelledPort) -> list[str]:
        """Return who is known only by frames that came from it, and still has an address in the FDB."""
        numbers: set[int] = set()
        for place, item in enumerate(self._fdb_of(port.name).items(now_ns())):
            if item.vtep and item.port == port.handle.ref:
                numbers.add(item.vtep)
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        addresses = {self._vteps.address(number) for number in numbers}
        return sorted(address for address in addresses - port.remote_addresses() if address is not None)

    def remotes(self, name: str, vni: int) -> list[ExternalRemote]:
        """Return the remotes of a network; KeyError where there is no such tunnel or network."""
        port = self._ports[name]
        port.vlan_of(vni)
        told = port.told.get(vni) or Segment()
        static = [address for address in port.statics if address not in told.remotes]
        return [
            *(ExternalRemote(name=address, address=address, vni=vni, origin="static") for address in static),
            *(ExternalRemote(name=address, address=address, vni=vni, origin="external") for address in told.remotes),
        ]

    def macs(self, name: str, vni: int) -> list[TunnelMac]:
        """Return the addresses that were told of a network; KeyError where there is no such tunnel or network."""
        port = self._ports[name]
        port.vlan_of(vni)
        told = port.told.get(vni) or Segment()
        return [
            TunnelMac(name=f"{vid}/{mac}", vid=vid, mac=mac, remote=remote)
            for (vid, mac), (remote, _) in told.macs.items()
        ]

    # ---- what a control plane tells

    async def change(
        self,
        name: str,
        *,
        add_remotes: Sequence[RemoteChange] = (),
        remove_remotes: Sequence[RemoteChange] = (),
        add_macs: Sequence[MacChange] = (),
        remove_macs: Sequence[MacChange] = (),
    ) -> TunnelChanges:
        """Change what a tunnel was told: first what is removed, then what is added; all or nothing.

        Networks, families and VLANs were judged by the caller. KeyError: there is no such tunnel or network.
        ApplyError: an address belongs to others, or there is no room.
        """
        port = self._ports[name]
        async with port.turn:
            if port.ending:
                raise KeyError(name)
            touched = {item.vni for items in (add_remotes, remove_remotes) for item in items}
            touched |= {item.vni for items in (add_macs, remove_macs) for item in items}
            for vni in touched - set(port.numbers):
                raise KeyError(vni)
            self._refuse_foreign(port, add_macs)
            removed_keys = {(item.vid, item.mac) for item in remove_macs}
            taken = self._take(port, add_remotes, add_macs)
            undo = self._set_entries(port, add_macs, taken)
            if undo is not None:
                self._vteps.give(*taken.values())
                raise ApplyError(
                    "the bridge's table of addresses is full: raise `fdb_size`", f"#/bridges/{undo}/fdb_size"
                )
            removed = self._remove(port, remove_remotes, remove_macs, {(i.vid, i.mac) for i in add_macs} & removed_keys)
            added = self._add(port, add_remotes, add_macs)
            port.release(taken.values())
            await port.tell(touched)
        if add_remotes or add_macs:
            self._measure_soon(port)
        return TunnelChanges(added=added, removed=removed)

    def _refuse_foreign(self, port: TunnelledPort, macs: Sequence[MacChange]) -> None:
        """Refuse addresses that the configuration has, or another tunnel was told."""
        fdb = self._fdb_of(port.name)
        for item in macs:
            entry = fdb.lookup(_bytes(item.mac), item.vid, now_ns())
            if entry is None or entry.type != "static" or (entry.port == port.handle.ref and entry.vtep):
                continue
            owner = next((other.name for other in self._ports.values() if other.handle.ref == entry.port), None)
            whose = (
                f"was told to tunnel {owner!r}" if entry.vtep and owner else "is a static address of the configuration"
            )
            raise ApplyError(f"{item.vid}/{item.mac} {whose} already: remove it there first", f"#/ports/{port.name}")

    def _take(self, port: TunnelledPort, remotes: Sequence[RemoteChange], macs: Sequence[MacChange]) -> dict[str, int]:
        addresses = [item.address for item in remotes] + [item.remote for item in macs if item.remote is not None]
        try:
            return self._vteps.take_all(addresses)
        except OSError as error:
            raise ApplyError(
                "the switch can know no more remotes than 16383: remove some first", f"#/ports/{port.name}"
            ) from error

    def _set_entries(self, port: TunnelledPort, macs: Sequence[MacChange], taken: dict[str, int]) -> str | None:
        """Put the addresses into the FDB; None when all are in, else the bridge whose FDB is full, as it was before."""
        fdb, done = self._fdb_of(port.name), list[MacChange]()
        for item in macs:
            try:
                fdb.set_static(_bytes(item.mac), item.vid, port.handle.ref, taken[item.remote or ""])
            except OSError:
                for other in reversed(done):
                    self._restore(port, fdb, other)
                return port.settings.bridge or ""
            done.append(item)
        return None

    def _restore(self, port: TunnelledPort, fdb: Fdb, item: MacChange) -> None:
        segment = port.told.get(item.vni)
        before = None if segment is None else segment.macs.get((item.vid, item.mac))
        if before is None:
            fdb.remove(_bytes(item.mac), item.vid)
        else:
            fdb.set_static(_bytes(item.mac), item.vid, port.handle.ref, before[1])

    def _remove(
        self,
        port: TunnelledPort,
        remotes: Sequence[RemoteChange],
        macs: Sequence[MacChange],
        kept: Collection[Mac],
    ) -> int:
        """Remove what is there; `kept` are addresses that are added again, whose entries are new by now."""
        count, fdb = 0, self._fdb_of(port.name)
        for remote in remotes:
            segment = port.told.get(remote.vni)
            if segment is not None and (number := segment.remotes.pop(remote.address, None)) is not None:
                port.release([number])
                count += 1
        for item in macs:
            segment, key = port.told.get(item.vni), (item.vid, item.mac)
            if segment is not None and (entry := segment.macs.pop(key, None)) is not None:
                if key not in kept:
                    fdb.remove(_bytes(item.mac), item.vid)
                _less(segment, entry[1])
                port.release([entry[1]])
                count += 1
        for vni in {item.vni for item in remotes} | {item.vni for item in macs}:
            if (segment := port.told.get(vni)) is not None and not segment.remotes and not segment.macs:
                del port.told[vni]
        return count

    def _add(self, port: TunnelledPort, remotes: Sequence[RemoteChange], macs: Sequence[MacChange]) -> int:
        """Note what is new; each holds a number of its own, of which there is one at least by now."""
        count = 0
        for remote in remotes:
            segment = port.told.setdefault(remote.vni, Segment())
            if remote.address not in segment.remotes:
                segment.remotes[remote.address] = self._vteps.take(remote.address)
                count += 1
        for item in macs:
            segment, key = port.told.setdefault(item.vni, Segment()), (item.vid, item.mac)
            assert item.remote is not None
            before = segment.macs.get(key)
            if before is not None and before[0] == item.remote:
                continue
            if before is not None:
                _less(segment, before[1])
                port.release([before[1]])
            number = self._vteps.take(item.remote)
            segment.macs[key] = (item.remote, number)
            segment.others[number] += 1
            count += 1
        return count


def _less(segment: Segment, number: int) -> None:
    segment.others[number] -= 1
    if segment.others[number] <= 0:
        del segment.others[number]


def _endpoint(endpoint: Endpoint) -> TunnelEndpoint:
    queues = [endpoint.handle.queue_status(number) for number in range(endpoint.running)]
    return TunnelEndpoint(
        name=endpoint.name,
        queues=endpoint.queues,
        running=endpoint.running,
        rx_packets=sum(queue.rx_packets for queue in queues),
        rx_bytes=sum(queue.rx_bytes for queue in queues),
        drops=endpoint.counters().rx_drops,
    )


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
