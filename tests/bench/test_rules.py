# SPDX-License-Identifier: Apache-2.0
"""Flow rules of the benchmarks: each of the generator's frames hits one; they are as many and as different as said."""

from __future__ import annotations

import pytest

from pvswitch.bench.rules import MAX_MASKS, rules
from pvswitch.flows.text import read_flow

TABLES = [(1, 1), (1_000, 1), (1_000, MAX_MASKS), (2_000, MAX_MASKS)]
TUPLES = 2_000


def matches(tuple_: int) -> dict[str, str]:
    """What the generator's frames have, as pvs_driver.h says it."""
    return {"tp_src": str(1000 + tuple_ // 1000), "tp_dst": str(1000 + tuple_ % 1000)}


@pytest.mark.parametrize(("count", "masks"), TABLES)
def test_each_frame_hits_one_rule_and_hits_are_spread(count: int, masks: int) -> None:
    hits: dict[tuple[str | None, str | None], list[int]] = {}
    for place, line in enumerate(rules(count, masks)):
        match = read_flow(line)["match"]
        hits.setdefault((match.get("tp_src"), match.get("tp_dst")), []).append(place)
    assert len(hits) == count
    found = []
    for number in range(TUPLES):
        ports = matches(number)
        (place,) = [
            each
            for key in {(None, None), (None, ports["tp_dst"]), (ports["tp_src"], ports["tp_dst"])}
            for each in hits.get(key, [])
        ]
        found.append(place)
    assert len(set(found)) == min(count, TUPLES)
    assert count == 1 or found[:TUPLES] != sorted(found[:TUPLES])


@pytest.mark.parametrize(("count", "masks"), TABLES)
def test_there_are_as_many_shapes_as_said_each_with_its_priority(count: int, masks: int) -> None:
    flows = [read_flow(line) for line in rules(count, masks)]
    shapes = {
        (flow["priority"], tuple(sorted(flow["match"])), str(flow["match"].get("nw_src")).rpartition("/")[2])
        for flow in flows
    }
    assert len(shapes) == len({priority for priority, _, _ in shapes}) == masks
    assert len(flows) == len({str(flow["match"]) for flow in flows}) == count
    assert all(flow["actions"] == ["output:p1"] for flow in flows)
    assert all(str(flow["match"].get("nw_src", "10.")).startswith("10.") for flow in flows)


def test_a_batch_goes_on_where_the_table_ends() -> None:
    assert not set(rules(2_000)) & set(rules(1_000, first=2_000))
