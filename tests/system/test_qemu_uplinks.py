# SPDX-License-Identifier: Apache-2.0
"""Linux guests and the world outside: taps and packet sockets as uplinks (uplinks.py draws the lab).

Frames go whole where both sides take them, and what arrives at a far side without offloads is judged by tshark. Tags
are compared byte for byte.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import RawPcapReader

from pvswitch.namespace import Namespace
from pvswitch.vm import DEFAULT_MODULES, Machine, build_image
from tests.conftest import RequirePeer, missing_peer
from tests.system import uplinks
from tests.system.conftest import StartSwitch, from_environment, ping, transfer
from tests.system.raw import RawSocket
from tests.system.recording import GOOD, explained, record
from tests.system.traffic import Host, pings, send_frames, udp_rounds
from tests.system.uplinks import FAMILIES, KINDS, Lab, Side, addresses

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 3)
UDP_ROUNDS = from_environment("PVSWITCH_TEST_UDP_ROUNDS", 20)
MTU = 1500
HEADERS = {"IPv4": 20 + 8, "IPv6": 40 + 8}  # of IP and ICMP
TCP_PAYLOAD = MTU - 20 - 32
JUMBO = 9000
EXPERIMENTAL = 0x88B5
IPV4 = b"\x08\x00"
TPIDS = (b"\x81\x00", b"\x88\xa8")
RETURN_SECONDS = 70.0  # a guest believes a neighbour for up to 45 s, then asks: a wire made anew has another address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    start_switch: StartSwitch,
    qemu: str,
    tools: Sequence[str | Path],
    require_peer: RequirePeer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Lab]:
    require_peer("ip", package="iproute2")
    if os.geteuid() != 0:
        missing_peer("uplinks need network namespaces: run the tests as root")
    folder = tmp_path_factory.mktemp("uplinks")
    image = build_image(folder, modules=(*DEFAULT_MODULES, "8021q"), extra_binaries=tools)
    async with uplinks.running_lab(start_switch, image, qemu, tools, folder) as lab:
        yield lab


def in_url(text: str) -> str:
    """The address as the host of a URL."""
    return f"[{text}]" if ":" in text else text


def directions(side: Side, family: str) -> list[tuple[Host, Host, str, str]]:
    """Source, target, and the addresses of both, either way."""
    near, far = side.near_addresses[family], side.far_addresses[family]
    return [(side.guest, side.far, near, far), (side.far, side.guest, far, near)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_ping(lab: Lab, kind: str, family: str) -> None:
    """Small ones, those that fill the MTU, and those that come in fragments."""
    for source, target, _, address in directions(lab.side(kind), family):
        for size in (56, MTU - HEADERS[family], 4000):
            await ping(source, target, address, count=20, size=size)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_large_frames_pass_whole(lab: Lab, kind: str, family: str) -> None:
    """Fewer frames than TCP would need of 1500 bytes each come from one side, and leave on the other as they are."""
    side = lab.side(kind)
    segments = (MEGABYTES << 20) / TCP_PAYLOAD
    for (source, target, address, _), (rx, tx) in zip(
        directions(side, family), ((side.port, side.uplink), (side.uplink, side.port)), strict=True
    ):
        before = await lab.stats(rx), await lab.stats(tx)
        await transfer(source, target, in_url(address), megabytes=MEGABYTES)
        after = await lab.stats(rx), await lab.stats(tx)
        assert after[0]["rx_1523_to_max_packets"] > before[0]["rx_1523_to_max_packets"]
        assert after[0]["rx_packets"] - before[0]["rx_packets"] < segments / 2
        assert after[1]["tx_packets"] - before[1]["tx_packets"] < segments / 2
        assert after[0]["rx_errors"] == after[1]["rx_errors"] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_udp(lab: Lab, kind: str, family: str) -> None:
    for source, target, _, address in directions(lab.side(kind), family):
        for size in (8, MTU - HEADERS[family], 4000):
            await udp_rounds(source, target, address, rounds=UDP_ROUNDS, datagrams=16, size=size, gso=False)


@pytest.mark.parametrize("kind", KINDS)
async def test_multicast(lab: Lab, kind: str) -> None:
    """Each side hears the group of all hosts, and its answers come back."""
    side = lab.side(kind)
    before = await lab.stats(side.port), await lab.stats(side.uplink)
    for source, device in ((side.guest, side.interface), (side.far, side.device)):
        for group in ("224.0.0.1", "ff02::1"):
            await pings(source, f"-L -I {device} {group}", 3, interval=0.2, several=True)
    after = await lab.stats(side.port), await lab.stats(side.uplink)
    for old, new in zip(before, after, strict=True):
        assert new["rx_multicast_packets"] - old["rx_multicast_packets"] >= 6


# ---- what arrives at a side without offloads


async def judged(file: Path) -> list[dict[str, str]]:
    """What tshark says of each recorded frame: its length, who sent it, and its checksums."""
    fields = {
        "number": "frame.number",
        "length": "frame.len",
        "ip": "ip.checksum.status",
        "tcp": "tcp.checksum.status",
        "udp": "udp.checksum.status",
        "v4": "ip.src",
        "v6": "ipv6.src",
    }
    return await explained(file, fields)


def bytes_of(file: Path, number: int) -> str:
    """A recorded frame, counted from 1, in hexadecimal digits."""
    with RawPcapReader(str(file)) as reader:
        return next(frame for count, (frame, _) in enumerate(reader, 1) if count == number).hex()


@pytest.mark.parametrize("kind", KINDS)
async def test_checksums_are_right_beyond_the_uplink(
    lab: Lab, kind: str, require_peer: RequirePeer, tmp_path: Path
) -> None:
    """TCP and UDP both ways with a far side without any offload: every frame is within the MTU, every sum is right."""
    require_peer("tshark", package="tshark")
    side = lab.side(kind)
    far = side.far if kind == "af_packet" else lab.beyond
    far_addresses = side.far_addresses if kind == "af_packet" else addresses(2, 2)
    wire = [(lab.wire, "wire0"), (lab.peer, "far0")] if kind == "af_packet" else []
    large = (await lab.stats(side.port))["rx_1523_to_max_packets"]
    for namespace, device in wire:
        await uplinks.offload(namespace, device, False)
    async with record(far, "far0", tmp_path / "seen"):
        for family in FAMILIES:
            near_address, far_address = side.near_addresses[family], far_addresses[family]
            await transfer(side.guest, far, in_url(near_address), megabytes=1)
            await transfer(far, side.guest, in_url(far_address), megabytes=1)
            for size in (11, 1400):
                for source, target, address in ((side.guest, far, far_address), (far, side.guest, near_address)):
                    await udp_rounds(source, target, address, rounds=5, datagrams=16, size=size, gso=False)
    for namespace, device in wire:
        await uplinks.offload(namespace, device, True)

    assert (await lab.stats(side.port))["rx_1523_to_max_packets"] > large
    frames = await judged(tmp_path / "seen")
    assert max(int(frame["length"]) for frame in frames) <= MTU + 14
    for sender in (*side.near_addresses.values(), *far_addresses.values()):
        sent = [frame for frame in frames if sender in (frame["v4"], frame["v6"])]
        assert sum(frame["tcp"] == GOOD for frame in sent) >= (1 << 20) / MTU
        assert sum(frame["udp"] == GOOD for frame in sent) >= 2 * 2 * 5 * 16
    wrong = [frame for frame in frames if {frame["ip"], frame["tcp"], frame["udp"]} - {GOOD, ""}]
    assert not wrong, [(frame, bytes_of(tmp_path / "seen", int(frame["number"]))) for frame in wrong[:5]]


# ---- tags


TAGS: dict[str, list[Packet]] = {
    "none": [],
    "vlan": [Dot1Q(vlan=10)],
    "pcp_and_dei": [Dot1Q(vlan=10, prio=5, dei=1)],
    "highest": [Dot1Q(vlan=4094, prio=7)],
    "priority": [Dot1Q(vlan=0, prio=6)],
    "priority_zero": [Dot1Q(vlan=0)],
    "q_in_q": [Dot1AD(vlan=100, prio=3), Dot1Q(vlan=10, prio=5)],
    "twice_q": [Dot1Q(vlan=20, prio=1), Dot1Q(vlan=30, prio=2)],
    "outer_only": [Dot1AD(vlan=200)],
    "three": [Dot1AD(vlan=1), Dot1Q(vlan=2), Dot1Q(vlan=3)],
}


def tagged(source: str, target: str, tags: Sequence[Packet], length: int) -> bytes:
    """A frame of `length` bytes with these tags and a payload that no other frame has."""
    frame = Ether(src=source, dst=target)
    for tag in tags:
        frame = frame / tag.copy()
    frame.lastlayer().type = EXPERIMENTAL
    return bytes(frame / Raw(os.urandom(length - len(frame))))


def frames_between(source: str, target: str) -> list[bytes]:
    """Short and full ones with all kinds of tags. Beyond the MTU a packet socket takes a tag of 802.1Q and no other."""
    frames = []
    for tags in TAGS.values():
        full = MTU + 14 + (4 if tags and type(tags[0]) is Dot1Q else 0)
        frames += [tagged(source, target, tags, length) for length in (64, 65, 300, full)]
    return frames


async def hardware_address(host: Host, interface: str) -> str:
    """An interface's MAC."""
    return (await host.check(f"cat /sys/class/net/{interface}/address")).strip()


def ours(frame: bytes) -> bool:
    """Whether it is one of the frames above, and nothing that a kernel has to say."""
    place = 12
    while frame[place : place + 2] in TPIDS:
        place += 4
    return frame[place : place + 2] == EXPERIMENTAL.to_bytes(2, "big")


@pytest.mark.parametrize("kind", KINDS)
async def test_tags_survive_on_the_way_out(lab: Lab, kind: str) -> None:
    side = lab.side(kind)
    near = await hardware_address(side.guest, side.interface)
    far = await hardware_address(side.far, side.device)
    sent = frames_between(near, far)
    async with RawSocket(side.wire.path, side.device) as sock:
        await send_frames(side.guest, side.interface, sent)
        got: list[bytes] = []
        while len(got) < len(sent):
            if ours(frame := await sock.receive()):
                got.append(frame)
    assert got == sent


@pytest.mark.parametrize("kind", KINDS)
async def test_tags_survive_on_the_way_in(lab: Lab, kind: str, tmp_path: Path) -> None:
    side = lab.side(kind)
    near = await hardware_address(side.guest, side.interface)
    far = await hardware_address(side.far, side.device)
    sent = frames_between(far, near)
    record = f"tcpdump -Z root -Q in -U -ni {side.interface} -w /tmp/seen > /tmp/tcpdump 2>&1 &"
    await side.guest.check(record)
    await side.guest.check("until grep -q 'listening on' /tmp/tcpdump; do sleep 0.1; done")
    async with RawSocket(side.wire.path, side.device) as sock:
        for frame in sent:
            await sock.send(frame)
    got: list[bytes] = []
    async with asyncio.timeout(20):
        while len(got) < len(sent):
            (tmp_path / "seen").write_bytes(base64.b64decode(await side.guest.check("base64 /tmp/seen")))
            with RawPcapReader(str(tmp_path / "seen")) as reader:
                got = [frame for frame, _ in reader if ours(frame)]
    await side.guest.check("killall tcpdump")
    # A guest's kernel shows tcpdump the tagged ones of a batch before the others.
    assert sorted(got) == sorted(sent)


VLAN_DEVICES = {
    "vlan": ("vl", bytes.fromhex("8100a00a0800"), ["link add link {0} name vl type vlan id 10"]),
    # The inner device leaves room for both tags: a packet socket sends no longer frames of 802.1ad.
    "q_in_q": (
        "qq",
        bytes.fromhex("88a800648100a00a0800"),
        [
            "link add link {0} name outer type vlan proto 802.1ad id 100",
            "link set outer up",
            "link add link outer name qq type vlan id 10",
            "link set qq mtu 1492",
        ],
    ),
}


@contextlib.asynccontextmanager
async def vlan_devices(guests: Sequence[tuple[Machine, str]], name: str) -> AsyncIterator[dict[str, str]]:
    """Give both guests a VLAN device with addresses; yield those of the first guest."""
    device, _, commands = VLAN_DEVICES[name]
    for number, (guest, interface) in enumerate(guests, 1):
        for command in commands:
            await guest.check(f"ip {command.format(interface)}")
        await guest.check(f"vconfig set_egress_map {device} 0 5")
        await guest.check(f"echo 0 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6")
        await guest.check(f"echo 0 > /proc/sys/net/ipv6/conf/{device}/accept_dad")
        for address in uplinks.with_prefix(addresses(6, number)):
            await guest.check(f"ip address add {address} dev {device}")
        await guest.check(f"ip link set {device} up")
    try:
        yield addresses(6, 1)
    finally:
        for guest, _ in guests:
            await guest.check(f"ip link del {'outer' if name == 'q_in_q' else device}")


@pytest.mark.parametrize("name", VLAN_DEVICES)
@pytest.mark.parametrize("kind", KINDS)
async def test_vlan_devices_talk_through_two_uplinks(lab: Lab, kind: str, name: str) -> None:
    """Tagged TCP at full size, over the tags of both guests, and the priority that they set."""
    near, far, port, wire = (
        ("eth2", "eth0", "vm1-tap1", "tap2") if kind == "tap" else ("eth3", "eth1", "vm1-pkt1", "pkt2")
    )
    guests = [(lab.vm1, near), (lab.vm2, far)]
    tags = VLAN_DEVICES[name][1]
    async with vlan_devices(guests, name) as first:
        # A tap hears what comes from vm2, a packet socket what comes from vm1.
        async with RawSocket(lab.middle.path, wire) as sock:
            await ping(lab.vm2, lab.vm1, first["IPv4"], count=10, size=1400)
            heads = [(await sock.receive())[12:22] for _ in range(12)]
        pings = [head for head in heads if head[: len(tags)].endswith(IPV4)]
        assert len(pings) >= 5
        assert all(head.startswith(tags) for head in pings)
        for family in FAMILIES:
            before = await lab.stats(port)
            await transfer(lab.vm1, lab.vm2, in_url(first[family]), megabytes=MEGABYTES)
            await transfer(lab.vm2, lab.vm1, in_url(addresses(6, 2)[family]), megabytes=MEGABYTES)
            after = await lab.stats(port)
            assert after["rx_1523_to_max_packets"] > before["rx_1523_to_max_packets"]
            assert after["rx_errors"] == 0


# ---- jumbo frames


@pytest.mark.parametrize("kind", KINDS)
async def test_jumbo_frames(lab: Lab, kind: str) -> None:
    side = lab.side(kind)
    devices = [(side.wire, side.device)] + ([(lab.wire, "wire0")] if kind == "af_packet" else [])
    for mtu in (JUMBO, MTU):
        for namespace, device in devices:
            await namespace.ip(f"link set {device} mtu {mtu}")
        await side.guest.check(f"ip link set {side.interface} mtu {mtu}")
        for source, target, own, address in directions(side, "IPv4"):
            await ping(source, target, f"-M do {address}", count=20, size=mtu - HEADERS["IPv4"])
            await transfer(source, target, own, megabytes=1)


# ---- what comes and goes


async def wait_pings(host: Host, file: str, beyond: int) -> int:
    """Wait until a ping in the background has had more answers; return how many."""
    async with asyncio.timeout(RETURN_SECONDS):
        while (count := int((await host.check(f"sleep 0.1; grep -c 'bytes from' {file} || true")).strip())) <= beyond:
            pass
    return count


@contextlib.asynccontextmanager
async def pinging(host: Host, address: str) -> AsyncIterator[str]:
    """Let a host ping during the body; yield the file that lists the answers."""
    file = "/tmp/pings"
    await host.check(f"/bin/ping -i 0.05 {address} > {file} 2>&1 &")
    try:
        yield file
    finally:
        await host.check("killall ping")


async def link_index(namespace: Namespace, device: str) -> str:
    """An interface's number; empty while there is none."""
    listed = await namespace.command("ip", "-o", "link")
    found = re.search(rf"^(\d+): {device}[@:]", listed, re.MULTILINE)
    return found[1] if found else ""


async def test_a_tap_that_was_deleted_is_made_again(lab: Lab) -> None:
    side = lab.side("tap")
    async with pinging(side.guest, side.far_addresses["IPv4"]) as file:
        for _ in range(3):
            count = await wait_pings(side.guest, file, 0)
            index = await link_index(lab.host, "up0")
            await lab.host.ip("link del up0")

            async def made_again(old: str = index) -> bool:
                return await link_index(lab.host, "up0") not in ("", old)

            await lab.switch.wait_until(made_again, "the tap to be there again", RETURN_SECONDS)
            await lab.switch.wait_link(side.uplink, seconds=RETURN_SECONDS)
            await wait_pings(side.guest, file, count + 5)


async def test_an_interface_that_was_deleted_is_taken_when_it_is_back(lab: Lab) -> None:
    side = lab.side("af_packet")
    async with pinging(side.guest, side.far_addresses["IPv4"]) as file:
        for _ in range(3):
            count = await wait_pings(side.guest, file, 0)
            await lab.wire.ip("link del wire0")
            await lab.switch.wait_link(side.uplink, "interface_missing")
            await uplinks.make_wire(lab.wire, lab.peer)
            await lab.switch.wait_link(side.uplink, seconds=RETURN_SECONDS)
            await wait_pings(side.guest, file, count + 5)


@pytest.mark.parametrize("resume", [False, True], ids=["file", "resume"])
async def test_killed_switch_leaves_no_tap_and_starts_again(lab: Lab, resume: bool) -> None:
    assert await link_index(lab.host, "up0")
    address = await hardware_address(lab.side("tap").far, "up0")
    await lab.switch.kill()
    async with asyncio.timeout(RETURN_SECONDS):
        while await link_index(lab.host, "up0") or await link_index(lab.middle, "tap1"):
            pass
    assert await link_index(lab.wire, "wire0")
    await lab.switch.start(resume=resume)
    for kind in KINDS:
        side = lab.side(kind)
        for port in (side.port, side.uplink):
            await lab.switch.wait_link(port, seconds=RETURN_SECONDS)
        assert kind != "tap" or await hardware_address(side.far, "up0") == address
        async with pinging(side.guest, side.far_addresses["IPv4"]) as file:
            await wait_pings(side.guest, file, 5)
