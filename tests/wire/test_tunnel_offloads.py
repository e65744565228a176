# SPDX-License-Identifier: Apache-2.0
"""Large frames and unfinished checksums through tunnels; who is told that a frame is too big.

What a guest's request stands for is said by `tests.wire.offloads`. What was joined on its way in is cut again here, by
the same rules, and must be the very segments that were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, ICMPv6ParamProblem, IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from pvswitch.guest import Guest
from pvswitch.net_header import Gso
from tests.wire.lab import PATIENCE, expect, until
from tests.wire.offloads import (
    ALL,
    CSUM,
    LARGEST,
    OPTIONS,
    PLAIN,
    Request,
    finished,
    pattern,
    rebuilt,
    request,
    requests,
    segments,
    unfinished,
)
from tests.wire.tunnels import ALL_ONES, GATEWAY_MAC, OWN_MAC, Lab, inner, local, mac, remote, tunnel_lab, wrap

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAYS = [("vxlan", 4), ("geneve", 6), ("gre", 4)]
ways = pytest.mark.parametrize(("kind", "family"), WAYS, ids=["vxlan4", "geneve6", "gre4"])
HEADERS = {("vxlan", 4): 36, ("geneve", 6): 56, ("gre", 4): 28}
QUOTED = {IP: 576 - 20 - 8, IPv6: 1280 - 40 - 8}
"""As much of a packet as fits what tells that it is too big (RFC 1812, 4.3.2.3; RFC 4443, 2.4)."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with tunnel_lab(request.param) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="module")
async def lab(switch: Lab) -> AsyncIterator[Lab]:
    yield switch
    await switch.close()


async def behind(lab: Lab, port: str, mac_: bytes, host: str, *, vni: int = 100, vid: int = 0) -> None:
    """Have the switch know who is behind a host: only for known unicast anybody is told."""
    path = f"/tunnels/{port}/vnis/{vni}/macs/{vid}/{mac_.hex(':')}"
    await lab.call("PUT", path, {"remote": host}, status=(200, 201))


async def sender(lab: Lab, features: int = ALL) -> Guest:
    return await lab.plug("a", features=features, tx_buf_size=LARGEST + 12)


# ---- out


@ways
async def test_every_request_becomes_right_frames(lab: Lab, kind: str, family: int) -> None:
    """Cut and summed as for a receiver without offloads, in order; to all remotes."""
    await lab.tunnel("t", kind, family=family)
    a = await sender(lab)
    count = 0
    for name, asked in requests(a.mac.hex(":"), "ff:ff:ff:ff:ff:ff").items():
        wanted = [data for data, _ in finished(asked, PLAIN)]
        if max(map(len, wanted)) > 9000 - 100:
            continue
        await a.send(asked.frame, header=asked.header)
        seen = await lab.wire.receive(2 * len(wanted))
        for host in (remote(1, family), remote(2, family)):
            assert [d.inner for d in seen if d.dst == host] == wanted, name
        for d in (*seen[:4], *seen[-2:]):
            d.exact()
        count += 2 * len(wanted)
    found = await lab.stats("t")
    assert (found["tx_packets"], found["tx_drops"]) == (count, {})


@ways
async def test_a_narrow_path_has_them_cut_smaller(lab: Lab, kind: str, family: int) -> None:
    """TCP only: what UDP asks for is a guest's own datagrams, which are dropped."""
    network = 3 if family == 4 else 4
    room = {3: 1000, 4: 1280}[network] - HEADERS[kind, family]
    await lab.tunnel("t", kind, family=family, remotes=[remote(1, family, network)])
    a = await sender(lab)
    assert (await lab.switch.get("/tunnels/t"))["room"] == room
    kinds = requests(a.mac.hex(":"), "ff:ff:ff:ff:ff:ff")
    for name in ("tso4", "tso4_odd", "tso4_fin", "tso4_vlan", "tso4_largest", "tso6", "tso6_extended"):
        asked = kinds[name]
        size = min(asked.header.gso_size, room - asked.header.hdr_len)
        wanted = segments(asked.with_header(gso_size=size))
        await a.send(asked.frame, header=asked.header)
        seen = await lab.wire.receive(len(wanted))
        assert [d.inner for d in seen] == wanted, name
        for d in (*seen[:2], *seen[-2:]):
            d.exact()
    assert (await lab.stats("t"))["tx_drops"] == {}
    big = request(Ether(dst="ff:ff:ff:ff:ff:ff", src=a.mac.hex(":")) / IP() / UDP(sport=1) / pattern(5000), 1300)
    await a.send(big.frame, header=big.header)

    async def counted() -> bool:
        return bool((await lab.stats("t"))["tx_drops"] == {"mtu_exceeded": 1})

    await until(counted, "UDP that doesn't fit to be dropped")
    await lab.wire.nothing()


@pytest.mark.parametrize("mtu", [600, 949, 950, 2000])
async def test_the_narrower_of_mtu_and_path_counts(lab: Lab, mtu: int) -> None:
    """The port's `mtu` counts no tags, the path counts all bytes."""
    await lab.tunnel("t", remotes=[remote(1, network=3)], mtu=mtu)
    a = await sender(lab)
    kinds = requests(a.mac.hex(":"), "ff:ff:ff:ff:ff:ff")
    for name, tags in (("tso4", 0), ("tso4_vlan", 1), ("tso4_largest", 2)):
        asked = kinds[name]
        room = min(964, mtu + 14 + 4 * tags)
        wanted = segments(asked.with_header(gso_size=min(asked.header.gso_size, room - asked.header.hdr_len)))
        await a.send(asked.frame, header=asked.header)
        assert [d.inner for d in await lab.wire.receive(len(wanted))] == wanted
    fits = min(mtu + 14, 964)
    for size in (fits, fits + 1):
        await a.send(inner(ALL_ONES, a.mac, size))
    (d,) = await lab.wire.receive(1)
    assert len(d.inner) == fits
    await lab.wire.nothing()
    assert (await lab.stats("t"))["tx_drops"] == {"mtu_exceeded": 1}


async def test_large_frames_to_some_tunnels_and_guests_at_once(lab: Lab) -> None:
    """One request flooded to a guest that takes it, one that doesn't, and tunnels of three widths: each as it needs."""
    await lab.tunnel("t", remotes=[remote(1)], vni=1)
    await lab.tunnel("u", "geneve", remotes=[remote(2, network=3)], vni=2)
    await lab.tunnel("v", "gre", remotes=[remote(3, 6)], family=6, vni=3, mtu=1200)
    a = await sender(lab)
    b = await lab.plug("b", features=ALL)
    c = await lab.plug("c", features=PLAIN)
    for name in ("tso4", "tso6", "tso4_fin"):
        asked = requests(a.mac.hex(":"), "ff:ff:ff:ff:ff:ff")[name]
        rooms = {remote(1): 9000, remote(2, network=3): 964, remote(3, 6): 1214}
        wanted = {
            host: segments(asked.with_header(gso_size=min(asked.header.gso_size, room - asked.header.hdr_len)))
            for host, room in rooms.items()
        }
        await a.send(asked.frame, header=asked.header)
        seen = await lab.wire.receive(sum(map(len, wanted.values())))
        assert {host: [d.inner for d in seen if d.dst == host] for host in wanted} == wanted
        for guest in (b, c):
            for data, _ in finished(asked, guest.features):
                assert await guest.recv(PATIENCE) == data


# ---- who is told


def too_big(frame: bytes, mtu: int) -> bytes:
    """What the sender of a frame gets: RFC 1191, 4; RFC 4443, 3.2."""
    parsed = Ether(frame)
    answer: Packet = Ether(dst=parsed.src, src=parsed.dst)
    layer: Packet = parsed.payload
    while isinstance(layer, (Dot1Q, Dot1AD)):
        answer /= type(layer)(vlan=layer.vlan, prio=layer.prio, dei=layer.dei)
        layer = layer.payload
    quoted = Raw(bytes(layer)[: QUOTED[type(layer)]])
    if isinstance(layer, IP):
        answer /= IP(src=layer.dst, dst=layer.src, tos=0xC0, id=0, ttl=64) / ICMP(type=3, code=4, nexthopmtu=mtu)
    else:
        answer /= IPv6(src=layer.dst, dst=layer.src, hlim=64) / ICMPv6PacketTooBig(mtu=mtu)
    return bytes(answer / quoted)


def large(
    a: Guest, to: bytes, family: int, tags: Sequence[Packet] = (), l4: Packet | None = None, **words: Any
) -> bytes:
    packet: Packet = Ether(dst=to.hex(":"), src=a.mac.hex(":"))
    for tag in tags:
        packet /= tag
    if family == 4:
        packet /= IP(**{"src": "192.0.2.1", "dst": "192.0.2.2", "flags": "DF", "id": 5, **words})
    else:
        packet /= IPv6(**{"src": "2001:db8::1", "dst": "2001:db8::2", **words})
    return bytes(packet / (l4 if l4 is not None else UDP(sport=7, dport=8)) / pattern(1200))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tags", [(), (Dot1Q(vlan=10, prio=5),), (Dot1AD(vlan=10), Dot1Q(vlan=20, prio=3))], ids=len)
async def test_who_sends_what_is_too_big_is_told(lab: Lab, family: int, tags: Sequence[Packet]) -> None:
    """By ICMP in the VLAN of the frame, from whom it was for, with the size that fits; nobody else gets it."""
    await lab.tunnel("t", remotes=[remote(1, network=3)])
    a, b = await lab.plug("a"), await lab.plug("b")
    room = 964 - 14 - 4 * len(tags)
    for dst in (mac(1), mac(2)):
        await behind(lab, "t", dst, remote(1, network=3), vid=10 if tags else 0)
        frame = large(a, dst, family, tags)
        await a.send(frame)
        got = await a.recv(PATIENCE)
        assert got == too_big(frame, room), Ether(got).show2(dump=True)
    assert a.recv_nowait() is None
    assert b.recv_nowait() is None
    assert (await lab.stats("t"))["tx_drops"] == {"mtu_exceeded": 2}
    await lab.wire.nothing()


async def test_an_access_port_is_told_without_a_tag(lab: Lab) -> None:
    """What fits counts the tag that the tunnel adds."""
    await lab.tunnel("t", remotes=[remote(1, network=3)])
    a = await lab.plug("access10")
    await behind(lab, "t", mac(1), remote(1, network=3), vid=10)
    for family in (4, 6):
        frame = large(a, mac(1), family)
        await a.send(frame)
        assert await a.recv(PATIENCE) == too_big(frame, 964 - 18)
    await lab.tunnel("t", remotes=[remote(1, network=3)], tag=10)
    await a.send(large(a, mac(1), 4))
    assert await a.recv(PATIENCE) == too_big(large(a, mac(1), 4), 964 - 14)


async def test_who_is_not_told(lab: Lab) -> None:
    """Errors, what went to many, fragments, what may be cut, senders that can't be told; by configuration."""
    await lab.tunnel("t", remotes=[remote(1, network=3)])
    a = await lab.plug("a")
    await behind(lab, "t", mac(1), remote(1, network=3))
    silent = [
        large(a, mac(2), 4),  # it is flooded
        large(a, mac(1), 4, flags=0),
        large(a, mac(1), 4, frag=100),
        large(a, mac(1), 4, src="0.0.0.0"),
        large(a, mac(1), 4, src="224.0.0.1"),
        large(a, mac(1), 4, src="255.255.255.255"),
        large(a, mac(1), 4, src="127.0.0.1"),
        large(a, mac(1), 4, dst="224.0.0.5"),
        large(a, mac(1), 4, l4=ICMP(type=3, code=4)),
        large(a, mac(1), 4, l4=ICMP(type=11)),
        large(a, ALL_ONES, 4),
        large(a, bytes.fromhex("01005e000001"), 4, dst="224.0.0.1"),
        large(a, mac(1), 6, src="::"),
        large(a, mac(1), 6, src="ff02::1"),
        large(a, mac(1), 6, dst="ff02::1"),
        large(a, mac(1), 6, l4=ICMPv6PacketTooBig()),
        large(a, mac(1), 6, l4=ICMPv6ParamProblem()),
        inner(mac(1), a.mac, 1200),
    ]
    for frame in silent:
        await a.send(frame)

    async def counted() -> bool:
        return bool((await lab.stats("t"))["tx_drops"] == {"mtu_exceeded": len(silent)})

    await until(counted, "what doesn't fit to be dropped")
    got = []
    while (one := a.recv_nowait()) is not None:
        got.append(Ether(one).summary())
    assert not got
    for l4, family in ((ICMP(type=8), 4), (ICMPv6EchoRequest(), 6)):
        frame = large(a, mac(1), family, l4=l4)
        await a.send(frame)
        assert await a.recv(PATIENCE) == too_big(frame, 950)
    await lab.tunnel("t", remotes=[remote(1, network=3)], icmp_too_big=False)
    before = (await lab.stats("t"))["tx_dropped"]
    await a.send(large(a, mac(1), 4))
    await until(lambda: _dropped(lab, before + 1), "it to be dropped")
    assert a.recv_nowait() is None


async def _dropped(lab: Lab, count: int) -> bool:
    return bool((await lab.stats("t"))["tx_dropped"] == count)


async def test_the_answers_are_bounded(lab: Lab) -> None:
    """1,000 a second of each worker; what is dropped is counted all the same."""
    await lab.tunnel("t", remotes=[remote(1, network=3)])
    a = await lab.plug("a", queue_size=1024)
    await behind(lab, "t", mac(1), remote(1, network=3))
    frame, count, got = large(a, mac(1), 4), 6000, 0
    for n in range(count):
        await a.send(frame, kick=n % 64 == 63 or n == count - 1)
        while a.recv_nowait() is not None:
            got += 1
    await until(lambda: _dropped(lab, count), "all of it to be dropped")
    while a.recv_nowait() is not None:
        got += 1
    assert 0 < got <= 4000
    await asyncio.sleep(1.1)  # those of this second are used up


async def test_a_host_behind_a_tunnel_is_told_by_it(lab: Lab) -> None:
    """Between two tunnels: the answer goes to the host that the frame came from."""
    await lab.tunnel("t", remotes=[remote(1)], vni=1)
    await lab.tunnel("u", remotes=[remote(2, network=3)], vni=2)
    await behind(lab, "u", mac(2), remote(2, network=3), vni=2)
    ether = Ether(dst=mac(2).hex(":"), src=mac(1).hex(":"))
    frame = bytes(ether / IP(src="192.0.2.1", dst="192.0.2.2", flags="DF") / UDP() / pattern(1200))
    lab.come("vxlan", 1, frame, remote(9))
    (d,) = await lab.wire.receive(1)
    assert (d.vni, d.dst, d.inner) == (1, remote(9), too_big(frame, 950))
    d.exact()
    await lab.wire.nothing()


async def test_a_path_that_becomes_narrower(lab: Lab) -> None:
    """A router on the way says so: what doesn't fit any more is dropped, soon known, and then told."""
    await lab.tunnel("t", remotes=[remote(50)])
    a = await lab.plug("a", tx_buf_size=9216)
    await behind(lab, "t", mac(1), remote(50))
    assert (await lab.switch.get("/tunnels/t"))["room"] == 9000 - 36
    frame = large(a, mac(1), 4)
    await a.send(frame)
    (d,) = await lab.wire.receive(1)
    quoted = Raw(d.raw[14 : 14 + 60])
    router = Ether(dst=OWN_MAC, src=GATEWAY_MAC) / IP(src="10.9.99.1", dst=local())
    lab.wire.send(bytes(router / ICMP(type=3, code=4, nexthopmtu=900) / quoted))

    async def told() -> bool:
        await a.send(frame)
        with contextlib.suppress(TimeoutError):
            return await a.recv(0.2) == too_big(frame, 900 - 36 - 14)
        return False

    await until(told, "an answer")
    assert (await lab.switch.get("/tunnels/t"))["mtu"] == 850
    assert (await lab.switch.get("/ports/t"))["state"]["mtu"] == 850
    lab.wire.forget()
    await a.send(large(a, mac(1), 4)[:800])
    assert len(await lab.wire.receive(1)) == 1


# ---- in: trains


def tcp_train(
    a: bytes,
    count: int = 12,
    size: int = 1000,
    *,
    family: int = 4,
    flags: str = "A",
    last: int | None = None,
    **words: Any,
) -> list[bytes]:
    """Segments one behind the other, of one flow."""
    made = []
    for n in range(count):
        net = (
            IP(src="192.0.2.9", dst="192.0.2.2", id=100 + n, flags="DF")
            if family == 4
            else IPv6(src="2001:db8::9", dst="2001:db8::2")
        )
        length = last if last is not None and n == count - 1 else size
        tcp = TCP(
            **{
                "sport": 4000,
                "dport": 80,
                "seq": 1000 + n * size,
                "ack": 5,
                "flags": flags,
                "options": OPTIONS,
                **words,
            }
        )
        body = Raw(bytes((n * 7 + i) & 0xFF for i in range(length)))
        made.append(bytes(Ether(dst=a.hex(":"), src=mac(1).hex(":")) / net / tcp / body))
    return made


def changed(frame: bytes, family: int = 4, **words: object) -> bytes:
    """A segment with other words in its TCP header, and right checksums."""
    packet = Ether(frame)
    for key, value in words.items():
        setattr(packet[TCP], key, value)
    return rebuilt(packet)


def flipped(frame: bytes, at: int = -5) -> bytes:
    """A frame with a bit of another value."""
    data = bytearray(frame)
    data[at] ^= 0x10
    return bytes(data)


async def received(guest: Guest, frames: Sequence[bytes]) -> list[int]:
    """Take frames until they hold these; they must be the same, cut again. How many each was made of."""
    groups: list[int] = []
    at = 0
    while at < len(frames):
        got = await guest.receive(PATIENCE)
        h = replace(got.header, num_buffers=0)
        if h.gso_type == Gso.NONE:
            assert (h.flags, got.frame) == (0, frames[at]), "changed, or left unfinished"
            parts = [got.frame]
        else:
            assert h.gso_type in (Gso.TCPV4, Gso.TCPV6)
            payload = len(got.frame) - h.hdr_len
            assert payload > h.gso_size
            parts = [
                _like(part, wanted) for part, wanted in zip(segments(Request(got.frame, h)), frames[at:], strict=False)
            ]
            assert len(parts) == -(-payload // h.gso_size)
            assert parts == list(frames[at : at + len(parts)])
        groups.append(len(parts))
        at += len(parts)
    assert guest.recv_nowait() is None
    return groups


def _like(part: bytes, wanted: bytes) -> bytes:
    """IDs don't matter where nobody may fragment (RFC 6864)."""
    one, other = Ether(part), Ether(wanted)
    if IP in one and one[IP].flags.DF and IP in other:
        one[IP].id = other[IP].id
        return rebuilt(one)
    return part


async def burst(lab: Lab, kind: str, frames: Sequence[bytes], family: int = 4, **words: Any) -> None:
    """All of these are there when the switch looks."""
    packets = [wrap(kind, 100, one, remote(1, family), local(family), **words) for one in frames]
    with lab.halted():
        lab.wire.send(*packets)


@ways
@pytest.mark.parametrize("inside", [4, 6])
async def test_segments_are_joined_for_who_takes_them(lab: Lab, kind: str, family: int, inside: int) -> None:
    """One frame for a guest with TSO, with or without a tag; the very segments for others."""
    await lab.tunnel("t", kind, family=family)
    a = await lab.plug("a", features=ALL)
    b = await lab.plug("b", features=CSUM)
    c = await lab.plug("c", features=PLAIN)
    for guest, groups in ((a, [12]), (b, [1] * 12), (c, [1] * 12)):
        await lab.knows(guest, "abc"[[a, b, c].index(guest)])
        frames = tcp_train(guest.mac, family=inside, last=333)
        frames[-1] = changed(frames[-1], flags="PA")
        await burst(lab, kind, frames, family)
        if guest is b:
            for one in frames:  # it takes unfinished ones
                got = await b.receive(PATIENCE)
                assert got.frame in (one, unfinished(one))
                assert (got.header.flags & 1 == 1) == (got.frame != one)
                assert got.header.gso_type == Gso.NONE
        else:
            assert await received(guest, frames) == groups
    seen = await lab.stats("t")
    assert seen["rx_dropped"] == 0
    assert seen["rx_bytes"] >= 3 * 12 * 333


TRAINS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], list[int]]] = {
    # what is done to 12 segments, how many of them each frame must hold
    "untouched": (lambda f: f, [12]),
    "PSH on the fifth": (lambda f: [*f[:4], changed(f[4], flags="PA"), *f[5:]], [5, 7]),
    "FIN on the last": (lambda f: [*f[:-1], changed(f[-1], flags="FA")], [12]),
    "FIN on the first": (lambda f: [changed(f[0], flags="FA"), *f[1:]], [1, 11]),
    "SYN": (lambda f: [changed(f[0], flags="S"), *f[1:]], [1, 11]),
    "RST": (lambda f: [*f[:6], changed(f[6], flags="RA"), *f[7:]], [6, 1, 5]),
    "URG": (lambda f: [*f[:6], changed(f[6], flags="UA", urgptr=3), *f[7:]], [6, 1, 5]),
    "CWR": (lambda f: [*f[:6], changed(f[6], flags="CA"), *f[7:]], [6, 1, 5]),
    "ECE": (lambda f: [*f[:6], changed(f[6], flags="EA"), *f[7:]], [6, 1, 5]),
    "out of order": (lambda f: [*f[:3], f[4], f[3], *f[5:]], [3, 1, 1, 7]),
    "one missing": (lambda f: [*f[:5], *f[6:]], [5, 6]),
    "one twice": (lambda f: [*f[:5], f[4], *f[5:]], [5, 8]),
    "another ack": (lambda f: [*f[:6], *(changed(x, ack=6) for x in f[6:])], [6, 6]),
    "another window": (lambda f: [*f[:6], *(changed(x, window=99) for x in f[6:])], [6, 6]),
    "other timestamps": (
        lambda f: [*f[:6], *(changed(x, options=[("Timestamp", (9, 9)), ("NOP", None), ("NOP", None)]) for x in f[6:])],
        [6, 6],
    ),
    "another flow between": (lambda f: [*f[:6], changed(f[6], sport=4001), *f[6:]], [6, 1, 6]),
    "wrong checksum of TCP": (lambda f: [*f[:6], flipped(f[6]), *f[7:]], [6, 1, 5]),
    "wrong checksum of the first": (lambda f: [flipped(f[0]), *f[1:]], [1, 11]),
    "wrong checksum of the last": (lambda f: [*f[:-1], flipped(f[-1])], [11, 1]),
    "wrong checksum of IP": (lambda f: [*f[:6], flipped(f[6], 24), *f[7:]], [6, 1, 5]),
    "another TTL": (lambda f: [*f[:6], rebuilt_ip(f[6], ttl=3), *f[7:]], [6, 1, 5]),
    "another TOS": (lambda f: [*f[:6], rebuilt_ip(f[6], tos=4), *f[7:]], [6, 1, 5]),
    "a fragment": (lambda f: [*f[:6], rebuilt_ip(f[6], flags="MF"), *f[7:]], [6, 1, 5]),
    "padded": (lambda f: [*f[:6], f[6] + bytes(3), *f[7:]], [6, 1, 5]),
    "IP options": (lambda f: [*f[:6], rebuilt_ip(f[6], options=b"\x94\x04\0\0", ihl=None), *f[7:]], [6, 1, 5]),
    "IDs that don't count": (lambda f: [rebuilt_ip(x, id=0) for x in f], [12]),
    "IDs that count": (lambda f: [rebuilt_ip(x, flags=0) for x in f], [12]),
    "an ID left out": (lambda f: [rebuilt_ip(x, flags=0, id=100 + i + (i > 5)) for i, x in enumerate(f)], [6, 6]),
    "one alone": (lambda f: f[:1], [1]),
    "shorter, then on": (
        lambda f: [*f[:5], shorter(f[5], 500), *(changed(x, seq=5500 + 1000 + 1000 * i) for i, x in enumerate(f[6:]))],
        [6, 6],
    ),
    "longer": (
        lambda f: [shorter(f[0], 500), *(changed(x, seq=1500 + 1000 * i) for i, x in enumerate(f[1:]))],
        [1, 11],
    ),
    "without payload": (lambda f: [*f[:6], shorter(f[6], 0), *f[6:]], [6, 1, 6]),
    "to another address": (lambda f: [*f[:6], f[6][:6] + bytes.fromhex("02cc00000001") + f[6][12:], *f[7:]], [6, 1, 5]),
    "in a VLAN": (lambda f: [x[:12] + b"\x81\x00\x40\x07" + x[12:] for x in f], [12]),
    "one in a VLAN": (lambda f: [*f[:6], f[6][:12] + b"\x81\x00\x40\x00" + f[6][12:], *f[7:]], [6, 1, 5]),
}


def rebuilt_ip(frame: bytes, **words: object) -> bytes:
    """A segment with other words in its IPv4 header."""
    packet = Ether(frame)
    for key, value in words.items():
        setattr(packet[IP], key, value)
    return rebuilt(packet)


def shorter(frame: bytes, size: int) -> bytes:
    packet = Ether(frame)
    packet[TCP].remove_payload()
    return rebuilt(packet / Raw(pattern(size).load)) if size else rebuilt(packet)


@pytest.mark.parametrize("what", TRAINS)
async def test_what_ends_a_train(lab: Lab, what: str) -> None:
    """No byte is changed, nothing joined that Linux would not join; the guest can cut it into what was sent."""
    await lab.tunnel("t", remotes=[remote(1)])
    a = await lab.plug("a", features=ALL)
    await lab.knows(a, "a")
    if "VLAN" in what:
        await lab.knows(a, "a", vid=7)
    change, groups = TRAINS[what]
    frames = list(change(tcp_train(a.mac)))
    await burst(lab, "vxlan", frames)
    assert await received(a, frames) == groups
    assert (await lab.stats("t"))["rx_packets"] == len(groups)


async def test_hosts_and_networks_are_not_joined(lab: Lab) -> None:
    """Segments by two VTEPs, or in two networks, stay apart though one socket has them all."""
    await lab.tunnel("t", vni={"10": 100, "20": 200}, remotes=[remote(1)])
    a = await lab.plug("a", features=ALL)
    for vid in (10, 20):
        await lab.knows(a, "a", vid=vid)
    frames = tcp_train(a.mac)
    # VTEPs by turns: the kernel puts these into one socket where there is one only
    packets = [wrap("vxlan", 100, one, remote(1 + n % 2), local()) for n, one in enumerate(frames)]
    packets2 = [wrap("vxlan", 100 + n % 2 * 100, one, remote(1), local()) for n, one in enumerate(frames)]
    with lab.halted():
        lab.wire.send(*packets)
    got = [await a.receive(PATIENCE) for _ in frames]
    assert sorted(g.frame for g in got) == sorted(f[:12] + b"\x81\x00\0\x0a" + f[12:] for f in frames)
    with lab.halted():
        lab.wire.send(*packets2)
    got = [await a.receive(PATIENCE) for _ in frames]
    assert [g.frame for g in got] == [
        f[:12] + b"\x81\x00\0" + bytes([10 + n % 2 * 10]) + f[12:] for n, f in enumerate(frames)
    ]
    assert {g.header.gso_type for g in got} == {Gso.NONE}


async def test_a_long_train_and_a_path_that_is_narrower(lab: Lab) -> None:
    """From one tunnel to another: joined or not, the stream's bytes arrive, in frames that fit there."""
    await lab.tunnel("t", remotes=[remote(1)])
    await lab.tunnel("u", "geneve", vni=200, remotes=[remote(2, network=3)])
    frames = tcp_train(mac(5), 30, 1400)
    await burst(lab, "vxlan", frames)
    body, sent = b"", b"".join(bytes(Ether(f)[TCP].payload) for f in frames)
    seq = 1000
    while len(body) < len(sent):
        (d,) = await lab.wire.receive(1)
        assert (d.kind, d.dst) == ("geneve", remote(2, network=3))
        assert len(d.inner) <= 964
        d.exact()
        packet = Ether(d.inner)
        assert rebuilt(packet) == d.inner, "its checksums are right"
        assert packet[TCP].seq == seq
        part = bytes(packet[TCP].payload)
        seq += len(part)
        body += part
    assert body == sent
    await lab.wire.nothing()


# ---- in: left unfinished


@ways
async def test_unfinished_checksums_are_finished(lab: Lab, kind: str, family: int) -> None:
    """Of TCP and UDP, for who takes none; others are asked to do it."""
    await lab.tunnel("t", kind, family=family)
    a = await lab.plug("a", features=ALL)
    c = await lab.plug("c", features=PLAIN)
    for guest, port in ((a, "a"), (c, "c")):
        await lab.knows(guest, port)
        kinds = requests(mac(1).hex(":"), guest.mac.hex(":"))
        for name in ("tcp4", "tcp4_odd", "tcp4_nothing", "udp4", "udp4_zero", "tcp6", "udp6", "tcp4_vlan"):
            asked = kinds[name]
            if name == "tcp4_vlan":
                await lab.knows(guest, port, vid=7)
            lab.come(kind, 100, asked.frame, remote(1, family))
            got = await guest.receive(PATIENCE)
            ((data, header),) = finished(asked, guest.features)
            assert got.frame == data, name
            assert (got.header.flags, got.header.gso_type) == (header.flags, header.gso_type), name
            if header.flags:
                assert (got.header.csum_start, got.header.csum_offset) == (header.csum_start, header.csum_offset)


@ways
async def test_large_segments_that_come_uncut(lab: Lab, kind: str, family: int) -> None:
    """One datagram of 30 KB with an unfinished checksum: cut as the tunnel's frames are, or given whole."""
    await lab.tunnel("t", kind, family=family, remotes=[remote(1, family, 2)])
    a = await lab.plug("a", features=ALL)
    c = await lab.plug("c", features=PLAIN)
    room = 1500 - HEADERS[kind, family]
    for guest, port in ((a, "a"), (c, "c")):
        await lab.knows(guest, port)
        for name in ("tso4", "tso6"):
            asked = requests(mac(1).hex(":"), guest.mac.hex(":"))[name]
            size = room - asked.header.hdr_len
            words = {"flags": 0, "id": 9} if family == 4 else {}
            whole = wrap(kind, 100, asked.frame, remote(1, family, 2), local(family), **words)
            lab.wire.send(*_fragments(whole, family))
            for data, header in finished(asked.with_header(gso_size=size), guest.features):
                got = await guest.receive(PATIENCE)
                assert got.frame == data
                assert (got.header.gso_type, got.header.gso_size) == (header.gso_type, header.gso_size)
            assert guest.recv_nowait() is None


def _fragments(whole: bytes, family: int) -> list[bytes]:
    if family == 4:
        return [bytes(part) for part in fragment(Ether(whole), 8000)]
    body = whole[54:]
    parts = []
    for at in range(0, len(body), 8000):
        part = body[at : at + 8000]
        extension = bytes([whole[20], 0]) + (at | (at + 8000 < len(body))).to_bytes(2, "big") + b"\0\0\0\x09"
        length = (len(part) + 8).to_bytes(2, "big")
        parts.append(whole[:18] + length + b"\x2c" + whole[21:54] + extension + part)
    return parts


async def test_wrong_checksums_stay_wrong(lab: Lab) -> None:
    """What was damaged on its way is not made right, for any guest."""
    await lab.tunnel("t")
    a = await lab.plug("a", features=ALL)
    c = await lab.plug("c", features=PLAIN)
    for guest, port in ((a, "a"), (c, "c")):
        await lab.knows(guest, port)
        for frame in tcp_train(guest.mac, 3):
            lab.come("vxlan", 100, flipped(frame), remote(1))
            got = await guest.receive(PATIENCE)
            assert (got.frame, got.header.flags & 1, got.header.gso_type) == (flipped(frame), 0, 0)


async def test_with_the_kernels_own_gro() -> None:
    """The host's kernel gives runs of datagrams as one message: the frames are the same."""
    async with tunnel_lab(1, gro=True) as lab:
        await lab.tunnel("t", remotes=[])
        a = await lab.plug("a", features=ALL, queue_size=1024)
        c = await lab.plug("c", features=PLAIN, queue_size=1024)
        for guest, port in ((a, "a"), (c, "c")):
            await lab.knows(guest, port)
            frames = tcp_train(guest.mac, 60, 1000, last=70)
            await burst(lab, "vxlan", frames)
            groups = await received(guest, frames)
            assert len(groups) == 60 if guest is c else len(groups) < 10
            plain = [inner(guest.mac, mac(1), 60 + n % 3 * 100, n) for n in range(100)]
            await burst(lab, "vxlan", plain)
            await expect(guest, plain)
        await lab.close()
