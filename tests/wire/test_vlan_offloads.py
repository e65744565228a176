# SPDX-License-Identifier: Apache-2.0
"""Frames with something left undone that get or lose a tag on their way: whole, or finished with their tag.

`tests.vlans` says which tags a copy has, `tests.wire.offloads` what each receiver gets for such a request.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from pvswitch.guest import Guest
from pvswitch.process import SwitchProcess
from pvswitch.vhost_user.features import Feature
from tests.system.conftest import running_switch
from tests.vlans import Mode, tags_of, through, with_tags
from tests.wire.offloads import ABILITIES, ALL, BUFFER, LARGEST, Request, receive, sendable

pytestmark = pytest.mark.asyncio(loop_scope="module")

BROADCAST = "ff:ff:ff:ff:ff:ff"
MODES = {
    "access7": Mode("access", 7),
    "access100": Mode("access", 100),
    "trunk": Mode(),
    "untagged7": Mode("native-untagged", 7),
    "tagged100": Mode("native-tagged", 100),
    "tunnel7": Mode("dot1q-tunnel", 7),
    "tunnel100": Mode("dot1q-tunnel", 100),
}
RECEIVERS = [*itertools.product(MODES, ["none", "none_no_mrg", "csum", "all"])]
ROOM = LARGEST + 4 + 12


def edited(asked: Request, source: Mode, target: Mode) -> Request | None:
    """The request as it leaves by a port; None: it doesn't."""
    tags = through(source, target, tags_of(asked.frame))
    if tags is None:
        return None
    frame = with_tags(asked.frame, tags)
    longer = len(frame) - len(asked.frame)
    h = asked.header
    return Request(frame, replace(h, csum_start=h.csum_start + longer, hdr_len=h.hdr_len and h.hdr_len + longer))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def switch() -> AsyncIterator[SwitchProcess]:
    """Senders and receivers of each mode."""
    ports = {f"from-{name}": mode.keys for name, mode in MODES.items()}
    ports |= {f"to-{name}-{ability}": MODES[name].keys for name, ability in RECEIVERS}
    async with running_switch({"ports": ports}) as switch:
        yield switch


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receivers(switch: SwitchProcess) -> AsyncIterator[dict[tuple[str, str], Guest]]:
    """A guest of each ability on a port of each mode."""
    async with contextlib.AsyncExitStack() as stack:
        found = {}
        for name, ability in RECEIVERS:
            features = ABILITIES[ability]
            buffer = BUFFER if features & Feature.MRG_RXBUF else ROOM
            guest = Guest(
                switch.port_socket(f"to-{name}-{ability}"),
                features=features,
                queue_size=64,
                rx_buf_size=buffer,
                tx_buf_size=BUFFER,
            )
            found[name, ability] = await stack.enter_async_context(guest)
        yield found


@pytest.mark.parametrize("source", MODES)
async def test_requests_are_finished_with_other_tags(
    switch: SwitchProcess, receivers: dict[tuple[str, str], Guest], source: str
) -> None:
    pieces = 0
    socket = switch.port_socket(f"from-{source}")
    async with Guest(socket, features=ALL, queue_size=64, rx_buf_size=BUFFER, tx_buf_size=ROOM) as guest:
        for kind, asked in sendable(guest, BROADCAST).items():
            await guest.send(asked.frame, header=asked.header)
            for (name, ability), receiver in receivers.items():
                copy = edited(asked, MODES[source], MODES[name])
                if copy is not None:
                    pieces += await receive(receiver, copy, f"{kind} from {source} to {name}, {ability}")
    assert pieces > 100
    for receiver in receivers.values():
        assert receiver.receive_nowait() is None
