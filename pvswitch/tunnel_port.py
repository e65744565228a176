# SPDX-License-Identifier: Apache-2.0
"""A vxlan, geneve or gre port: its endpoint and sockets, its tunnel in the core, its remotes, its room.

A tunnel has no queues of its own: what comes in comes by an endpoint that it shares (`tunnel_ends.py`). The core's
tunnel object is made whole and published with the port; settings that it is made of make another one, which is
published in its place, live. Remotes are told to it by segment, at any time. A tunnel of another type, address or UDP
port is another port.

While this host doesn't have the local address there is nothing to publish: the link is down, and `revive` tries again.
`turn` keeps what takes time apart. Used by `tunnels.py` and `ports.py`, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import structlog

from pvswitch.datapath import Datapath, DatapathTunnel, Fdb, TunnelConf
from pvswitch.model import AnyPort, TunnelPort
from pvswitch.state import LinkReason, PortState, Queues, QueueStats, link_message
from pvswitch.switch_port import PolledQueue, SwitchPort
from pvswitch.tunnel_checks import network_numbers
from pvswitch.tunnel_ends import Ends, Paths, Sources
from pvswitch.tunnel_sockets import AddressMissing, TunnelError, address_missing, is_ipv6
from pvswitch.vteps import Vteps

log = structlog.get_logger(__name__)

ETHERNET_HEADER = 14
SMALLEST_ROOM = 64
_IPV4, _IPV6, _UDP, _VXLAN, _GRE, _GRE_KEY = 20, 40, 8, 8, 4, 4

Mac = tuple[int, str]
"""VLAN and address, as a bridge's FDB has it."""


@dataclass(slots=True)
class Built:
    """A tunnel in the core, and what it sends by."""

    settings: tuple[object, ...]
    tunnel: DatapathTunnel
    sources: Sources


class Segment:
    """What a control plane has said of one virtual network: the number of each remote, and of who is behind it."""

    __slots__ = ("macs", "others", "remotes")

    def __init__(self) -> None:
        """Nothing was said."""
        self.remotes: dict[str, int] = {}
        self.macs: dict[Mac, tuple[str, int]] = {}
        self.others: Counter[int] = Counter()  # VTEPs of `macs`


def outer_headers(port: TunnelPort) -> int:
    """Return the bytes that an outer packet has before the inner frame."""
    outer = _IPV6 if is_ipv6(port.local) else _IPV4
    if port.udp_port is not None:
        return outer + _UDP + _VXLAN
    return outer + _GRE + (_GRE_KEY if port.networks is not None else 0)


def settings_of(port: TunnelPort) -> tuple[object, ...]:
    """Return what a tunnel in the core is made of; a change of it takes another one."""
    return (
        *(network_numbers(port), port.ttl, port.tos, port.df, port.learning, port.icmp_too_big, port.checksums),
        port.networks is None,
    )


class TunnelledPort(SwitchPort):
    """One tunnel."""

    def __init__(
        self,
        datapath: Datapath,
        name: str,
        port: TunnelPort,
        *,
        ends: Ends,
        vteps: Vteps,
        paths: Paths,
        on_link: Callable[[SwitchPort], None],
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        """Take a handle in the core and an endpoint (OSError ENOSPC). `publish` has the tables made anew."""
        super().__init__(name, datapath.tunnel_port(), on_link)
        self._datapath = datapath
        self._port = port
        self._ends, self._vteps, self._paths = ends, vteps, paths
        self._publish = publish
        try:
            self.endpoint = ends.endpoint(port)
        except OSError:
            self.handle.close()
            raise
        self.turn = asyncio.Lock()
        self.ending = False
        self.room = 0
        self.told: dict[int, Segment] = {}  # by VNI
        self._tight: set[str] = set()  # remotes that a packet didn't fit the path to
        self._statics: dict[str, int] = {}
        self._built: Built | None = None
        self._staged: Built | None = None
        self._staged_statics: dict[str, int] | None = None
        self._retired: list[Built] = []
        self._returned: list[int] = []  # numbers of VTEPs that the core may still be told
        self._trouble = ""

    # ---- life

    async def bind(self) -> None:
        """Open the sockets and make the tunnel. A missing address is waited for. Raises TunnelError, OSError."""
        self._statics = self._take(self._port.remotes)
        try:
            await self._open()
        except AddressMissing as error:
            self._trouble = str(error)

    async def listen(self) -> None:
        """Let packets come in."""
        if self._built is not None:
            await self.endpoint.start()
        self.refresh()

    def suits(self, port: AnyPort) -> bool:
        """Return whether packets of it come in at the same place."""
        now = self._port
        return isinstance(port, TunnelPort) and (port.type, port.local, port.udp_port) == (
            now.type,
            now.local,
            now.udp_port,
        )

    async def stage(self, port: AnyPort) -> None:
        """Make what a changed configuration needs. Raises TunnelError, OSError."""
        assert isinstance(port, TunnelPort)
        async with self.turn:
            if port.remotes != self._port.remotes:
                self._staged_statics = self._take(port.remotes)
            if self._built is not None and settings_of(port) != settings_of(self._port):
                statics = self._statics if self._staged_statics is None else self._staged_statics
                self._staged = await self._build(port, statics)

    def unstage(self) -> None:
        """Let go of what was staged."""
        staged, self._staged = self._staged, None
        statics, self._staged_statics = self._staged_statics, None
        if staged is not None:
            self._discard(staged)
        if statics is not None:
            self._vteps.give(*statics.values())

    def adopt(self, port: AnyPort) -> None:
        """Have the next tables be of the changed configuration."""
        assert isinstance(port, TunnelPort)
        self._port = port
        if self._staged_statics is not None:
            self._returned += self._statics.values()
            self._statics, self._staged_statics = self._staged_statics, None
        if self._staged is not None:
            if self._built is not None:
                self._retired.append(self._built)
            self._built, self._staged = self._staged, None

    def configure(self, port: AnyPort) -> bool:
        """Take over a changed configuration; `renew` tells the core."""
        assert self._port is port  # adopted by now
        self.refresh()
        return True

    async def renew(self) -> None:
        """Have the core know the remotes; free what the tables no longer name."""
        async with self.turn:
            if self._built is None and not self.ending:
                await self._try_open()
            elif self._built is not None:
                self._forget_networks()
                if self._built.settings != settings_of(self._port):  # it was made meanwhile, of what was
                    fresh = await self._build(self._port, self._statics)
                    self._retired.append(self._built)
                    self._built = fresh
                    await self._publish()
                await self._built.tunnel.set_remotes(self._lists(self._statics, self.numbers))
            self._free_retired()
            self._give_back()
            await self.measure()
        self.refresh()

    async def close(self) -> None:
        """Free everything. The tables don't name the port any more."""
        self.ending = True
        async with self.turn:
            self.unstage()
            if self._built is not None:
                self._retired.append(self._built)
                self._built = None
            self._free_retired()
            for segment in self.told.values():
                self._returned += segment.remotes.values()
                self._returned += (number for _, number in segment.macs.values())
            self.told.clear()
            self._returned += self._statics.values()
            self._statics = {}
            self._give_back()
            try:
                await self._ends.leave(self.endpoint)
            finally:
                self.handle.close()

    def tick(self) -> None:
        """Look at the link; what takes time is done by `tunnels.py`."""
        self.refresh()

    # ---- the tunnel in the core

    @property
    def tunnel(self) -> DatapathTunnel | None:
        """What the tables name; None: there is nothing to publish."""
        return None if self._built is None else self._built.tunnel

    @property
    def settings(self) -> TunnelPort:
        """The configuration in force."""
        return self._port

    @property
    def numbers(self) -> list[int]:
        """Its VNIs, by segment; 0 for GRE without a key."""
        return [number or 0 for _, number in network_numbers(self._port)]

    def vlan_of(self, vni: int) -> int | None:
        """Return the VLAN that a VNI is mapped to, None where there is no map; KeyError."""
        for vid, number in network_numbers(self._port):
            if (number or 0) == vni:
                return vid
        raise KeyError(vni)

    async def revive(self) -> bool:
        """Try again what could not be opened, with the turn; return whether there is a new tunnel to be published."""
        async with self.turn:
            if self._built is not None or self.ending:
                return False
            return await self._try_open()

    async def _try_open(self) -> bool:
        try:
            await self._open()
        except (TunnelError, OSError) as error:
            self._note(str(error))
            return False
        await self._publish()
        await self.endpoint.start()
        self.refresh()
        return True

    async def _open(self) -> None:
        self.endpoint.open()
        self._built = await self._build(self._port, self._statics)
        self._trouble = ""
        await self.measure()

    async def _build(self, port: TunnelPort, statics: dict[str, int]) -> Built:
        """Make a tunnel in the core, with its remotes; with everything undone when that fails."""
        sources = self._ends.sources(port)
        networks = network_numbers(port)
        try:
            tunnel = self._datapath.tunnel(
                TunnelConf(
                    kind=port.type,
                    endpoint=self.endpoint.handle,
                    ipv6=is_ipv6(port.local),
                    learning=port.learning,
                    too_big=port.icmp_too_big,
                    segmentation=sources.segmentation,
                    tos=-1 if port.tos == "inherit" else int(port.tos),
                    dst_port=port.udp_port or 0,
                    sockets=sources.fds,
                    segments=networks,
                )
            )
        except BaseException:
            self._ends.give_back(sources)
            raise
        built = Built(settings_of(port), tunnel, sources)
        try:
            await tunnel.set_remotes(self._lists(statics, [number or 0 for _, number in networks]))
        except BaseException:
            self._discard(built)
            raise
        return built

    def _discard(self, built: Built) -> None:
        built.tunnel.close()
        self._ends.give_back(built.sources)

    def _free_retired(self) -> None:
        while self._retired:
            self._discard(self._retired.pop())

    def _give_back(self) -> None:
        returned, self._returned = self._returned, []
        self._vteps.give(*returned)

    def _lists(
        self, statics: dict[str, int], numbers: Iterable[int]
    ) -> Iterator[tuple[int, Collection[int], Collection[int]]]:
        """Give what the core is told of each segment."""
        common = [*statics.values()]
        for index, number in enumerate(numbers):
            told = self.told.get(number)
            if told is None:
                yield index, common, ()
            else:
                flood = dict.fromkeys((*common, *told.remotes.values()))
                yield index, flood, [other for other in told.others if other not in flood]

    async def tell(self, vnis: Collection[int]) -> None:
        """Have the core know the remotes of these networks."""
        if self._built is not None and self._built.settings == settings_of(self._port):
            numbers = self.numbers
            if len(vnis) < len(numbers):
                places = {number: index for index, number in enumerate(numbers)}
                lists = self._lists_of(vnis, places)
            else:
                lists = self._lists(self._statics, numbers)
            await self._built.tunnel.set_remotes(lists)
        self._give_back()

    def _lists_of(
        self, vnis: Collection[int], places: dict[int, int]
    ) -> Iterator[tuple[int, Collection[int], Collection[int]]]:
        for number in vnis:
            for _, flood, others in self._lists(self._statics, [number]):
                yield places[number], flood, others

    def release(self, numbers: Iterable[int]) -> None:
        """Give numbers of VTEPs back when the core has been told of no more of them: at the next `tell`."""
        self._returned += numbers

    def _take(self, addresses: Iterable[str]) -> dict[str, int]:
        try:
            return self._vteps.take_all(addresses)
        except OSError as error:
            raise TunnelError(
                f"there is no number left for another remote ({error.strerror}): the switch knows 16383 at most"
            ) from error

    # ---- what a control plane has told

    @property
    def statics(self) -> Collection[str]:
        """The remotes of the configuration."""
        return self._statics.keys()

    def remote_addresses(self) -> set[str]:
        """Return every remote that is known by configuration or was told."""
        found = set(self._statics)
        for segment in self.told.values():
            found.update(segment.remotes)
            found.update(address for number in segment.others if (address := self._vteps.address(number)) is not None)
        return found

    def _forget_networks(self) -> None:
        """Forget what was told of networks that the tunnel no longer has."""
        present = set(self.numbers)
        for number in [number for number in self.told if number not in present]:
            segment = self.told.pop(number)
            self._returned += segment.remotes.values()

    def drop_macs(self, fdb: Fdb, *, keep: Callable[[int], bool] | None = None) -> None:
        """Forget the addresses that were told, but for those of the networks to `keep`; a bridge's FDB has them."""
        for number, segment in self.told.items():
            if keep is not None and keep(number):
                continue
            for vid, mac in segment.macs:
                fdb.remove(bytes.fromhex(mac.replace(":", "")), vid)
            self._returned += (vtep for _, vtep in segment.macs.values())
            segment.macs.clear()
            segment.others.clear()

    def yield_macs(self, statics: Collection[Mac]) -> None:
        """Forget the addresses that the configuration has now; the FDB's entries are the configuration's."""
        for segment in self.told.values():
            for key in segment.macs.keys() & statics:
                _, number = segment.macs.pop(key)
                segment.others[number] -= 1
                if segment.others[number] <= 0:
                    del segment.others[number]
                self._returned.append(number)

    # ---- how large a frame may be

    async def measure(self) -> bool:
        """Look how large a frame fits the underlay; return whether that has changed."""
        before, port = self.room, self._port
        if not port.df:
            self.room = 0
            return self.room != before
        mtus = [self._paths.mtu(port.local, remote) for remote in {*self.remote_addresses(), *self._tight}]
        known = [mtu for mtu in mtus if mtu]
        mtu = min(known) if known else await self._paths.interface_mtu(port.local)
        self.room = max(SMALLEST_ROOM, mtu - outer_headers(port)) if mtu else before
        return self.room != before

    def too_big(self, remote: str) -> None:
        """Note that a packet didn't fit the path to a host."""
        self._tight.add(remote)
        self._paths.forget(self._port.local, remote)

    # ---- what there is to see

    def link(self) -> tuple[LinkReason | None, str | None]:
        """Return why the link is down, None when it is up; and what to do, where there is something to do."""
        if not self._port.enabled:
            return LinkReason.ADMIN_DOWN, link_message(LinkReason.ADMIN_DOWN, self.name)
        if self._built is None or not self.endpoint.running:
            waits = f"tunnel {self.name} has not begun yet: wait a moment"
            return LinkReason.INTERFACE_MISSING, self._trouble or self.endpoint.trouble or waits
        if not self.endpoint.present:
            return LinkReason.INTERFACE_MISSING, address_missing(self._port.local)
        return None, None

    def state(self) -> PortState:
        """Return what the API shows of this port."""
        reason, message = self.link()
        return PortState(
            link="up" if reason is None else "down",
            reason=reason,
            message=message,
            queues=Queues(offered=self.endpoint.queues, enabled=self.endpoint.running),
            mtu=self.effective_mtu(),
        )

    def effective_mtu(self) -> int | None:
        """Return the largest L3 packet that passes, without tags; None where nothing limits it."""
        limits = [mtu for mtu in (self._port.mtu, self.room - ETHERNET_HEADER if self.room else None) if mtu]
        return min(limits, default=None)

    def error(self) -> str | None:
        """Return what went wrong last when it sent."""
        return None if self._built is None else self._built.tunnel.error()

    def queue_stats(self) -> list[QueueStats]:
        """It has no queues: those of its endpoint are of all tunnels there."""
        return []

    def polled(self) -> list[PolledQueue]:
        """See `queue_stats`."""
        return []

    async def move_queue(self, queue: int, worker: int) -> None:
        """See `queue_stats`."""
        raise FileNotFoundError(f"port {self.name} has no queue {queue} for worker {worker}")

    def _note(self, trouble: str) -> None:
        if self._trouble != trouble:
            log.warning("tunnel not begun", port=self.name, error=trouble)
        self._trouble = trouble
