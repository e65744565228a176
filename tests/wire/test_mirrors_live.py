# SPDX-License-Identifier: Apache-2.0
"""Mirrors beside what else happens: drops, offloads, waiting, uplinks, ports that go, changes while guests talk.

What a mirror sees of a frame that was not let in, or waited, or was large, is said here case by case; who gets which
copy of an ordinary frame is `test_mirrors`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import from_environment, running_switch
from tests.vlans import Tag, build
from tests.wire.lab import PATIENCE, expect, expect_only, frame, reach, stats, until
from tests.wire.offloads import ALL, LARGEST, PLAIN, finished, requests
from tests.wire.uplinks import namespace, packet, tap, veth, wires

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
CHANGES = from_environment("PVSWITCH_TEST_TOGGLES", 60)
WAIT = 1.0
"""Seconds that known unicast waits for the port `slow`."""
CONFIG: dict[str, Any] = {
    "ports": {
        "a": {},
        "b": {},
        "mon": {},
        "other": {},
        "access": {"tag": 10},
        "safe": {"port_security": {"allowed_macs": ["02:00:00:00:00:01"]}},
        "policed": {"policing": {"rate_kbps": 1}},
        "stormy": {"storm_control": {"broadcast_pps": 1}},
        "slow": {"on_full": "backpressure", "backpressure_ms": round(WAIT * 1000)},
        "small": {"mtu": 500},
    },
}
OWN, FORGED = (bytes([2, 0, 0, 0, 0, i]) for i in (1, 2))
ALL_ONES = b"\xff" * 6


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


@pytest_asyncio.fixture(loop_scope="module")
async def stack(switch: SwitchProcess) -> AsyncIterator[Stack]:
    """Closes the guests of a test, and takes its mirrors and addresses away."""
    async with Stack() as stack:
        yield stack
    status, answer = await switch.request("PUT", "/api/v1/bridges/br0", {})
    assert status == 200, answer


async def mirror(switch: SwitchProcess, **mirrors: Mapping[str, object]) -> None:
    """Make these the mirrors; static addresses stay."""
    before = await switch.get("/bridges/br0")
    status, answer = await switch.request("PUT", "/api/v1/bridges/br0", {**before, "mirrors": mirrors})
    assert status == 200, answer


async def plug(switch: SwitchProcess, stack: Stack, port: str, **conf: Any) -> Guest:
    return await stack.enter_async_context(Guest(switch.port_socket(port), **conf))


async def learned(switch: SwitchProcess, guest: Guest, port: str) -> None:
    """Have the switch know where a guest is, without a frame that others would have to pass over."""
    path = f"/api/v1/bridges/br0/fdb/0/{guest.mac.hex(':')}"
    status, answer = await switch.request("PUT", path, {"port": port})
    assert status in (200, 201), answer


async def sent(switch: SwitchProcess, guest: Guest, port: str, *frames: bytes) -> None:
    """Send frames, and wait until the switch has dealt with all of them."""
    before = (await stats(switch, port))["rx_packets"]
    for one in frames:
        await guest.send(one)
    await reach(switch, port, {"rx_packets": before + len(frames)})


# ---- frames that are dropped ----

DROPPED: dict[str, tuple[str, bytes, str]] = {
    # the port, a frame of its guest, the reason
    "by VLAN": ("access", build("ff:ff:ff:ff:ff:ff", OWN.hex(":"), [Tag(20, 3)], 1), "vlan_filtered"),
    "by port security": ("safe", frame(ALL_ONES, FORGED), "port_security"),
    "PAUSE": ("a", frame(bytes.fromhex("0180c2000001"), OWN), "bpdu"),
    "to itself": ("a", frame(OWN, FORGED), "same_port"),
}


@pytest.mark.parametrize("selected", ["select_src_port", "select_dst_port", None])
@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("what", DROPPED)
async def test_a_dropped_frame(
    switch: SwitchProcess, stack: Stack, what: str, drops: bool, selected: str | None
) -> None:
    """It is seen as it came, by mirrors that ask for drops of that port, or of all; malformed ones are not."""
    port, wrong, reason = DROPPED[what]
    guest, mon = await plug(switch, stack, port, mac=OWN), await plug(switch, stack, "mon")
    chosen = {selected: [port]} if selected else {}
    await mirror(switch, m={**chosen, "output_port": "mon", "drops": drops})
    if reason == "same_port":
        await learned(switch, guest, port)
    before = await stats(switch, port)
    await sent(switch, guest, port, wrong)
    runt = frame(ALL_ONES, OWN)[:13]
    await guest.send(runt)
    counts = {**before["rx_drops"]}
    for why in (reason, "malformed"):
        counts[why] = counts.get(why, 0) + 1
    await reach(switch, port, {"rx_drops": counts})
    await expect(mon, [wrong] if drops and selected != "select_dst_port" else [])
    assert mon.recv_nowait() is None


@pytest.mark.parametrize(("port", "reason"), [("policed", "policed"), ("stormy", "storm_control")])
async def test_what_is_too_much(switch: SwitchProcess, stack: Stack, port: str, reason: str) -> None:
    """One observer sees what passed, as b gets it; one that asks for drops sees all of it, each frame once."""
    guest = await plug(switch, stack, port)
    b, mon, other = [await plug(switch, stack, name, queue_size=1024) for name in ("b", "mon", "other")]
    chosen = {"select_src_port": [port]}
    await mirror(switch, m={**chosen, "output_port": "mon"}, n={**chosen, "output_port": "other", "drops": True})
    before = await stats(switch, port)
    frames = [frame(ALL_ONES, guest.mac, 1000) + i.to_bytes(4, "big") for i in range(300)]
    await sent(switch, guest, port, *frames)
    dropped = (await stats(switch, port))["rx_drops"].get(reason, 0) - before["rx_drops"].get(reason, 0)
    assert 0 < dropped < 300
    passed = [await b.recv(PATIENCE) for _ in range(300 - dropped)]
    assert set(passed) < set(frames)
    await expect(mon, passed)
    await expect(other, frames)
    assert {guest.recv_nowait() for guest in (b, mon, other)} == {None}


async def test_no_destination(switch: SwitchProcess, stack: Stack) -> None:
    """A guest alone with its observer: nobody else is there to flood to."""
    a, mon = await plug(switch, stack, "a"), await plug(switch, stack, "mon")
    lonely = [frame(ALL_ONES, a.mac, seed=i) for i in range(3)]
    await mirror(switch, m={"output_port": "mon"})
    await sent(switch, a, "a", lonely[0])
    await mirror(switch, m={"output_port": "mon", "drops": True})
    await sent(switch, a, "a", lonely[1])
    await mirror(switch, m={"select_dst_port": ["b"], "output_port": "mon", "drops": True})
    await sent(switch, a, "a", lonely[2])
    assert (await stats(switch, "a"))["rx_drops"]["no_destination"] >= 3
    await expect(mon, [lonely[1]])
    assert mon.recv_nowait() is None


async def test_the_mtu_of_the_output_is_that_of_what_is_kept(switch: SwitchProcess, stack: Stack) -> None:
    a, small = await plug(switch, stack, "a"), await plug(switch, stack, "small")
    await plug(switch, stack, "b")
    long, before = frame(ALL_ONES, a.mac, 1000), await stats(switch, "small")
    await mirror(switch, m={"output_port": "small"})
    await sent(switch, a, "a", long)
    drops = {**before["tx_drops"], "mtu_exceeded": before["tx_drops"].get("mtu_exceeded", 0) + 1}
    await reach(switch, "small", {"tx_drops": drops})
    await mirror(switch, m={"output_port": "small", "snaplen": 514})
    await sent(switch, a, "a", long)
    await expect(small, [long[:514]])
    assert small.recv_nowait() is None


# ---- large frames ----


@pytest.mark.parametrize("kind", ["tso4_largest", "tso6", "uso4", "tcp4", "udp6"])
@pytest.mark.parametrize("features", [ALL, PLAIN], ids=["takes_all", "takes_nothing"])
async def test_offloads_go_to_the_observer_as_it_takes_them(
    switch: SwitchProcess, stack: Stack, kind: str, features: int
) -> None:
    """Whole where it takes that, else in segments with checksums, for the very frame that its receiver gets whole."""
    a = await plug(switch, stack, "a", features=ALL, tx_buf_size=LARGEST + 12)
    b = await plug(switch, stack, "b", features=ALL)
    mon = await plug(switch, stack, "mon", features=features)
    await mirror(switch, m={"select_dst_port": ["b"], "output_port": "mon"})
    asked = requests(a.mac.hex(":"), b.mac.hex(":"))[kind]
    await a.send(asked.frame, header=asked.header)
    for guest in (b, mon):
        for data, header in finished(asked, guest.features):
            got = await guest.receive(PATIENCE)
            assert got.frame == data
            assert replace(got.header, num_buffers=0) == header
        assert guest.recv_nowait() is None


@pytest.mark.parametrize("features", [ALL, PLAIN], ids=["takes_all", "takes_nothing"])
@pytest.mark.parametrize("kind", ["tso4_largest", "tso6", "uso4", "tcp4", "udp6_extended"])
async def test_a_large_frame_is_cut_once(switch: SwitchProcess, stack: Stack, kind: str, features: int) -> None:
    """One frame of 96 bytes, which asks for nothing; the receiver still gets all of it."""
    a = await plug(switch, stack, "a", features=ALL, tx_buf_size=LARGEST + 12)
    b, mon = await plug(switch, stack, "b", features=PLAIN), await plug(switch, stack, "mon", features=features)
    await mirror(switch, m={"select_src_port": ["a"], "output_port": "mon", "snaplen": 96})
    asked = requests(a.mac.hex(":"), b.mac.hex(":"))[kind]
    for _ in range(3):
        await a.send(asked.frame, header=asked.header)
        for data, _ in finished(asked, b.features):
            assert await b.recv(PATIENCE) == data
        got = await mon.receive(PATIENCE)
        kept = min(96, len(asked.frame))
        assert (got.frame, got.header.flags, got.header.gso_type) == (asked.frame[:kept], 0, 0)
        assert mon.recv_nowait() is None


# ---- who waits, who is away ----


@pytest.mark.parametrize("selected", ["select_src_port", "select_dst_port"])
async def test_a_frame_that_waits_is_mirrored_once(switch: SwitchProcess, stack: Stack, selected: str) -> None:
    """As many as the receiver has buffers go at once; the others wait in the sender's ring, and are seen as they go."""
    a, slow = await plug(switch, stack, "a"), await plug(switch, stack, "slow", queue_size=16)
    mon = await plug(switch, stack, "mon", queue_size=1024)
    await learned(switch, slow, "slow")
    port = "a" if selected == "select_src_port" else "slow"
    await mirror(switch, m={selected: [port], "output_port": "mon"}, n={selected: [port], "output_port": "mon"})
    before = await stats(switch, "slow")
    frames = [frame(slow.mac, a.mac, seed=i) + i.to_bytes(4, "big") for i in range(100)]
    for one in frames:
        await a.send(one)
    got: list[bytes] = []
    with contextlib.suppress(TimeoutError):
        while len(got) < len(frames):
            got.append(await slow.recv(3 * WAIT))
    await a.drain()
    # one that waited too long is dropped at its receiver: it has left, as far as the mirror knows
    lost = (await stats(switch, "slow"))["tx_drops"].get("guest_rx_full", 0) - before["tx_drops"].get(
        "guest_rx_full", 0
    )
    assert len(got) + lost == len(frames)
    assert len(got) > 16, "nothing waited"
    await expect(mon, [one for one in frames for _ in range(2)])
    assert mon.recv_nowait() is None


async def test_a_full_observer_holds_nobody_up(switch: SwitchProcess, stack: Stack) -> None:
    """It takes what it has buffers for, the rest is counted there; also if known unicast would wait for it."""
    a, b = await plug(switch, stack, "a"), await plug(switch, stack, "b")
    slow = await plug(switch, stack, "slow", queue_size=16)
    await learned(switch, b, "b")
    await mirror(switch, m={"select_src_port": ["a"], "output_port": "slow"})
    before = await stats(switch, "slow")
    frames = [frame(b.mac, a.mac, seed=i) for i in range(200)]
    await sent(switch, a, "a", *frames)
    await expect(b, frames)
    drops = {**before["tx_drops"], "guest_rx_full": before["tx_drops"].get("guest_rx_full", 0) + 200 - 16}
    await reach(switch, "slow", {"tx_packets": before["tx_packets"] + 16, "tx_drops": drops})
    await expect(slow, frames[:16])


async def test_an_observer_without_a_link(switch: SwitchProcess, stack: Stack) -> None:
    """Nothing is counted as lost; once it is there it sees what comes from then on, and it may go and come again."""
    a, b = await plug(switch, stack, "a"), await plug(switch, stack, "b")
    await mirror(switch, m={"select_src_port": ["a"], "output_port": "mon"})
    before = await stats(switch, "mon")
    for seed in range(2):
        one, other = (frame(ALL_ONES, a.mac, seed=2 * seed + i) for i in range(2))
        await sent(switch, a, "a", one)
        mon = await plug(switch, stack, "mon")
        await switch.wait_link("mon")
        await sent(switch, a, "a", other)
        await expect(b, [one, other])
        await expect(mon, [other])
        assert mon.recv_nowait() is None
        await mon.close()
        await switch.wait_link("mon", "waiting_for_frontend")
    await reach(switch, "mon", {"tx_drops": before["tx_drops"]})


async def test_what_an_observer_sends_goes_nowhere(switch: SwitchProcess, stack: Stack) -> None:
    """Nor is it learned; with the mirror gone it is a port as others are."""
    a, mon = await plug(switch, stack, "a"), await plug(switch, stack, "mon")
    await mirror(switch, m={"output_port": "mon", "drops": True})
    before = await stats(switch, "mon")
    await sent(switch, mon, "mon", frame(ALL_ONES, mon.mac), frame(a.mac, mon.mac))
    drops = {**before["rx_drops"], "mirror_output": before["rx_drops"].get("mirror_output", 0) + 2}
    await reach(switch, "mon", {"rx_drops": drops})
    page = await switch.get("/bridges/br0/fdb")
    assert mon.mac.hex(":") not in {item["mac"] for item in page["items"]}
    assert mon.recv_nowait() is None
    await mirror(switch)
    await expect_only(a, mon)


# ---- changes ----


async def ordinary(guest: Guest) -> bytes:
    """The next frame that is none of those mirrored into VLAN 99."""
    while (got := await guest.recv(PATIENCE))[12:16] == b"\x81\x00\x00\x63":
        pass
    return got


async def test_changes_under_traffic_lose_nothing(switch: SwitchProcess, stack: Stack) -> None:
    """Mirrors come, change and go while a talks to b: b gets every frame in order; the observer copies of such only."""
    a, b = await plug(switch, stack, "a"), await plug(switch, stack, "b", queue_size=1024)
    mon = await plug(switch, stack, "mon", queue_size=1024)
    await learned(switch, b, "b")
    over, seen, before = asyncio.Event(), 0, await stats(switch, "b")

    async def talk() -> int:
        count = 0
        while not over.is_set() or count == 0:
            batch = [frame(b.mac, a.mac) + i.to_bytes(4, "big") for i in range(count, count + 50)]
            for one in batch:
                await a.send(one)
            for one in batch:
                assert await ordinary(b) == one
            count += len(batch)
        return count

    talking = asyncio.create_task(talk())
    shapes: list[dict[str, object]] = [
        {"select_src_port": ["a"]},
        {"select_dst_port": ["b"], "snaplen": 60},
        {"select_src_port": ["b"], "drops": True},
        {"select_vlan": [0]},
    ]
    try:
        for i in range(CHANGES):
            chosen = {f"m{k}": {**shapes[(i + k) % 4], "output_port": "mon"} for k in range(i % 3)}
            await mirror(switch, **chosen, **{"v": {"select_src_port": ["a"], "output_vlan": 99}} if i % 2 else {})
            for _ in range(1024):
                one = mon.recv_nowait()
                if one is None:
                    break
                assert one[:12] == b.mac + a.mac
                seen += 1
            if talking.done():
                break
    finally:
        over.set()
        count = await talking
    assert count > 0
    assert seen > 0
    await mirror(switch)
    await a.send(frame(ALL_ONES, a.mac))
    assert await ordinary(b) == frame(ALL_ONES, a.mac)
    assert (await stats(switch, "b"))["tx_drops"] == before["tx_drops"]


# ---- uplinks ----


@pytest.mark.parametrize("kind", ["tap", "af_packet"])
async def test_an_uplink_as_observer(switch: SwitchProcess, stack: Stack, kind: str) -> None:
    """A program on the host sees whole and cut frames, tags and all, and what it sends goes nowhere."""
    far = await stack.enter_async_context(namespace())
    if kind == "af_packet":
        await veth(far)
    body = tap(far) if kind == "tap" else packet(far)
    status, answer = await switch.request("PUT", "/api/v1/ports/up", body)
    assert status == 201, answer
    try:
        await switch.wait_link("up")
        cut = {"select_src_port": ["b"], "output_port": "up", "snaplen": 64}
        await mirror(switch, m={"select_src_port": ["a"], "output_port": "up"}, cut=cut)
        a, b = await plug(switch, stack, "a"), await plug(switch, stack, "b")  # later than what the host's kernel says
        (wire,) = await stack.enter_async_context(wires(far, "tap0" if kind == "tap" else "v1"))
        tagged = build(b.mac.hex(":"), a.mac.hex(":"), [Tag(10, 5)], 1, 200)
        await a.send(tagged)
        await wire.expect(tagged)
        long = frame(a.mac, b.mac, 1000)
        await b.send(long)
        await wire.expect(long[:64])
        await expect(a, [long])
        await expect(b, [tagged])
        dropped = (await stats(switch, "up"))["rx_drops"].get("mirror_output", 0)
        wire.send(frame(ALL_ONES, FORGED))

        async def counted() -> bool:
            return bool((await stats(switch, "up"))["rx_drops"].get("mirror_output", 0) > dropped)

        await until(counted, "the frame that the host sends to be dropped")
        assert a.recv_nowait() is None
    finally:
        await mirror(switch)
        status, answer = await switch.request("DELETE", "/api/v1/ports/up")
        assert status == 204, answer
