# SPDX-License-Identifier: Apache-2.0
"""Capture files: what scapy writes is read back, what is written is read by scapy, and no bytes do harm."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapReader, PcapWriter

from pvswitch.capture_file import (
    ETHERNET,
    MAX_PACKET,
    CaptureError,
    CaptureTruncated,
    Packet,
    packets,
    pcap_header,
    pcap_record_header,
    starts_as_capture,
)

NS = 1_000_000_000
ORDERS = st.sampled_from("<>")
FRAMES = st.binary(min_size=14, max_size=200)
TIMED = st.lists(st.tuples(st.integers(0, (1 << 32) * NS - 1), FRAMES), max_size=8)
ROUNDS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(data: bytes) -> list[Packet]:
    return list(packets(io.BytesIO(data)))


def whole(time_ns: int, data: bytes) -> Packet:
    return Packet(time_ns, data, len(data))


# ---- with scapy at the other end


@ROUNDS
@given(TIMED, st.booleans(), ORDERS)
def test_pcap_of_scapy_is_read(tmp_path: Path, timed: list[tuple[int, bytes]], nano: bool, order: str) -> None:
    path, unit = str(tmp_path / "x.pcap"), 1 if nano else 1000
    with PcapWriter(path, linktype=1, nano=nano, endianness=order) as writer:
        writer.write_header(None)
        for time_ns, data in timed:
            writer.write_packet(data, sec=time_ns // NS, usec=time_ns % NS // unit)
    with Path(path).open("rb") as file:
        assert list(packets(file)) == [whole(time_ns // unit * unit, data) for time_ns, data in timed]


@ROUNDS
@given(TIMED)
def test_pcapng_of_scapy_is_read(tmp_path: Path, timed: list[tuple[int, bytes]]) -> None:
    path = str(tmp_path / "x.pcapng")
    writer = PcapNgWriter(path)
    writer.write_header(Ether())
    for time_ns, data in timed:
        packet = Ether(data)
        packet.time = time_ns // NS
        writer.write(packet)
    writer.close()
    with Path(path).open("rb") as file:
        got = list(packets(file))
    assert [packet.data for packet in got] == [bytes(Ether(data)) for _, data in timed]
    assert [packet.time_ns for packet in got] == [time_ns // NS * NS for time_ns, _ in timed]


@ROUNDS
@given(TIMED)
def test_scapy_reads_what_is_written(tmp_path: Path, timed: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "y.pcap"
    written = pcap_header() + b"".join(pcap_record_header(time_ns, len(data)) + data for time_ns, data in timed)
    path.write_bytes(written)
    with PcapReader(str(path)) as reader:
        assert (reader.nano, reader.linktype, reader.snaplen) == (True, ETHERNET, MAX_PACKET)
        got = [(data, meta) for data, meta in iter(lambda: next(reader_raw(reader), None), None)]
    assert [(meta.sec * NS + meta.usec, data) for data, meta in got] == timed
    assert [meta.wirelen for _, meta in got] == [len(data) for _, data in timed]
    assert read(written) == [whole(*item) for item in timed]


def reader_raw(reader: PcapReader) -> Any:
    """Scapy's reader of bytes, beneath that of packets."""
    try:
        yield reader._read_packet(MAX_PACKET)
    except EOFError:
        return


# ---- pcapng as nobody's writer makes it


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}II", kind, len(body) + 12) + body + struct.pack(f"{order}I", len(body) + 12)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def interface(order: str, link: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, snaplen) + options)


def enhanced(order: str, ticks: int, data: bytes, number: int = 0, length: int | None = None) -> bytes:
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), length or len(data))
    return block(order, 6, head + data + bytes(-len(data) % 4) + option(order, 1, b"a comment") + bytes(4))


def old(order: str, ticks: int, data: bytes, number: int = 0) -> bytes:
    head = struct.pack(f"{order}HHIIII", number, 3, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
    return block(order, 2, head + data)


def simple(order: str, data: bytes, length: int | None = None) -> bytes:
    return block(order, 3, struct.pack(f"{order}I", length or len(data)) + data)


@given(ORDERS, st.integers(0, (1 << 64) - 1), st.integers(0, 255), st.integers(-(1 << 63), (1 << 63) - 1), FRAMES)
def test_resolution_and_offset_of_an_interface(
    order: str, ticks: int, resolution: int, offset: int, data: bytes
) -> None:
    options = option(order, 2, b"eth0") + option(order, 9, bytes([resolution]))
    options += option(order, 14, struct.pack(f"{order}q", offset)) + bytes(4) + option(order, 9, b"\x00")
    capture = section(order) + interface(order, options=options) + enhanced(order, ticks, data)
    units = 2 ** (resolution & 127) if resolution & 128 else 10**resolution
    assert read(capture) == [whole(ticks * NS // units + offset * NS, data)]


@given(ORDERS, ORDERS, FRAMES)
def test_sections_of_both_orders_and_packets_of_all_kinds(first: str, second: str, data: bytes) -> None:
    capture = section(first) + interface(first) + block(first, 4, b"names") + enhanced(first, 5_000_000, data)
    capture += simple(first, data) + interface(first, options=option(first, 9, b"\x03")) + old(first, 7000, data, 1)
    capture += section(second) + block(second, 0xBAD, bytes(40)) + interface(second) + old(second, 1, data)
    times = [5 * NS, 5 * NS, 7 * NS, 1000]
    assert read(capture) == [whole(time_ns, data) for time_ns in times]


def test_a_packet_that_was_cut_says_so() -> None:
    for order in "<>":
        start = section(order) + interface(order, snaplen=20)
        assert read(start + enhanced(order, 0, b"a" * 20, length=60)) == [Packet(0, b"a" * 20, 60)]
        assert read(start + simple(order, b"a" * 20, length=60)) == [Packet(0, b"a" * 20, 60)]
    pcap = pcap_header() + struct.pack("=IIII", 1, 2, 20, 60) + b"a" * 20
    assert read(pcap) == [Packet(NS + 2, b"a" * 20, 60)]


def test_a_packet_beyond_all_measure_is_passed_over() -> None:
    size = MAX_PACKET + 1
    huge, last = bytes(size), b"b" * 60
    pcap = pcap_header() + pcap_record_header(1, size) + huge + pcap_record_header(2, 60) + last
    assert read(pcap) == [Packet(1, b"", size), whole(2, last)]
    capture = section("<") + interface("<") + enhanced("<", 1, huge) + enhanced("<", 2, last)
    assert read(capture) == [Packet(1000, b"", size), whole(2000, last)]


def test_packets_of_other_links_are_left_out_beside_ethernet() -> None:
    start = section("<") + interface("<", link=113) + interface("<")
    got = read(start + enhanced("<", 1, b"c" * 30) + enhanced("<", 2, b"e" * 30, number=1))
    assert got == [Packet(1000, b"", 30), whole(2000, b"e" * 30)]


# ---- what is wrong


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no capture"),
        (b"#!/bin/sh\n", "is no capture"),
        (b"\x1f\x8b\x08\x00" + bytes(50), "gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "unzstd"),
        (pcap_header()[:20], "within its header"),
        (pcap_header()[:20] + struct.pack("=I", 113), "link type 113"),
        (pcap_header()[:4] + struct.pack("=HHIIII", 1, 2, 0, 0, 0, 1), "version 1"),
        (section("<") + interface("<", link=113) + enhanced("<", 1, bytes(60)), "link type 113"),
        (section("<") + enhanced("<", 1, bytes(60)), "interface 0, which the file does not describe"),
        (section("<") + simple("<", bytes(60)), "interface 0"),
        (section("<")[:8] + bytes(20), "no byte order"),
        (section("<") + interface("<") + struct.pack("<II", 6, 33) + bytes(60), "a block of 33 bytes"),
        (section("<") + interface("<")[:-4] + bytes(4), "does not end where it says"),
        (section("<") + block("<", 1, bytes(4)), "too short"),
        (section("<") + interface("<") + block("<", 6, bytes(16)), "too short"),
        (section("<") + interface("<") + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 400, 400)), "longer than its"),
        (section("<") + interface("<") * 4097, "more than 4096 interfaces"),
        (section("<").replace(b"\x01\x00\x00\x00", b"\x02\x00\x00\x00", 1), "version 2"),
    ],
)
def test_what_is_no_capture_is_told(data: bytes, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        read(data)


@given(ORDERS, st.integers(1, 3), st.booleans(), st.data())
def test_the_end_in_the_middle_of_a_record_loses_no_other(order: str, n: int, ng: bool, data: st.DataObject) -> None:
    frames = [bytes([i]) * 60 for i in range(n)]
    if ng:
        start, records = (
            section(order) + interface(order),
            [enhanced(order, i, frame) for i, frame in enumerate(frames)],
        )
    else:
        start, records = pcap_header(), [pcap_record_header(i, 60) + frame for i, frame in enumerate(frames)]
    cut = data.draw(st.integers(1, len(records[-1]) - 1))
    given_: list[bytes] = []
    found = packets(io.BytesIO((start + b"".join(records))[:-cut]))
    with pytest.raises(CaptureTruncated):
        given_.extend(packet.data for packet in found)
    assert given_ == frames[:-1]


START = st.sampled_from(
    [b"", pcap_header(), section("<"), section(">") + interface(">"), section("<") + interface("<")]
)
HEADS = st.builds(struct.pack, st.sampled_from(["<IIII", ">IIII"]), *[st.integers(0, (1 << 32) - 1)] * 4)


@settings(max_examples=500, deadline=None)
@given(START, st.lists(st.binary(max_size=60) | HEADS, max_size=6))
@example(pcap_header(), [struct.pack("=IIII", 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)])
@example(
    section("<") + interface("<"), [struct.pack("<II", 6, 0xFFFFFFFC) + struct.pack("<IIIII", 0, 0, 0, 1 << 31, 1)]
)
@example(section("<"), [struct.pack("<II", 1, 0xFFFFFFFC)])
@example(
    section("<") + interface("<", 113) + interface("<"),
    [struct.pack("<II", 6, 0xFFFFFFFC) + struct.pack("<IIIII", 0, 0, 0, 1 << 31, 1)],
)
def test_no_bytes_raise_anything_else_nor_take_memory(start: bytes, parts: list[bytes]) -> None:
    data = start + b"".join(parts)
    tracemalloc.start()
    try:
        for packet in packets(io.BufferedReader(io.BytesIO(data))):
            assert len(packet.data) <= MAX_PACKET
    except CaptureError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * MAX_PACKET


def test_how_a_capture_begins() -> None:
    assert starts_as_capture(pcap_header())
    assert starts_as_capture(section(">"))
    assert not starts_as_capture(b"#!/b")
    assert not starts_as_capture(b"")
