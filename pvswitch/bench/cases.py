# SPDX-License-Identifier: Apache-2.0
"""The cases: what guests there are, what they send, which switches take part, and what is expected.

What their words mean is in `work`; those of flows, captures and the flight recorder are in `flow_cases`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pvswitch.bench.errors import BenchError
from pvswitch.bench.flow_cases import flow_cases
from pvswitch.bench.work import (
    BRIDGE,
    GSO_FRAME,
    KERNEL,
    NET_HEADER,
    OVS,
    PVSWITCH,
    QEMU_TAP,
    RING,
    TESTPMD,
    WINDOW,
    Against,
    Case,
    Circle,
    Frames,
    Guests,
    Idle,
    Latency,
    Silence,
    Tcp,
    TunnelFlood,
    TunnelFrames,
    TunnelTcp,
    Uplink,
)

# ---- the matrix


def _guests(size: int, *, packed: bool, mrg: bool) -> Guests:
    """Guests with buffers for frames of this size: one for each, or with `mrg` 2 KiB ones."""
    whole = (size + NET_HEADER + 63) // 64 * 64
    return Guests(packed=packed, mrg=mrg, rx_buffer=2048 if mrg else max(2048, whole), tx_buffer=max(2048, whole))


def _gso_guests(*, packed: bool, mrg: bool) -> Guests:
    whole = (GSO_FRAME + NET_HEADER + 63) // 64 * 64
    return Guests(
        packed=packed, mrg=mrg, gso=True, queue_size=RING // 4, rx_buffer=4096 if mrg else whole, tx_buffer=whole
    )


def _window(guests: Guests, size: int) -> int:
    """Return half of what a receive ring holds, and no more than `WINDOW`."""
    buffers = -(-(size + NET_HEADER) // guests.rx_buffer)
    return min(WINDOW, guests.queue_size // (2 * buffers))


SIZE_TARGETS: Mapping[str, float] = {
    "64-split-mrg": 2.4,
    "64-packed-mrg": 2.0,
    "256-split-mrg": 2.2,
    "1518-split-mrg": 2.2,
    "1518-split-mrg-L2": 1.4,
    "9000-split-mrg-L2": 1.2,
}
"""How many times OVS-DPDK's rate; in the same cases pvswitch shall be ahead of testpmd, which switches nothing."""
LEVELS = (", frames neither written nor checked", "", ", every byte written and checked")
QUICK = ("64-split-mrg", "64-packed-mrg", "1518-split-mrg")


def _by_size() -> Iterator[Case]:
    for size, levels in ((64, (1, 0)), (256, (1,)), (1518, (1, 2)), (9000, (1, 2)), (GSO_FRAME, (1,))):
        for packed in (False, True):
            for mrg in (True, False):
                for level in levels if mrg else levels[:1]:
                    yield _size_case(size, packed=packed, mrg=mrg, level=level)
    for size in (64, 1518):
        yield _size_case(size, packed=False, mrg=True, shuffle=True)


def _size_case(size: int, *, packed: bool, mrg: bool, level: int = 1, shuffle: bool = False) -> Case:
    gso = size == GSO_FRAME
    guests = _gso_guests(packed=packed, mrg=mrg) if gso else _guests(size, packed=packed, mrg=mrg)
    words = ["gso" if gso else str(size), "packed" if packed else "split"]
    words += [*(["mrg"] if mrg else []), *([f"L{level}"] if level != 1 else []), *(["shuffled"] if shuffle else [])]
    name = "-".join(words)
    rings = "packed rings, in order" if packed else "split rings"
    buffers = f"{guests.rx_buffer // 1024} KiB mergeable buffers" if mrg else "a buffer for each frame"
    target = SIZE_TARGETS.get(name)
    order = ", shuffled" if shuffle else ""
    return Case(
        name=name,
        text=f"{'64 KiB GSO' if gso else f'{size} B'}, {rings}, {buffers}{order}{LEVELS[level]}",
        work=Frames(size, replace(guests, shuffle=shuffle), level=level, window=_window(guests, size)),
        figure="gbits" if gso else "mpps",
        targets={OVS: target, TESTPMD: 1.0} if target else {},
        quick=name in QUICK,
    )


def _by_ports() -> Iterator[Case]:
    yield Case("ports-2", "64 B, one active pair of ports", Frames(64))
    yield Case(
        "idle-62",
        "64 B, an active pair beside 62 idle connected ports",
        Frames(64, Guests(idle=62)),
        switches=(PVSWITCH, OVS),
        against=Against("ports-2", "cycles", 1.05),
    )
    for active in (8, 32):
        # The window is that of each pair.
        work = Frames(64, Guests(active=active), window=max(32, WINDOW // (active // 2)))
        yield Case(f"ports-{active}", f"64 B, {active} active ports in {active // 2} pairs", work)
    yield Case(
        "flood-7",
        "64 B, broadcast by one port to seven, per copy",
        Frames(64, Guests(active=8), flood=True),
        figure="cycles",
        switches=(PVSWITCH, OVS),
        targets={OVS: 5.0},
    )


def _by_macs() -> Iterator[Case]:
    for macs in (1, 1024, 65536):
        text = f"64 B to {macs:,} destination MACs" if macs > 1 else "64 B to one destination MAC"
        against = Against("macs-1", "cycles", 1.5) if macs == 65536 else None
        yield Case(f"macs-{macs}", text, Frames(64, macs=macs), switches=(PVSWITCH, OVS), against=against)


def _by_feature() -> Iterator[Case]:
    """One pair of ports, without anything and with one feature at a time.

    Pushed tags are not among them: the generator looks for its marks where it has put them.
    """
    both, own = (PVSWITCH, OVS), (PVSWITCH,)
    yield Case("feature-none", "64 B, known unicast, no features", Frames(64), figure="cycles", switches=both)
    for name, text, work, switches in (
        ("access", "between two access ports", Frames(64), both),
        ("protected", "from a protected port", Frames(64), both),
        ("security", "from a port with a list of MAC addresses and a limit", Frames(64), own),
        ("policing", "from a port with policing", Frames(64), both),
        ("shaping", "to a port with shaping", Frames(64), both),
        ("storm", "broadcast by a port with storm control", Frames(64, flood=True), own),
        ("mirror", "broadcast to one port, and mirrored; per copy", Frames(64, Guests(active=3), flood=True), both),
    ):
        work = replace(work, feature=name, watchers=1 if name == "mirror" else 0)
        yield Case(f"feature-{name}", f"64 B, {text}", work, figure="cycles", switches=switches)


def _by_load() -> Iterator[Case]:
    for percent in (10, 80):
        yield Case(
            f"latency-{percent}",
            f"64 B, one way, at {percent} % of the highest rate",
            Latency(Frames(64), percent / 100),
            figure="p50_us",
        )


def _overrun() -> Iterator[Case]:
    """More in flight than the receiver has buffers for, and a receiver that takes less than could come."""
    guests = _gso_guests(packed=False, mrg=True)
    for on_full in ("drop", "backpressure"):
        for name, rx_pps in (("gso-overrun", 0), ("gso-slow", 10_000)):
            slow = f", the receiver takes {rx_pps:,} a second" if rx_pps else ""
            yield Case(
                f"{name}-{on_full}",
                f"64 KiB GSO, more in flight than the receiver has buffers for{slow}, on_full: {on_full}",
                Frames(GSO_FRAME, guests, window=guests.queue_size, rx_pps=rx_pps, on_full=on_full),
                figure="gbits",
                switches=(PVSWITCH, OVS) if on_full == "drop" else (PVSWITCH,),
                # Nine tenths of what the receiver takes.
                limit=round(0.9 * rx_pps * GSO_FRAME * 8 / 1e9, 1) if rx_pps else None,
                loss_allowed=on_full == "drop",
            )


def _by_testpmd() -> Iterator[Case]:
    for size, packed, target in ((64, True, 1.8), (1518, True, None), (1518, False, 1.6), (64, False, 1.3)):
        rings = "packed rings, in order" if packed else "split rings"
        yield Case(
            f"testpmd-{size}-{'packed' if packed else 'split'}",
            f"{size} B from testpmd's virtio-user ports, {rings}",
            Circle(size, packed),
            targets={OVS: target} if target else {},
        )


def _by_tunnel() -> Iterator[Case]:
    yield Case(
        "tunnel-tcp",
        "TCP between QEMU guests on two hosts, by VXLAN",
        TunnelTcp(),
        figure="gbits",
        switches=(PVSWITCH, OVS, KERNEL),
        seconds=5,
    )
    for single in (False, True):
        for way, words in (("out", "into"), ("in", "out of")):
            for size in (64, 1450):
                yield Case(
                    f"tunnel-{way}-{size}{'-single' if single else ''}",
                    f"{size} B {words} a VXLAN{', packets one by one' if single else ''}",
                    TunnelFrames(Frames(size), way, single),
                    figure="cycles",
                    switches=(PVSWITCH, OVS),
                )
    for remotes in (1, 10, 100):
        yield Case(
            f"tunnel-replication-{remotes}",
            f"64 B, broadcast to {remotes} remotes of a VXLAN, per copy",
            TunnelFlood(Frames(64, flood=True), remotes),
            figure="cycles",
            switches=(PVSWITCH, OVS),
        )


def _special() -> Iterator[Case]:
    yield Case(
        "tcp",
        "TCP between two QEMU guests",
        Tcp(),
        figure="gbits",
        switches=(PVSWITCH, OVS, BRIDGE),
        targets={OVS: 4.0, BRIDGE: 1.0},
        seconds=5,
    )
    yield Case(
        "uplink",
        "TCP between a QEMU guest and the host",
        Uplink(),
        figure="gbits",
        switches=(PVSWITCH, QEMU_TAP),
        targets={QEMU_TAP: 0.95},
        each_part=True,
        seconds=5,
    )
    yield Case(
        "idle-cpu",
        "64 connected guests, no traffic, adaptive polling",
        Idle(64),
        figure="cpu",
        switches=(PVSWITCH,),
        limit=1.0,
        seconds=10,
    )
    for polling in ("busy", "adaptive"):
        yield Case(
            f"silence-{polling}",
            f"round trip after 2 s without a frame, {polling} polling",
            Silence(polling, 2.0),
            figure="first_us",
            switches=(PVSWITCH,),
        )


CASES: tuple[Case, ...] = (
    *_by_size(),
    *_by_ports(),
    *_by_macs(),
    *_by_feature(),
    *_by_load(),
    *_overrun(),
    *_by_testpmd(),
    *_special(),
    *_by_tunnel(),
    *flow_cases(),
)


def select(patterns: Sequence[str], cases: Iterable[Case] = CASES) -> list[Case]:
    """Return the cases whose names match a shell pattern, in their own order; without a pattern all usual ones.

    Raises BenchError for a pattern that matches none.
    """
    found = list(cases)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(case.name, pattern) for case in found):
            raise BenchError(f"No case matches {pattern!r}: `pvswitch bench --list` names them all.")
    if not patterns:
        return [case for case in found if case.usual]
    return [case for case in found if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]
