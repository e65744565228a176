# SPDX-License-Identifier: Apache-2.0
"""Opens taps and packet sockets, inside the network namespace where they belong, as the core wants them.

A tap is made if it is missing, and then belongs to its descriptors: the kernel removes it with the last one, also after
`kill -9`. One that was there before is joined, and left as it was found. A packet socket takes an interface that is
there, and leaves it alone at the end but for having brought it up and switched LRO off.

Everything here blocks, and so runs in the thread of `netlink.run_in_namespace`. What goes wrong is one sentence with
the remedy. Used by `uplink_port.py`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import socket
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import structlog

from pvswitch.errors import PvswitchError
from pvswitch.model import AfPacketPort, TapPort
from pvswitch.netlink import Link, LinkWatch, Route, Watches, netns_path, run_in_namespace

T = TypeVar("T")
Uplink = TapPort | AfPacketPort

TUN_DEVICE = "/dev/net/tun"
DEFAULT_MTU = 1500

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM_AND_TSO = 0x01 | 0x02 | 0x04 | 0x08  # CSUM, TSO4, TSO6, TSO_ECN
_TUN_F_USO = 0x20 | 0x40  # USO4, USO6
_VNET_HEADER = 10

# linux/if_packet.h, asm-generic/socket.h, linux/sockios.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_DROP_MEMBERSHIP = 2
_PACKET_AUXDATA = 8
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_PACKET_MR_PROMISC = 1
_ETH_P_ALL = 0x0003
_SIOCGIFINDEX = 0x8933
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SIOCETHTOOL = 0x8946
_PACKET_BUFFER = 8 << 20
_PACKET_USO_SINCE = (6, 2)  # the kernel's

# linux/ethtool.h
_ETHTOOL_GFLAGS = 0x25
_ETHTOOL_SFLAGS = 0x26
_ETH_FLAG_LRO = 1 << 15

log = structlog.get_logger(__name__)


class UplinkError(PvswitchError):
    """An interface can't be used; the sentence says what to do."""


class InterfaceMissing(UplinkError):
    """There is no such interface, or no such namespace."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An interface that is open: a descriptor for each queue. Whoever holds it closes it."""

    kind: Literal["tap", "packet"]
    fds: tuple[int, ...]
    link: Link  # as it was then
    uso: bool
    made: bool  # it goes with its descriptors
    addresses: tuple[str, ...] = ()  # those that it has from us
    promisc: bool = False

    def close(self) -> None:
        """Let go of it."""
        for fd in self.fds:
            os.close(fd)


def where(port: Uplink) -> str:
    """Return a port's interface in words."""
    return port.ifname if port.netns is None else f"{port.ifname} in namespace {port.netns}"


async def open_uplink(port: Uplink, mac: str | None = None) -> Opened:
    """Open a port's interface and bring it up. Raises UplinkError or InterfaceMissing, and then nothing was made.

    A tap that is made here has the hardware address `mac` from its beginning, one of the kernel's choice without it.
    """
    return await _inside(port, lambda: _open_tap(port, mac) if isinstance(port, TapPort) else _open_packet(port))


async def adjust(port: Uplink, opened: Opened) -> Opened:
    """Bring an open interface to what `port` says now of addresses, mtu and promisc. Raises UplinkError."""

    def call() -> Opened:
        with Route() as route:
            return _adjust(route, port, opened)

    return await _inside(port, call)


async def clean_up(port: Uplink, opened: Opened) -> None:
    """Take our addresses and offloads from a tap that stays; raises UplinkError."""

    def call() -> None:
        fcntl.ioctl(opened.fds[0], _TUNSETOFFLOAD, 0)  # whoever opens it next may not know of them
        with Route() as route:
            route.remove_addresses(opened.link.index, opened.addresses)

    if opened.kind == "tap" and not opened.made:
        await _inside(port, call)


async def follow(port: Uplink, watches: Watches) -> LinkWatch:
    """Return the watch of the port's namespace, to be released. Raises UplinkError, InterfaceMissing."""
    try:
        return await watches.acquire(netns_path(port.netns))
    except OSError as error:
        raise _refusal(port, error) from error


# ---- in the thread


async def _inside(port: Uplink, call: Callable[[], T]) -> T:
    """Run `call` in the port's namespace; what the kernel refuses becomes a sentence."""
    path = netns_path(port.netns)
    try:
        return await run_in_namespace(path, call)
    except OSError as error:
        raise _refusal(port, error) from error


def _refusal(port: Uplink, error: OSError) -> UplinkError:
    """Return what the kernel refused without a sentence of its own."""
    path = netns_path(port.netns)
    if path is None or str(error.filename) != str(path):
        return UplinkError(f"interface {where(port)} cannot be used: {error.strerror or error}")
    match error.errno:
        case errno.ENOENT:
            return InterfaceMissing(
                f"there is no network namespace {port.netns}: make it with `ip netns add`, or correct `netns`"
            )
        case errno.EPERM | errno.EACCES:
            return UplinkError(f"namespace {port.netns} takes CAP_SYS_ADMIN: run the switch with it, or as root")
        case errno.EINVAL:
            return UplinkError(f"{path} is no network namespace: correct `netns`")
        case _:
            return UplinkError(f"namespace {port.netns} cannot be entered: {error.strerror}")


@contextmanager
def _explained(sentences: dict[int, str]) -> Iterator[None]:
    """Turn an errno into its sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in sentences:
            raise UplinkError(sentences[error.errno]) from error
        raise


def _no_admin(what: str) -> str:
    return f"{what} takes CAP_NET_ADMIN: run the switch with it (systemd: AmbientCapabilities=), or as root"


def _present(route: Route, port: Uplink) -> Link | None:
    """Return the port's interface if there is one; UplinkError for an altname, by which it can't be followed."""
    link = route.link(port.ifname)
    if link is not None and link.name != port.ifname:
        raise UplinkError(f"{where(port)} is another name of interface {link.name}: set `ifname: {link.name}`")
    return link


def _open_tap(port: TapPort, mac: str | None) -> Opened:
    multiqueue, fds = port.queues > 1, []
    with Route() as route:
        present = _present(route, port)
        if present is not None:
            multiqueue = _joinable(port, present)
        try:
            for _ in range(port.queues):
                fds.append(os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
                _attach(port, fds[-1], multiqueue)
            uso = [_set_offloads(fd) for fd in fds]
            link = route.link(port.ifname)
            if link is None or link.tap is None:
                raise InterfaceMissing(f"interface {where(port)} was removed while it was opened: try again")
            opened = Opened("tap", tuple(fds), link, all(uso), made=not link.tap.persistent)
            opened = _adjust(route, port, opened)
            if opened.made and mac is not None:
                with _explained({errno.EPERM: _no_admin(f"the hardware address of tap {where(port)}")}):
                    route.set_mac(link.index, mac)
            _bring_up(route, link)
            return _as_it_is(route, opened)
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError) and error.filename == TUN_DEVICE:
                raise UplinkError(_no_device(error)) from error
            raise


def _no_device(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"no permission to open {TUN_DEVICE}: run the switch as root, or give the container that device"
    return (
        f"{TUN_DEVICE} cannot be opened ({error.strerror}): load the module (`modprobe tun`), or give the container"
        " that device (`--device /dev/net/tun`)"
    )


def _joinable(port: TapPort, present: Link) -> bool:
    """Return whether a tap that is there takes several queues; UplinkError when it can't be the port's."""
    if present.tap is None:
        raise UplinkError(f"interface {where(port)} exists and is no tap: use `type: af_packet`, or another `ifname`")
    if port.queues > 1 and not present.tap.multiqueue:
        raise UplinkError(
            f"tap {where(port)} exists with a single queue: make it with `ip tuntap add ... multi_queue`, or set"
            " `queues: 1`"
        )
    if present.tap.queues > 0:
        raise UplinkError(_busy(port))
    return present.tap.multiqueue


def _busy(port: TapPort) -> str:
    return f"tap {where(port)} is in use by another program or port: stop that one, or use another `ifname`"


def _attach(port: TapPort, fd: int, multiqueue: bool) -> None:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multiqueue else 0)
    request = struct.pack("16sH22x", port.ifname.encode(), flags)
    with _explained(
        {
            errno.EBUSY: _busy(port),
            errno.EPERM: _no_admin(f"tap {where(port)}"),
            errno.EINVAL: f"the kernel refuses {where(port)} as a tap: use another `ifname`",
            errno.E2BIG: f"tap {where(port)} has all queues that it can have: stop who uses them, or lower `queues`",
        }
    ):
        fcntl.ioctl(fd, _TUNSETIFF, request)


def _set_offloads(fd: int) -> bool:
    """Set the header's size and what may be handed over unfinished; return whether that includes UDP (USO)."""
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER))
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM_AND_TSO | _TUN_F_USO)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM_AND_TSO)
        return False
    return True


def _open_packet(port: AfPacketPort) -> Opened:
    with Route() as route:
        link = _present(route, port)
        if link is None:
            raise InterfaceMissing(_no_interface(port))
        with _explained({errno.EPERM: "packet sockets take CAP_NET_RAW: run the switch with it, or as root"}):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            for option in (_PACKET_VNET_HDR, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING):  # the header before all else
                sock.setsockopt(_SOL_PACKET, option, 1)
            _size_buffers(sock)
            _switch_off_lro(sock, port)
            _bring_up(route, link)  # before bind(), which leaves an error in the socket when it is down
            sock.bind((port.ifname, _ETH_P_ALL))
            if _index_of(sock, port.ifname) != link.index:  # another has the name by now; its message is on its way
                raise InterfaceMissing(f"interface {where(port)} was replaced while it was opened: it is tried again")
            opened = Opened("packet", (sock.fileno(),), link, _kernel() >= _PACKET_USO_SINCE, made=False)
            opened = _as_it_is(route, _adjust(route, port, opened))
        except OSError as error:
            sock.close()
            if error.errno in (errno.ENODEV, errno.ENXIO):
                raise InterfaceMissing(_no_interface(port)) from error
            raise
        except BaseException:
            sock.close()
            raise
        sock.detach()
        return opened


def _no_interface(port: Uplink) -> str:
    return f"there is no interface {where(port)}: make it, or correct `ifname`; it is taken as soon as it appears"


def _size_buffers(sock: socket.socket) -> None:
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, _PACKET_BUFFER)
        except PermissionError:  # the system's limit holds for those without CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, plain, _PACKET_BUFFER)


def _switch_off_lro(sock: socket.socket, port: AfPacketPort) -> None:
    """Have the card hand over segments one by one: what it has put together (LRO, unlike GRO) can't be sent on."""
    value = array("I", (_ETHTOOL_GFLAGS, 0))  # struct ethtool_value: the command, its data
    request = struct.pack("16sP16x", port.ifname.encode(), value.buffer_info()[0])
    with suppress(OSError):  # an interface that can't answer has none
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    if value[1] & _ETH_FLAG_LRO:
        value[0], value[1] = _ETHTOOL_SFLAGS, value[1] & ~_ETH_FLAG_LRO
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as error:
            log.warning(
                f"LRO stays on, and what it puts together is malformed here: `ethtool -K {port.ifname} lro off`",
                interface=where(port),
                error=error.strerror,
            )


def _index_of(sock: socket.socket, ifname: str) -> int:
    answer = fcntl.ioctl(sock, _SIOCGIFINDEX, struct.pack("16si20x", ifname.encode(), 0))
    return int(struct.unpack_from("16si", answer)[1])


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


def _bring_up(route: Route, link: Link) -> None:
    """Bring the interface up; where that can't be done its state says so."""
    if not link.up:
        with suppress(OSError):
            route.bring_up(link.index)


def _as_it_is(route: Route, opened: Opened) -> Opened:
    """Return it with the link as the kernel shows it now."""
    return replace(opened, link=route.link(opened.link.name) or opened.link)


def _adjust(route: Route, port: Uplink, opened: Opened) -> Opened:
    if isinstance(port, AfPacketPort):
        return _set_promisc(port, opened)
    index, mtu = opened.link.index, port.mtu or DEFAULT_MTU
    kept = [address for address in opened.addresses if address in port.addresses]
    added: list[str] = []
    try:
        if opened.made and opened.link.mtu != mtu:
            with _explained({errno.EPERM: _no_admin(f"the mtu of tap {where(port)}")}):
                route.set_mtu(index, mtu)
        for address in port.addresses:
            if address not in kept and _add_address(route, port, index, address):
                added.append(address)
        route.remove_addresses(index, [address for address in opened.addresses if address not in kept])
    except (OSError, UplinkError):
        with suppress(OSError):
            route.remove_addresses(index, added)
        raise
    return replace(
        opened, addresses=(*kept, *added), link=replace(opened.link, mtu=mtu if opened.made else opened.link.mtu)
    )


def _add_address(route: Route, port: TapPort, index: int, address: str) -> bool:
    with _explained(
        {
            errno.EPERM: _no_admin(f"address {address}"),
            errno.EACCES: f"IPv6 is switched off on {where(port)}: switch it on by sysctl, or leave {address} out",
            errno.EINVAL: f"the kernel refuses {address} for {where(port)}: correct it, or leave it out",
        }
    ):
        return route.add_address(index, address)


def _set_promisc(port: AfPacketPort, opened: Opened) -> Opened:
    if port.promisc == opened.promisc:
        return opened
    membership = struct.pack("iHH8s", opened.link.index, _PACKET_MR_PROMISC, 0, b"")
    option = _PACKET_ADD_MEMBERSHIP if port.promisc else _PACKET_DROP_MEMBERSHIP
    with socket.socket(fileno=os.dup(opened.fds[0])) as sock:
        sock.setsockopt(_SOL_PACKET, option, membership)
    return replace(opened, promisc=port.promisc)
