# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.vhost_user.features import Feature, feature_names, protocol_feature_names
from pvswitch.vhost_user.messages import (
    MESSAGES,
    U64,
    Empty,
    Fds,
    Header,
    MemRegion,
    MemSlot,
    MemTable,
    MessageError,
    Payload,
    RarpMac,
    Request,
    VringAddr,
    VringFd,
    VringState,
    encode_reply,
    encode_request,
    request_name,
)

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
regions = st.builds(MemRegion, u64, u64, u64, u64)
payloads = st.one_of(
    st.builds(Empty),
    st.builds(U64, u64),
    st.builds(VringState, u32, u32),
    st.builds(VringAddr, u32, u32, u64, u64, u64, u64),
    st.builds(VringFd, st.integers(0, 255), st.booleans()),
    st.builds(MemTable, st.lists(regions, max_size=8).map(tuple)),
    st.builds(MemSlot, regions),
    st.builds(RarpMac, st.binary(min_size=6, max_size=6)),
)


@given(payloads)
def test_payloads_survive_the_wire(payload: Payload) -> None:
    assert type(payload).unpack(payload.pack()) == payload


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=400))
def test_any_bytes_decode_or_are_refused(request_id: int, data: bytes) -> None:
    kind = MESSAGES[request_id].payload
    try:
        payload = kind.unpack(data)
    except MessageError:
        return
    assert len(payload.pack()) == len(data)


def test_wire_form_is_qemus() -> None:
    """Bytes as QEMU 7.2 on x86 sends them, written out by hand."""
    assert encode_request(Request.GET_FEATURES) == bytes.fromhex("01000000 01000000 00000000")
    assert encode_request(Request.SET_VRING_NUM, VringState(1, 256), need_reply=True) == bytes.fromhex(
        "08000000 09000000 08000000 01000000 00010000"
    )
    assert encode_request(Request.SET_VRING_KICK, VringFd(3, has_fd=False)) == bytes.fromhex(
        "0c000000 01000000 08000000 03010000 00000000"
    )
    assert encode_reply(Request.GET_QUEUE_NUM, U64(1)) == bytes.fromhex("11000000 05000000 08000000 01000000 00000000")
    addr = VringAddr(0, 0, desc=1, used=2, avail=3, log=4)
    assert [addr.pack()[i] for i in (8, 16, 24, 32)] == [1, 2, 3, 4]
    assert MemSlot(MemRegion(1, 2, 3, 4)).pack()[8::8] == bytes([1, 2, 3, 4])
    assert MemTable((MemRegion(9, 2, 3, 4),)).pack()[:16] == bytes([1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0])
    assert RarpMac(b"\x52\x54\x00\x12\x34\x56").pack() == b"\x52\x54\x00\x12\x34\x56\x00\x00"


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Header, bytes(11)),
        (Empty, b"x"),
        (U64, bytes(7)),
        (U64, bytes(9)),
        (VringState, bytes(4)),
        (VringAddr, bytes(39)),
        (MemTable, bytes(4)),
        (MemTable, b"\x01" + bytes(7)),
        (MemTable, bytes(8 + 32)),
        (MemTable, b"\x09" + bytes(7 + 9 * 32)),
        (MemTable, b"\xff\xff\xff\xff" + bytes(4 + 32)),
        (MemSlot, bytes(32)),
        (RarpMac, bytes(6)),
    ],
)
def test_wrong_sizes_are_refused(kind: type[Header] | type[Payload], data: bytes) -> None:
    with pytest.raises(MessageError):
        kind.unpack(data)


def test_cve_2020_10723_ring_index_is_never_truncated() -> None:
    for value in (0x200, 0x10000, 1 << 32, (1 << 63) | 1):
        with pytest.raises(MessageError, match="reserved bits"):
            VringFd.unpack(value.to_bytes(8, "little"))
    with pytest.raises(MessageError):
        VringFd(256, True).pack()


@pytest.mark.parametrize(
    ("rule", "payload", "allowed"),
    [
        (Fds.NONE, U64(0), {0}),
        (Fds.ONE, U64(0), {1}),
        (Fds.TOLERATED, U64(0), {0, 1}),
        (Fds.ONE_UNLESS_FLAGGED, VringFd(0, True), {1}),
        (Fds.ONE_UNLESS_FLAGGED, VringFd(0, False), {0}),
        (Fds.ONE_PER_REGION, MemTable((MemRegion(0, 1, 0, 0),) * 3), {3}),
    ],
)
def test_descriptors_must_be_as_announced(rule: Fds, payload: Payload, allowed: set[int]) -> None:
    for count in range(9):
        if count in allowed:
            rule.check(payload, count)
        else:
            with pytest.raises(MessageError, match="file descriptors came"):
                rule.check(payload, count)


def test_names() -> None:
    mask = Feature.MRG_RXBUF | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.VERSION_1
    mask |= Feature.ANY_LAYOUT | Feature.MTU | Feature.GUEST_ANNOUNCE
    assert feature_names(int(mask) | 1 << 63) == [
        "mtu",
        "mrg_rxbuf",
        "guest_announce",
        "any_layout",
        "indirect_desc",
        "event_idx",
        "version_1",
        "bit_63",
    ]
    assert protocol_feature_names(0b1001) == ["mq", "reply_ack"]
    assert request_name(5) == "SET_MEM_TABLE"
    assert request_name(4000) == "request 4000"


def test_the_table_serves_what_it_promises_and_no_more() -> None:
    served = {int(name) for name in MESSAGES}
    assert served == {1, 2, 3, 4, 5, *range(8, 21), *range(36, 41)}
    assert not {6, 7, 21, 22, 24, 25, 28, 31, 34, 41} & served
