# SPDX-License-Identifier: Apache-2.0
"""The sockets of tunnels, as the core wants them: those that packets come by, and those that they are sent by.

All are non-blocking, bound to the tunnel's local address, and closed by who holds them. What comes in is spread by the
kernel over as many sockets as there are workers. What is sent takes one of 16 sockets with ports of 49152 to 65535, by
flow (RFC 7348, 5), so that the flows take several paths; a filter lets nothing in by these.

Nothing here blocks for longer than a system call. What goes wrong is one sentence with the remedy. Used by
`tunnel_ends.py`; the constants are those of the kernel's headers that the socket module doesn't have.
"""

from __future__ import annotations

import ctypes
import errno
import random
import socket
import struct
from contextlib import suppress

from pvswitch.errors import PvswitchError
from pvswitch.model import TunnelType
from pvswitch.netlink import Route

SOURCES = 16
FIRST_SOURCE, LAST_SOURCE = 49152, 65535
BUFFER = 4 << 20
"""Bytes that may wait in a socket: a burst of a fast link for some milliseconds."""
ATTEMPTS = 256

# linux/udp.h, linux/in.h, linux/in6.h, asm-generic/socket.h
_UDP_SEGMENT = 103
_UDP_GRO = 104
_UDP_NO_CHECK6_TX = 101
_UDP_NO_CHECK6_RX = 102
_SO_NO_CHECK = 11
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_IP_RECVTOS = 13
_IP_MTU_DISCOVER = 10
_IP_MTU = 14
_IPV6_MTU_DISCOVER = 23
_IPV6_MTU = 24
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_IPPROTO_GRE = 47
_BPF_RET_K = 0x06
_DISCARD_PORT = 9


class TunnelError(PvswitchError):
    """A tunnel can't have its sockets; the sentence says what to do."""


class AddressMissing(TunnelError):
    """The local address is not on this host, now."""


def is_ipv6(address: str) -> bool:
    """Return whether an address is one of IPv6."""
    return ":" in address


def address_missing(local: str) -> str:
    """Return the sentence for a local address that this host doesn't have."""
    return f"address {local} is not on this host: add it (`ip address add {local} dev ...`), or correct `local`"


def has_address(local: str) -> bool:
    """Return whether this host has an address, and it can be used."""
    with _socket(local, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((local, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def open_endpoint(kind: TunnelType, local: str, port: int | None, workers: int) -> list[socket.socket]:
    """Return the sockets that packets come by, one for each worker; of GRE one. Raises TunnelError, AddressMissing."""
    if port is None:
        return [_open_raw(local, receives=True)]
    sockets: list[socket.socket] = []
    try:
        for number in range(workers):
            sock = _socket(local, socket.SOCK_DGRAM)
            sockets.append(sock)
            if number:  # without it, the first one notices a stranger's
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _receive(sock, local)
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            if is_ipv6(local):
                sock.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
            sock.bind((local, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(workers > 1))
    except OSError as error:
        close_all(sockets)
        raise _refusal(error, kind, local, port) from error
    return sockets


def open_sources(kind: TunnelType, local: str, *, df: bool, checksums: bool, ttl: int) -> list[socket.socket]:
    """Return the sockets that a tunnel sends by: 16, of GRE one. Raises TunnelError, AddressMissing."""
    sockets: list[socket.socket] = []
    try:
        if kind == "gre":
            sockets.append(_open_raw(local, receives=False))
        else:
            for _ in range(SOURCES):
                sockets.append(_socket(local, socket.SOCK_DGRAM))
                _drop_all(sockets[-1])
                _bind_source(sockets[-1], local)
        for sock in sockets:
            _set_header(sock, local, df=df, ttl=ttl)
            _enlarge(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
            if kind != "gre" and not checksums:
                _no_checksums(sock, local)
    except OSError as error:
        close_all(sockets)
        raise _refusal(error, kind, local, None) from error
    return sockets


def cuts_datagrams(sock: socket.socket) -> bool:
    """Return whether the kernel takes several datagrams as one (UDP_SEGMENT), by this socket of a tunnel in UDP."""
    try:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 1000)
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 0)
    except OSError:
        return False
    return True


def close_all(sockets: list[socket.socket]) -> None:
    """Close them; the list is empty afterwards."""
    while sockets:
        sockets.pop().close()


class PathProbe:
    """Asks the kernel for the MTU of the paths from a local address; nothing is sent."""

    def __init__(self, local: str) -> None:
        """Open it; OSError."""
        self._six = is_ipv6(local)
        self._sock = _socket(local, socket.SOCK_DGRAM)
        try:
            _drop_all(self._sock)
            self._sock.bind((local, 0))
            _set_header(self._sock, local, df=True, ttl=64)
        except OSError:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close it."""
        self._sock.close()

    def mtu(self, remote: str) -> int | None:
        """Return the largest packet that fits the path to a host; None: there is no way to it now."""
        try:
            self._sock.connect((remote, _DISCARD_PORT))
            if self._six:
                return self._sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            return self._sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError:
            return None


# ---- how they are made


def _socket(local: str, kind: int, protocol: int = 0) -> socket.socket:
    family = socket.AF_INET6 if is_ipv6(local) else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    if family == socket.AF_INET6 and not protocol:  # a raw one is no other, and refuses to be asked
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _open_raw(local: str, *, receives: bool) -> socket.socket:
    try:
        sock = _socket(local, socket.SOCK_RAW, _IPPROTO_GRE)
    except OSError as error:
        raise _refusal(error, "gre", local, None) from error
    try:
        if receives:
            _receive(sock, local)
        else:
            _drop_all(sock)
        sock.bind((local, 0))
    except OSError as error:
        sock.close()
        raise _refusal(error, "gre", local, None) from error
    return sock


def _receive(sock: socket.socket, local: str) -> None:
    _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
    if is_ipv6(local):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)


def _enlarge(sock: socket.socket, force: int, option: int) -> None:
    """Give a buffer its size, beyond the machine's limit where that is permitted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)


def _set_header(sock: socket.socket, local: str, *, df: bool, ttl: int) -> None:
    discover = _PMTUDISC_DO if df else _PMTUDISC_DONT
    if is_ipv6(local):
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


def _no_checksums(sock: socket.socket, local: str) -> None:
    if is_ipv6(local):
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_TX, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)


def _drop_all(sock: socket.socket) -> None:
    """Have the kernel drop what comes to a socket that nobody reads."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET_K, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _bind_source(sock: socket.socket, local: str) -> None:
    for attempt in range(ATTEMPTS):
        try:
            sock.bind((local, random.randint(FIRST_SOURCE, LAST_SOURCE)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt == ATTEMPTS - 1:
                raise
        else:
            return


# ---- what went wrong


def _refusal(error: OSError, kind: TunnelType, local: str, port: int | None) -> TunnelError:
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressMissing(address_missing(local))
    if error.errno == errno.EADDRINUSE and port is not None:
        return TunnelError(_who_has(local, port))
    if error.errno == errno.EADDRINUSE:
        return TunnelError(
            f"no UDP ports from {FIRST_SOURCE} to {LAST_SOURCE} are free at {local}: end what uses them, or use "
            "another `local`"
        )
    if error.errno == errno.EPERM and kind == "gre":
        return TunnelError("GRE needs the capability CAP_NET_RAW: run the switch as root, or grant it")
    if error.errno == errno.EACCES and port is not None:
        return TunnelError(
            f"UDP port {port} is one that only root may use: run the switch as root, or use a `dst_port` above 1023"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return TunnelError("no descriptors are left: raise the limit of open files (`ulimit -n`)")
    if error.errno == errno.EAFNOSUPPORT:
        return TunnelError(f"this host has no IPv6, so {local} can't be `local`: use an IPv4 address")
    return TunnelError(f"the sockets of a {kind} tunnel at {local} can't be opened: {error.strerror}")


def _who_has(local: str, port: int) -> str:
    """Return the sentence for a port that somebody else has: the kernel's own tunnel, or a process."""
    names: list[str] = []
    with suppress(OSError), Route() as route:
        names = route.tunnel_devices(port)
    if names:
        return (
            f"UDP port {port} belongs to the kernel's tunnel {names[0]}: remove it with `ip link del {names[0]}`, or "
            "use another `dst_port`"
        )
    return (
        f"UDP port {port} at {local} is in use by another process, which `ss -ulpn sport = :{port}` names: end it, or "
        "use another `dst_port`"
    )
