# SPDX-License-Identifier: Apache-2.0
"""Pages of collections: of small ones at once, of large ones while others have their turn."""

from __future__ import annotations

import asyncio
import random

import pytest

from pvswitch.api.request import BATCH, _read_cursor, page, page_of_many


@pytest.mark.parametrize("limit", [1, 999, BATCH, 3 * BATCH])
async def test_a_large_collection_is_paged_as_a_small_one(limit: int) -> None:
    items = random.Random(limit).sample(range(10**6), 2 * BATCH + 7)
    query: dict[str, object] = {"limit": limit}
    for _ in range(3):
        expected = page(items, "{:07}".format, query)
        assert await page_of_many(iter(items), "{:07}".format, query) == expected
        if expected.next is None:
            break
        query["cursor"] = _read_cursor(expected.next)


async def test_others_have_their_turn_while_a_large_collection_is_read() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    await page_of_many(range(10 * BATCH), str, {})
    other.cancel()
    assert turns >= 10
