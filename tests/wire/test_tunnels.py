# SPDX-License-Identifier: Apache-2.0
"""Tunnels on a real switch, with a wire that the test holds: every byte of what leaves, and who gets what comes.

The other hosts are played by the test (`tests.wire.tunnels`). What a control plane tells is `test_tunnel_control`,
large frames are `test_tunnel_offloads`, strangers `test_tunnel_hostile`.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from scapy.layers.inet import IP, fragment
from scapy.layers.l2 import Ether

from pvswitch.netlink import run_in_namespace
from tests.vlans import MODES, STACKS, Tag, Tags, build, number_of, tags_of, through
from tests.wire.lab import PATIENCE, expect, until
from tests.wire.tunnels import (
    ALL_ONES,
    FAMILIES,
    KINDS,
    PORTS,
    SO_RCVBUFFORCE,
    Lab,
    inner,
    local,
    mac,
    only,
    remote,
    tunnel_lab,
    udp,
    wrap,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

kinds = pytest.mark.parametrize("kind", KINDS)
families = pytest.mark.parametrize("family", FAMILIES, ids="ipv{}".format)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with tunnel_lab(request.param) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="module")
async def lab(switch: Lab) -> AsyncIterator[Lab]:
    yield switch
    await switch.close()


# ---- bytes


@kinds
@families
async def test_encapsulation_is_exact(lab: Lab, kind: str, family: int) -> None:
    """Every byte, for frames of all sizes; each remote gets each one."""
    await lab.tunnel("t", kind, family=family, vni=0xABCDEF)
    a = await lab.plug("a", tx_buf_size=9216)
    frames = [inner(ALL_ONES, a.mac, size, size) for size in (14 + 4, 59, 60, 61, 128, 129, 1000, 1499, 1514, 5001)]
    frames += [udp(mac(1), a.mac, family=f, flow=f) for f in FAMILIES]
    for one in frames:
        await a.send(one)
        seen = await lab.wire.receive(2)
        assert [d.inner for d in seen] == [one, one]
        assert {d.dst for d in seen} == {remote(1, family), remote(2, family)}
        for d in seen:
            assert (d.src, d.kind, d.vni, d.dport) == (local(family), kind, 0xABCDEF, PORTS[kind])
            assert kind == "gre" or d.sport >= 49152
            d.exact()
    await lab.wire.nothing()
    stats = await lab.stats("t")
    assert (stats["tx_packets"], stats["tx_bytes"]) == (2 * len(frames), 2 * sum(map(len, frames)))
    assert stats["tx_dropped"] == 0


@kinds
@families
async def test_decapsulation_is_exact(lab: Lab, kind: str, family: int) -> None:
    """The frame alone comes out, of whatever size and whatever source port."""
    await lab.tunnel("t", kind, family=family, vni=77)
    a, b = await lab.plug("a", rx_buf_size=9216), await lab.plug("b")
    await lab.knows(a, "a")
    frames = [inner(a.mac, mac(1), size, size) for size in (18, 59, 60, 127, 128, 129, 1000, 1514, 5001)]
    for i, one in enumerate(frames):
        lab.come(kind, 77, one, remote(3, family), sport=1 + 5000 * i)
        await expect(a, [one])
    await only(b, a, [])
    seen = await lab.stats("t")
    assert (seen["rx_packets"], seen["rx_bytes"], seen["rx_dropped"]) == (len(frames), sum(map(len, frames)), 0)
    entry = (await lab.fdb())[mac(1).hex(":")]
    assert (entry["port"], entry["remote"], entry["type"], entry["vid"]) == ("t", remote(3, family), "dynamic", 0)


async def test_gre_without_a_key(lab: Lab) -> None:
    await lab.tunnel("t", "gre", key=None)
    await lab.tunnel("keyed", "gre", vni=0, remotes=[remote(3)])
    a = await lab.plug("a")
    await a.send(inner(ALL_ONES, a.mac))
    seen = await lab.wire.receive(3)
    assert sorted((d.dst, d.vni) for d in seen) == [(remote(1), None), (remote(2), None), (remote(3), 0)]
    for d in seen:
        d.exact()
    for vni, src in ((None, mac(1)), (0, mac(2))):
        lab.come("gre", vni, inner(a.mac, src), remote(4))
        await expect(a, [inner(a.mac, src)])
    ports = {item["mac"]: item["port"] for item in (await lab.fdb()).values()}
    assert (ports[mac(1).hex(":")], ports[mac(2).hex(":")]) == ("t", "keyed")


@families
async def test_the_outer_header_is_as_configured(lab: Lab, family: int) -> None:
    """TTL, TOS, DF, UDP checksum and port; live, each by itself."""
    a = await lab.plug("a")
    cases: tuple[tuple[dict[str, Any], dict[str, Any], bool], ...] = (
        ({}, {}, True),
        ({"ttl": 7}, {"ttl": 7, "hlim": 7}, True),
        ({"df": False}, {"flags": 0}, True),
        ({"udp_csum": False}, {}, False),
        ({"udp_csum": True, "dst_port": 8472}, {}, True),
    )
    for settings, words, csum in cases:
        await lab.tunnel("t", family=family, remotes=[remote(1, family)], **settings)
        await a.send(inner(ALL_ONES, a.mac))
        (d,) = await lab.wire.receive(1)
        assert d.dport == settings.get("dst_port", 4789)
        allowed = {"ttl", "flags"} if family == 4 else {"hlim"}
        if csum:
            d.exact(**{key: value for key, value in words.items() if key in allowed})
        else:
            at = 14 + (20 if family == 4 else 40) + 6
            assert d.raw[at : at + 2] == b"\0\0"


@kinds
@families
async def test_dscp_and_ecn(lab: Lab, kind: str, family: int) -> None:
    """The inner DSCP goes outside unless one is set, ECN always; what the way has marked comes inside (RFC 6040)."""
    a = await lab.plug("a")
    await lab.knows(a, "a")
    for tos in ("inherit", 0x28):
        await lab.tunnel("t", kind, family=family, remotes=[remote(1, family)], tos=tos)
        for given, inside in itertools.product((0, 1, 2, 3, 0xB8, 0xB9), FAMILIES):
            await a.send(udp(ALL_ONES, a.mac, tos=given, family=inside))
            (d,) = await lab.wire.receive(1)
            assert d.tos == (given if tos == "inherit" else 0x28 | given & 3)
            d.exact()
    # figure 4 of RFC 6040, with Not-ECT, ECT(1), ECT(0), CE as 0, 1, 2, 3; None: dropped
    table: dict[int, list[int | None]] = {
        0: [0, 0, 0, None],
        1: [1, 1, 1, 3],
        2: [2, 1, 2, 3],
        3: [3, 3, 3, 3],
    }
    key = "tos" if family == 4 else "tc"
    dropped = 0
    for inside in FAMILIES:
        for one, row in table.items():
            for outer, wanted in enumerate(row):
                words: dict[str, Any] = {key: outer}
                lab.come(kind, 100, udp(a.mac, mac(1), tos=0xB8 | one, family=inside), remote(1, family), **words)
                if wanted is None:
                    dropped += 1
                else:
                    await expect(a, [udp(a.mac, mac(1), tos=0xB8 | wanted, family=inside)])

    async def counted() -> bool:
        return bool((await lab.endpoint("t"))["drops"].get("tunnel_ecn") == dropped)

    await until(counted, "what can't say that there was congestion")


# ---- tags


def stacked(vid: int | None) -> Tags:
    return () if vid is None else (Tag(vid, 3),)


@kinds
async def test_tags_of_every_mode(lab: Lab, kind: str) -> None:
    """What a tunnel's port carries, with which tags, is what a guest's port of that mode would: both directions."""
    trunk = await lab.plug("a", queue_size=256)
    numbers = itertools.count(1)
    for name in ("access10", "trunk", "trunk_10_20", "tagged10_20", "untagged10_20", "tunnel10", "tunnel10_0_20"):
        await lab.tunnel("t", kind, remotes=[remote(1)], **MODES[name].keys)
        out, back = {}, {}
        for tags in STACKS.values():
            number = next(numbers)
            leaves = through(MODES["trunk"], MODES[name], tags)
            if leaves is not None:
                out[number] = build(
                    "ff:ff:ff:ff:ff:ff", trunk.mac.hex(":"), leaves, number, 120 + 4 * len(leaves) - 4 * len(tags)
                )
            await trunk.send(build("ff:ff:ff:ff:ff:ff", trunk.mac.hex(":"), tags, number, 120))
        seen = await lab.wire.receive(len(out))
        assert {number_of(d.inner): tags_of(d.inner) for d in seen} == {n: tags_of(f) for n, f in out.items()}, name
        assert sorted(d.inner for d in seen) == sorted(out.values())
        for tags in STACKS.values():
            number = next(numbers)
            arrives = through(MODES[name], MODES["trunk"], tags)
            if arrives is not None:
                back[number] = arrives
            lab.come(kind, 100, build("ff:ff:ff:ff:ff:ff", mac(1).hex(":"), tags, number, 120), remote(1))
        got = [await trunk.recv(PATIENCE) for _ in back]
        assert {number_of(f): tags_of(f) for f in got} == back, name
        assert trunk.recv_nowait() is None
    await lab.wire.nothing()


@kinds
async def test_a_map_of_vlans(lab: Lab, kind: str) -> None:
    """Each VLAN in its network without its tag; what isn't mapped stays; QinQ goes within."""
    await lab.tunnel("t", kind, vni={"10": 10010, "20-29": "500-509"}, remotes=[remote(1)])
    a = await lab.plug("a")
    access = await lab.plug("access10")
    wanted = []
    dst = "ff:ff:ff:ff:ff:ff"
    for number, (vid, vni) in enumerate([(10, 10010), (20, 500), (29, 509), (11, None), (30, None), (None, None)]):
        await a.send(build(dst, a.mac.hex(":"), stacked(vid), number, 120))
        if vni is not None:
            wanted.append((vni, build(dst, a.mac.hex(":"), (), number, 116)))
    seen = await lab.wire.receive(len(wanted))
    assert sorted((d.vni, d.inner) for d in seen) == sorted(wanted)
    for d in seen:
        d.exact()
    access.recv_nowait()
    lab.come(kind, 10010, build(dst, mac(1).hex(":"), (), 7, 116), remote(1))
    assert build(dst, mac(1).hex(":"), (), 7, 116) in [await access.recv(PATIENCE) for _ in range(1)]
    assert await a.recv(PATIENCE) == build(dst, mac(1).hex(":"), (Tag(10),), 7, 120)
    lab.come(kind, 505, build(dst, mac(1).hex(":"), (), 8, 116), remote(1))
    assert await a.recv(PATIENCE) == build(dst, mac(1).hex(":"), (Tag(25),), 8, 120)
    before = (await lab.stats("t"))["rx_drops"].get("vlan_filtered", 0)
    lab.come(kind, 505, build(dst, mac(1).hex(":"), (Tag(10),), 9, 116), remote(1))

    async def filtered() -> bool:
        return bool((await lab.stats("t"))["rx_drops"].get("vlan_filtered", 0) == before + 1)

    await until(filtered, "a tagged frame in a mapped network")
    entries = {(item["vid"], item["mac"]) for item in (await lab.switch.get("/bridges/br0/fdb"))["items"]}
    assert {(10, mac(1).hex(":")), (25, mac(1).hex(":"))} <= entries
    await lab.wire.nothing()


# ---- source ports


@families
async def test_flows_are_spread_and_each_is_in_order(lab: Lab, family: int) -> None:
    """Many flows take many ports of 49152 to 65535; one flow always one, and its packets come in order."""
    await lab.tunnel("t", family=family, remotes=[remote(1, family)])
    a = await lab.plug("a", queue_size=1024)
    flows, each = 64, 8
    frames = [udp(mac(1), a.mac, flow=1000 + f, seed=n) for n in range(each) for f in range(flows)]
    for one in frames:
        await a.send(one)
    seen = await lab.wire.receive(len(frames))
    by_flow: dict[bytes, list[bytes]] = defaultdict(list)
    ports: dict[bytes, set[int]] = defaultdict(set)
    for d in seen:
        by_flow[d.inner[34:36]].append(d.inner)
        ports[d.inner[34:36]].add(d.sport)
    for f in range(flows):
        key = (1000 + f).to_bytes(2, "big")
        assert by_flow[key] == frames[f::flows]
        assert len(ports[key]) == 1
    used = set().union(*ports.values())
    assert 8 <= len(used) <= 16
    assert all(49152 <= port <= 65535 for port in used)


async def test_one_flow_comes_in_order(lab: Lab) -> None:
    """What a host sends by one source port reaches its guest in order, whoever of the workers fetches it."""
    await lab.tunnel("t")
    a = await lab.plug("a", queue_size=1024)
    await lab.knows(a, "a")
    for sport in (50_000, 50_001, 50_002, 50_003):
        frames = [inner(a.mac, mac(sport), 200, n) for n in range(200)]
        packet = wrap("vxlan", 100, frames[0], remote(1), local(), sport=sport)
        packet = packet[:40] + b"\0\0" + packet[42:50]  # without a checksum
        lab.wire.send(*(packet + one for one in frames))
        await expect(a, frames)
    endpoint = await lab.endpoint("t")
    assert endpoint["queues"] == endpoint["running"]


async def test_what_comes_to_the_sending_sockets_is_dropped(lab: Lab) -> None:
    await lab.tunnel("t", remotes=[remote(1)])
    a = await lab.plug("a")
    await a.send(inner(ALL_ONES, a.mac))
    (d,) = await lab.wire.receive(1)
    lab.come("vxlan", 100, inner(a.mac, mac(1)), remote(1), dport=d.sport)
    await asyncio.sleep(0.05)
    assert a.recv_nowait() is None
    assert mac(1).hex(":") not in await lab.fdb()


# ---- who gets what


@kinds
@pytest.mark.parametrize(("family", "count"), [(4, 1), (4, 40), (6, 5)])
async def test_head_end_replication(lab: Lab, kind: str, family: int, count: int) -> None:
    """What is flooded goes to each remote once; a burst of it too, each flow in order for each."""
    hosts = [remote(i, family) for i in range(1, count + 1)]
    await lab.tunnel("t", kind, family=family, remotes=hosts)
    a = await lab.plug("a")
    frames = [inner(dst, a.mac, 300, n) for n, dst in enumerate([ALL_ONES, bytes.fromhex("01005e000001"), mac(9)] * 10)]
    for one in frames:
        await a.send(one)
    by_flow = defaultdict(list)
    for d in await lab.wire.receive(count * len(frames)):
        by_flow[d.dst, d.inner[:6]].append(d.inner)
    assert by_flow == {(host, frames[i][:6]): frames[i::3] for host in hosts for i in range(3)}
    await lab.wire.nothing()


async def test_learned_addresses_are_sent_to_their_host_only(lab: Lab) -> None:
    """Known unicast goes to the host behind which its receiver is, also to one that isn't a remote; it may move."""
    await lab.tunnel("t")
    a, b = await lab.plug("a"), await lab.plug("b")
    for turn, host in enumerate([remote(1), remote(2), remote(7), remote(1)]):
        lab.come("vxlan", 100, inner(ALL_ONES, mac(1), seed=turn), host)
        await expect(a, [inner(ALL_ONES, mac(1), seed=turn)])
        await expect(b, [inner(ALL_ONES, mac(1), seed=turn)])
        entry = (await lab.fdb())[mac(1).hex(":")]
        assert (entry["port"], entry["remote"]) == ("t", host)
        one = inner(mac(1), a.mac, seed=turn)
        await a.send(one)
        (d,) = await lab.wire.receive(1)
        assert (d.dst, d.inner) == (host, one)
        await lab.wire.nothing()
    # to a guest, and back
    await only(b, a, [])
    await lab.wire.receive(2)
    await b.send(inner(ALL_ONES, mac(1)))
    await expect(a, [inner(ALL_ONES, mac(1))])
    await lab.wire.receive(2)
    await a.send(inner(mac(1), a.mac))
    await expect(b, [inner(mac(1), a.mac)])
    await lab.wire.nothing()


async def test_what_comes_is_not_sent_back(lab: Lab) -> None:
    """Neither to its host nor to other hosts of the same tunnel, known or not."""
    await lab.tunnel("t", remotes=[remote(1), remote(2), remote(3)])
    a = await lab.plug("a")
    lab.come("vxlan", 100, inner(ALL_ONES, mac(2)), remote(2))
    await expect(a, [inner(ALL_ONES, mac(2))])
    for n, dst in enumerate((ALL_ONES, mac(2), mac(9))):
        lab.come("vxlan", 100, inner(dst, mac(1), seed=n), remote(1))
    await expect(a, [inner(ALL_ONES, mac(1), seed=0), inner(mac(9), mac(1), seed=2)])
    await lab.wire.nothing()
    assert a.recv_nowait() is None


@kinds
async def test_split_horizon(lab: Lab, kind: str) -> None:
    """Tunnels of one network are one mesh, nothing goes between them; tunnels of two networks forward to each other."""
    await lab.tunnel("t1", kind, remotes=[remote(1)], vni=100)
    await lab.tunnel("t2", kind, remotes=[remote(2)], vni=100, local=local(4, 2))
    await lab.tunnel("u", kind, remotes=[remote(3)], vni=200)
    a = await lab.plug("a")
    one = inner(ALL_ONES, mac(1))
    lab.come(kind, 100, one, remote(1))
    await expect(a, [one])
    (d,) = await lab.wire.receive(1)
    assert (d.dst, d.vni, d.inner) == (remote(3), 200, one)
    d.exact()
    await lab.wire.nothing()
    assert (await lab.stats("t2"))["tx_drops"] == {}  # nobody asked for a copy there
    # the other mesh's answer goes to the one host; and a known one of the same mesh stays
    lab.come(kind, 200, inner(mac(1), mac(3)), remote(3))
    (d,) = await lab.wire.receive(1)
    assert (d.dst, d.vni, d.inner) == (remote(1), 100, inner(mac(1), mac(3)))
    lab.come(kind, 100, inner(mac(1), mac(2)), remote(2), to=local(4, 2))
    await lab.wire.nothing()
    assert (await lab.stats("t1"))["tx_drops"] == {"split_horizon": 1}
    # a guest reaches all of them
    await a.send(inner(ALL_ONES, a.mac))
    assert {d.dst for d in await lab.wire.receive(3)} == {remote(1), remote(2), remote(3)}
    # one mesh no more
    await lab.tunnel("t2", kind, remotes=[remote(2)], vni=101, local=local(4, 2))
    lab.come(kind, 100, one, remote(1))
    assert {(d.dst, d.vni) for d in await lab.wire.receive(2)} == {(remote(2), 101), (remote(3), 200)}


async def test_hosts_of_every_type_reach_each_other(lab: Lab) -> None:
    """A switch between VXLAN over IPv4, Geneve over IPv6 and GRE."""
    ways = {"vxlan": 4, "geneve": 6, "gre": 4}
    for kind, family in ways.items():
        await lab.tunnel(kind, kind, family=family, remotes=[remote(1, family)])
    for kind, family in ways.items():
        one = udp(ALL_ONES, mac(1), tos=0xB9, size=1000)
        lab.come(kind, 100, one, remote(1, family))
        seen = await lab.wire.receive(2)
        assert {d.kind for d in seen} == set(ways) - {kind}
        for d in seen:
            assert (d.inner, d.tos) == (one, 0xB9)
            d.exact()
    await lab.wire.nothing()


# ---- learning


async def test_without_learning_only_remotes_are_heard_and_nothing_is_learned(lab: Lab) -> None:
    await lab.tunnel("t", learning=False)
    a = await lab.plug("a")
    for n, host in enumerate((remote(1), remote(2))):
        lab.come("vxlan", 100, inner(ALL_ONES, mac(1), seed=n), host)
        await expect(a, [inner(ALL_ONES, mac(1), seed=n)])
    assert mac(1).hex(":") not in await lab.fdb()
    for _ in range(3):
        lab.come("vxlan", 100, inner(ALL_ONES, mac(2)), remote(3))

    async def counted() -> bool:
        return bool((await lab.stats("t"))["rx_drops"] == {"unknown_vtep": 3})

    await until(counted, "packets of a stranger to be counted")
    assert a.recv_nowait() is None
    await a.send(inner(mac(1), a.mac))
    assert {d.dst for d in await lab.wire.receive(2)} == {remote(1), remote(2)}
    # live: one remote more, then learning
    await lab.tunnel("t", learning=False, remotes=[remote(1), remote(3)])
    lab.come("vxlan", 100, inner(ALL_ONES, mac(2)), remote(3))
    await expect(a, [inner(ALL_ONES, mac(2))])
    lab.come("vxlan", 100, inner(ALL_ONES, mac(2)), remote(2))
    await until(lambda: _dropped(lab, "t", "unknown_vtep", 4), "one that is no remote any more")
    await lab.tunnel("t", learning=True, remotes=[remote(1)])
    lab.come("vxlan", 100, inner(ALL_ONES, mac(2), seed=5), remote(9))
    await expect(a, [inner(ALL_ONES, mac(2), seed=5)])
    assert (await lab.fdb())[mac(2).hex(":")]["remote"] == remote(9)


async def _dropped(lab: Lab, port: str, reason: str, count: int) -> bool:
    return bool((await lab.stats(port))["rx_drops"].get(reason, 0) == count)


async def test_no_remotes_with_learning(lab: Lab) -> None:
    """Nothing is flooded until somebody was heard; what is flooded has no destination even then."""
    await lab.tunnel("t", remotes=[])
    a = await lab.plug("a")
    await a.send(inner(ALL_ONES, a.mac))
    lab.come("vxlan", 100, inner(a.mac, mac(1)), remote(4))
    await expect(a, [inner(a.mac, mac(1))])
    await a.send(inner(mac(1), a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(4)
    info = await lab.switch.get("/tunnels/t")
    assert info["remotes"] == [{"address": remote(4), "origin": "learned"}]
    await lab.wire.nothing()


async def test_addresses_behind_hosts_age(lab: Lab) -> None:
    """With the bridge's aging time; what is sent then is flooded again."""
    await lab.tunnel("t", bridge="quick")
    q = await lab.plug("q")
    await lab.knows(q, "q", bridge="quick")
    lab.come("vxlan", 100, inner(q.mac, mac(1)), remote(2))
    await expect(q, [inner(q.mac, mac(1))])
    await q.send(inner(mac(1), q.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(2)

    async def gone() -> bool:
        return mac(1).hex(":") not in await lab.fdb("quick")

    await until(gone, "the address to age")
    await q.send(inner(mac(1), q.mac))
    assert {d.dst for d in await lab.wire.receive(2)} == {remote(1), remote(2)}


async def test_flush_by_port(lab: Lab) -> None:
    """What is behind one tunnel is forgotten, another's stays."""
    await lab.tunnel("t", remotes=[remote(1)])
    await lab.tunnel("u", remotes=[remote(2)], vni=200)
    a = await lab.plug("a")
    for vni, who, host in ((100, 1, remote(5)), (200, 2, remote(6))):
        lab.come("vxlan", vni, inner(a.mac, mac(who)), host)
        await expect(a, [inner(a.mac, mac(who))]) if who != 1 else await a.recv(PATIENCE)
    lab.wire.forget()
    await lab.call("DELETE", "/bridges/br0/fdb?port=t", status=(200, 204))
    found = await lab.fdb()
    assert mac(1).hex(":") not in found
    assert found[mac(2).hex(":")]["remote"] == remote(6)
    await a.send(inner(mac(1), a.mac))
    assert {d.dst for d in await lab.wire.receive(2)} == {remote(1), remote(2)}
    await a.send(inner(mac(2), a.mac))
    (d,) = await lab.wire.receive(1)
    assert (d.dst, d.vni) == (remote(6), 200)


# ---- endpoints


@kinds
async def test_unknown_networks_are_counted_at_the_endpoint(lab: Lab, kind: str) -> None:
    await lab.tunnel("t", kind)
    a = await lab.plug("a")
    for vni in (99, 101, 0, 0xFFFFFF):
        lab.come(kind, vni, inner(a.mac, mac(1)), remote(1))

    async def counted() -> bool:
        return bool((await lab.endpoint("t"))["drops"] == {"unknown_vni": 4})

    await until(counted, "unknown networks")
    assert a.recv_nowait() is None
    assert (await lab.stats("t"))["rx_packets"] == 0
    assert mac(1).hex(":") not in await lab.fdb()


@kinds
async def test_tunnels_share_an_endpoint(lab: Lab, kind: str) -> None:
    """Two networks come to one socket; the one goes, the other goes on, and the socket with the last one."""
    await lab.tunnel("t10", kind, vni=10, tag=10)
    await lab.tunnel("t20", kind, vni=20, tag=20)
    ten, twenty = await lab.plug("access10"), await lab.plug("access20")
    assert (await lab.endpoint("t10"))["name"] == (await lab.endpoint("t20"))["name"]
    for n in range(3):
        lab.come(kind, 10, inner(ALL_ONES, mac(1), seed=n), remote(1))
        lab.come(kind, 20, inner(ALL_ONES, mac(2), seed=n), remote(1))
    await expect(ten, [inner(ALL_ONES, mac(1), seed=n) for n in range(3)])
    await expect(twenty, [inner(ALL_ONES, mac(2), seed=n) for n in range(3)])
    await lab.delete("t10")
    lab.come(kind, 10, inner(ALL_ONES, mac(1)), remote(1))
    lab.come(kind, 20, inner(ALL_ONES, mac(2), seed=9), remote(1))
    await expect(twenty, [inner(ALL_ONES, mac(2), seed=9)])
    assert ten.recv_nowait() is None
    assert (await lab.endpoint("t20"))["drops"] == {"unknown_vni": 1}
    assert mac(1).hex(":") not in await lab.fdb()
    await lab.tunnel("t10", kind, vni=10, tag=10)
    lab.come(kind, 10, inner(ALL_ONES, mac(1), seed=4), remote(1))
    await expect(ten, [inner(ALL_ONES, mac(1), seed=4)])


async def test_two_addresses_are_two_endpoints(lab: Lab) -> None:
    """One VNI at two local addresses, on two bridges."""
    await lab.tunnel("t", remotes=[remote(1)])
    await lab.tunnel("u", remotes=[remote(1)], local=local(4, 2), bridge="quick")
    a, q = await lab.plug("a"), await lab.plug("q")
    lab.come("vxlan", 100, inner(ALL_ONES, mac(1), seed=1), remote(1))
    lab.come("vxlan", 100, inner(ALL_ONES, mac(1), seed=2), remote(1), to=local(4, 2))
    await expect(a, [inner(ALL_ONES, mac(1), seed=1)])
    await expect(q, [inner(ALL_ONES, mac(1), seed=2)])
    await q.send(inner(ALL_ONES, q.mac))
    (d,) = await lab.wire.receive(1)
    assert d.src == local(4, 2)
    d.exact()


async def test_loopback_addresses(lab: Lab) -> None:
    """Other programs on the same host, by their own sockets: nothing of the switch's is special to them."""

    def open_vtep() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        sock.bind(("127.0.0.3", 4789))
        return sock

    sock = await run_in_namespace(lab.wire.namespace.path, open_vtep)
    with sock:
        await lab.tunnel("t", local="127.0.0.2", remotes=["127.0.0.3"])
        a = await lab.plug("a", tx_buf_size=9216)
        frames = [inner(ALL_ONES, a.mac, 1400, n) for n in range(100)]
        for one in frames:
            await a.send(one)
        loop = asyncio.get_running_loop()
        for one in frames:
            data, address = await asyncio.wait_for(loop.sock_recvfrom(sock, 65_535), PATIENCE)
            assert (address[0], data) == ("127.0.0.2", bytes.fromhex("0800000000006400") + one)
        sock.sendto(bytes.fromhex("0800000000006400") + inner(a.mac, mac(1)), ("127.0.0.2", 4789))
        await expect(a, [inner(a.mac, mac(1))])


# ---- changes


async def test_live_changes_lose_nothing(lab: Lab) -> None:
    """Remotes, TOS, TTL, DF and checksums change while a guest talks to a host that all of these reach."""
    await lab.tunnel("t", remotes=[remote(1)])
    a = await lab.plug("a", queue_size=1024)
    b = await lab.plug("b", queue_size=1024)
    over = asyncio.Event()
    one_host = remote(1)
    await lab.knows(b, "b")
    lab.come("vxlan", 100, inner(ALL_ONES, mac(1)), one_host)
    await expect(a, [inner(ALL_ONES, mac(1))])
    await expect(b, [inner(ALL_ONES, mac(1))])
    numbered = [n.to_bytes(4, "big") for n in range(32)]
    there = [inner(mac(1), a.mac) + n for n in numbered]
    back = [inner(b.mac, mac(1)) + n for n in numbered]
    packets = [wrap("vxlan", 100, one, one_host, local()) for one in back]

    async def talk() -> int:
        count = 0
        while not over.is_set() or count == 0:
            for one in there:
                await a.send(one)
            lab.wire.send(*packets)
            seen = await lab.wire.receive(len(there))
            assert sorted(d.inner for d in seen) == there
            assert {d.dst for d in seen} == {one_host}
            await expect(b, back)
            count += 1
            await asyncio.sleep(0.005)
        return count

    talking = asyncio.create_task(talk())
    try:
        for settings in (
            {"remotes": [remote(1), remote(2)]},
            {"remotes": [remote(2)]},
            {"remotes": [remote(1)], "tos": 0x40},
            {"remotes": [remote(1)], "ttl": 9},
            {"remotes": [remote(1)], "df": False},
            {"remotes": [remote(1)], "udp_csum": False},
            {"remotes": [remote(1)], "learning": False},
            {"remotes": [remote(1), remote(3)], "learning": False},
            {"remotes": [remote(1)]},
            {"remotes": [remote(1)], "icmp_too_big": False, "mtu": 1400},
            {"remotes": [remote(1)]},
        ):
            await lab.tunnel("t", **settings)
            if talking.done():
                break
    finally:
        over.set()
        count = await talking
    assert count > 0
    seen = await lab.stats("t")
    assert (seen["tx_dropped"], seen["rx_dropped"]) == (0, 0)
    assert (await lab.endpoint("t"))["drops"] == {}


async def test_another_vni_live(lab: Lab) -> None:
    """From then on frames are of the other network, and of the one that was no more; addresses stay."""
    await lab.tunnel("t", remotes=[remote(1)])
    a = await lab.plug("a")
    for vni, gone in ((100, 200), (200, 100), (100, 200)):
        await lab.tunnel("t", remotes=[remote(1)], vni=vni)
        before = (await lab.endpoint("t"))["drops"].get("unknown_vni", 0)
        await a.send(inner(ALL_ONES, a.mac))
        (d,) = await lab.wire.receive(1)
        assert d.vni == vni
        lab.come("vxlan", gone, inner(a.mac, mac(1), seed=1), remote(1))
        lab.come("vxlan", vni, inner(a.mac, mac(1), seed=2), remote(1))
        await expect(a, [inner(a.mac, mac(1), seed=2)])
        assert (await lab.endpoint("t"))["drops"]["unknown_vni"] == before + 1


@kinds
async def test_disabled_and_enabled(lab: Lab, kind: str) -> None:
    """Nothing leaves or comes in while it is disabled."""
    await lab.tunnel("t", kind)
    a, b = await lab.plug("a"), await lab.plug("b")
    for turn in range(2):
        await lab.tunnel("t", kind, enabled=False)
        await lab.switch.wait_link("t", "admin_down")
        await a.send(inner(ALL_ONES, a.mac, seed=turn))
        await expect(b, [inner(ALL_ONES, a.mac, seed=turn)])
        lab.come(kind, 100, inner(ALL_ONES, mac(1)), remote(1))
        await lab.wire.nothing()
        assert a.recv_nowait() is None
        await lab.tunnel("t", kind)
        await a.send(inner(ALL_ONES, a.mac, seed=turn + 10))
        assert len(await lab.wire.receive(2)) == 2
        await expect(b, [inner(ALL_ONES, a.mac, seed=turn + 10)])
        lab.come(kind, 100, inner(a.mac, mac(1), seed=turn), remote(1))
        await expect(a, [inner(a.mac, mac(1), seed=turn)])


@kinds
async def test_removed_while_traffic_flows(lab: Lab, kind: str) -> None:
    """A tunnel goes and comes again while both sides send; guests lose nothing among themselves."""
    a, b = await lab.plug("a", queue_size=1024), await lab.plug("b", queue_size=1024)
    await lab.knows(b, "b")
    over = asyncio.Event()
    packets = [wrap(kind, 100, inner(mac(77), mac(1000 + n)), remote(n + 1), local()) for n in range(32)]

    async def flood() -> None:
        while not over.is_set():
            lab.wire.send(*packets)
            await asyncio.sleep(0.002)

    async def talk() -> int:
        count = 0
        while not over.is_set() or count == 0:
            batch = [inner(b.mac, a.mac, seed=n) for n in range(count, count + 32)]
            for one in batch:
                await a.send(inner(ALL_ONES, a.mac))
                await a.send(one)
            for one in batch:
                while (got := await b.recv(PATIENCE))[:6] != b.mac:
                    pass
                assert got == one
            while a.recv_nowait() is not None:
                pass
            count += len(batch)
        return count

    flooding, talking = asyncio.create_task(flood()), asyncio.create_task(talk())
    try:
        for _ in range(4):
            await lab.tunnel("t", kind)
            await asyncio.sleep(0.01)
            await lab.delete("t")
            lab.wire.forget()
    finally:
        over.set()
        _, exchanged = await asyncio.gather(flooding, talking)
    assert exchanged > 0
    assert not [item for item in (await lab.fdb()).values() if item["port"] not in ("a", "b")]


async def test_an_address_that_goes_and_comes(lab: Lab) -> None:
    """Without its local address the link is down, and up again with it."""
    where = lab.wire.namespace
    await lab.tunnel("t", local="10.9.0.9", enabled=False)
    await lab.put("t", type="vxlan", vni=100, local="10.9.0.9", remotes=[remote(1)])
    assert await lab.switch.link("t") == "interface_missing"
    a = await lab.plug("a")
    await where.ip("addr add 10.9.0.9/32 dev v0")
    await lab.switch.wait_link("t")
    await a.send(inner(ALL_ONES, a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.src == "10.9.0.9"
    lab.come("vxlan", 100, inner(a.mac, mac(1)), remote(1), to="10.9.0.9")
    await expect(a, [inner(a.mac, mac(1))])
    await where.ip("addr del 10.9.0.9/32 dev v0")
    await lab.switch.wait_link("t", "interface_missing")
    await where.ip("addr add 10.9.0.9/32 dev v0")
    await lab.switch.wait_link("t")
    await a.send(inner(ALL_ONES, a.mac))
    await lab.wire.receive(1)


async def test_fragments_of_the_underlay_come_whole(lab: Lab) -> None:
    """With `df: false` the host's kernel cuts what is too large, and puts together what was cut."""
    await lab.tunnel("t", df=False, remotes=[remote(1, network=3)])
    a = await lab.plug("a", tx_buf_size=9216, rx_buf_size=9216)
    one = inner(ALL_ONES, a.mac, 3000)
    await a.send(one)
    parts: list[bytes] = []
    while sum(len(p) - 34 for p in parts) < 3000 + 16:
        raw = await lab.wire.packet()
        if raw[12:14] == b"\x08\x00":
            parts.append(raw)
            assert len(raw) - 14 <= 1000
    offsets = {Ether(p)[IP].frag * 8: bytes(Ether(p)[IP].payload) for p in parts}
    assert b"".join(offsets[at] for at in sorted(offsets))[16:] == one
    back = inner(a.mac, mac(1), 3000)
    whole = Ether(wrap("vxlan", 100, back, remote(1, network=3), local(), flags=0, id=7))
    lab.wire.send(*(bytes(part) for part in fragment(whole, 800)))
    await expect(a, [back])
