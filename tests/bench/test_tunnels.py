# SPDX-License-Identifier: Apache-2.0
"""What the cases of tunnels stand on: two hosts on a wire, sinks, and counts of what went over it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pvswitch.bench import tunnel_frames, tunnel_tcp
from pvswitch.bench.cases import CASES, select
from pvswitch.bench.errors import NotOffered
from pvswitch.bench.machine import pick_cpus
from pvswitch.bench.measure import Bench, Turn, _measure, _shares
from pvswitch.bench.switches import Spent
from pvswitch.bench.underlay import (
    DEVICE,
    OUTER,
    VXLAN_HEADER,
    add_sinks,
    address,
    datagrams,
    joined,
    messages,
    tunnel,
)
from pvswitch.bench.work import PVSWITCH, TunnelFlood, TunnelFrames, TunnelTcp
from pvswitch.namespace import Namespace
from pvswitch.process import SwitchProcess
from tests.conftest import RequirePeer, missing_peer

FRAME = 64


def require_hosts(require_peer: RequirePeer) -> None:
    require_peer("ip", package="iproute2")
    require_peer("ethtool", package="ethtool")
    if os.geteuid() != 0:
        missing_peer("hosts are network namespaces: run the tests as root")


async def send(host: Namespace, to: str, payload: int, count: int) -> None:
    """Send datagrams of a VXLAN's size."""
    script = (
        "import socket, sys; sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(int(sys.argv[3])): sock.sendto(bytes(int(sys.argv[2])), (sys.argv[1], 4789))"
    )
    await host.command("python3", "-c", script, to, str(payload), str(count))


@pytest.mark.parametrize("single", [False, True])
async def test_what_goes_to_sinks_is_counted_and_answered_by_nobody(require_peer: RequirePeer, single: bool) -> None:
    require_hosts(require_peer)
    async with joined(single=single, gro=False) as hosts:
        sinks = await add_sinks(hosts.near, 3)
        before = messages(hosts.near), messages(hosts.far), datagrams(hosts.far, FRAME)
        for sink in sinks:
            await send(hosts.near, sink, VXLAN_HEADER + FRAME, 5)
        assert datagrams(hosts.far, FRAME) - before[2] == 15
        assert messages(hosts.near).sent - before[0].sent == 15
        assert messages(hosts.far) == before[1]
        assert datagrams(hosts.near, FRAME) == 0


def test_large_packets_count_as_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three packets of 64, 10 and 1 frames of 1,450 bytes, as a veth hands them over."""
    held = [64, 10, 1]
    octets = sum(OUTER + count * (VXLAN_HEADER + 1450) for count in held)
    line = f"  {DEVICE}: {octets} {len(held)} 0 0 0 0 0 0 7 7 0 0 0 0 0 0"
    monkeypatch.setattr("pathlib.Path.read_text", lambda _: f"Inter-|\n    lo: 1 1 0\n{line}\n")
    host: Any = SimpleNamespace(holder=1)
    assert datagrams(host, 1450) == sum(held)


async def test_a_switch_on_each_host_hears_the_other(require_peer: RequirePeer) -> None:
    """One of them goes before others; what is of no VNI stays outside."""
    require_hosts(require_peer)
    async with joined() as hosts:

        def switch(host: Namespace, number: int, *launcher: str) -> SwitchProcess:
            ports = {"vm": {}, "tunnel": tunnel(number, [address(3 - number)])}
            return SwitchProcess({"bridges": {"br0": {}}, "ports": ports}, [*host.launcher, *launcher])

        async with (
            switch(hosts.near, 1) as near,
            switch(hosts.far, 2, *tunnel_frames.BEFORE_OTHERS) as far,
        ):
            await near.wait_link("tunnel")
            await far.wait_link("tunnel")
            await send(hosts.near, address(2), VXLAN_HEADER + FRAME, 1)

            async def dropped() -> bool:
                drops: dict[str, int] = (await far.get("/tunnels/tunnel"))["endpoint"]["drops"]
                return sum(drops.values()) == 1

            await far.wait_until(dropped, "what is of no VNI to be counted", 10)


async def test_the_wire_has_its_mtu_and_offloads(require_peer: RequirePeer) -> None:
    require_hosts(require_peer)
    for single in (False, True):
        async with joined(single=single) as hosts:
            for host in hosts:
                assert "mtu 1500" in await host.command("ip", "link", "show", DEVICE)
                said = await host.command("ethtool", "-k", DEVICE)
                for what in ("tx-checksumming", "tcp-segmentation-offload", "tx-udp-segmentation"):
                    assert f"{what}: {'off' if single else 'on'}" in said
                assert f"generic-receive-offload: {'on' if single else 'off'}" in said
            await hosts.near.command("ping", "-c", "1", "-W", "5", address(2))


async def test_without_root_there_are_no_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no fault of a switch: it is left out of these cases, not of all."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NotOffered, match="run this as root"):
        async with joined():
            pass


async def test_without_ethtool_packets_cannot_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(NotOffered, match="apt-get install ethtool"):
        async with joined(single=True):
            pass


def test_every_switch_of_a_tunnel_case_can_be_started() -> None:
    for case in CASES:
        if isinstance(case.work, TunnelTcp):
            assert set(case.switches) == set(tunnel_tcp.LABS)
        if isinstance(case.work, TunnelFrames | TunnelFlood):
            assert set(case.switches) == set(tunnel_frames.NEAR)


def test_shares_are_of_all_slices_together() -> None:
    spent = [Spent(1.0, 64, bursts=1, messages=1), Spent(1.0, 64, bursts=3, messages=7)]
    assert _shares(spent, 128) == {"burst": 32.0, "per_message": 16.0}
    assert _shares([Spent(1.0, 64)], 64) == {}


@pytest.mark.parametrize("name", ["tunnel-out-64", "tunnel-in-1450", "tunnel-in-1450-single", "tunnel-replication-10"])
async def test_a_turn_of_pvswitch_loses_nothing(require_peer: RequirePeer, tmp_path: Path, name: str) -> None:
    """How fast it is, is not asked here."""
    require_hosts(require_peer)
    if len(os.sched_getaffinity(0)) < 2:
        missing_peer("one processor for the switch and one for the generator are needed")
    bench = Bench(pick_cpus(os.sched_getaffinity(0)), huge=False, folder=tmp_path, seconds=0.1)
    await bench.processors.settle()
    (case,) = select([name])
    (sample,) = await _measure(Turn(case, PVSWITCH, 1, bench))
    assert sample.faults == ()
    assert sample.seen["received"] > 100
    assert {"mpps", "gbits", "cycles", "burst", "per_message"} == set(sample.figures)
    assert sample.figures["per_message"] >= (0.9 if "single" in name and "in" in name else 1.5)
