# SPDX-License-Identifier: Apache-2.0
"""Unfinished checksums and segmentation between guests of all abilities, through a real switch.

`tests.wire.offloads` says what each receiver must get; the driver refuses headers that weren't negotiated.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from pvswitch.driver import Layout
from pvswitch.guest import Guest, GuestError
from pvswitch.net_header import DATA_VALID, GSO_ECN, NEEDS_CSUM, Gso, NetHeader
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import U64
from pvswitch.vhost_user.messages import Request as Message
from tests.system.conftest import running_switch
from tests.wire.lab import PATIENCE, expect_only, flush_frames, frame, reach, stats
from tests.wire.offloads import (
    ABILITIES,
    ALL,
    BUFFER,
    CSUM,
    LARGEST,
    PLAIN,
    TSO,
    USO,
    Request,
    finished,
    pattern,
    receive,
    request,
    requests,
    sendable,
    tcp_with,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
MACS = {port: f"02:00:00:00:00:0{i}" for i, port in enumerate("abcdm", start=1)}
SWITCHES = {"no_csum": {"csum": False}, "no_tso": {"tso": False}, "no_uso": {"uso": False}}
CONFIG: dict[str, Any] = {
    "ports": {
        **{name: {} for name in "abcd"},
        "m": {"mtu": 1500},
        **{name: {"features": features} for name, features in SWITCHES.items()},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[SwitchProcess]:
    async with running_switch({**CONFIG, "datapath": {"workers": request.param}}) as switch:
        yield switch


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


async def plug(switch: SwitchProcess, stack: Stack, port: str, features: int, **conf: Any) -> Guest:
    """A guest that can send and receive the largest frame; with mergeable buffers, over several of them."""
    large = not features & Feature.MRG_RXBUF
    defaults: dict[str, Any] = {
        "mac": mac_bytes(MACS[port]),
        "queue_size": 64,
        "rx_buf_size": LARGEST + 12 if large else BUFFER,
        "tx_buf_size": LARGEST + 12,
        "features": features,
    }
    return await stack.enter_async_context(Guest(switch.port_socket(port), **{**defaults, **conf}))


@pytest.mark.parametrize("sender", [name for name, features in ABILITIES.items() if features & Feature.CSUM])
async def test_requests_become_what_the_receiver_takes(switch: SwitchProcess, stack: Stack, sender: str) -> None:
    """From each kind of sender to each kind of receiver; counted as one frame in, and as its pieces out."""
    a = await plug(switch, stack, "a", ABILITIES[sender])
    for name, features in ABILITIES.items():
        async with contextlib.AsyncExitStack() as there:
            b = await plug(switch, there, "b", features)
            await b.announce()
            await flush_frames([a], b)
            await b.drain()
            await a.drain()
            before_a, before_b = await stats(switch, "a"), await stats(switch, "b")
            pieces = sent = received = 0
            asked = sendable(a, MACS["b"])
            for kind, one in asked.items():
                await a.send(one.frame, header=one.header)
                pieces += await receive(b, one, f"{kind} from {sender} to {name}")
                sent += len(one.frame)
                received += sum(len(data) for data, _ in finished(one, features))
            assert b.recv_nowait() is None
            await reach(
                switch,
                "a",
                {
                    "rx_packets": before_a["rx_packets"] + len(asked),
                    "rx_bytes": before_a["rx_bytes"] + sent,
                    "rx_drops": before_a["rx_drops"],
                },
            )
            await reach(
                switch,
                "b",
                {
                    "tx_packets": before_b["tx_packets"] + pieces,
                    "tx_bytes": before_b["tx_bytes"] + received,
                    "tx_drops": before_b["tx_drops"],
                },
            )
        await switch.wait_link("b", "waiting_for_frontend")


@pytest.mark.parametrize("able", [("none", "csum", "all"), ("tso_no_mrg", "uso6_only", "none_no_mrg")], ids="-".join)
async def test_a_flood_is_finished_for_each_receiver(
    switch: SwitchProcess, stack: Stack, able: tuple[str, str, str]
) -> None:
    a = await plug(switch, stack, "a", ALL)
    others = [await plug(switch, stack, port, ABILITIES[name]) for port, name in zip("bcd", able, strict=True)]
    await flush_frames(others, a)
    for dst in ("ff:ff:ff:ff:ff:ff", "02:00:00:00:99:99"):
        for kind, one in requests(MACS["a"], dst).items():
            await a.send(one.frame, header=one.header)
            for guest, name in zip(others, able, strict=True):
                await receive(guest, one, f"{kind} flooded to {name}")
    for guest in others:
        assert guest.recv_nowait() is None


@pytest.mark.parametrize("features", [ALL, PLAIN], ids=["passed_on", "finished"])
async def test_every_layout_of_a_request(switch: SwitchProcess, stack: Stack, features: int) -> None:
    """Headers and payload over many descriptors on both sides."""
    a = await plug(switch, stack, "a", ALL)
    shape = Layout(cuts=(12, 100, 333), shuffle=True)
    b = await plug(switch, stack, "b", features, queue_size=512, rx_buf_size=1024, rx_layout=shape)
    await b.announce()
    await flush_frames([a], b)
    shapes = [
        Layout(cuts=(12,)),
        Layout(cuts=(5, 12, 26, 46, 66, 67, 127, 140, 141, 1500, 1501, 3333), shuffle=True),
        Layout(cuts=(20, 53, 79, 2000, 2001), indirect=True, direct=1),
    ]
    for layout in shapes:
        for kind, one in sendable(a, MACS["b"]).items():
            await a.send(one.frame, header=one.header, layout=layout)
            await receive(b, one, kind)


async def test_odd_but_legal_headers(switch: SwitchProcess, stack: Stack) -> None:
    """hdr_len is a hint, flags that a device gives mean nothing from a driver, and a frame may fit one segment."""
    a, b = await plug(switch, stack, "a", ALL), await plug(switch, stack, "b", ALL)
    await b.announce()
    await flush_frames([a], b)
    asked = requests(MACS["a"], MACS["b"])
    tso = asked["tso4"]
    for lie in (0, 14, 0xFFFF):
        await a.send(tso.frame, header=tso.with_header(hdr_len=lie).header)
        await receive(b, tso, f"hdr_len {lie}")
    await a.send(tso.frame, header=tso.with_header(flags=NEEDS_CSUM | DATA_VALID | 0xFC).header)
    await receive(b, tso, "all flags")
    plain = frame(b.mac, a.mac, 200)
    await a.send(
        plain, header=NetHeader(flags=DATA_VALID, hdr_len=7, gso_size=9, csum_start=0xFFFF, csum_offset=0xFFFF)
    )
    got = await b.receive(PATIENCE)
    assert (got.frame, got.header) == (plain, NetHeader(num_buffers=1))
    for size in (len(tso.frame), 0xFFFF):
        one = tso.with_header(gso_size=size)
        await a.send(one.frame, header=one.header)
        await receive(b, one, f"gso_size {size}")


async def test_segments_without_room_are_counted_each(switch: SwitchProcess, stack: Stack) -> None:
    a = await plug(switch, stack, "a", ALL)
    b = await plug(switch, stack, "b", CSUM, queue_size=16)
    await b.announce()
    await flush_frames([a], b)
    before = await stats(switch, "b")
    asked = requests(MACS["a"], MACS["b"])["tso4"]
    wanted = finished(asked, b.features)
    assert len(wanted) == 28
    await a.send(asked.frame, header=asked.header)
    await a.drain()
    drops = dict(before["tx_drops"])
    drops["guest_rx_full"] = drops.get("guest_rx_full", 0) + 12
    await reach(switch, "b", {"tx_packets": before["tx_packets"] + 16, "tx_drops": drops})
    assert [(await b.receive(PATIENCE)).frame for _ in range(16)] == [data for data, _ in wanted[:16]]
    await expect_only(b, a)


async def test_mtu_is_of_a_frame_s_segments(switch: SwitchProcess, stack: Stack) -> None:
    """Passed on whole or in pieces: what fits is received, what is a byte too long is dropped as one frame."""
    a = await plug(switch, stack, "a", ALL)
    front = Ether(src=MACS["a"], dst=MACS["m"])
    kinds: list[tuple[Packet, int]] = [
        (front / IP() / TCP(), 1460),
        (front / Dot1AD(vlan=1) / Dot1Q(vlan=2) / IP() / tcp_with("A", [("NOP", None)] * 12), 1448),
        (front / IPv6() / TCP(), 1440),
        (front / IP() / UDP(), 1472),
        (front / Dot1Q(vlan=3) / IPv6() / UDP(), 1452),
    ]
    for features in (ALL, CSUM, PLAIN):
        async with contextlib.AsyncExitStack() as there:
            m = await plug(switch, there, "m", features)
            await m.announce()
            await flush_frames([a], m)
            before = await stats(switch, "m")
            for packet, size in kinds:
                too_long, fits = (request(packet / pattern(9000), size + over) for over in (1, 0))
                await a.send(too_long.frame, header=too_long.header)
                await a.send(fits.frame, header=fits.header)
                await receive(m, fits, packet.summary())
                alone = request(packet / pattern(size + 1), size)
                await a.send(alone.frame, header=alone.header)
                await receive(m, alone, packet.summary())
                plain = request(packet / pattern(size + 1))
                await a.send(plain.frame, header=plain.header)
            await expect_only(m, a)
            drops = dict(before["tx_drops"])
            drops["mtu_exceeded"] = drops.get("mtu_exceeded", 0) + 2 * len(kinds)
            await reach(switch, "m", {"tx_drops": drops})
        await switch.wait_link("m", "waiting_for_frontend")


# ---- what must be refused ----


def bad_requests(src: str, dst: str) -> dict[str, tuple[int, Request]]:
    """By name: the sender's features, and a request that is wrong in one thing."""
    good = requests(src, dst)
    csum, tso, uso = good["udp4"], good["tso4"], good["uso6"]
    front = Ether(src=src, dst=dst)
    end = len(csum.frame)
    v4, v6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")
    fragment6 = request(front / v6 / IPv6ExtHdrFragment() / TCP() / pattern(5000), 1000)
    far = request(front / v6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"x" * 250)] * 2) / TCP() / pattern(5000), 1000)
    tags = front / Dot1AD(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / v4 / TCP() / pattern(5000)
    return {
        "csum_not_negotiated": (PLAIN, csum),
        "tso4_not_negotiated": (USO, tso),
        "tso6_not_negotiated": (int(CSUM | Feature.HOST_TSO4), good["tso6"]),
        "uso_not_negotiated": (TSO, uso),
        "ecn_not_negotiated": (TSO, good["tso4_ecn"]),
        "ufo": (ALL, uso.with_header(gso_type=Gso.UDP)),
        "unknown_type": (ALL, tso.with_header(gso_type=2)),
        "ecn_alone": (ALL, csum.with_header(gso_type=GSO_ECN)),
        "ecn_with_uso": (ALL, uso.with_header(gso_type=Gso.UDP_L4 | GSO_ECN)),
        "gso_without_needs_csum": (ALL, tso.with_header(flags=0)),
        "gso_size_0": (ALL, tso.with_header(gso_size=0)),
        "too_many_segments": (ALL, tso.with_header(gso_size=19)),
        "start_at_the_end": (ALL, csum.with_header(csum_start=end)),
        "offset_one_byte_too_far": (ALL, csum.with_header(csum_offset=end - csum.header.csum_start - 1)),
        "offset_wraps": (ALL, csum.with_header(csum_start=0xFFFF, csum_offset=0xFFFF)),
        "start_in_the_ethernet_header": (ALL, csum.with_header(csum_start=13)),
        "start_beyond_the_first_512_bytes": (ALL, tso.with_header(gso_type=Gso.NONE, csum_start=511, csum_offset=0)),
        "tso_start_wrong": (ALL, tso.with_header(csum_start=tso.header.csum_start + 2)),
        "tso_offset_wrong": (ALL, tso.with_header(csum_offset=6)),
        "uso_offset_wrong": (ALL, uso.with_header(csum_offset=16)),
        "tso_of_udp": (ALL, good["uso4"].with_header(gso_type=Gso.TCPV4)),
        "uso_of_tcp": (ALL, tso.with_header(gso_type=Gso.UDP_L4)),
        "tso6_of_ipv4": (ALL, tso.with_header(gso_type=Gso.TCPV6)),
        "tso4_of_ipv6": (ALL, good["tso6"].with_header(gso_type=Gso.TCPV4)),
        "ipv6_fragment": (ALL, fragment6),
        "ipv4_first_fragment": (ALL, changed(tso, 20, 0x20)),
        "ipv4_later_fragment": (ALL, changed(tso, 21, 1)),
        "l4_beyond_the_first_512_bytes": (ALL, far),
        "three_tags": (ALL, request(tags, 1000)),
        "tcp_header_too_short": (ALL, changed(tso, 46, 0x40)),
        "ip_header_too_short": (ALL, changed(tso, 14, 0x44)),
        "ip_version": (ALL, changed(tso, 14, 0x65)),
        "not_an_ethernet_header": (ALL, Request(tso.frame[:13], tso.header)),
        "cut_within_the_tcp_header": (ALL, Request(tso.frame[:45], tso.header)),
    }


def changed(asked: Request, at: int, byte: int) -> Request:
    """The same with one byte of the frame exchanged."""
    return Request(asked.frame[:at] + bytes([byte]) + asked.frame[at + 1 :], asked.header)


@pytest.mark.parametrize("name", bad_requests(MACS["a"], MACS["b"]))
async def test_a_bad_request_is_malformed_and_nothing_else(switch: SwitchProcess, stack: Stack, name: str) -> None:
    features, bad = bad_requests(MACS["a"], MACS["b"])[name]
    a, b = await plug(switch, stack, "a", features), await plug(switch, stack, "b", ALL)
    await b.announce()
    await flush_frames([a], b)
    before = await stats(switch, "a")
    await a.send(bad.frame, header=bad.header)
    await expect_only(b, a)
    drops = dict(before["rx_drops"])
    drops["malformed"] = drops.get("malformed", 0) + 1
    await reach(switch, "a", {"rx_drops": drops, "rx_packets": before["rx_packets"] + 1})
    assert await switch.link("a") == "up"


# ---- what a port offers ----

OFFERED_WITHOUT = {
    "a": 0,
    "no_csum": ALL & ~PLAIN,
    "no_tso": sum(Feature[f"{side}_{what}"] for side in ("HOST", "GUEST") for what in ("TSO4", "TSO6", "ECN")),
    "no_uso": Feature.HOST_USO | Feature.GUEST_USO4 | Feature.GUEST_USO6,
}


def bits(mask: int) -> Iterable[Feature]:
    return (feature for feature in Feature if mask & feature)


@pytest.mark.parametrize("port", OFFERED_WITHOUT)
async def test_a_feature_switched_off_is_not_offered_and_refused(
    switch: SwitchProcess, stack: Stack, port: str
) -> None:
    guest = Guest(switch.port_socket(port), features=ALL)
    stack.callback(guest.kill)
    await guest.connect(start=False)
    without = OFFERED_WITHOUT[port]
    assert guest.offered & ALL & ~PLAIN == ALL & ~PLAIN & ~without
    assert not guest.offered & (Feature.GUEST_UFO | Feature.HOST_UFO)
    for bit in bits(without):
        refused = Guest(switch.port_socket(port), features=ALL)
        stack.callback(refused.kill)
        guest.kill()
        await switch.wait_until(lambda: free(switch, port), "the port to be free", PATIENCE)
        await refused.connect(start=False)
        with pytest.raises(GuestError, match=r"refused SET_FEATURES|hung up"):
            await refused.request(Message.SET_FEATURES, U64(refused.features | bit))
        await switch.wait_link(port, "features_refused")
        assert str(bit.name).lower() in (await switch.get(f"/ports/{port}"))["state"]["message"]
        guest = refused


async def free(switch: SwitchProcess, port: str) -> bool:
    """Whether no front end is there."""
    return (await switch.get(f"/ports/{port}"))["state"].get("frontend") is None
