# SPDX-License-Identifier: Apache-2.0
"""VLANs in the core: what a port's rules are, and what came into each VLAN of a bridge."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pvswitch.datapath.core import check, ffi, lib

_MODES = {
    "trunk": lib.PVS_VLAN_TRUNK,
    "access": lib.PVS_VLAN_ACCESS,
    "native-tagged": lib.PVS_VLAN_NATIVE_TAGGED,
    "native-untagged": lib.PVS_VLAN_NATIVE_UNTAGGED,
    "dot1q-tunnel": lib.PVS_VLAN_DOT1Q_TUNNEL,
    "mapped": lib.PVS_VLAN_MAPPED,
}


@dataclass(frozen=True, slots=True)
class VlanView:
    """A port's rules in the tables; see struct pvs_port_conf. `vlans` are the VIDs it carries or takes, None is all."""

    mode: str
    tag: int = 0
    vlans: frozenset[int] | None = None


def vlan_mode(view: VlanView) -> int:
    """Return the core's number for its mode."""
    return int(_MODES[view.mode])


@functools.lru_cache(maxsize=1024)
def vlan_bits(vids: frozenset[int]) -> Any:
    """Return a bit for each VID, as the core reads them; it is shared, and only read."""
    words = [0] * 64
    for vid in vids:
        words[vid // 64] |= 1 << vid % 64
    return ffi.new("uint64_t[64]", words)


class VlanCounters:
    """What came into each VLAN of a bridge, since this was made."""

    def __init__(self, switch: Any) -> None:
        """Begin at zero."""
        out = ffi.new("pvs_vlan_counters **")
        check(lib.pvs_vlan_counters_create(switch, out))
        self.counters = out[0]

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self.counters is not None:
            lib.pvs_vlan_counters_destroy(self.counters)
            self.counters = None

    def read(self, vid: int) -> tuple[int, int]:
        """Return packets and bytes."""
        out = ffi.new("uint64_t[2]")
        lib.pvs_vlan_counters_read(self.counters, vid, out, out + 1)
        return out[0], out[1]
