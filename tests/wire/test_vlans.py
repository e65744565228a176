# SPDX-License-Identifier: Apache-2.0
"""Every mode of ingress port and of egress port, every stack of tags: through a real switch, by `tests.vlans`."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.vlans import MODES, STACKS, Tags, build, number_of, tags_of, through, vlan_of
from tests.wire.lab import PATIENCE, reach, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "02:00:00:00:ff:ff"
BATCH = 32
MACS = {name: f"02:00:00:00:00:{i:02x}" for i, name in enumerate(MODES)}

Copies = dict[str, list[tuple[int, Tags]]]  # by receiver: the frame's number, and its tags then


@dataclass
class Lab:
    """A switch with a port of each mode and a guest on each; what it has learned, and how often each guest has sent."""

    switch: SwitchProcess
    guests: dict[str, Guest]
    learned: dict[tuple[int, str], str] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def exchange(self, source: str, dst: str, stacks: Sequence[Tags]) -> tuple[Copies, Copies]:
        """Send a frame with each of these stacks; return what the guests got, and what they have to."""
        got: Copies = {name: [] for name in MODES}
        wanted: Copies = {name: [] for name in MODES}
        before = {name: (await stats(self.switch, name))["tx_packets"] for name in MODES}
        for tags in stacks:
            number = next(self.numbers)
            await self.guests[source].send(build(dst, MACS[source], tags, number))
            for name in self.receivers(source, dst, tags):
                arrives = through(MODES[source], MODES[name], tags)
                if arrives is not None:
                    wanted[name].append((number, arrives))
        self.sent[source] += len(stacks)
        await reach(self.switch, source, {"rx_packets": self.sent[source]})
        for name, guest in self.guests.items():
            copies = (await stats(self.switch, name))["tx_packets"] - before[name]
            for _ in range(copies):
                frame = await guest.recv(PATIENCE)
                found = number_of(frame)
                assert found is not None
                assert frame == build(dst, MACS[source], tags_of(frame), found, len(frame)), "changed beside its tags"
                got[name].append((found, tags_of(frame)))
        return got, wanted

    def receivers(self, source: str, dst: str, tags: Tags) -> list[str]:
        """Whom a frame is for: one who is known in its VLAN, or all others. Its source is known there from now on."""
        vid = vlan_of(MODES[source], tags)
        if vid is None:
            return []
        known = self.learned.get((vid, dst))
        self.learned[vid, MACS[source]] = source
        return [name for name in ([known] if known else MODES) if name != source]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """A port and a guest of each mode."""
    ports = {name: mode.keys for name, mode in MODES.items()}
    async with (
        running_switch({"ports": ports, "datapath": {"workers": request.param}}) as switch,
        contextlib.AsyncExitStack() as stack,
    ):
        yield Lab(
            switch,
            {
                name: await stack.enter_async_context(
                    Guest(switch.port_socket(name), mac=bytes.fromhex(MACS[name].replace(":", "")))
                )
                for name in MODES
            },
        )


@pytest.mark.parametrize("source", MODES)
async def test_flooded(lab: Lab, source: str) -> None:
    got, wanted = await lab.exchange(source, BROADCAST, [*STACKS.values()])
    assert got == wanted
    assert any(wanted.values())


@pytest.mark.parametrize("source", MODES)
async def test_known_and_unknown_unicast(lab: Lab, source: str) -> None:
    for dst in (*MACS.values(), NOBODY):
        got, wanted = await lab.exchange(source, dst, [*STACKS.values()])
        assert got == wanted


@pytest.mark.parametrize("source", MODES)
async def test_what_is_not_let_in_is_counted(lab: Lab, source: str) -> None:
    before = await stats(lab.switch, source)
    await lab.exchange(source, NOBODY, [*STACKS.values()])
    after = await stats(lab.switch, source)
    refused = sum(vlan_of(MODES[source], tags) is None for tags in STACKS.values())
    assert after["rx_drops"].get("vlan_filtered", 0) - before["rx_drops"].get("vlan_filtered", 0) == refused


async def test_addresses_are_learned_by_vlan(lab: Lab) -> None:
    for source in MODES:
        await lab.exchange(source, NOBODY, [*STACKS.values()])
    page = await lab.switch.get("/bridges/br0/fdb?limit=1000")
    assert {(item["vid"], item["mac"]): item["port"] for item in page["items"]} == lab.learned


async def test_vlans_have_members_and_counters(lab: Lab) -> None:
    await lab.exchange("trunk", NOBODY, [STACKS["40"]])  # a VLAN that no port names is there once it has been seen
    page = await lab.switch.get("/bridges/br0/vlans?limit=1000")
    vlans = {item["vid"]: item for item in page["items"]}
    assert {10, 20, 30} <= set(vlans)
    assert {member["port"]: member["tagged"] for member in vlans[10]["members"]} == {
        **dict.fromkeys(("access10", "access10b", "untagged10", "untagged10_20", "tunnel10", "tunnel10_0_20"), False),
        **dict.fromkeys(("trunk", "trunk_10_20", "tagged10", "tagged10_20"), True),
    }
    before = vlans[40]["packets"], vlans[40]["bytes"]
    await lab.exchange("trunk", NOBODY, [STACKS["40"]] * 3)
    (after,) = [item for item in (await lab.switch.get("/bridges/br0/vlans?limit=1000"))["items"] if item["vid"] == 40]
    assert (after["packets"], after["bytes"]) == (before[0] + 3, before[1] + 3 * 60)


async def test_a_tag_is_changed_under_running_guests(lab: Lab) -> None:
    """access10b becomes access20 and back: its guest is in another VLAN at once, and its addresses are forgotten."""
    status, _ = await lab.switch.request("PATCH", "/api/v1/ports/access10b", {"tag": 20})
    assert status == 200
    try:
        page = await lab.switch.get("/bridges/br0/fdb?port=access10b")
        assert page["items"] == []
        before = (await stats(lab.switch, "access10b"))["tx_packets"]
        await lab.guests["access20"].send(build(BROADCAST, MACS["access20"], (), next(lab.numbers)))
        lab.sent["access20"] += 1
        await reach(lab.switch, "access10b", {"tx_packets": before + 1})
        assert tags_of(await lab.guests["access10b"].recv(PATIENCE)) == ()
    finally:
        status, _ = await lab.switch.request("PATCH", "/api/v1/ports/access10b", {"tag": 10})
        assert status == 200
