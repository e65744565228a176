# SPDX-License-Identifier: Apache-2.0
"""Every reason of API.md for a link that is down, provoked for real; seen in the API, `show ports` and `doctor`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pvswitch.guest import Guest, GuestError
from pvswitch.process import SwitchProcess
from pvswitch.state import LinkReason
from pvswitch.vhost_user.features import Feature
from pvswitch.vhost_user.messages import U64, Request
from tests.wire.lab import expect, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

Stack = contextlib.AsyncExitStack
Provoke = Callable[[SwitchProcess, Stack], Awaitable[Callable[[], Awaitable[None]]]]


async def admin_down(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    await stack.enter_async_context(Guest(switch.port_socket("a")))
    await switch.cli("port", "set", "a", "enabled=false")

    async def heal() -> None:
        await switch.cli("port", "set", "a", "enabled=true")

    return heal


async def waiting_for_frontend(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    async def heal() -> None:
        await stack.enter_async_context(Guest(switch.port_socket("a")))

    return heal


async def driver_not_started(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    guest = Guest(switch.port_socket("a"))
    stack.push_async_callback(guest.close)
    await guest.connect(start=False)
    return guest.start


async def memory_not_shared(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    """As from a VM with share=off: it kicks, and nothing ever appears in the memory that we have."""
    guest = await stack.enter_async_context(Guest(switch.port_socket("a"), share=False))
    await guest.send(frame(b"\xff" * 6, guest.mac))

    async def heal() -> None:
        await guest.close()
        await switch.wait_link("a", "waiting_for_frontend")
        await stack.enter_async_context(Guest(switch.port_socket("a")))

    return heal


async def features_refused(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    guest = Guest(switch.port_socket("a"))
    stack.callback(guest.kill)
    await guest.connect(start=False)
    assert not guest.offered & Feature.HOST_UFO
    with pytest.raises(GuestError, match=r"refused SET_FEATURES|hung up"):
        await guest.request(Request.SET_FEATURES, U64(guest.features | Feature.HOST_UFO))
    guest.kill()

    async def heal() -> None:
        await stack.enter_async_context(Guest(switch.port_socket("a")))

    return heal


async def queue_disabled(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    guest = await stack.enter_async_context(Guest(switch.port_socket("a")))
    await guest.set_enabled(False)

    async def heal() -> None:
        await guest.set_enabled(True)

    return heal


async def broken(switch: SwitchProcess, stack: Stack) -> Callable[[], Awaitable[None]]:
    guest = await stack.enter_async_context(Guest(switch.port_socket("a")))
    guest.low.raw_post(1, 9999)
    guest.low.kick(1, force=True)
    return guest.restart


PROVOKED: dict[LinkReason, Provoke] = {
    LinkReason.ADMIN_DOWN: admin_down,
    LinkReason.WAITING_FOR_FRONTEND: waiting_for_frontend,
    LinkReason.DRIVER_NOT_STARTED: driver_not_started,
    LinkReason.MEMORY_NOT_SHARED: memory_not_shared,
    LinkReason.FEATURES_REFUSED: features_refused,
    LinkReason.QUEUE_DISABLED: queue_disabled,
    LinkReason.BROKEN: broken,
}
# What the message must name: the cause where it is not the reason itself, and the remedy.
NAMED = {
    LinkReason.ADMIN_DOWN: ["pvswitch port set a enabled=true"],
    LinkReason.WAITING_FOR_FRONTEND: ["pvswitch port qemu-args a", "a.sock"],
    LinkReason.DRIVER_NOT_STARTED: ["driver"],
    LinkReason.MEMORY_NOT_SHARED: ["share=on"],
    LinkReason.FEATURES_REFUSED: ["host_ufo"],
    LinkReason.QUEUE_DISABLED: ["disabled"],
    LinkReason.BROKEN: ["beyond the ring's size", "restart the VM"],
}


OF_UPLINKS = {LinkReason.INTERFACE_MISSING, LinkReason.INTERFACE_DOWN}  # provoked in test_uplinks.py


async def test_there_is_a_test_for_every_reason() -> None:
    assert set(PROVOKED) == set(NAMED) == set(LinkReason) - OF_UPLINKS


@pytest.mark.parametrize("reason", PROVOKED)
async def test_a_link_that_is_down_says_why_and_comes_back(
    switch: SwitchProcess, stack: Stack, reason: LinkReason
) -> None:
    await switch.wait_link("a", "waiting_for_frontend")
    heal = await PROVOKED[reason](switch, stack)
    await switch.wait_link("a", reason)

    state: dict[str, Any] = (await switch.get("/ports/a"))["state"]
    assert (state["link"], state["reason"]) == ("down", reason)
    for words in NAMED[reason]:
        assert words in state["message"], state["message"]
    listed = json.loads(await switch.cli("show", "ports", "-f", "json"))["items"]
    assert [port["state"]["reason"] for port in listed if port["name"] == "a"] == [reason]
    table = await switch.cli("show", "ports")
    assert [line.split()[2:4] for line in table.splitlines() if line.startswith("a ")] == [["down", reason]]
    advice = await switch.cli("doctor", "a")
    assert advice.startswith(f"a: {reason}: {state['message']}")

    await heal()
    await switch.wait_link("a")
    state = (await switch.get("/ports/a"))["state"]
    assert state.get("reason") is None
    assert state.get("message") is None


async def test_frames_for_a_port_without_a_link_are_counted(switch: SwitchProcess, stack: Stack) -> None:
    """Known unicast is dropped at the destination as link_down; a flood simply doesn't go there."""
    a = await stack.enter_async_context(Guest(switch.port_socket("a")))
    b = await stack.enter_async_context(Guest(switch.port_socket("b")))
    await switch.cli("fdb", "add", "br0", b.mac.hex(":"), "b")
    try:
        await b.set_enabled(False)
        before = (await switch.get("/ports/b/stats"))["tx_drops"].get("link_down", 0)
        await a.send(frame(b.mac, a.mac))
        await a.send(frame(b"\xff" * 6, a.mac))
        await a.drain()
        await b.set_enabled(True)
        last = frame(b.mac, a.mac, seed=9)
        await a.send(last)
        await expect(b, [last])
        assert (await switch.get("/ports/b/stats"))["tx_drops"]["link_down"] == before + 1
    finally:
        await switch.cli("fdb", "del", "br0", b.mac.hex(":"))
