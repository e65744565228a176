# SPDX-License-Identifier: Apache-2.0
"""Checks between the keys of tunnels, and between tunnels; and which of them are one mesh.

Called by `checks.cross_errors`. A tunnel is known here by its keys: this module is below the models.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pvswitch.errors import FieldError
from pvswitch.values import expand_networks

if TYPE_CHECKING:
    from pvswitch.model import SwitchConfig, TunnelPort

MAX_MESHES = 31  # of a bridge


def tunnels_of(config: SwitchConfig) -> dict[str, TunnelPort]:
    """Return the tunnels among the ports."""
    tunnels: dict[str, Any] = {name: port for name, port in config.ports.items() if hasattr(port, "networks")}
    return tunnels


def network_numbers(port: TunnelPort) -> tuple[tuple[int | None, int | None], ...]:
    """Return a tunnel's networks as (VLAN, VNI): of one without a map the VLAN is None, of GRE without key the VNI."""
    networks = port.networks
    return expand_networks(networks) if isinstance(networks, dict) else ((None, networks),)


def networks_key(port: TunnelPort) -> str:
    """Return the name of the key that says its networks."""
    return "key" if port.type == "gre" else "vni"


def meshes(config: SwitchConfig) -> dict[str, int]:
    """Return a number from 1 on for each tunnel that has others of the same type and networks on its bridge.

    What came by one of these isn't sent to another: their hosts reach each other.
    """
    numbers: dict[str, int] = {}
    count: dict[str | None, int] = defaultdict(int)
    for bridge, members in _groups(config):
        count[bridge] += 1
        numbers |= dict.fromkeys(members, count[bridge])
    return numbers


def _groups(config: SwitchConfig) -> Iterator[tuple[str | None, list[str]]]:
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, port in tunnels_of(config).items():
        groups[port.bridge, port.type, network_numbers(port)].append(name)
    for (bridge, *_), members in groups.items():
        if len(members) > 1:
            yield (None if bridge is None else str(bridge)), members


def tunnel_errors(config: SwitchConfig) -> list[FieldError]:
    """Return every error of the tunnels that takes more than one value to see."""
    tunnels = tunnels_of(config)
    if not tunnels:
        return []
    errors = [
        error for name, port in tunnels.items() for error in (*_remote_errors(name, port), *_key_errors(name, port))
    ]
    return [*errors, *_endpoint_errors(tunnels), *_mesh_errors(config)]


@functools.lru_cache(maxsize=2048)
def _wrong_remotes(local: str, remotes: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """Return which remotes are wrong, and why; remembered, since all ports are judged at each edit of one."""
    version = ipaddress.ip_address(local).version
    wrong: list[tuple[int, str]] = []
    seen: set[str] = set()
    for i, remote in enumerate(remotes):
        if remote == local:
            wrong.append((i, f"{remote} is this port's `local`: list the other hosts only"))
        elif remote in seen:
            wrong.append((i, f"{remote} is listed already: keep one"))
        elif ipaddress.ip_address(remote).version != version:
            wrong.append((i, f"{remote} and `local`, {local}, are not both IPv{version}: one tunnel has one family"))
        seen.add(remote)
    return tuple(wrong)


def _remote_errors(name: str, port: TunnelPort) -> Iterator[FieldError]:
    for i, message in _wrong_remotes(port.local, port.remotes):
        yield FieldError(("ports", name, "remotes", i), message)
    if not port.remotes and not port.learning and not port.external:
        message = (
            "are missing, and with `learning: false` none is ever known: list some, or say `external: true` where a "
            "control plane adds them"
        )
        yield FieldError(("ports", name, "remotes"), message)


def _key_errors(name: str, port: TunnelPort) -> Iterator[FieldError]:
    if port.on_full == "backpressure":
        yield FieldError(("ports", name, "on_full"), "doesn't go with tunnels, which nothing waits for: leave it out")
    if port.mapped:
        for key in ("vlan_mode", "tag", "trunks", "cvlans"):
            if getattr(port, key) not in (None, ()):
                message = f"doesn't go with a map of VLANs, which says what the port carries: leave `{key}` out"
                yield FieldError(("ports", name, key), message)


def _endpoint_errors(tunnels: Mapping[str, TunnelPort]) -> Iterator[FieldError]:
    """Two tunnels that end in one socket must be told apart by their networks."""
    sockets: dict[tuple[str, int], str] = {}
    owners: dict[tuple[object, ...], str] = {}
    for name, port in tunnels.items():
        if port.udp_port is not None:
            first = sockets.setdefault((port.local, port.udp_port), name)
            if tunnels[first].type != port.type:
                message = (
                    f"{port.local} port {port.udp_port} is where the {tunnels[first].type} of port {first!r} comes in: "
                    "use another `dst_port`, or another `local`"
                )
                yield FieldError(("ports", name, "dst_port"), message)
                continue
        key = networks_key(port)
        for _, number in network_numbers(port):
            if (first := owners.setdefault((port.type, port.local, port.udp_port, number), name)) != name:
                what = f"`{key}` {number}" if number is not None else "what has no `key`"
                message = f"{what} at {port.local} belongs to port {first!r} already: use another, or another `local`"
                yield FieldError(("ports", name, key), message)
                break


def _mesh_errors(config: SwitchConfig) -> Iterator[FieldError]:
    count: dict[str | None, int] = defaultdict(int)
    for bridge, members in _groups(config):
        count[bridge] += 1
        if count[bridge] == MAX_MESHES + 1:
            message = (
                f"shares its network with port {members[0]!r}, and bridge {bridge!r} has more than {MAX_MESHES} such "
                "groups of tunnels: give the remotes to one port of each"
            )
            yield FieldError(("ports", members[1]), message)
