# SPDX-License-Identifier: Apache-2.0
"""Several VTEPs of the kernel, several VNIs, and several switches that are each other's VTEPs.

Between switches a guest is a tap with addresses (underlay.py), or Linux under QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from pvswitch.namespace import Namespace
from pvswitch.vm import build_image
from tests.conftest import RequirePeer
from tests.system import underlay
from tests.system.conftest import boot_all, from_environment, machine_on, ping, transfer
from tests.system.raw import RawSocket
from tests.system.recording import explained, record
from tests.system.traffic import TcpStream, pings, serve_iperf3
from tests.system.underlay import VXLAN_PORT, Fabric, Host, HostedSwitch, Vtep, vxlan
from tests.system.uplinks import FAMILIES, addresses

pytestmark = pytest.mark.timeout(150)

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 3)
EVERYBODY = "ff:ff:ff:ff:ff:ff"
FAR = "02:00:00:00:fa:02"
EXPERIMENTAL = 0x88B5


def numbered(number: int, src: str, dst: str = EVERYBODY, size: int = 64) -> bytes:
    """A frame that is told apart by its number."""
    head = bytes.fromhex((dst + src).replace(":", "")) + EXPERIMENTAL.to_bytes(2, "big")
    return head + number.to_bytes(4, "big") + bytes(size - 18)


async def numbers(sock: RawSocket, seconds: float) -> list[int]:
    """The numbers of the frames that come until none has for so long."""
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            data = await sock.receive(seconds)
            if data[12:14] == EXPERIMENTAL.to_bytes(2, "big"):
                found.append(int.from_bytes(data[14:18], "big"))
    return found


# ---- the kernel


async def test_an_address_that_moves_to_another_vtep(host_root: Path) -> None:
    """Of two hosts one has an address, then the other has it: what is for it follows its first frame."""
    guest_has, moving = addresses(1, 1), addresses(1, 9)
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("guest", host_root) as guest,
        Host("first", host_root) as first,
        Host("second", host_root) as second,
    ):
        peers = {2: first, 3: second}
        await fabric.plug(host, 1)
        for number, peer in peers.items():
            await fabric.plug(peer, number)
            others = [other for other in (1, 2, 3) if other != number]
            await underlay.add_vxlan(peer, number, others, mac=FAR, mtu=1450)
            # It says nothing by itself, lest the address be where nobody looks for it.
            await peer.check("echo 1 > /proc/sys/net/ipv6/conf/vx/disable_ipv6")
        tunnel = underlay.tunnel(1, [2, 3])
        config = underlay.one_bridge(guest=underlay.tap(guest, guest_has), tunnel=tunnel)
        async with underlay.hosted(host, config) as switch:
            await guest.ip("link set up0 mtu 1450")
            for number in (2, 3, 2):
                here, there = peers[number], peers[5 - number]
                await there.ip("address flush dev vx")
                await there.ip("link set vx down")
                await here.ip("link set vx up")
                await here.ip(f"address add {moving['IPv4']}/24 dev vx")
                await here.check(f"ping -c 1 -W 5 {guest_has['IPv4']}")
                entry = await switch.learned(FAR)
                assert underlay.underlay(number)["IPv4"] in json.dumps(entry), entry
                await there.ip("link set vx up")
                async with RawSocket(there.path, "eth0") as sock:
                    await ping(guest, here, moving["IPv4"], count=10, size=1000)
                    # What is for it goes to where it is alone.
                    mark = os.urandom(100)
                    head = Ether(src=underlay.hardware(number), dst=underlay.hardware(5 - number), type=EXPERIMENTAL)
                    await send_by(here, "eth0", bytes(head) + mark)
                    while not (got := await sock.receive()).endswith(mark):
                        assert got[12:14] != b"\x08\x00" or len(got) < 1000
            assert len({item["mac"] for item in (await switch.get("/bridges/br0/fdb"))["items"]}) >= 2


async def test_vlans_are_networks_of_their_own(host_root: Path, tmp_path: Path, require_peer: RequirePeer) -> None:
    """VLAN 10 is VNI 1010, VLAN 20 is VNI 1020: two devices of the kernel, and nothing of one in the other."""
    require_peer("tshark", package="tshark")
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("ten", host_root) as ten,
        Host("twenty", host_root) as twenty,
        Host("peer", host_root) as peer,
    ):
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        guests = {10: ten, 20: twenty}
        for vid in guests:
            await underlay.add_vxlan(peer, 2, [1], name=f"vx{vid}", vni=1000 + vid, found=addresses(vid, 2))
        taps = {f"g{vid}": underlay.tap(guest, addresses(vid, 1), tag=vid) for vid, guest in guests.items()}
        tunnel = underlay.tunnel(1, [2], vni={10: 1010, "20": "1020"})
        async with underlay.hosted(host, underlay.one_bridge(**taps, tunnel=tunnel)) as switch:
            async with record(fabric, "v1", tmp_path / "seen", f"udp port {VXLAN_PORT}"):
                for vid, guest in guests.items():
                    await guest.ip("link set up0 mtu 1450")
                    for family in FAMILIES:
                        await underlay.reaches(guest, addresses(vid, 2)[family])
                        await ping(guest, peer, addresses(vid, 2)[family], count=10, size=1000)
                        await ping(peer, guest, addresses(vid, 1)[family], count=10, size=1000)
            fields = {"vni": "vxlan.vni", "vlan": "vlan.id", "v4": "ip.src", "type": "eth.type"}
            packets = await explained(tmp_path / "seen", fields, inner=True)
            assert len(packets) >= 2 * 4 * 20
            assert {packet["vlan"] for packet in packets} == {""}
            for vid in guests:
                mine = {packet["vni"] for packet in packets if f"10.{vid}.0." in packet["v4"]}
                assert mine == {str(1000 + vid)}
            # A tag inside is of nobody, as the VNI says which VLAN it is.
            async with RawSocket(ten.path, "up0") as ears, RawSocket(twenty.path, "up0") as others:
                inner = Ether(src=FAR, dst=EVERYBODY) / Dot1Q(vlan=20) / Raw(b"tagged" + bytes(60))
                await send_by(peer, "vx10", bytes(inner))
                await send_by(peer, "vx10", numbered(1, FAR))
                await send_by(peer, "vx20", numbered(2, FAR))
                assert await numbers(ears, 1) == [1]
                assert await numbers(others, 0.2) == [2]
            assert (await switch.learned(FAR))["port"] == "tunnel"


def is_from(data: bytes, mac: str) -> bool:
    return data[6:12].hex() == mac.replace(":", "")


async def send_by(host: Namespace, device: str, data: bytes) -> None:
    async with RawSocket(host.path, device) as sock:
        await sock.send(data)


async def test_a_trunk_carries_tags(host_root: Path) -> None:
    """One VNI for all VLANs of the port: what is tagged is so inside, and only for VLANs that it carries."""
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("ten", host_root) as ten,
        Host("trunk", host_root) as trunk,
        Host("peer", host_root) as peer,
    ):
        await fabric.plug(host, 1)
        await fabric.plug(peer, 2)
        await underlay.add_vxlan(peer, 2, [1], mtu=1450)
        ports = {
            "ten": underlay.tap(ten, {}, tag=10),
            "trunk": underlay.tap(trunk, {}),
            "tunnel": underlay.tunnel(1, [2], trunks=[0, 10, 20]),
        }
        async with (
            underlay.hosted(host, underlay.one_bridge(**ports)),
            RawSocket(ten.path, "up0") as ten_wire,
            RawSocket(trunk.path, "up0") as trunk_wire,
            RawSocket(peer.path, "vx") as vx,
        ):
            near, mine = "02:00:00:00:aa:01", EXPERIMENTAL.to_bytes(2, "big")

            def made(number: int, vid: int | None, src: str) -> bytes:
                plain = numbered(number, src)
                tag = b"" if vid is None else b"\x81\x00" + (5 << 13 | vid).to_bytes(2, "big")
                return plain[:12] + tag + plain[12:]

            async def came(sock: RawSocket, last: bytes) -> list[bytes]:
                found: list[bytes] = []
                while not found or found[-1] != last:
                    if mine in (data := await sock.receive())[12:18]:
                        found.append(data)
                return found

            for vid in (10, 30, 20, None):
                await trunk_wire.send(made(vid or 0, vid, near))
            carried = [made(10, 10, near), made(20, 20, near), made(0, None, near)]
            assert await came(vx, carried[-1]) == carried
            await ten_wire.send(numbered(7, near))
            got = (await came(vx, made(7, 10, near)[:12] + b"\x81\x00\x00\x0a" + numbered(7, near)[12:]))[0]
            assert got[12:16] == b"\x81\x00\x00\x0a"
            for vid in (30, 10, 20, None):
                await vx.send(made(vid or 0, vid, FAR))
            carried = [made(10, 10, FAR), made(20, 20, FAR), made(0, None, FAR)]
            assert [data for data in await came(trunk_wire, carried[-1]) if is_from(data, FAR)] == carried
            assert [data for data in await came(ten_wire, numbered(10, FAR)) if is_from(data, FAR)] == [
                numbered(10, FAR)
            ]


# ---- switches among themselves


@dataclass(frozen=True)
class Site:
    """A switch on a host of its own, with a guest."""

    number: int
    host: Namespace
    guest: Host
    switch: HostedSwitch

    @property
    def found(self) -> dict[str, str]:
        return addresses(1, self.number)


@contextlib.asynccontextmanager
async def sites(root: Path, count: int, family: str = "IPv4", **keys: Any) -> AsyncIterator[list[Site]]:
    """So many switches, a full mesh of tunnels between them."""
    async with AsyncExitStack() as stack:
        fabric = await stack.enter_async_context(Fabric())
        found = []
        everyone = range(1, count + 1)
        for number in everyone:
            host = await stack.enter_async_context(Namespace())
            guest = await stack.enter_async_context(Host(f"guest{number}", root))
            await fabric.plug(host, number)
            others = [other for other in everyone if other != number]
            tunnel = underlay.tunnel(number, others, family, **keys)
            config = underlay.one_bridge(guest=underlay.tap(guest, addresses(1, number)), tunnel=tunnel)
            switch = await stack.enter_async_context(underlay.hosted(host, config))
            await guest.ip(f"link set up0 mtu {underlay.ROOM[family]}")
            found.append(Site(number, host, guest, switch))
        for site in found[1:]:
            await underlay.reaches(found[0].guest, site.found["IPv4"])
        yield found


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vxlan": ("IPv4", {}),
    "vxlan6": ("IPv6", {}),
    "geneve6": ("IPv6", {"type": "geneve"}),
    "gre": ("IPv4", {"type": "gre", "key": 100}),
}


@pytest.mark.parametrize(("family", "keys"), KINDS.values(), ids=KINDS)
async def test_two_switches(host_root: Path, family: str, keys: dict[str, Any]) -> None:
    async with sites(host_root, 2, family, **keys) as found:
        near, far = found
        full = underlay.ROOM[family]
        for source, target in ((near, far), (far, near)):
            for inner in FAMILIES:
                address = target.found[inner]
                await underlay.reaches(source.guest, address)
                await ping(source.guest, target.guest, address, count=10, size=56)
                sized = f"-M do {address}"
                await ping(source.guest, target.guest, sized, count=10, size=full - underlay.HEADERS[inner])
            await transfer(source.guest, target.guest, source.found["IPv4"], megabytes=MEGABYTES)
            await transfer(source.guest, target.guest, f"[{source.found['IPv6']}]", megabytes=MEGABYTES)
        for site in found:
            stats = await site.switch.stats("tunnel")
            assert stats["rx_errors"] == stats["tx_errors"] == 0
            assert stats["rx_packets"] > 0
            assert stats["tx_packets"] > 0


async def test_a_mesh_of_three_has_no_loop(host_root: Path) -> None:
    """What is flooded comes to each of the others once, and never back; known unicast to one alone."""
    async with sites(host_root, 3) as found, AsyncExitStack() as stack:
        socks = [await stack.enter_async_context(RawSocket(site.guest.path, "up0")) for site in found]
        count = 200
        # Nobody's, then everybody's, and what their answers need in between.
        for dst in ("02:00:00:00:77:77", EVERYBODY, "01:00:5e:00:00:fb"):
            for sender, sock in enumerate(socks):
                for number in range(count):
                    await sock.send(numbered(number, f"02:00:00:00:bb:{sender:02x}", dst))
                    if number % 20 == 19:
                        await asyncio.sleep(0.002)
                for receiver, got in enumerate(await asyncio.gather(*(numbers(other, 0.3) for other in socks))):
                    assert got == ([] if receiver == sender else [*range(count)]), (dst, sender, receiver)
        for number in range(count):
            await socks[0].send(numbered(number, "02:00:00:00:bb:00", "02:00:00:00:bb:01"))
        assert await numbers(socks[1], 0.3) == [*range(count)]
        assert await numbers(socks[2], 0.3) == []
        for near in found:
            for far in found:
                if near is not far:
                    await pings(near.guest, far.found["IPv4"])
        for site in found:
            assert await site.switch.dropped("tunnel", "loop") == 0


async def test_two_tunnels_of_a_mesh_are_split(host_root: Path) -> None:
    """On one bridge two tunnels of one VNI: what comes by one isn't sent by the other, whether it is flooded or not."""
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("guest", host_root) as guest,
        Namespace() as second,
        Namespace() as third,
    ):
        for number, end in ((1, host), (2, second), (3, third)):
            await fabric.plug(end, number)
        ports = {
            "guest": underlay.tap(guest, addresses(1, 1)),
            "t2": underlay.tunnel(1, [2]),
            # of another family, and so another endpoint: one VNI of an endpoint is one tunnel's
            "t3": underlay.tunnel(1, [3], "IPv6"),
        }
        async with (
            underlay.hosted(host, underlay.one_bridge(**ports)) as switch,
            Vtep(second, 2, 1) as two,
            Vtep(third, 3, 1, "IPv6") as three,
            RawSocket(guest.path, "up0") as wire,
        ):
            for number in range(5):
                await two.send(two.udp(vxlan(numbered(number, FAR))))
            assert await numbers(wire, 0.5) == [*range(5)]
            with contextlib.suppress(TimeoutError):
                while True:
                    assert b"\x88\xb5" not in bytes(await three.next(seconds=0.5))
            await wire.send(numbered(9, "02:00:00:00:aa:01"))
            for vtep in (two, three):
                while numbered(9, "02:00:00:00:aa:01") not in bytes(await vtep.next()):
                    pass
            behind = "02:00:00:00:fa:03"
            await three.send(three.udp(vxlan(numbered(10, behind))))
            assert await numbers(wire, 0.5) == [10]
            assert (await switch.learned(behind))["port"] == "t3"
            for number in range(5):
                await two.send(two.udp(vxlan(numbered(number, FAR, behind))))

            async def reached() -> bool:
                return await switch.dropped("t3", "split_horizon") == 5

            await switch.wait_until(reached, "what is for the other tunnel to be counted", 5)
            assert await numbers(wire, 0.2) == []


async def test_a_killed_switch_comes_back(host_root: Path) -> None:
    """One end is killed (-9) in the midst of a connection, twice, and started again: not a byte is lost or wrong."""
    async with sites(host_root, 2) as found:
        near, far = found
        stream = TcpStream(near.guest, far.guest, far.found["IPv4"], 7000, 4 << 20)
        # A tap that the switch has made goes with it, and its addresses: the killed one is whose guest doesn't send.
        await stream.start()
        received = await stream.wait_beyond(1 << 20, 30)
        for _ in range(2):
            await near.switch.request("GET", "/healthz")
            await far.switch.kill()
            await asyncio.sleep(0.3)
            await far.switch.start()
            await far.switch.wait_link("guest")
            await far.guest.ip("link set up0 mtu 1450")
            received = await stream.wait_beyond(received + (1 << 20), 60)


async def test_guests_under_qemu(
    qemu: str, tools: Sequence[str | Path], host_root: Path, tmp_path: Path, require_peer: RequirePeer
) -> None:
    """Linux under QEMU at both ends, with all offloads, at the MTU that fits and at one that doesn't."""
    iperf3 = require_peer("iperf3", package="iperf3")
    image = build_image(tmp_path, extra_binaries=[*tools, iperf3])
    async with Fabric() as fabric, Namespace() as first, Namespace() as second:
        await fabric.plug(first, 1)
        await fabric.plug(second, 2)
        near = underlay.one_bridge(vm1={}, tunnel=underlay.tunnel(1, [2]))
        far = underlay.one_bridge(vm2={}, tunnel=underlay.tunnel(2, [1]))
        async with underlay.hosted(first, near) as switch1, underlay.hosted(second, far) as switch2:
            vm1 = await machine_on(
                switch1, "vm1", image, qemu, address="10.1.0.1/24", address6="fd00:1::1/64", mtu=1450
            )
            vm2 = await machine_on(
                switch2, "vm2", image, qemu, address="10.1.0.2/24", address6="fd00:1::2/64", mtu=1450
            )
            async with vm1, vm2:
                await asyncio.gather(boot_all(switch1, vm1), boot_all(switch2, vm2))
                await serve_iperf3(vm2)
                for mtu in (1450, 1500):
                    for machine in (vm1, vm2):
                        await machine.check(f"ip link set eth0 mtu {mtu}")
                    for address in ("10.1.0.2", "fd00:1::2"):
                        await ping(vm1, vm2, address, count=20, size=56)
                        await vm1.check(f"iperf3 --client {address} --bytes 8M", 60)
                        await vm1.check(f"iperf3 --client {address} --bytes 8M --reverse", 60)
                    await transfer(vm1, vm2, "10.1.0.1", megabytes=MEGABYTES)
                for switch, port in ((switch1, "vm1"), (switch2, "vm2")):
                    stats = await switch.stats(port)
                    assert stats["rx_1523_to_max_packets"] > 0
                    assert stats["rx_errors"] == 0


# ---- who means harm


def hostile(count: int) -> list[bytes]:
    """What nobody should send: cut short anywhere, VNIs at random, tunnels in tunnels, forged senders."""
    inner = bytes(Ether(src=FAR, dst=EVERYBODY) / IP(dst="10.1.0.1") / UDP(sport=1, dport=2) / Raw(bytes(100)))
    found = []
    for number in range(count):
        noise = os.urandom(64)
        forged = bytes.fromhex("02") + noise[:5]
        match number % 8:
            case 0:
                found.append(vxlan(inner)[: number % 60])
            case 1:
                found.append(vxlan(inner, int.from_bytes(noise[:3], "big")))
            case 2:
                found.append(noise)
            case 3:
                nested = inner
                for _ in range(8):
                    nested = bytes(
                        Ether(src=FAR, dst=EVERYBODY)
                        / IP(src="192.0.2.2", dst="192.0.2.1")
                        / UDP(sport=50000, dport=VXLAN_PORT)
                        / Raw(vxlan(nested))
                    )
                found.append(vxlan(nested[:1400]))
            case 4:  # a sender never seen before
                found.append(vxlan(bytes.fromhex("ffffffffffff") + forged + inner[12:]))
            case 5:  # from and to everybody
                found.append(vxlan(b"\xff" * 12 + inner[12:]))
            case 6:  # unicast to nobody
                found.append(vxlan(forged + noise[5:11] + inner[12:]))
            case _:  # lengths that aren't true
                wrong = bytearray(inner)
                wrong[14], wrong[16:18] = 0x40 | noise[0] & 15, noise[1:3]
                found.append(vxlan(bytes(wrong)))
    return found


FLOOD_SECONDS = 6
ADDRESSES = 256  # that the bridge has room for: fewer than it sees
FLOOD = """
import socket, sys, time
payloads = [bytes.fromhex(line) for line in open(sys.argv[1])]
socks = []
for _ in range(16):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((sys.argv[2], int(sys.argv[3])))
    socks.append(sock)
end, sent = time.monotonic() + float(sys.argv[4]), 0
while time.monotonic() < end:
    for payload in payloads:
        try:
            socks[sent % 16].send(payload)
        except ConnectionRefusedError:
            pass
        sent += 1
print(sent)
"""


async def test_a_hostile_vtep_hurts_nobody(host_root: Path, tmp_path: Path) -> None:
    """While it floods, guests of the switch talk without a loss, and those behind another VTEP go on."""
    async with (
        Fabric() as fabric,
        Namespace() as host,
        Host("one", host_root) as one,
        Host("two", host_root) as two,
        Host("peer", host_root) as peer,
        Namespace() as enemy,
    ):
        for number, end in ((1, host), (2, peer), (3, enemy)):
            await fabric.plug(end, number)
        await underlay.add_vxlan(peer, 2, [1], found=addresses(1, 3))
        ports = {
            "one": underlay.tap(one, addresses(1, 1)),
            "two": underlay.tap(two, addresses(1, 2)),
            "tunnel": underlay.tunnel(1, [2]),
        }
        config = underlay.one_bridge(**ports)
        config["bridges"]["br0"] = {"fdb_size": ADDRESSES}
        (tmp_path / "flood.py").write_text(FLOOD)
        (tmp_path / "payloads").write_text("\n".join(payload.hex() for payload in hostile(2000)))
        async with underlay.hosted(host, config) as switch:
            # Known to all, whoever else says that he is it.
            macs = {"one": await underlay.mac_of(one, "up0"), "two": await underlay.mac_of(two, "up0")}
            for name, mac in macs.items():
                status, _ = await switch.request("PUT", f"/api/v1/bridges/br0/fdb/0/{mac}", {"port": name})
                assert status in (200, 201)
            await underlay.reaches(one, addresses(1, 2)["IPv4"])
            await underlay.reaches(one, addresses(1, 3)["IPv4"])
            words = ("python3", str(tmp_path / "flood.py"), str(tmp_path / "payloads"))
            target = (underlay.underlay(1)["IPv4"], str(VXLAN_PORT))
            before = await switch.stats("tunnel")
            flood = asyncio.create_task(enemy.command(*words, *target, str(FLOOD_SECONDS), seconds=30))
            await asyncio.sleep(0.5)
            began = asyncio.get_running_loop().time()
            await ping(one, two, addresses(1, 2)["IPv4"], count=100, size=56)
            took = asyncio.get_running_loop().time() - began
            _, far = await one.run(f"/bin/ping -q -c 50 -i 0.01 -W 2 {addresses(1, 3)['IPv4']}")
            assert not flood.done(), f"the flood was over before the pings were: {took:.1f} s"
            sent = int(await flood)
            after = await switch.stats("tunnel")
            print(f"{sent} sent; {after['rx_packets'] - before['rx_packets']} taken; {far.splitlines()[-2:]}")
            assert sent > 20000
            assert after["rx_packets"] > before["rx_packets"]
            received = int(far.split(" received")[0].split()[-1])
            assert received >= 10, far
            # It is over: everything is as before.
            await ping(one, peer, addresses(1, 3)["IPv4"], count=50, size=1000)
            await ping(one, two, addresses(1, 2)["IPv4"], count=50, size=1000)
            assert (await switch.learned(macs["one"]))["port"] == "one"
            known = (await switch.get("/bridges/br0/fdb?limit=1000"))["items"]
            assert 100 < len(known) <= ADDRESSES
