# SPDX-License-Identifier: Apache-2.0
"""What guests ask for, who sends to whom, and what is said of frames that went wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from pvswitch.bench.errors import BenchError
from pvswitch.bench.generator import Outcome, faults, features, total
from pvswitch.bench.load import Flow, flows, mac
from pvswitch.bench.machine import Others, pick_cpus
from pvswitch.bench.work import Guests
from pvswitch.vhost_user.features import Feature

GOOD = Outcome(
    sent=10, received=10, lost=0, reordered=0, corrupted=0, foreign=0, errors=0, measured=5, measured_ns=1000
)


def test_guests_need_what_a_case_is_about_and_take_nothing_that_it_is_not() -> None:
    wanted, needed = features(Guests(packed=True, mrg=False))
    assert needed == Feature.VERSION_1 | Feature.RING_PACKED | Feature.IN_ORDER
    assert not wanted & (Feature.MRG_RXBUF | Feature.HOST_TSO4)
    wanted, needed = features(Guests(gso=True))
    assert needed & Feature.MRG_RXBUF
    assert needed & Feature.HOST_TSO4
    assert needed & Feature.GUEST_TSO4
    assert not wanted & (Feature.RING_PACKED | Feature.IN_ORDER)


def test_guests_send_in_pairs_or_one_sends_to_all() -> None:
    assert flows(4, flood=False) == [Flow(0, (1,)), Flow(2, (3,))]
    assert flows(4, flood=True) == [Flow(0, (1, 2, 3))]
    assert len({mac(number)[:2] for number in range(64)}) == 64


def test_a_rate_is_of_what_was_received_after_the_warm_up() -> None:
    assert GOOD.mpps == 5.0
    assert replace(GOOD, measured_ns=0).mpps == 0


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ({"lost": 3, "sent": 20, "copies": 7}, "3 of 140 frames were lost"),
        ({"reordered": 1}, "1 of 10 received frames came after a later one"),
        ({"corrupted": 1}, "1 of 10 received frames were changed on the way"),
        ({"foreign": 1}, "1 of 10 received frames were not of this run"),
        ({"errors": 2}, "the switch broke the virtio protocol 2 times"),
        ({"received": 0}, "no frame arrived"),
    ],
)
def test_faults_are_sentences(what: dict[str, int], wanted: str) -> None:
    assert faults(GOOD, loss_allowed=False) == []
    assert faults(replace(GOOD, **what), loss_allowed=False) == [wanted]
    assert faults(replace(GOOD, **what), loss_allowed=True) == ([] if "lost" in what else [wanted])


def test_what_others_take_of_the_machine_is_seen() -> None:
    busy = "import time; end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as process:
        stranger, own = Others(), Others(process.pid)
        with stranger, own:
            time.sleep(0.5)
        assert stranger.cores() - own.cores() > 0.2


def test_outcomes_add_up() -> None:
    both = total([replace(GOOD, lost=1, copies=7), replace(GOOD, lost=2, copies=7)])
    assert (both.sent, both.lost, both.copies, both.p50_ns) == (2 * GOOD.sent, 3, 7, None)
    assert both.mpps == GOOD.mpps
    assert total([replace(GOOD, p50_ns=5)]).p50_ns == 5


def test_order_may_be_lost_among_destinations() -> None:
    assert faults(replace(GOOD, reordered=3), loss_allowed=False, order_owed=False) == []


def test_switch_and_generator_are_on_two_cores() -> None:
    cores = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3", 4: "4"}
    assert pick_cpus({0, 1, 2, 3}, cores.__getitem__) == (0, 1)
    assert pick_cpus([2, 0, 3], cores.__getitem__) == (0, 3)
    assert pick_cpus([2, 0], cores.__getitem__) == (0, 2)
    with pytest.raises(BenchError, match="Two processors are needed"):
        pick_cpus([5], cores.__getitem__)
