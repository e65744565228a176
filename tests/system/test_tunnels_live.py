# SPDX-License-Identifier: Apache-2.0
"""Tunnels while something happens: the configuration changes, the underlay comes and goes, guests move, tables fill."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from pvswitch.namespace import Namespace
from tests.system import underlay
from tests.system.conftest import ping
from tests.system.raw import RawSocket
from tests.system.traffic import pings
from tests.system.underlay import GUEST, PEER, VXLAN_PORT, Fabric, Host, HostedSwitch, Vtep, running, vxlan
from tests.system.uplinks import addresses

pytestmark = pytest.mark.timeout(90)

NEAR, FAR = "02:00:00:00:aa:01", "02:00:00:00:fa:02"
EVERYBODY = "ff:ff:ff:ff:ff:ff"


async def change(switch: HostedSwitch, **keys: Any) -> None:
    """Change keys of the tunnel."""
    status, body = await switch.request("PATCH", "/api/v1/ports/tunnel", keys)
    assert status == 200, body


async def silent(source: Host, address: str) -> None:
    """Fail if an address answers."""
    status, output = await source.run(f"/bin/ping -c 3 -i 0.1 -W 0.5 {address}")
    assert status != 0, output


async def udp_sockets(host: Namespace) -> str:
    """The kernel's table of a host's UDP sockets."""
    return await host.command("cat", "/proc/net/udp")


async def test_changes_of_the_configuration_are_live(host_root: Path) -> None:
    third = addresses(1, 3)
    async with running(host_root) as lab, Host("third", host_root) as other:
        await lab.fabric.plug(other, 3)
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER)
        await underlay.add_vxlan(other, 3, [1], found=third)
        for peer in (lab.peer, other):
            await peer.check("echo 1 > /proc/sys/net/ipv6/conf/vx/disable_ipv6")
        here, switch = lab.guest, lab.switch
        await underlay.reaches(here, PEER["IPv4"])
        await silent(here, third["IPv4"])
        # Nobody who is reached already is disturbed by another remote.
        steady = asyncio.create_task(pings(here, PEER["IPv4"], 100))
        remotes = [underlay.underlay(number)["IPv4"] for number in (2, 3)]
        await change(switch, remotes=remotes)
        await underlay.reaches(here, third["IPv4"])
        await steady
        await change(switch, vni=200)
        await silent(here, PEER["IPv4"])
        await change(switch, vni=100)
        await underlay.reaches(here, PEER["IPv4"])
        for keys, ttl in (({"ttl": 9}, 9), ({"ttl": 64}, 64)):
            await change(switch, **keys)
            async with RawSocket(lab.peer.path, "eth0") as sock:
                await underlay.reaches(here, PEER["IPv4"])
                async with asyncio.timeout(10):
                    while UDP not in (packet := Ether(await sock.receive())) or packet[UDP].dport != VXLAN_PORT:
                        pass
            assert packet[IP].ttl == ttl
        # A remote that is no longer there is no longer heard of: what is behind it is looked for anew.
        await change(switch, remotes=remotes[1:], learning=False)
        await silent(here, PEER["IPv4"])
        await underlay.reaches(here, third["IPv4"])
        # Without the port there is no socket, with it there are some again.
        port = f":{VXLAN_PORT:04X}"
        assert port in await udp_sockets(lab.host)
        keys = underlay.tunnel(1, [2])
        assert (await switch.request("DELETE", "/api/v1/ports/tunnel"))[0] == 204

        async def gone() -> bool:
            return port not in await udp_sockets(lab.host)

        await switch.wait_until(gone, "its sockets to be gone", 10)
        status, body = await switch.request("PUT", "/api/v1/ports/tunnel", {**keys, "bridge": "br0"})
        assert status == 201, body
        await underlay.reaches(here, PEER["IPv4"])


async def test_an_address_that_the_host_does_not_have_yet(host_root: Path) -> None:
    """The link is down and says why; it comes up with the address, goes with it, and comes again."""
    async with running(host_root) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER)
        own = f"{underlay.underlay(1)['IPv4']}/24 dev eth0"
        await underlay.reaches(lab.guest, PEER["IPv4"])
        for _ in range(2):
            await lab.host.ip(f"address del {own}")

            async def down() -> bool:
                return await lab.switch.link("tunnel") != "up"

            await lab.switch.wait_until(down, "the link to be down without its address", 15)
            state = (await lab.switch.get("/ports/tunnel"))["state"]
            assert underlay.underlay(1)["IPv4"] in state["message"], state
            await lab.host.ip(f"address add {own}")
            await lab.switch.wait_link("tunnel", seconds=15)
            await underlay.reaches(lab.guest, PEER["IPv4"])


async def test_an_underlay_that_goes_down(host_root: Path) -> None:
    """Its interface down and up again: frames are lost meanwhile, and nothing else."""
    async with running(host_root) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        await lab.host.ip("link set eth0 down")
        await silent(lab.guest, PEER["IPv4"])
        await lab.host.ip("link set eth0 up")
        await underlay.reaches(lab.guest, PEER["IPv4"])
        await ping(lab.guest, lab.peer, PEER["IPv4"], count=20, size=1000)


async def test_a_remote_that_cannot_be_reached_is_nobody_elses_trouble(host_root: Path) -> None:
    """No route to the one, no host at the other: the third has all its frames."""
    remotes = ["198.51.100.7", "192.0.2.77", underlay.underlay(2)["IPv4"]]
    async with running(host_root, remotes=remotes) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        async with RawSocket(lab.peer.path, "vx") as vx, lab.wire() as wire:
            for number in range(200):
                await wire.send(numbered(number, NEAR))
                await asyncio.sleep(0.001)
            assert await collected(vx, 200) == [*range(200)]
        await ping(lab.guest, lab.peer, PEER["IPv4"], count=50, size=1000)


def numbered(number: int, src: str, dst: str = EVERYBODY) -> bytes:
    """A frame that is told apart by its number."""
    return bytes(Ether(src=src, dst=dst, type=0x88B5) / Raw(number.to_bytes(4, "big") + bytes(60)))


async def collected(sock: RawSocket, count: int, seconds: float = 10.0) -> list[int]:
    """The numbers of so many frames."""
    found: list[int] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            data = await sock.receive(seconds)
            if data[12:14] == b"\x88\xb5":
                found.append(int.from_bytes(data[14:18], "big"))
    return found


async def test_a_guest_that_moves_to_another_host(host_root: Path) -> None:
    """As a VM that is migrated: its address is at a port, then behind the tunnel, then at the port again."""
    async with running(host_root) as lab, lab.vtep() as vtep, lab.wire() as wire:
        mobile = "02:00:00:00:cc:01"
        for _ in range(2):
            await wire.send(numbered(1, mobile))
            while numbered(1, mobile) not in bytes(await vtep.next()):
                pass
            assert (await lab.switch.learned(mobile))["port"] == "guest"
            await vtep.send(vtep.udp(vxlan(numbered(2, mobile))))
            assert await collected(wire, 1) == [2]
            entry = await lab.switch.learned(mobile)
            assert entry["port"] == "tunnel"
            assert underlay.underlay(2)["IPv4"] in json.dumps(entry)
            # What is for it goes there, from whoever it comes.
            await wire.send(numbered(3, NEAR, mobile))
            while numbered(3, NEAR, mobile) not in bytes(await vtep.next()):
                pass


SPOOFED = 14000


async def test_hosts_without_number(host_root: Path) -> None:
    """Somebody sends from more addresses than are learned: remotes are reached as before, and by the others too."""
    async with running(host_root) as lab, Namespace() as enemy:
        await lab.fabric.plug(enemy, 9)
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        # Any address is one that could have sent it.
        await lab.host.command("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/eth0/rp_filter")
        await lab.host.ip("route add default dev eth0")
        async with Vtep(enemy, 9, 1) as vtep:
            whole = bytearray(bytes(vtep.udp(vxlan(numbered(0, "02:00:00:00:00:00")))))
            whole[40:42] = b"\0\0"  # no checksum of UDP
            for number in range(SPOOFED):
                whole[26:30] = (0xCB000000 + number).to_bytes(4, "big")
                whole[24:26] = header_sum(whole[14:24] + bytes(2) + whole[26:34])
                whole[56:62] = b"\x02\x01" + number.to_bytes(4, "big")
                await vtep.send(bytes(whole))
                if number % 200 == 199:
                    await asyncio.sleep(0.005)
        await ping(lab.guest, lab.peer, PEER["IPv4"], count=50, size=1000)
        shown = await lab.switch.get("/tunnels/tunnel")
        assert len(shown["remotes"]) > 100
        assert len(json.dumps(shown)) < 1 << 20
        assert shown["endpoint"]["rx_packets"] > SPOOFED / 2


def header_sum(header: bytes | bytearray) -> bytes:
    """IPv4's checksum of a header that has zero in its place."""
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return (~total & 0xFFFF).to_bytes(2, "big")


async def test_a_restart_needs_nobodys_help(host_root: Path) -> None:
    """Both ends are VTEPs of the kernel's ports at once: the switch is stopped and started with traffic coming in."""
    async with running(host_root) as lab:
        await underlay.add_vxlan(lab.peer, 2, [1], found=PEER)
        await underlay.reaches(lab.guest, PEER["IPv4"])
        await lab.peer.check(f"/bin/ping -i 0.01 {GUEST['IPv4']} > /tmp/pings 2>&1 &")
        for end in (lab.switch.kill, lab.switch.stop):
            await end()
            await asyncio.sleep(0.2)
            await lab.switch.start()
            for port in ("guest", "tunnel"):
                await lab.switch.wait_link(port)
            await underlay.reaches(lab.guest, PEER["IPv4"])
            await underlay.reaches(lab.peer, GUEST["IPv4"])


async def test_two_fabrics_do_not_meet(host_root: Path) -> None:
    """A tunnel of an address takes what is for that address, and nothing that is for another one of the host."""
    async with Fabric() as fabric, Namespace() as host, Namespace() as peer, Host("guest", host_root) as guest:
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        await host.ip("address add 192.0.2.101/24 dev eth0")
        config = underlay.one_bridge(guest=underlay.tap(guest, GUEST), tunnel=underlay.tunnel(1, [2]))
        async with underlay.hosted(host, config), Vtep(peer, 2, 1) as vtep, RawSocket(guest.path, "up0") as wire:
            other = vtep.udp(vxlan(numbered(1, FAR)))
            other[IP].dst = "192.0.2.101"
            await vtep.send(other)
            await vtep.send(vtep.udp(vxlan(numbered(2, FAR))))
            assert await collected(wire, 1) == [2]
