# SPDX-License-Identifier: Apache-2.0
"""The bridge, step by step, against the reference switch: frames, FDB, reports and every counter after each step."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pvswitch import model
from pvswitch.datapath import COUNTERS
from pvswitch.driver import Layout
from tests.bench_switch import (
    ANY_LAYOUT,
    EVENT_IDX,
    INDIRECT,
    MODERN,
    MRG_RXBUF,
    RX,
    TX,
    VERSION_1,
    BenchSwitch,
    BridgeSetup,
    PortSetup,
    guest_conf,
)
from tests.mirrors import SNAPLENS, Mirror
from tests.property.reference import Address, Bridge, Guest, Port, ReferenceSwitch
from tests.vlans import ALL, Mode

PORTS = ("p0", "p1", "p2", "p3")
BRIDGES = ("br0", "br1")
QUEUE = 16
HOSTS = [bytes([2, 0, 0, 0, 0, i]) for i in range(1, 8)]
BROADCAST = b"\xff" * 6
GROUPS = [BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("333300000001"), bytes.fromhex("0180c2000010")]
LINK_LOCAL = [bytes.fromhex("0180c20000") + bytes([i]) for i in (0, 1, 2, 0x0E)]
FEATURES = [
    MODERN,
    MODERN & ~MRG_RXBUF,
    MODERN & ~EVENT_IDX,
    MODERN & ~INDIRECT,
    VERSION_1 | ANY_LAYOUT,
    ANY_LAYOUT,
]

destinations = st.sampled_from(HOSTS * 3 + GROUPS + LINK_LOCAL)
sources = st.sampled_from(HOSTS * 4 + [bytes(6), GROUPS[1]])
# VLANs 7 and 5, one that is reserved, a priority tag
tags = st.lists(
    st.sampled_from([b"\x81\x00\x00\x07", b"\x88\xa8\x20\x05", b"\x81\x00\xff\xff", b"\x81\x00\xb0\x00"]),
    max_size=3,
).map(b"".join)
vlan_sets = st.just(ALL) | st.frozensets(st.sampled_from([0, 5, 7, 4095]), max_size=3)
modes = st.one_of(
    st.just(Mode()),
    st.builds(Mode, st.just("access"), st.sampled_from([5, 7])),
    st.builds(Mode, trunks=vlan_sets),
    st.builds(Mode, st.sampled_from(["native-tagged", "native-untagged"]), st.sampled_from([5, 7]), vlan_sets),
    st.builds(Mode, st.just("dot1q-tunnel"), st.sampled_from([5, 7]), cvlans=vlan_sets),
)
vids = st.sampled_from([0, 0, 5, 7])
TRUNK = Mode()
some_ports = st.frozensets(st.sampled_from(PORTS), max_size=2)
# Those that select an output are not to be had: the machine takes it out.
mirrors = st.builds(
    Mirror,
    some_ports,
    some_ports,
    st.frozensets(vids, max_size=2),
    st.none() | st.just("p2") | st.sampled_from(PORTS),
    st.sampled_from([5, 7, 9]),
    st.none() | st.sampled_from(SNAPLENS),
    st.booleans(),
)
# Around everything that has an edge: the head (128), the size bins, the MTUs below, one and several buffers.
sizes = st.one_of(
    st.integers(40, 60),
    st.sampled_from([0, 1, 3, 4, 46, 50, 51, 113, 114, 115, 499, 500, 501, 1496, 1500, 1501, 1509]),
    st.sampled_from([2022, 2023, 2024, 2036, 4082, 9000, 30_000]),
)
mtus = st.sampled_from([0, 50, 50, 500, 1500])
names = st.sampled_from(PORTS)
# Features and queue pairs.
guests = st.tuples(st.sampled_from(FEATURES), st.sampled_from([1, 1, 1, 3]))
bridges = st.sampled_from(BRIDGES)


@st.composite
def frames(draw: st.DrawFn, source: tuple[bytes, bytes] | None = None) -> bytes:
    """Of a source, and with tags, where they are given."""
    mac, own_tags = source or (draw(sources), draw(tags))
    head = draw(destinations) + mac + own_tags + b"\x88\xb5"
    seed = draw(st.integers(0, 255))
    return head + bytes((seed + i * 7) & 0xFF for i in range(draw(sizes)))


@st.composite
def layouts(draw: st.DrawFn) -> Layout | None:
    if draw(st.booleans()):
        return None
    cuts = draw(st.lists(st.integers(1, 400), max_size=4, unique=True).map(sorted))
    return Layout(cuts=tuple(cuts), shuffle=draw(st.booleans()))


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class BridgeMachine(RuleBasedStateMachine):
    """Each rule does the same to both, then compares.

    Guests may have several queue pairs, of which one receives at a time: the choice among several is judged by
    test_steering.py.
    """

    switch: BenchSwitch

    def __init__(self) -> None:
        super().__init__()
        self.model = ReferenceSwitch()
        self.mirrors: dict[str, list[Mirror]] = {name: [] for name in BRIDGES}

    @initialize(data=st.data(), workers=st.sampled_from([1, 1, 2, 3]))
    def build(self, data: st.DataObject, workers: int) -> None:
        self.switch = BenchSwitch(workers)
        for name in BRIDGES:
            limit, aging = data.draw(st.sampled_from([3, 4, 5, 100])), data.draw(st.sampled_from([0, 1, 10, 300]))
            self.switch.add_bridge(name, limit=limit, aging=aging)
            self.model.bridges[name] = Bridge(limit, aging)
        for i, name in enumerate(PORTS):
            self.add_port(name, data.draw(guests), "br1" if i == 3 else "br0")
            self.configure_port(name, enabled=True, mtu=data.draw(mtus), bridge=self.model.ports[name].bridge)
        self.configure_mirrors("br0", data.draw(st.just([]) | st.lists(mirrors, min_size=1, max_size=3)))

    def teardown(self) -> None:
        if hasattr(self, "switch"):  # not when the first draw failed
            self.switch.close()

    # ---- helpers ----

    def add_port(self, name: str, shape: tuple[int, int], bridge: str) -> None:
        port = self.switch.add_port(name, setup=PortSetup(bridge))
        self.model.ports[name] = Port(port.handle.ref, bridge)
        self.plug(name, shape, QUEUE)

    def plug(self, name: str, shape: tuple[int, int], post: int) -> None:
        features, pairs = shape
        guest = self.switch.attach(name, guest_conf(features, queue_size=QUEUE, queue_pairs=pairs), receiving=pairs - 1)
        mergeable = bool(features & MRG_RXBUF)
        port = self.model.ports[name]
        posted = [self.switch.post(name, post, pair=pair) for pair in range(pairs)]
        port.guest = Guest(guest.hdr_len, guest.conf.rx_buf_size, mergeable, posted)
        port.receiving, port.sending = pairs - 1, set(range(pairs))

    def set_mirrors(self, changed: dict[str, str] | None = None) -> None:
        """Have those mirrors that there can be, now that ports are on these bridges: none with a port elsewhere."""
        at = {name: port.bridge for name, port in self.model.ports.items()} | (changed or {})
        for bridge in BRIDGES:
            here = frozenset(name for name in at if at[name] == bridge)
            found = [m for m in self.mirrors[bridge] if m.port is None or m.port in here]
            usable = here - {m.port for m in found}
            fitting = [replace(m, src=m.src & usable, dst=m.dst & usable) for m in found]
            self.model.bridges[bridge].mirrors = fitting
            self.switch.mirrors[bridge] = {f"m{i}": model.Mirror.model_validate(m.keys) for i, m in enumerate(fitting)}

    def some_pair(self, name: str, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.switch.ports[name].guest.conf.queue_pairs - 1))

    def held(self, bridge: str) -> set[Address]:
        return {(vid, mac_bytes(mac)) for vid, mac in self.switch.fdb_items(bridge, expired=True)}

    # ---- traffic ----

    @rule(name=names, data=st.data(), source=st.tuples(sources, tags))
    def send(self, name: str, data: st.DataObject, source: tuple[bytes, bytes]) -> None:
        """A burst of one source in one VLAN, so that at most one address is learned."""
        port = self.model.ports[name]
        if port.guest is None:
            return
        burst = data.draw(st.lists(st.tuples(frames(source), layouts()), min_size=1, max_size=3))
        pair = self.some_pair(name, data)
        for frame, layout in burst:
            self.switch.send(name, frame, layout, pair=pair)
        self.switch.settle()
        after = self.held(port.bridge)
        for frame, _ in burst:
            self.model.transmit(name, frame, self.switch.now_s, after, pair=pair)

    @rule(name=names, frame=frames(), flags=st.sampled_from([(1, 0), (0, 1), (0, 0x80), (2, 0)]))
    def send_with_header(self, name: str, frame: bytes, flags: tuple[int, int]) -> None:
        """Offloads that were never offered make a frame malformed; other flags mean nothing."""
        port = self.model.ports[name]
        if port.guest is None:
            return
        header = struct.pack("<BB", *flags).ljust(port.guest.header, b"\0")
        self.switch.send(name, frame, header=header)
        self.switch.settle()
        bad = bool(flags[0] & 1 or flags[1])
        self.model.transmit(name, frame, self.switch.now_s, self.held(port.bridge), bad_header=bad)

    @rule(name=names, size=st.sampled_from([1, 13, 14, 17, 18, 65_568, 65_569, 69_000]), data=st.data())
    def send_odd_size(self, name: str, size: int, data: st.DataObject) -> None:
        port = self.model.ports[name]
        if port.guest is None:
            return
        frame = data.draw(frames()).ljust(size, b"\x5a")[:size]
        self.switch.send(name, frame)
        self.switch.settle()
        self.model.transmit(name, frame, self.switch.now_s, self.held(port.bridge))

    @rule(name=names, count=st.integers(0, QUEUE), data=st.data())
    def post(self, name: str, count: int, data: st.DataObject) -> None:
        guest = self.model.ports[name].guest
        if guest is not None:
            pair = self.some_pair(name, data)
            wanted = min(count, QUEUE - guest.posted[pair])
            assert self.switch.post(name, wanted, pair=pair) == wanted
            guest.posted[pair] += wanted

    # ---- time ----

    @rule(seconds=st.sampled_from([1, 2, 9, 10, 11, 301]))
    def advance(self, seconds: int) -> None:
        self.switch.advance(seconds)

    @rule(bridge=bridges)
    def sweep(self, bridge: str) -> None:
        now = self.switch.now_s
        count, gone = self.switch.fdbs[bridge].sweep(self.switch.now_ns)
        assert count == len(gone) == self.model.sweep(bridge, now)

    @rule(bridge=bridges, seconds=st.sampled_from([0, 1, 10, 300]))
    def set_aging(self, bridge: str, seconds: int) -> None:
        self.switch.fdbs[bridge].set_aging(seconds)
        self.model.bridges[bridge].aging = seconds

    # ---- FDB ----

    @rule(bridge=bridges, mac=st.sampled_from(HOSTS), vid=vids, name=names)
    def set_static(self, bridge: str, mac: bytes, vid: int, name: str) -> None:
        ref, number = self.model.ports[name].ref, 0
        try:
            self.switch.fdbs[bridge].set_static(mac, vid, ref)
        except OSError as error:
            number = error.errno or -1
        done = self.model.set_static(bridge, (vid, mac), ref, self.held(bridge))
        assert number == (0 if done else errno.ENOSPC)

    @rule(bridge=bridges, mac=st.sampled_from(HOSTS), vid=vids)
    def remove(self, bridge: str, mac: bytes, vid: int) -> None:
        was_there = self.model.bridges[bridge].table.pop((vid, mac), None) is not None
        assert self.switch.fdbs[bridge].remove(mac, vid) == was_there

    @rule(
        bridge=bridges,
        name=st.none() | names,
        vid=st.sampled_from([None, None, 0, 5]),
        mac=st.none() | st.sampled_from(HOSTS),
    )
    def flush(self, bridge: str, name: str | None, vid: int | None, mac: bytes | None) -> None:
        port = None if name is None else self.model.ports[name].ref
        gone = self.switch.fdbs[bridge].flush(port=port, vid=vid, mac=mac)
        assert gone == self.model.flush(bridge, port=port, vid=vid, mac=mac)

    # ---- configuration ----

    @rule(name=names, enabled=st.booleans(), mtu=mtus, bridge=bridges, vlan=modes, isolated=st.booleans())
    def configure_port(
        self, name: str, enabled: bool, mtu: int, bridge: str, vlan: Mode = TRUNK, isolated: bool = False
    ) -> None:
        """Changing the bridge, or VLANs, leaves entries where they were, which must not be followed there."""
        self.set_mirrors({name: bridge})
        self.switch.publish({name: PortSetup(bridge, enabled, mtu, vlan=vlan.view, isolated=isolated)})
        port = self.model.ports[name]
        port.bridge, port.enabled, port.mtu, port.vlan, port.isolated = bridge, enabled, mtu, vlan, isolated

    @rule(bridge=bridges, forward=st.booleans(), flood=st.booleans(), punt=st.booleans())
    def configure_bridge(self, bridge: str, forward: bool, flood: bool, punt: bool) -> None:
        self.switch.publish(bridges={bridge: BridgeSetup(forward, flood, punt)})
        model = self.model.bridges[bridge]
        model.forward_bpdu, model.flood_unknown, model.punt_bpdu = forward, flood, punt

    @rule(bridge=bridges, found=st.lists(mirrors, max_size=3))
    def configure_mirrors(self, bridge: str, found: list[Mirror]) -> None:
        self.mirrors[bridge] = [replace(m, vid=None) if m.port is not None else m for m in found]
        self.set_mirrors()
        self.switch.publish()

    @rule(name=names, shape=guests)
    def replace_port(self, name: str, shape: tuple[int, int]) -> None:
        """Another port in the same place: what pointed to the old one is gone."""
        self.set_mirrors({name: ""})
        self.switch.remove_port(name)
        old = self.model.ports.pop(name)
        for bridge in BRIDGES:
            self.model.flush(bridge, port=old.ref)
        self.add_port(name, shape, old.bridge)
        self.set_mirrors()
        self.switch.publish()

    @precondition(lambda self: any(p.guest is not None for p in self.model.ports.values()))
    @rule(data=st.data())
    def unplug(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n in PORTS if self.model.ports[n].guest is not None]))
        self.switch.detach(name)
        self.model.ports[name].guest = None

    @precondition(lambda self: any(p.guest is None for p in self.model.ports.values()))
    @rule(data=st.data(), shape=guests, post=st.integers(0, QUEUE))
    def plug_again(self, data: st.DataObject, shape: tuple[int, int], post: int) -> None:
        name = data.draw(st.sampled_from([n for n in PORTS if self.model.ports[n].guest is None]))
        self.plug(name, shape, post)

    @rule(name=names, enabled=st.booleans(), data=st.data())
    def enable_transmit_ring(self, name: str, enabled: bool, data: st.DataObject) -> None:
        port = self.model.ports[name]
        if port.guest is None:
            return
        pair = self.some_pair(name, data)
        self.switch.enable_ring(name, 2 * pair + TX, enabled)
        port.sending = port.sending | {pair} if enabled else port.sending - {pair}

    @rule(name=names, enabled=st.booleans(), data=st.data())
    def change_receive_ring(self, name: str, enabled: bool, data: st.DataObject) -> None:
        """Another pair receives from now on, or none."""
        port = self.model.ports[name]
        if port.guest is None:
            return
        if port.receiving is not None:
            self.switch.enable_ring(name, 2 * port.receiving + RX, False)
            port.receiving = None
        if enabled:
            port.receiving = self.some_pair(name, data)
            self.switch.enable_ring(name, 2 * port.receiving + RX, True)

    # ---- comparison ----

    @invariant()
    def same_frames(self) -> None:
        for name, port in self.model.ports.items():
            inbox, port.inbox = port.inbox, []
            if port.guest is not None:
                assert self.switch.received(name) == inbox, f"frames at {name}"

    @invariant()
    def same_fdb(self) -> None:
        for name, bridge in self.model.bridges.items():
            seen = {
                address: (i.port, i.type == "static", i.age if i.type != "static" else 0)
                for address, i in self.switch.fdb_items(name).items()
            }
            now = self.switch.now_s
            assert seen == {
                (vid, mac.hex(":")): (e.port, e.static, 0 if e.static else now - e.seen)
                for (vid, mac), e in bridge.live(now).items()
            }
            assert len(self.switch.fdbs[name]) == len(bridge.table)

    @invariant()
    def same_counters(self) -> None:
        for name, port in self.model.ports.items():
            seen = self.switch.counters(name)
            assert seen.values == {key: port.counters[key] for key in COUNTERS}, f"counters of {name}"
            assert Counter(seen.rx_drops) == port.rx_drops, f"ingress drops of {name}"
            assert Counter(seen.tx_drops) == port.tx_drops, f"egress drops of {name}"

    @invariant()
    def same_reports(self) -> None:
        events = [(e.kind, e.port, (e.vid, mac_bytes(e.mac)), e.old_port) for e in self.switch.take_events()]
        expected, self.model.events = self.model.events, []
        assert events == expected
        punts = [(p.port, p.frame) for p in self.switch.take_punts()]
        handed_up, self.model.punts = self.model.punts, []
        assert punts == handed_up

    @invariant()
    def nobody_is_broken(self) -> None:
        assert [port.handle.broken() for port in self.switch.ports.values()] == [None] * len(self.switch.ports)


TestBridge = BridgeMachine.TestCase
TestBridge.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
