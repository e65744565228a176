# SPDX-License-Identifier: Apache-2.0
"""What the tests of uplinks share: ports in this process, and the far ends of their interfaces in namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pvswitch.datapath import Datapath
from pvswitch.guest import Guest
from pvswitch.model import SwitchConfig
from pvswitch.namespace import Namespace, NamespaceMissing
from pvswitch.netlink import run_in_namespace
from pvswitch.ports import Ports
from pvswitch.state import PortState
from pvswitch.validation import parse
from tests.conftest import missing_peer
from tests.system.footprint import footprint
from tests.wire.lab import PATIENCE, until

TYPE = 0x88B5
SOL_PACKET, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING = 263, 8, 23
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 1 << 4, 1 << 6


class Wire:
    """A raw socket on an interface in a namespace: what the host at the far end would see and send."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    async def open(cls, namespace: Path, ifname: str) -> Wire:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            sock.bind((ifname, 3))
            return sock

        return cls(await run_in_namespace(namespace, make))

    def close(self) -> None:
        self._sock.close()

    def send(self, frame: bytes) -> None:
        self._sock.send(frame)

    def poll(self) -> bytes | None:
        """The next frame as it was on the wire, the outer tag put back; None while there is none."""
        try:
            frame, ancillary, _, _ = self._sock.recvmsg(65600, 64)
        except BlockingIOError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", data)
                if status & TP_STATUS_VLAN_VALID:
                    tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                    frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
        return frame

    async def expect(self, frame: bytes) -> None:
        """Wait for this frame; what the kernels say among themselves is passed over."""
        await until(lambda: self.poll() == frame, f"a frame of {len(frame)} bytes")


@contextlib.asynccontextmanager
async def wires(where: Namespace, *ifnames: str) -> AsyncIterator[list[Wire]]:
    """A wire on each interface."""
    opened: list[Wire] = []
    try:
        for ifname in ifnames:
            await _running(where, ifname)
            opened.append(await Wire.open(where.path, ifname))
        yield opened
    finally:
        for wire in opened:
            wire.close()


class Lab:
    """Ports with guests, without the housekeeper: `tick` is called where the test says so."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        self.datapath = Datapath(workers=workers)
        self.ports = Ports(self.datapath)
        self.config = self._parse({})

    def _parse(self, ports: dict[str, Any]) -> SwitchConfig:
        return parse({"runtime_dir": str(self.folder), "state_dir": str(self.folder / "state"), "ports": ports})

    async def apply(self, **ports: dict[str, Any]) -> None:
        """Make these the ports."""
        config = self._parse(ports)
        prepared = await self.ports.prepare(config)
        await self.ports.commit(prepared)
        await self.ports.retire(prepared)
        self.config = config

    def tick(self) -> None:
        """A second has passed."""
        for port in self.ports._ports.values():
            port.tick()

    def state(self, port: str) -> PortState:
        return self.ports.port_state(port)

    async def reason(self, port: str, wanted: str | None) -> str:
        """Wait until a port is up (None), or down for this reason; its message then."""
        try:
            await until(lambda: self.state(port).reason == wanted, f"{port}: {wanted or 'up'}")
        except AssertionError:
            assert self.state(port).reason == wanted, self.state(port)
        return self.state(port).message or ""

    async def ticked(self, port: str, wanted: str | None) -> str:
        """Wait as `reason` does, with time passing."""

        def seen() -> bool:
            self.tick()
            return self.state(port).reason == wanted

        await until(seen, f"{port}: {wanted or 'up'}")
        return self.state(port).message or ""

    def guest(self, port: str, **options: Any) -> Guest:
        return Guest(self.config.port_socket(port), **options)


@contextlib.asynccontextmanager
async def running_lab(folder: Path, workers: int = 1) -> AsyncIterator[Lab]:
    """A lab; at the end nothing of it is left in this process."""
    (folder / "ports").mkdir()
    lab = Lab(folder, workers)
    lab.datapath.start()
    fds = footprint(os.getpid()).fds
    try:
        yield lab
    finally:
        await lab.ports.close()
        left = footprint(os.getpid()).fds - fds
        lab.datapath.close()
    assert left == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("uplink", "interfaces"))]


@contextlib.asynccontextmanager
async def namespace() -> AsyncIterator[Namespace]:
    """A network namespace; where there can be none the test is skipped."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            made = await stack.enter_async_context(Namespace())
        except NamespaceMissing as error:
            missing_peer(str(error))
        yield made


async def _running(where: Namespace, ifname: str) -> None:
    """Wait until the kernel sends by it: it begins a while after there is carrier, and loses frames until then."""

    async def running() -> bool:
        found = await link(where, ifname)
        return found is not None and found["operstate"] in ("UP", "UNKNOWN")

    await until(running, f"{ifname} to run")


async def link(where: Namespace, ifname: str) -> dict[str, Any] | None:
    """What `ip -d link` knows of an interface, with its addresses; None when there is none."""
    found = json.loads(await where.command("ip", "-d", "-j", "address", "show"))
    return next((item for item in found if item["ifname"] == ifname), None)


async def addresses(where: Namespace, ifname: str) -> set[str]:
    """The addresses of an interface, but for the link-local ones that the kernel gives."""
    found = await link(where, ifname)
    assert found is not None
    return {f"{a['local']}/{a['prefixlen']}" for a in found["addr_info"] if a["scope"] != "link"}


async def receive(guest: Guest, frame: bytes) -> list[bytes]:
    """Wait for this frame; what came before it, the kernels' own words among it."""
    before = []
    async with asyncio.timeout(PATIENCE):
        while (got := await guest.recv(PATIENCE)) != frame:
            before.append(got)
    return before


def tap(far: Namespace, **more: object) -> dict[str, object]:
    """A tap port's settings."""
    return {"type": "tap", "ifname": "tap0", "netns": str(far.path), **more}


def packet(far: Namespace, **more: object) -> dict[str, object]:
    """An af_packet port's settings."""
    return {"type": "af_packet", "ifname": "v0", "netns": str(far.path), **more}


async def veth(far: Namespace) -> None:
    """v0, for the switch, and v1, up."""
    await far.ip("link add v0 type veth peer name v1")
    await far.ip("link set v1 up")
