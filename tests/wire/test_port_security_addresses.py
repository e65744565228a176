# SPDX-License-Identifier: Apache-2.0
"""How many addresses a port may have, and addresses that stay with it: over VLANs, ageing, reconnects and flushes.

Who is heard is seen at a guest that watches everything; what is known, in the API. Ageing is waited for, never timed: a
test looks until an entry has gone, or until a neighbour's that must go has.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from tests.system.conftest import running_switch
from tests.vlans import Tag, build
from tests.wire.lab import reach, stats, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
ALL = "ff:ff:ff:ff:ff:ff"
FDB = "/api/v1/bridges/br0/fdb"
CONFIG: dict[str, Any] = {
    "bridges": {"br0": {"aging_time": 1}},
    "ports": {
        "two": {"port_security": {"max_macs": 2}},
        "kept": {"port_security": {"sticky": True, "max_macs": 8}},
        "kept_one": {"port_security": {"sticky": True, "max_macs": 1}},
        "strict": {"port_security": {"max_macs": 1}},
        "free": {},
        "watch": {},
    },
}


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


@pytest_asyncio.fixture(loop_scope="module")
async def lab(switch: SwitchProcess) -> AsyncIterator[Lab]:
    """Guests on all ports, on a bridge that knows nothing and lets addresses grow old at once."""
    await change(switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 1})
    for kind in ("dynamic", "sticky", "static"):
        await change(switch, "DELETE", f"{FDB}?type={kind}")
    async with Stack() as stack:
        guests = {
            name: await stack.enter_async_context(Guest(switch.port_socket(name), queue_size=1024))
            for name in CONFIG["ports"]
        }
        yield Lab(switch, guests, stack)
    for name in CONFIG["ports"]:
        await switch.wait_link(name, "waiting_for_frontend")


async def change(switch: SwitchProcess, method: str, path: str, body: object = None) -> None:
    status, answer = await switch.request(method, path, body)
    assert status in (200, 201, 204), answer


class Lab:
    """A switch, and a guest on each port."""

    def __init__(self, switch: SwitchProcess, guests: dict[str, Guest], stack: Stack) -> None:
        self.switch = switch
        self.guests = guests
        self.stack = stack
        self._number = 0

    async def heard(self, port: str, src: str, *tags: Tag, dst: str = ALL) -> bool:
        """Send a frame with this source; whether the guest that watches (or is the destination) got it."""
        self._number += 1
        sent = build(dst, src, tags, self._number)
        before, drops = await stats(self.switch, port), "port_security"
        for guest in self.guests.values():
            while guest.recv_nowait() is not None:
                pass
        await self.guests[port].send(sent)
        after = await reach(self.switch, port, {"rx_packets": before["rx_packets"] + 1})
        got = [name for name, guest in self.guests.items() if guest.recv_nowait() == sent]
        refused = after["rx_drops"].get(drops, 0) - before["rx_drops"].get(drops, 0)
        assert bool(got) is not bool(refused)
        return bool(got)

    async def fdb(self, query: str = "") -> dict[tuple[int, str], tuple[str, str]]:
        """What the bridge knows: (VID, MAC) -> port and type."""
        page = await self.switch.get(f"/bridges/br0/fdb?limit=1000{query}")
        return {(item["vid"], item["mac"]): (item["port"], item["type"]) for item in page["items"]}

    async def port_of(self, address: str, vid: int = 0) -> tuple[str, str] | None:
        return (await self.fdb()).get((vid, address))

    async def grow_old(self) -> None:
        """Wait until an address that was learned now, at a port without rules, is forgotten."""
        assert await self.heard("free", mac(99))
        assert await self.port_of(mac(99)) == ("free", "dynamic")

        async def forgotten() -> bool:
            return await self.port_of(mac(99)) is None

        await until(forgotten, "an address to be forgotten")

    async def plug_again(self, port: str) -> None:
        """A guest goes, and another comes."""
        await self.guests[port].close()
        await self.switch.wait_link(port, "waiting_for_frontend")
        self.guests[port] = await self.stack.enter_async_context(Guest(self.switch.port_socket(port), queue_size=1024))
        await self.switch.wait_link(port)


# ---- max_macs ----


async def test_as_many_addresses_as_may_be(lab: Lab) -> None:
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    assert [await lab.heard("two", mac(i)) for i in (1, 2, 3, 1, 4, 2)] == [True, True, False, True, False, True]
    assert set(await lab.fdb("&port=two")) == {(0, mac(1)), (0, mac(2))}


async def test_an_address_counts_in_each_vlan(lab: Lab) -> None:
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    assert await lab.heard("two", mac(1), Tag(10))
    assert await lab.heard("two", mac(1), Tag(20))
    assert not await lab.heard("two", mac(1), Tag(30))
    assert not await lab.heard("two", mac(1))
    assert not await lab.heard("two", mac(2), Tag(10))
    assert await lab.heard("two", mac(1), Tag(20, 7))
    assert set(await lab.fdb("&port=two")) == {(10, mac(1)), (20, mac(1))}


async def test_what_has_grown_old_makes_room(lab: Lab) -> None:
    assert await lab.heard("strict", mac(1))

    async def another() -> bool:
        return await lab.heard("strict", mac(2))

    await until(another, "another address to be taken")
    assert set(await lab.fdb("&port=strict")) <= {(0, mac(2))}


async def test_what_is_removed_or_flushed_makes_room(lab: Lab) -> None:
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    assert await lab.heard("strict", mac(1))
    assert not await lab.heard("strict", mac(2))
    await change(lab.switch, "DELETE", f"{FDB}/0/{mac(1)}")
    assert await lab.heard("strict", mac(2))
    assert not await lab.heard("strict", mac(1))
    await change(lab.switch, "DELETE", f"{FDB}?port=strict")
    assert await lab.heard("strict", mac(1))
    await lab.plug_again("strict")
    assert await lab.heard("strict", mac(3))


async def test_an_address_that_moves_away_makes_room(lab: Lab) -> None:
    """And one can't move to a port that is full."""
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    assert await lab.heard("strict", mac(1))
    assert await lab.heard("free", mac(2))
    assert not await lab.heard("strict", mac(2))
    assert await lab.port_of(mac(2)) == ("free", "dynamic")
    assert await lab.heard("free", mac(1))
    assert await lab.heard("strict", mac(2))
    assert (await lab.port_of(mac(1)), await lab.port_of(mac(2))) == (("free", "dynamic"), ("strict", "dynamic"))


async def test_a_limit_changes_live(lab: Lab) -> None:
    """One that is lower forgets nobody; nobody new is taken until there is room."""
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    try:
        assert [await lab.heard("two", mac(i)) for i in (1, 2, 3)] == [True, True, False]
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": {"max_macs": 3}})
        assert [await lab.heard("two", mac(i)) for i in (3, 4)] == [True, False]
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": {"max_macs": 1}})
        assert [await lab.heard("two", mac(i)) for i in (1, 2, 3, 4)] == [True, True, True, False]
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": None})
        assert await lab.heard("two", mac(4))
    finally:
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": {"max_macs": 2}})


# ---- sticky ----


async def test_a_sticky_address_does_not_grow_old(lab: Lab) -> None:
    assert await lab.heard("kept", mac(1))
    assert await lab.heard("kept", mac(1), Tag(10))
    wanted = {(0, mac(1)): ("kept", "sticky"), (10, mac(1)): ("kept", "sticky")}
    assert await lab.fdb() == wanted
    await lab.grow_old()
    await lab.grow_old()
    assert await lab.fdb() == wanted
    assert await lab.fdb("&type=sticky") == wanted
    assert await lab.fdb("&type=dynamic") == {}
    status, entry = await lab.switch.request("GET", f"{FDB}/10/{mac(1)}")
    assert (status, entry["type"]) == (200, "sticky")


async def test_a_sticky_address_stays_when_its_guest_comes_again(lab: Lab) -> None:
    assert await lab.heard("kept", mac(1))
    await lab.plug_again("kept")
    assert await lab.port_of(mac(1)) == ("kept", "sticky")
    assert await lab.heard("free", mac(9), dst=mac(1))
    assert await lab.heard("kept", mac(1))
    assert not await lab.heard("two", mac(1))


async def test_a_sticky_address_is_nobody_elses(lab: Lab) -> None:
    """A port with rules drops who pretends to be it; one without lets the frame pass, and nothing moves."""
    assert await lab.heard("kept", mac(1))
    for port in ("two", "kept_one", "strict"):
        assert not await lab.heard(port, mac(1)), port
    assert await lab.heard("free", mac(1))
    assert await lab.port_of(mac(1)) == ("kept", "sticky")
    assert await lab.heard("two", mac(1), Tag(10)), "it is not known there"
    assert await lab.port_of(mac(1)) == ("kept", "sticky")


async def test_a_sticky_address_keeps_its_place(lab: Lab) -> None:
    """Of a port with room for one: who came first stays, whatever time goes by and whoever plugs in."""
    assert await lab.heard("kept_one", mac(1))
    await lab.grow_old()
    assert not await lab.heard("kept_one", mac(2))
    await lab.plug_again("kept_one")
    assert not await lab.heard("kept_one", mac(2))
    assert await lab.heard("kept_one", mac(1))
    await change(lab.switch, "DELETE", f"{FDB}/0/{mac(1)}")
    assert await lab.heard("kept_one", mac(2))
    assert not await lab.heard("kept_one", mac(1))


async def test_only_a_flush_of_sticky_ones_removes_it(lab: Lab) -> None:
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    assert await lab.heard("kept", mac(1))
    assert await lab.heard("kept", mac(2), Tag(10))
    assert await lab.heard("free", mac(3))
    kept = {(0, mac(1)): ("kept", "sticky"), (10, mac(2)): ("kept", "sticky")}
    for query in ("port=kept", "vid=0&port=kept", "type=dynamic&port=kept", "type=static"):
        await change(lab.switch, "DELETE", f"{FDB}?{query}")
        assert await lab.fdb() == kept | {(0, mac(3)): ("free", "dynamic")}, query
    await change(lab.switch, "DELETE", FDB)
    assert await lab.fdb() == kept
    assert await lab.heard("free", mac(3))
    await change(lab.switch, "DELETE", f"{FDB}?type=sticky&vid=10")
    assert await lab.fdb() == {(0, mac(1)): ("kept", "sticky"), (0, mac(3)): ("free", "dynamic")}
    await change(lab.switch, "DELETE", f"{FDB}?type=sticky&port=free")
    assert await lab.port_of(mac(1)) == ("kept", "sticky")
    await lab.switch.cli("fdb", "flush", "br0")
    assert await lab.fdb() == {(0, mac(1)): ("kept", "sticky")}
    await lab.switch.cli("fdb", "flush", "br0", "--sticky", "--port", "kept")
    assert await lab.fdb() == {}


async def test_it_can_be_learned_elsewhere_once_it_is_removed(lab: Lab) -> None:
    assert await lab.heard("kept", mac(1))
    await change(lab.switch, "DELETE", f"{FDB}/0/{mac(1)}")
    assert await lab.heard("two", mac(1))
    assert await lab.port_of(mac(1)) == ("two", "dynamic")


async def test_what_a_port_knows_becomes_sticky_and_ordinary_again(lab: Lab) -> None:
    await change(lab.switch, "PATCH", "/api/v1/bridges/br0", {"aging_time": 0})
    assert await lab.heard("two", mac(1))
    assert await lab.port_of(mac(1)) == ("two", "dynamic")
    try:
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": {"sticky": True, "max_macs": 8}})
        assert await lab.port_of(mac(1)) == ("two", "sticky")
        assert await lab.heard("free", mac(1))
        assert await lab.port_of(mac(1)) == ("two", "sticky")
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": {"sticky": False}})
        assert await lab.port_of(mac(1)) == ("two", "dynamic")
        assert await lab.heard("free", mac(1))
        assert await lab.port_of(mac(1)) == ("free", "dynamic")
    finally:
        await change(lab.switch, "PATCH", "/api/v1/ports/two", {"port_security": {"max_macs": 2, "sticky": False}})


async def test_a_sticky_address_is_gone_with_its_port_or_bridge(lab: Lab) -> None:
    port, other = "/api/v1/ports/short_lived", "/api/v1/bridges/br1"
    rules = {"bridge": "br0", "port_security": {"sticky": True, "max_macs": 8}}
    await change(lab.switch, "PUT", other, {})
    for end in ("moved", "retagged", "deleted"):
        await change(lab.switch, "PUT", port, rules)
        lab.guests["short_lived"] = await lab.stack.enter_async_context(Guest(lab.switch.port_socket("short_lived")))
        await lab.switch.wait_link("short_lived")
        assert await lab.heard("short_lived", mac(7)), end
        if end == "moved":
            await change(lab.switch, "PATCH", port, {"bridge": "br1"})
        elif end == "retagged":
            await change(lab.switch, "PATCH", port, {"tag": 10})
        if end != "deleted":
            assert await lab.port_of(mac(7)) is None, end
        await lab.guests.pop("short_lived").close()
        await change(lab.switch, "DELETE", port)
        assert await lab.port_of(mac(7)) is None, end
        assert await lab.heard("two", mac(7)), end
        await change(lab.switch, "DELETE", f"{FDB}?port=two")
    await change(lab.switch, "DELETE", other)
