# SPDX-License-Identifier: Apache-2.0
"""Random and hostile conversations: effects stay legal, descriptors are closed once, and nothing but
ProtocolError comes out. `Conversation.perform` asserts that effects are legal.
"""

from __future__ import annotations

import errno
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.backend import (
    AddRegion,
    EnableRing,
    ReplaceMemory,
    RingNotReady,
    SetCall,
    SetMtu,
    StartRing,
    StopRing,
)
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import (
    MESSAGES,
    NEED_REPLY,
    U64,
    VERSION,
    Header,
    MemRegion,
    MemSlot,
    MemTable,
    Payload,
    Request,
    VringAddr,
    VringFd,
    VringState,
)
from pvswitch.vhost_user.session import Offer, ProtocolError

from .fakes import FEATURES, PROTOCOL, REGION, Conversation, decode_reply, new_fd, open_fds, ring_addr

FORMATS = int(Feature.RING_PACKED | Feature.IN_ORDER)
OFFER = Offer(features=FEATURES | FORMATS, protocol_features=PROTOCOL)

indexes = st.one_of(st.integers(0, 1), st.integers(0, 1), st.sampled_from([2, 255, 256, 2**32 - 1]))
pages = st.integers(0, 6).map(lambda page: page * 0x1000)
regions = st.builds(
    MemRegion,
    pages,
    st.sampled_from([0x1000, 0x2000, 0, 2**64 - 1]),
    st.one_of(pages, st.just(2**64 - 0x1000)),
    st.sampled_from([0, 0x1000, 2**63]),
)
vring_fds = st.builds(VringFd, indexes.map(lambda index: index & 0xFF), st.booleans())
numbers = st.one_of(st.integers(0, 1), st.sampled_from([256, 1024, 32768, 65535, 65536, 3, 0x8000_8000, 2**32 - 1]))
states = st.builds(VringState, indexes, numbers)
addresses = st.one_of(
    indexes.filter(lambda index: index < 2).map(ring_addr),
    st.builds(VringAddr, indexes, st.integers(0, 1), pages, pages, pages),
)
values = st.sampled_from(
    [0, 1, FEATURES, FEATURES | FORMATS, PROTOCOL, FEATURES & ~(1 << 30), 1 << 33, 1 << 26, 2**64 - 1, 1500]
)
well_formed: dict[type[Payload], st.SearchStrategy[Payload]] = {
    U64: st.builds(U64, values),
    VringState: states,
    VringAddr: addresses,
    VringFd: vring_fds,
    MemTable: st.builds(MemTable, st.lists(regions, max_size=8).map(tuple)),
    MemSlot: st.builds(MemSlot, regions),
}
failures = st.sampled_from(
    [
        RingNotReady(),
        OSError(errno.ENOMEM, "no memory"),
        PvswitchError("refused"),
        OSError(errno.EBADF, "bad"),
    ]
)


class HostileFrontEnd(RuleBasedStateMachine):
    """One process, many connections: a ProtocolError ends one and begins the next."""

    def __init__(self) -> None:
        super().__init__()
        self.before = open_fds()
        self.talk = Conversation(OFFER)

    @initialize(formats=st.sampled_from([0, FORMATS]))
    def begin_legally(self, formats: int) -> None:
        self.talk.negotiate(FEATURES | formats)

    def hang_up(self) -> None:
        self.talk.session.close()
        self.talk.session.close()
        assert open_fds() == self.before
        self.talk = Conversation(OFFER)

    def tell(self, request: int, flags: int, body: bytes, fds: int) -> None:
        try:
            reply = self.talk.raw(Header(request, flags, len(body)), body, [new_fd() for _ in range(fds)])
        except ProtocolError:
            self.hang_up()
            return
        if reply is not None:
            decode_reply(request, reply)
        spec = MESSAGES.get(request)
        asked = spec is not None and spec.reply is not None
        assert reply is None or asked or flags & NEED_REPLY

    @rule(
        request=st.sampled_from(sorted(MESSAGES)),
        need_reply=st.booleans(),
        right=st.booleans(),
        data=st.data(),
    )
    def nearly_legal(self, request: int, need_reply: bool, right: bool, data: st.DataObject) -> None:
        kind = MESSAGES[request].payload
        payload = data.draw(well_formed[kind]) if kind in well_formed else None
        body = payload.pack() if payload is not None else bytes(8 if kind.__name__ == "RarpMac" else 0)
        fds = {MemTable: body[0] if body else 0, VringFd: int(getattr(payload, "has_fd", False))}.get(kind, 0)
        fds += request == Request.ADD_MEM_REG
        if not right:
            fds = data.draw(st.integers(0, 8))
        self.tell(request, VERSION | (NEED_REPLY if need_reply else 0), body, fds)

    @rule(
        request=st.one_of(st.integers(0, 50), st.integers(0, 2**32 - 1)),
        flags=st.sampled_from([VERSION, VERSION | NEED_REPLY, 0, 5, 2**32 - 1]),
        body=st.binary(max_size=48),
        fds=st.integers(0, 8),
    )
    def garbage(self, request: int, flags: int, body: bytes, fds: int) -> None:
        self.tell(request, flags, body, fds)

    @rule(index=st.integers(0, 1))
    def ring_from_the_book(self, index: int) -> None:
        try:
            self.talk.say(Request.SET_MEM_TABLE, MemTable((REGION,)), [new_fd()])
            self.talk.setup_ring(index)
        except ProtocolError:
            self.hang_up()

    @rule(
        effect=st.sampled_from([AddRegion, ReplaceMemory, StartRing, StopRing, SetCall, EnableRing, SetMtu]),
        error=failures,
    )
    def next_effect_fails(self, effect: type, error: Exception) -> None:
        if not isinstance(error, RingNotReady) or effect is StartRing:
            self.talk.fail(effect, error)

    @precondition(lambda self: self.talk.running)
    @rule()
    def driver_stops(self) -> None:
        for index in sorted(self.talk.running):
            try:
                self.talk.say(Request.GET_VRING_BASE, VringState(index, 0))
            except ProtocolError:
                self.hang_up()
                return

    @invariant()
    def session_and_back_end_agree(self) -> None:
        assert self.talk.session.state.started == tuple(sorted(self.talk.running))

    @invariant()
    def running_rings_have_their_descriptors_and_no_others_are_open(self) -> None:
        for ring in self.talk.running.values():
            assert ring.kick_fd is None or os.fstat(ring.kick_fd)
        assert open_fds() - self.before <= 4, "two rings keep a kick and a call each, and nothing else is kept"

    def teardown(self) -> None:
        self.hang_up()


TestHostileFrontEnd = HostileFrontEnd.TestCase
TestHostileFrontEnd.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
