# SPDX-License-Identifier: Apache-2.0
"""Packed rings in a conversation: sizes, alignment, where a ring goes on, and who may ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvswitch.vhost_user.backend import SetFeatures, StartRing
from pvswitch.vhost_user.features import Feature, ProtocolFeature
from pvswitch.vhost_user.messages import U64, MemRegion, MemTable, Request, VringAddr, VringFd, VringState
from pvswitch.vhost_user.session import Offer, Phase, ProtocolError

from .fakes import FEATURES, PROTOCOL, REGION, Conversation, new_fd, open_fds, refuses, ring_addr

FORMATS = int(Feature.RING_PACKED | Feature.IN_ORDER)
OFFER = Offer(features=FEATURES | FORMATS, protocol_features=PROTOCOL)
PACKED = FEATURES | int(Feature.RING_PACKED)
BEGINNING = 0x8000_8000
"""Index 0 and the wrap counter set, for avail and used: what QEMU says of a new packed ring."""


@pytest.fixture
def offering() -> Iterator[Conversation]:
    """A conversation with a back end that offers both formats, after which every descriptor must be closed."""
    before = open_fds()
    conversation = Conversation(OFFER)
    yield conversation
    conversation.session.close()
    assert open_fds() == before


@pytest.fixture
def packed(offering: Conversation) -> Conversation:
    """The same, with packed rings negotiated and memory given."""
    offering.negotiate(PACKED)
    offering.give_memory()
    offering.effects.clear()
    return offering


# ---- who may ask


@pytest.mark.parametrize("bit", [Feature.RING_PACKED, Feature.IN_ORDER])
def test_a_format_that_is_not_offered_is_refused(talk: Conversation, bit: Feature) -> None:
    assert not talk.say(Request.GET_FEATURES) & bit
    refuses(talk, Request.SET_FEATURES, U64(FEATURES | int(bit)), match=f"{str(bit.name).lower()} not offered")
    assert talk.effects == []


@pytest.mark.parametrize("formats", [0, Feature.RING_PACKED, Feature.IN_ORDER, FORMATS])
def test_formats_that_are_offered_are_taken(offering: Conversation, formats: int) -> None:
    assert offering.say(Request.GET_FEATURES) & FORMATS == FORMATS
    offering.negotiate(FEATURES | int(formats))
    assert offering.effects == [SetFeatures(FEATURES | int(formats))]
    offering.give_memory()
    offering.setup_ring(0)
    assert offering.running[0].features == FEATURES | int(formats)


def test_the_format_of_running_rings_stays(packed: Conversation) -> None:
    packed.setup_ring(0, base=BEGINNING)
    refuses(packed, Request.SET_FEATURES, U64(FEATURES), match="running")
    assert packed.running[0].features == PACKED


# ---- size and place


@pytest.mark.parametrize("num", [1, 2, 3, 100, 255, 256, 257, 32767, 32768])
def test_any_size_will_do(packed: Conversation, num: int) -> None:
    packed.setup_ring(0, num=num, base=BEGINNING)
    assert packed.running[0].num == num


@pytest.mark.parametrize("num", [0, 32769, 65535, 65536, 1 << 31, 2**32 - 1])
def test_sizes_beyond_the_format_are_refused(packed: Conversation, num: int) -> None:
    refuses(
        packed, Request.SET_VRING_NUM, VringState(0, num), match=f"{num} isn't a size for a packed ring: 1 to 32768"
    )


@pytest.mark.parametrize("features", [FEATURES, FEATURES | int(Feature.IN_ORDER)])
def test_split_rings_keep_their_sizes(offering: Conversation, features: int) -> None:
    """Offered is not negotiated; and order is no matter of format."""
    offering.negotiate(features)
    refuses(offering, Request.SET_VRING_NUM, VringState(0, 255), match="power of two")


def test_both_event_areas_are_aligned_to_four_bytes(packed: Conversation) -> None:
    good = ring_addr(0)
    for addr in (
        VringAddr(0, 0, desc=good.desc + 8, used=good.used, avail=good.avail),
        VringAddr(0, 0, desc=good.desc, used=good.used + 2, avail=good.avail),
        VringAddr(0, 0, desc=good.desc, used=good.used, avail=good.avail + 2),
    ):
        refuses(packed, Request.SET_VRING_ADDR, addr, match="aligned")
    packed.say(Request.SET_VRING_ADDR, good, need_reply=True)


def test_an_avail_ring_may_lie_where_an_event_area_may_not(offering: Conversation) -> None:
    offering.negotiate()
    good = ring_addr(0)
    addr = VringAddr(0, 0, desc=good.desc, used=good.used, avail=good.avail + 2)
    assert offering.say(Request.SET_VRING_ADDR, addr, need_reply=True) == 0


# ---- where a ring goes on


@pytest.mark.parametrize("base", [BEGINNING, 0x8000, 0x0005_0005, 0x8003_8005, 0, 0xFFFF_FFFF])
def test_a_base_has_two_halves(packed: Conversation, base: int) -> None:
    """virtio-user 22.11 leaves the used half out. Whether the place exists is for the core to say."""
    packed.setup_ring(0, num=32768, base=base)
    assert packed.running[0].base == base


def test_a_stopped_ring_tells_both_halves_and_goes_on_there(packed: Conversation) -> None:
    packed.base = 0x8042_8042
    packed.setup_ring(0, base=BEGINNING)
    refuses(packed, Request.SET_VRING_BASE, VringState(0, 0), match="running")
    assert packed.say(Request.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 0x8042_8042)
    assert packed.say(Request.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 0x8042_8042)
    packed.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()])
    assert packed.running[0].base == 0x8042_8042


def test_split_rings_have_one_index(offering: Conversation) -> None:
    offering.negotiate()
    refuses(offering, Request.SET_VRING_BASE, VringState(0, BEGINNING), match="16-bit")


def test_what_the_core_refuses_ends_the_start_and_is_said(packed: Conversation) -> None:
    """A base beyond the ring: nothing runs, and a front end that mends it is served."""
    packed.session.protocol_features |= ProtocolFeature.REPLY_ACK
    packed.say(Request.SET_VRING_NUM, VringState(0, 100))
    packed.say(Request.SET_VRING_BASE, VringState(0, 0x8064))
    packed.say(Request.SET_VRING_ADDR, ring_addr(0))
    packed.say(Request.SET_VRING_CALL, VringFd(0, True), [new_fd()])
    assert packed.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()], need_reply=True) != 0
    assert not packed.running
    packed.say(Request.SET_VRING_BASE, VringState(0, 0x8063))
    assert packed.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()], need_reply=True) == 0
    assert packed.running[0].base == 0x8063


def test_a_driver_comes_back_with_the_other_format(packed: Conversation) -> None:
    """What it left of the packed rings fits no split one: it has to say it all again, as drivers do."""
    packed.setup_ring(0, num=100, base=BEGINNING)
    packed.say(Request.GET_VRING_BASE, VringState(0, 0))
    packed.say(Request.SET_FEATURES, U64(FEATURES))
    with pytest.raises(ProtocolError, match="SET_VRING_KICK"):
        packed.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()])
    packed.setup_ring(0, num=128, base=0)
    start = packed.of(StartRing)[-1].ring
    assert (start.features, start.num, start.base) == (FEATURES, 128, 0)


def test_virtio_user_order_with_packed_rings(offering: Conversation) -> None:
    """DPDK 22.11: the base is 0x8000, without a used half, whenever the port starts."""
    features = int(Feature.VERSION_1 | Feature.MRG_RXBUF | Feature.PROTOCOL_FEATURES) | FORMATS
    wanted = int(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)
    offering.say(Request.SET_PROTOCOL_FEATURES, U64(wanted))
    for start in range(2):
        for index in (0, 1):
            offering.say(Request.SET_VRING_CALL, VringFd(index, True), [new_fd()])
        assert offering.say(Request.SET_FEATURES, U64(features), need_reply=True) == 0
        table = MemTable((MemRegion(REGION.uva, REGION.size, REGION.uva, 0),))
        assert offering.say(Request.SET_MEM_TABLE, table, [new_fd()], need_reply=True) == 0
        for index in (0, 1):
            offering.say(Request.SET_VRING_NUM, VringState(index, 1000))
            offering.say(Request.SET_VRING_BASE, VringState(index, 0x8000))
            offering.say(Request.SET_VRING_ADDR, ring_addr(index))
            offering.say(Request.SET_VRING_KICK, VringFd(index, True), [new_fd()])
            offering.say(Request.SET_VRING_ENABLE, VringState(index, 1))
        assert offering.session.phase is Phase.READY
        assert [(ring.num, ring.base) for ring in offering.running.values()] == [(1000, 0x8000)] * 2
        offering.base = 0x0010_0010 + start
        for index in (0, 1):
            assert offering.say(Request.GET_VRING_BASE, VringState(index, 0)).num == offering.base
        assert not offering.running
