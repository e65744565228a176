# SPDX-License-Identifier: Apache-2.0
"""The matrix of tests.vlans on Open vSwitch's userspace datapath: where it differs from ours, and why.

The bridge has two ports. They are set to every pair of modes in turn, and each stack of tags goes from the one to the
other: once to everybody, once to an address that the other port is known for. With one receiver there is one answer:
when Open vSwitch copies a frame to several ports, in an order of its own, what one of them needed shows at the next.

What has to come is tests.vlans with the rules of `Rule`, each of which is a way in which Open vSwitch does something
else. Without any of them it is tests.vlans and nothing more, and each of them has to make a difference somewhere.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import pytest
import pytest_asyncio

from pvswitch.bench.machine import hugepages
from pvswitch.bench.ovs import VSWITCHD, Ovs
from pvswitch.bench.switches import HUGEPAGES
from pvswitch.guest import Guest
from tests.conftest import RequirePeer, missing_peer
from tests.property.reference import take_apart
from tests.vlans import MODES, S_TAG, STACKS, Mode, Tag, Tags, build, number_of, replace_vid, tags_of, through

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROADCAST = "ff:ff:ff:ff:ff:ff"
MARKER = "02:00:00:00:ff:fe"
"""A frame to this address leaves by the other port as it came, whatever VLANs that carries."""
PATIENCE = 20.0
LIMITS = (1, 2)
ALL_STACKS: Mapping[str, Tags] = {**STACKS, "priority 0, 20": (Tag(0), Tag(20))}


class Rule(Enum):
    """What Open vSwitch does and we don't."""

    LIMIT = "tags beyond the first `vlan-limit` ones are payload, at which it doesn't look"
    TWO_TAGS = "it has room for two tags in all: a dot1q-tunnel port loses the one that no longer fits"
    ACCESS_IN = "an access port takes a priority tag with another tag behind it, and drops both"
    ACCESS_OUT = "a frame with a priority tag behind its VLAN's leaves by an access port, without either"
    NATIVE_OUT = "a native-untagged port hands out what is behind the tag that it takes off"
    KNOWN = "a port that an address is known for gets its frames without a look at their second tag"
    PRIORITY_0 = "a tag with VID 0 and priority 0 is taken off, and all that it sees behind it"
    DEI = "a tag that is put on anew has no DEI"


NONE: frozenset[Rule] = frozenset()
EVERY = frozenset(Rule)


class Case(NamedTuple):
    """A frame's way through the bridge; `known`: its address is one that the target is known for."""

    source: str
    target: str
    stack: str
    known: bool
    limit: int


CASES = [Case(*case) for case in itertools.product(MODES, MODES, ALL_STACKS, (False, True), LIMITS)]


def theirs(case: Case, rules: frozenset[Rule]) -> Tags | None:
    """The tags with which a frame arrives where these rules hold; None: it doesn't."""
    target, tags = MODES[case.target], ALL_STACKS[case.stack]
    seen = tags[: case.limit] if Rule.LIMIT in rules else tags
    inside = taken(MODES[case.source], seen, rules)
    if inside is None:
        return None
    unchecked = case.known and Rule.KNOWN in rules and vid_of(inside) in learned(target, case.limit, rules)
    if not (unchecked or carries(target, inside, rules)):
        return None
    left = handed_out(target, inside, rules)
    return None if left is None else rewritten(seen, left, rules) + tags[len(seen) :]


def vid_of(tags: Tags) -> int:
    return tags[0].vid if tags else 0


def taken(port: Mode, seen: Tags, rules: frozenset[Rule]) -> Tags | None:
    """The tags inside the bridge, the outermost being the VLAN's; None: the port doesn't let them in."""
    vid = vid_of(seen)
    if port.mode == "dot1q-tunnel":
        assert port.tag is not None
        pushed = (Tag(port.tag, tpid=S_TAG), *seen)
        return (pushed[:2] if Rule.TWO_TAGS in rules else pushed) if vid in port.cvlans else None
    if port.mode == "access":
        if vid or (len(seen) > 1 and Rule.ACCESS_IN not in rules):
            return None
        seen = seen[:1]
    if port.mode != "trunk" and vid == 0:
        assert port.tag is not None
        return (replace_vid(seen[0], port.tag), *seen[1:]) if seen else (Tag(port.tag),)
    return seen if vid in port.carried else None


@functools.cache
def learned(port: Mode, limit: int, rules: frozenset[Rule]) -> set[int]:
    """The VLANs in which an address is known after every stack has come from it."""
    ways = (taken(port, tags[:limit] if Rule.LIMIT in rules else tags, rules) for tags in ALL_STACKS.values())
    return {vid_of(inside) for inside in ways if inside is not None}


def carries(port: Mode, inside: Tags, rules: frozenset[Rule]) -> bool:
    """Whether a frame to everybody leaves by the port."""
    behind = inside[1:]
    match port.mode:
        case "access":
            clean = not vid_of(behind) if Rule.ACCESS_OUT in rules else not behind
            return vid_of(inside) == port.tag and clean
        case "dot1q-tunnel":
            return vid_of(inside) == port.tag and vid_of(behind) in port.cvlans
    return vid_of(inside) in port.carried


def handed_out(port: Mode, inside: Tags, rules: frozenset[Rule]) -> Tags | None:
    """What the port leaves of the tags; None: it doesn't let the frame out."""
    behind = inside[1:]
    match port.mode:
        case "access":
            return ()
        case "dot1q-tunnel":
            return behind
        case "native-untagged" if vid_of(inside) == port.tag:
            return behind if Rule.NATIVE_OUT in rules or not behind else None
    return inside


def rewritten(seen: Tags, left: Tags, rules: frozenset[Rule]) -> Tags:
    """What the tags that it has `seen` become when they have to be those that are `left`."""
    if Rule.PRIORITY_0 in rules:
        left = tuple(itertools.takewhile(lambda tag: tag.vid or tag.pcp, left))
    if Rule.DEI not in rules:
        return left
    # It compares from the innermost tag, takes off from the first one that isn't right, and puts on what is missing.
    same = 0
    for old, new in zip(reversed(seen), reversed(left), strict=False):
        if old._replace(dei=0) != new._replace(dei=0):
            break
        same += 1
    changed = len(left) - same
    return tuple(tag._replace(dei=0) for tag in left[:changed]) + left[changed:]


@dataclass
class Lab:
    """A bridge with two ports, a guest on each."""

    ovs: Ovs
    limit: int
    sender: Guest
    receiver: Guest
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def set_mode(self, port: str, mode: Mode) -> None:
        """Set the port; it is so for every frame from now on."""
        keys = {"tag": [], "trunks": [], "cvlans": [], **mode.keys}
        await self.ovs.set("port", port, *(f"{key}={value}".replace(" ", "") for key, value in keys.items()))

    async def exchange(
        self, source: Guest, target: Guest, dst: str, stacks: Sequence[Tags], src: str | None = None
    ) -> list[Tags | None]:
        """Send a frame with each stack; return what came of each.

        Each has an address of its own as its source, where none is given, so that none goes where an earlier one made
        the flow cache send it.
        """
        sent = {}
        for tags in stacks:
            number = next(self.numbers)
            sent[number] = build(dst, src or unique_address(number), tags, number)
        came: dict[int, Tags] = {}
        for frame in await self.delivered(source, target, [*sent.values()]):
            which = number_of(frame)
            assert which in sent, f"unexpected: {frame.hex()}"
            assert which not in came, "came twice"
            came[which] = tags_of(frame)
            now = build(dst, src or unique_address(which), came[which], which, len(frame))
            assert frame == now, "changed beside its tags"
        return [came.get(number) for number in sent]

    async def delivered(self, source: Guest, target: Guest, frames: Sequence[bytes]) -> list[bytes]:
        """Send these frames; return what came of them."""
        for frame in frames:
            await source.send(frame)
        # The one poll thread is done with a batch before it takes the next one: the marker comes last.
        await source.drain()
        last = self.marker()
        await source.send(last)
        came = []
        async with asyncio.timeout(PATIENCE):
            while (frame := await target.recv(PATIENCE)) != last:
                came.append(frame)
        return came

    async def until_both_are_reached(self) -> None:
        """Wait until frames come through: Open vSwitch takes its time to see that a guest is there."""
        for source, target in ((self.sender, self.receiver), (self.receiver, self.sender)):
            async with asyncio.timeout(PATIENCE):
                await source.send(self.marker())
                while target.recv_nowait() is None:
                    await asyncio.sleep(0.05)
                    await source.send(self.marker())
            await self.delivered(source, target, [])  # and with it the other ones

    def marker(self) -> bytes:
        return build(MARKER, unique_address(0), (), next(self.numbers))


def unique_address(number: int) -> str:
    return "02:00:00" + "".join(f":{byte:02x}" for byte in number.to_bytes(3, "big"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=LIMITS, ids="vlan_limit_{}".format)
async def lab(request: pytest.FixtureRequest, require_peer: RequirePeer) -> AsyncIterator[Lab]:
    """Open vSwitch that looks at one tag, as it does by default, or at two, which is its maximum."""
    require_peer(VSWITCHD, package="openvswitch-switch-dpdk")
    if os.geteuid() != 0:
        missing_peer("hugepages are reserved by root: run the tests as root")
    with hugepages(HUGEPAGES) as huge:
        if not huge:
            missing_peer(f"{HUGEPAGES} free pages of 2 MiB are needed")
        async with Ovs(["in", "out"], settings=[f"other_config:vlan-limit={request.param}"]) as ovs:
            # The host's own port carries a VLAN in which nothing is, so that each frame has one receiver.
            await ovs.set("port", "br0", "tag=4000")
            await ovs.add_flow(f"priority=1,dl_dst={MARKER},actions=all")
            async with Guest(ovs.sockets["in"]) as sender, Guest(ovs.sockets["out"]) as receiver:
                found = Lab(ovs, request.param, sender, receiver)
                await found.until_both_are_reached()
                yield found


async def test_every_difference_is_a_rule(lab: Lab) -> None:
    stacks = [*ALL_STACKS.values()]
    found: dict[Case, Tags | None] = {}
    for target_number, (target, target_mode) in enumerate(MODES.items()):
        await lab.set_mode("out", target_mode)
        address = f"02:01:00:00:00:{target_number:02x}"
        await lab.exchange(lab.receiver, lab.sender, BROADCAST, stacks, src=address)
        for source, source_mode in MODES.items():
            await lab.set_mode("in", source_mode)
            for known in (False, True):
                answers = await lab.exchange(lab.sender, lab.receiver, address if known else BROADCAST, stacks)
                for stack, tags in zip(ALL_STACKS, answers, strict=True):
                    found[Case(source, target, stack, known, lab.limit)] = tags
    wrong = [
        f"{case}: {came}, by the rules {ruled}"
        for case, came in found.items()
        if came != (ruled := theirs(case, EVERY))
    ]
    assert not wrong, f"{len(wrong)} of {len(found)} cases, the first ones:\n" + "\n".join(wrong[:20])


async def test_without_rules_it_is_ours() -> None:
    assert all(
        theirs(case, NONE) == through(MODES[case.source], MODES[case.target], ALL_STACKS[case.stack]) for case in CASES
    )


async def test_every_rule_makes_a_difference() -> None:
    needed = {rule for case in CASES for rule in Rule if theirs(case, EVERY) != theirs(case, EVERY - {rule})}
    assert needed == EVERY


@pytest.mark.parametrize("lab", [2], indirect=True, ids="vlan_limit_{}".format)
async def test_the_first_frame_decides_for_others_with_another_second_tag(lab: Lab) -> None:
    """The flow cache of Open vSwitch may leave the second tag out, although the port's cvlans ask for it."""
    await lab.set_mode("in", MODES["trunk"])
    await lab.set_mode("out", MODES["tunnel20_30"])
    came = []
    # Several times, because what is in the cache is sometimes forgotten.
    for number in range(10):
        src = f"02:02:00:00:00:{number:02x}"
        assert await lab.exchange(lab.sender, lab.receiver, BROADCAST, [(Tag(20),)], src=src) == [None]
        came += await lab.exchange(lab.sender, lab.receiver, BROADCAST, [(Tag(20), Tag(30))], src=src)
    assert None in came
    assert await lab.exchange(lab.sender, lab.receiver, BROADCAST, [(Tag(20), Tag(30))]) == [(Tag(30),)]


@pytest.mark.parametrize(("setting", "stays"), [("never", False), ("if-nonzero", False), ("always", True)])
async def test_priority_tags_of_priority_0_stay_where_it_is_set_so(lab: Lab, setting: str, stays: bool) -> None:
    await lab.set_mode("in", MODES["trunk"])
    await lab.set_mode("out", MODES["trunk"])
    await lab.ovs.set("port", "out", f"other_config:priority-tags={setting}")
    try:
        wanted = [(Tag(0),) if stays else (), (Tag(0, 5),)]
        assert await lab.exchange(lab.sender, lab.receiver, BROADCAST, [(Tag(0),), (Tag(0, 5),)]) == wanted
    finally:
        await lab.ovs.set("port", "out", "other_config:priority-tags=never")


@pytest.mark.parametrize("have", range(4))
async def test_only_a_first_tag_that_is_cut_short_is_refused(lab: Lab, have: int) -> None:
    """To us a frame is malformed when either of its first two tags is cut short (tests.property.reference)."""
    await lab.set_mode("in", MODES["trunk"])
    await lab.set_mode("out", MODES["trunk"])
    outer, inner = bytes.fromhex("8100000a"), bytes.fromhex("8100001488b5")
    addresses = bytes.fromhex("ffffffffffff" + unique_address(next(lab.numbers)).replace(":", ""))
    short = inner[: 2 + have]
    first, second = addresses + short, addresses + outer + short
    assert take_apart(first) is take_apart(second) is None
    assert await lab.delivered(lab.sender, lab.receiver, [first]) == []
    assert await lab.delivered(lab.sender, lab.receiver, [second]) == [second]
