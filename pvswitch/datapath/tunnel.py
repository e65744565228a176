# SPDX-License-Identifier: Apache-2.0
"""Tunnels in the core: what a port becomes a tunnel by, and the VTEPs by number."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvswitch.datapath.core import check, ffi, lib, now_ns
from pvswitch.datapath.handles import TUNNEL_KINDS, DatapathUplink
from pvswitch.datapath.records import TunnelKind

if TYPE_CHECKING:
    from pvswitch.datapath.switch import Datapath

MAX_VTEPS: int = lib.PVS_MAX_VTEPS
UNMAPPED: int = lib.PVS_UNMAPPED
NEVER = 0xFFFFFFFF
"""The age of a VTEP from which nothing has come."""


@dataclass(frozen=True, slots=True)
class TunnelConf:
    """See struct pvs_tunnel_conf. `segments` are pairs of VLAN and VNI; a VLAN of None: all that the port carries.

    `sockets` stay the caller's, open until no published tables name the tunnel.
    """

    kind: TunnelKind
    endpoint: DatapathUplink
    ipv6: bool
    learning: bool
    too_big: bool
    segmentation: bool
    tos: int  # -1: the inner one's
    dst_port: int
    sockets: Sequence[int]
    segments: Sequence[tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class VtepInfo:
    """A VTEP. `age` is in seconds, NEVER where nothing has come from it."""

    address: str
    learned: bool
    age: int


class DatapathTunnel:
    """A tunnel's virtual networks, and how it encapsulates; published with a port."""

    def __init__(self, datapath: Datapath, switch: Any, conf: TunnelConf) -> None:
        """OSError EINVAL, ENOMEM. The endpoint must outlive it."""
        segments = ffi.new("struct pvs_segment_conf[]", len(conf.segments))
        for i, (vid, number) in enumerate(conf.segments):
            segments[i].vid = UNMAPPED if vid is None else vid
            segments[i].vni = number or 0
        sockets = ffi.new("int[]", list(conf.sockets))
        c = ffi.new("struct pvs_tunnel_conf *")
        c.kind, c.endpoint, c.ipv6 = TUNNEL_KINDS[conf.kind], conf.endpoint._port, conf.ipv6
        c.no_key = any(number is None for _, number in conf.segments)
        c.learning, c.too_big, c.segmentation = conf.learning, conf.too_big, conf.segmentation
        c.tos, c.dst_port = conf.tos, conf.dst_port
        c.n_sockets, c.sockets = len(conf.sockets), sockets
        c.n_segments, c.segments = len(conf.segments), segments
        out = ffi.new("pvs_tunnel **")
        check(lib.pvs_tunnel_create(switch, c, out))
        self._datapath = datapath
        self.tunnel = out[0]

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self.tunnel is not None:
            lib.pvs_tunnel_destroy(self.tunnel)
            self.tunnel = None

    async def set_remotes(self, lists: Iterable[tuple[int, Collection[int], Collection[int]]]) -> None:
        """Set the remotes of segments: its index, whom it floods to, who else is known; numbers of VTEPs."""
        await self._datapath.commands(self._remotes(*each) for each in lists)

    def _remotes(self, segment: int, flood: Collection[int], others: Collection[int]) -> Callable[[], int]:
        first, second = ffi.new("uint16_t[]", [*flood]), ffi.new("uint16_t[]", [*others])
        return lambda: int(lib.pvs_tunnel_set_remotes(self.tunnel, segment, first, len(flood), second, len(others)))

    def error(self) -> str | None:
        """Return what went wrong last when it sent."""
        code = lib.pvs_tunnel_error(self.tunnel)
        return os.strerror(code) if code else None


class DatapathVteps:
    """The VTEPs that the switch knows: those that control names, and those that tunnels have learned."""

    def __init__(self, switch: Any) -> None:
        """`switch` is the core's."""
        self._switch = switch
        self._info = ffi.new("struct pvs_vtep_info *")
        self._number = ffi.new("uint32_t *")

    def add(self, address: str) -> int:
        """Return the number of an address, which the caller owns from now on; OSError ENOSPC."""
        packed = ipaddress.ip_address(address).packed
        check(
            lib.pvs_vtep_add(
                self._switch, packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed, self._number
            )
        )
        return int(self._number[0])

    def info(self, number: int) -> VtepInfo | None:
        """Return what is known of a number, None for one that isn't in use."""
        if lib.pvs_vtep_info(self._switch, number, now_ns(), self._info) != 0:
            return None
        address = ipaddress.IPv6Address(bytes(ffi.buffer(self._info.address)))
        return VtepInfo(str(address.ipv4_mapped or address), self._info.learned, self._info.age_s)

    def unlink(self, number: int) -> None:
        """Have its address not found any more: the first step of a removal."""
        check(lib.pvs_vtep_unlink(self._switch, number))

    def free(self, number: int) -> None:
        """Free a number that nothing names any more: the last step."""
        check(lib.pvs_vtep_free(self._switch, number))
