# SPDX-License-Identifier: Apache-2.0
"""What the keys of policies come to in the core: limits, who may send, mirrors. Pure functions of the configuration."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from pvswitch.datapath import NO_LIMIT, DatapathHandle, Limit, MirrorView, SecurityView
from pvswitch.model import Bridge, PortSecurity, RateLimit, StormControl
from pvswitch.vlan import expand


def storm(rates: StormControl | None) -> tuple[Limit, Limit, Limit] | None:
    """Return the limits of what a port may have flooded: of frames, a tenth of a second's at once. None: no limit."""
    if rates is None:
        return None
    broadcast, multicast, unknown = (
        NO_LIMIT if pps is None else Limit(pps, max(1, pps // 10))
        for pps in (rates.broadcast_pps, rates.multicast_pps, rates.unknown_pps)
    )
    return broadcast, multicast, unknown


def limit(rate: RateLimit | None) -> Limit:
    """Return a limit of bytes."""
    return NO_LIMIT if rate is None else Limit(rate.rate_kbps * 1000 // 8, rate.burst_bytes)


def security(rules: PortSecurity | None) -> SecurityView | None:
    """Return who may send; None: anybody."""
    if rules is None:
        return None
    networks = tuple(_network(network) for network in rules.allowed_ips)
    macs = tuple(bytes.fromhex(mac.replace(":", "")) for mac in rules.allowed_macs)
    return SecurityView(rules.sticky, rules.max_macs or 0, macs, networks)


def _network(text: str) -> tuple[bytes, int]:
    """Return a network as the core has it: IPv4 as ::ffff:a.b.c.d."""
    network = ipaddress.ip_network(text)
    if network.version == 4:
        return bytes(10) + b"\xff\xff" + network.network_address.packed, 96 + network.prefixlen
    return network.network_address.packed, network.prefixlen


def mirrors(bridge: Bridge, handles: Mapping[str, DatapathHandle]) -> tuple[MirrorView, ...]:
    """Return a bridge's mirrors, in the order of their names' appearance; `handles` are those of its ports."""
    return tuple(
        MirrorView(
            port=None if mirror.output_port is None else handles[mirror.output_port],
            vid=mirror.output_vlan or 0,
            snaplen=mirror.snaplen or 0,
            drops=mirror.drops,
            vlans=frozenset(expand(mirror.select_vlan)) or None,
        )
        for mirror in bridge.mirrors.values()
    )


def mirrored(name: str, bridge: Bridge) -> tuple[int, int]:
    """Return which mirrors want what comes by a port of the bridge, and which what leaves by it: a bit for each."""
    if any(mirror.output_port == name for mirror in bridge.mirrors.values()):
        return 0, 0
    came = left = 0
    for number, mirror in enumerate(bridge.mirrors.values()):
        everywhere = not mirror.select_src_port and not mirror.select_dst_port
        came |= (everywhere or name in mirror.select_src_port) << number
        left |= (name in mirror.select_dst_port) << number
    return came, left
