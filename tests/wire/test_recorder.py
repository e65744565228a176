# SPDX-License-Identifier: Apache-2.0
"""The flight recorder on a real switch: every drop that a counter tells has its record; frames sampled as wanted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.wire.lab import expect_only, flush_frames, frame, reach, stats, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROADCAST, NOBODY = b"\xff" * 6, bytes.fromhex("02000000ffff")
PAUSE = bytes.fromhex("0180c2000001")
PORTS: dict[str, Any] = {
    "a": {},
    "b": {"mtu": 1000},
    "v": {"tag": 10},
    "p": {"protected": True},
    "q": {"protected": True},
    "off": {"bridge": "lonely"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    ports = {name: {"bridge": "br0", **keys} for name, keys in PORTS.items()}
    config = {"bridges": {"br0": {}, "lonely": {}}, "ports": ports, "recorder": {"sample": 0}}
    async with running_switch({**config, "datapath": {"workers": request.param}}) as switch:
        yield switch


@pytest_asyncio.fixture(loop_scope="module")
async def guests(switch: SwitchProcess) -> AsyncIterator[dict[str, Guest]]:
    async with contextlib.AsyncExitStack() as stack:
        made = {name: await stack.enter_async_context(Guest(switch.port_socket(name))) for name in PORTS}
        for name in ("b", "p", "q"):
            await made[name].send(frame(BROADCAST, made[name].mac))
        await until(lambda: _learned(switch), "the addresses")
        yield made


async def _learned(switch: SwitchProcess) -> bool:
    return {"b", "p", "q"} <= {entry["port"] for entry in (await switch.get("/bridges/br0/fdb"))["items"]}


async def drops(switch: SwitchProcess, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await switch.get(f"/drops{query}"))["items"]
    return found


async def counted(switch: SwitchProcess) -> Counter[tuple[str, str, str]]:
    """What the drop counters say, by port, direction and reason."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for port in PORTS:
        now = await stats(switch, port)
        for side in ("rx", "tx"):
            sums.update({(port, side, reason): n for reason, n in now[f"{side}_drops"].items() if n})
    return sums


async def recorded(switch: SwitchProcess) -> Counter[tuple[str, str, str]]:
    """The same as the records say."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for drop in await drops(switch, "?limit=10000"):
        sums[drop["port"], drop["direction"], drop["reason"]] += drop["count"]
    return sums


async def send_what_is_dropped(guests: dict[str, Guest]) -> None:
    a, p, lonely = guests["a"], guests["p"], guests["off"]
    tagged = BROADCAST + guests["v"].mac + bytes.fromhex("8100000b88b5") + bytes(46)
    for n in range(5):
        await a.send(frame(PAUSE, a.mac, 60 + n))
        await a.send(frame(guests["b"].mac, a.mac, 1200))
        await a.send(frame(a.mac, a.mac, 60))
        await p.send(frame(guests["q"].mac, p.mac, 60))
        await guests["v"].send(tagged)
        await lonely.send(frame(BROADCAST, lonely.mac, 60))
    await lonely.send(b"\xff" * 10)


async def test_the_records_are_what_the_counters_say(switch: SwitchProcess, guests: dict[str, Guest]) -> None:
    before = await counted(switch)
    await send_what_is_dropped(guests)
    wanted = {
        ("a", "rx", "bpdu"): 5,
        ("a", "rx", "same_port"): 5,
        ("b", "tx", "mtu_exceeded"): 5,
        ("q", "tx", "isolated"): 5,
        ("v", "rx", "vlan_filtered"): 5,
        ("off", "rx", "no_destination"): 5,
        ("off", "rx", "malformed"): 1,
    }

    async def all_counted() -> bool:
        now = await counted(switch)
        return all(now[key] - before[key] >= n for key, n in wanted.items())

    await until(all_counted, "the drops")
    assert await recorded(switch) == await counted(switch)


async def test_a_record_says_what_when_and_where(switch: SwitchProcess, guests: dict[str, Guest]) -> None:
    a, b = guests["a"], guests["b"]
    start = datetime.now(UTC)
    large = frame(b.mac, a.mac, 1100, 7)
    n = (await counted(switch))["b", "tx", "mtu_exceeded"]
    await a.send(large)
    await reach(switch, "b", {"tx_drops": {**(await stats(switch, "b"))["tx_drops"], "mtu_exceeded": n + 1}})
    newest, *older = await drops(switch, "?port=b")
    assert timedelta(seconds=-0.1) <= datetime.fromisoformat(newest["time"]) - start <= timedelta(seconds=60)
    assert [newest[key] for key in ("port", "bridge", "in_port", "direction", "reason", "count", "len", "vid")] == [
        *("b", "br0", "a", "tx", "mtu_exceeded", 1, 1100, 0)
    ]
    assert bytes.fromhex(newest["bytes"]) == large[:87]
    assert newest["summary"] == f"{a.mac.hex(':')} > {b.mac.hex(':')}, type 0x88b5"
    times = [drop["time"] for drop in [newest, *older]]
    assert times == sorted(times, reverse=True)
    said = await switch.cli("show", "drops", "a")
    assert "mtu_exceeded" in said.splitlines()[1]


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [("port=b", "port", "b"), ("reason=isolated", "reason", "isolated"), ("direction=tx", "direction", "tx")],
)
async def test_records_are_chosen(
    switch: SwitchProcess, guests: dict[str, Guest], query: str, key: str, value: str
) -> None:
    await send_what_is_dropped(guests)
    await until(lambda: _any(switch, query), "a record")
    found = await drops(switch, f"?{query}&limit=3")
    assert [drop[key] for drop in found] == [value] * len(found)
    assert 0 < len(found) <= 3
    assert {drop["bridge"] for drop in await drops(switch, "?bridge=lonely")} <= {"lonely"}


async def _any(switch: SwitchProcess, query: str) -> bool:
    return bool(await drops(switch, f"?{query}"))


async def sample(switch: SwitchProcess, **keys: Any) -> None:
    status, answer = await switch.request("PATCH", "/api/v1/config", {"recorder": keys}, headers={"If-Match": "*"})
    assert (status, answer["disruptive"]) == (200, False)


async def test_frames_are_sampled_as_the_configuration_says(switch: SwitchProcess, guests: dict[str, Guest]) -> None:
    a, b = guests["a"], guests["b"]

    async def exchanged(n: int) -> list[int]:
        """Send ten frames; those of them that were sampled, oldest first."""
        sent = [frame(b.mac, a.mac, 100 + i, n) for i in range(10)]
        await flush_frames([b], a)
        for one in sent:
            await a.send(one)
        await expect_only(b, a, sent)
        found = (await switch.get("/frames?port=a"))["items"]
        return [
            frame["len"]
            for frame in reversed(found)
            if frame["bytes"][28:30] == f"{n:02x}" and frame["bytes"][24:28] == "88b5"
        ]

    assert await exchanged(1) == []
    await sample(switch, sample=1)
    assert await exchanged(2) == [*range(100, 110)]
    (newest,) = (await switch.get("/frames?port=a&limit=1"))["items"]
    assert (newest["port"], newest["bridge"], newest["vid"]) == ("a", "br0", 0)
    known = [frame for frame in (await switch.get("/frames?port=a"))["items"] if frame["len"] == 105]
    assert {(frame["copies"], frame.get("out_port"), frame.get("reason")) for frame in known} == {(1, "b", None)}
    await sample(switch, sample=1, filter="greater 108")
    assert await exchanged(3) == [108, 109]
    await sample(switch, sample=0, filter="")
    assert await exchanged(4) == []


async def test_a_filter_that_is_none_changes_nothing(switch: SwitchProcess) -> None:
    before = await switch.get("/config")
    status, problem = await switch.request(
        "PATCH", "/api/v1/config", {"recorder": {"filter": "host example.com"}}, headers={"If-Match": "*"}
    )
    assert (status, problem["errors"][0]["pointer"]) == (422, "#/recorder/filter")
    assert "write addresses as numbers" in problem["detail"]
    assert await switch.get("/config") == before
