# SPDX-License-Identifier: Apache-2.0
"""Flow rules for the generator's UDP frames: tables of any size, of one shape of masks or of 50, that every frame hits.

The generator's tuple k goes from port 1000 + k / 1000 to port 1000 + k % 1000, 10.0.0.1 to 10.0.0.2. Up to a thousand
rules tell destination ports apart, more of them pairs of ports: whatever number of tuples there is, each frame matches
one rule, and the rules that are hit are spread over the table, which is in no order. With several masks the rules take
turns: each shape has another prefix of the source, and later ones the destination too, at a priority of its own, so
that the shapes above the one that matches have to be looked through. Pure functions.
"""

from __future__ import annotations

import ipaddress
import random
from typing import Any

from pvswitch.flows.text import show_flow

PORTS, FIRST_PORT = 1000, 1000
SOURCE, DESTINATION = "10.0.0.1", "10.0.0.2"
SHORTEST, PREFIXES = 8, 25
MAX_MASKS = 2 * PREFIXES
PRIORITY = 100
RECEIVER = "p1"


def rules(count: int, masks: int = 1, first: int = 0) -> list[str]:
    """Return rules as the text of a file for ovs-ofctl, one in a line; `first` is which one to begin with."""
    found = [show_flow(_rule(k, masks, pairs=first + count > PORTS)) for k in range(first, first + count)]
    if count == 1:
        found = [show_flow({"priority": PRIORITY, "match": _UDP, "actions": [f"output:{RECEIVER}"]})]
    random.Random(count).shuffle(found)
    return found


_UDP = {"dl_type": "0x0800", "nw_proto": 17}


def _rule(k: int, masks: int, *, pairs: bool) -> dict[str, Any]:
    shape = k % masks
    match: dict[str, Any] = {**_UDP, "tp_dst": str(FIRST_PORT + k % PORTS)}
    if pairs:
        match["tp_src"] = str(FIRST_PORT + k // PORTS)
    if masks > 1:
        prefix = ipaddress.ip_network(f"{SOURCE}/{SHORTEST + shape % PREFIXES}", strict=False)
        match["nw_src"] = str(prefix)
    if shape >= PREFIXES:
        match["nw_dst"] = DESTINATION
    return {"priority": PRIORITY + shape, "match": match, "actions": [f"output:{RECEIVER}"]}
