# SPDX-License-Identifier: Apache-2.0
"""The edges that chance rarely meets exactly: each once, on purpose."""

from __future__ import annotations

import pytest

from pvswitch.driver import Desc, Driver
from tests.bench_switch import INDIRECT, MODERN, RX, TX, BenchSwitch, PortSetup, guest_conf
from tests.oracle import INDIRECT as INDIRECT_FLAG
from tests.oracle import NEXT, WRITE
from tests.property.illegal import LATCHED, TABLE
from tests.property.reference import SIZE_BINS

MAC_A, MAC_B = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"
BROADCAST = b"\xff" * 6
Q_TAG, AD_TAG = b"\x81\x00\x00\x07", b"\x88\xa8\x00\x64"
QUEUE = 16


@pytest.mark.parametrize("length", [14, 64, 65, 127, 128, 255, 256, 511, 512, 1023, 1024, 1522, 1523, 65_568])
def test_size_bins(length: int) -> None:
    with BenchSwitch() as switch:
        switch.add_bridge()
        switch.add_port("a", guest_conf())
        switch.send("a", (BROADCAST + MAC_A + b"\x88\xb5").ljust(length, b"\0"))
        switch.settle()
        values = switch.counters("a").values
        filled = [key for key, n in values.items() if n and "_to_" in key]
        assert filled == [f"rx_{next(name for upper, name in SIZE_BINS if length <= upper)}_packets"]
        assert values["rx_bytes"] == length


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize(
    ("tags", "counted"),
    [(b"", 0), (Q_TAG, 0), (AD_TAG, 0), (AD_TAG + Q_TAG, 0), (Q_TAG * 2, 0), (AD_TAG + Q_TAG * 2, 4), (Q_TAG * 4, 8)],
)
def test_mtu_doesn_t_count_two_tags(tags: bytes, counted: int, over: int) -> None:
    with BenchSwitch() as switch:
        switch.add_bridge()
        switch.add_port("a", guest_conf())
        switch.add_port("b", guest_conf(), PortSetup(mtu=100))
        switch.post("b")
        frame = BROADCAST + MAC_A + tags + b"\x88\xb5" + bytes(100 - counted + over)
        switch.send("a", frame)
        switch.settle()
        assert switch.received("b") == ([] if over else [frame])
        assert switch.counters("b").tx_drops == ({"mtu_exceeded": 1} if over else {})


def test_static_entry_of_a_port_that_is_gone_isn_t_followed() -> None:
    """Its place is taken by another port, with the same index: the frame is flooded, as for an unknown address."""
    with BenchSwitch() as switch:
        fdb = switch.add_bridge()
        for name in "abc":
            switch.add_port(name, guest_conf())
        fdb.set_static(MAC_B, 0, switch.ports["b"].handle.ref)
        old = switch.ports["b"].handle.ref
        switch.remove_port("b")
        switch.add_port("b", guest_conf())
        assert switch.ports["b"].handle.ref & 0xFFFF == old & 0xFFFF
        for name in "bc":
            switch.post(name)
        frame = MAC_B + MAC_A + b"\x88\xb5" + bytes(46)
        switch.send("a", frame)
        switch.settle()
        assert switch.received("b") == switch.received("c") == [frame]


# ---- one fault in a ring ----


def chain(guest: Driver, ring: int, *descs: Desc) -> None:
    """A chain from descriptor 0 on; `next` and NEXT are filled in, the last keeps what it has."""
    for i, desc in enumerate(descs):
        if i + 1 < len(descs):
            desc = Desc(desc.addr, desc.len, desc.flags | NEXT, i + 1)
        guest.set_desc(ring, i, desc)
    guest.raw_post(ring, 0)


def table(guest: Driver, *descs: Desc) -> Desc:
    """An indirect table in scratch memory, linked as a chain; the descriptor that points to it."""
    raw = b""
    for i, desc in enumerate(descs):
        last = i + 1 == len(descs)
        flags, following = (desc.flags, desc.next) if last else (desc.flags | NEXT, i + 1)
        raw += desc.addr.to_bytes(8, "little") + desc.len.to_bytes(4, "little")
        raw += flags.to_bytes(2, "little") + following.to_bytes(2, "little")
    guest.memory(guest.scratch_gpa + TABLE, len(raw))[:] = raw
    return Desc(guest.scratch_gpa + TABLE, len(raw), INDIRECT_FLAG)


def build(guest: Driver, ring: int, fault: str) -> None:
    """Make one chain available that is right but for the fault."""
    way = 0 if ring == TX else WRITE
    scratch, last = guest.scratch_gpa, guest.regions()[-1]
    end = last.gpa + last.size
    good, byte = Desc(scratch, 100, way), Desc(scratch, 1, way)
    match fault:
        case "next is the ring's size":
            chain(guest, ring, good, Desc(scratch, 1, way | NEXT, QUEUE))
        case "next is the table's size":
            chain(guest, ring, table(guest, good, Desc(scratch, 1, way | NEXT, 2)))
        case "head is the ring's size":
            guest.raw_post(ring, QUEUE)
        case "loop":
            chain(guest, ring, good, Desc(scratch, 1, way | NEXT, 0))
        case "loop of nothing":
            chain(guest, ring, Desc(scratch, 0, way | NEXT, 0))
        case "a table as long as the ring behind a direct descriptor":
            chain(guest, ring, byte, table(guest, good, *[byte] * (QUEUE - 1)))
        case "empty table":
            chain(guest, ring, Desc(scratch + TABLE, 0, INDIRECT_FLAG))
        case "table of 17 bytes":
            chain(guest, ring, Desc(table(guest, good).addr, 17, INDIRECT_FLAG))
        case "table longer than the ring":
            chain(guest, ring, Desc(table(guest, good).addr, 16 * (QUEUE + 1), INDIRECT_FLAG))
        case "table beyond memory":
            chain(guest, ring, Desc(end - 16, 32, INDIRECT_FLAG))
        case "table in a table":
            chain(guest, ring, table(guest, good, Desc(scratch + TABLE, 16, INDIRECT_FLAG)))
        case "table and next":
            t = table(guest, good)
            chain(guest, ring, Desc(t.addr, t.len, INDIRECT_FLAG | NEXT, 1))
        case "last byte beyond memory":
            chain(guest, ring, good, Desc(end - 10, 11, way))
        case "address wraps":
            chain(guest, ring, good, Desc((1 << 64) - 1, 2, way))
        case "index ahead by more than the ring":
            guest.set_avail_idx(ring, QUEUE + 1)
        case "receive chain without WRITE":
            chain(guest, ring, Desc(scratch, 100, 0))
        case "receive chain with a byte without WRITE":
            chain(guest, ring, good, Desc(scratch, 1, 0))
        case "receive chain of a header but one byte":
            chain(guest, ring, Desc(scratch, guest.hdr_len - 1, way))


FAULTS = {
    "next is the ring's size": "next_range",
    "next is the table's size": "next_range",
    "head is the ring's size": "head_range",
    "loop": "chain_long",
    "loop of nothing": "chain_long",
    "a table as long as the ring behind a direct descriptor": "chain_long",
    "empty table": "indirect_size",
    "table of 17 bytes": "indirect_size",
    "table longer than the ring": "indirect_size",
    "table beyond memory": "indirect_address",
    "table in a table": "indirect_refused",
    "table and next": "indirect_next",
    "last byte beyond memory": "address",
    "address wraps": "address",
    "index ahead by more than the ring": "avail_jump",
}
RX_FAULTS = {
    "receive chain without WRITE": "rx_readable",
    "receive chain with a byte without WRITE": "rx_readable",
    "receive chain of a header but one byte": "rx_short",
}


@pytest.mark.parametrize(
    ("ring", "fault", "reason"),
    [(ring, fault, reason) for ring in (RX, TX) for fault, reason in FAULTS.items()]
    + [(RX, fault, reason) for fault, reason in RX_FAULTS.items()],
)
def test_one_fault(ring: int, fault: str, reason: str) -> None:
    with pair_of_ports() as switch:
        guest = switch.ports["a"].guest
        build(guest, ring, fault)
        provoke(switch, ring)
        assert switch.ports["a"].handle.broken() == LATCHED[reason]
        assert guest.used_idx(ring) == 0


def test_indirect_without_the_feature() -> None:
    with pair_of_ports(MODERN & ~INDIRECT) as switch:
        guest = switch.ports["a"].guest
        chain(guest, TX, table(guest, Desc(guest.scratch_gpa, 100)))
        provoke(switch, TX)
        assert switch.ports["a"].handle.broken() == LATCHED["indirect_refused"]


@pytest.mark.parametrize("ring", [RX, TX])
@pytest.mark.parametrize("shape", ["ring", "table", "nothing in between", "last byte of memory", "WRITE on the table"])
def test_just_legal(ring: int, shape: str) -> None:
    """The longest chains, empty descriptors, the very end of memory: nothing of it is a fault."""
    with pair_of_ports() as switch:
        guest = switch.ports["a"].guest
        way = 0 if ring == TX else WRITE
        scratch, last = guest.scratch_gpa, guest.regions()[-1]
        good, byte, nothing = Desc(scratch, 100, way), Desc(scratch + 100, 1, way), Desc((1 << 64) - 1, 0, way)
        match shape:
            case "ring":
                chain(guest, ring, good, *[byte] * (QUEUE - 1))
            case "table":
                chain(guest, ring, table(guest, good, *[byte] * (QUEUE - 1)))
            case "nothing in between":
                chain(guest, ring, nothing, good, nothing)
            case "last byte of memory":
                chain(guest, ring, good, Desc(last.gpa + last.size - 10, 10, way))
            case "WRITE on the table":
                t = table(guest, good)
                chain(guest, ring, Desc(t.addr, t.len, INDIRECT_FLAG | WRITE))
        provoke(switch, ring)
        assert switch.ports["a"].handle.broken() is None
        assert guest.used_idx(ring) == 1
        assert switch.counters("a").rx_drops == switch.counters("a").tx_drops == {}


@pytest.mark.parametrize("where", [0, 1])
def test_transmit_chain_with_a_writable_descriptor_is_malformed(where: int) -> None:
    with pair_of_ports() as switch:
        guest = switch.ports["a"].guest
        descs = [Desc(guest.scratch_gpa, 100, WRITE if i == where else 0) for i in range(2)]
        chain(guest, TX, *descs)
        provoke(switch, TX)
        assert switch.ports["a"].handle.broken() is None
        assert switch.counters("a").rx_drops == {"malformed": 1}
        assert guest.used_entry(TX, 0) == (0, 0)
        assert switch.received("b") == []


def pair_of_ports(features: int = MODERN) -> BenchSwitch:
    """Guest a with scratch memory of zeros, and b with buffers."""
    switch = BenchSwitch()
    switch.add_bridge()
    switch.add_port("a", guest_conf(features, queue_size=QUEUE))
    switch.add_port("b", guest_conf())
    switch.post("b")
    return switch


def provoke(switch: BenchSwitch, ring: int) -> None:
    """Make the switch look at a's ring: a kick, or a frame for it."""
    if ring == TX:
        switch.ports["a"].guest.kick(TX, force=True)
    else:
        switch.send("b", BROADCAST + MAC_B + b"\x88\xb5" + bytes(46))
    switch.settle()
