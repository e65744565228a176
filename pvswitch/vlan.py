# SPDX-License-Identifier: Apache-2.0
"""What a port's VLAN keys come to: its mode, its own VLAN, the set that it carries (`vlan_mode` of Open vSwitch).

`rules` is what the core gets, `member` what people want to know; both are pure functions of a port's configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

from pvswitch.datapath import VlanView
from pvswitch.model import Port, TunnelPort
from pvswitch.state import VlanMember
from pvswitch.values import expand_networks

VIDS = 4096
_EVERYTHING = VlanView("trunk")


def expand(ids: Iterable[int | str]) -> Iterator[int]:
    """Yield the VIDs that a list of the configuration names."""
    for item in ids:
        first, _, last = str(item).partition("-")
        yield from range(int(first), int(last or first) + 1)


@functools.lru_cache(maxsize=1024)
def _mapped(networks: tuple[tuple[str, int | str], ...]) -> VlanView:
    return VlanView("mapped", 0, frozenset(vid for vid, _ in expand_networks(dict(networks))))


def rules(port: Port) -> VlanView | None:
    """Return how a port treats tags; None for a trunk of all VLANs, which is no rule at all."""
    if isinstance(port, TunnelPort) and isinstance(port.networks, dict):
        return _mapped(tuple(port.networks.items()))
    mode = port.effective_vlan_mode
    ids = port.cvlans if mode == "dot1q-tunnel" else port.trunks
    found = VlanView(mode, port.tag or 0, frozenset(expand(ids)) or None)
    return None if found == _EVERYTHING else found


def member(name: str, found: VlanView | None, vid: int) -> VlanMember | None:
    """Return the part in a VLAN of a port with these rules, None when it has none; VID 0 is what is in no VLAN."""
    found = found or _EVERYTHING
    if found.mode in ("access", "dot1q-tunnel"):
        return VlanMember(port=name, tagged=False) if vid == found.tag else None
    if found.mode == "mapped":
        return VlanMember(port=name, tagged=False) if found.vlans and vid in found.vlans else None
    native = found.mode != "trunk"
    carried = found.vlans is None or vid in found.vlans
    if vid == 0:
        return VlanMember(port=name, tagged=False) if carried and not native else None
    if native and vid == found.tag:
        return VlanMember(port=name, tagged=found.mode == "native-tagged")
    return VlanMember(port=name, tagged=True) if carried else None


def named(ports: Iterable[Port]) -> set[int]:
    """Return the VLANs that these ports name: their own, those of their lists of trunks, those of a tunnel's map."""
    found: set[int] = set()
    for port in ports:
        found.update(expand(port.trunks), [] if port.tag is None else [port.tag])
        if (view := rules(port)) is not None and view.mode == "mapped":
            found.update(view.vlans or ())
    return found
