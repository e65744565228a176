# SPDX-License-Identifier: Apache-2.0
"""Trace agrees with the traffic: random frames on random small configurations, told first and sent then.

What trace says leaves is what guests get, byte for byte; what it says is dropped is what the counters say; and it
changes nothing. PVSWITCH_TEST_TRACES is the number of frames (10,000 take some minutes).
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from pvswitch.trace.frame import build
from pvswitch.trace.head import parse
from tests.system.conftest import from_environment, running_switch
from tests.wire.lab import PATIENCE, reach, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")

FRAMES = from_environment("PVSWITCH_TEST_TRACES", 150)
EACH = 15
"""Frames on one configuration."""
PORTS = ("a", "b", "c", "d")
MACS = {name: f"02:00:00:00:00:{i:02x}" for i, name in enumerate(PORTS, 1)}
NOBODY, BROADCAST = "02:00:00:00:ff:ff", "ff:ff:ff:ff:ff:ff"
DESTINATIONS = [*MACS.values(), NOBODY, BROADCAST, "01:00:5e:00:00:01", "01:80:c2:00:00:00", "01:80:c2:00:00:01"]
VIDS = (5, 7)
NETWORKS = ("10.0.0.1", "10.0.0.2", "192.0.2.9")
Tapped = dict[str, Counter[bytes]]


# ---- what is drawn


def port_keys(draw: random.Random) -> dict[str, Any]:
    """A port's keys: VLANs, and now and then what refuses."""
    keys: dict[str, Any] = draw.choice(
        [
            {},
            {"tag": draw.choice(VIDS)},
            {"trunks": draw.sample([0, *VIDS], 2)},
            {"vlan_mode": "native-tagged", "tag": draw.choice(VIDS)},
            {"vlan_mode": "native-untagged", "tag": draw.choice(VIDS)},
            {"vlan_mode": "dot1q-tunnel", "tag": draw.choice(VIDS)},
        ]
    )
    keys["protected"] = draw.random() < 0.2
    keys["enabled"] = draw.random() < 0.95
    if draw.random() < 0.2:
        keys["mtu"] = draw.choice([100, 500])
    if draw.random() < 0.15:
        keys["port_security"] = {"allowed_macs": draw.sample([*MACS.values()], 2)}
    elif draw.random() < 0.1:
        keys["port_security"] = {"allowed_ips": [draw.choice(NETWORKS)]}
    return keys


def mirror_keys(draw: random.Random) -> dict[str, Any]:
    """A mirror of some ports or VLANs, to a port or into a VLAN."""
    output: dict[str, Any] = draw.choice([{"output_port": "d"}, {"output_vlan": 9}])
    keys: dict[str, Any] = {**output, "drops": draw.random() < 0.5}
    keys["select_src_port"] = draw.sample(PORTS[:3], draw.randrange(3))
    keys["select_dst_port"] = draw.sample(PORTS[:3], draw.randrange(3))
    keys["select_vlan"] = draw.choice([[], [0], [5], [5, 7]])
    if draw.random() < 0.3:
        keys["snaplen"] = draw.choice([14, 60, 128, 129])
    return keys


def bridge_keys(draw: random.Random) -> dict[str, Any]:
    """A bridge with static addresses and mirrors."""
    statics = {(draw.choice([0, *VIDS]), draw.choice([*MACS])) for _ in range(draw.randrange(5))}
    mirrors = {f"m{i}": mirror_keys(draw) for i in range(draw.choice([0, 0, 1, 2]))}
    return {
        "forward_bpdu": draw.random() < 0.8,
        "flood_unknown": draw.random() < 0.8,
        "fdb": [{"vid": vid, "mac": MACS[name], "port": name} for vid, name in sorted(statics)],
        "mirrors": mirrors,
        "flows": flow_keys(draw, [*mirrors]),
    }


def match_keys(draw: random.Random) -> dict[str, Any]:
    """What a flow matches: a few fields that the frames have."""
    match: dict[str, Any] = draw.choice(
        [
            {},
            {},
            {"dl_type": "0x0800"},
            {"dl_type": "0x0800", "nw_proto": 6, "tp_dst": draw.choice(["80", "22-79", "0x40/0xffc0"])},
            {"dl_type": "0x0800", "nw_src": draw.choice(["10.0.0.0/24", "192.0.2.9"])},
            {"dl_type": "0x86dd", "nw_proto": draw.choice([6, 17, 58])},
            {"dl_type": "0x0806", "arp_spa": draw.choice(NETWORKS)},
        ]
    )
    for key, values in (
        ("in_port", PORTS),
        ("dl_src", [*MACS.values(), "00:00:00:00:00:01/00:00:00:00:00:01"]),
        ("dl_dst", [*DESTINATIONS, "01:00:00:00:00:00/01:00:00:00:00:00"]),
        ("vlan_tci", ["0x1000/0x1000", "0x0000", "0x1005/0x1fff"]),
    ):
        if draw.random() < 0.3:
            match[key] = draw.choice(values)
    return match


def some_actions(draw: random.Random, mirrors: list[str]) -> list[str]:
    """What a flow does: some edits, and ways out between them."""
    if draw.random() < 0.15:
        return ["drop"]
    edits = [
        *("push_vlan:0x8100", "push_vlan:0x88a8", "pop_vlan", "set_vlan_vid:5", "set_vlan_vid:7", "set_vlan_pcp:3"),
        *(f"mod_dl_src:{MACS['a']}", f"mod_dl_dst:{MACS['b']}", f"mod_dl_dst:{NOBODY}", "mod_nw_src:10.9.9.9"),
        *("mod_nw_dst:192.0.2.77", "mod_nw_tos:184", "mod_tp_src:1234", "mod_tp_dst:8080", "dec_ttl"),
    ]
    ways = [
        "normal",
        "flood",
        "all",
        "in_port",
        *(f"output:{name}" for name in PORTS),
        *(f"mirror:{m}" for m in mirrors),
    ]
    return [draw.choice(draw.choice([edits, ways])) for _ in range(draw.randrange(1, 6))]


def flow_keys(draw: random.Random, mirrors: list[str]) -> dict[str, Any]:
    """A table of a few flows, or none."""
    return {
        f"f{i}": {"priority": 100 - i, "match": match_keys(draw), "actions": some_actions(draw, mirrors)}
        for i in range(draw.choice([0, 1, 2, 4, 8]))
    }


def some_frame(draw: random.Random, source: str) -> bytes:
    """A frame of a port's guest: any tags, any protocol, of any size around the edges of the head and the MTUs."""
    fields: dict[str, Any] = draw.choice(
        [
            {"dl_type": 0x88B5},
            {
                "nw_proto": draw.choice([1, 6, 17, 132]),
                "nw_src": draw.choice(NETWORKS),
                "tp_dst": draw.choice([22, 80]),
            },
            {"dl_type": 0x86DD, "nw_proto": draw.choice([6, 17, 58])},
            {"dl_type": 0x0806, "arp_spa": draw.choice(NETWORKS)},
            {
                "nw_frag": draw.choice(["first", "later"]),
                "nw_src": draw.choice(NETWORKS),
                "nw_ttl": draw.choice([1, 64]),
            },
        ]
    )
    own = MACS[source] if draw.random() < 0.8 else draw.choice([*MACS.values()])
    frame = build({**fields, "dl_src": own, "dl_dst": draw.choice(DESTINATIONS)})
    tags = [
        draw.choice([0x8100, 0x88A8]).to_bytes(2, "big")
        + (draw.choice([0, 5, 7, 9]) | draw.choice([0, 0x6000])).to_bytes(2, "big")
        for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 3]))
    ]
    whole = frame[:12] + b"".join(tags) + frame[12:]
    size = draw.choice([len(whole), len(whole), 113, 114, 115, 128, 129, 144, 500, 514, 515, 1400])
    return whole.ljust(size, b"\xa5")


# ---- both sides


def told(answer: dict[str, Any], frame: bytes) -> Tapped:
    """What a trace says guests get."""
    copies: Tapped = {name: Counter() for name in PORTS}
    for copy in answer["verdict"]["egress"]:
        if "drop" in copy:
            continue
        head = bytes.fromhex(copy["head"])
        more = 4 * (len(parse(head).tags) - len(parse(frame).tags))
        copies[copy["port"]][(head + frame[max(0, len(head) - more) :])[: copy["length"]]] += 1
    return copies


def told_drops(answer: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    """What it says is counted as dropped: port, direction, reason."""
    verdict = answer["verdict"]
    drops = Counter((copy["port"], "tx_drops", copy["drop"]) for copy in verdict["egress"] if "drop" in copy)
    if "reason" in verdict:
        drops[answer["in_port"], "rx_drops", verdict["reason"]] += 1
    return drops


class Lab:
    """A switch, and a guest on each port."""

    def __init__(self, switch: SwitchProcess, guests: dict[str, Guest]) -> None:
        self.switch = switch
        self.guests = guests

    async def configure(self, draw: random.Random) -> dict[str, Any]:
        """Put a random configuration in force."""
        while True:
            patch = {"bridges": {"br0": bridge_keys(draw)}, "ports": {name: port_keys(draw) for name in PORTS}}
            document = await self.switch.get("/config")
            sockets = {name: {"socket": document["ports"][name]["socket"]} for name in PORTS}
            document["bridges"]["br0"] = patch["bridges"]["br0"]
            document["ports"] = {name: {**patch["ports"][name], **sockets[name]} for name in PORTS}
            status, answer = await self.switch.request("PUT", "/api/v1/config", document, headers={"If-Match": "*"})
            if status == 200:
                return patch
            assert status == 422, answer  # two that don't go together, like a mirror's output that has a rule

    async def counters(self) -> dict[str, dict[str, Any]]:
        return {name: await stats(self.switch, name) for name in PORTS}

    async def trace(self, source: str, frame: bytes) -> dict[str, Any]:
        body = {"in_port": source, "frame": frame.hex()}
        status, answer = await self.switch.request("POST", "/api/v1/bridges/br0/trace", body)
        assert status == 200, answer
        return dict(answer)

    async def send(
        self, source: str, frame: bytes, before: dict[str, Any]
    ) -> tuple[Tapped, Counter[tuple[str, str, str]]]:
        """Send it; return what guests get, and what is counted as dropped."""
        await self.guests[source].send(frame)
        await reach(self.switch, source, {"rx_packets": before[source]["rx_packets"] + 1})
        after = await self.counters()
        copies: Tapped = {name: Counter() for name in PORTS}
        drops: Counter[tuple[str, str, str]] = Counter()
        for name in PORTS:
            for _ in range(after[name]["tx_packets"] - before[name]["tx_packets"]):
                copies[name][await self.guests[name].recv(PATIENCE)] += 1
            for way in ("rx_drops", "tx_drops"):
                for reason, count in after[name][way].items():
                    drops[name, way, reason] += count - before[name][way].get(reason, 0)
        return copies, +drops


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with (
        running_switch({"ports": {name: {} for name in PORTS}, "datapath": {"workers": request.param}}) as switch,
        contextlib.AsyncExitStack() as stack,
    ):
        guests = {
            name: await stack.enter_async_context(
                Guest(switch.port_socket(name), mac=bytes.fromhex(MACS[name].replace(":", "")))
            )
            for name in PORTS
        }
        yield Lab(switch, guests)


@pytest.mark.parametrize("seed", range(max(1, FRAMES // EACH)))
async def test_trace_agrees_with_the_traffic(lab: Lab, seed: int) -> None:
    draw = random.Random(seed)
    config = await lab.configure(draw)
    for number in range(min(EACH, FRAMES)):
        source = draw.choice(PORTS)
        frame = some_frame(draw, source)
        fdb, before = await lab.switch.get("/bridges/br0/fdb"), await lab.counters()
        answer = await lab.trace(source, frame)
        assert [item["name"] for item in (await lab.switch.get("/bridges/br0/fdb"))["items"]] == [
            item["name"] for item in fdb["items"]
        ]
        assert await lab.counters() == before, "a trace has counted something"
        copies, drops = await lab.send(source, frame, before)
        context = (number, source, frame.hex(), config, answer["steps"])
        assert copies == told(answer, frame), context
        assert drops == told_drops(answer), context
