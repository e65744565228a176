# SPDX-License-Identifier: Apache-2.0
"""Policies, mirrors and files on tunnel ports: what holds for other ports holds for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from pvswitch.capture_file import packets, pcap_header, pcap_record_header
from tests.wire.lab import expect, until
from tests.wire.tunnels import ALL_ONES, KINDS, Lab, inner, local, mac, remote, tunnel_lab, wrap

pytestmark = pytest.mark.asyncio(loop_scope="module")

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[1, 2], ids="{}_workers".format)
async def switch(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with tunnel_lab(request.param) as lab:
        yield lab


@pytest_asyncio.fixture(loop_scope="module")
async def lab(switch: Lab) -> AsyncIterator[Lab]:
    yield switch
    await switch.close()


async def counted(lab: Lab, port: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Wait for a port's counters."""
    found: dict[str, Any] = {}

    async def reached() -> bool:
        found.update(await lab.stats(port))
        return all(found[key] == value for key, value in wanted.items())

    try:
        await until(reached, f"counters of {port}")
    except AssertionError:
        assert {key: found[key] for key in wanted} == wanted
        raise
    return found


async def come(lab: Lab, kind: str, frames: list[bytes]) -> None:
    lab.wire.send(*(wrap(kind, 100, one, remote(1), local()) for one in frames))


@kinds
async def test_policing(lab: Lab, kind: str) -> None:
    """What comes by a tunnel beyond its rate is dropped and counted; the rest arrives in order."""
    await lab.tunnel("t", kind, policing={"rate_kbps": 1})
    a = await lab.plug("a", queue_size=1024)
    await lab.knows(a, "a")
    frames = [inner(a.mac, mac(1), 1000, n) for n in range(300)]
    await come(lab, kind, frames)
    found = await counted(lab, "t", {"rx_packets": 300})
    dropped = found["rx_drops"]["policed"]
    assert 300 - dropped in range(128, 136)
    got = [await a.recv() for _ in range(300 - dropped)]
    assert got == [one for one in frames if one in set(got)]


@kinds
async def test_storm_control(lab: Lab, kind: str) -> None:
    """By class, of what comes by a tunnel."""
    await lab.tunnel("t", kind, storm_control={"broadcast_pps": 10, "unknown_pps": 20})
    a = await lab.plug("a", queue_size=1024)
    await lab.knows(a, "a")
    await come(lab, kind, [inner(ALL_ONES, mac(1), 100, n) for n in range(200)])
    found = await counted(lab, "t", {"rx_packets": 200})
    assert found["rx_drops"]["storm_control"] >= 150
    await come(lab, kind, [inner(mac(77), mac(1), 100, n) for n in range(200)])
    again = await counted(lab, "t", {"rx_packets": 400})
    assert again["rx_drops"]["storm_control"] >= found["rx_drops"]["storm_control"] + 120
    while a.recv_nowait() is not None:
        pass
    known = [inner(a.mac, mac(1), 100, n) for n in range(200)]
    await come(lab, kind, known)
    await expect(a, known)


@kinds
async def test_shaping(lab: Lab, kind: str) -> None:
    """What goes out by a tunnel faster than its rate waits, in order; what is too much is counted."""
    await lab.tunnel("t", kind, remotes=[remote(1)], shaping={"rate_kbps": 8000, "burst_bytes": 65550})
    a = await lab.plug("a", queue_size=1024)
    frames = [inner(mac(7), a.mac, 1000, n) for n in range(400)]
    before = (await lab.stats("a"))["rx_packets"]
    began = asyncio.get_running_loop().time()
    for one in frames:
        await a.send(one)
    await counted(lab, "a", {"rx_packets": before + 400})
    seen = []

    async def all_out() -> bool:
        while (d := lab.wire.poll_datagram()) is not None:
            seen.append(d.inner)
        found = await lab.stats("t")
        return bool(
            found["tx_packets"] + found["tx_drops"].get("shaped", 0) == 400 and found["tx_packets"] == len(seen)
        )

    await until(all_out, "what was shaped")
    took = asyncio.get_running_loop().time() - began
    assert seen == [one for one in frames if one in set(seen)]
    assert len(seen) >= 65
    assert (len(seen) - 140) * 1000 <= took * 1_000_000 * 1.1 + 66_000


@kinds
async def test_mirrors_of_a_tunnel(lab: Lab, kind: str) -> None:
    """What comes by it and goes out by it, as inner frames; each once, however many hosts it is sent to."""
    await lab.tunnel("t", kind)
    a, mon = await lab.plug("a"), await lab.plug("d")
    mirrors = {"m": {"select_src_port": ["t"], "select_dst_port": ["t"], "output_port": "d"}}
    await lab.call("PUT", "/bridges/br0", {"mirrors": mirrors})
    one, other = inner(ALL_ONES, a.mac, 200, 1), inner(a.mac, mac(1), 200, 2)
    await a.send(one)
    assert {d.inner for d in await lab.wire.receive(2)} == {one}
    await expect(mon, [one])
    lab.come(kind, 100, other, remote(1))
    await expect(a, [other])
    await expect(mon, [other])
    assert mon.recv_nowait() is None


@kinds
async def test_a_mirror_to_a_tunnel(lab: Lab, kind: str) -> None:
    """Copies go to each remote, cut to `snaplen`; what comes back goes nowhere. ERSPAN's poor cousin."""
    await lab.tunnel("t", kind)
    a, b = await lab.plug("a"), await lab.plug("b")
    mirrors = {"m": {"select_src_port": ["a"], "output_port": "t", "snaplen": 64}}
    await lab.call("PUT", "/bridges/br0", {"mirrors": mirrors})
    await lab.knows(b, "b")
    frames = [inner(b.mac, a.mac, 60 + 100 * n, n) for n in range(5)]
    for one in frames:
        await a.send(one)
    await expect(b, frames)
    seen = await lab.wire.receive(10)
    for host in (remote(1), remote(2)):
        assert [d.inner for d in seen if d.dst == host] == [one[:64] for one in frames]
    for d in seen:
        d.exact()
    lab.come(kind, 100, inner(ALL_ONES, mac(1)), remote(1))
    await counted(lab, "t", {"rx_drops": {"mirror_output": 1}})
    assert a.recv_nowait() is None
    await lab.wire.nothing()


async def test_protected_ports(lab: Lab) -> None:
    """A protected tunnel and a protected guest don't reach each other; others do."""
    await lab.tunnel("t", protected=True, remotes=[remote(1)])
    await lab.put("kept", protected=True)
    kept, a = await lab.plug("kept"), await lab.plug("a")
    await kept.send(inner(ALL_ONES, kept.mac))
    await expect(a, [inner(ALL_ONES, kept.mac)])
    await lab.wire.nothing()
    lab.come("vxlan", 100, inner(ALL_ONES, mac(1)), remote(1))
    await expect(a, [inner(ALL_ONES, mac(1))])
    assert kept.recv_nowait() is None
    lab.come("vxlan", 100, inner(kept.mac, mac(1)), remote(1))
    await counted(lab, "kept", {"tx_drops": {"isolated": 1}})


@kinds
async def test_a_file_to_a_tunnel_and_back(lab: Lab, tmp_path: Path, kind: str) -> None:
    """A capture is played into a tunnel, in order; what comes by a tunnel is written into one."""
    await lab.tunnel("t", kind, remotes=[remote(1)])
    frames = [inner(mac(7), mac(6), 60 + n, n) for n in range(200)]
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap_header() + b"".join(pcap_record_header(0, len(f)) + f for f in frames))
    await lab.put("play", type="pcap", read=str(path), speed=0)
    assert [d.inner for d in await lab.wire.receive(len(frames))] == frames
    out = tmp_path / "out.pcap"
    await lab.put("record", type="pcap", write=str(out))
    back = [inner(ALL_ONES, mac(5), 60 + n, n) for n in range(50)]
    await come(lab, kind, back)
    await counted(lab, "record", {"tx_packets": 50})
    await lab.delete("record")
    with out.open("rb") as file:
        assert [packet.data for packet in packets(file)] == back
