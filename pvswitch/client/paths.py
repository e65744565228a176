# SPDX-License-Identifier: Apache-2.0
"""The paths of the API's resources."""

from __future__ import annotations

from urllib.parse import quote

ROOT = "/api/v1"


def bridge_path(name: str) -> str:
    """Return the path of a bridge."""
    return f"{ROOT}/bridges/{quote(name, safe='')}"


def port_path(name: str) -> str:
    """Return the path of a port."""
    return f"{ROOT}/ports/{quote(name, safe='')}"


def mirror_path(bridge: str, name: str | None = None) -> str:
    """Return the path of a bridge's mirrors, or of one of them."""
    collection = f"{bridge_path(bridge)}/mirrors"
    return collection if name is None else f"{collection}/{quote(name, safe='')}"


def flow_path(bridge: str, name: str | None = None) -> str:
    """Return the path of a bridge's flows, or of one of them."""
    collection = f"{bridge_path(bridge)}/flows"
    return collection if name is None else f"{collection}/{quote(name, safe='')}"


def meter_path(bridge: str, name: str | None = None) -> str:
    """Return the path of a bridge's meters, or of one of them."""
    collection = f"{bridge_path(bridge)}/meters"
    return collection if name is None else f"{collection}/{quote(name, safe='')}"


def capture_path(capture: str | None = None) -> str:
    """Return the path of the captures, or of one of them."""
    return f"{ROOT}/captures" if capture is None else f"{ROOT}/captures/{quote(capture, safe='')}"


def fdb_path(bridge: str, mac: str | None = None, vid: int = 0) -> str:
    """Return the path of a bridge's addresses, or of one of them."""
    collection = f"{bridge_path(bridge)}/fdb"
    return collection if mac is None else f"{collection}/{vid}/{quote(mac, safe=':')}"


def tunnel_path(name: str | None = None, vni: int = 0, kind: str | None = None, item: str | None = None) -> str:
    """Return the path of the tunnels, of one of them, of its remotes or addresses ("remotes", "macs"), or of one."""
    parts = [f"{ROOT}/tunnels"]
    if name is not None:
        parts.append(quote(name, safe=""))
    if kind is not None:
        parts += ["vnis", str(vni), kind]
    if item is not None:
        parts.append(quote(item, safe=":/"))
    return "/".join(parts)
