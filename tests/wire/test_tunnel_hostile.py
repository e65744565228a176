# SPDX-License-Identifier: Apache-2.0
"""Hosts that send what they shouldn't: two guests beside go on losing nothing, and every packet is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import UDP
from scapy.layers.l2 import GRE, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from tests.wire.lab import expect, until
from tests.wire.tunnels import (
    ALL_ONES,
    GATEWAY_MAC,
    KINDS,
    OWN_MAC,
    PORTS,
    Lab,
    header,
    inner,
    ip,
    local,
    mac,
    remote,
    tunnel_lab,
    wrap,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

kinds = pytest.mark.parametrize("kind", KINDS)
TABLE = 16_383


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with tunnel_lab(request.param) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="module")
async def lab(switch: Lab) -> AsyncIterator[Lab]:
    yield switch
    await switch.close()


@contextlib.asynccontextmanager
async def undisturbed(lab: Lab) -> AsyncIterator[None]:
    """Two guests talk to each other meanwhile; each frame arrives."""
    a, b = await lab.plug("c", queue_size=1024), await lab.plug("d", queue_size=1024)
    await lab.knows(b, "d")
    over = asyncio.Event()
    frames = [inner(b.mac, a.mac, seed=n) for n in range(64)]

    async def talk() -> int:
        count = 0
        while not over.is_set() or count == 0:
            for one in frames:
                await a.send(one)
            for one in frames:
                while (got := await b.recv())[:6] != b.mac:
                    pass  # what is flooded
                assert got == one
            count += 1
            await asyncio.sleep(0.002)
        return count

    talking = asyncio.create_task(talk())
    try:
        yield
    finally:
        over.set()
        assert await talking > 0


async def accounted(lab: Lab, port: str, sent: int, before: int = 0) -> None:
    """So many packets have come, by the counters of the endpoint and of the port together."""
    total = 0

    async def all_seen() -> bool:
        nonlocal total
        total = await seen(lab, port) - before
        return total == sent

    try:
        await until(all_seen, f"{sent} packets")
    except AssertionError:
        raise AssertionError(f"{total} packets of {sent}: {await lab.endpoint(port)}") from None


async def seen(lab: Lab, port: str) -> int:
    """Frames taken and packets dropped, of a tunnel and its endpoint."""
    own = await lab.stats(port)
    endpoint = (await lab.endpoint(port))["drops"]
    return int(own["rx_packets"] + own["rx_drops"].get("malformed", 0) + sum(endpoint.values()))


def sendable(kind: str, body: bytes | Packet, host: str = "", **words: object) -> bytes:
    """A packet to the endpoint with anything in it."""
    words["proto"] = 47 if kind == "gre" else 17
    outer = Ether(dst=OWN_MAC, src=GATEWAY_MAC) / ip(host or remote(1), local(), **words)
    if kind != "gre":
        return bytes(outer / UDP(sport=50_000, dport=PORTS[kind]) / (Raw(body) if isinstance(body, bytes) else body))
    return bytes(outer / Raw(bytes(body))) if isinstance(body, bytes) else bytes(outer / body)


def malformed(kind: str) -> list[bytes]:
    """Headers that are no headers, each of them."""
    frame = inner(ALL_ONES, mac(1))
    whole = bytes(header(kind, 100))
    bad = [whole[:n] for n in range(1, len(whole))]
    if kind == "vxlan":
        bad += [bytes(VXLAN(vni=100, flags=0)) + frame]
    elif kind == "geneve":
        fields: tuple[dict[str, Any], ...] = (
            {"version": 1},
            {"oam": 1} if hasattr(GENEVE(), "oam") else {"version": 2},
            {"critical": 1},
        )
        for words in fields:
            with contextlib.suppress(Exception):
                bad.append(bytes(GENEVE(vni=100, proto=0x6558, **words)) + frame)
        bad += [bytes(GENEVE(vni=100, proto=0x0800)) + frame]
        bad += [b"\x3f" + whole[1:] + frame]  # options beyond the end
    else:
        bad += [
            bytes(GRE(proto=0x0800, key_present=1, key=100)) + frame,
            bytes(GRE(proto=0x6558, key_present=1, key=100, routing_present=1)) + frame,
            bytes(GRE(proto=0x6558, key_present=1, key=100, version=1)) + frame,
            b"\xa0\x00\x65\x58\xde\xad\x00\x00\x00\x00\x00\x64" + frame,  # a wrong checksum
        ]
    return bad


@kinds
async def test_no_packets_of_a_tunnel(lab: Lab, kind: str) -> None:
    """They are counted at the endpoint, one by one; a guest sees nothing of them."""
    await lab.tunnel("t", kind)
    a = await lab.plug("a")
    bad = malformed(kind)
    with lab.halted():
        lab.wire.send(*(sendable(kind, body) for body in bad))

    async def counted() -> bool:
        return bool((await lab.endpoint("t"))["drops"] == {"tunnel_malformed": len(bad)})

    try:
        await until(counted, "what is malformed")
    except AssertionError:
        raise AssertionError((len(bad), await lab.endpoint("t"), (await lab.stats("t"))["rx_drops"])) from None
    assert a.recv_nowait() is None
    lab.come(kind, 100, inner(a.mac, mac(1)), remote(1))
    await expect(a, [inner(a.mac, mac(1))])


@kinds
async def test_frames_that_are_too_short(lab: Lab, kind: str) -> None:
    """Nothing, or less than an Ethernet header, behind a right header: counted at the tunnel's port."""
    await lab.tunnel("t", kind)
    a = await lab.plug("a")
    frame = inner(ALL_ONES, mac(1))
    for n in range(14):
        lab.come(kind, 100, frame[:n], remote(1))
    lab.come(kind, 100, inner(a.mac, mac(1)), remote(1))
    await expect(a, [inner(a.mac, mac(1))])
    found = await lab.stats("t")
    assert (found["rx_packets"], found["rx_drops"]) == (1, {"malformed": 14})


async def test_ignored_bits_and_options(lab: Lab) -> None:
    """What receivers must ignore is ignored: reserved bits, options that aren't critical, GRE's fields."""
    await lab.tunnel("v", "vxlan", remotes=[remote(1)])
    await lab.tunnel("g", "geneve", vni=200, remotes=[remote(1)])
    await lab.tunnel("r", "gre", vni=300, remotes=[remote(1)])
    a = await lab.plug("a")
    await lab.knows(a, "a")
    frame = inner(a.mac, mac(1))
    for kind, body in (
        ("vxlan", b"\xff\xff\xff\xff\x00\x00\x64\xff" + frame),
        ("geneve", b"\x02\x00\x65\x58\x00\x00\xc8\xff" + b"\x01\x02\x03\x01" + bytes(4) + frame),
        ("geneve", b"\x3f\x00\x65\x58\x00\x00\xc8\x00" + bytes(252) + frame),
        ("gre", b"\x30\x00\x65\x58\x00\x00\x01\x2c\x00\x00\x00\x07" + frame),
    ):
        lab.wire.send(sendable(kind, body))
        await expect(a, [frame])
    whole = GRE(proto=0x6558, chksum_present=1, key_present=1, key=300) / Raw(frame)
    lab.wire.send(sendable("gre", whole))
    await expect(a, [frame])


@kinds
async def test_a_tunnel_in_a_tunnel_is_just_a_frame(lab: Lab, kind: str) -> None:
    """To our own address, too: it goes to who it is for, not to the endpoint."""
    await lab.tunnel("t", kind)
    a = await lab.plug("a")
    await lab.knows(a, "a")
    nested = wrap(kind, 100, inner(a.mac, mac(2)), remote(1), local())
    nested = a.mac + mac(1) + nested[12:]
    lab.come(kind, 100, nested, remote(1))
    await expect(a, [nested])
    await asyncio.sleep(0.05)
    assert a.recv_nowait() is None
    assert mac(2).hex(":") not in await lab.fdb()


async def test_addresses_of_guests_are_taken_over_only_where_they_may_be(lab: Lab) -> None:
    """A static address stays, a sticky one too; a learned one moves, as between any two ports."""
    await lab.tunnel("t", remotes=[remote(1)])
    await lab.put("sticky", port_security={"sticky": True, "max_macs": 5})
    a, b = await lab.plug("a"), await lab.plug("b")
    held = await lab.plug("sticky")
    await lab.knows(a, "a")
    for guest in (b, held):
        await guest.send(inner(ALL_ONES, guest.mac))
        await a.recv()
        await lab.wire.receive(1)
    for guest in (a, b, held):
        lab.come("vxlan", 100, inner(ALL_ONES, guest.mac, seed=1), remote(66))
        got = await (b if guest is a else a).recv()
        while got[6:12] != guest.mac or got[:6] != ALL_ONES:
            got = await (b if guest is a else a).recv()
    found = await lab.fdb()
    ports = [found[guest.mac.hex(":")]["port"] for guest in (a, b, held)]
    assert ports == ["a", "t", "sticky"]
    # whoever speaks next has it again
    await b.send(inner(ALL_ONES, b.mac))
    await asyncio.sleep(0.05)
    assert (await lab.fdb())[b.mac.hex(":")]["port"] == "b"


async def test_port_security_of_a_tunnel(lab: Lab) -> None:
    """Its rules hold for inner frames."""
    rules = {"allowed_macs": [mac(1).hex(":")]}
    await lab.tunnel("t", port_security=rules)
    a = await lab.plug("a")
    for src in (mac(2), a.mac, mac(1)):
        lab.come("vxlan", 100, inner(a.mac if src != a.mac else ALL_ONES, src), remote(1))
    await expect(a, [inner(a.mac, mac(1))])
    assert (await lab.stats("t"))["rx_drops"] == {"port_security": 2}
    await lab.tunnel("t", port_security={"max_macs": 3})
    for n in range(10, 16):
        lab.come("vxlan", 100, inner(a.mac, mac(n)), remote(n))

    async def counted() -> bool:
        return bool((await lab.stats("t"))["rx_drops"]["port_security"] >= 5)

    await until(counted, "addresses beyond the third")
    assert len([e for e in (await lab.fdb()).values() if e["port"] == "t"]) == 3


@kinds
async def test_floods(lab: Lab, kind: str) -> None:
    """Unknown networks, random inner addresses, invented hosts, damage: all is counted, others lose nothing."""
    await lab.tunnel("t", kind)
    rng = random.Random(7)
    count = 400
    frame = inner(mac(9), mac(8))
    bad = malformed(kind)
    packets = [
        *(wrap(kind, 1000 + n, frame, remote(1), local()) for n in range(count)),
        *(wrap(kind, 100, inner(mac(9), b"\x02" + rng.randbytes(5)), remote(1), local()) for _ in range(count)),
        *(wrap(kind, 100, frame, f"10.{50 + n % 50}.{n // 200}.{n % 200 + 1}", local()) for n in range(count)),
        *(sendable(kind, bad[n % len(bad)]) for n in range(count)),
    ]
    rng.shuffle(packets)
    before = await seen(lab, "t")
    async with undisturbed(lab):
        for at in range(0, len(packets), 50):
            lab.wire.send(*packets[at : at + 50])
            await asyncio.sleep(0)
        await accounted(lab, "t", len(packets), before)
    drops = (await lab.endpoint("t"))["drops"]
    assert drops == {"unknown_vni": count, "tunnel_malformed": count}
    assert (await lab.stats("t"))["rx_packets"] == 2 * count


async def test_the_table_of_hosts_is_bounded(lab: Lab) -> None:
    """More invented hosts than it has room for: frames pass, known hosts stay known, others lose nothing."""
    await lab.tunnel("t", remotes=[remote(1)])
    a = await lab.plug("a", queue_size=1024)
    await lab.knows(a, "a")
    # To a guest that is known: copies for everybody would fill the others' rings while this process waits for a core.
    template = bytearray(wrap("vxlan", 100, inner(a.mac, mac(8)), "11.0.0.0", local()))
    template[40:42] = b"\0\0"  # no UDP checksum

    def invented(n: int) -> bytes:
        one = bytearray(template)
        one[26:30] = (0x0B000000 + n * 7 + 1).to_bytes(4, "big")
        one[24:26] = b"\0\0"
        total = sum(int.from_bytes(one[i : i + 2], "big") for i in range(14, 34, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        one[24:26] = (~total & 0xFFFF).to_bytes(2, "big")
        one[64:68] = n.to_bytes(4, "big")  # the end of the inner source address: one for each
        return bytes(one)

    before = await seen(lab, "t")
    count = TABLE + 1500
    async with undisturbed(lab):
        for at in range(0, count, 100):
            lab.wire.send(*(invented(n) for n in range(at, min(at + 100, count))))
            await asyncio.sleep(0.001)
        await accounted(lab, "t", count, before)
    lab.wire.forget()
    while a.recv_nowait() is not None:
        pass
    # a remote is heard, learned and reached as before; from a host without a number frames pass
    for host, src in ((remote(1), mac(1)), ("12.0.0.1", mac(2))):
        lab.come("vxlan", 100, inner(a.mac, src, seed=5), host)
        while await a.recv() != inner(a.mac, src, seed=5):
            pass
    await a.send(inner(mac(1), a.mac))
    (d,) = await lab.wire.receive(1)
    assert d.dst == remote(1)
    info = await lab.switch.get("/tunnels/t")
    assert len(info["remotes"]) <= 1000
