# SPDX-License-Identifier: Apache-2.0
"""Flows from their configuration to frames: by what name frames leave, what is counted, what goes by itself.

What each match and action means for a frame is judged elsewhere; here it is that the core does what the document says,
edit after edit, and that the API tells what it did.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, expect, frame, reach, stats, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Guests = dict[str, Guest]
ALL_ONES = b"\xff" * 6
FLOWS = "/api/v1/bridges/br0/flows"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    workers = {"workers": request.param}
    async with running_switch({"ports": {"a": {}, "b": {}, "c": {}}, "datapath": workers}) as switch:
        yield switch


@pytest_asyncio.fixture(loop_scope="module")
async def guests(switch: SwitchProcess) -> AsyncIterator[Guests]:
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(Guest(switch.port_socket(name))) for name in "abc"}
    status, answer = await switch.request("PUT", "/api/v1/bridges/br0", {})
    assert status == 200, answer


async def add(switch: SwitchProcess, *flows: str, delete: list[str] | None = None) -> None:
    status, answer = await switch.request("POST", f"{FLOWS}:batch", {"add": list(flows), "delete": delete or []})
    assert status == 200, answer


async def flow(switch: SwitchProcess, name: str) -> dict[str, Any]:
    found: dict[str, Any] = await switch.get(f"/bridges/br0/flows/{quote(name, safe='')}")
    return found


async def counted(switch: SwitchProcess, name: str, packets: int) -> None:
    async def reached() -> bool:
        return bool((await flow(switch, name))["stats"]["packets"] == packets)

    await until(reached, f"{packets} frames of flow {name}")


async def test_a_flow_sends_frames_where_it_says(switch: SwitchProcess, guests: Guests) -> None:
    a, b, c = guests.values()
    one = frame(ALL_ONES, a.mac, 100)
    await add(switch, "name=to-c,priority=5,in_port=a,actions=output:c", "priority=9,in_port=a,dl_vlan=7,actions=drop")
    await a.send(one)
    await expect(c, [one])
    await counted(switch, "to-c", 1)
    assert (await flow(switch, "to-c"))["stats"]["bytes"] == 100
    await add(switch, "name=to-c,priority=5,in_port=a,actions=output:b")
    assert (await flow(switch, "to-c"))["stats"]["packets"] == 0, "it has changed"
    await a.send(one)
    await expect(b, [one])
    await add(switch, "name=other,priority=1,arp,actions=drop", delete=["priority=9,dl_vlan=7,in_port=a"])
    await counted(switch, "to-c", 1)  # others have changed
    assert (b.recv_nowait(), c.recv_nowait()) == (None, None)
    await a.send(tagged := one[:12] + bytes.fromhex("81000007") + one[12:])
    await expect(b, [tagged])


async def test_dropped_frames_are_counted_by_flow_and_reason(switch: SwitchProcess, guests: Guests) -> None:
    a = guests["a"]
    before = (await stats(switch, "a"))["rx_drops"]
    await add(switch, "name=no,in_port=a,dl_type=0x88b5,actions=drop")
    await a.send(frame(ALL_ONES, a.mac))
    await reach(switch, "a", {"rx_drops": {**before, "flow_drop": before.get("flow_drop", 0) + 1}})
    await counted(switch, "no", 1)
    assert (await flow(switch, "no"))["stats"]["idle"] <= PATIENCE


async def test_a_meter_lets_through_what_it_may(switch: SwitchProcess, guests: Guests) -> None:
    a, b, _ = guests.values()
    path = "/api/v1/bridges/br0/meters/slow"
    status, answer = await switch.request("PUT", path, {"rate_pps": 1, "burst_packets": 2})
    assert status == 201, answer
    await add(switch, "name=metered,in_port=a,actions=meter:slow,output:b")
    frames = [frame(ALL_ONES, a.mac, 100, seed) for seed in range(30)]
    for one in frames:
        await a.send(one)
    await counted(switch, "metered", 30)
    found = (await switch.get("/bridges/br0/meters/slow"))["stats"]
    assert found["packets"] == 30
    assert 1 <= found["dropped_packets"] <= 28
    await expect(b, frames[:2])
    before = (await stats(switch, "a"))["rx_drops"]
    assert before["meter"] == found["dropped_packets"]
    status, answer = await switch.request("DELETE", path)
    assert status == 409, answer


async def test_a_flow_goes_when_its_time_is_over(switch: SwitchProcess, guests: Guests) -> None:
    a, _, c = guests.values()
    soon = "name=soon,priority=9,hard_timeout=1,in_port=a,actions=drop"
    await add(switch, soon, "name=stays,in_port=a,actions=output:c")

    async def gone() -> bool:
        return [item["name"] for item in (await switch.get("/bridges/br0/flows"))["items"]] == ["stays"]

    await until(gone, "the flow to expire")
    assert (await switch.get("/config/revisions"))["items"][0]["actor"] == "expired"
    one = frame(ALL_ONES, a.mac)
    await a.send(one)
    await expect(c, [one])


async def test_ports_come_and_go_under_flows(switch: SwitchProcess, guests: Guests) -> None:
    a, b, _ = guests.values()
    await add(switch, "name=f,in_port=a,actions=output:b")
    for _ in range(3):
        for name in ("x", "y"):
            status, answer = await switch.request("PUT", f"/api/v1/ports/{name}", {"bridge": "br0"})
            assert status == 201, answer
        one = frame(ALL_ONES, a.mac)
        await a.send(one)
        await expect(b, [one])
        for name in ("x", "y"):
            status, answer = await switch.request("DELETE", f"/api/v1/ports/{name}")
            assert status == 204, answer
    await counted(switch, "f", 3)


async def test_many_flows(switch: SwitchProcess, guests: Guests) -> None:
    a, b, _ = guests.values()
    many = [f"dl_dst=02:00:00:{i >> 16:02x}:{i >> 8 & 255:02x}:{i & 255:02x},actions=output:b" for i in range(5000)]
    await add(switch, *many, "priority=1,in_port=a,actions=drop")
    one = frame(bytes.fromhex("0200000012ab"), a.mac)
    await a.send(frame(bytes.fromhex("020000ffffff"), a.mac))
    await a.send(one)
    await expect(b, [one])
    for name in ("priority=32768,dl_dst=02:00:00:00:12:ab", "priority=1,in_port=a"):
        await counted(switch, name, 1)


async def test_too_many_masks_are_refused_and_change_nothing(switch: SwitchProcess, guests: Guests) -> None:
    a, b, _ = guests.values()
    await add(switch, "name=to-b,in_port=a,actions=output:b")
    many = [f"ip,nw_src=10.0.0.0/{i},nw_dst=10.0.0.0/{j},actions=drop" for i in range(1, 33) for j in range(1, 33)]
    status, answer = await switch.request("POST", f"{FLOWS}:batch", {"add": many, "delete": []})
    assert (status, "1025 different masks, of 1024 at most" in answer["detail"]) == (422, True), answer
    one = frame(ALL_ONES, a.mac)
    await a.send(one)
    await expect(b, [one])
    await add(switch, *many[1:])  # with the one of to-b as many as there may be
