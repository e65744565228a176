# SPDX-License-Identifier: Apache-2.0
"""What a control plane tells tunnels, and what that changes on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.wire.lab import expect, until
from tests.wire.tunnels import ALL_ONES, KINDS, Lab, inner, local, mac, remote, tunnel_lab, wrap

pytestmark = pytest.mark.asyncio(loop_scope="module")

kinds = pytest.mark.parametrize("kind", KINDS)
BOTH = (200, 201)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with tunnel_lab(request.param) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="module")
async def lab(switch: Lab) -> AsyncIterator[Lab]:
    yield switch
    await switch.close()


async def owned(lab: Lab, kind: str = "vxlan", **settings: Any) -> None:
    """A tunnel that a control plane alone decides on."""
    await lab.tunnel("t", kind, **{"remotes": [], "learning": False, "external": True, **settings})


async def tell(lab: Lab, mac_: bytes, host: str, *, vni: int = 100, vid: int = 0, status: Any = BOTH) -> Any:
    return await lab.call("PUT", f"/tunnels/t/vnis/{vni}/macs/{vid}/{mac_.hex(':')}", {"remote": host}, status=status)


async def tell_remote(lab: Lab, host: str, *, vni: int = 100, status: Any = BOTH) -> Any:
    return await lab.call("PUT", f"/tunnels/t/vnis/{vni}/remotes/{host}", status=status)


@kinds
async def test_remotes_of_one_network(lab: Lab, kind: str) -> None:
    """Each network floods to its own ones, and hears them only."""
    await owned(lab, kind, vni={"10": 1010, "20": 1020})
    a = await lab.plug("a")
    ten, twenty = await lab.plug("access10"), await lab.plug("access20")
    await ten.send(inner(ALL_ONES, ten.mac))
    await a.recv()
    await lab.wire.nothing()
    assert (await lab.stats("t"))["tx_drops"] == {"no_destination": 1}
    for vni, host in ((1010, remote(1)), (1010, remote(2)), (1020, remote(2)), (1020, remote(3))):
        assert (await tell_remote(lab, host, vni=vni, status=201))["origin"] == "external"
        await tell_remote(lab, host, vni=vni, status=200)
    await ten.send(inner(ALL_ONES, ten.mac))
    await twenty.send(inner(ALL_ONES, twenty.mac))
    seen = await lab.wire.receive(4)
    assert sorted((d.vni, d.dst) for d in seen) == [
        *((1010, remote(1)), (1010, remote(2)), (1020, remote(2)), (1020, remote(3)))
    ]
    for d in seen:
        d.exact()
    lab.come(kind, 1020, inner(ALL_ONES, mac(1), seed=1), remote(1))
    lab.come(kind, 1010, inner(ALL_ONES, mac(1), seed=2), remote(1))
    await expect(ten, [inner(ALL_ONES, mac(1), seed=2)])
    assert twenty.recv_nowait() is None
    assert (await lab.stats("t"))["rx_drops"] == {"unknown_vtep": 1}
    assert mac(1).hex(":") not in await lab.fdb()
    await lab.call("DELETE", f"/tunnels/t/vnis/1010/remotes/{remote(1)}", status=204)
    await ten.send(inner(ALL_ONES, ten.mac))
    (d,) = await lab.wire.receive(1)
    assert (d.vni, d.dst) == (1010, remote(2))
    lab.come(kind, 1010, inner(ALL_ONES, mac(1)), remote(1))

    async def counted() -> bool:
        return bool((await lab.stats("t"))["rx_drops"] == {"unknown_vtep": 2})

    await until(counted, "one that is no remote any more")
    items = (await lab.switch.get("/tunnels/t/vnis/1020/remotes"))["items"]
    assert [(i["address"], i["origin"], i["vni"]) for i in items] == [
        (remote(2), "external", 1020),
        (remote(3), "external", 1020),
    ]


async def test_addresses_that_were_told(lab: Lab) -> None:
    """They go to their host only, remote or not; are external, heard from there, and moved by nobody else."""
    await owned(lab)
    a, b = await lab.plug("a"), await lab.plug("b")
    await tell_remote(lab, remote(1))
    await tell(lab, mac(1), remote(5), status=201)
    await tell(lab, mac(1), remote(5), status=200)
    await a.send(inner(mac(1), a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(5)
    await lab.wire.nothing()
    assert b.recv_nowait() is None
    entry = (await lab.fdb())[mac(1).hex(":")]
    assert (entry["type"], entry["port"], entry["remote"]) == ("external", "t", remote(5))
    # its host is heard now
    lab.come("vxlan", 100, inner(ALL_ONES, mac(2), seed=3), remote(5))
    await expect(a, [inner(ALL_ONES, mac(2), seed=3)])
    # somebody else has its address: a guest, or another host
    lab.come("vxlan", 100, inner(ALL_ONES, mac(1), seed=4), remote(1))
    await expect(a, [inner(ALL_ONES, mac(1), seed=4)])
    await b.send(inner(ALL_ONES, mac(1)))
    await expect(a, [inner(ALL_ONES, mac(1))])
    await lab.wire.receive(1)
    assert (await lab.fdb())[mac(1).hex(":")]["remote"] == remote(5)
    await a.send(inner(mac(1), a.mac, seed=9))
    (d,) = await lab.wire.receive(1)
    assert (d.dst, d.inner) == (remote(5), inner(mac(1), a.mac, seed=9))
    # who told it may move it
    await tell(lab, mac(1), remote(6), status=BOTH)
    await a.send(inner(mac(1), a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(6)
    found = await lab.switch.get(f"/tunnels/t/vnis/100/macs/0/{mac(1).hex(':')}")
    assert found["remote"] == remote(6)
    # a flush leaves it; DELETE does not
    await lab.call("DELETE", "/bridges/br0/fdb", status=(200, 204))
    assert mac(1).hex(":") in await lab.fdb()
    await lab.call("DELETE", f"/bridges/br0/fdb/0/{mac(1).hex(':')}", status=409)
    await lab.call("DELETE", f"/tunnels/t/vnis/100/macs/0/{mac(1).hex(':')}", status=204)
    await lab.call("DELETE", f"/tunnels/t/vnis/100/macs/0/{mac(1).hex(':')}", status=404)
    await a.send(inner(mac(1), a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(1)
    # nor is its last host heard
    lab.come("vxlan", 100, inner(ALL_ONES, mac(2), seed=3), remote(6))

    async def counted() -> bool:
        return bool((await lab.stats("t"))["rx_drops"] == {"unknown_vtep": 1})

    await until(counted, "a host that nothing is behind any more")


async def test_with_learning_both_are_known(lab: Lab) -> None:
    """A tunnel that learns, and was told: what was told is not moved by what is heard, the rest is learned."""
    await lab.tunnel("t", remotes=[remote(1)])
    a = await lab.plug("a")
    await lab.knows(a, "a")
    lab.come("vxlan", 100, inner(a.mac, mac(1)), remote(3))
    await expect(a, [inner(a.mac, mac(1))])
    await tell(lab, mac(1), remote(4))
    for n in range(3):
        lab.come("vxlan", 100, inner(a.mac, mac(1), seed=n), remote(3))
        lab.come("vxlan", 100, inner(a.mac, mac(2), seed=n), remote(3))
    for _ in range(6):
        await a.recv()
    found = await lab.fdb()
    assert (found[mac(1).hex(":")]["remote"], found[mac(1).hex(":")]["type"]) == (remote(4), "external")
    assert (found[mac(2).hex(":")]["remote"], found[mac(2).hex(":")]["type"]) == (remote(3), "dynamic")
    origins = {r["address"]: r["origin"] for r in (await lab.switch.get("/tunnels/t"))["remotes"]}
    assert origins[remote(1)] == "static"
    assert origins[remote(3)] == "learned"


async def test_a_batch_is_in_force_when_it_is_answered(lab: Lab) -> None:
    """Thousands at once; each of them on the wire; removed as a whole."""
    await owned(lab)
    a = await lab.plug("a")
    count = 2000
    macs = [{"vni": 100, "vid": 0, "mac": mac(n).hex(":"), "remote": remote(1 + n % 200)} for n in range(count)]
    remotes = [{"vni": 100, "address": remote(n)} for n in range(1, 11)]
    body = {"add": {"remotes": remotes, "macs": macs}}
    assert await lab.call("POST", "/tunnels/t:batch", body) == {"added": count + 10, "removed": 0}
    assert await lab.call("POST", "/tunnels/t:batch", body) == {"added": 0, "removed": 0}
    picked = range(0, count, 97)
    for n in picked:
        await a.send(inner(mac(n), a.mac))
    seen = await lab.wire.receive(len(picked))
    assert {d.inner[:6]: d.dst for d in seen} == {mac(n): remote(1 + n % 200) for n in picked}
    await a.send(inner(ALL_ONES, a.mac))
    assert {d.dst for d in await lab.wire.receive(10)} == {remote(n) for n in range(1, 11)}
    # moved by removing and adding in one
    moved = {"remove": {"macs": [{k: m[k] for k in ("vni", "vid", "mac")} for m in macs[:500]]}}
    moved["add"] = {"macs": [{**m, "remote": remote(250)} for m in macs[:100]]}
    assert await lab.call("POST", "/tunnels/t:batch", moved) == {"added": 100, "removed": 500}
    await a.send(inner(mac(5), a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(250)
    await a.send(inner(mac(400), a.mac))
    assert len(await lab.wire.receive(10)) == 10
    assert (await lab.switch.get("/tunnels/t"))["macs"] == count - 400


async def test_a_refused_batch_changes_nothing(lab: Lab) -> None:
    await owned(lab)
    b = await lab.plug("b")
    await lab.knows(b, "b")  # a static address of the configuration
    await tell_remote(lab, remote(1))
    good = {"vni": 100, "vid": 0, "mac": mac(1).hex(":"), "remote": remote(2)}
    refused: list[tuple[int, dict[str, Any]]] = [
        (409, {"add": {"macs": [good, {**good, "mac": b.mac.hex(":")}]}}),
        (422, {"add": {"macs": [good, {**good, "vni": 101}]}}),
        (422, {"add": {"macs": [good, {**good, "remote": "fd09::5"}]}}),
        (422, {"add": {"macs": [good, {**good, "remote": local()}]}}),
        (422, {"add": {"macs": [good, {**good, "mac": "01:00:5e:00:00:01"}]}}),
        (422, {"add": {"macs": [good, {**good, "mac": "nonsense"}]}}),
        (422, {"add": {"macs": [good, {**good, "vid": 4095}]}}),
        (422, {"add": {"macs": [good], "remotes": [{"vni": 100, "address": "224.0.0.1"}]}}),
        (422, {"add": {"macs": [good], "remotes": [{"vni": 100, "address": "10.9.1.1.1"}]}}),
        (422, {"add": {"macs": [good]}, "other": {}}),
    ]
    for status, body in refused:
        answer = await lab.call("POST", "/tunnels/t:batch", body, status=status)
        assert answer["status"] == status
        assert mac(1).hex(":") not in await lab.fdb(), body
    assert (await lab.switch.get("/tunnels/t"))["macs"] == 0
    assert (await lab.fdb())[b.mac.hex(":")]["port"] == "b"


async def test_what_is_not_there(lab: Lab) -> None:
    await owned(lab, vni={"10": 1010})
    m = mac(1).hex(":")
    for method, path, status in (
        ("GET", "/tunnels/none", 404),
        ("GET", "/tunnels/a", 404),
        ("PUT", f"/tunnels/none/vnis/1010/remotes/{remote(1)}", 404),
        ("PUT", f"/tunnels/t/vnis/9/remotes/{remote(1)}", 404),
        ("PUT", f"/tunnels/t/vnis/x/remotes/{remote(1)}", 404),
        ("PUT", "/tunnels/t/vnis/1010/remotes/hello", 422),
        ("PUT", f"/tunnels/t/vnis/1010/remotes/{local()}", 422),
        ("GET", f"/tunnels/t/vnis/1010/remotes/{remote(1)}", 404),
        ("DELETE", f"/tunnels/t/vnis/1010/remotes/{remote(1)}", 404),
        ("GET", f"/tunnels/t/vnis/1010/macs/10/{m}", 404),
        ("DELETE", f"/tunnels/t/vnis/1010/macs/10/{m}", 404),
        ("DELETE", f"/tunnels/t/vnis/1010/macs/11/{m}", 422),
    ):
        answer = await lab.call(method, path, status=status)
        assert answer["status"] == status
    await tell(lab, mac(1), remote(1), vni=1010, vid=11, status=422)
    await lab.tunnel("t", remotes=[remote(1)], vni={"10": 1010})
    await lab.call("DELETE", f"/tunnels/t/vnis/1010/remotes/{remote(1)}", status=409)


async def test_it_goes_with_the_port(lab: Lab) -> None:
    """And with the network, the bridge, the place where packets come in; but not with other changes."""
    await owned(lab, vni={"10": 1010, "20": 1020})
    a = await lab.plug("a")
    await tell_remote(lab, remote(1), vni=1010)
    await tell(lab, mac(1), remote(1), vni=1010, vid=10)
    await tell(lab, mac(2), remote(2), vni=1020, vid=20)
    await owned(lab, vni={"10": 1010, "20": 1020}, ttl=9)
    assert {mac(1).hex(":"), mac(2).hex(":")} <= {*await lab.fdb()}
    await owned(lab, vni={"10": 1010, "30": 1030})
    found = await lab.fdb()
    assert mac(1).hex(":") in found
    assert mac(2).hex(":") not in found
    await owned(lab, vni={"10": 1010}, dst_port=4790)
    assert mac(1).hex(":") not in await lab.fdb()
    assert (await lab.switch.get("/tunnels/t/vnis/1010/remotes"))["items"] == []
    await tell(lab, mac(1), remote(1), vni=1010, vid=10)
    assert mac(1).hex(":") in await lab.fdb()
    await lab.delete("t")
    assert mac(1).hex(":") not in await lab.fdb()
    await owned(lab, vni={"10": 1010})
    assert (await lab.switch.get("/tunnels/t"))["macs"] == 0
    await a.send(inner(mac(1), a.mac))
    await lab.wire.nothing()


async def test_changes_under_traffic_lose_nothing(lab: Lab) -> None:
    """Other addresses and remotes are told and forgotten while a guest talks to one that was told."""
    await owned(lab)
    a, b = await lab.plug("a", queue_size=1024), await lab.plug("b", queue_size=1024)
    await lab.knows(b, "b")
    await tell_remote(lab, remote(1))
    await tell(lab, mac(1), remote(1))
    there = [inner(mac(1), a.mac, seed=n) for n in range(32)]
    back = [inner(b.mac, mac(1), seed=n) for n in range(32)]
    packets = [wrap("vxlan", 100, one, remote(1), local()) for one in back]
    over = asyncio.Event()

    async def talk() -> int:
        count = 0
        while not over.is_set() or count == 0:
            for one in there:
                await a.send(one)
            lab.wire.send(*packets)
            assert [(d.dst, d.inner) for d in await lab.wire.receive(32)] == [(remote(1), one) for one in there]
            await expect(b, back)
            count += 1
            await asyncio.sleep(0.002)
        return count

    talking = asyncio.create_task(talk())
    others = [{"vni": 100, "vid": 0, "mac": mac(n).hex(":"), "remote": remote(n % 100 + 2)} for n in range(100, 500)]
    hosts = [{"vni": 100, "address": remote(n)} for n in range(2, 30)]
    keys = [{k: m[k] for k in ("vni", "vid", "mac")} for m in others]
    try:
        for _ in range(8):
            await lab.call("POST", "/tunnels/t:batch", {"add": {"macs": others, "remotes": hosts}})
            await lab.call("POST", "/tunnels/t:batch", {"remove": {"macs": keys, "remotes": hosts}})
            if talking.done():
                break
    finally:
        over.set()
        count = await talking
    assert count > 0
    seen = await lab.stats("t")
    assert (seen["tx_dropped"], seen["rx_dropped"]) == (0, 0)


async def test_told_addresses_and_split_horizon(lab: Lab) -> None:
    """From one tunnel to an address told to another: between two networks it goes, within one mesh it doesn't."""
    await owned(lab)
    await lab.tunnel("u", remotes=[remote(7)], vni=200)
    await tell(lab, mac(1), remote(1))
    lab.come("vxlan", 200, inner(mac(1), mac(7)), remote(7))
    (d,) = await lab.wire.receive(1)
    assert (d.vni, d.dst) == (100, remote(1))
    await lab.tunnel("u", remotes=[remote(7)], vni=100, local=local(4, 2))
    lab.come("vxlan", 100, inner(mac(1), mac(7)), remote(7), to=local(4, 2))
    await lab.wire.nothing()
    assert (await lab.stats("t"))["tx_drops"] == {"split_horizon": 1}


async def test_two_tunnels_and_one_address(lab: Lab) -> None:
    """What one tunnel was told another can't be; the configuration goes before both."""
    await owned(lab)
    await lab.tunnel("u", remotes=[], external=True, vni=200)
    await tell(lab, mac(1), remote(1))
    path = f"/tunnels/u/vnis/200/macs/0/{mac(1).hex(':')}"
    answer = await lab.call("PUT", path, {"remote": remote(2)}, status=409)
    assert "'t'" in answer["detail"]
    await lab.call("PUT", f"/bridges/br0/fdb/0/{mac(1).hex(':')}", {"port": "a"}, status=BOTH)
    entry = (await lab.fdb())[mac(1).hex(":")]
    assert (entry["type"], entry["port"]) == ("static", "a")
    assert (await lab.switch.get("/tunnels/t"))["macs"] == 0
    await lab.call("PUT", path, {"remote": remote(2)}, status=409)
    await lab.call("DELETE", f"/bridges/br0/fdb/0/{mac(1).hex(':')}", status=204)
    await lab.call("PUT", path, {"remote": remote(2)}, status=201)
