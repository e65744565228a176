# SPDX-License-Identifier: Apache-2.0
"""What the C driver finds fault with in what a device does: used entries, lengths, buffers, net headers."""

from __future__ import annotations

import contextlib
import struct

import pytest

from pvswitch.driver import ProtocolViolation
from pvswitch.net_header import DATA_VALID, GSO_ECN, NEEDS_CSUM, Gso, NetHeader
from pvswitch.vhost_user.features import Feature
from tests.oracle import ReferenceDevice, ReferenceRing
from tests.test_driver import MODERN, TX, pair


def use(device: ReferenceDevice, ring: int, head: int, written: int) -> None:
    """A used entry as wrong as wanted."""
    target = device.tx if ring == TX else device.rx
    assert isinstance(target, ReferenceRing)
    at = target._used + 4 + 8 * (target.used_idx % target.vring.num)
    device.memory.write(at, struct.pack("<II", head, written))
    target.used_idx += 1
    target.publish()


def test_driver_sees_unknown_duplicate_and_too_many_used() -> None:
    with pair() as (driver, device):
        for _ in range(3):
            driver.tx(bytes(60))
        use(device, TX, 999_999, 0)
        with pytest.raises(ProtocolViolation, match="outside the ring"):
            driver.tx_reap()
        use(device, TX, 0, 0)
        use(device, TX, 0, 0)
        with pytest.raises(ProtocolViolation, match="in flight"):
            driver.tx_reap()
        driver.tx(bytes(60))
        use(device, TX, 1, 72)  # nothing can have been written to a frame that is sent
        with pytest.raises(ProtocolViolation, match="more bytes"):
            driver.tx_reap()
        use(device, TX, 2, 0)
        with pytest.raises(ProtocolViolation, match="ahead"):
            driver.tx_reap()
        assert driver.counters(TX).errors == 4


def test_driver_counts_completion_out_of_order() -> None:
    with pair() as (driver, device):
        driver.tx(bytes(60))
        driver.tx(bytes(60))
        use(device, TX, 1, 0)
        use(device, TX, 0, 0)
        assert driver.tx_reap() == 2
        assert driver.counters(TX).out_of_order == 2


def test_driver_judges_what_is_received() -> None:
    with pair(rx_buf_size=100) as (driver, device):

        def received(header: bytes, written: int) -> None:
            chain = device.rx.peek()
            assert chain is not None
            device.memory.write(chain.segments[0].gpa, header)
            device.rx.use(chain, written)
            device.rx.publish()
            driver.rx()

        def header(flags: int = 0, gso: int = 0, buffers: int = 1) -> bytes:
            return struct.pack("<BBHHHHH", flags, gso, 0, 0, 0, 0, buffers)

        driver.rx_fill()
        for wrong, written, match in [
            (header(), 101, "more bytes"),
            (header(), 11, "fewer bytes"),
            (header(buffers=0), 72, "num_buffers"),
            (header(buffers=2), 72, "num_buffers"),
            (header(flags=1), 72, "flags"),
            (header(gso=1), 72, "GSO"),
        ]:
            with pytest.raises(ProtocolViolation, match=match):
                received(wrong, written)
        received(header() + bytes(88), 100)
        with pytest.raises(ProtocolViolation, match="beside"):
            received(header() + bytes(89), 100)


@pytest.mark.parametrize("preset", [False, True])
def test_driver_forgives_num_buffers_left_unwritten_when_told_to(preset: bool) -> None:
    with pair(features=MODERN & ~Feature.MRG_RXBUF, preset=preset) as (driver, device):
        driver.rx_fill()
        chain = device.rx.peek()
        assert chain is not None
        device.memory.write(chain.segments[0].gpa, bytes(10))
        device.rx.use(chain, 12 + 60)
        device.rx.publish()
        with contextlib.nullcontext() if preset else pytest.raises(ProtocolViolation, match="num_buffers"):
            assert driver.rx() == (bytes(60), NetHeader(num_buffers=1))


ALL_TAKEN = ("GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "GUEST_USO4", "GUEST_USO6")
SEGMENTS = {"hdr_len": 54, "gso_size": 10, "csum_start": 34, "csum_offset": 16}
TCP4 = {"flags": NEEDS_CSUM, "gso_type": Gso.TCPV4, **SEGMENTS}


@pytest.mark.parametrize(
    ("header", "needs"),
    [
        ({"flags": NEEDS_CSUM, "csum_start": 34, "csum_offset": 16}, ["GUEST_CSUM"]),
        ({"flags": DATA_VALID}, ["GUEST_CSUM"]),
        (TCP4, ["GUEST_TSO4"]),
        ({**TCP4, "gso_type": Gso.TCPV6}, ["GUEST_TSO6"]),
        ({**TCP4, "gso_type": Gso.TCPV4 | GSO_ECN}, ["GUEST_TSO4", "GUEST_ECN"]),
        ({**TCP4, "gso_type": Gso.TCPV6 | GSO_ECN}, ["GUEST_TSO6", "GUEST_ECN"]),
        ({**TCP4, "gso_type": Gso.UDP}, ["GUEST_UFO"]),
    ],
)
def test_offloads_in_received_headers_must_be_negotiated(header: dict[str, int], needs: list[str]) -> None:
    every = {name: Feature[name] for name in (*ALL_TAKEN, "GUEST_UFO")}
    wanted = NetHeader(**header, num_buffers=1)
    for missing in (None, *needs):
        features = MODERN | sum(bit for name, bit in every.items() if name != missing)
        with pair(features=features) as (driver, device):
            driver.rx_fill()
            device.give(bytes(90), wanted.pack(10))
            if missing is None:
                assert driver.rx() == (bytes(90), wanted)
            else:
                with pytest.raises(ProtocolViolation, match="not negotiated"):
                    driver.rx()


@pytest.mark.parametrize("taken", [(), ("GUEST_USO4",), ("GUEST_USO6",)])
def test_either_uso_feature_allows_its_type(taken: tuple[str, ...]) -> None:
    features = MODERN | Feature.GUEST_CSUM | sum(Feature[name] for name in taken)
    with pair(features=features) as (driver, device):
        driver.rx_fill()
        device.give(bytes(90), NetHeader(**{**TCP4, "gso_type": Gso.UDP_L4}).pack(10))
        with contextlib.nullcontext() if taken else pytest.raises(ProtocolViolation, match="not negotiated"):
            assert driver.rx() is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"flags": 0},
        {"flags": NEEDS_CSUM | 4},
        {"gso_type": 2},
        {"gso_type": Gso.UDP_L4 | GSO_ECN},
        {"gso_type": GSO_ECN},
        {"gso_size": 0},
        {"hdr_len": 90},
        {"csum_start": 73},
        {"csum_start": 0xFFFF, "csum_offset": 0xFFFF},
    ],
    ids=str,
)
def test_received_header_that_does_not_fit_the_frame(wrong: dict[str, int]) -> None:
    features = MODERN | sum(Feature[name] for name in ALL_TAKEN)
    with pair(features=features, rx_buf_size=64) as (driver, device):
        driver.rx_fill()
        for header, good in ((TCP4, True), ({**TCP4, **wrong}, False), ({**TCP4, "csum_start": 72}, True)):
            device.give(bytes(90), NetHeader(**header).pack(10))
            if good:
                assert driver.rx() is not None
            else:
                with pytest.raises(ProtocolViolation, match="doesn't fit"):
                    driver.rx()
