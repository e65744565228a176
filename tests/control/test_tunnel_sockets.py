# SPDX-License-Identifier: Apache-2.0
"""The sockets of tunnels, real ones, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from pvswitch import tunnel_sockets
from pvswitch.tunnel_sockets import (
    AddressMissing,
    PathProbe,
    TunnelError,
    close_all,
    cuts_datagrams,
    has_address,
    open_endpoint,
    open_sources,
)

LOCALS = ["127.0.7.1", "::1"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs raw sockets and links: run the tests as root")


@pytest.fixture
def port() -> int:
    """One that nobody has at any address."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("local", LOCALS)
def test_an_endpoint_spreads_flows(local: str, port: int) -> None:
    sockets = open_endpoint("vxlan", local, port, 3)
    senders = open_sources("vxlan", local, df=True, checksums=True, ttl=64)
    try:
        assert [sock.getsockname()[:2] for sock in sockets] == [(local, port)] * 3
        for sender in senders * 20:
            sender.sendto(b"x", (local, port))
        came = [count(sock) for sock in sockets]
        assert sum(came) == 320
        assert sum(n > 0 for n in came) > 1
        assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 200_000 for sock in sockets)
        assert not any(sock.getblocking() for sock in (*sockets, *senders))
    finally:
        close_all(sockets)
        close_all(senders)


def count(sock: socket.socket) -> int:
    found = 0
    try:
        while sock.recv(10):
            found += 1
    except BlockingIOError:
        return found
    raise AssertionError


@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize("df", [True, False])
@pytest.mark.parametrize("checksums", [True, False])
def test_sources(local: str, df: bool, checksums: bool) -> None:
    sockets = open_sources("geneve", local, df=df, checksums=checksums, ttl=7)
    try:
        assert len(sockets) == 16
        assert all(49152 <= sock.getsockname()[1] <= 65535 for sock in sockets)
        for sock in sockets:
            if ":" in local:
                assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) == 7
                assert sock.getsockopt(socket.IPPROTO_IPV6, 23) == (2 if df else 0)
                assert sock.getsockopt(socket.IPPROTO_UDP, 101) == (not checksums)
            else:
                assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 7
                assert sock.getsockopt(socket.IPPROTO_IP, 10) == (2 if df else 0)
                assert sock.getsockopt(socket.SOL_SOCKET, 11) == (not checksums)
        assert cuts_datagrams(sockets[0])
    finally:
        close_all(sockets)


@pytest.mark.parametrize("local", LOCALS)
def test_nothing_comes_in_by_a_source(local: str) -> None:
    sources = open_sources("vxlan", local, df=True, checksums=True, ttl=64)
    with socket.socket(sources[0].family, socket.SOCK_DGRAM) as stranger:
        for source in sources:
            stranger.sendto(b"x", source.getsockname())
        assert sum(count(source) for source in sources) == 0
    close_all(sources)


def test_a_stranger_is_noticed(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.7.1", port))
        with pytest.raises(TunnelError, match=f"another process, which `ss -ulpn sport = :{port}` names"):
            open_endpoint("vxlan", "127.0.7.1", port, 2)


@as_root
def test_the_kernels_tunnel_is_named(port: int) -> None:
    name = f"vx{os.getpid()}"
    words = ["ip", "link", "add", name, "type", "vxlan", "id", "7", "dstport", str(port), "local", "127.0.7.1"]
    if subprocess.run([*words, "dev", "lo"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this kernel has no vxlan")
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        with pytest.raises(TunnelError, match=f"ip link del {name}"):
            open_endpoint("geneve", "127.0.7.1", port, 1)
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_an_address_that_is_not_here(port: int) -> None:
    calls: tuple[Callable[[], object], ...] = (
        lambda: open_endpoint("vxlan", "192.0.2.77", port, 1),
        lambda: open_sources("vxlan", "192.0.2.77", df=True, checksums=True, ttl=1),
    )
    for call in calls:
        with pytest.raises(AddressMissing, match=r"address 192\.0\.2\.77 is not on this host: add it"):
            call()
    assert has_address("127.0.7.1")
    assert not has_address("192.0.2.77")


def test_no_source_ports_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_sockets, "FIRST_SOURCE", 65535)
    with pytest.raises(TunnelError, match="no UDP ports from 65535 to 65535 are free"):
        open_sources("vxlan", "127.0.7.1", df=True, checksums=True, ttl=1)


@as_root
@pytest.mark.parametrize("local", LOCALS)
def test_gre(local: str) -> None:
    sockets = open_endpoint("gre", local, None, 3)
    sources = open_sources("gre", local, df=True, checksums=False, ttl=9)
    assert (len(sockets), len(sources)) == (1, 1)
    sources[0].sendto(bytes(4), (local, 0))
    assert len(sockets[0].recv(100)) == (24 if "." in local else 4)
    assert count_raw(sources[0]) == 0
    close_all(sockets)
    close_all(sources)


def count_raw(sock: socket.socket) -> int:
    try:
        return len(sock.recv(100))
    except BlockingIOError:
        return 0


def test_paths() -> None:
    probe = PathProbe("127.0.7.1")
    try:
        assert (probe.mtu("127.0.7.2") or 0) >= 65535
        assert probe.mtu("192.0.2.77") is None or probe.mtu("192.0.2.77")
    finally:
        probe.close()
