# SPDX-License-Identifier: Apache-2.0
"""Tunnels on a real data plane, in this process: two bridges that are two hosts to each other, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pvswitch.controller import Controller
from pvswitch.datapath import Datapath
from pvswitch.errors import ApplyError
from pvswitch.ports import Ports
from pvswitch.revisions import Revisions
from pvswitch.tunnel_plane import MacChange, RemoteChange
from pvswitch.tunnel_port import TunnelledPort
from pvswitch.validation import parse

PATIENCE = 20.0
HERE, THERE = "127.0.8.1", "127.0.8.2"
A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
PORTS = iter(range(20_000 + os.getpid() % 10_000, 65_000))


def frame(destination: str, source: str, vid: int | None = None, size: int = 100) -> bytes:
    tag = b"" if vid is None else b"\x81\x00" + vid.to_bytes(2)
    raw = bytes.fromhex((destination + source).replace(":", "")) + tag + b"\x88\xb5"
    return raw + bytes(size - len(raw))


class Lab:
    """A switch with a bridge for each of two hosts, on which `a` and `b` are ports to send by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.datapath = Datapath(workers=2)
        self.ports = Ports(self.datapath)
        self.udp = next(PORTS)
        self.tunnels: dict[str, dict[str, Any]] = {
            "va": self.tunnel(HERE, THERE, bridge="one"),
            "vb": self.tunnel(THERE, HERE, bridge="two"),
        }
        self.more: dict[str, Any] = {}
        self.fdb: list[dict[str, Any]] = []
        self.revisions = Revisions(folder / "state")
        self.controller = Controller(
            self.ports, parse({"runtime_dir": str(folder), "datapath": {"workers": 2}}), self.revisions
        )

    def tunnel(self, local: str, *remotes: str, **keys: Any) -> dict[str, Any]:
        return {"type": "vxlan", "vni": 7, "local": local, "dst_port": self.udp, "remotes": [*remotes], **keys}

    def document(self) -> dict[str, Any]:
        return {
            "runtime_dir": str(self.folder),
            "datapath": {"workers": 2},
            "bridges": {"one": {"fdb": self.fdb}, "two": {}},
            "ports": {"a": {"bridge": "one"}, "b": {"bridge": "two"}, **self.tunnels, **self.more},
        }

    async def apply(self) -> bool:
        return (await self.controller.apply(parse(self.document()))).disruptive

    def port(self, name: str) -> TunnelledPort:
        port = self.ports._ports[name]
        assert isinstance(port, TunnelledPort)
        return port

    async def send(self, port: str, raw: bytes) -> None:
        await self.ports._ports[port].handle.inject(raw, "ingress")

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 (the conditions are another object's state)
                await asyncio.sleep(0.005)

    def entries(self, bridge: str) -> dict[str, tuple[str, str, str | None]]:
        return {entry.name: (entry.port, entry.type, entry.remote) for entry in self.ports.fdb(bridge)}

    def drops(self, name: str) -> dict[str, int]:
        return self.port(name).endpoint.counters().rx_drops


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    (tmp_path / "ports").mkdir()
    before = descriptors()
    async with contextlib.AsyncExitStack() as stack:
        lab = Lab(tmp_path)
        stack.callback(lab.revisions.close)
        lab.datapath.start()
        stack.callback(lab.datapath.close)
        stack.push_async_callback(lab.ports.close)
        stack.push_async_callback(lab.controller.close)
        await lab.controller.start()
        yield lab
    assert descriptors() <= before


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        yield sock


async def test_frames_pass_and_remotes_are_learned(lab: Lab) -> None:
    await lab.apply()
    for name in ("va", "vb"):
        state = lab.ports.port_state(name)
        assert (state.link, state.message, state.queues.enabled) == ("up", None, 2)
        assert state.mtu == 65536 - 1 - 36 - 14 or state.mtu == 65536 - 36 - 14
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))
    assert lab.entries("two")[f"0/{A}"] == ("vb", "dynamic", HERE)
    assert lab.ports.port_stats("vb").rx_packets == 1
    info = await lab.ports.tunnels.info("vb")
    assert [(remote.address, remote.origin) for remote in info.remotes] == [(HERE, "static")]
    assert (info.endpoint.rx_packets, info.endpoint.running) == (1, 2)


async def test_all_types(lab: Lab) -> None:
    geneve = {"type": "geneve", "vni": 8}
    lab.tunnels["ga"] = lab.tunnel(HERE, THERE, bridge="one") | geneve | {"dst_port": next(PORTS)}
    lab.tunnels["gb"] = lab.tunnel(THERE, HERE, bridge="two") | geneve | {"dst_port": lab.tunnels["ga"]["dst_port"]}
    del lab.tunnels["va"], lab.tunnels["vb"]
    await lab.apply()
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))


@pytest.mark.skipif(os.geteuid() != 0, reason="GRE needs a raw socket: run the tests as root")
@pytest.mark.parametrize("key", [None, 0, 77, {"10": 100}])
async def test_gre(lab: Lab, key: Any) -> None:
    keys = {} if key is None else {"key": key}
    lab.tunnels = {
        "ga": {"type": "gre", "local": HERE, "remotes": [THERE], "bridge": "one", **keys},
        "gb": {"type": "gre", "local": THERE, "remotes": [HERE], "bridge": "two", **keys},
    }
    await lab.apply()
    vid = 10 if isinstance(key, dict) else None
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A, vid))
    await lab.until(lambda: f"{vid or 0}/{A}" in lab.entries("two"))


async def test_a_map_of_vlans(lab: Lab) -> None:
    """Both sides number their VLANs as they like."""
    lab.tunnels["va"]["vni"] = {10: 1010, "20-29": "2020-2029"}
    lab.tunnels["vb"]["vni"] = {11: 1010, "120-129": "2020-2029"}
    await lab.apply()
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A, 10))
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", B, 25))
    await lab.until(lambda: {f"11/{A}", f"125/{B}"} <= lab.entries("two").keys())
    members = {vlan.vid: [m.port for m in vlan.members] for vlan in lab.ports.vlans("two")}
    assert "vb" in members[11]
    assert "vb" not in members.get(10, [])


async def test_settings_change_live(lab: Lab) -> None:
    await lab.apply()
    before = lab.port("va"), lab.port("va").tunnel
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))
    lab.tunnels["va"] |= {"vni": 9, "ttl": 7, "df": False, "udp_csum": False}
    assert not await lab.apply()
    assert lab.port("va") is before[0]
    assert lab.port("va").tunnel is not before[1]
    assert lab.ports.port_state("va").mtu is None  # without DF any frame fits
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", B))
    await lab.until(lambda: lab.drops("vb").get("unknown_vni") == 1)
    lab.tunnels["vb"]["vni"] = 9
    await lab.apply()
    assert f"0/{A}" not in lab.entries("two")  # of another network
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", B))
    await lab.until(lambda: f"0/{B}" in lab.entries("two"))


async def test_remotes_change_live(lab: Lab) -> None:
    lab.tunnels["va"]["remotes"] = ["127.0.8.9"]
    await lab.apply()
    tunnel = lab.port("va").tunnel
    lab.tunnels["va"]["remotes"] = ["127.0.8.9", THERE]
    assert not await lab.apply()
    assert lab.port("va").tunnel is tunnel
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))


async def test_another_address_is_another_port(lab: Lab) -> None:
    await lab.apply()
    before = lab.port("va")
    lab.tunnels["va"]["local"] = "127.0.8.3"
    assert await lab.apply()
    assert lab.port("va") is not before
    assert [endpoint.name for endpoint in lab.ports.tunnels.endpoints()] == [
        f"vxlan-{THERE}-{lab.udp}",
        f"vxlan-127.0.8.3-{lab.udp}",
    ]


async def test_a_strangers_socket_refuses_the_tunnel(lab: Lab, listener: socket.socket) -> None:
    listener.bind((HERE, lab.udp))
    with pytest.raises(ApplyError, match=f"ss -ulpn sport = :{lab.udp}") as refused:
        await lab.apply()
    assert refused.value.pointer == "#/ports/va"
    listener.close()
    await lab.apply()


async def test_an_address_that_is_missing_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.tunnels["va"] |= {"local": "192.0.2.77", "remotes": ["192.0.2.78"]}
    await lab.apply()
    lab.ports.start()
    state = lab.ports.port_state("va")
    assert (state.link, state.reason) == ("down", "interface_missing")
    assert state.message is not None
    assert "address 192.0.2.77 is not on this host" in state.message
    info = await lab.ports.tunnels.info("va")
    assert info.endpoint.running == 0
    # the sockets of another address stand for those of this one, once it is there
    from pvswitch import tunnel_ends, tunnel_sockets

    openers = tunnel_sockets.open_endpoint, tunnel_sockets.open_sources
    monkeypatch.setattr(tunnel_ends, "open_endpoint", lambda kind, _, port, n: openers[0](kind, HERE, port, n))
    monkeypatch.setattr(tunnel_ends, "open_sources", lambda kind, _, **keys: openers[1](kind, HERE, **keys))
    monkeypatch.setattr(tunnel_ends, "has_address", lambda _: True)
    await lab.until(lambda: lab.ports.port_state("va").link == "up")
    monkeypatch.setattr(tunnel_ends, "has_address", lambda _: False)
    await lab.until(lambda: lab.ports.port_state("va").link == "down")


async def test_who_was_learned_is_shown(lab: Lab) -> None:
    lab.tunnels["vb"]["remotes"] = []
    await lab.apply()
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))
    info = await lab.ports.tunnels.info("vb")
    assert [(remote.address, remote.origin) for remote in info.remotes] == [(HERE, "learned")]


async def test_an_endpoint_is_a_queue_like_others(lab: Lab) -> None:
    """It is shown with its cost, and can be moved to another worker."""
    await lab.apply()
    name = f"vxlan-{THERE}-{lab.udp}"
    queues = {queue.name: queue.worker for queue in lab.ports.queue_perf()}
    assert (queues[f"{name}/0"], queues[f"{name}/1"]) == (0, 1)
    await lab.ports._move_queue(name, 0, 1)
    assert {queue.name: queue.worker for queue in lab.ports.queue_perf()}[f"{name}/0"] == 1


async def test_a_refused_edit_leaves_the_tunnel_as_it_is(lab: Lab) -> None:
    await lab.apply()
    tunnel, taken = lab.port("va").tunnel, len(lab.ports.tunnels._vteps)
    lab.tunnels["va"] |= {"ttl": 9, "remotes": [THERE, "127.0.8.40"]}
    lab.more["tap"] = {"type": "tap", "bridge": "one", "ifname": "t0", "netns": "/nowhere"}
    with pytest.raises(ApplyError):
        await lab.apply()
    assert (lab.port("va").tunnel, len(lab.ports.tunnels._vteps)) == (tunnel, taken)
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))


async def test_the_narrowest_path_counts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.apply()
    lab.ports.start()
    paths = lab.ports.tunnels._paths
    monkeypatch.setattr(paths, "_ask", lambda local, remote: {THERE: 1500, "127.0.8.9": 1400}.get(remote))
    paths._known.clear()
    lab.ports.tunnels.too_big("va", lab.port("va")._statics[THERE])
    await lab.until(lambda: lab.port("va").room == 1500 - 36)
    await lab.ports.tunnels.change("va", add_remotes=[RemoteChange(7, "127.0.8.9"), RemoteChange(7, "127.0.8.10")])
    await lab.until(lambda: lab.ports.port_state("va").mtu == 1400 - 36 - 14)


# ---- what a control plane tells


async def test_external_remotes(lab: Lab) -> None:
    lab.tunnels["va"] |= {"remotes": [], "learning": False, "external": True}
    await lab.apply()
    tunnels = lab.ports.tunnels
    done = await tunnels.change("va", add_remotes=[RemoteChange(7, THERE), RemoteChange(7, THERE)])
    assert (done.added, done.removed) == (1, 0)
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", A))
    await lab.until(lambda: f"0/{A}" in lab.entries("two"))
    assert [(item.address, item.origin) for item in tunnels.remotes("va", 7)] == [(THERE, "external")]
    lab.tunnels["va"]["ttl"] = 9  # another tunnel in the core knows them too
    await lab.apply()
    await lab.send("a", frame("ff:ff:ff:ff:ff:ff", B))
    await lab.until(lambda: f"0/{B}" in lab.entries("two"))
    done = await tunnels.change("va", remove_remotes=[RemoteChange(7, THERE), RemoteChange(7, "127.0.8.9")])
    assert (done.added, done.removed) == (0, 1)
    assert tunnels.remotes("va", 7) == []
    with pytest.raises(KeyError):
        await tunnels.change("va", add_remotes=[RemoteChange(8, THERE)])


async def test_external_addresses(lab: Lab) -> None:
    lab.fdb = [{"mac": B, "port": "a"}]
    await lab.apply()
    tunnels = lab.ports.tunnels
    await tunnels.change("va", add_macs=[MacChange(7, 0, A, THERE)])
    assert lab.entries("one")[f"0/{A}"] == ("va", "external", THERE)
    lab.ports.fdb_flush("one")
    lab.ports.fdb_flush("one", port="va")
    assert f"0/{A}" in lab.entries("one")
    await tunnels.change("va", add_macs=[MacChange(7, 0, A, "127.0.8.4")])
    assert lab.entries("one")[f"0/{A}"] == ("va", "external", "127.0.8.4")
    with pytest.raises(ApplyError, match="static address of the configuration"):
        await tunnels.change("va", add_macs=[MacChange(7, 0, B, THERE)], add_remotes=[RemoteChange(7, "127.0.8.5")])
    assert [item.origin for item in tunnels.remotes("va", 7)] == ["static"]
    assert (await tunnels.change("va", remove_macs=[MacChange(7, 0, A)])).removed == 1
    assert f"0/{A}" not in lab.entries("one")


async def test_the_configuration_takes_an_address_over(lab: Lab) -> None:
    await lab.apply()
    await lab.ports.tunnels.change("va", add_macs=[MacChange(7, 0, A, THERE)])
    lab.fdb = [{"mac": A, "port": "a"}]
    await lab.apply()
    assert lab.entries("one")[f"0/{A}"] == ("a", "static", None)
    assert lab.ports.tunnels.macs("va", 7) == []


@pytest.mark.parametrize("change", ["removed", "moved", "another network", "another address"])
async def test_external_addresses_go_with_their_tunnel(lab: Lab, change: str) -> None:
    await lab.apply()
    await lab.ports.tunnels.change("va", add_macs=[MacChange(7, 0, A, THERE)], add_remotes=[RemoteChange(7, THERE)])
    match change:
        case "removed":
            del lab.tunnels["va"]
        case "moved":
            lab.tunnels["va"] |= {"bridge": "two", "vni": 8}
        case "another network":
            lab.tunnels["va"]["vni"] = 8
        case "another address":
            lab.tunnels["va"]["local"] = "127.0.8.3"
    await lab.apply()
    assert len(list(lab.ports._fdbs["one"].items(0))) == 0
    assert len(list(lab.ports._fdbs["two"].items(0))) == 0


async def test_a_full_table_takes_all_or_nothing(lab: Lab) -> None:
    document = lab.document()
    document["bridges"]["one"]["fdb_size"] = 8
    await lab.controller.apply(parse(document))
    tunnels = lab.ports.tunnels
    macs = [MacChange(7, 0, f"02:00:00:00:01:{i:02x}", THERE) for i in range(9)]
    await tunnels.change("va", add_macs=macs[:4])
    with pytest.raises(ApplyError, match="raise `fdb_size`"):
        await tunnels.change("va", add_macs=[MacChange(7, 0, macs[0].mac, "127.0.8.4"), *macs[4:]])
    assert sorted(entry.remote for entry in tunnels.macs("va", 7)) == [THERE] * 4
    assert {remote for _, _, remote in lab.entries("one").values()} == {THERE}


async def test_numbers_of_remotes_are_free_again(lab: Lab) -> None:
    """Nobody names the old ones any more: else 16383 changes would be all."""
    await lab.apply()
    lab.ports.start()
    tunnels = lab.ports.tunnels
    for turn in range(3):
        some = [RemoteChange(7, f"10.{turn}.{i >> 8}.{i & 255}") for i in range(1, 3001)]
        await tunnels.change("va", add_remotes=some)
        await tunnels.change("va", remove_remotes=some)
    await lab.until(lambda: len(tunnels._vteps._unused) < 9000)
    assert len(tunnels._vteps) == 2
