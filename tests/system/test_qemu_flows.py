# SPDX-License-Identifier: Apache-2.0
"""Flows between Linux guests: who may talk to whom, and what the switch tells of it meanwhile.

An access list is changed under a connection that goes on; what it drops is counted, recorded, traced and captured, and
the flight recorder keeps what its filter wants.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether

from pvswitch.vm import Image, Machine
from tests.conftest import RequirePeer
from tests.system import flow_guests
from tests.system.conftest import StartSwitch, ping
from tests.system.flow_guests import PATIENCE, Lab, address, captured, frames_of, tshark_complaints
from tests.system.recording import explained
from tests.system.traffic import TcpStream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SSH, HTTP = 22, 80
STREAM_RATE = 1 << 20  # bytes a second of a connection that goes on meanwhile
BLOCKED_SECONDS = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    start_switch: StartSwitch, tools_image: Image, qemu: str, require_peer: RequirePeer
) -> AsyncIterator[Lab]:
    require_peer("tshark", package="tshark")
    async with flow_guests.running_lab(start_switch, tools_image, qemu, workers=2) as lab:
        yield lab


# ---- an access list


async def serve(machine: Machine) -> None:
    """Have something to fetch by port 80."""
    await machine.check("mkdir -p /www; echo hello > /www/index.html")
    await machine.check("netstat -ltn | grep -q ':80 ' || httpd -p 80 -h /www")


async def fetches(source: Machine, target: str, seconds: float = PATIENCE) -> bool:
    """Whether a guest gets something from another one by port 80."""
    status, _ = await source.run(f"timeout {seconds:.0f} wget -q -O /dev/null http://{address(target)}/", seconds + 5)
    return status == 0


@contextlib.asynccontextmanager
async def connection(lab: Lab, port: int) -> AsyncIterator[TcpStream]:
    """A TCP connection from vm1 to vm2 that goes on for the body."""
    stream = TcpStream(lab.vm1, lab.vm2, address("vm2"), port, STREAM_RATE)
    await stream.start()
    try:
        yield stream
    finally:
        for machine in (lab.vm1, lab.vm2):
            await machine.run("killall traffic")


async def flow_drops(lab: Lab, port: str) -> int:
    """How many frames that came by a port were dropped by flows."""
    return int((await lab.stats(port))["rx_drops"].get("flow_drop", 0))


async def judge_drops(lab: Lab, flow: str, before: int) -> None:
    """What a flow has dropped of vm1's connection to port 80: the same number everywhere, and these very frames."""
    dropped = await lab.packets(flow)
    assert dropped > 0
    assert await flow_drops(lab, "vm1") - before == dropped
    records = await lab.client.drops(port="vm1", direction="rx", reason="flow_drop")
    assert len(records) >= dropped
    for record in records[:dropped]:
        seen = Ether(bytes.fromhex(record.bytes))
        assert (record.port, record.in_port, record.bridge, record.count) == ("vm1", "vm1", "br0", 1)
        assert (seen[IP].src, seen[IP].dst, seen[TCP].dport) == (address("vm1"), address("vm2"), HTTP)
        assert seen[TCP].flags == "S"
    shown = (await lab.switch.cli("show", "drops", "vm1")).splitlines()[1]
    assert "flow_drop" in shown
    assert f"{address('vm2')}:{HTTP}" in shown


def hypothetical(lab: Lab, port: int) -> str:
    """What `pvswitch trace` is asked of a connection from vm1 to vm2."""
    addresses = f"dl_src={lab.macs['vm1']},dl_dst={lab.macs['vm2']},nw_src={address('vm1')},nw_dst={address('vm2')}"
    return f"in_port=vm1,tcp,{addresses},tp_src=40000,tp_dst={port}"


async def test_one_port_is_blocked(lab: Lab) -> None:
    """One flow denies port 80 and nothing else; it comes and goes under a connection by port 22."""
    await serve(lab.vm2)
    assert await fetches(lab.vm1, "vm2")
    before = await flow_drops(lab, "vm1")
    await lab.switch.cli(
        "flow", "add", "br0", "priority=100,in_port=vm1,tcp,tp_dst=80,actions=drop", "--name", "no-web"
    )
    async with connection(lab, SSH) as stream:
        assert not await fetches(lab.vm1, "vm2", BLOCKED_SECONDS)
        count = await stream.wait_beyond(await stream.received(), PATIENCE)
        await judge_drops(lab, "no-web", before)
        told = (await lab.switch.cli("trace", "br0", hypothetical(lab, HTTP))).splitlines()
        assert told[-1].split() == ["verdict", "dropped:", "flow_drop"]
        assert any(line.startswith("flow") and "no-web matches" in line for line in told)
        told = (await lab.switch.cli("trace", "br0", hypothetical(lab, SSH))).splitlines()
        assert told[-1].split() == ["verdict", "leaves", "by", "vm2"]
        assert any(line.startswith("nearly") and "no-web" in line for line in told)
        await judge_drops(lab, "no-web", before)  # trace counts nothing
        await lab.switch.cli("flow", "del", "br0", "no-web")
        assert await fetches(lab.vm1, "vm2")
        await stream.wait_beyond(count, PATIENCE)


ALLOWED = {
    "arp": "priority=50,arp,actions=normal",
    "ssh": f"priority=40,in_port=vm1,tcp,tp_dst={SSH},actions=normal",
    "established": "priority=30,in_port=vm2,tcp,tcp_flags=+ack,actions=normal",
    "deny-vm1": "priority=1,in_port=vm1,actions=drop",
    "deny": "priority=0,actions=drop",
}


async def test_all_but_one_port_is_blocked(lab: Lab) -> None:
    """Deny by default: ARP and connections from vm1 to port 22 pass, of vm2 only what belongs to connections."""
    for machine in (lab.vm1, lab.vm2):
        await serve(machine)
        await machine.run("arp -d 10.0.0.1; arp -d 10.0.0.2")
    before = await flow_drops(lab, "vm1")
    async with lab.flows(ALLOWED), connection(lab, SSH) as stream:
        count = await stream.wait_beyond(0, PATIENCE)
        assert not await fetches(lab.vm2, "vm1", BLOCKED_SECONDS)
        assert await lab.packets("deny") > 0
        assert not await fetches(lab.vm1, "vm2", BLOCKED_SECONDS)

        async def counted() -> bool:
            return await flow_drops(lab, "vm1") - before == await lab.packets("deny-vm1") > 0

        await lab.switch.wait_until(counted, "the flow and its port to have counted the same", PATIENCE)
        status, _ = await lab.vm1.run(f"ping -c 1 -W 1 {address('vm2')}")
        assert status != 0
        assert await lab.packets("arp") > 0

        await lab.client.delete_flow("br0", "established")
        answers = await flow_drops(lab, "vm2")

        async def cut() -> bool:
            return await flow_drops(lab, "vm2") > answers

        await lab.switch.wait_until(cut, "answers to be denied", PATIENCE)
        await lab.add(
            {"established": ALLOWED["established"], "web": "priority=40,in_port=vm1,tcp,tp_dst=80,actions=normal"}
        )
        await stream.wait_beyond(count, PATIENCE)
        assert await fetches(lab.vm1, "vm2")
        assert await lab.packets("web") > 0


async def test_capture_of_two_ports(lab: Lab, tmp_path: Path) -> None:
    """What was dropped by which flow and what went where, in one file that tshark has nothing to say against."""
    file = tmp_path / "seen.pcapng"
    await serve(lab.vm2)
    flows = {"no-web": "in_port=vm1,tcp,tp_dst=80,actions=drop", "pings": "icmp,actions=normal"}
    async with lab.flows(flows), connection(lab, SSH):
        async with captured(lab.switch, file, "vm1", "vm2", expression="icmp or tcp port 80"):
            await ping(lab.vm1, lab.vm2, address("vm2"), count=20, size=56)
            assert not await fetches(lab.vm1, "vm2", BLOCKED_SECONDS)
        dropped = await lab.packets("no-web")
    assert not await tshark_complaints(file)
    frames = await frames_of(file)
    kinds = {"dropped": 0, "to": 0, "from": 0}
    for frame in frames:
        icmp = frame.data[23] == 1
        kind = next(word for word in kinds if frame.comment.startswith(word))
        kinds[kind] += 1
        assert icmp != (kind == "dropped"), frame
        if kind != "from":
            assert f"flow {'pings' if icmp else 'no-web'}" in frame.comment
    # requests and answers, each when it comes and when it leaves
    assert kinds == {"dropped": dropped, "to": 2 * 20, "from": 2 * 20}
    assert {frame.port for frame in frames} == {"vm1", "vm2"}
    times = [float(one["at"]) for one in await explained(file, {"at": "frame.time_epoch"})]
    assert times == sorted(times)
    assert abs(times[-1] - time.time()) < PATIENCE


async def test_frames_that_pass_a_filter_are_kept(lab: Lab) -> None:
    """The flight recorder keeps every frame of the guests that its filter wants, and where it went."""
    await lab.client.patch_config({"recorder": {"sample": 1, "filter": "icmp"}})
    async with lab.flows({"pings": "icmp,in_port=vm2,actions=output:plain,output:vm1"}):
        await ping(lab.vm1, lab.vm2, address("vm2"), count=10, size=56)
    frames = await lab.client.frames(bridge="br0", limit=20)
    await lab.client.patch_config({"recorder": None})
    asked = [frame for frame in frames if frame.port == "vm1"]
    answered = [frame for frame in frames if frame.port == "vm2"]
    assert [(frame.copies, frame.out_port, frame.reason) for frame in asked] == 10 * [(1, "vm2", None)]
    assert [(frame.copies, frame.reason) for frame in answered] == 10 * [(2, None)]
    for frame in frames:
        seen = Ether(bytes.fromhex(frame.bytes))
        assert {seen[IP].src, seen[IP].dst} == {address("vm1"), address("vm2")}
        assert seen.haslayer(ICMP)
