# SPDX-License-Identifier: Apache-2.0
"""What tunnels share: endpoints where packets come in, the sockets that they are sent by, the MTU of the paths.

An endpoint is one (type, local address, UDP port), for all tunnels there; the core tells them apart by their VNIs. The
sockets to send by belong to what they are set to: local address, DF, checksums, TTL. Both are counted: the first tunnel
that wants one opens it, the last one closes it. Used by `tunnel_port.py` and `tunnels.py`, on the event loop.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from pvswitch.datapath import Datapath, PortCounters, UplinkConf
from pvswitch.model import TunnelPort, TunnelType
from pvswitch.netlink import Route
from pvswitch.switch_port import PolledQueue
from pvswitch.tunnel_sockets import (
    PathProbe,
    close_all,
    cuts_datagrams,
    has_address,
    open_endpoint,
    open_sources,
)

log = structlog.get_logger(__name__)
T = TypeVar("T")

PATH_SECONDS = 25.0
"""How long the MTU of a path is taken for what it was."""


class Endpoint:
    """Where packets of tunnels come in."""

    def __init__(self, datapath: Datapath, kind: TunnelType, local: str, port: int | None) -> None:
        """Take a handle in the core (OSError ENOSPC)."""
        self.kind, self.local, self.port = kind, local, port
        self.name = kind + "".join(f"-{part}" for part in (local, port) if part is not None)
        self.queues = 1 if port is None else datapath.workers
        self.handle = datapath.uplink(self.queues)
        self.running = 0  # queues that were started
        self.present = True  # this host has the address
        self.trouble = ""  # why its queues don't run
        self._sockets: list[socket.socket] = []

    def open(self) -> None:
        """Open its sockets, if they aren't; raises TunnelError, AddressMissing."""
        if not self._sockets:
            self._sockets = open_endpoint(self.kind, self.local, self.port, self.queues)
            self.present = True

    async def start(self) -> None:
        """Let packets come in; what goes wrong is `trouble`."""
        try:
            while self.running < len(self._sockets):
                number = self.running
                self.running += 1  # whoever comes meanwhile has nothing to do
                conf = UplinkConf(
                    "endpoint", self._sockets[number].fileno(), worker=number if self.port else -1, tunnel=self.kind
                )
                await self.handle.start_queue(number, conf)
            self.trouble = ""
        except OSError as error:
            self.running -= 1
            self.trouble = f"queue {self.running} of {self.name} was not started: {error.strerror}"
            log.warning("endpoint not started", endpoint=self.name, error=self.trouble)

    async def close(self) -> None:
        """Stop it and close its sockets; no tunnel that is published may name it any more."""
        running, self.running = self.running, 0
        for number in range(running):
            with suppress(OSError):
                await self.handle.stop_queue(number)
        close_all(self._sockets)
        self.handle.close()

    def look(self) -> None:
        """Look whether this host still has the address."""
        self.present = has_address(self.local)

    def counters(self) -> PortCounters:
        """Return what came in and belonged to no tunnel, by reason."""
        return self.handle.counters()

    def polled(self) -> list[PolledQueue]:
        """Return its queues, for who balances the workers."""
        seen = [(number, self.handle.queue_status(number)) for number in range(self.running)]
        return [
            PolledQueue(number, queue.worker, queue.rx_packets, queue.cycles, pinned=False)
            for number, queue in seen
            if queue.running
        ]


class Sources:
    """Sockets to send by."""

    def __init__(self, kind: TunnelType, local: str, *, df: bool, checksums: bool, ttl: int) -> None:
        """Open them; raises TunnelError, AddressMissing."""
        self._sockets = open_sources(kind, local, df=df, checksums=checksums, ttl=ttl)
        self.fds = [sock.fileno() for sock in self._sockets]
        self.segmentation = kind != "gre" and checksums and cuts_datagrams(self._sockets[0])

    def close(self) -> None:
        """Close them; no published tables may name a tunnel that has them."""
        close_all(self._sockets)


@dataclass(slots=True)
class _Shared(Generic[T]):
    key: Hashable
    thing: T
    users: int = 0


class _Pool(Generic[T]):
    """Things that are shared, by what they are for."""

    def __init__(self) -> None:
        self._things: dict[Hashable, _Shared[T]] = {}

    def all(self) -> list[T]:
        return [shared.thing for shared in self._things.values()]

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        shared = self._things.get(key)
        if shared is None:
            shared = self._things[key] = _Shared(key, make())
        shared.users += 1
        return shared.thing

    def give(self, thing: T) -> bool:
        """Give one back; True when nobody else has it."""
        shared = next(shared for shared in self._things.values() if shared.thing is thing)
        shared.users -= 1
        if shared.users == 0:
            del self._things[shared.key]
        return shared.users == 0


class Ends:
    """The endpoints and sending sockets of all tunnels."""

    def __init__(self, datapath: Datapath) -> None:
        """Begin with none."""
        self._datapath = datapath
        self._endpoints: _Pool[Endpoint] = _Pool()
        self._sources: _Pool[Sources] = _Pool()

    @property
    def endpoints(self) -> list[Endpoint]:
        """Those that are in use."""
        return self._endpoints.all()

    def endpoint(self, port: TunnelPort) -> Endpoint:
        """Return the endpoint of a tunnel, which may not be open yet; OSError ENOSPC. Give it back with `leave`."""
        return self._endpoints.take(
            (port.type, port.local, port.udp_port),
            lambda: Endpoint(self._datapath, port.type, port.local, port.udp_port),
        )

    async def leave(self, endpoint: Endpoint) -> None:
        """Give an endpoint back."""
        if self._endpoints.give(endpoint):
            await endpoint.close()

    def sources(self, port: TunnelPort) -> Sources:
        """Return the sockets that a tunnel sends by; TunnelError, AddressMissing. Give them back with `give_back`."""
        return self._sources.take(
            (port.type == "gre", port.local, port.df, port.checksums, port.ttl),
            lambda: Sources(port.type, port.local, df=port.df, checksums=port.checksums, ttl=port.ttl),
        )

    def give_back(self, sources: Sources) -> None:
        """Give sockets back; no published tables may name a tunnel of the caller's that has them."""
        if self._sources.give(sources):
            sources.close()


class Paths:
    """The MTU of the paths to other hosts, as the kernel knows it, looked up again from time to time."""

    def __init__(self) -> None:
        """Nothing is known."""
        self._probes: dict[str, PathProbe] = {}
        self._known: dict[tuple[str, str], tuple[int | None, float]] = {}
        self._interfaces: dict[str, tuple[int | None, float]] = {}

    def close(self) -> None:
        """Forget all."""
        for probe in self._probes.values():
            probe.close()
        self._probes.clear()
        self._known.clear()
        self._interfaces.clear()

    def mtu(self, local: str, remote: str) -> int | None:
        """Return the MTU of the path to a host; None: there is no way."""
        now = time.monotonic()
        known = self._known.get((local, remote))
        if known is None or known[1] < now:
            known = self._known[local, remote] = (self._ask(local, remote), now + PATH_SECONDS)
        return known[0]

    def forget(self, local: str, remote: str) -> None:
        """Have the next look ask the kernel."""
        self._known.pop((local, remote), None)

    def tidy(self) -> None:
        """Forget the paths that nobody has asked for in a while."""
        now = time.monotonic()
        stale = [key for key, (_, until) in self._known.items() if until + 4 * PATH_SECONDS < now]
        for key in stale:
            del self._known[key]
        locals_left = {local for local, _ in self._known}
        for local in [local for local in self._probes if local not in locals_left]:
            self._probes.pop(local).close()

    async def interface_mtu(self, local: str) -> int | None:
        """Return the MTU of the interface that has an address of this host; None: none has it."""
        now = time.monotonic()
        known = self._interfaces.get(local)
        if known is None or known[1] < now:
            known = self._interfaces[local] = (await asyncio.to_thread(_holder_mtu, local), now + PATH_SECONDS)
        return known[0]

    def _ask(self, local: str, remote: str) -> int | None:
        try:
            probe = self._probes.get(local)
            if probe is None:
                probe = self._probes[local] = PathProbe(local)
        except OSError:  # the address has gone
            return None
        return probe.mtu(remote)


def _holder_mtu(local: str) -> int | None:
    with suppress(OSError), Route() as route:
        link = route.holder(local)
        return None if link is None else link.mtu
    return None
