# SPDX-License-Identifier: Apache-2.0
"""By which queue pair a guest receives: any flows, pairs that come and go, with one worker and several.

What must hold whatever the hash is: a frame arrives once, by a pair that is enabled; the flow that the guest sent last
comes back by the pair it was sent by; a flow keeps its pair while nothing happens; a flow's two directions are one.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from tests.bench_switch import RX, BenchSwitch, guest_conf

MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


@dataclass(frozen=True)
class Flow:
    """A conversation: what both directions have in common, with each side's part."""

    version: int
    udp: bool
    tags: int
    addresses: tuple[int, int]
    ports: tuple[int, int]
    fragment: bool

    def frame(self, towards_b: bool, length: int) -> bytes:
        """One of its frames."""
        order = 1 if towards_b else -1
        src, dst = (MAC_A, MAC_B)[::order]
        here, there = self.addresses[::order]
        sport, dport = self.ports[::order]
        packet: Packet = Ether(src=src, dst=dst)
        for tag in (Dot1AD(vlan=5), Dot1Q(vlan=6))[2 - self.tags :]:
            packet /= tag.copy()
        if self.version == 4:
            packet /= IP(src=f"10.0.0.{here}", dst=f"10.0.0.{there}", flags="MF" if self.fragment else 0)
        elif self.version == 6:
            packet /= IPv6(src=f"fd00::{here:x}", dst=f"fd00::{there:x}")
        else:
            return bytes(packet / bytes(length))
        return bytes(packet / (UDP if self.udp else TCP)(sport=sport, dport=dport) / bytes(length))


small, ports = st.integers(1, 254), st.integers(1, 65_535)
flows = st.builds(
    Flow,
    st.sampled_from([0, 4, 4, 6]),
    st.booleans(),
    st.integers(0, 2),
    st.tuples(small, small),
    st.tuples(ports, ports),
    st.booleans(),
)
PAIRS = 4
actions = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.integers(0, 5), st.integers(0, 200)),
        st.tuples(st.just("send"), st.integers(0, 5), st.integers(0, PAIRS - 1)),
        st.tuples(st.just("enable"), st.integers(0, PAIRS - 1), st.booleans()),
    ),
    max_size=40,
)


@given(st.lists(flows, min_size=6, max_size=6), actions, st.sampled_from([1, 2, 3]))
@settings(max_examples=150, deadline=None)
def test_frames_come_by_the_right_pair(known: list[Flow], steps: list[tuple[str, int, int]], workers: int) -> None:
    with BenchSwitch(workers) as switch:
        switch.add_bridge()
        switch.add_port("a", guest_conf(queue_size=64))
        switch.add_port("b", guest_conf(queue_size=64, queue_pairs=PAIRS, auto_refill=True))
        switch.post("a")
        for pair in range(PAIRS):
            switch.post("b", pair=pair)
        enabled = set(range(PAIRS))
        last: tuple[Flow, int] | None = None
        kept: dict[Flow, int] = {}
        for what, first, second in steps:
            if what == "enable":
                switch.enable_ring("b", 2 * first + RX, bool(second))
                enabled = enabled | {first} if second else enabled - {first}
                kept.clear()
            elif what == "send":
                switch.send("b", known[first].frame(False, second), pair=second)
                switch.settle()
                assert switch.received("a")[-1] == known[first].frame(False, second)
                switch.post("a")
                kept.clear()
                # a guest that receives by one pair at most has nothing to choose: that isn't noted
                last = (known[first], second) if len(enabled) > 1 else None
            else:
                frame = known[first].frame(True, second)
                switch.send("a", frame)
                switch.settle()
                got = [(pair, one) for pair, frames in enumerate(switch.received_by_pair("b")) for one in frames]
                found = [pair for pair, _ in got]
                assert [one for _, one in got] == [frame] * bool(enabled)
                assert set(found) <= enabled
                if found and last is not None and known[first] == last[0] and last[1] in enabled:
                    assert found == [last[1]], "the flow that b sent last"
                if found:
                    assert kept.setdefault(known[first], found[0]) == found[0], "nothing has happened meanwhile"
