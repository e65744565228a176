# SPDX-License-Identifier: Apache-2.0
"""The session and guest memory: regions that make no sense, slots, and descriptors that never pile up."""

from __future__ import annotations

import errno

import pytest

from pvswitch.errors import PvswitchError
from pvswitch.vhost_user.backend import (
    AddRegion,
    RemoveRegion,
    ReplaceMemory,
)
from pvswitch.vhost_user.messages import (
    MemRegion,
    MemSlot,
    MemTable,
    Request,
)
from pvswitch.vhost_user.session import MEMORY_SLOTS, ProtocolError

from .fakes import REGION, Conversation, new_fd, open_fds, refuses

GIB = 1 << 30


def test_cve_2020_10726_descriptors_of_memory_never_pile_up(running: Conversation) -> None:
    before = open_fds()
    for _ in range(20):
        running.give_memory()
    running.fail(ReplaceMemory, OSError(errno.ENOMEM, "no"))
    with pytest.raises(ProtocolError):
        running.give_memory()
    running.say(Request.ADD_MEM_REG, MemSlot(MemRegion(GIB, 4096, GIB, 0)), [new_fd()])
    running.fail(AddRegion, PvswitchError("file too short"))
    slot = MemSlot(MemRegion(2 * GIB, 4096, 2 * GIB, 0))
    assert running.say(Request.ADD_MEM_REG, slot, [new_fd()], need_reply=True) == 1
    assert open_fds() == before
    assert running.session.state.regions == 2


@pytest.mark.parametrize(
    ("region", "match"),
    [
        (MemRegion(0, 0, 0, 0), "empty"),
        (MemRegion(2**64 - 4096, 8192, 0, 0), "wraps"),
        (MemRegion(0, 8192, 2**64 - 4096, 0), "wraps"),
        (MemRegion(0, 2**64 - 1, 1, 4096), "beyond any file"),
        (MemRegion(0, 4096, 0, 2**63 - 4096), "beyond any file"),
        (MemRegion(0, 4096, 0, 2**64 - 1), "beyond any file"),
    ],
)
def test_cve_2018_1059_regions_must_make_sense(talk: Conversation, region: MemRegion, match: str) -> None:
    talk.negotiate()
    refuses(talk, Request.ADD_MEM_REG, MemSlot(region), [new_fd()], match=match)
    refuses(talk, Request.SET_MEM_TABLE, MemTable((region,)), [new_fd()], match=match)
    assert talk.session.state.regions == 0


def test_the_last_page_of_the_address_space_is_legal(talk: Conversation) -> None:
    talk.say(Request.ADD_MEM_REG, MemSlot(MemRegion(2**64 - 4096, 4096, 2**64 - 4096, 0)), [new_fd()])
    assert talk.session.state.memory_bytes == 4096


@pytest.mark.parametrize("other", [MemRegion(4096, 8192, GIB, 0), MemRegion(GIB, 4096, REGION.uva, 0)])
def test_overlaps_in_either_address_space(talk: Conversation, other: MemRegion) -> None:
    talk.give_memory()
    refuses(talk, Request.ADD_MEM_REG, MemSlot(other), [new_fd()], match="overlaps")
    refuses(talk, Request.SET_MEM_TABLE, MemTable((REGION, other)), [new_fd(), new_fd()], match="overlaps")
    assert talk.session.state.regions == 1, "the old map stays"


def test_a_table_replaces_all_regions_with_their_descriptors_in_order(talk: Conversation) -> None:
    talk.give_memory()
    regions = tuple(MemRegion(i * GIB, 4096 * (i + 1), i * GIB, 0) for i in range(8))
    fds = [new_fd() for _ in range(8)]
    talk.say(Request.SET_MEM_TABLE, MemTable(regions), fds)
    (_, effect) = talk.of(ReplaceMemory)
    assert [(r.fd, r.gpa, r.size) for r in effect.regions] == [
        (fd, r.gpa, r.size) for fd, r in zip(fds, regions, strict=True)
    ]
    assert talk.session.state.memory_bytes == 4096 * 36


def test_slots_are_limited(talk: Conversation) -> None:
    for i in range(MEMORY_SLOTS):
        talk.say(Request.ADD_MEM_REG, MemSlot(MemRegion(i * GIB, 4096, i * GIB, 0)), [new_fd()])
    slot = MemSlot(MemRegion(600 * GIB, 4096, 600 * GIB, 0))
    refuses(talk, Request.ADD_MEM_REG, slot, [new_fd()], match="all 509 memory slots")


def test_remove_matches_addresses_and_size_but_not_offset_and_closes_a_descriptor(talk: Conversation) -> None:
    talk.give_memory()
    for wrong in (
        MemRegion(4096, REGION.size, REGION.uva, 0),
        MemRegion(0, REGION.size, 0, 0),
        MemRegion(0, 4096, REGION.uva, 0),
    ):
        refuses(talk, Request.REM_MEM_REG, MemSlot(wrong), match="no memory region")
    before = open_fds()
    talk.say(Request.REM_MEM_REG, MemSlot(MemRegion(0, REGION.size, REGION.uva, 99)), [new_fd()])
    assert open_fds() == before
    (removed,) = talk.of(RemoveRegion)
    assert (removed.region.gpa, removed.region.size, removed.region.uva, removed.region.fd) == (
        0,
        REGION.size,
        REGION.uva,
        -1,
    )
    assert talk.session.state.regions == 0
