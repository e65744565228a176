# SPDX-License-Identifier: Apache-2.0
"""The identity of a switch, and the hardware addresses that follow from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.identity import Identity

SEED = bytes(range(16))
NAMES = st.tuples(st.text(max_size=40), st.text(max_size=15))


@given(NAMES)
def test_addresses_are_unicast_and_locally_administered(names: tuple[str, str]) -> None:
    first, *rest = bytes.fromhex(Identity(SEED).mac(*names).replace(":", ""))
    assert first & 0b11 == 0b10
    assert len(rest) == 5


def test_addresses_differ_by_name_place_and_switch() -> None:
    one, other = Identity(SEED), Identity.drawn()
    made = [one.mac("", "tap0"), one.mac("", "tap1"), one.mac("blue", "tap0"), one.mac("b", "luetap0")]
    assert len({*made, other.mac("", "tap0")}) == 5
    assert made[0] == Identity(SEED).mac("", "tap0")


def test_it_is_kept(tmp_path: Path) -> None:
    first = Identity.kept(tmp_path).mac("tap0")
    assert Identity.kept(tmp_path).mac("tap0") == first
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]


@pytest.mark.parametrize("content", [b"", b"00" * 15, b"xyz", b"\xff\xfe"])
def test_a_damaged_one_is_drawn_anew(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "identity").write_bytes(content)
    first = Identity.kept(tmp_path).mac("tap0")
    assert "drawn anew" in capsys.readouterr().out
    assert Identity.kept(tmp_path).mac("tap0") == first


def test_one_that_cannot_be_kept_is_used_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".identity.tmp").mkdir()
    assert Identity.kept(tmp_path).mac("tap0")
    assert "not kept" in capsys.readouterr().out
