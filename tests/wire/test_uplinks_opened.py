# SPDX-License-Identifier: Apache-2.0
"""Interfaces as they are opened and adjusted, before a port makes anything of them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from pvswitch import uplink
from pvswitch.model import AfPacketPort, TapPort
from pvswitch.namespace import Namespace
from pvswitch.uplink import adjust, open_uplink
from tests.wire.uplinks import addresses, namespace, packet, tap, veth


@pytest_asyncio.fixture
async def far() -> AsyncIterator[Namespace]:
    async with namespace() as made:
        yield made


async def test_a_packet_socket_begins_without_an_error(far: Namespace) -> None:
    """One that is bound while its interface is down has ENETDOWN in store for the first who uses it."""
    await veth(far)
    opened = await open_uplink(AfPacketPort.model_validate(packet(far)))
    try:
        with socket.socket(fileno=os.dup(opened.fds[0])) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert opened.link.up
    finally:
        opened.close()


async def test_a_card_that_puts_segments_together_is_told_not_to(
    far: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(uplink, "_switch_off_lro", lambda _, port: told.append(port.ifname))
    await veth(far)
    (await open_uplink(AfPacketPort.model_validate(packet(far)))).close()
    assert told == ["v0"]


async def test_adjusting_returns_to_what_was_when_it_fails(far: Namespace) -> None:
    opened = await open_uplink(TapPort.model_validate(tap(far, addresses=["192.0.2.1/24"])))
    try:
        await far.command("sysctl", "-q", "net.ipv6.conf.tap0.disable_ipv6=1")
        wanted = TapPort.model_validate(tap(far, addresses=["192.0.2.9/24", "2001:db8::1/64"]))
        with pytest.raises(Exception, match="IPv6 is switched off"):
            await adjust(wanted, opened)
        assert await addresses(far, "tap0") == {"192.0.2.1/24"}
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("capability", "kind", "sentence"),
    [
        ("net_admin", "tap", "takes CAP_NET_ADMIN"),
        ("net_raw", "af_packet", "CAP_NET_RAW"),
        ("sys_admin", "af_packet", "takes CAP_SYS_ADMIN"),
    ],
)
async def test_missing_capabilities_are_named(far: Namespace, capability: str, kind: str, sentence: str) -> None:
    ifname = "pvs-cap" if kind == "tap" else "lo"
    script = (
        "import asyncio, sys; from pvswitch.uplink import *\n"
        "kind, ifname, netns = sys.argv[1:]\n"
        "model = TapPort if kind == 'tap' else AfPacketPort\n"
        "port = model.model_validate({'type': kind, 'ifname': ifname, 'netns': netns or None})\n"
        "try: asyncio.run(open_uplink(port)).close()\n"
        "except UplinkError as error: print(error)\n"
    )
    netns = str(far.path) if capability == "sys_admin" else ""
    printed = await far.command(
        *("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"),
        *(sys.executable, "-c", script, kind, ifname, netns),
    )
    assert sentence in printed
