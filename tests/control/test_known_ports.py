# SPDX-License-Identifier: Apache-2.0
"""Which port a reference of the core means."""

from __future__ import annotations

from pvswitch.known_ports import REMEMBERED, KnownPort, KnownPorts


def test_ports_are_known_by_reference_and_by_index() -> None:
    known = KnownPorts()
    known.note(0x1_0005, "old", "br0")
    known.note(0x2_0005, "new", "br0")
    known.note(0x2_0005, "new", "br1")
    assert (known.name(0x1_0005), known.get(0x2_0005)) == ("old", KnownPort("new", "br1"))
    assert (known.name_of_index(5), known.name_of_index(6), known.get(0)) == ("new", None, None)
    assert (known.has("old"), known.has("new"), known.has("no")) == (True, True, False)


def test_those_that_are_gone_for_long_are_forgotten() -> None:
    known = KnownPorts()
    for generation in range(1, REMEMBERED + 3):
        known.note(generation << 16 | 7, f"p{generation}", "br0")
    assert [known.name(generation << 16 | 7) for generation in (1, 2, 3)] == [None, None, "p3"]
    assert known.name_of_index(7) == f"p{REMEMBERED + 2}"
