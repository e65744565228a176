# SPDX-License-Identifier: Apache-2.0
"""Whole conversations in the order in which real front ends speak."""

from __future__ import annotations

from typing import TypedDict

from pvswitch.vhost_user.backend import (
    AddRegion,
    SetFeatures,
    SetMtu,
    StartRing,
)
from pvswitch.vhost_user.features import Feature, ProtocolFeature
from pvswitch.vhost_user.messages import (
    U64,
    MemRegion,
    MemSlot,
    MemTable,
    Request,
    VringFd,
    VringState,
)
from pvswitch.vhost_user.session import Phase

from .fakes import FEATURES, OFFER, PROTOCOL, REGION, Conversation, new_fd, phase_of, ring_addr

GIB = 1 << 30


class Ack(TypedDict):
    need_reply: bool


def test_qemu_order(talk: Conversation) -> None:
    """QEMU 7.2: connect, DRIVER_OK, guest reboot (stop, start), with what it expects to hear."""
    assert talk.say(Request.GET_FEATURES) == OFFER.features
    assert talk.say(Request.GET_PROTOCOL_FEATURES) == PROTOCOL
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(PROTOCOL))
    assert talk.say(Request.GET_QUEUE_NUM) == 1
    assert talk.say(Request.GET_MAX_MEM_SLOTS) == 509
    talk.say(Request.SET_OWNER)
    assert talk.say(Request.GET_FEATURES) == OFFER.features
    for index in (0, 1):
        talk.say(Request.SET_VRING_CALL, VringFd(index, True), [new_fd()])
        talk.say(Request.SET_VRING_ERR, VringFd(index, True), [new_fd()])
    assert phase_of(talk.session) is Phase.DRIVER_NOT_STARTED
    for boot in range(2):
        assert talk.say(Request.NET_SET_MTU, U64(1500), need_reply=True) == 0
        for index in (0, 1):
            talk.say(Request.SET_VRING_ENABLE, VringState(index, 1))
        talk.say(Request.SET_FEATURES, U64(FEATURES))
        if boot == 0:
            assert talk.say(Request.ADD_MEM_REG, MemSlot(REGION), [new_fd()], need_reply=True) == 0
        for index in (0, 1):
            talk.say(Request.SET_VRING_NUM, VringState(index, 256))
            talk.say(Request.SET_VRING_BASE, VringState(index, 0))
            talk.say(Request.SET_VRING_ADDR, ring_addr(index))
            talk.say(Request.SET_VRING_KICK, VringFd(index, True), [new_fd()])
            assert index in talk.running, "its call was known already"
            talk.say(Request.SET_VRING_CALL, VringFd(index, True), [new_fd()])
        assert phase_of(talk.session) is Phase.READY
        assert talk.say(Request.GET_STATUS) == 0
        talk.say(Request.SET_STATUS, U64(7))
        for index in (0, 1):
            talk.say(Request.SET_VRING_ENABLE, VringState(index, 0))
        talk.say(Request.SET_STATUS, U64(0))
        for index in (0, 1):
            assert talk.say(Request.GET_VRING_BASE, VringState(index, 0)) == VringState(index, talk.base)
        assert not talk.running
        assert phase_of(talk.session) is Phase.DRIVER_NOT_STARTED
    assert [type(effect) for effect in talk.effects[:4]] == [SetMtu, SetFeatures, AddRegion, StartRing]


def test_virtio_user_order(talk: Conversation) -> None:
    """DPDK 22.11's virtio-user: CALL makes the queue, status in between, KICK, ENABLE; then a port stop."""
    ack: Ack = {"need_reply": True}
    talk.say(Request.SET_OWNER)
    assert talk.say(Request.GET_FEATURES) == OFFER.features
    assert talk.say(Request.GET_PROTOCOL_FEATURES) == PROTOCOL
    wanted = int(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.STATUS)
    talk.say(Request.SET_PROTOCOL_FEATURES, U64(wanted))
    assert talk.say(Request.GET_QUEUE_NUM) == 1
    for status in (0, 1, 3):
        assert talk.say(Request.SET_STATUS, U64(status), **ack) == 0
    for index in (0, 1):
        talk.say(Request.SET_VRING_CALL, VringFd(index, True), [new_fd()])
    features = int(Feature.VERSION_1 | Feature.MRG_RXBUF | Feature.PROTOCOL_FEATURES)
    assert talk.say(Request.SET_FEATURES, U64(features), **ack) == 0
    assert talk.say(Request.SET_STATUS, U64(0xB), **ack) == 0
    assert talk.say(Request.GET_STATUS) == 0xB
    table = MemTable((MemRegion(REGION.uva, REGION.size, REGION.uva, 0),))
    assert talk.say(Request.SET_MEM_TABLE, table, [new_fd()], **ack) == 0
    for index in (0, 1):
        talk.say(Request.SET_VRING_NUM, VringState(index, 1024))
        talk.say(Request.SET_VRING_BASE, VringState(index, 0))
        talk.say(Request.SET_VRING_ADDR, ring_addr(index))
        talk.say(Request.SET_VRING_KICK, VringFd(index, True), [new_fd()])
    assert phase_of(talk.session) is Phase.QUEUE_DISABLED
    for index in (0, 1):
        talk.say(Request.SET_VRING_ENABLE, VringState(index, 1))
    assert talk.say(Request.SET_STATUS, U64(0xF), **ack) == 0
    assert phase_of(talk.session) is Phase.READY
    for index in (0, 1):
        talk.say(Request.SET_VRING_ENABLE, VringState(index, 0))
    for index in (0, 1):
        assert talk.say(Request.GET_VRING_BASE, VringState(index, 0)).num == talk.base
    assert not talk.running
