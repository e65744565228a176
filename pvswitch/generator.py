# SPDX-License-Identifier: Apache-2.0
"""Load between guest drivers: streams of numbered frames whose loss, order and content are checked, and round trips.

All calls block until their frames, their time or their patience end, so they belong into a thread (they release the
GIL). They hold their drivers meanwhile; closing one ends them. What is written and read for a frame at each level, and
what each number means: native/driver/pvs_driver.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pvswitch.driver import Driver, DriverError, ffi, lib


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent; see struct pvd_gen_conf.

    MACs are six bytes, times seconds; `frames` (of each flow) or `duration` (after `warmup`) must be given. `rate_pps`
    frames per second, of all flows together, are sent when they are due, and latencies are counted; 0 is a closed loop.
    `rx_pps`: receivers together take no more, in bursts; 0 is all that there are.
    With `n_tuples` frames are UDP, from and to so many different pairs of ports.
    With `gso` frames are TCP segments of `len` bytes that are to be cut to `gso_size` bytes of payload, 0 for 1448.
    """

    dst: bytes = bytes(6)
    src: bytes = bytes(6)
    len: int = 60
    window: int = 128
    burst: int = 32
    level: int = 1
    frames: int = 0
    duration: float = 0.0
    warmup: float = 0.0
    stall: float = 0.1
    rate_pps: int = 0
    rx_pps: int = 0
    n_dst: int = 1
    n_src: int = 1
    n_tuples: int = 0
    flood: bool = False
    split_header: bool = False
    indirect: bool = False
    gso: bool = False
    gso_size: int = 0


@dataclass(frozen=True, slots=True)
class LoadFlow:
    """Who sends to whom, with which MACs, when there are several."""

    tx: Driver
    rx: Driver
    dst: bytes
    src: bytes


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What became of it; see struct pvd_gen_result. Times in ns, from the first frame to the last.

    `measured` are the frames received after the warm-up, in `measured_ns`. `latency` has the latencies of a load with
    a rate, ascending: a time, and how many frames took about that (to 1/64).
    """

    sent: int
    received: int
    lost: int
    reordered: int
    corrupted: int
    foreign: int
    errors: int
    ns: int = field(compare=False)
    measured: int = field(compare=False)
    measured_ns: int = field(compare=False)
    latency_max: int = field(compare=False)
    latency: tuple[tuple[int, int], ...] = field(compare=False, repr=False)

    @property
    def pps(self) -> float:
        """Frames received per second after the warm-up."""
        return self.measured * 1e9 / self.measured_ns if self.measured_ns else 0.0

    def latency_ns(self, share: float) -> int | None:
        """The latency that this share of frames (0 to 1) didn't exceed; None without a rate."""
        wanted = share * sum(count for _, count in self.latency)
        seen = 0
        for ns, count in self.latency:
            seen += count
            if seen >= wanted:
                return ns
        return None


@contextmanager
def _held(drivers: Sequence[Driver]) -> Iterator[list[Any]]:
    """Keep drivers from being closed meanwhile, always locked in the same order."""
    with ExitStack() as stack:
        guests = {driver: stack.enter_context(driver.held()) for driver in sorted(set(drivers), key=id)}
        yield [guests[driver] for driver in drivers]


def _conf(load: Load) -> Any:
    flags = (
        load.flood * lib.PVD_GEN_FLOOD
        | load.split_header * lib.PVD_GEN_SPLIT_HEADER
        | load.indirect * lib.PVD_GEN_INDIRECT
        | load.gso * lib.PVD_GEN_GSO
    )
    plain = ("dst", "src", "len", "window", "burst", "level", "frames", "n_dst", "n_src", "n_tuples", "gso_size")
    rates = ("rate_pps", "rx_pps")
    c = ffi.new("struct pvd_gen_conf *", {name: getattr(load, name) for name in plain + rates})
    c.flags = flags
    c.duration_ns = int(load.duration * 1e9)
    c.warmup_ns = int(load.warmup * 1e9)
    c.stall_ns = int(load.stall * 1e9)
    return c


def _result(out: Any) -> LoadResult:
    numbers = ("sent", "received", "lost", "reordered", "corrupted", "foreign", "errors", "ns", "measured")
    counts = ffi.unpack(out.latency, lib.PVD_GEN_BUCKETS) if out.latencies else []
    return LoadResult(
        **{name: getattr(out, name) for name in numbers},
        measured_ns=out.measured_ns,
        latency_max=out.latency_max,
        latency=tuple((lib.pvd_gen_bucket_ns(i), count) for i, count in enumerate(counts) if count),
    )


def generate(tx: Driver, rx: Sequence[Driver], load: Load) -> LoadResult:
    """Load from one driver to others, in this thread; raises DriverError. See pvd_generate."""
    out = ffi.new("struct pvd_gen_result *")
    with _held([tx, *rx]) as guests:
        result = lib.pvd_generate(guests[0], ffi.new("pvd_guest *[]", guests[1:]), len(rx), _conf(load), out)
    if result < 0:
        raise DriverError("the load can't run", -result)
    return _result(out)


def generate_many(flows: Sequence[LoadFlow], load: Load) -> LoadResult:
    """Several loads in turn, in this thread: of all together; raises DriverError. See pvd_generate_many.

    The MACs are those of the flows, `load` has none.
    """
    out = ffi.new("struct pvd_gen_result *")
    with _held([flow.tx for flow in flows] + [flow.rx for flow in flows]) as guests:
        n = len(flows)
        ways = [
            {"tx": tx, "rx": rx, "dst": flow.dst, "src": flow.src}
            for flow, tx, rx in zip(flows, guests[:n], guests[n:], strict=True)
        ]
        result = lib.pvd_generate_many(ffi.new("struct pvd_gen_flow[]", ways), n, _conf(load), out)
    if result < 0:
        raise DriverError("the load can't run", -result)
    return _result(out)


def pingpong(a: Driver, b: Driver, load: Load, count: int, interval: float = 0.0) -> list[int | None]:
    """Round trip times in ns from `a` (load.src) to `b` (load.dst), `interval` s apart; None for a loss."""
    out = ffi.new("uint64_t[]", count)
    with _held([a, b]) as guests:
        result = lib.pvd_pingpong(guests[0], guests[1], _conf(load), count, int(interval * 1e9), out)
    if result < 0:
        raise DriverError("the latency can't be measured", -result)
    return [None if value == 0xFFFF_FFFF_FFFF_FFFF else value for value in out]


class Pace(NamedTuple):
    """How fast two processors are, in ns: a loop on each, and a cache line there and back; see struct pvd_pace."""

    one: float
    other: float
    line: float


def pace(one: int, other: int, patience: float = 0.05) -> Pace:
    """Measure two processors; raises DriverError, with ETIME when they are too busy. See pvd_pace_measure."""
    out = ffi.new("struct pvd_pace *")
    result = lib.pvd_pace_measure(one, other, int(patience * 1e9), out)
    if result < 0:
        raise DriverError(f"the pace of processors {one} and {other} can't be measured", -result)
    return Pace(out.a_ns, out.b_ns, out.line_ns)
