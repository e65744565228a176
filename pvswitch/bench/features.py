# SPDX-License-Identifier: Apache-2.0
"""What a case may switch on in the switches that are compared, each in its own words; ports are p0, p1 and so on.

p0 sends. Limits are so high that no frame is dropped or has to wait: what is measured is the cost of looking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RATE_KBPS = 400_000_000
BURST_BYTES = 4_000_000


@dataclass(frozen=True)
class Feature:
    """pvswitch: keys of ports and of the bridge. OVS: the arguments of calls of ovs-vsctl; None where it has none."""

    ports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bridge: Mapping[str, Any] = field(default_factory=dict)
    ovs: Sequence[Sequence[str]] | None = None


_LIMIT = {"rate_kbps": RATE_KBPS, "burst_bytes": BURST_BYTES}
_SENDER = "02:00:00:00:00:00"

FEATURES: Mapping[str, Feature] = {
    "access": Feature(
        ports={"p0": {"tag": 10}, "p1": {"tag": 10}},
        ovs=[["set", "port", "p0", "tag=10"], ["set", "port", "p1", "tag=10"]],
    ),
    "protected": Feature(ports={"p0": {"protected": True}}, ovs=[["set", "port", "p0", "protected=true"]]),
    "storm": Feature(ports={"p0": {"storm_control": {"broadcast_pps": 1_000_000_000}}}),
    "security": Feature(ports={"p0": {"port_security": {"max_macs": 4, "allowed_macs": [_SENDER]}}}),
    "policing": Feature(
        ports={"p0": {"policing": _LIMIT}},
        ovs=[
            [
                *("set", "interface", "p0", f"ingress_policing_rate={RATE_KBPS}"),
                f"ingress_policing_burst={BURST_BYTES * 8 // 1000}",
            ]
        ],
    ),
    "shaping": Feature(
        ports={"p1": {"shaping": _LIMIT}},
        ovs=[
            [
                *("set", "port", "p1", "qos=@q", "--", "--id=@q", "create", "qos", "type=egress-policer"),
                *(f"other-config:cir={RATE_KBPS * 125}", f"other-config:cbs={BURST_BYTES}"),
            ]
        ],
    ),
    "mirror": Feature(
        bridge={"mirrors": {"m": {"select_src_port": ["p0"], "output_port": "p2"}}},
        ovs=[
            [
                *("--id=@p0", "get", "port", "p0", "--", "--id=@p2", "get", "port", "p2", "--", "--id=@m"),
                *("create", "mirror", "name=m", "select-src-port=@p0", "output-port=@p2"),
                *("--", "set", "bridge", "br0", "mirrors=@m"),
            ]
        ],
    ),
}
