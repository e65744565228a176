# SPDX-License-Identifier: Apache-2.0
"""The matrix is what it says: names, buffers, windows, and everything that a case refers to."""

from __future__ import annotations

import pytest

from pvswitch.bench.cases import CASES, select
from pvswitch.bench.errors import BenchError
from pvswitch.bench.features import FEATURES
from pvswitch.bench.work import (
    FIGURES,
    NET_HEADER,
    PVSWITCH,
    Case,
    Circle,
    FlowFrames,
    Frames,
    Idle,
    Latency,
    Silence,
    Tcp,
    TunnelFlood,
    TunnelFrames,
    TunnelTcp,
    Uplink,
    Watched,
    Work,
)

NAMES = [case.name for case in CASES]


def frames_of(work: Work) -> Frames | None:
    """The frames of a case, if it has any."""
    if isinstance(work, Latency | TunnelFrames | TunnelFlood | FlowFrames | Watched):
        return work.frames
    return work if isinstance(work, Frames) else None


FRAMES = [(case.name, frames) for case in CASES if (frames := frames_of(case.work)) is not None]


def test_the_matrix_is_complete() -> None:
    wanted = {
        f"{size}-{rings}{mrg}"
        for size in ("64", "256", "1518", "9000", "gso")
        for rings in ("split", "packed")
        for mrg in ("", "-mrg")
    }
    wanted |= {f"{size}-{rings}-mrg-L2" for size in ("1518", "9000") for rings in ("split", "packed")}
    wanted |= {"64-split-mrg-L0", "64-packed-mrg-L0", "64-split-mrg-shuffled", "1518-split-mrg-shuffled"}
    wanted |= {"ports-2", "ports-8", "ports-32", "idle-62", "flood-7", "macs-1", "macs-1024", "macs-65536"}
    wanted |= {"latency-10", "latency-80", "tcp", "uplink", "idle-cpu", "silence-busy", "silence-adaptive"}
    wanted |= {f"gso-{kind}-{full}" for kind in ("overrun", "slow") for full in ("drop", "backpressure")}
    wanted |= {f"testpmd-{size}-{rings}" for size in ("64", "1518") for rings in ("split", "packed")}
    wanted |= {f"feature-{name}" for name in ("none", *FEATURES)}
    wanted |= {
        f"tunnel-{way}-{size}{single}" for way in ("out", "in") for size in (64, 1450) for single in ("", "-single")
    }
    tables = ("0", "1", *(f"{rules}-{masks}m" for rules in (1000, 100_000) for masks in (1, 50)))
    wanted |= {f"flows-{table}-{tuples}f" for table in tables for tuples in (1, 1000, 100_000)}
    wanted |= {"flows-batch-0", "flows-batch-100000", *(f"capture-{who}" for who in ("none", "some", "all", "unread"))}
    wanted |= {f"recorder-{what}{read}" for what in ("forwarded", "dropped") for read in ("", "-read")}
    wanted |= {"tunnel-tcp", *(f"tunnel-replication-{remotes}" for remotes in (1, 10, 100))}
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) == wanted


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_case_refers_to_what_there_is(case: Case) -> None:
    assert case.figure in FIGURES
    assert case.switches[0] == PVSWITCH
    assert set(case.targets) <= set(case.switches) - {PVSWITCH}
    if case.against is not None:
        assert case.against.case in NAMES
        assert case.against.figure in FIGURES
        other = next(each for each in CASES if each.name == case.against.case)
        assert set(case.switches) <= set(other.switches)


@pytest.mark.parametrize(("name", "frames"), FRAMES, ids=[name for name, _ in FRAMES])
def test_frames_fit_and_no_ring_can_overflow(name: str, frames: Frames) -> None:
    guests = frames.guests
    whole = frames.size + NET_HEADER
    buffers = -(-whole // guests.rx_buffer)
    assert whole <= guests.tx_buffer
    assert guests.mrg or buffers == 1
    assert frames.window <= guests.queue_size
    if not name.startswith(("gso-overrun", "gso-slow")):
        assert frames.window * buffers <= guests.queue_size
    else:
        assert frames.window * buffers > guests.queue_size
    assert (guests.active - frames.watchers) % 2 == 0
    assert frames.feature is None or frames.feature in FEATURES
    assert frames.watchers == 0 or frames.flood
    assert frames.macs == 1 or not frames.flood


def test_loss_is_allowed_only_where_it_is_meant() -> None:
    allowed = {case.name for case in CASES if case.loss_allowed}
    assert allowed == {"gso-overrun-drop", "gso-slow-drop", "recorder-dropped", "recorder-dropped-read"}


def test_what_is_quick_needs_neither_qemu_nor_waiting() -> None:
    quick = [case for case in CASES if case.quick]
    assert len(quick) >= 3
    assert not any(isinstance(case.work, Tcp | TunnelTcp | Uplink | Idle | Silence | Circle) for case in quick)


def test_cases_are_chosen_by_patterns_in_their_own_order() -> None:
    assert [case.name for case in select(["macs-*", "64-split"])] == ["64-split", "macs-1", "macs-1024", "macs-65536"]
    unusual = [case for case in CASES if not case.usual]
    assert [case.name for case in unusual if not case.name.startswith("flows-")] == []
    assert "flows-batch-100000" in [case.name for case in unusual]
    assert select([]) == [case for case in CASES if case not in unusual]
    assert select(["flows-100000-50m-1f"])[0] in unusual
    with pytest.raises(BenchError, match=r"No case matches '65-\*': `pvswitch bench --list`"):
        select(["64-split", "65-*"])
