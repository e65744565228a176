# SPDX-License-Identifier: Apache-2.0
"""The only door to the native data plane: `pvswitch._native` is imported nowhere else.

How it works: native/include/pvs_api.h is the interface; this package turns its integers into exceptions (`core.check`,
the one place) and its commands into awaitables. A command returns a sequence number at once; when the core's wake
descriptor becomes readable, finished numbers are reaped and their futures resolved. A finished command means that
every worker has passed a burst boundary: what it replaced may be freed.

Who may call: `ports.py` and the modules of ports and tunnels, on the event loop's thread, and tests. All handles
belong to one `Datapath` and must be closed before it.
"""

from pvswitch.datapath.capture import MAX_CAPTURES, MAX_FILTER, MAX_FRAME, Captured, DatapathCapture, Record
from pvswitch.datapath.core import (
    COUNTERS,
    DROP_REASONS,
    MAX_PAIRS,
    PUNT_REASONS,
    broken_reason,
    format_mac,
    now_ns,
)
from pvswitch.datapath.fdb import Fdb
from pvswitch.datapath.flow import (
    MAX_MASKS,
    NO_FLOW,
    FlowCount,
    FlowCounters,
    FlowMeter,
    FlowsView,
    FlowTable,
    MeterCount,
    MeterView,
)
from pvswitch.datapath.handles import DatapathHandle, DatapathPort, DatapathUplink, MemoryRegion
from pvswitch.datapath.records import (
    Event,
    FdbItem,
    Perf,
    PortCounters,
    Punt,
    QueueStatus,
    RingConf,
    RingStatus,
    TunnelKind,
    UplinkConf,
)
from pvswitch.datapath.switch import Datapath
from pvswitch.datapath.tunnel import MAX_VTEPS, NEVER, DatapathTunnel, DatapathVteps, TunnelConf, VtepInfo
from pvswitch.datapath.views import NO_LIMIT, BridgeView, Limit, MirrorView, PortView, SecurityView
from pvswitch.datapath.vlan import VlanCounters, VlanView

__all__ = [
    "COUNTERS",
    "DROP_REASONS",
    "MAX_CAPTURES",
    "MAX_FILTER",
    "MAX_FRAME",
    "MAX_MASKS",
    "MAX_PAIRS",
    "MAX_VTEPS",
    "NEVER",
    "NO_FLOW",
    "NO_LIMIT",
    "PUNT_REASONS",
    "BridgeView",
    "Captured",
    "Datapath",
    "DatapathCapture",
    "DatapathHandle",
    "DatapathPort",
    "DatapathTunnel",
    "DatapathUplink",
    "DatapathVteps",
    "Event",
    "Fdb",
    "FdbItem",
    "FlowCount",
    "FlowCounters",
    "FlowMeter",
    "FlowTable",
    "FlowsView",
    "Limit",
    "MemoryRegion",
    "MeterCount",
    "MeterView",
    "MirrorView",
    "Perf",
    "PortCounters",
    "PortView",
    "Punt",
    "QueueStatus",
    "Record",
    "RingConf",
    "RingStatus",
    "SecurityView",
    "TunnelConf",
    "TunnelKind",
    "UplinkConf",
    "VlanCounters",
    "VlanView",
    "VtepInfo",
    "broken_reason",
    "format_mac",
    "now_ns",
]
