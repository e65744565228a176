# SPDX-License-Identifier: Apache-2.0
"""Flows between Linux guests under load: how fast a meter lets them talk, and rule sets that are replaced meanwhile.

A meter is judged by the clock, with its own counters and with those of who receives. A rule set is replaced again and
again while datagrams go between guests and frames at full rate between two drivers: nothing that both sets allow is
lost, and nothing that both forbid gets through.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from scapy.layers.l2 import Ether

from pvswitch.generator import Load
from pvswitch.guest import Guest
from pvswitch.vm import Machine, build_image
from tests.conftest import RequirePeer
from tests.system import flow_guests
from tests.system.conftest import StartSwitch, from_environment, icmp_counters
from tests.system.flow_guests import PATIENCE, Lab, address
from tests.system.traffic import serve_iperf3, udp_rounds

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

METER_KBPS = 10_000
METER_SECONDS = from_environment("PVSWITCH_TEST_METER_SECONDS", 20)
RAMP_SECONDS = 3
TURNS = 3
# TCP can't be told to slow down: it learns from losses, some of them by a time-out of 200 ms or twice that, in which it
# sends nothing. A bucket of 0.4 seconds' worth keeps what would have passed then; it may let that much pass beyond the
# rate once, 2 % of what passes in 20 seconds. UDP doesn't mind losses: 0.1 seconds' worth will do, the default.
METERS = {
    "tcp": {"rate_kbps": METER_KBPS, "burst_bytes": METER_KBPS * 1000 // 8 * 2 // 5},
    "udp": {"rate_kbps": METER_KBPS},
}

REPLACEMENTS = {1_000: from_environment("PVSWITCH_TEST_REPLACEMENTS", 20), 10_000: 4}
WINDOW = 64  # frames on their way at once: less than a ring has buffers, so that none finds it full
FRAMES = 20_000  # of one round of load
ETH_P_IPV6 = 0x86DD


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(
    start_switch: StartSwitch,
    qemu: str,
    tools: Sequence[str | Path],
    require_peer: RequirePeer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Lab]:
    iperf3 = require_peer("iperf3", package="iperf3")
    image = build_image(tmp_path_factory.mktemp("flows"), extra_binaries=[*tools, iperf3])
    async with flow_guests.running_lab(start_switch, image, qemu, ("gen1", "gen2"), workers=2) as lab:
        yield lab


# ---- a meter


class Look(NamedTuple):
    """At a moment between two: how many bytes have passed so far."""

    asked: float
    answered: float
    passed: int

    def rates(self, later: Look) -> tuple[float, float]:
        """The lowest and the highest rate that it may have been from then to a later look, in kbit/s."""
        kbit = (later.passed - self.passed) * 8 / 1000
        return kbit / (later.answered - self.asked), kbit / (later.asked - self.answered)


async def look(passed: Awaitable[int]) -> Look:
    """Ask how many bytes have passed."""
    asked = time.monotonic()
    number = await passed
    return Look(asked, time.monotonic(), number)


async def metered(lab: Lab, meter: str) -> int:
    """How many bytes a meter has let pass by its own counters."""
    found = (await lab.switch.get(f"/bridges/br0/meters/{meter}"))["stats"]
    return int(found["bytes"] - found["dropped_bytes"])


async def received(machine: Machine) -> int:
    """How many bytes a guest's interface has received."""
    return int(await machine.check("cat /sys/class/net/eth0/statistics/rx_bytes"))


async def looks(lab: Lab) -> dict[str, Look]:
    """TCP goes to vm2, UDP to the guest without offloads, and nothing else to either."""
    return {
        "meter tcp": await look(metered(lab, "tcp")),
        "meter udp": await look(metered(lab, "udp")),
        "receiver tcp": await look(received(lab.vm2)),
        "receiver udp": await look(received(lab.plain)),
    }


async def test_meters_keep_their_rate(lab: Lab) -> None:
    """TCP that finds the rate by itself, and UDP at twice the rate: 10 Mbit/s of each, by all four counts.

    More must never pass. Less does while a machine that is busy keeps a sender from sending: in one turn of three all
    of it must.
    """
    for name, meter in METERS.items():
        await lab.client.put_meter("br0", name, meter)
    for server in (lab.vm2, lab.plain):
        await serve_iperf3(server)
    flows = {
        "tcp": "in_port=vm1,tcp,tp_dst=5201,actions=meter:tcp,output:vm2",
        "udp": "in_port=vm2,udp,tp_dst=5201,actions=meter:udp,output:plain",
    }
    seconds = TURNS * METER_SECONDS + 4 * RAMP_SECONDS
    async with lab.flows(flows):
        udp = f"iperf3 --client {address('plain')} --udp --bitrate {2 * METER_KBPS}K --length 1400 --time {seconds}"
        await lab.vm1.check(f"iperf3 --client {address('vm2')} --time {seconds} > /tmp/iperf3 2>&1 &")
        await lab.vm2.check(f"{udp} > /tmp/iperf3 2>&1 &")

        async def limited() -> bool:
            found = [await lab.switch.get(f"/bridges/br0/meters/{name}") for name in METERS]
            return all(one["stats"]["dropped_bytes"] > 0 for one in found)

        await lab.switch.wait_until(limited, "both meters to be full", PATIENCE)
        await asyncio.sleep(RAMP_SECONDS)
        for turn in range(TURNS):
            before = await looks(lab)
            await asyncio.sleep(METER_SECONDS)
            after = await looks(lab)
            rates = {name: old.rates(after[name]) for name, old in before.items()}
            assert all(lowest <= 1.05 * METER_KBPS for lowest, _ in rates.values()), rates
            if all(highest >= 0.95 * METER_KBPS for _, highest in rates.values()):
                break
            assert turn + 1 < TURNS, rates
        for machine in (lab.vm1, lab.vm2):
            await machine.check("killall iperf3 || cat /tmp/iperf3")
    for port in ("vm1", "vm2"):
        assert (await lab.stats(port))["rx_drops"]["meter"] > 0


# ---- a rule set that is replaced


def noise(letter: str, count: int) -> dict[str, str]:
    """Flows of many shapes that match nothing here; those of two sets have no match in common."""
    net = {"a": 16, "b": 17}[letter]
    shapes = (
        "tcp,nw_dst=172.{net}.{hi}.{lo},tp_dst=80",
        "ip,nw_src=172.{net}.{hi}.{lo}",
        "udp,in_port=vm1,nw_dst=172.{net}.{hi}.{lo}",
        "dl_src=02:ff:{net}:00:{hi:02x}:{lo:02x}",
        "ip,nw_dst=172.{net}.{hi}.{lo},nw_tos=32",
        "arp,arp_tpa=172.{net}.{hi}.{lo}",
        "dl_vlan=7,dl_dst=02:ff:{net}:00:{hi:02x}:{lo:02x}",
    )
    flows = {}
    for number in range(count):
        match = shapes[number % len(shapes)].format(net=net, hi=number >> 8, lo=number & 255)
        flows[f"{letter}{number}"] = f"priority={300 + number % 5},{match},actions=drop"
    return flows


def rule_set(letter: str, count: int, gen2: bytes) -> dict[str, str]:
    """Deny by default. Both sets allow ARP, the guests' UDP and the load, each in its own words."""
    allowed = {
        "a": {
            "a-load": "priority=200,in_port=gen1,actions=output:gen2",
            "a-udp": "priority=150,udp,nw_src=10.0.0.0/24,actions=normal",
            "a-arp": "priority=140,arp,actions=normal",
            "a-deny": "priority=1,actions=drop",
        },
        "b": {
            "b-load": f"priority=90,dl_dst={gen2.hex(':')},actions=normal",
            "b-udp": "priority=400,in_port=vm1,udp,actions=output:vm2",
            "b-udp-back": "priority=20,udp,tp_src=7,actions=normal",
            "b-arp": "priority=60,arp,actions=normal",
            "b-deny": "priority=0,actions=drop",
        },
    }[letter]
    return {**noise(letter, count - len(allowed)), **allowed}


async def replace_again_and_again(lab: Lab, gen2: bytes, present: Sequence[str], done: asyncio.Event) -> None:
    """Change from set a, which is present, to b and back, by one batch each time."""
    old = [*present]
    for count, times in REPLACEMENTS.items():
        sets = {letter: rule_set(letter, count, gen2) for letter in "ba"}
        for number in range(times):
            new = sets["ba"[number % 2]]
            changes = await lab.client.change_flows("br0", {"delete": old, "add": new})
            assert (changes.added, changes.removed) == (count, len(old))
            old = [*new]
    done.set()


async def load(gen1: Guest, gen2: Guest, done: asyncio.Event) -> int:
    """Send as fast as gen2 takes frames, until all is done; none may be lost. Returns how many."""
    sent = 0
    while not done.is_set():
        # Late isn't lost, however slow the machine is.
        found = await gen1.generate(
            [gen2], Load(dst=gen2.mac, src=gen1.mac, frames=FRAMES, window=WINDOW, stall=PATIENCE)
        )
        assert (found.sent, found.received) == (FRAMES, FRAMES), found
        assert (found.lost, found.reordered, found.corrupted) == (0, 0, 0), found
        sent += found.sent
    return sent


async def datagrams(lab: Lab, done: asyncio.Event) -> int:
    """Datagrams from vm1 to vm2 and back, until all is done; none may be lost. Returns how many rounds of 16."""
    rounds = 0
    while not done.is_set():
        await udp_rounds(lab.vm1, lab.vm2, address("vm2"), rounds=10, datagrams=16, size=300, gso=False)
        rounds += 10
    return rounds


async def test_nothing_is_lost_while_rules_are_replaced(lab: Lab) -> None:
    """Sets of 1,000 and of 10,000 flows that have nothing in common but what they mean."""
    async with (
        Guest(lab.switch.port_socket("gen1")) as gen1,
        Guest(lab.switch.port_socket("gen2")) as gen2,
    ):
        await lab.client.put_fdb("br0", gen2.mac.hex(":"), "gen2")
        present = rule_set("a", 1000, gen2.mac)
        async with lab.flows(present):
            before = {name: await lab.stats(name) for name in ("gen1", "gen2", "vm1", "vm2")}
            heard = (await icmp_counters(lab.plain))["InEchos"]
            await lab.vm1.check(f"ping {address('plain')} > /dev/null 2>&1 &")  # which both sets forbid
            done = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(replace_again_and_again(lab, gen2.mac, [*present], done))
                frames = group.create_task(load(gen1, gen2, done))
                rounds = group.create_task(datagrams(lab, done))
            await lab.vm1.check("killall ping")
            after = {name: await lab.stats(name) for name in before}
            assert (await icmp_counters(lab.plain))["InEchos"] == heard
    gained = {
        name: {key: after[name][key] - old[key] for key in ("rx_packets", "tx_packets", "rx_dropped", "tx_dropped")}
        for name, old in before.items()
    }
    assert frames.result() > 0
    assert gained["gen1"]["rx_packets"] == frames.result()
    assert gained["gen2"]["tx_packets"] >= frames.result()  # and what the guests ask by ARP
    assert gained["vm2"]["tx_packets"] >= 16 * rounds.result() > 0
    assert gained["gen1"]["rx_dropped"] == gained["gen2"]["tx_dropped"] == gained["vm2"]["tx_dropped"] == 0
    # What a guest's IPv6 has to say by itself is forbidden, too.
    dropped = await lab.client.drops(port="vm2", direction="rx", reason="flow_drop")
    assert not [record.summary for record in dropped if Ether(bytes.fromhex(record.bytes)).type != ETH_P_IPV6]
    assert gained["vm1"]["rx_dropped"] > 0  # pings
