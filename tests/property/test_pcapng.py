# SPDX-License-Identifier: Apache-2.0
"""Streams of `pvswitch.pcapng` as others read them: scapy, `capture_file`, tshark and capinfos without a warning."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch import pcapng
from pvswitch.capture_file import packets
from tests.conftest import RequirePeer
from tests.pcapng import raw_packets

START = 1_700_000_000_000_000_000
NAMES = ("vm1", "uplink-with-a-long-name.0", "ü")
COMMENTS = ("", "to vm2", "3 copies, vlan 10, flow ü", "dropped: guest_rx_full", "x" * 300)

frames = st.fixed_dictionaries(
    {
        "interface": st.integers(0, len(NAMES) - 1),
        "after": st.integers(0, 10**12),
        "data": st.binary(min_size=0, max_size=200),
        "cut": st.integers(0, 70_000),
        "inbound": st.booleans(),
        "lost": st.one_of(st.just(0), st.integers(0, 2**32 - 1)),
        "comment": st.sampled_from(COMMENTS),
    }
)


def written(items: list[dict[str, Any]]) -> tuple[bytes, list[int]]:
    """A stream of these frames, each interface described before its first one; and the frames' times."""
    numbers: dict[int, int] = {}
    blocks, times, now = [pcapng.section("pvswitch test")], [], START
    for item in items:
        if item["interface"] not in numbers:
            numbers[item["interface"]] = len(numbers)
            blocks.append(pcapng.interface(NAMES[item["interface"]], 65_568, "arp or port 53"))
        now += item["after"]
        times.append(now)
        blocks.append(
            pcapng.packet(
                numbers[item["interface"]],
                now,
                item["data"],
                len(item["data"]) + item["cut"],
                inbound=item["inbound"],
                lost=item["lost"],
                comment=item["comment"],
            )
        )
    blocks += [pcapng.statistics(n, START, now, delivered=0, lost=7) for n in numbers.values()]
    return b"".join(blocks), times


@given(st.lists(frames, max_size=12))
def test_readers_get_back_what_was_written(items: list[dict[str, Any]]) -> None:
    stream, times = written(items)
    own = [*packets(io.BytesIO(stream))]
    assert [(p.time_ns, p.data, p.length) for p in own] == [
        (time, item["data"], len(item["data"]) + item["cut"]) for time, item in zip(times, items, strict=True)
    ]
    read = raw_packets(stream)
    assert [data for data, _ in read] == [item["data"] for item in items]
    for (_, meta), time, item in zip(read, times, items, strict=True):
        assert (meta.tshigh << 32 | meta.tslow, meta.tsresol) == (time, 10**9)
        assert meta.wirelen == len(item["data"]) + item["cut"]
        assert meta.ifname == NAMES[item["interface"]].encode()
        assert meta.direction == (1 if item["inbound"] else 2)
        if hasattr(meta, "comments"):  # scapy before 2.6.1 kept one, under another name
            assert [text.decode() for text in meta.comments or ()] == ([item["comment"]] if item["comment"] else [])


@given(st.lists(frames, max_size=12), st.data())
def test_a_tally_counts_whatever_the_pieces_are(items: list[dict[str, Any]], data: st.DataObject) -> None:
    stream, _ = written(items)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    tally = pcapng.Tally()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        tally.feed(stream[start:end])
    interfaces = len({item["interface"] for item in items})
    assert tally.packets == len(items)
    assert tally.lost == max(sum(item["lost"] for item in items), 7 * interfaces)
    assert tally.finished is bool(items)


@pytest.mark.parametrize("data", [bytes(12), b"\n\r\r\n\x07\0\0\0", b"HTTP/1.1 200 OK\r\n"])
def test_a_tally_refuses_what_is_no_stream(data: bytes) -> None:
    with pytest.raises(ValueError, match="no pcapng stream"):
        pcapng.Tally().feed(data)


ITEMS: list[dict[str, Any]] = [
    {"interface": i % 3, "after": 1000, "data": b"\xff" * 6 + bytes(6) + b"\x08\x06" + bytes(46), "cut": i, **more}
    for i, more in enumerate(
        {"inbound": bool(i % 2), "lost": i, "comment": comment} for i, comment in enumerate(COMMENTS)
    )
]


def test_wireshark_has_nothing_to_complain_about(tmp_path: Path, require_peer: RequirePeer) -> None:
    file = tmp_path / "stream.pcapng"
    stream, times = written(ITEMS)
    file.write_bytes(stream)
    tshark = [require_peer("tshark", package="tshark"), "-n", "-r", str(file)]
    fields = ("frame.interface_name", "frame.packet_flags_direction", "frame.time_epoch", "frame.comment")
    run = subprocess.run(
        [*tshark, "-T", "json", *(word for field in fields for word in ("-e", field))],
        capture_output=True,
        timeout=60,
        check=False,
    )
    warnings = [line for line in run.stderr.decode().splitlines() if "as user" not in line]
    assert (run.returncode, warnings) == (0, [])
    layers = [packet["_source"]["layers"] for packet in json.loads(run.stdout)]
    assert [layer["frame.interface_name"] for layer in layers] == [[NAMES[item["interface"]]] for item in ITEMS]
    directions = [int(layer["frame.packet_flags_direction"][0], 0) for layer in layers]
    assert directions == [1 if item["inbound"] else 2 for item in ITEMS]
    assert [layer["frame.time_epoch"][0].replace(".", "") for layer in layers] == [str(time) for time in times]
    assert [layer.get("frame.comment", [""])[0] for layer in layers] == [*COMMENTS]
    info = subprocess.run(
        [require_peer("capinfos", package="wireshark-common"), str(file)], capture_output=True, timeout=60, check=True
    )
    said = info.stdout.decode()
    assert info.stderr == b""
    assert "pvswitch test" in said
    assert "Filter string = arp or port 53" in said
    assert "Time resolution = 0x09" in said
