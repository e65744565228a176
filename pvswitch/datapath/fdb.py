# SPDX-License-Identifier: Apache-2.0
"""One bridge's forwarding database in the core."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Literal

from pvswitch.datapath.core import check, ffi, format_mac, lib
from pvswitch.datapath.records import FdbItem

TOLD = 256
"""How many of the addresses that a sweep removes are named: those that events tell of are limited too."""


class Fdb:
    """One bridge's forwarding database. Time is the core's clock; ports are named by reference."""

    def __init__(self, limit: int, aging: int, seed: int | None = None) -> None:
        """`limit` entries (1 to 1,000,000), `aging` seconds (0 = never)."""
        out = ffi.new("pvs_fdb **")
        check(lib.pvs_fdb_create(limit, aging, secrets.randbits(64) if seed is None else seed, out))
        self.limit = limit
        self._fdb = out[0]
        self._cursor = ffi.new("uint32_t *")

    def close(self) -> None:
        """Free it; no published table may name it any more."""
        if self._fdb is not None:
            lib.pvs_fdb_destroy(self._fdb)
            self._fdb = None

    def __len__(self) -> int:
        """Return how many entries it holds, expired ones included until they are swept."""
        return int(lib.pvs_fdb_count(self._fdb))

    def set_aging(self, seconds: int) -> None:
        """Set the ageing time; 0 = never."""
        lib.pvs_fdb_set_aging(self._fdb, seconds)

    def set_static(self, mac: bytes, vid: int, port: int, vtep: int = 0) -> None:
        """Make a static entry, in the place of any other; OSError ENOSPC when only static ones are left."""
        check(lib.pvs_fdb_set_static(self._fdb, mac, vid, port, vtep))

    def remove(self, mac: bytes, vid: int) -> bool:
        """Remove an entry of either kind; False when there was none."""
        return bool(lib.pvs_fdb_remove(self._fdb, mac, vid) == 0)

    def flush(
        self,
        *,
        port: int | None = None,
        vid: int | None = None,
        mac: bytes | None = None,
        sticky: bool | None = None,
        vtep: int | None = None,
    ) -> int:
        """Remove the learned entries that match all that is given; return how many. `sticky`: only those, or others."""
        wanted = ffi.new("struct pvs_fdb_filter *")
        if sticky is not None:
            wanted.by_sticky, wanted.sticky = True, sticky
        if port is not None:
            wanted.by_port, wanted.port_ref = True, port
        if vid is not None:
            wanted.by_vid, wanted.vid = True, vid
        if vtep is not None:
            wanted.by_vtep, wanted.vtep = True, vtep
        if mac is not None:
            wanted.by_mac = True
            ffi.memmove(wanted.mac, mac, 6)
        return int(lib.pvs_fdb_flush(self._fdb, wanted))

    def sweep(self, at_ns: int, budget: int = 65536) -> tuple[int, list[FdbItem]]:
        """Remove what is too old, at most `budget` slots at a call from where the last ended.

        Returns how many were removed, and the first TOLD of them.
        """
        out = ffi.new("struct pvs_fdb_item[]", TOLD)
        n = int(lib.pvs_fdb_sweep(self._fdb, at_ns, self._cursor, budget, out, TOLD))
        return n, [_item(out[i]) for i in range(min(n, TOLD))]

    def items(self, at_ns: int) -> Iterator[FdbItem]:
        """Iterate over the entries that have not expired. Entries may change meanwhile; it ends when this is closed."""
        room, cursor = 512, ffi.new("uint32_t *")
        out = ffi.new("struct pvs_fdb_item[]", room)
        while self._fdb is not None:
            n = lib.pvs_fdb_dump(self._fdb, at_ns, cursor, out, room)
            for i in range(n):
                yield _item(out[i])
            if cursor[0] == 0:
                return

    def lookup(self, mac: bytes, vid: int, at_ns: int) -> FdbItem | None:
        """Return what is known of an address, or None."""
        out = ffi.new("struct pvs_fdb_item *")
        return _item(out) if lib.pvs_fdb_lookup(self._fdb, mac, vid, at_ns, out) == 0 else None

    def copy_from(self, other: Fdb) -> None:
        """Take over the entries of `other` as far as they fit."""
        lib.pvs_fdb_copy(self._fdb, other._fdb)


def _item(item: Any) -> FdbItem:
    kind: Literal["dynamic", "static", "sticky"] = "dynamic"
    if item.is_static:
        kind = "static"
    elif item.is_sticky:
        kind = "sticky"
    return FdbItem(format_mac(bytes(ffi.buffer(item.mac))), item.vid, item.port_ref, item.age_s, kind, item.vtep)
