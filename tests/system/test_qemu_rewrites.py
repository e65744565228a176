# SPDX-License-Identifier: Apache-2.0
"""Linux guests whose addresses and ports flows rewrite: a NAT made of two flows, with and without offloads.

A client talks to an address that nobody has. One flow sends its frames to the server, with other addresses, ports, TTL
and DSCP; the other flow makes of the answers what the client expects. That content arrives is judged by SHA-256, what
is on the wire by tshark: the switch's own capture at both ports, and tcpdump in the guest without offloads.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import RawPcapReader

from pvswitch.vm import Image, Machine
from tests.conftest import RequirePeer
from tests.system import flow_guests
from tests.system.captures import capture, end_capture
from tests.system.conftest import StartSwitch, from_environment, transfer
from tests.system.flow_guests import PATIENCE, UNFINISHED, Lab, address, captured, frames_of, judge_sums
from tests.system.recording import GOOD, SUMS, explained
from tests.system.traffic import send_frames, udp_rounds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

MEGABYTES = from_environment("PVSWITCH_TEST_MEGABYTES", 3)
UDP_ROUNDS = from_environment("PVSWITCH_TEST_UDP_ROUNDS", 20)
MTU = 1500
VIRTUAL, VIRTUAL_MAC = "10.0.0.100", "02:00:00:00:00:64"  # what the client knows of the server
MASKED, MASKED_MAC = "10.0.0.200", "02:00:00:00:00:c8"  # what the server knows of the client
HTTP, VIRTUAL_HTTP = 80, 8080
ECHO, VIRTUAL_ECHO = 7, 7007
CLIENT_PORT, MASKED_PORT = 50000, 60000
TOS, TTL = 0x28, 64


@dataclass(frozen=True)
class Nat:
    """Who talks to whom, and which offloads the client and the server are told to leave."""

    client: str
    server: str
    off: str = ""

    def flows(self, macs: dict[str, str]) -> dict[str, str]:
        """There and back, for TCP (its source port stays) and UDP (its source port is rewritten, too)."""
        there = f"mod_dl_src:{MASKED_MAC},mod_dl_dst:{macs[self.server]},mod_nw_src:{MASKED},"
        there += f"mod_nw_dst:{address(self.server)},mod_nw_tos:{TOS},dec_ttl"
        back = f"mod_dl_src:{VIRTUAL_MAC},mod_dl_dst:{macs[self.client]},mod_nw_src:{VIRTUAL},"
        back += f"mod_nw_dst:{address(self.client)},mod_nw_tos:{TOS},dec_ttl"
        asks = f"in_port={self.client},nw_dst={VIRTUAL}"
        answers = f"in_port={self.server},nw_src={address(self.server)},nw_dst={MASKED}"
        to, to_client = f"output:{self.server}", f"output:{self.client}"
        ports = f"mod_tp_src:{MASKED_PORT},mod_tp_dst:{ECHO}"
        ports_back = f"mod_tp_src:{VIRTUAL_ECHO},mod_tp_dst:{CLIENT_PORT}"
        return {
            "tcp-there": f"tcp,{asks},tp_dst={VIRTUAL_HTTP},actions={there},mod_tp_dst:{HTTP},{to}",
            "tcp-back": f"tcp,{answers},tp_src={HTTP},actions={back},mod_tp_src:{VIRTUAL_HTTP},{to_client}",
            "udp-there": f"udp,{asks},tp_dst={VIRTUAL_ECHO},actions={there},{ports},{to}",
            "udp-back": f"udp,{answers},tp_src={ECHO},actions={back},{ports_back},{to_client}",
        }


NATS = {
    "tso": Nat("vm1", "vm2"),
    "tso_back": Nat("vm2", "vm1"),
    "csum_only": Nat("vm1", "vm2", "tso off gso off"),
    "none": Nat("vm1", "vm2", "tx off"),
    "to_plain": Nat("vm1", "plain"),
    "from_plain": Nat("plain", "vm1"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    start_switch: StartSwitch, tools_image: Image, qemu: str, require_peer: RequirePeer
) -> AsyncIterator[Lab]:
    require_peer("tshark", package="tshark")
    async with flow_guests.running_lab(start_switch, tools_image, qemu) as lab:
        yield lab


@contextlib.asynccontextmanager
async def translated(lab: Lab, nat: Nat) -> AsyncIterator[None]:
    """The NAT during the body: its flows, neighbours that nobody answers for, and without the offloads to leave."""
    client, server = lab.machine(nat.client), lab.machine(nat.server)
    await client.check(f"arp -s {VIRTUAL} {VIRTUAL_MAC}")
    await server.check(f"arp -s {MASKED} {MASKED_MAC}")
    for machine in (client, server):
        if nat.off:
            await machine.check(f"ethtool -K eth0 {nat.off}")
    try:
        async with lab.flows(nat.flows(dict(lab.macs))):
            yield
    finally:
        for machine in (client, server):
            if nat.off:
                await machine.check("ethtool -K eth0 tx on tso on gso on")
        await client.check(f"arp -d {VIRTUAL}")
        await server.check(f"arp -d {MASKED}")


async def echoes(client: Machine, server: Machine, *, rounds: int) -> None:
    """UDP there and back, from the only port that the flows know. TCP may choose: a closed one isn't free yet."""
    ports = "/proc/sys/net/ipv4/ip_local_port_range"
    await client.check(f"echo {CLIENT_PORT} {CLIENT_PORT} > {ports}")
    await udp_rounds(client, server, VIRTUAL, rounds=rounds, datagrams=16, size=1400, gso=False, port=VIRTUAL_ECHO)
    await client.check(f"echo 32768 60999 > {ports}")


async def fetch_record(machine: Machine, file: Path) -> None:
    """Bring here what tcpdump in a guest has written so far."""
    content = base64.b64decode(await machine.check("base64 /tmp/seen", seconds=100))
    await asyncio.to_thread(file.write_bytes, content)


@pytest.mark.parametrize("name", NATS)
async def test_rewritten_addresses(lab: Lab, name: str, tmp_path: Path) -> None:
    """TCP at full size and UDP through the NAT; each flow has its frames, each frame its right sums, at both ports."""
    nat = NATS[name]
    client, server = lab.machine(nat.client), lab.machine(nat.server)
    file = tmp_path / "seen.pcapng"
    large = (await lab.stats(nat.server))["rx_1523_to_max_packets"]
    async with translated(lab, nat):
        async with captured(lab.switch, file, nat.client, nat.server, expression="tcp or udp"):
            await transfer(server, client, f"{VIRTUAL}:{VIRTUAL_HTTP}", megabytes=1)
            await echoes(client, server, rounds=5)
        await transfer(server, client, f"{VIRTUAL}:{VIRTUAL_HTTP}", megabytes=MEGABYTES)
        for flow in nat.flows(dict(lab.macs)):
            assert await lab.packets(flow) > 0
    cut = (await lab.stats(nat.server))["rx_1523_to_max_packets"] - large
    assert (cut > 0) == (not nat.off and nat.server != "plain")

    frames = await frames_of(file)
    judge_sums(frames)
    # The one side's frames are rewritten on the way, and leave by the other port so.
    for port, peer, own in ((nat.client, VIRTUAL, address(nat.client)), (nat.server, MASKED, address(nat.server))):
        pairs = {(frame.data[26:30], frame.data[30:34]) for frame in frames if frame.port == port}
        assert pairs == {(octets(peer), octets(own)), (octets(own), octets(peer))}
    came = [frame for frame in frames if frame.comment.startswith("from")]
    assert len(came) >= 2 * 5 * 16 + 10
    assert {(frame.data[15], frame.data[22]) for frame in came} == {(TOS, TTL - 1)}
    assert (UNFINISHED in " ".join(frame.comment for frame in came)) == (nat.off != "tx off")


def octets(text: str) -> bytes:
    """An IPv4 address as it is in a frame."""
    return bytes(int(part) for part in text.split("."))


async def test_the_guest_without_offloads_sees_good_frames(lab: Lab, tmp_path: Path) -> None:
    """What the switch cuts and sums for it, rewritten: within the MTU, every sum right, by tcpdump in the guest."""
    file = tmp_path / "seen.pcap"
    for nat in (NATS["to_plain"], NATS["from_plain"]):
        client, server = lab.machine(nat.client), lab.machine(nat.server)
        async with translated(lab, nat):
            await capture(lab.plain, "eth0", "tcp or udp")
            await transfer(server, client, f"{VIRTUAL}:{VIRTUAL_HTTP}", megabytes=1)
            await echoes(client, server, rounds=UDP_ROUNDS)
            await end_capture(lab.plain)
        await fetch_record(lab.plain, file)
        fields = {"length": "frame.len", "src": "ip.src", **{one: f"{one}.checksum.status" for one in SUMS}}
        frames = await explained(file, fields)
        assert max(int(frame["length"]) for frame in frames) <= MTU + 14
        wrong = [frame for frame in frames if {frame[one] for one in SUMS} - {GOOD, ""}]
        assert not wrong, wrong[:5]
        peer = MASKED if nat.server == "plain" else VIRTUAL
        assert {frame["src"] for frame in frames} == {peer, address("plain")}
        assert len(frames) >= (1 << 20) / MTU + 2 * UDP_ROUNDS * 16


async def test_ports_of_ipv6(lab: Lab, tmp_path: Path) -> None:
    """Without addresses of IPv6 to rewrite it is the ports: TCP and UDP, cut for the guest without offloads, too."""
    file = tmp_path / "seen.pcapng"
    for client, server in (("vm1", "vm2"), ("plain", "vm1")):
        asks, answers = f"in_port={client}", f"in_port={server}"
        flows = {
            "tcp-there": f"tcp6,{asks},tp_dst={VIRTUAL_HTTP},actions=mod_tp_dst:{HTTP},output:{server}",
            "tcp-back": f"tcp6,{answers},tp_src={HTTP},actions=mod_tp_src:{VIRTUAL_HTTP},output:{client}",
            "udp-there": f"udp6,{asks},tp_dst={VIRTUAL_ECHO},actions=mod_tp_dst:{ECHO},output:{server}",
            "udp-back": f"udp6,{answers},tp_src={ECHO},actions=mod_tp_src:{VIRTUAL_ECHO},output:{client}",
        }
        far, near = lab.machine(server), lab.machine(client)
        async with lab.flows(flows), captured(lab.switch, file, client, server, expression="tcp or udp"):
            await transfer(far, near, f"[{address(server, 'IPv6')}]:{VIRTUAL_HTTP}", megabytes=1)
            target = address(server, "IPv6")
            await udp_rounds(near, far, target, rounds=5, datagrams=16, size=1400, gso=False, port=VIRTUAL_ECHO)
        frames = await frames_of(file)
        judge_sums(frames)
        assert len(frames) >= 2 * (2 * 5 * 16 + 10)


async def test_guests_get_what_trace_says(lab: Lab, tmp_path: Path) -> None:
    """Trace tells each copy's bytes; then a guest sends this very frame, and the other one gets exactly these."""
    payload = Raw(bytes(range(40)))
    frame = bytes(
        Ether(dst=lab.macs["vm2"], src=lab.macs["vm1"]) / IP(dst=VIRTUAL, src=address("vm1")) / UDP() / payload
    )
    edits = "mod_nw_dst:10.0.0.3,mod_nw_src:10.9.9.9,mod_tp_dst:9,mod_tp_src:4242,mod_nw_tos:32,dec_ttl"
    actions = f"set_vlan_vid:30,{edits},push_vlan:0x88a8,set_vlan_vid:200,set_vlan_pcp:6,output:plain"
    async with lab.flows({"made": f"udp,in_port=vm1,nw_dst={VIRTUAL},actions={actions}"}):
        status, told = await lab.switch.request(
            "POST", "/api/v1/bridges/br0/trace", {"in_port": "vm1", "frame": frame.hex()}
        )
        assert status == 200, told
        (copy,) = told["verdict"]["egress"]
        assert (copy["port"], copy["length"]) == ("plain", len(frame) + 8)
        await lab.plain.check("tcpdump -Z root -Q in -U -ni eth0 -w /tmp/seen vlan > /tmp/tcpdump 2>&1 &")
        await lab.plain.check("until grep -q 'listening on' /tmp/tcpdump; do sleep 0.1; done")
        await send_frames(lab.vm1, "eth0", [frame])
        got = await first_recorded(lab.plain, tmp_path / "seen")
        await lab.plain.check("killall tcpdump")
        assert await lab.packets("made") == 1
    head = bytes.fromhex(copy["head"])
    assert got[: len(head)] == head
    assert len(got) == copy["length"]
    assert (Ether(got)[Dot1AD].vlan, Ether(got)[Dot1Q].vlan) == (200, 30)
    assert bytes(Ether(got)[Raw]) == bytes(payload)


async def first_recorded(machine: Machine, file: Path) -> bytes:
    """Wait for the first frame that tcpdump in a guest has written."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await machine.check("sleep 0.1")
            await fetch_record(machine, file)
            with RawPcapReader(str(file)) as reader:
                for frame, _ in reader:
                    return bytes(frame)
