# SPDX-License-Identifier: Apache-2.0
"""The native module, and what its integers mean: `check` turns -errno into OSError, here and nowhere else."""

from __future__ import annotations

import os
import time

from pvswitch._native import ffi, lib

__all__ = [
    "COUNTERS",
    "DROP_REASONS",
    "MAX_PAIRS",
    "PUNT_REASONS",
    "broken_reason",
    "check",
    "ffi",
    "format_mac",
    "lib",
    "now_ns",
]

COUNTERS: tuple[str, ...] = tuple(ffi.string(lib.pvs_counter_name(i)).decode() for i in range(lib.pvs_counter_count()))
DROP_REASONS: tuple[str, ...] = tuple(
    ffi.string(lib.pvs_drop_reason_name(i)).decode() for i in range(lib.pvs_drop_reason_count())
)
PUNT_REASONS: tuple[str, ...] = ("bpdu",)
MAX_PAIRS: int = lib.PVS_MAX_PAIRS


def check(rc: int) -> int:
    """Return what the core returned, or raise OSError for -errno."""
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


def broken_reason(code: int) -> str:
    """Return in words why a port is latched broken."""
    return str(ffi.string(lib.pvs_broken_reason(code)).decode())


def format_mac(mac: bytes) -> str:
    """Return six bytes as "52:54:00:12:34:56"."""
    return mac.hex(":")


def now_ns() -> int:
    """Return the core's clock: CLOCK_MONOTONIC in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
