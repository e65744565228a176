# SPDX-License-Identifier: Apache-2.0
"""Random flows and frames through the core, against the reference: every byte, counter, drop reason and address.

Frames that are to be cut into segments, or whose checksum is left to others, are judged by what they stand for: to edit
the one has to be the same as to edit each frame that comes of it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pvswitch import model
from pvswitch.datapath import COUNTERS, MAX_MASKS, FlowMeter, FlowsView, FlowTable, MeterView
from pvswitch.driver import DriverConf
from pvswitch.flows import compiled
from pvswitch.flows.actions import Named, read_actions
from pvswitch.flows.match import Match, read_match
from tests.bench_switch import ROUND_NS, BenchSwitch, PortSetup, guest_conf
from tests.flow_reference import Flow, FlowSwitch, Meter, Table
from tests.flow_samples import edits, frames, tables
from tests.mirrors import Mirror
from tests.property.reference import Bridge, Guest, Port
from tests.vlans import Mode
from tests.wire.offloads import ALL, PLAIN, Request, finished, requests

PORTS = ("p0", "p1", "p2", "p3")
QUEUE = 256

modes = st.one_of(
    st.just(Mode()),
    st.just(Mode()),
    st.builds(Mode, st.just("access"), st.sampled_from([5, 7])),
    st.builds(Mode, trunks=st.frozensets(st.sampled_from([0, 5, 7]), max_size=2)),
    st.builds(Mode, st.sampled_from(["native-tagged", "native-untagged", "dot1q-tunnel"]), st.sampled_from([5, 7])),
)
setups = st.builds(
    PortSetup,
    enabled=st.sampled_from([True] * 7 + [False]),
    mtu=st.sampled_from([0, 0, 0, 46, 500, 1420]),
    isolated=st.sampled_from([False, False, True]),
)


meters = st.builds(Meter, st.just(1000), st.sampled_from([1, 2, 3]), st.just(True)) | st.builds(
    Meter, st.just(1_000_000), st.sampled_from([60, 200, 2000])
)
mirrors = st.builds(Mirror, src=st.just(frozenset({"p1"})), port=st.just("p3"), drops=st.booleans())


class Both:
    """The switch and the reference, set up alike."""

    def __init__(self) -> None:
        self.switch = BenchSwitch()
        self.model = FlowSwitch()
        self.switch.add_bridge("br0", limit=100, aging=300)
        self.model.bridges["br0"] = Bridge(100, 300)
        self.counters = self.switch.datapath.flow_counters()
        self.ordered: list[Flow] = []
        self.given: list[int] = []
        self.made: list[FlowTable | FlowMeter] = []

    def __enter__(self) -> Both:
        return self

    def __exit__(self, *_: object) -> None:
        self.switch.flows.clear()
        self.switch.publish()
        for one in self.made:
            one.close()
        self.switch.close()

    def add_port(self, name: str, setup: PortSetup, mode: Mode, conf: DriverConf | None) -> None:
        """A port, with a guest on it if `conf` says which."""
        port = self.switch.add_port(name, setup=replace(setup, vlan=mode.view))
        made = Port(port.handle.ref, "br0", setup.enabled, setup.mtu, mode, setup.isolated)
        if conf is not None:
            guest = self.switch.attach(name, conf)
            made.guest = Guest(guest.hdr_len, guest.conf.rx_buf_size, True, [self.switch.post(name, QUEUE)])
        self.model.ports[name] = made

    def add_mirror(self, mirror: Mirror) -> None:
        """Mirror m0."""
        self.switch.mirrors["br0"] = {"m0": model.Mirror.model_validate(mirror.keys)}
        self.model.bridges["br0"].mirrors = [mirror]

    def set_flows(self, flows: Sequence[Flow], limits: Mapping[str, Meter]) -> None:
        """As the control plane does it: sorted, compiled, each with a counter of its own."""
        self.ordered = sorted(flows, key=lambda flow: (-flow.priority, flow.name))
        slots: dict[tuple[Named, str], int] = {("port", name): i for i, name in enumerate(PORTS)}
        slots |= {("meter", name): i for i, name in enumerate(limits)} | {("mirror", "m0"): 0}
        self.given = [self.counters.add() for _ in self.ordered]
        entries = [
            (compiled.compile_flow(read_match(flow.match), flow.priority, read_actions(flow.actions)), counter)
            for flow, counter in zip(self.ordered, self.given, strict=True)
        ]
        made = self.switch.datapath.flow_table(*compiled.table(entries, slots))
        self.made = [made]
        views = []
        for limit in limits.values():
            meter = self.switch.datapath.flow_meter()
            self.made.append(meter)
            views.append(MeterView(meter, limit.per_second, limit.depth, limit.packets))
        handles = tuple(self.switch.ports[name].handle for name in self.switch.ports)
        self.switch.flows["br0"] = FlowsView(
            made, handles, tuple(views), tuple(range(len(self.switch.mirrors.get("br0", {}))))
        )
        self.switch.publish()
        self.model.tables["br0"] = Table(list(self.ordered), dict(limits))

    def send(self, name: str, *frames: bytes) -> None:
        """As one burst."""
        for frame in frames:
            self.switch.send(name, frame)
        self.model.now_ns = self.switch.now_ns + ROUND_NS
        self.switch.settle()
        held = {(vid, bytes.fromhex(mac.replace(":", ""))) for vid, mac in self.switch.fdb_items("br0", expired=True)}
        for frame in frames:
            self.model.transmit(name, frame, self.switch.now_s, held)

    def compare(self) -> None:
        for name, port in self.model.ports.items():
            inbox, port.inbox = port.inbox, []
            if port.guest is not None:
                assert self.switch.received(name) == inbox, f"frames at {name}"
            seen = self.switch.counters(name)
            assert Counter(seen.rx_drops) == port.rx_drops, f"ingress drops of {name}"
            assert Counter(seen.tx_drops) == port.tx_drops, f"egress drops of {name}"
            assert seen.values == {key: port.counters[key] for key in COUNTERS}, f"counters of {name}"
        counted = self.counters.read(self.given)
        for flow, count in zip(self.ordered, counted, strict=True):
            assert (count.packets, count.bytes) == (flow.packets, flow.bytes), flow
        known = {address: entry.port for address, entry in self.model.bridges["br0"].table.items()}
        learned = {
            (vid, bytes.fromhex(mac.replace(":", ""))): item.port
            for (vid, mac), item in self.switch.fdb_items().items()
        }
        assert learned == known


@st.composite
def runs(draw: st.DrawFn, frame: bytes) -> list[bytes]:
    """A frame, and what is nearly or quite the same behind it, which may go the same way."""
    burst = [frame]
    for _ in range(draw(st.integers(0, 4))):
        changed = bytearray(burst[-1])
        if draw(st.booleans()):
            changed[draw(st.integers(0, min(len(frame), 60) - 1))] ^= 1 << draw(st.integers(0, 7))
        burst.append(bytes(changed))
    return burst


quick = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)


@quick
@given(data=st.data())
def test_flows_do_what_the_reference_does(data: st.DataObject) -> None:
    seen = data.draw(st.lists(frames(), min_size=1, max_size=5))
    limits = {"slow": data.draw(meters), "fast": data.draw(meters)}
    mirror = data.draw(st.none() | mirrors)
    more = ["meter:slow", "meter:fast", *(["mirror:m0"] if mirror else [])]
    flows = data.draw(tables(seen, PORTS, more))
    with Both() as both:
        for i, name in enumerate(PORTS):
            plain = i == 0 or data.draw(st.booleans())
            setup = PortSetup() if plain else data.draw(setups)
            mode = Mode() if plain else data.draw(modes)
            linked = i == 0 or data.draw(st.integers(0, 7)) > 0
            both.add_port(name, setup, mode, guest_conf(queue_size=QUEUE) if linked else None)
        if mirror:
            both.add_mirror(mirror)
        both.set_flows(flows, limits)
        for frame in seen:
            name = data.draw(st.sampled_from([name for name in PORTS if both.model.ports[name].guest is not None]))
            both.send(name, *data.draw(runs(frame)))
            both.compare()


@quick
@example("tso4_vlan", ["push_vlan:0x8100", "push_vlan:0x88a8"], PLAIN)
@example("tso4_largest", ["mod_tp_src:80", "push_vlan:0x8100"], PLAIN)
@given(
    name=st.sampled_from(sorted(requests("02:00:00:00:00:01", "02:00:00:00:00:02"))),
    changes=st.lists(edits, max_size=6).filter(lambda found: sum("push" in one for one in found) <= 2),
    abilities=st.sampled_from([PLAIN, ALL]),
)
def test_an_edit_of_what_is_unfinished_is_one_of_what_it_becomes(name: str, changes: list[str], abilities: int) -> None:
    asked = requests("02:00:00:00:00:01", "02:00:00:00:00:02")[name]
    flow = Flow("f", {}, [*changes, "output:p1"])
    with Both() as both:
        for port, features in (("p0", ALL), ("p1", abilities)):
            conf = guest_conf(features, queue_size=QUEUE, tx_buf_size=1 << 17)
            both.add_port(port, PortSetup(), Mode(), conf)
        both.set_flows([flow], {})
        guest = both.switch.ports["p1"].guest
        both.switch.send("p0", asked.frame, header=asked.header.pack(12))
        both.switch.settle()
        came = []
        while (got := guest.rx()) is not None:
            header = replace(got[1], num_buffers=0)
            came += [frame for frame, _ in finished(Request(got[0], header), PLAIN)] if header.flags & 1 else [got[0]]
        counted = both.counters.read(both.given)[0]
        assert (counted.packets, counted.bytes) == (1, len(asked.frame))
        for frame, _ in finished(asked, PLAIN):
            both.model.transmit("p0", frame, both.switch.now_s, ())
        assert came == both.model.ports["p1"].inbox


def some_match(chance: random.Random) -> dict[str, object]:
    """A match with masks of all lengths, for the frames of `some_frame`."""
    found: dict[str, object] = {"dl_type": "0x0800", "nw_proto": 17}
    for key in ("nw_src", "nw_dst"):
        if length := chance.choice([0, 0, *range(20, 33)]):
            found[key] = f"10.0.{chance.randrange(4)}.{chance.randrange(64)}/{length}"
    for key in ("tp_src", "tp_dst"):
        if bits := chance.choice([0, 0, *range(1, 17)]):
            found[key] = f"{chance.randrange(64):#x}/{0xFFFF & -1 << 16 - bits | chance.randrange(64):#x}"
    return found


def some_frame(chance: random.Random) -> bytes:
    """UDP between few addresses and ports."""
    addresses = b"".join(bytes([10, 0, chance.randrange(4), chance.randrange(64)]) for _ in range(2))
    ports = b"".join(chance.randrange(64).to_bytes(2, "big") for _ in range(2))
    return bytes.fromhex("02000000000102000000000208004500001c0000000040110000") + addresses + ports + b"\0\x08\0\0"


@pytest.mark.parametrize("seed", range(3))
def test_of_thousands_of_flows_the_first_one_counts(seed: int) -> None:
    """In hundreds of masks: found as if one looked at each of them in turn, while caches fill, and after."""
    chance = random.Random(seed)
    made: dict[tuple[Match, int], Flow] = {}
    masks: set[int] = set()
    for i in range(4000):
        written = some_match(chance)
        match = read_match(written)
        if len(masks) == MAX_MASKS and match.mask not in masks:
            continue
        masks.add(match.mask)
        priority = match.mask.bit_count() // 4 + chance.randrange(3)  # what says more counts more, by and large
        made.setdefault((match, priority), Flow(f"f{i:04}", written, ["drop"], priority))
    seen = [some_frame(chance) for _ in range(60)]
    with Both() as both:
        both.add_port("p0", PortSetup(), Mode(), guest_conf(queue_size=QUEUE))
        both.set_flows([*made.values()], {})
        assert len(masks) > 300
        for frame in seen * 2:
            both.send("p0", frame)
        both.compare()
        assert sum(flow.packets > 0 for flow in both.ordered) > 10
