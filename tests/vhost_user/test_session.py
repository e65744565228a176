# SPDX-License-Identifier: Apache-2.0
"""The session alone: every rule of the protocol, with scripted results and real descriptors."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.backend import (
    AddRegion,
    EnableRing,
    RingNotReady,
    SendRarp,
    SetCall,
    SetFeatures,
    SetMtu,
    StartRing,
    StopRing,
)
from pvswitch.vhost_user.features import DeviceStatus, Feature, ProtocolFeature
from pvswitch.vhost_user.messages import (
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    U64,
    VERSION,
    Header,
    MemRegion,
    MemSlot,
    MemTable,
    Payload,
    RarpMac,
    Request,
    VringAddr,
    VringFd,
    VringState,
)
from pvswitch.vhost_user.session import Offer, Phase, ProtocolError

from .fakes import FEATURES, PROTOCOL, REGION, Conversation, new_fd, open_fds, phase_of, refuses, ring_addr

GIB = 1 << 30


# ---- replies and gates


def test_replies_only_when_asked(talk: Conversation) -> None:
    assert talk.say(Request.GET_FEATURES) == FEATURES
    assert talk.say(Request.GET_PROTOCOL_FEATURES, need_reply=True) == PROTOCOL
    assert talk.say(Request.SET_OWNER, need_reply=True) is None, "REPLY_ACK isn't negotiated yet"
    assert talk.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL), need_reply=True) is None
    assert talk.say(Request.SET_OWNER) is None
    assert talk.say(Request.SET_OWNER, need_reply=True) == 0
    assert talk.say(Request.GET_QUEUE_NUM, need_reply=True) == 1
    assert talk.say(Request.GET_MAX_MEM_SLOTS) == 509


@pytest.mark.parametrize(
    "flags", [0, 2, 3, VERSION | REPLY, VERSION | 0x10, VERSION | NEED_REPLY | REPLY, VERSION | 1 << 31]
)
def test_header_flags_must_be_a_requests(talk: Conversation, flags: int) -> None:
    with pytest.raises(ProtocolError, match="flags"):
        talk.raw(Header(Request.GET_FEATURES, flags, 0))


def test_a_huge_payload_is_refused_before_it_is_read(talk: Conversation) -> None:
    with pytest.raises(ProtocolError, match="no payload"):
        talk.raw(Header(Request.SET_MEM_TABLE, VERSION, MAX_PAYLOAD + 1))


@pytest.mark.parametrize("request_id", [0, 6, 7, 21, 22, 24, 25, 28, 31, 32, 34, 35, 41, 42, 43, 44, 1000, 2**32 - 1])
def test_what_is_not_offered_is_refused_not_ignored(talk: Conversation, request_id: int) -> None:
    refuses(talk, request_id, fds=[new_fd()], match="not offered")


@pytest.mark.parametrize(
    ("request_id", "payload", "bit"),
    [
        (Request.SEND_RARP, RarpMac(bytes(6)), ProtocolFeature.RARP),
        (Request.NET_SET_MTU, U64(1500), ProtocolFeature.NET_MTU),
        (Request.REM_MEM_REG, MemSlot(REGION), ProtocolFeature.CONFIGURE_MEM_SLOTS),
        (Request.SET_STATUS, U64(1), ProtocolFeature.STATUS),
    ],
)
def test_messages_are_gated_by_what_is_offered(request_id: int, payload: Payload, bit: ProtocolFeature) -> None:
    talk = Conversation(Offer(FEATURES, PROTOCOL & ~bit))
    refuses(talk, request_id, payload, match="not offered")


def test_get_requests_not_offered_close(talk: Conversation) -> None:
    quiet = Conversation(Offer(FEATURES, int(ProtocolFeature.REPLY_ACK)))
    quiet.say(Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.REPLY_ACK))
    with pytest.raises(ProtocolError):
        quiet.say(Request.GET_QUEUE_NUM, need_reply=True)


# ---- features


def test_features_not_offered_are_refused_and_latched(talk: Conversation) -> None:
    asked = FEATURES | Feature.RING_PACKED | Feature.LOG_ALL
    refuses(talk, Request.SET_FEATURES, U64(asked), match="log_all, ring_packed not offered")
    assert talk.session.refused_features == Feature.RING_PACKED | Feature.LOG_ALL
    assert phase_of(talk.session) is Phase.FEATURES_REFUSED
    talk.say(Request.SET_STATUS, U64(0xB))
    assert not talk.say(Request.GET_STATUS) & DeviceStatus.FEATURES_OK
    talk.say(Request.SET_FEATURES, U64(FEATURES))
    assert talk.session.refused_features == 0
    assert phase_of(talk.session) is Phase.DRIVER_NOT_STARTED


def test_protocol_features_not_offered_are_refused(talk: Conversation) -> None:
    refuses(talk, Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeature.LOG_SHMFD), match="log_shmfd not offered")


def test_features_of_running_rings_stay(running: Conversation) -> None:
    running.say(Request.SET_FEATURES, U64(FEATURES))
    assert running.session.state.enabled == (0, 1), "SET_FEATURES never disables"
    refuses(running, Request.SET_FEATURES, U64(FEATURES & ~Feature.EVENT_IDX), match="can't change")
    assert running.session.features == FEATURES


def test_without_bit_30_rings_start_enabled(talk: Conversation) -> None:
    talk.say(Request.SET_FEATURES, U64(FEATURES & ~Feature.PROTOCOL_FEATURES))
    talk.give_memory()
    talk.setup_ring(0)
    assert talk.running[0].enabled


def test_with_bit_30_rings_start_disabled(talk: Conversation) -> None:
    talk.negotiate()
    talk.give_memory()
    talk.setup_ring(0)
    talk.setup_ring(1)
    assert not talk.running[0].enabled
    assert phase_of(talk.session) is Phase.QUEUE_DISABLED
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    talk.say(Request.SET_VRING_ENABLE, VringState(1, 1))
    assert talk.effects[-2:] == [EnableRing(0, True), EnableRing(1, True)]
    assert phase_of(talk.session) is Phase.READY


def test_enable_may_come_before_everything(talk: Conversation) -> None:
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert talk.effects == []
    talk.negotiate()
    talk.give_memory()
    talk.setup_ring(0)
    assert talk.running[0].enabled


def test_enable_takes_only_0_and_1(running: Conversation) -> None:
    refuses(running, Request.SET_VRING_ENABLE, VringState(0, 2))


# ---- ring indexes, sizes, addresses, bases


@pytest.mark.parametrize("index", [2, 3, 255, 256, 65536, 2**31, 2**32 - 1])
def test_cve_2020_10723_ring_index_out_of_bounds(talk: Conversation, index: int) -> None:
    talk.negotiate()
    for request in (Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ENABLE):
        refuses(talk, request, VringState(index, 1), match="there is no ring")
    refuses(talk, Request.SET_VRING_ADDR, VringAddr(index, 0, 0, 0, 0), match="there is no ring")
    with pytest.raises(ProtocolError, match="there is no ring"):
        talk.say(Request.GET_VRING_BASE, VringState(index, 0), need_reply=True)
    if index < 256:
        for request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
            refuses(talk, request, VringFd(index, True), [new_fd()], match="there is no ring")
    assert talk.effects == [SetFeatures(FEATURES)]


@pytest.mark.parametrize("num", [0, 3, 255, 65536, 1 << 31, 0x10100])
def test_bad_sizes(talk: Conversation, num: int) -> None:
    refuses(talk, Request.SET_VRING_NUM, VringState(0, num), match="power of two")


@pytest.mark.parametrize("num", [1, 256, 32768])
def test_good_sizes(talk: Conversation, num: int) -> None:
    talk.negotiate()
    talk.give_memory()
    talk.setup_ring(0, num=num)
    assert talk.running[0].num == num


def test_cve_2019_14818_repeated_set_vring_num(running: Conversation) -> None:
    before = open_fds()
    for _ in range(50):
        running.say(Request.SET_VRING_NUM, VringState(0, 256))
    assert running.effects == []
    refuses(running, Request.SET_VRING_NUM, VringState(0, 512), match="running")
    assert running.running[0].num == 256
    assert open_fds() == before


def test_cve_2019_14818_surplus_descriptors(talk: Conversation) -> None:
    talk.negotiate()
    surplus = [
        (Request.GET_FEATURES, None, 1),
        (Request.SET_VRING_NUM, VringState(0, 256), 1),
        (Request.GET_VRING_BASE, VringState(0, 0), 8),
        (Request.SET_VRING_KICK, VringFd(0, True), 2),
        (Request.SET_VRING_CALL, VringFd(0, False), 1),
        (Request.SET_VRING_CALL, VringFd(0, True), 0),
        (Request.SET_MEM_TABLE, MemTable((REGION,)), 2),
        (Request.SET_MEM_TABLE, MemTable((REGION,)), 0),
        (Request.ADD_MEM_REG, MemSlot(REGION), 0),
        (Request.ADD_MEM_REG, MemSlot(REGION), 2),
        (Request.REM_MEM_REG, MemSlot(REGION), 2),
    ]
    before = open_fds()
    for request, payload, count in surplus:
        with pytest.raises(ProtocolError, match="file descriptors came"):
            talk.say(request, payload, [new_fd() for _ in range(count)], need_reply=True)
        assert open_fds() == before


@pytest.mark.parametrize("addr", [ring_addr(0, shift=8), VringAddr(0, 0, 0, 2, 0), VringAddr(0, 0, 0, 0, 1)])
def test_misaligned_rings(talk: Conversation, addr: VringAddr) -> None:
    refuses(talk, Request.SET_VRING_ADDR, addr, match="aligned")


def test_log_flag_is_refused(talk: Conversation) -> None:
    refuses(talk, Request.SET_VRING_ADDR, VringAddr(0, 1, 0, 0, 0), match="dirty logging")


def test_addresses_of_a_running_ring(running: Conversation) -> None:
    running.say(Request.SET_VRING_ADDR, ring_addr(0))
    assert running.effects == []
    running.say(Request.SET_VRING_ADDR, ring_addr(0, shift=0x8000))
    stop, start = running.effects
    assert stop == StopRing(0)
    assert isinstance(start, StartRing)
    assert (start.ring.desc, start.ring.base) == (REGION.uva + 0x8000, running.base)


def test_bases(talk: Conversation) -> None:
    refuses(talk, Request.SET_VRING_BASE, VringState(0, 0x10000), match="16-bit")
    talk.negotiate()
    talk.give_memory()
    talk.setup_ring(0, base=0x8000)
    assert talk.running[0].base == 0x8000
    refuses(talk, Request.SET_VRING_BASE, VringState(0, 0), match="running")


# ---- starting and stopping


@pytest.mark.parametrize("last", ["features", "memory", "num", "addr", "kick", "call"])
def test_a_ring_starts_when_the_last_piece_comes(talk: Conversation, last: str) -> None:
    steps: dict[str, Callable[[], object]] = {
        "features": lambda: talk.negotiate(),
        "memory": lambda: talk.give_memory(),
        "num": lambda: talk.say(Request.SET_VRING_NUM, VringState(1, 64)),
        "addr": lambda: talk.say(Request.SET_VRING_ADDR, ring_addr(1)),
        "kick": lambda: talk.say(Request.SET_VRING_KICK, VringFd(1, True), [new_fd()]),
        "call": lambda: talk.say(Request.SET_VRING_CALL, VringFd(1, False)),
    }
    final = steps.pop(last)
    for step in steps.values():
        step()
    assert not talk.of(StartRing)
    final()
    (start,) = talk.of(StartRing)
    assert start.ring.call_fd is None
    assert start.ring.kick_fd is not None
    assert talk.session.state.started == (1,)
    assert talk.session.phase is Phase.DRIVER_NOT_STARTED


def test_a_ring_that_cannot_be_translated_is_tried_again(talk: Conversation) -> None:
    talk.negotiate()
    talk.give_memory()
    talk.fail(StartRing, RingNotReady(), RingNotReady())
    talk.setup_ring(0)
    talk.say(Request.GET_STATUS)
    talk.say(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert len(talk.of(StartRing)) == 1, "not after messages that change nothing"
    talk.say(Request.ADD_MEM_REG, MemSlot(MemRegion(GIB, 4096, GIB, 0)), [new_fd()])
    assert not talk.running
    talk.say(Request.SET_VRING_ADDR, ring_addr(0))
    assert talk.running[0].enabled


def test_kick_before_call_as_qemu_may_send_them(talk: Conversation) -> None:
    talk.negotiate()
    talk.give_memory()
    talk.say(Request.SET_VRING_NUM, VringState(0, 256))
    talk.say(Request.SET_VRING_ADDR, ring_addr(0))
    talk.say(Request.SET_VRING_KICK, VringFd(0, False))
    assert not talk.running
    talk.say(Request.SET_VRING_CALL, VringFd(0, True), [new_fd()])
    assert talk.running[0].kick_fd is None


def test_a_refused_start_forgets_the_kick(talk: Conversation) -> None:
    talk.negotiate()
    talk.give_memory()
    talk.say(Request.SET_VRING_NUM, VringState(0, 256))
    talk.say(Request.SET_VRING_ADDR, ring_addr(0))
    talk.say(Request.SET_VRING_CALL, VringFd(0, False))
    talk.fail(StartRing, PvswitchError("no room"))
    assert talk.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()], need_reply=True) == 1
    assert talk.say(Request.SET_VRING_NUM, VringState(0, 128), need_reply=True) == 0
    assert len(talk.of(StartRing)) == 1
    talk.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()])
    assert talk.running[0].num == 128


def test_get_vring_base_stops_and_a_new_kick_starts(running: Conversation) -> None:
    assert running.say(Request.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 7)
    assert running.effects == [StopRing(0)]
    assert running.session.state.started == (1,)
    assert running.say(Request.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 7), "the base is kept"
    running.say(Request.SET_VRING_NUM, VringState(0, 256))
    running.say(Request.SET_VRING_ADDR, ring_addr(0))
    running.say(Request.SET_VRING_CALL, VringFd(0, True), [new_fd()])
    assert running.effects == [StopRing(0)]
    running.say(Request.SET_VRING_KICK, VringFd(0, True), [new_fd()])
    assert running.running[0].base == 7
    assert running.running[0].enabled, "being enabled outlives a stop"


def test_a_new_kick_restarts_and_a_new_call_does_not(running: Conversation) -> None:
    call = new_fd()
    running.say(Request.SET_VRING_CALL, VringFd(1, True), [call])
    assert running.effects == [SetCall(1, call)]
    kick = new_fd()
    running.say(Request.SET_VRING_KICK, VringFd(1, True), [kick])
    assert running.effects[1] == StopRing(1)
    assert (running.running[1].kick_fd, running.running[1].call_fd) == (kick, call)
    running.say(Request.SET_VRING_CALL, VringFd(1, False))
    assert running.effects[-1] == SetCall(1, None)


def test_a_refused_call_leaves_the_old_one(running: Conversation) -> None:
    old = running.running[1].call_fd
    running.fail(SetCall, OSError(errno.EINVAL, "not writable"))
    before = open_fds()
    assert running.say(Request.SET_VRING_CALL, VringFd(1, True), [new_fd()], need_reply=True) == 1
    assert open_fds() == before
    running.say(Request.SET_VRING_KICK, VringFd(1, True), [new_fd()])
    assert running.running[1].call_fd == old


def test_a_ring_that_cannot_be_stopped_closes(running: Conversation) -> None:
    running.fail(StopRing, OSError(errno.EIO, "stuck"))
    with pytest.raises(ProtocolError, match="couldn't be stopped"):
        running.say(Request.SET_VRING_KICK, VringFd(1, True), [new_fd()], need_reply=True)


def test_the_error_descriptor_is_closed(running: Conversation) -> None:
    before = open_fds()
    running.say(Request.SET_VRING_ERR, VringFd(0, True), [new_fd()])
    running.say(Request.SET_VRING_ERR, VringFd(0, False))
    assert open_fds() == before


# ---- the rest


def test_reset_owner_is_ignored(running: Conversation) -> None:
    running.say(Request.RESET_OWNER)
    assert running.effects == []
    assert running.session.phase is Phase.READY


def test_status_0_touches_no_ring(running: Conversation) -> None:
    running.say(Request.SET_STATUS, U64(0xF))
    assert running.say(Request.GET_STATUS) == 0xF
    running.say(Request.SET_STATUS, U64(0))
    assert running.effects == []
    assert running.say(Request.GET_VRING_BASE, VringState(1, 0)).num == running.base
    refuses(running, Request.SET_STATUS, U64(256))


def test_rarp_carries_the_mac(running: Conversation) -> None:
    running.say(Request.SEND_RARP, RarpMac(b"\x52\x54\x00\x01\x02\x03"))
    assert running.effects == [SendRarp(b"\x52\x54\x00\x01\x02\x03")]


@pytest.mark.parametrize("mtu", [68, 1500, 9000, 65535])
def test_every_real_mtu_is_taken(running: Conversation, mtu: int) -> None:
    assert running.say(Request.NET_SET_MTU, U64(mtu), need_reply=True) == 0
    assert running.effects == [SetMtu(mtu)]
    assert running.session.state.mtu == mtu


@pytest.mark.parametrize("mtu", [0, 67, 65536, 2**32 + 1500])
def test_what_is_no_mtu_is_refused(running: Conversation, mtu: int) -> None:
    refuses(running, Request.NET_SET_MTU, U64(mtu), match="isn't an MTU")


def test_a_bug_in_the_back_end_leaks_no_descriptor(running: Conversation) -> None:
    work = open_fds()
    running.fail(AddRegion, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        running.say(Request.ADD_MEM_REG, MemSlot(MemRegion(GIB, 4096, GIB, 0)), [new_fd()])
    assert open_fds() == work
