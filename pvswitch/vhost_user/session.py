# SPDX-License-Identifier: Apache-2.0
"""One front end's conversation, without I/O: messages in, effects and replies out.

`Session.handle(message)` is a generator. It yields effects (`backend.py`) in the order in which they must
happen; the caller carries each one out and sends its result in, or throws what the back end raised. It
returns the reply to write, or None, or raises `ProtocolError`, after which the connection is to be
closed. `connection.py` is the caller; tests call it with scripted results.

A ring has two independent properties. It is *started* when the features, its size, its addresses, its
kick and its call are known and the back end could translate the addresses; GET_VRING_BASE stops it, and
takes its kick away, so that the next start waits for a new one. It is *enabled* by SET_VRING_ENABLE at
any time, or by features without bit 30.

On a running ring: a new call takes effect at once; a new kick or other addresses restart the ring where
it stopped; a new size or base is refused, as Linux vhost does (VHOST_SET_VRING_NUM answers EBUSY there).

Descriptors: a message's belong to its bag, which is closed when the message is done; a ring's kick and
call are kept here until replaced, until the ring stops (kick) or until `close()`. The error descriptor
(SET_VRING_ERR) is closed at once: the switch reports broken rings through its own interface.

Source: QEMU docs/interop/vhost-user.rst, sections "Ring states" and "Front-end message types".
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pvswitch.vhost_user.backend import (
    BACKEND_ERRORS,
    AddRegion,
    Effect,
    EnableRing,
    Region,
    RemoveRegion,
    ReplaceMemory,
    RingNotReady,
    RingSetup,
    SendRarp,
    SetCall,
    SetFeatures,
    SetMtu,
    StartRing,
    StopRing,
)
from pvswitch.vhost_user.fds import FdBag, OwnedFd
from pvswitch.vhost_user.features import (
    DeviceStatus,
    Feature,
    ProtocolFeature,
    feature_names,
    protocol_feature_names,
)
from pvswitch.vhost_user.memory import MemoryMap, Refused
from pvswitch.vhost_user.messages import (
    MAX_PAYLOAD,
    MAX_RING_SIZE,
    MESSAGES,
    NEED_REPLY,
    U64,
    VERSION,
    Empty,
    Header,
    MemRegion,
    MemSlot,
    MemTable,
    MessageError,
    MessageSpec,
    Payload,
    RarpMac,
    Request,
    VringAddr,
    VringFd,
    VringState,
    encode_reply,
    request_name,
)

MEMORY_SLOTS = 509
"""What GET_MAX_MEM_SLOTS answers: as many as the kernel's vhost and KVM allow by default."""
MTU_MIN, MTU_MAX = 68, 65535
"""Bytes; RFC 791's least datagram, and the largest value of the device's configuration field."""


class ProtocolError(Exception):
    """The peer broke the protocol, or was refused without asking for an answer: close the connection."""


class Phase(StrEnum):
    """How far a front end has come; the port's link reason follows from it."""

    WAITING_FOR_FRONTEND = "waiting_for_frontend"
    DRIVER_NOT_STARTED = "driver_not_started"
    FEATURES_REFUSED = "features_refused"
    QUEUE_DISABLED = "queue_disabled"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Offer:
    """What the back end offers: feature bits, with PROTOCOL_FEATURES (30) among them, and limits."""

    features: int
    protocol_features: int
    queue_pairs: int = 1
    memory_slots: int = MEMORY_SLOTS


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came; `handle()` closes what is left in `fds`."""

    header: Header
    payload: bytes = b""
    fds: FdBag = field(default_factory=FdBag)


@dataclass(frozen=True, slots=True)
class SessionState:
    """What there is to show of a session; `features` is None until SET_FEATURES was granted."""

    phase: Phase
    features: int | None
    refused_features: int
    protocol_features: int
    status: int
    mtu: int | None
    started: tuple[int, ...]
    enabled: tuple[int, ...]
    regions: int
    memory_bytes: int


@dataclass(slots=True)
class _Ring:
    """One ring. `kick` and `call` are None until their message has come."""

    index: int
    num: int = 0
    addr: VringAddr | None = None
    base: int = 0
    kick: OwnedFd | None = None
    call: OwnedFd | None = None
    started: bool = False
    enabled: bool = False

    def setup(self, features: int) -> RingSetup | None:
        """What the back end needs to start it, or None while something is missing."""
        if not self.num or self.addr is None or self.kick is None or self.call is None:
            return None
        addr = self.addr
        return RingSetup(
            index=self.index,
            num=self.num,
            desc=addr.desc,
            avail=addr.avail,
            used=addr.used,
            base=self.base,
            kick_fd=self.kick.fd,
            call_fd=self.call.fd,
            features=features,
            enabled=self.enabled,
        )

    def set_kick(self, kick: OwnedFd | None) -> None:
        """Replace the kick, closing the old one; the ring must not be running."""
        if self.kick is not None:
            self.kick.close()
        self.kick = kick

    def set_call(self, call: OwnedFd | None) -> None:
        """Replace the call, closing the old one; a back end that used it must have let it go."""
        if self.call is not None:
            self.call.close()
        self.call = call


Work = Generator[Effect, int | None, Payload | None]
Answer = Payload | Work | None


class Session:
    """The state machine of one connection. Not thread-safe; one message at a time."""

    def __init__(self, offer: Offer) -> None:
        """A new connection: nothing negotiated, nothing known."""
        self.offer = offer
        self.features: int | None = None
        self.refused_features = 0
        self.protocol_features = 0
        self.status = 0
        self.mtu: int | None = None
        self._memory = MemoryMap()
        self._rings = [_Ring(index) for index in range(2 * offer.queue_pairs)]

    # ---- what there is to show

    @property
    def phase(self) -> Phase:
        """How far the front end has come: READY when a pair has both rings started and enabled."""
        if self.features is None:
            return Phase.FEATURES_REFUSED if self.refused_features else Phase.DRIVER_NOT_STARTED
        pairs = [pair for pair in zip(self._rings[::2], self._rings[1::2], strict=True) if all(r.started for r in pair)]
        if not pairs:
            return Phase.DRIVER_NOT_STARTED
        return Phase.READY if any(all(r.enabled for r in pair) for pair in pairs) else Phase.QUEUE_DISABLED

    @property
    def state(self) -> SessionState:
        """A snapshot for the port's state."""
        return SessionState(
            phase=self.phase,
            features=self.features,
            refused_features=self.refused_features,
            protocol_features=self.protocol_features,
            status=self.status,
            mtu=self.mtu,
            started=tuple(ring.index for ring in self._rings if ring.started),
            enabled=tuple(ring.index for ring in self._rings if ring.enabled),
            regions=len(self._memory.regions),
            memory_bytes=self._memory.size,
        )

    # ---- one message

    def handle(self, message: Message) -> Generator[Effect, int | None, bytes | None]:
        """Work on one message and close its descriptors; see the module's description."""
        with message.fds:
            header = message.header
            check_header(header)
            name = request_name(header.request)
            acknowledged = bool(header.flags & NEED_REPLY and self.protocol_features & ProtocolFeature.REPLY_ACK)
            spec = MESSAGES.get(header.request)
            try:
                answer = yield from self._serve(spec, message)
            except MessageError as error:
                raise ProtocolError(f"{name}: {error}") from error
            except (Refused, *BACKEND_ERRORS) as error:
                if not acknowledged or (spec is not None and spec.reply is not None):
                    raise ProtocolError(f"{name}: {error}") from error
                return encode_reply(header.request, U64(1))
            if answer is not None:
                return encode_reply(header.request, answer)
            return encode_reply(header.request, U64(0)) if acknowledged else None

    def close(self) -> None:
        """Close every descriptor that is kept; the back end must have let go of them (`disconnected()`)."""
        for ring in self._rings:
            ring.started = False
            ring.set_kick(None)
            ring.set_call(None)

    def _serve(self, spec: MessageSpec | None, message: Message) -> Work:
        """Gate, decode and dispatch; then start whatever can be started now."""
        if spec is None or not spec.offered(self.offer.features, self.offer.protocol_features):
            raise Refused("it is not offered")
        payload = spec.payload.unpack(message.payload)
        spec.fds.check(payload, len(message.fds))
        outcome = _HANDLERS[spec.request](self, payload, message.fds)
        answer = (yield from outcome) if isinstance(outcome, Generator) else outcome
        if spec.request in _MAY_START:
            yield from self._start_rings()
        return answer

    # ---- rings

    def _ring(self, index: int) -> _Ring:
        if index >= len(self._rings):
            raise Refused(f"there is no ring {index}, only {len(self._rings)}")
        return self._rings[index]

    def _start_rings(self) -> Generator[Effect, int | None, None]:
        """Start every stopped ring of which all is known; one that can't be translated yet stays stopped."""
        if self.features is None or not self._memory.regions:
            return
        for ring in self._rings:
            setup = None if ring.started else ring.setup(self.features)
            if setup is None:
                continue
            try:
                yield StartRing(setup)
            except RingNotReady:
                continue
            except BACKEND_ERRORS:
                ring.set_kick(None)
                raise
            ring.started = True

    def _stop_ring(self, ring: _Ring) -> Generator[Effect, int | None, None]:
        """Stop a ring that runs and keep where it stood. A back end that can't is beyond repair: close."""
        if not ring.started:
            return
        try:
            base = yield StopRing(ring.index)
        except BACKEND_ERRORS as error:
            raise ProtocolError(f"ring {ring.index} couldn't be stopped: {error}") from error
        if base is None:
            raise TypeError("StopRing needs the ring's avail index as its result")
        ring.started = False
        ring.base = base

    @property
    def _packed(self) -> bool:
        """Whether rings are packed. Without features yet they are taken for split ones."""
        return bool((self.features or 0) & Feature.RING_PACKED)

    def _set_vring_num(self, payload: VringState, _fds: FdBag) -> None:
        ring, num = self._ring(payload.index), payload.num
        if not 0 < num <= MAX_RING_SIZE or (num & (num - 1) and not self._packed):
            wanted = "packed ring: 1" if self._packed else "split ring: a power of two up"
            raise Refused(f"{num} isn't a size for a {wanted} to {MAX_RING_SIZE}")
        if ring.started and num != ring.num:
            raise Refused(f"ring {ring.index} is running, its size can't change")
        ring.num = num

    def _set_vring_addr(self, payload: VringAddr, _fds: FdBag) -> Work:
        ring = self._ring(payload.index)
        if payload.flags:
            raise Refused(f"flags {payload.flags:#x}: dirty logging is not offered")
        if payload.desc % 16 or payload.avail % 2 or payload.used % 4:
            raise Refused(f"ring {ring.index} isn't aligned as a split ring must be (16, 2 and 4 bytes)")
        if self._packed and payload.avail % 4:
            raise Refused(f"ring {ring.index} isn't aligned as a packed ring must be (16, 4 and 4 bytes)")
        if payload != ring.addr:
            yield from self._stop_ring(ring)
            ring.addr = payload
        return None

    def _set_vring_base(self, payload: VringState, _fds: FdBag) -> None:
        # A packed ring's base has the used half in its upper 16 bits, or 0 there (virtio-user 22.11).
        ring = self._ring(payload.index)
        if payload.num > 0xFFFF and not self._packed:
            raise Refused(f"base {payload.num:#x} isn't a 16-bit index")
        if ring.started:
            raise Refused(f"ring {ring.index} is running, its base can't change")
        ring.base = payload.num

    def _get_vring_base(self, payload: VringState, _fds: FdBag) -> Work:
        ring = self._ring(payload.index)
        yield from self._stop_ring(ring)
        ring.set_kick(None)
        return VringState(ring.index, ring.base)

    def _set_vring_kick(self, payload: VringFd, fds: FdBag) -> Work:
        ring = self._ring(payload.index)
        yield from self._stop_ring(ring)
        ring.set_kick(fds.take())
        return None

    def _set_vring_call(self, payload: VringFd, fds: FdBag) -> Work:
        ring = self._ring(payload.index)
        if ring.started:
            yield SetCall(ring.index, fds.peek())
        ring.set_call(fds.take())
        return None

    def _set_vring_err(self, payload: VringFd, _fds: FdBag) -> None:
        self._ring(payload.index)

    def _set_vring_enable(self, payload: VringState, _fds: FdBag) -> Work:
        ring = self._ring(payload.index)
        if payload.num > 1:
            raise Refused(f"a ring is enabled (1) or disabled (0), not {payload.num}")
        yield from self._enable(ring, bool(payload.num))
        return None

    def _enable(self, ring: _Ring, enabled: bool) -> Generator[Effect, int | None, None]:
        if ring.started:
            yield EnableRing(ring.index, enabled)
        ring.enabled = enabled

    # ---- memory

    def _set_mem_table(self, payload: MemTable, fds: FdBag) -> Work:
        memory = MemoryMap.build(payload.regions, self.offer.memory_slots)
        yield ReplaceMemory(tuple(_region(r, fds.peek(i)) for i, r in enumerate(payload.regions)))
        self._memory = memory
        return None

    def _add_mem_reg(self, payload: MemSlot, fds: FdBag) -> Work:
        memory = self._memory.add(payload.region, self.offer.memory_slots)
        yield AddRegion(_region(payload.region, fds.peek()))
        self._memory = memory
        return None

    def _rem_mem_reg(self, payload: MemSlot, _fds: FdBag) -> Work:
        region = self._memory.find(payload.region)
        yield RemoveRegion(_region(region, None))
        self._memory = self._memory.without(region)
        return None

    def _get_max_mem_slots(self, _payload: Empty, _fds: FdBag) -> U64:
        return U64(self.offer.memory_slots)

    # ---- features, status and the rest

    def _get_features(self, _payload: Empty, _fds: FdBag) -> U64:
        return U64(self.offer.features)

    def _set_features(self, payload: U64, _fds: FdBag) -> Work:
        features, started = payload.value, any(ring.started for ring in self._rings)
        refused = features & ~self.offer.features
        if refused:
            self.refused_features = refused
            self.status &= ~DeviceStatus.FEATURES_OK
            if not started:
                self.features = None
            raise Refused(f"{', '.join(feature_names(refused))} not offered")
        if started and features != self.features:
            raise Refused("rings are running, their features can't change")
        yield SetFeatures(features)
        self.features, self.refused_features = features, 0
        if not features & Feature.PROTOCOL_FEATURES:
            for ring in self._rings:
                yield from self._enable(ring, True)
        return None

    def _get_protocol_features(self, _payload: Empty, _fds: FdBag) -> U64:
        return U64(self.offer.protocol_features)

    def _set_protocol_features(self, payload: U64, _fds: FdBag) -> None:
        refused = payload.value & ~self.offer.protocol_features
        if refused:
            raise Refused(f"{', '.join(protocol_feature_names(refused))} not offered")
        self.protocol_features = payload.value

    def _get_queue_num(self, _payload: Empty, _fds: FdBag) -> U64:
        return U64(self.offer.queue_pairs)

    def _set_owner(self, _payload: Empty, _fds: FdBag) -> None:
        """Nothing to do: a connection has one owner anyway."""

    def _reset_owner(self, _payload: Empty, _fds: FdBag) -> None:
        """Deprecated, and to be ignored."""

    def _send_rarp(self, payload: RarpMac, _fds: FdBag) -> Work:
        yield SendRarp(payload.mac)
        return None

    def _net_set_mtu(self, payload: U64, _fds: FdBag) -> Work:
        if not MTU_MIN <= payload.value <= MTU_MAX:
            raise Refused(f"{payload.value} isn't an MTU: {MTU_MIN} to {MTU_MAX}")
        yield SetMtu(payload.value)
        self.mtu = payload.value
        return None

    def _set_status(self, payload: U64, _fds: FdBag) -> None:
        # Status 0 is a reset, but QEMU 7.2 to 8.0 sends it before GET_VRING_BASE: rings and indices stay.
        if payload.value > 0xFF:
            raise Refused(f"{payload.value:#x} isn't a device status")
        self.status = payload.value
        if self.refused_features:
            self.status &= ~DeviceStatus.FEATURES_OK

    def _get_status(self, _payload: Empty, _fds: FdBag) -> U64:
        return U64(self.status)


def _region(region: MemRegion, fd: int | None) -> Region:
    return Region(region.gpa, region.size, region.uva, region.offset, -1 if fd is None else fd)


def check_header(header: Header) -> None:
    """Raise ProtocolError for a header that no request has; done before any payload is waited for."""
    if header.flags & ~NEED_REPLY != VERSION:
        raise ProtocolError(f"{request_name(header.request)}: flags {header.flags:#x} aren't a request's")
    if header.size > MAX_PAYLOAD:
        raise ProtocolError(f"{request_name(header.request)}: {header.size} bytes are no payload")


_HANDLERS: dict[Request, Callable[[Session, Any, FdBag], Answer]] = {
    spec.request: getattr(Session, f"_{spec.request.name.lower()}") for spec in MESSAGES.values()
}
"""The method for each row of the table, by name; a row without one fails here, at import."""

_MAY_START = frozenset(
    {
        Request.SET_FEATURES,
        Request.SET_MEM_TABLE,
        Request.ADD_MEM_REG,
        Request.SET_VRING_NUM,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_BASE,
        Request.SET_VRING_KICK,
        Request.SET_VRING_CALL,
    }
)
"""Messages after which a ring may have become ready."""
