# SPDX-License-Identifier: Apache-2.0
"""Sessions with several queue pairs, in the order in which QEMU speaks for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvswitch.vhost_user.backend import EnableRing, StartRing, StopRing
from pvswitch.vhost_user.features import Feature, ProtocolFeature
from pvswitch.vhost_user.messages import U64, Request, VringState
from pvswitch.vhost_user.session import Offer, Phase

from .fakes import FEATURES, PROTOCOL, Conversation, open_fds, phase_of, refuses

PAIRS = 4
MANY = FEATURES | Feature.MQ


@pytest.fixture
def many() -> Iterator[Conversation]:
    """A conversation about four pairs, after which every descriptor must be closed."""
    before = open_fds()
    talk = Conversation(Offer(MANY, PROTOCOL, queue_pairs=PAIRS))
    yield talk
    talk.session.close()
    assert open_fds() == before


def connect(talk: Conversation, pairs: int) -> None:
    """What QEMU says for each pair on connecting."""
    for _ in range(pairs):
        assert talk.say(Request.GET_FEATURES) == MANY
        assert talk.say(Request.GET_PROTOCOL_FEATURES) == PROTOCOL
        talk.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL))
        assert talk.say(Request.GET_QUEUE_NUM) == PAIRS
        talk.say(Request.SET_OWNER)
        assert talk.say(Request.GET_FEATURES) == MANY


def start(talk: Conversation, pairs: int, enabled: int) -> None:
    """What QEMU says on DRIVER_OK: memory by the first pair only, everything else by each."""
    for pair in range(pairs):
        for index in (2 * pair, 2 * pair + 1):
            talk.say(Request.SET_VRING_ENABLE, VringState(index, int(pair < enabled)))
    for pair in range(pairs):
        assert talk.say(Request.SET_FEATURES, U64(MANY), need_reply=True) == 0
        if pair == 0:
            talk.give_memory()
        for index in (2 * pair, 2 * pair + 1):
            talk.setup_ring(index)


def test_all_pairs_run(many: Conversation) -> None:
    connect(many, PAIRS)
    start(many, PAIRS, PAIRS)
    assert sorted(many.running) == list(range(2 * PAIRS))
    assert [effect.ring.index for effect in many.of(StartRing)] == list(range(2 * PAIRS))
    assert all(ring.enabled for ring in many.running.values())
    assert not many.of(StopRing), "features and memory of a later pair leave the earlier ones alone"
    assert many.session.phase is Phase.READY


def test_other_features_for_a_later_pair_are_refused(many: Conversation) -> None:
    connect(many, 2)
    start(many, 1, 1)
    refuses(many, Request.SET_FEATURES, U64(MANY & ~Feature.MRG_RXBUF), match="can't change")
    assert sorted(many.running) == [0, 1]


def test_fewer_pairs_than_offered(many: Conversation) -> None:
    connect(many, 2)
    start(many, 2, 1)
    assert many.session.state.started == (0, 1, 2, 3)
    assert many.session.state.enabled == (0, 1)
    assert many.session.phase is Phase.READY


@pytest.mark.parametrize("pair", range(PAIRS))
def test_one_pair_that_is_started_and_enabled_is_enough(many: Conversation, pair: int) -> None:
    connect(many, PAIRS)
    start(many, PAIRS, 0)
    assert phase_of(many.session) is Phase.QUEUE_DISABLED
    many.say(Request.SET_VRING_ENABLE, VringState(2 * pair, 1))
    assert phase_of(many.session) is Phase.QUEUE_DISABLED
    many.say(Request.SET_VRING_ENABLE, VringState((2 * pair + 3) % (2 * PAIRS), 1))
    assert phase_of(many.session) is Phase.QUEUE_DISABLED, "rings of two pairs are no pair"
    many.say(Request.SET_VRING_ENABLE, VringState(2 * pair + 1, 1))
    assert phase_of(many.session) is Phase.READY


def test_pairs_come_and_go_under_traffic(many: Conversation) -> None:
    """As with `ethtool -L`: rings stay started, only the pairs beyond the wanted number are disabled."""
    connect(many, PAIRS)
    start(many, PAIRS, PAIRS)
    many.effects.clear()
    for wanted in (1, 3, 2, PAIRS):
        for index in range(2 * PAIRS):
            many.say(Request.SET_VRING_ENABLE, VringState(index, int(index // 2 < wanted)))
        assert many.session.state.enabled == tuple(range(2 * wanted))
        assert many.session.phase is Phase.READY
    assert {type(effect) for effect in many.effects} == {EnableRing}
    assert many.session.state.started == tuple(range(2 * PAIRS))


def test_rings_that_never_started_are_asked_for_their_base(many: Conversation) -> None:
    connect(many, PAIRS)
    start(many, 1, 1)
    many.say(Request.SET_VRING_BASE, VringState(5, 99))
    assert many.say(Request.GET_VRING_BASE, VringState(5, 0)) == VringState(5, 99)
    assert many.say(Request.GET_VRING_BASE, VringState(7, 0)) == VringState(7, 0)
    assert not many.of(StopRing)
    for index in range(2 * PAIRS):
        many.say(Request.GET_VRING_BASE, VringState(index, 0))
    assert many.of(StopRing) == [StopRing(0), StopRing(1)]
    assert many.session.phase is Phase.DRIVER_NOT_STARTED


def test_a_driver_comes_back_with_other_features_and_fewer_pairs(many: Conversation) -> None:
    """As after a reboot into firmware without multiqueue."""
    connect(many, PAIRS)
    start(many, PAIRS, PAIRS)
    for index in range(2 * PAIRS):
        many.say(Request.GET_VRING_BASE, VringState(index, 0))
    many.say(Request.SET_FEATURES, U64(FEATURES & ~Feature.MRG_RXBUF))
    many.setup_ring(0)
    many.setup_ring(1)
    assert sorted(many.running) == [0, 1]
    assert many.running[0].features == FEATURES & ~Feature.MRG_RXBUF
    assert many.session.phase is Phase.READY


def test_a_front_end_without_protocol_features(many: Conversation) -> None:
    """It can't learn of more than one pair; without bit 30 every ring starts enabled."""
    many.say(Request.SET_FEATURES, U64(FEATURES & ~Feature.PROTOCOL_FEATURES))
    many.give_memory()
    many.setup_ring(0)
    many.setup_ring(1)
    many.say(Request.SET_FEATURES, U64(FEATURES & ~Feature.PROTOCOL_FEATURES))
    assert many.session.state.started == (0, 1)
    assert many.session.phase is Phase.READY


def test_a_front_end_without_protocol_mq(many: Conversation) -> None:
    many.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL & ~ProtocolFeature.MQ))
    start(many, 1, 1)
    assert many.session.phase is Phase.READY


def test_rings_beyond_those_offered(many: Conversation) -> None:
    connect(many, PAIRS)
    start(many, PAIRS, PAIRS)
    for index in (2 * PAIRS, 2 * PAIRS + 1, 31, 32):
        refuses(many, Request.SET_VRING_ENABLE, VringState(index, 0), match="there is no ring")
    assert len(many.running) == 2 * PAIRS
