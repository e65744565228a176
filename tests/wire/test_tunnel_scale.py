# SPDX-License-Identifier: Apache-2.0
"""Many virtual networks: a port for each, and ports that map VLANs to them. All of them carry frames, out and in.

Other hosts are addresses of loopback with sockets of the tests. `-s` shows seconds to start, memory, and what an edit
takes; `PVSWITCH_TEST_VNIS=1000 PVSWITCH_TEST_REMOTES=100` is the long run (ten times as many networks in mapped ports).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import from_environment
from tests.wire.lab import PATIENCE

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(900)]

VNIS = from_environment("PVSWITCH_TEST_VNIS", 60)
REMOTES = from_environment("PVSWITCH_TEST_REMOTES", 10)
MAPPED_PORTS = 3
MAPPED = 10 * VNIS
START_SECONDS = 120.0
CHUNK = 20  # frames under way at a time
FIRST_VNI = 10_000
LOCAL = "127.0.8.1"
UDP_PORT = 20_000 + os.getpid() % 10_000
EVERYBODY = b"\xff" * 6
FAR = b"\x02\x00\x00\x00\xfa\x01"
EXPERIMENTAL = b"\x88\xb5"

Record = Callable[[str, object], None]


def remotes(count: int) -> list[str]:
    """The addresses of other hosts."""
    return [f"127.0.9.{number}" for number in range(1, count + 1)]


@contextmanager
def hosts(addresses: Sequence[str]) -> Iterator[list[socket.socket]]:
    """The other hosts: a socket each, where the packets of tunnels come in."""
    with ExitStack() as stack:
        found = []
        for address in addresses:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            sock.bind((address, UDP_PORT))
            found.append(sock)
        yield found


def tunnel(vni: object, addresses: Sequence[str], **keys: Any) -> dict[str, Any]:
    """A tunnel to these hosts."""
    where = {"local": LOCAL, "dst_port": UDP_PORT, "remotes": [*addresses]}
    return {"type": "vxlan", "vni": vni, **where, **keys}


def tagged(vid: int, dst: bytes, src: bytes, number: int) -> bytes:
    """A frame of a VLAN that is told apart by its number."""
    return dst + src + b"\x81\x00" + vid.to_bytes(2) + EXPERIMENTAL + number.to_bytes(4) + bytes(42)


def packet(vni: int, frame: bytes) -> bytes:
    """What UDP carries of it (RFC 7348, 5)."""
    return b"\x08\0\0\0" + vni.to_bytes(3) + b"\0" + frame


def untagged(frame: bytes) -> bytes:
    return frame[:12] + frame[16:]


def resident(pid: int) -> int:
    """Bytes of memory that the process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def started(config: dict[str, Any], what: str, record: Record) -> AsyncIterator[SwitchProcess]:
    """A switch that may take its time to start; how long, and how much memory it has then, is shown."""
    switch = SwitchProcess(config)
    try:
        began = time.monotonic()
        await switch.spawn()
        await switch.wait_until(switch._ready, "the switch to be ready", START_SECONDS)
        took = time.monotonic() - began
        show(record, what, f"{took:.2f} s to start, {resident(switch.pid) >> 20} MiB resident")
        yield switch
        assert await switch.stop() == 0, switch.log()
    finally:
        await switch.close()


def show(record: Record, what: str, words: str) -> None:
    record(what, words)
    print(f"{what}: {words}")


async def all_carry(guest: Guest, networks: Sequence[tuple[int, int]], socks: Sequence[socket.socket]) -> None:
    """A broadcast in each VLAN comes to every host once, in its VNI; what a host sends in a VNI comes in its VLAN."""
    loop = asyncio.get_running_loop()
    for place in range(0, len(networks), CHUNK):
        chunk = networks[place : place + CHUNK]
        async with asyncio.timeout(PATIENCE):
            for vid, vni in chunk:
                await guest.send(tagged(vid, EVERYBODY, guest.mac, vni))
            wanted = sorted(packet(vni, untagged(tagged(vid, EVERYBODY, guest.mac, vni))) for vid, vni in chunk)
            for sock in socks:
                assert sorted([await loop.sock_recv(sock, 2048) for _ in chunk]) == wanted
            for vid, vni in chunk:
                await loop.sock_sendto(
                    socks[0], packet(vni, untagged(tagged(vid, guest.mac, FAR, vni))), (LOCAL, UDP_PORT)
                )
            expected = {tagged(vid, guest.mac, FAR, vni) for vid, vni in chunk}
            assert {await guest.recv(PATIENCE) for _ in chunk} == expected


async def nothing_more(guest: Guest, socks: Sequence[socket.socket]) -> None:
    """No frame is left anywhere."""
    await asyncio.sleep(0.1)
    assert guest.recv_nowait() is None
    for sock in socks:
        with pytest.raises(BlockingIOError):
            sock.recv(2048)


async def test_a_port_for_each_network(record_property: Record) -> None:
    addresses = remotes(REMOTES)
    networks = [(number, FIRST_VNI + number) for number in range(1, VNIS + 1)]
    tunnels = {f"t{vid}": tunnel(vni, addresses, tag=vid) for vid, vni in networks}
    config = {"bridges": {"br0": {}}, "ports": {"vm": {}, **tunnels}}
    what = f"{VNIS} networks, a port each, {REMOTES} remotes"
    with hosts(addresses) as socks:
        async with started(config, what, record_property) as switch:
            async with Guest(switch.port_socket("vm")) as guest:
                await all_carry(guest, networks, socks)
                await nothing_more(guest, socks)
            found = await switch.get(f"/tunnels/t{VNIS}")
            assert sorted(remote["address"] for remote in found["remotes"]) == sorted(addresses)


async def test_an_edit_beside_many_networks(record_property: Record) -> None:
    """One port gets other remotes, one comes and one goes: they do as they are told, and the others go on."""
    addresses = remotes(REMOTES)
    networks = [(number, FIRST_VNI + number) for number in range(1, VNIS + 1)]
    tunnels = {f"t{vid}": tunnel(vni, addresses, tag=vid) for vid, vni in networks}
    config = {"bridges": {"br0": {}}, "ports": {"vm": {}, **tunnels}}
    vid, vni = networks[-1]
    fresh = VNIS + 1, FIRST_VNI + VNIS + 1
    what = f"an edit beside {VNIS} networks"
    with hosts(addresses) as socks:
        async with (
            started(config, f"{what}, before it", record_property) as switch,
            Guest(switch.port_socket("vm")) as guest,
        ):
            edits: list[tuple[str, str, str, Any, int]] = [
                ("other remotes", "PUT", f"t{vid}", tunnel(vni, addresses[:1], tag=vid), 200),
                ("one more port", "PUT", f"t{fresh[0]}", tunnel(fresh[1], addresses, tag=fresh[0]), 201),
                ("one port less", "DELETE", "t1", None, 204),
            ]
            for name, method, port, body, status in edits:
                began = time.monotonic()
                got, answer = await switch.request(method, f"/api/v1/ports/{port}", body)
                assert got == status, answer
                show(record_property, what, f"{name}: {1e3 * (time.monotonic() - began):.1f} ms")
            await all_carry(guest, [(vid, vni)], socks[:1])
            await all_carry(guest, [*networks[1:-1], fresh], socks)
            await guest.send(tagged(1, EVERYBODY, guest.mac, 0))
            await nothing_more(guest, socks)


async def test_ports_that_map_vlans_to_networks(record_property: Record) -> None:
    """On each bridge a port that carries its VLANs, all in one mesh of hosts."""
    addresses = remotes(min(REMOTES, 3))
    each = min(-(-MAPPED // MAPPED_PORTS), 4094)
    config: dict[str, Any] = {"bridges": {}, "ports": {}}
    for number in range(MAPPED_PORTS):
        first = FIRST_VNI * (number + 1) + 1
        config["bridges"][f"br{number}"] = {}
        config["ports"][f"vm{number}"] = {"bridge": f"br{number}"}
        networks = {f"1-{each}": f"{first}-{first + each - 1}"}
        config["ports"][f"t{number}"] = tunnel(networks, addresses, bridge=f"br{number}")
    what = f"{each * MAPPED_PORTS} networks in {MAPPED_PORTS} ports"
    with hosts(addresses) as socks:
        async with started(config, what, record_property) as switch:
            for number in range(MAPPED_PORTS):
                assert (await switch.get(f"/tunnels/t{number}"))["vnis"] == each
                async with Guest(switch.port_socket(f"vm{number}")) as guest:
                    first = FIRST_VNI * (number + 1)
                    await all_carry(guest, [(vid, first + vid) for vid in range(1, each + 1)], socks)
                    await nothing_more(guest, socks)
            body = config["ports"]["t0"] | {"ttl": 32}
            began = time.monotonic()
            status, answer = await switch.request("PUT", "/api/v1/ports/t0", body)
            assert status == 200, answer
            show(record_property, what, f"an edit of one port: {1e3 * (time.monotonic() - began):.1f} ms")
