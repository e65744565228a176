# SPDX-License-Identifier: Apache-2.0
"""The numbers of VTEPs: who has them, and when one goes.

The core's tables hold numbers instead of addresses. Tunnels take a number for each address that they are told, and give
it back; workers take numbers for those that they learn. One that nobody of control has is removed when nothing came
from it for longer than any bridge remembers an address: it is unlinked, so that its address isn't found any more, the
FDBs are flushed of it, and then it is free. What workers learn is seen by looking at every number now and then, since
an event can be lost. Used by `tunnels.py` and `tunnel_port.py`, on the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from pvswitch.datapath import MAX_VTEPS, Datapath

LOOKED_AT = 256
"""Numbers that one call of `tidy` looks at."""
REMOVED = 512
"""Numbers that one call of `tidy` removes at most: each costs a walk through the FDBs."""
SLICE = 16
"""Of them, before others have their turn."""


class Vteps:
    """The VTEPs of a switch."""

    def __init__(self, datapath: Datapath, flush: Callable[[int], None]) -> None:
        """`flush` removes what is behind a number from every FDB."""
        self._datapath = datapath
        self._core = datapath.vteps()
        self._flush = flush
        self._users: Counter[int] = Counter()
        self._addresses: dict[int, str] = {}
        self._unused: set[int] = set()  # given back by their last user
        self._next = 1

    def take(self, address: str) -> int:
        """Return the number of an address; OSError ENOSPC. Give it back with `give`."""
        number = self._core.add(address)
        self._users[number] += 1
        self._addresses[number] = address
        self._unused.discard(number)
        return number

    def take_all(self, addresses: Iterable[str]) -> dict[str, int]:
        """Take several, or none: OSError ENOSPC."""
        taken: dict[str, int] = {}
        try:
            for address in addresses:
                if address not in taken:
                    taken[address] = self.take(address)
        except OSError:
            self.give(*taken.values())
            raise
        return taken

    def give(self, *numbers: int) -> None:
        """Give numbers back; the core is told no more of them by then."""
        for number in numbers:
            self._users[number] -= 1
            if self._users[number] <= 0:
                del self._users[number]
                self._unused.add(number)

    def address(self, number: int) -> str | None:
        """Return the address of a number, None for one that isn't in use."""
        if number and number not in self._addresses and (info := self._core.info(number)) is not None:
            self._addresses[number] = info.address
        return self._addresses.get(number)

    def number(self, address: str) -> int:
        """Return the number of an address, 0 where it has none. It may look at every number."""
        known = (number for number in self._users if self._addresses[number] == address)
        learned = (number for number in range(1, MAX_VTEPS) if self.address(number) == address)
        return next(itertools.chain(known, learned), 0)

    def __len__(self) -> int:
        """Return how many have a number that control has asked for."""
        return len(self._users)

    @property
    def busy(self) -> bool:
        """Whether there is something to be removed that control has had."""
        return bool(self._users or self._unused)

    async def tidy(self, silence: int | None) -> None:
        """Remove some that nobody has, which were silent for more than `silence` seconds; None: those stay."""
        doomed = [*self._unused][:REMOVED]
        self._unused.difference_update(doomed)
        if silence is not None:
            doomed += self._silent(silence, REMOVED - len(doomed))
        await self._remove(doomed)

    def _silent(self, silence: int, room: int) -> list[int]:
        """Return learned ones that are due, of the next few numbers."""
        found: list[int] = []
        first = self._next
        for number in range(first, min(first + LOOKED_AT, MAX_VTEPS)):
            if len(found) == room:
                break
            self._next = number + 1
            info = self._core.info(number)
            if info is not None and info.learned and info.age > silence and number not in self._users:
                found.append(number)
        if self._next >= MAX_VTEPS:
            self._next = 1
        return found

    async def _remove(self, doomed: Collection[int]) -> None:
        if not doomed:
            return
        for number in doomed:
            self._core.unlink(number)
            self._addresses.pop(number, None)
        await self._datapath.sync()
        for place, number in enumerate(doomed):
            self._flush(number)
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        await self._datapath.sync()
        for number in doomed:
            self._core.free(number)

    async def close(self) -> None:
        """Remove what is left of control's; learned ones go with the switch."""
        await self._remove([*self._unused, *self._users])
        self._unused.clear()
        self._users.clear()
