# SPDX-License-Identifier: Apache-2.0
"""The C driver against the reference device: legal layouts arrive as sent, mistakes are seen on both sides."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvswitch.driver import (
    Desc,
    Driver,
    DriverConf,
    DriverError,
    Layout,
    RingFull,
)
from pvswitch.generator import Load, generate, pingpong
from tests.oracle import (
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    MRG_RXBUF,
    NEXT,
    VERSION_1,
    WRITE,
    ReferenceDevice,
    ReferenceRing,
    RingError,
)

ANY_LAYOUT = 27
MODERN = sum(1 << bit for bit in (VERSION_1, ANY_LAYOUT, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX))
RX, TX = 0, 1
MAC_A, MAC_B = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"


def attach(driver: Driver) -> ReferenceDevice:
    return ReferenceDevice(driver.regions(), driver.vring(RX), driver.vring(TX), driver.features)


@contextmanager
def pair(**conf: object) -> Iterator[tuple[Driver, ReferenceDevice]]:
    driver = Driver(DriverConf(**{"features": MODERN, **conf}))  # type: ignore[arg-type]
    device = attach(driver)
    try:
        yield driver, device
    finally:
        device.close()
        driver.close()


def feature_sets() -> st.SearchStrategy[int]:
    bits = [VERSION_1, ANY_LAYOUT, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX]
    return st.sets(st.sampled_from(bits)).map(lambda chosen: sum(1 << bit for bit in chosen))


def layouts(features: int) -> st.SearchStrategy[Layout]:
    return st.builds(
        Layout,
        cuts=st.lists(st.integers(1, 30) | st.integers(1, 3000), max_size=7).map(lambda cuts: tuple(sorted(cuts))),
        indirect=st.booleans() if features >> INDIRECT_DESC & 1 else st.just(False),
        direct=st.integers(0, 4),
        shuffle=st.booleans(),
        straddle=st.booleans(),
    )


@st.composite
def guests(draw: st.DrawFn) -> DriverConf:
    features = draw(feature_sets())
    mrg = features >> MRG_RXBUF & 1
    return DriverConf(
        features=features,
        queue_size=draw(st.sampled_from([16, 64, 256])),
        rx_buf_size=draw(st.integers(64, 3000)) if mrg else 3100,
        tx_buf_size=3100,
        regions=draw(st.integers(1, 8)),
        adjacent=draw(st.booleans()),
        one_file=draw(st.booleans()),
        auto_refill=draw(st.booleans()),
        seed=draw(st.integers(1, 2**32)),
    )


@settings(max_examples=150, deadline=None)
@given(conf=guests(), data=st.data())
def test_any_layout_carries_any_frame_both_ways(conf: DriverConf, data: st.DataObject) -> None:
    driver = Driver(conf)
    device = attach(driver)
    try:
        assert isinstance(device.rx, ReferenceRing)
        for _ in range(data.draw(st.integers(1, 12))):
            frame = data.draw(st.binary(min_size=1, max_size=64)) * data.draw(st.integers(1, 46))
            header = data.draw(st.binary(min_size=driver.hdr_len, max_size=driver.hdr_len))
            driver.tx(frame, header=header, layout=data.draw(layouts(conf.features)))
            assert device.take() == (header, frame)
            assert driver.tx_reap() == 1
            driver.rx_fill(data.draw(st.integers(0, 60)), layout=data.draw(layouts(conf.features)))
            used = device.rx.used_idx
            if device.give(frame):
                received = driver.rx()
                assert received is not None
                assert received[0] == frame
                assert received[1].num_buffers == device.rx.used_idx - used
            assert driver.rx() is None
        for ring in (RX, TX):
            counters = driver.counters(ring)
            assert (counters.errors, counters.out_of_order) == (0, 0)
        assert driver.counters(TX).in_flight == 0
    finally:
        device.close()
        driver.close()


def test_layout_is_what_lies_in_the_ring() -> None:
    with pair(regions=1) as (driver, device):
        driver.tx(bytes(100), layout=Layout(cuts=(5, 12, 50), indirect=True, direct=1))
        chain = device.tx.peek()
        assert chain is not None
        assert [s.length for s in chain.segments] == [5, 7, 38, 62]
        first = driver.desc(TX, chain.head)
        assert (first.len, first.flags) == (5, NEXT)
        assert driver.desc(TX, first.next).flags == INDIRECT


def test_straddling_buffer_crosses_a_border() -> None:
    with pair(regions=2, adjacent=True) as (driver, device):
        border = driver.regions()[1].gpa
        frame = bytes(range(200))
        driver.tx(frame, layout=Layout(straddle=True))
        chain = device.tx.peek()
        assert chain is not None
        (segment,) = chain.segments
        assert segment.gpa < border < segment.gpa + segment.length
        assert device.take() == (bytes(12), frame)


def test_full_ring_refuses_and_goes_on_after_reaping() -> None:
    with pair(queue_size=4) as (driver, device):
        for i in range(4):
            driver.tx(bytes([i]) * 60)
        with pytest.raises(RingFull):
            driver.tx(bytes(60))
        assert device.take() == (bytes(12), bytes(60))
        driver.tx_reap()
        driver.tx(bytes([9]) * 60)
        assert [device.take() for _ in range(4)] == [(bytes(12), bytes([i]) * 60) for i in (1, 2, 3, 9)]


def test_indices_wrap() -> None:
    with pair(queue_size=2) as (driver, device):
        assert isinstance(device.tx, ReferenceRing)
        driver.rx_fill()
        for i in range(66_000):
            driver.tx(struct.pack("<I", i) * 4)
            assert device.tx.pending() == 1
            if i % 1000:
                chain = device.tx.peek()
                assert chain is not None
                device.tx.use(chain, 0)
                device.tx.publish()
            else:
                assert device.take() == (bytes(12), struct.pack("<I", i) * 4)
            assert driver.tx_reap() == 1


@pytest.mark.parametrize("features", [MODERN, MODERN & ~(1 << EVENT_IDX)])
def test_kicks_only_where_wanted(features: int) -> None:
    with pair(features=features) as (driver, device):
        device.tx.ask_for_kicks(True)
        driver.tx(bytes(60))
        assert driver.kick(TX)
        assert not driver.kick(TX)  # nothing new
        device.take()
        device.tx.ask_for_kicks(False)
        driver.tx(bytes(60))
        assert not driver.kick(TX)
        assert os.eventfd_read(driver.vring(TX).kick_fd) == 1
        assert driver.kick(TX, force=True)
        assert os.eventfd_read(driver.vring(TX).kick_fd) == 1
        counters = driver.counters(TX)
        assert (counters.kicks, counters.suppressed) == (2, 1)


@pytest.mark.parametrize("features", [MODERN, MODERN & ~(1 << EVENT_IDX)])
def test_calls_only_where_wanted(features: int) -> None:
    with pair(features=features) as (driver, device):
        driver.rx_fill()
        device.give(bytes(60))  # the first signal after a start is always given
        assert driver.rx() is not None
        os.eventfd_read(driver.vring(RX).call_fd)
        driver.disarm(RX)
        device.give(bytes(60))
        with pytest.raises(BlockingIOError):
            os.eventfd_read(driver.vring(RX).call_fd)
        assert driver.arm(RX)  # already one there
        assert driver.rx() is not None
        assert not driver.arm(RX)
        device.give(bytes(60))
        assert os.eventfd_read(driver.vring(RX).call_fd) == 1


ILLEGAL: dict[str, Callable[[Driver, int], None]] = {}


def illegal(reason: str) -> Callable[[Callable[[Driver, int], None]], Callable[[Driver, int], None]]:
    def add(write: Callable[[Driver, int], None]) -> Callable[[Driver, int], None]:
        ILLEGAL[f"{write.__name__}:{reason}"] = write
        return write

    return add


@illegal("chain_long")
def loop(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 16, NEXT, 4))
    d.set_desc(TX, 4, Desc(gpa, 16, NEXT, 3))
    d.raw_post(TX, 3)


@illegal("next_range")
def next_outside(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 16, NEXT, 16))
    d.raw_post(TX, 3)


@illegal("head_range")
def head_outside(d: Driver, gpa: int) -> None:
    d.raw_post(TX, 16)


@illegal("avail_jump")
def jump(d: Driver, gpa: int) -> None:
    d.set_avail_idx(TX, d.avail_idx(TX) + 17)


@illegal("indirect_size")
def table_of_odd_size(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 24, INDIRECT))
    d.raw_post(TX, 3)


@illegal("indirect_size")
def table_of_no_size(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 0, INDIRECT))
    d.raw_post(TX, 3)


@illegal("indirect_size")
def huge_table(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 0xFFFFFFF0, INDIRECT))
    d.raw_post(TX, 3)


@illegal("indirect_next")
def table_with_next(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 16, INDIRECT | NEXT, 4))
    d.raw_post(TX, 3)


@illegal("indirect_refused")
def nested_table(d: Driver, gpa: int) -> None:
    d.memory(gpa, 16)[:] = struct.pack("<QIHH", gpa, 16, INDIRECT, 0)
    d.set_desc(TX, 3, Desc(gpa, 16, INDIRECT))
    d.raw_post(TX, 3)


@illegal("address")
def outside_memory(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(0x1000, 60))
    d.raw_post(TX, 3)


@illegal("address")
def half_outside_memory(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa + 65536 - 30, 60))
    d.raw_post(TX, 3)


@illegal("address")
def address_wraps(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc((1 << 64) - 16, 60))
    d.raw_post(TX, 3)


@illegal("tx_writable")
def writable(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 60, WRITE))
    d.raw_post(TX, 3)


@illegal("tx_short")
def header_only(d: Driver, gpa: int) -> None:
    d.set_desc(TX, 3, Desc(gpa, 12))
    d.raw_post(TX, 3)


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_rings_can_be_written_and_are_seen(name: str) -> None:
    with pair(queue_size=16) as (driver, device):
        ILLEGAL[name](driver, driver.scratch_gpa)
        with pytest.raises(RingError) as error:
            device.take()
        assert error.value.reason == name.split(":")[1]


def test_raw_chain_comes_back_raw() -> None:
    with pair() as (driver, device):
        gpa = driver.scratch_gpa
        driver.memory(gpa, 40)[:] = bytes(12) + bytes(range(28))
        driver.set_desc(TX, 100, Desc(gpa, 40))
        driver.raw_post(TX, 100)
        assert device.take() == (bytes(12), bytes(range(28)))
        assert driver.raw_take(TX) == (100, 0)
        assert driver.raw_take(TX) is None
        driver.tx(bytes(60))
        assert device.take() is not None
        assert driver.tx_reap() == 1


def test_truncated_memory_mutes_the_driver() -> None:
    driver = Driver(DriverConf(features=MODERN))
    driver.truncate(0)
    with pytest.raises(DriverError, match="Bad address"):
        driver.tx(bytes(60))
    with pytest.raises(DriverError, match="Bad address"):
        driver.rx()
    driver.close()
    assert driver.closed


def test_reset_forgets_everything() -> None:
    with pair(queue_size=4) as (driver, _):
        for _ in range(4):
            driver.tx(bytes(60))
        driver.reset(MODERN & ~(1 << EVENT_IDX))
        assert driver.counters(TX).in_flight == 0
        driver.tx(b"after" * 12)
        again = attach(driver)
        assert again.take() == (bytes(12), b"after" * 12)
        again.close()


@pytest.mark.parametrize(
    "conf", [{"queue_size": 3}, {"queue_size": 1 << 16}, {"regions": 9}, {"rx_buf_size": 12}, {"mem_size": 4096}]
)
def test_bad_conf_is_refused(conf: dict[str, int]) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(DriverError):
        Driver(DriverConf(features=MODERN, **conf))  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@contextmanager
def wire(*links: tuple[ReferenceDevice, list[ReferenceDevice]], lose: int = 0) -> Iterator[None]:
    """A thread that carries frames from devices to devices; every `lose`-th frame is lost."""
    stop = threading.Event()

    def run() -> None:
        n = 0
        while not stop.is_set():
            for source, sinks in links:
                taken = source.take()
                if taken is None:
                    continue
                n += 1
                for sink in sinks:
                    if not lose or n % lose:
                        sink.give(taken[1])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


LOADS = [
    Load(MAC_B, MAC_A, frames=300, level=0),
    Load(MAC_B, MAC_A, frames=300, level=1, n_src=4, split_header=True),
    Load(MAC_B, MAC_A, frames=300, level=2, len=1500, indirect=True),
    Load(MAC_B, MAC_A, duration=0.05, level=2, len=999, window=7, burst=3),
    Load(MAC_B, MAC_A, frames=3000, len=64, n_tuples=2500),
]


@pytest.mark.parametrize(
    ("features", "load"), [(f, load) for f in (MODERN, 0) for load in LOADS if f or not load.indirect]
)
def test_load_arrives_whole(features: int, load: Load) -> None:
    with pair(features=features) as (a, da), pair(features=features) as (b, db), wire((da, [db])):
        result = generate(a, [b], replace(load, stall=30.0))
    assert result.sent == result.received > 0
    assert (result.lost, result.reordered, result.corrupted, result.foreign, result.errors) == (0, 0, 0, 0, 0)
    assert not load.frames or result.sent == load.frames


def test_load_floods_to_several() -> None:
    with pair() as (a, da), pair() as (b, db), pair(rx_buf_size=128) as (c, dc), wire((da, [db, dc])):
        load = Load(b"\xff" * 6, MAC_A, frames=100, level=2, len=700, window=16, flood=True, stall=30.0)
        result = generate(a, [b, c], load)
    assert (result.sent, result.received, result.lost, result.corrupted) == (100, 200, 0, 0)


def test_load_counts_losses_and_goes_on_at_once() -> None:
    # No stall may be waited for: 18 losses would fill the window, and the gaps tell of them.
    with pair() as (a, da), pair() as (b, db), wire((da, [db]), lose=11):
        result = generate(a, [b], Load(MAC_B, MAC_A, frames=200, level=1, window=10, stall=3600.0))
    assert (result.sent, result.received, result.lost, result.reordered) == (200, 182, 18, 0)


def test_load_ends_without_a_device() -> None:
    with pair() as (a, _), pair() as (b, _):
        result = generate(a, [b], Load(MAC_B, MAC_A, frames=10_000, window=64, stall=0.01))
        assert (result.received, result.lost) == (0, result.sent)
        assert result.sent > 0


def test_close_ends_a_load() -> None:
    with pair() as (b, _):
        a = Driver(DriverConf(features=MODERN))
        load = Load(MAC_B, MAC_A, duration=3600, stall=3600.0)
        thread = threading.Thread(target=generate, args=(a, [b], load))
        thread.start()
        while a.counters(TX).posted == 0:
            pass
        a.close()
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_pingpong_goes_both_ways() -> None:
    with pair() as (a, da), pair() as (b, db), wire((da, [db]), (db, [da])):
        times = pingpong(a, b, Load(MAC_B, MAC_A, stall=30.0), 20)
    assert len(times) == 20
    assert all(ns is not None and ns > 0 for ns in times)
