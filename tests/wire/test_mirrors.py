# SPDX-License-Identifier: Apache-2.0
"""Who gets which bytes how often: mirrors on a real switch against `tests.mirrors`, each shape alone and many together.

All addresses are static, so that what a frame becomes depends on nothing that came before it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.mirrors import BROADCAST, PAUSE, SNAPLENS, Bridge, Fate, Mirror, random_mirrors, tally
from tests.system.conftest import from_environment, running_switch
from tests.vlans import STACKS, Mode, Tags, build
from tests.wire.lab import PATIENCE, reach, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = from_environment("PVSWITCH_TEST_MIRRORS", 8)
"""Random configurations for each number of workers."""

SOURCES: Mapping[str, Mode] = {
    "access10": Mode("access", 10),
    "access20": Mode("access", 20),
    "trunk": Mode(),
    "trunk_10_20": Mode(trunks=frozenset({10, 20})),
    "untagged10": Mode("native-untagged", 10),
    "tunnel10": Mode("dot1q-tunnel", 10),
}
MONITORS: Mapping[str, Mode] = {
    "see_all": Mode(),
    "see_10": Mode("access", 10),
    "see_20": Mode("native-untagged", 20),
    "see_tunnel": Mode("dot1q-tunnel", 10),
}
PORTS = {**SOURCES, **MONITORS}
UNPLUGGED = {"unplugged": Mode()}
MACS = {name: f"02:00:00:00:00:{i:02x}" for i, name in enumerate({**PORTS, **UNPLUGGED}, start=1)}
VIDS = (0, 10, 20, 30, 40)
KNOWN = {(vid, mac): name for vid in VIDS for name, mac in MACS.items()}
NOBODY = "02:00:00:00:ff:ff"
GROUP, LLDP = "01:00:5e:00:00:01", "01:80:c2:00:00:0e"
TO_ALL = (BROADCAST, GROUP, LLDP, PAUSE, NOBODY)
LENGTHS = (60, 127, 128, 129, 200, 1514)


@dataclass
class Lab:
    """A switch with a guest on each port but one; how often each has sent."""

    switch: SwitchProcess
    guests: dict[str, Guest]
    bridge: Bridge
    sent: Counter[str] = field(default_factory=Counter)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    counted: dict[str, Any] = field(default_factory=dict)
    """Counters by port, since nobody has sent anything."""

    async def configure(self, mirrors: Mapping[str, Mirror]) -> None:
        """Make these the mirrors."""
        self.bridge.mirrors = mirrors
        body = {**BRIDGE, "mirrors": {name: mirror.keys for name, mirror in mirrors.items()}}
        status, answer = await self.switch.request("PUT", "/api/v1/bridges/br0", body)
        assert status == 200, answer

    async def send(self, source: str, frames: Sequence[bytes]) -> dict[str, Any]:
        """Send frames all at once, and wait until the switch has dealt with them; the sender's counters then."""
        for frame in frames:
            await self.guests[source].send(frame, kick=frame is frames[-1])
        self.sent[source] += len(frames)
        return await reach(self.switch, source, {"rx_packets": self.sent[source]})

    async def exchange(self, source: str, frames: Sequence[bytes]) -> None:
        """Send frames: everyone gets what the reference says, and everything is counted where it says."""
        before = self.counted or {name: await stats(self.switch, name) for name in MACS}
        fates = [self.bridge.fate(source, frame) for frame in frames]
        await self.send(source, frames)
        self.counted = after = {name: await stats(self.switch, name) for name in MACS}
        got: dict[str, Counter[bytes]] = {}
        for name, guest in self.guests.items():
            for _ in range(after[name]["tx_packets"] - before[name]["tx_packets"]):
                got.setdefault(name, Counter())[await guest.recv(PATIENCE)] += 1
            assert guest.recv_nowait() is None
        assert described(got) == described(tally(fates))
        for name in MACS:
            drops = {key: difference(before[name], after[name], key) for key in ("rx_drops", "tx_drops")}
            assert (name, drops) == (name, drops_of(name, source, fates))


def described(copies: Mapping[str, Counter[bytes]]) -> dict[str, list[str]]:
    """In an order, and so that people see what differs."""
    return {
        name: sorted(f"{n} times {len(frame)} bytes: {frame.hex()}" for frame, n in found.items())
        for name, found in copies.items()
    }


def difference(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> dict[str, int]:
    return {why: n - before[key].get(why, 0) for why, n in after[key].items() if n != before[key].get(why, 0)}


def drops_of(name: str, source: str, fates: Sequence[Fate]) -> dict[str, dict[str, int]]:
    rx = Counter(fate.rx_drop for fate in fates if fate.rx_drop is not None and name == source)
    tx = Counter(why for fate in fates for port, why in fate.tx_drops if port == name)
    return {"rx_drops": dict(rx), "tx_drops": dict(tx)}


BRIDGE: dict[str, Any] = {"fdb": [{"mac": mac, "vid": vid, "port": name} for (vid, mac), name in KNOWN.items()]}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    config = {
        "bridges": {"br0": BRIDGE},
        "ports": {name: mode.keys for name, mode in {**PORTS, **UNPLUGGED}.items()},
        "datapath": {"workers": request.param},
    }
    async with running_switch(config) as switch, contextlib.AsyncExitStack() as stack:
        guests = {
            name: await stack.enter_async_context(
                Guest(switch.port_socket(name), mac=bytes.fromhex(MACS[name].replace(":", "")))
            )
            for name in PORTS
        }
        yield Lab(switch, guests, Bridge({**PORTS, **UNPLUGGED}, {}, KNOWN, set(PORTS)))


def frames(lab: Lab, source: str, dst: str, stacks: Sequence[Tags], chance: random.Random) -> list[bytes]:
    return [build(dst, MACS[source], tags, next(lab.numbers), chance.choice(LENGTHS)) for tags in stacks]


SHAPES: dict[str, Mirror] = {
    "all": Mirror(),
    "all, drops": Mirror(drops=True),
    "src": Mirror(src=frozenset({"access10", "trunk"})),
    "src, drops": Mirror(src=frozenset({"access10", "trunk"}), drops=True),
    "dst": Mirror(dst=frozenset({"access10", "trunk_10_20"})),
    "dst, drops": Mirror(dst=frozenset({"access10", "trunk_10_20"}), drops=True),
    "both": Mirror(src=frozenset({"access10", "trunk"}), dst=frozenset({"access10", "trunk", "untagged10"})),
    "vlan 0": Mirror(vlans=frozenset({0})),
    "vlan 10": Mirror(vlans=frozenset({10})),
    "vlans, drops": Mirror(vlans=frozenset({10, 40}), drops=True),
    "src and vlan": Mirror(src=frozenset({"trunk"}), vlans=frozenset({0, 20})),
    "dst and vlan": Mirror(dst=frozenset({"trunk", "tunnel10"}), vlans=frozenset({10})),
}
OUTPUTS: dict[str, dict[str, Any]] = {
    **{name: {"port": name} for name in MONITORS},
    "unplugged": {"port": "unplugged"},
    "into 10": {"vid": 10},
    "into 30": {"vid": 30},
    "into 20, cut": {"vid": 20, "snaplen": 60},
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_one_mirror(lab: Lab, shape: str, output: str) -> None:
    chance = random.Random(f"{shape} {output}")
    await lab.configure({"m": Mirror(**{**vars(SHAPES[shape]), **OUTPUTS[output]})})
    for source in ("access10", "trunk"):
        found = [
            one
            for dst in (BROADCAST, MACS["trunk_10_20"])
            for one in frames(lab, source, dst, [*STACKS.values()], chance)
        ]
        await lab.exchange(source, found)


@pytest.mark.parametrize("snaplen", SNAPLENS)
async def test_cut(lab: Lab, snaplen: int) -> None:
    """At every length around that, with tags that come on and off on the way."""
    outputs: list[dict[str, Any]] = [{"port": "see_all"}, {"port": "see_10"}, {"vid": 30}]
    await lab.configure({f"m{i}": Mirror(snaplen=snaplen, **output) for i, output in enumerate(outputs)})
    sizes = {max(22, snaplen + by) for by in range(-5, 6)} | {60, 132, 1514}
    for source in ("access10", "trunk", "tunnel10"):
        for tags in (STACKS["untagged"], STACKS["10"], STACKS["10 20"]):
            await lab.exchange(
                source, [build(BROADCAST, MACS[source], tags, next(lab.numbers), size) for size in sorted(sizes)]
            )


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_many_mirrors(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    await lab.configure(random_mirrors(chance, [*SOURCES], [*MONITORS, "unplugged"], [10, 20, 30, 99]))
    for source in PORTS:
        for _ in range(4):
            dsts = chance.sample([*TO_ALL, *MACS.values()], 3)
            mixed = [one for dst in dsts for one in frames(lab, source, dst, [*STACKS.values()], chance)]
            chance.shuffle(mixed)
            await lab.exchange(source, mixed[: len(STACKS)])


async def test_every_destination(lab: Lab) -> None:
    """What is known, unknown, for groups, for itself, for bridges: to a port and into a VLAN, drops and all."""
    chance = random.Random(0)
    await lab.configure(
        {
            "port": Mirror(src=frozenset({"trunk"}), port="see_all"),
            "drops": Mirror(drops=True, port="see_tunnel"),
            "vlan": Mirror(dst=frozenset({"access10", "untagged10"}), vid=30),
        }
    )
    for source in SOURCES:
        for dst in (*TO_ALL, *MACS.values()):
            stacks = [STACKS[name] for name in ("untagged", "priority 5", "10", "30", "S 10, 20")]
            await lab.exchange(source, frames(lab, source, dst, stacks, chance))


@pytest.mark.parametrize("outputs", ["one port", "one port, cut", "VLANs", "VLANs, cut"])
async def test_as_many_mirrors_as_there_can_be(lab: Lab, outputs: str) -> None:
    """Each of 32 sends each frame once, though all of them end at one port: more copies than frames in a burst."""
    mirrors = {
        f"m{i}": Mirror(
            port="see_all" if "port" in outputs else None,
            vid=100 + i if "VLANs" in outputs else None,
            snaplen=14 + i if "cut" in outputs else None,
        )
        for i in range(32)
    }
    await lab.configure(mirrors)
    await lab.exchange("trunk", frames(lab, "trunk", BROADCAST, [STACKS["10"]] * 6, random.Random(0)))


@pytest.mark.parametrize("shape", ["src", "dst"])
async def test_two_mirrors_and_a_long_burst(lab: Lab, shape: str) -> None:
    """Both end at one port, which gets two copies of each frame of a burst of 100."""
    ports = frozenset({"trunk" if shape == "src" else "trunk_10_20"})
    mirror = Mirror(src=ports, port="see_all") if shape == "src" else Mirror(dst=ports, port="see_all")
    await lab.configure({"m1": mirror, "m2": mirror})
    stacks = [STACKS["10"]] * 100
    await lab.exchange("trunk", frames(lab, "trunk", MACS["trunk_10_20"], stacks, random.Random(0)))


async def test_mirrored_and_ordinary_frames_of_one_burst(lab: Lab) -> None:
    """From a port without any rule, to one that is mirrored into a VLAN and to one that is in all VLANs, in turn."""
    await lab.configure({"m": Mirror(dst=frozenset({"trunk_10_20"}), vid=30)})
    for dsts in itertools.product((MACS["trunk_10_20"], MACS["see_all"], BROADCAST, NOBODY), repeat=3):
        await lab.exchange(
            "trunk", [build(dst, MACS["trunk"], STACKS["10"], next(lab.numbers)) for dst in dsts for _ in range(2)]
        )


async def test_a_port_that_is_no_output_any_more_is_as_others(lab: Lab) -> None:
    chance = random.Random(0)
    for mirrors in ({"m": Mirror(port="see_all")}, {"m": Mirror(port="see_10")}, {}):
        await lab.configure(mirrors)
        for source in ("see_all", "see_10", "trunk"):
            for dst in (BROADCAST, MACS["see_all"], MACS["see_10"]):
                await lab.exchange(source, frames(lab, source, dst, [STACKS["untagged"], STACKS["10"]], chance))
