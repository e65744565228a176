# SPDX-License-Identifier: Apache-2.0
"""Taps and packet sockets against a real kernel: frames both ways, and interfaces that come, change and go."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from pvswitch.errors import ApplyError
from pvswitch.guest import Guest
from pvswitch.model import TapPort
from pvswitch.namespace import Namespace
from pvswitch.netlink import Watches
from pvswitch.uplink import open_uplink
from tests.system.conftest import running_switch
from tests.system.footprint import footprint
from tests.wire.lab import until
from tests.wire.uplinks import (
    TYPE,
    Lab,
    addresses,
    link,
    namespace,
    packet,
    receive,
    running_lab,
    tap,
    veth,
    wires,
)

HOST = "02:00:00:00:00:99"


@pytest_asyncio.fixture
async def far() -> AsyncIterator[Namespace]:
    async with namespace() as made:
        yield made


@pytest_asyncio.fixture
async def lab(tmp_path: Path, far: Namespace) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path) as lab:
        yield lab


# ---- frames


async def test_a_guest_talks_to_the_hosts_stack(lab: Lab, far: Namespace) -> None:
    await lab.apply(vm={}, host=tap(far, addresses=["192.0.2.1/24"]))
    await lab.reason("host", None)
    found = await link(far, "tap0")
    assert found is not None
    async with lab.guest("vm") as vm:
        mac, host = vm.mac.hex(":"), found["address"]
        await vm.send(
            bytes(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=mac, psrc="192.0.2.7", pdst="192.0.2.1"))
        )
        answer = Ether(await vm.recv())
        while not (ARP in answer and answer[ARP].op == 2):
            answer = Ether(await vm.recv())
        assert (answer[ARP].hwsrc, answer[ARP].psrc, answer.dst) == (host, "192.0.2.1", mac)
        ping = IP(src="192.0.2.7", dst="192.0.2.1") / ICMP(id=7, seq=1) / Raw(os.urandom(1000))
        await vm.send(bytes(Ether(src=mac, dst=host) / ping))
        while not (ICMP in answer and answer[ICMP].type == 0):
            answer = Ether(await vm.recv())
        assert bytes(answer[Raw]) == bytes(ping[Raw])
        sums = answer[IP].chksum, answer[ICMP].chksum
        del answer[IP].chksum, answer[ICMP].chksum
        again = Ether(bytes(answer))
        assert sums == (again[IP].chksum, again[ICMP].chksum)


@pytest.mark.parametrize(
    "head",
    [Ether(), Ether() / Dot1Q(vlan=100, prio=5), Ether() / Dot1Q(vlan=10) / Dot1Q(vlan=20), Ether() / Dot1AD(vlan=3)],
    ids=["plain", "tagged", "tagged_twice", "service_tag"],
)
@pytest.mark.parametrize("length", [46, 1400])
async def test_frames_through_a_packet_socket_are_intact(lab: Lab, far: Namespace, head: Ether, length: int) -> None:
    await veth(far)
    await lab.apply(vm={}, net=packet(far))
    await lab.reason("net", None)
    out, back = head.copy(), head.copy()
    back.src = out.dst = HOST
    out.lastlayer().type = back.lastlayer().type = TYPE
    async with wires(far, "v1", "v0") as (wire, own), lab.guest("vm") as vm:
        out.src = back.dst = vm.mac.hex(":")
        for _ in range(2):  # first flooded, then to an address that is known
            there, again = (bytes(part / Raw(os.urandom(length))) for part in (out, back))
            await vm.send(there)
            await wire.expect(there)
            wire.send(again)
            await receive(vm, again)
        out.src, out.dst = "02:00:00:00:00:98", "ff:ff:ff:ff:ff:ff"
        hosts = bytes(out / Raw(os.urandom(length)))
        own.send(hosts)
        await wire.expect(hosts)
        wire.send(again)
        before = await receive(vm, again)
        assert there not in before, "what leaves comes back"
        assert hosts not in before, "what the host sends by the interface is not for the switch"


async def test_counters_of_an_uplink_and_of_its_queue(lab: Lab, far: Namespace) -> None:
    await veth(far)
    await lab.apply(vm={}, net=packet(far))
    await lab.reason("net", None)
    async with wires(far, "v1") as (wire,), lab.guest("vm") as vm:
        start = lab.ports.port_stats("net")
        frame = bytes(Ether(src=vm.mac.hex(":"), dst=HOST, type=TYPE) / Raw(bytes(100)))
        for _ in range(3):
            await vm.send(frame)
            await wire.expect(frame)
        back = bytes(Ether(src=HOST, dst=vm.mac.hex(":"), type=TYPE) / Raw(bytes(200)))
        wire.send(back)
        await receive(vm, back)

        def counted() -> bool:
            now = lab.ports.port_stats("net")
            sums = {queue.direction: (queue.packets, queue.bytes) for queue in now.queues}
            return sums == {"tx": (now.tx_packets, now.tx_bytes), "rx": (now.rx_packets, now.rx_bytes)}

        await until(counted, "the queue's counters to be the port's")
        now = lab.ports.port_stats("net")
        assert now.tx_packets - start.tx_packets == 3
        assert now.rx_packets - start.rx_packets >= 1
        assert [queue.worker for queue in now.queues] == [0, 0]
        assert {queue.notifications for queue in now.queues} == {None}


async def test_a_queue_goes_to_another_worker(tmp_path: Path, far: Namespace) -> None:
    async with running_lab(tmp_path, workers=2) as lab:
        await veth(far)
        await lab.apply(vm={}, net=packet(far))
        await lab.reason("net", None)
        async with wires(far, "v1") as (wire,), lab.guest("vm") as vm:
            for turn in range(4):
                (queue,) = (queue for queue in lab.ports.queue_perf() if queue.port == "net")
                await lab.ports._move_queue("net", 0, 1 - queue.worker)
                assert {queue.worker for queue in lab.ports.port_stats("net").queues} == {1 - queue.worker}
                there = bytes(Ether(src=vm.mac.hex(":"), dst=HOST, type=TYPE) / Raw(bytes(100 + turn)))
                await vm.send(there)
                await wire.expect(there)
                back = bytes(Ether(src=HOST, dst=vm.mac.hex(":"), type=TYPE) / Raw(bytes(200 + turn)))
                wire.send(back)
                await receive(vm, back)
            with pytest.raises(OSError, match="Invalid argument"):
                await lab.ports._move_queue("net", 1, 0)
        assert not any(queue.pinned for queue in lab.ports.queue_perf())
        (queue,) = (queue for queue in lab.ports.queue_perf() if queue.port == "net")
        rx = next(queue for queue in lab.ports.port_stats("net").queues if queue.direction == "rx")
        assert rx.cycles is not None
        assert 0 < queue.cycles <= rx.cycles
        assert queue.packets > 0


# ---- interfaces come and go


async def test_a_packet_port_waits_for_its_interface_and_loses_it(lab: Lab, far: Namespace) -> None:
    await lab.apply(vm={}, net=packet(far))
    assert "v0" in await lab.reason("net", "interface_missing")
    async with lab.guest("vm") as vm:
        frame = bytes(Ether(src=vm.mac.hex(":"), dst=HOST, type=TYPE) / Raw(bytes(100)))
        for _ in range(2):
            await far.ip("link add v0 type veth peer name v1")
            assert "ip link set" in await lab.reason("net", "interface_down")
            await far.ip("link set v1 up")
            await lab.reason("net", None)
            found = await link(far, "v0")
            assert found is not None
            assert (lab.state("net").ifindex, lab.state("net").mtu) == (found["ifindex"], 1500)
            async with wires(far, "v1") as (wire,):
                await vm.send(frame)
                await wire.expect(frame)
                sender = asyncio.create_task(endlessly(vm, frame))
                await far.ip("link del v0")
                await lab.reason("net", "interface_missing")
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            state = lab.state("net")
            assert (state.ifindex, state.queues.offered, state.queues.enabled) == (None, 1, 0)


async def endlessly(guest: Guest, frame: bytes) -> None:
    while True:
        await guest.send(frame)


async def test_a_tap_that_we_made_is_made_again(lab: Lab, far: Namespace) -> None:
    await lab.apply(host=tap(far, addresses=["192.0.2.1/24"], mtu=1400))
    await lab.reason("host", None)
    before = await link(far, "tap0")
    await far.ip("link del tap0")
    await lab.reason("host", "interface_missing")
    await lab.ticked("host", None)
    after = await link(far, "tap0")
    assert before is not None
    assert after is not None
    assert after["ifindex"] != before["ifindex"]
    assert after["address"] == before["address"], "a neighbour would have to learn it anew"
    assert after["mtu"] == 1400
    assert await addresses(far, "tap0") == {"192.0.2.1/24"}
    await far.ip("link set tap0 name other")
    await lab.reason("host", "interface_missing")
    await lab.ticked("host", None)
    assert await link(far, "other") is None, "it went with its descriptors"


async def test_a_tap_that_was_there_is_joined_and_left_as_it_was(lab: Lab, far: Namespace) -> None:
    await far.ip("tuntap add tap0 mode tap")
    await far.ip("address add 192.0.2.1/24 dev tap0")
    before = await link(far, "tap0")
    await lab.apply(host=tap(far, addresses=["192.0.2.1/24", "2001:db8::1/64"], mtu=1400))
    await lab.reason("host", None)
    after = await link(far, "tap0")
    assert before is not None
    assert after is not None
    assert after["address"] == before["address"], "the address is its owner's"
    assert await addresses(far, "tap0") == {"192.0.2.1/24", "2001:db8::1/64"}
    assert lab.state("host").mtu == 1500, "the mtu is its owner's"
    await lab.apply()
    assert await addresses(far, "tap0") == {"192.0.2.1/24"}
    await far.ip("address flush dev tap0")
    await lab.apply(host=tap(far, addresses=["192.0.2.9/24"]))
    await far.ip("address add 192.0.2.1/24 dev tap0")
    await lab.apply(host=tap(far))
    assert await addresses(far, "tap0") == {"192.0.2.1/24"}, "one that came behind ours"
    await lab.reason("host", None)
    await far.ip("link del tap0")
    await lab.reason("host", "interface_missing")
    await lab.ticked("host", "interface_missing")
    await lab.ports._ports["host"].renew()  # waits for what the tick has begun
    assert await link(far, "tap0") is None, "it is not ours to make"
    await far.ip("tuntap add tap0 mode tap multi_queue")
    await lab.ticked("host", None)  # ip(8) may still hold it when we first look


async def test_a_joined_tap_is_left_as_it_was_whatever_was_changed_meanwhile(lab: Lab, far: Namespace) -> None:
    await far.ip("tuntap add tap0 mode tap multi_queue")
    await lab.apply(host=tap(far, queues=2, addresses=["192.0.2.1/24"]))
    await lab.apply(host=tap(far, queues=3, addresses=["192.0.2.1/24"]))
    await lab.reason("host", None)
    assert await addresses(far, "tap0") == {"192.0.2.1/24"}
    await lab.apply()
    assert await addresses(far, "tap0") == set()
    reader = "import fcntl, struct, os; tun = os.open('/dev/net/tun', os.O_RDWR)\n"  # one that knows no offloads
    reader += "fcntl.ioctl(tun, 0x400454CA, struct.pack('16sH22x', b'tap0', 0x1102))\n"
    reader += "os.execvp('ethtool', ['ethtool', '-k', 'tap0'])\n"
    features = await far.command(sys.executable, "-c", reader)
    assert "tcp-segmentation-offload: off" in features
    assert "tx-checksum-ip-generic: off" in features


async def test_a_link_follows_its_interface(lab: Lab, far: Namespace) -> None:
    await veth(far)
    await lab.apply(net=packet(far), host=tap(far))
    for port, ifname in (("net", "v0"), ("host", "tap0")):
        await lab.reason(port, None)
        await far.ip(f"link set {ifname} down")
        await lab.reason(port, "interface_down")
        lab.tick()
        await far.ip(f"link set {ifname} up")
        await lab.reason(port, None)
    await far.ip("link set v1 down")
    await lab.reason("net", "interface_down")
    await far.ip("link set v0 mtu 1300")
    await until(lambda: lab.state("net").mtu == 1300, "the new mtu")
    await lab.apply(net=packet(far, enabled=False))
    await lab.reason("net", "admin_down")


async def test_another_namespace_of_the_same_name(lab: Lab, far: Namespace, tmp_path: Path) -> None:
    name = tmp_path / "ns"
    await lab.apply(host=packet(far, netns=str(name)))
    assert "there is no network namespace" in await lab.reason("host", "interface_missing")
    async with namespace() as other:
        await other.ip("link add v0 type veth peer name v1")
        name.symlink_to(other.path)
        await lab.ticked("host", "interface_down")
    await lab.ticked("host", "interface_missing")
    name.unlink()
    name.symlink_to(far.path)
    await lab.ticked("host", "interface_missing")
    await veth(far)
    await lab.reason("host", None)


async def test_links_are_read_anew_when_messages_were_lost(far: Namespace) -> None:
    watches = Watches()
    watch = await watches.acquire(far.path)
    try:
        told: list[str] = []
        watch.listen("d1", lambda: told.append("d1"))
        assert watch._sock is not None
        watch._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the kernel's least: a message or two
        churn(far, "link add d0 type veth peer name d1", *["link set d0 up", "link set d0 down"] * 5)
        await until(lambda: watch.by_name("d1") is not None, "the table")
        assert told
        assert watch._reading is not None, "no message was lost"
        await far.ip("link del d0")
        await until(lambda: watch.by_name("d1") is None, "a message to the new socket")
    finally:
        await watches.release(watch)


def churn(far: Namespace, *lines: str) -> None:
    """Run ip(8) while the loop stands still, so that nobody reads what the kernel tells."""
    for line in lines:
        subprocess.run([*far.launcher, "ip", *line.split()], check=True, timeout=20)


# ---- changes


async def test_changes_of_a_tap_are_live_but_for_its_queues(lab: Lab, far: Namespace) -> None:
    await lab.apply(host=tap(far, addresses=["192.0.2.1/24", "192.0.2.2/24"]))
    await lab.reason("host", None)
    index = lab.state("host").ifindex
    await lab.apply(host=tap(far, addresses=["192.0.2.2/24", "2001:db8::1/64"], mtu=9000))
    assert await addresses(far, "tap0") == {"192.0.2.2/24", "2001:db8::1/64"}
    await until(lambda: lab.state("host").mtu == 9000, "the mtu")
    await lab.apply(host=tap(far))
    assert await addresses(far, "tap0") == set()
    await until(lambda: lab.state("host").mtu == 1500, "the default")
    assert lab.state("host").ifindex == index
    await lab.apply(host=tap(far, queues=3, addresses=["192.0.2.1/24"]))
    await lab.reason("host", None)
    assert lab.state("host").queues.enabled == 3
    assert await addresses(far, "tap0") == {"192.0.2.1/24"}
    assert [queue.queue for queue in lab.ports.port_stats("host").queues] == [0, 0, 1, 1, 2, 2]
    found = await link(far, "tap0")
    assert found is not None
    assert found["linkinfo"]["info_data"]["numqueues"] == 3


async def test_promisc_is_live(lab: Lab, far: Namespace) -> None:
    await veth(far)
    for promisc in (True, False, True):
        await lab.apply(net=packet(far, promisc=promisc))
        await lab.reason("net", None)
        found = await link(far, "v0")
        assert found is not None
        assert found["promiscuity"] == promisc
    await lab.apply()
    found = await link(far, "v0")
    assert found is not None
    assert found["promiscuity"] == 0


async def test_a_change_that_the_kernel_refuses_is_said_and_tried_again(lab: Lab, far: Namespace) -> None:
    await lab.apply(host=tap(far))
    await lab.reason("host", None)
    await far.command("sysctl", "-q", "net.ipv6.conf.tap0.disable_ipv6=1")
    await lab.apply(host=tap(far, addresses=["192.0.2.1/24", "2001:db8::1/64"]))
    assert "IPv6 is switched off on tap0" in (lab.state("host").message or "")
    assert lab.state("host").link == "up"
    assert await addresses(far, "tap0") == set(), "all of a change, or nothing"
    await far.command("sysctl", "-q", "net.ipv6.conf.tap0.disable_ipv6=0")
    lab.tick()
    await until(lambda: lab.state("host").message is None, "the next try")
    assert await addresses(far, "tap0") == {"192.0.2.1/24", "2001:db8::1/64"}


async def test_a_port_changes_its_type(lab: Lab, far: Namespace) -> None:
    await veth(far)
    await lab.apply(x=packet(far))
    await lab.reason("x", None)
    await lab.apply(x=tap(far))
    await lab.reason("x", None)
    await lab.apply(x={})
    await lab.reason("x", "waiting_for_frontend")
    assert await link(far, "tap0") is None
    assert await link(far, "v0") is not None


# ---- refusals


@pytest.mark.parametrize(
    ("setup", "settings", "sentence"),
    [
        (["link add x type bridge"], {"ifname": "x"}, "exists and is no tap"),
        (["tuntap add x mode tun"], {"ifname": "x"}, "exists and is no tap"),
        (["tuntap add x mode tap"], {"ifname": "x", "queues": 2}, "with a single queue"),
        (
            ["link add y type bridge", "link property add dev y altname other-name"],
            {"ifname": "other-name"},
            "is another name of interface y: set `ifname: y`",
        ),
        ([], {"ifname": "x", "netns": "/proc/self/ns/uts"}, "is no network namespace"),
        ([], {"ifname": "x", "netns": "pvswitch-no-such"}, "there is no network namespace pvswitch-no-such"),
    ],
)
async def test_a_tap_that_cannot_be_had(
    lab: Lab, far: Namespace, setup: list[str], settings: dict[str, object], sentence: str
) -> None:
    for line in setup:
        await far.ip(line)
    before = await far.command("ip", "-br", "link")
    await lab.apply(first=tap(far))
    with pytest.raises(ApplyError) as caught:
        await lab.apply(first=tap(far), made=tap(far, ifname="made"), bad={**tap(far), **settings})
    assert sentence in str(caught.value)
    assert caught.value.pointer == "#/ports/bad"
    assert set(lab.config.ports) == {"first"}
    await lab.reason("first", None)
    await lab.apply()
    assert await far.command("ip", "-br", "link") == before


async def test_a_packet_port_cannot_follow_an_altname(lab: Lab, far: Namespace) -> None:
    await veth(far)
    await far.ip("link property add dev v0 altname other-name")
    with pytest.raises(ApplyError, match="is another name of interface v0"):
        await lab.apply(bad=packet(far, ifname="other-name"))


@pytest.mark.parametrize("kind", [tap, packet])
async def test_a_namespace_that_is_a_fifo_holds_nobody_up(
    lab: Lab, far: Namespace, tmp_path: Path, kind: Callable[..., dict[str, object]]
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ApplyError, match="is no network namespace"):
        await asyncio.wait_for(lab.apply(bad=kind(far, netns=str(fifo))), 20)


@pytest.mark.parametrize("queues", [1, 2])
async def test_a_tap_that_another_has_open(lab: Lab, far: Namespace, queues: int) -> None:
    settings = TapPort.model_validate(tap(far, queues=queues))
    other = await open_uplink(settings)
    try:
        with pytest.raises(ApplyError, match="in use by another program or port"):
            await lab.apply(bad=tap(far, queues=queues))
    finally:
        other.close()
    await lab.apply(good=tap(far, queues=queues))
    await lab.reason("good", None)


# ---- nothing is left


async def test_removed_ports_leave_nothing(lab: Lab, far: Namespace) -> None:
    await veth(far)
    seen = []
    for _ in range(3):
        await lab.apply(net=packet(far), one=tap(far), two=tap(far, ifname="tap1", queues=4))
        for port in lab.config.ports:
            await lab.reason(port, None)
        await lab.apply()
        await until(lambda: not [thread for thread in threading.enumerate() if "netns" in thread.name], "no threads")
        seen.append((footprint(os.getpid()).fds, await far.command("ip", "-br", "link")))
    assert seen[0] == seen[1] == seen[2]
    assert "tap" not in seen[0][1]


async def test_a_switch_that_is_killed_leaves_no_tap(far: Namespace) -> None:
    await veth(far)
    ports = {"host": tap(far, addresses=["192.0.2.1/24"]), "net": packet(far)}
    async with running_switch({"ports": ports}) as switch:
        for _ in range(2):
            for port in ports:
                await switch.wait_link(port)
            assert await addresses(far, "tap0") == {"192.0.2.1/24"}
            await switch.kill()
            await until_gone(far, "tap0")
            await switch.start()
        await switch.wait_link("host")
    assert await link(far, "tap0") is None
    assert await link(far, "v0") is not None


async def until_gone(far: Namespace, ifname: str) -> None:
    async def gone() -> bool:
        return await link(far, ifname) is None

    await until(gone, f"{ifname} to go")
