# SPDX-License-Identifier: Apache-2.0
"""A configuration with its ports, FDBs and counters -> the tables that workers forward by. Used by `ports.py`.

Also what it asks of two configurations: whether a port is the same, which static entries a bridge has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pvswitch import policy, vlan
from pvswitch.datapath import BridgeView, Fdb, PortView, VlanCounters
from pvswitch.flow_tables import FlowTables
from pvswitch.model import SwitchConfig
from pvswitch.switch_port import SwitchPort
from pvswitch.tunnel_checks import meshes
from pvswitch.tunnel_port import TunnelledPort


def tables(
    config: SwitchConfig,
    ports: Mapping[str, SwitchPort],
    fdbs: Mapping[str, Fdb],
    counters: Mapping[str, VlanCounters],
    flows: FlowTables,
    captured: Callable[[str], tuple[int, int]] = lambda _: (0, 0),
) -> tuple[list[PortView], list[BridgeView]]:
    """Return what is to be published; `captured` says which captures want what comes in by a port, and goes out."""
    bridges = config.bridges
    indices = {name: index for index, name in enumerate(bridges)}
    rules = {name: vlan.rules(conf) for name, conf in config.ports.items()}
    with_vlans = {config.port_bridge(name) for name, found in rules.items() if found is not None}
    handles = {name: port.handle for name, port in ports.items()}
    mesh = meshes(config)
    views = []
    for name, conf in config.ports.items():
        port = ports[name]
        capture_in, capture_out = captured(name)
        tunnel = port.tunnel if isinstance(port, TunnelledPort) else None
        views.append(
            PortView(
                handles[name],
                indices[config.port_bridge(name)],
                conf.enabled and (tunnel is not None or not isinstance(port, TunnelledPort)),
                conf.mtu or 0,
                conf.backpressure_ms if conf.on_full == "backpressure" else 0,
                rules[name] if tunnel is not None or not isinstance(port, TunnelledPort) else None,
                conf.protected,
                policy.storm(conf.storm_control),
                policy.limit(conf.policing),
                policy.limit(conf.shaping),
                policy.security(conf.port_security),
                *policy.mirrored(name, bridges[config.port_bridge(name)]),
                tunnel=tunnel,
                room=port.room if isinstance(port, TunnelledPort) else 0,
                mesh=mesh.get(name, 0),
                capture_in=capture_in,
                capture_out=capture_out,
            )
        )
    return views, [
        BridgeView(
            fdbs[name],
            conf.forward_bpdu,
            conf.flood_unknown,
            vlans=counters[name] if name in with_vlans else None,
            mirrors=policy.mirrors(conf, handles),
            flows=flows.view(name, conf, handles),
        )
        for name, conf in bridges.items()
    ]


def unchanged(before: SwitchConfig | None, after: SwitchConfig, name: str) -> bool:
    """Return whether a port's settings are the very ones of before: of a thousand ports an edit changes one."""
    return before is not None and before.ports.get(name) is after.ports[name]


def statics(config: SwitchConfig | None, bridge: str) -> dict[tuple[int, str], str]:
    """Return the static entries of a bridge as (VID, MAC) -> port; none where there is no such bridge."""
    if config is None or bridge not in config.bridges:
        return {}
    return {(entry.vid, entry.mac): entry.port for entry in config.bridges[bridge].fdb}
