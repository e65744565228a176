# SPDX-License-Identifier: Apache-2.0
"""What the core is told of ports and bridges: the tables by which it forwards (pvs_publish in pvs_api.h).

Each view is a plain value that writes itself into the core's struct. The struct is zero before, and zero is no rule at
all, so that only what differs is written: a thousand ports are told anew at each edit of one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pvswitch.datapath.core import ffi
from pvswitch.datapath.fdb import Fdb
from pvswitch.datapath.flow import FlowsView
from pvswitch.datapath.handles import DatapathHandle
from pvswitch.datapath.tunnel import DatapathTunnel
from pvswitch.datapath.vlan import VlanCounters, VlanView, vlan_bits, vlan_mode


class Limit(NamedTuple):
    """Units in a second on average, 0 for no limit; and how many at once. See struct pvs_limit."""

    per_second: int
    depth: int


NO_LIMIT = Limit(0, 0)


@dataclass(frozen=True, slots=True)
class SecurityView:
    """Who may send; see struct pvs_port_conf. `networks` are addresses of 16 bytes, each with its prefix length."""

    sticky: bool = False
    max_macs: int = 0
    macs: tuple[bytes, ...] = ()
    networks: tuple[tuple[bytes, int], ...] = ()

    def fill(self, conf: Any, keep: list[Any]) -> None:
        """Write it into a struct pvs_port_conf; `keep` gets what that points to."""
        macs = ffi.from_buffer(b"".join(self.macs) or b"\0")
        networks = ffi.new("struct pvs_network[]", [*self.networks] or 1)
        conf.secure, conf.sticky, conf.max_macs = True, self.sticky, self.max_macs
        conf.n_macs, conf.macs = len(self.macs), ffi.cast("uint8_t *", macs)
        conf.n_networks, conf.networks = len(self.networks), networks
        keep += (macs, networks)


@dataclass(frozen=True, slots=True)
class MirrorView:
    """A mirror; see struct pvs_mirror_conf. `vlans` are the VIDs whose frames it wants, None is all."""

    port: DatapathHandle | None
    vid: int = 0
    snaplen: int = 0
    drops: bool = False
    vlans: frozenset[int] | None = None

    def fill(self, conf: Any, keep: list[Any]) -> None:
        """Write it into a struct pvs_mirror_conf; `keep` gets what that points to."""
        conf.vid, conf.snaplen, conf.drops = self.vid, self.snaplen, self.drops
        if self.port is not None:
            conf.port = self.port._port
        if self.vlans is not None:
            keep.append(vlan_bits(self.vlans))
            conf.vlans = keep[-1]


@dataclass(frozen=True, slots=True)
class PortView:
    """A port in the tables: `bridge` is the index of its bridge there; `mtu` in L3 bytes, 0 = not enforced.

    `backpressure_ms`: how long known unicast waits for this port while it is full; 0 = it is dropped.
    `storm`: frames of broadcast, multicast and unknown unicast that come in; `policing`: bytes that come in, `shaping`:
    that go out. `mirror_in`, `mirror_out`: a bit for each mirror of its bridge that wants what comes in, what goes out.
    `capture_in`, `capture_out`: likewise, of the captures (`DatapathCapture.slot`).
    Of a tunnel: `room`, the largest frame that fits its underlay, 0 = any; `mesh`, those of one number are apart.
    """

    port: DatapathHandle
    bridge: int
    enabled: bool = True
    mtu: int = 0
    backpressure_ms: int = 0
    vlan: VlanView | None = None
    isolated: bool = False
    storm: tuple[Limit, Limit, Limit] | None = None
    policing: Limit = NO_LIMIT
    shaping: Limit = NO_LIMIT
    security: SecurityView | None = None
    mirror_in: int = 0
    mirror_out: int = 0
    tunnel: DatapathTunnel | None = None
    room: int = 0
    mesh: int = 0
    capture_in: int = 0
    capture_out: int = 0

    def fill(self, conf: Any, keep: list[Any]) -> None:
        """Write it into a struct pvs_port_conf; `keep` gets what that points to."""
        conf.port, conf.bridge, conf.enabled = self.port._port, self.bridge, self.enabled
        conf.mtu, conf.backpressure_ms, conf.isolated = self.mtu, self.backpressure_ms, self.isolated
        if self.tunnel is not None:
            conf.tunnel, conf.room, conf.mesh = self.tunnel.tunnel, self.room, self.mesh
        if self.mirror_in or self.mirror_out:
            conf.mirror_in, conf.mirror_out = self.mirror_in, self.mirror_out
        if self.capture_in or self.capture_out:
            conf.capture_in, conf.capture_out = self.capture_in, self.capture_out
        if self.storm is not None:
            conf.storm = self.storm
        if self.policing.per_second:
            conf.policing = self.policing
        if self.shaping.per_second:
            conf.shaping = self.shaping
        if self.security is not None:
            self.security.fill(conf, keep)
        if self.vlan is not None:
            conf.vlan_mode, conf.tag = vlan_mode(self.vlan), self.vlan.tag
            if self.vlan.vlans is not None:
                keep.append(vlan_bits(self.vlan.vlans))
                conf.vlans = keep[-1]


@dataclass(frozen=True, slots=True)
class BridgeView:
    """A bridge in the tables."""

    fdb: Fdb
    forward_bpdu: bool = True
    flood_unknown: bool = True
    punt_bpdu: bool = False
    vlans: VlanCounters | None = None  # None: nothing is counted by VLAN
    mirrors: tuple[MirrorView, ...] = ()
    flows: FlowsView | None = None

    def fill(self, conf: Any, keep: list[Any]) -> None:
        """Write it into a struct pvs_bridge_conf; `keep` gets what that points to."""
        conf.fdb, conf.punt_bpdu = self.fdb._fdb, self.punt_bpdu
        conf.forward_bpdu, conf.flood_unknown = self.forward_bpdu, self.flood_unknown
        if self.vlans is not None:
            conf.vlan_counters = self.vlans.counters
        if self.mirrors:
            made = ffi.new("struct pvs_mirror_conf[]", len(self.mirrors))
            for i, mirror in enumerate(self.mirrors):
                mirror.fill(made[i], keep)
            conf.n_mirrors, conf.mirrors = len(self.mirrors), made
            keep.append(made)
        if self.flows is not None:
            self.flows.fill(conf, keep)
