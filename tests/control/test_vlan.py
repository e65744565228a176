# SPDX-License-Identifier: Apache-2.0
"""What a port's VLAN keys come to, and how lists of VLANs are written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch import vlan
from pvswitch.model import SwitchConfig, VhostUserPort
from tests.vlans import MODES, Mode, Tag, leave

VIDS = range(4096)


def port(**keys: Any) -> VhostUserPort:
    """A port that is valid."""
    found = SwitchConfig.model_validate({"ports": {"p": keys}}).ports["p"]
    assert isinstance(found, VhostUserPort)
    return found


@given(st.lists(st.integers(0, 4094) | st.tuples(st.integers(0, 4000), st.integers(0, 94))))
def test_a_list_names_what_was_meant(items: list[int | tuple[int, int]]) -> None:
    given_list = [item if isinstance(item, int) else f"{item[0]}-{item[0] + item[1]}" for item in items]
    meant = set()
    for item in items:
        meant |= {item} if isinstance(item, int) else {*range(item[0], item[0] + item[1] + 1)}
    read = port(trunks=given_list).trunks
    assert [*vlan.expand(read)] == sorted(meant)
    assert port(trunks=[*read]).trunks == read


def test_a_list_is_written_short() -> None:
    assert port(trunks=[5, 3, "1-2", 9, 10, 5, "100-102", 7]).trunks == ("1-3", 5, 7, 9, 10, "100-102")


@pytest.mark.parametrize(
    ("keys", "mode"),
    [
        ({}, "trunk"),
        ({"trunks": [1]}, "trunk"),
        ({"tag": 5}, "access"),
        ({"tag": 5, "vlan_mode": "native-tagged", "trunks": [1]}, "native-tagged"),
        ({"tag": 5, "vlan_mode": "dot1q-tunnel", "cvlans": [1]}, "dot1q-tunnel"),
    ],
)
def test_the_mode_follows_from_the_other_keys(keys: dict[str, Any], mode: str) -> None:
    assert port(**keys).effective_vlan_mode == mode


def test_a_trunk_of_everything_has_no_rules() -> None:
    assert vlan.rules(port()) is None
    assert vlan.rules(port(vlan_mode="trunk", trunks=[])) is None
    assert vlan.rules(port(trunks=["0-4094"])) is not None


@pytest.mark.parametrize("name", MODES)
def test_members_are_those_that_frames_leave_by(name: str) -> None:
    mode: Mode = MODES[name]
    rules = vlan.rules(port(**mode.keys))
    for vid in (0, 5, 10, 20, 30, 40, 4094):
        customers = mode.cvlans if mode.mode == "dot1q-tunnel" else {0}
        inside = [(*((Tag(vid),) if vid else ()), *((Tag(inner),) if inner else ())) for inner in sorted(customers)[:2]]
        copies = [left for tags in inside if (left := leave(mode, tags)) is not None]
        member = vlan.member(name, rules, vid)
        assert (member is not None) == bool(copies), vid
        if member is not None:
            assert member.tagged == any(vid and left[:1] == (Tag(vid),) for left in copies), vid


def test_named_are_own_vlans_and_trunks() -> None:
    ports = [port(), port(tag=7), port(trunks=[1, "3-5"]), port(tag=9, vlan_mode="dot1q-tunnel", cvlans=[100])]
    assert vlan.named(ports) == {1, 3, 4, 5, 7, 9}
