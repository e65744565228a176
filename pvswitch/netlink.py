# SPDX-License-Identifier: Apache-2.0
"""Network namespaces and their interfaces, as rtnetlink(7) tells and changes them.

Two ways to ask. `Route` is a plain socket for questions and changes that wait for their answer; it belongs into the
short-lived thread that `run_in_namespace` starts, which is inside the namespace and may block. `LinkWatch` follows the
interfaces of one namespace on the event loop: a table, kept up to date by the kernel's messages, and a call for each
change to whoever asked for that name. A watch whose messages were lost (ENOBUFS) reads the table anew.

pyroute2 encodes and decodes; its own sockets are not used, as they don't work on uvloop.
Who may call: `uplink.py` in its threads, `uplink_port.py` and `ports.py` on the event loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTMGRP_LINK,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOWER_UP, IFF_RUNNING, IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

log = structlog.get_logger(__name__)
T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
ROUTE_SECONDS = 10.0
"""Longest wait for the kernel's answer: interfaces that are being removed may hold its lock for a while."""
CLOSING_AT_ONCE = 32

_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20
_MAX_MESSAGE = 65536
_IFLA_EXT_MASK_SKIP_STATS = 8
_TUN_TAP = 2  # IFF_TAP in IFLA_TUN_TYPE


@dataclass(frozen=True, slots=True)
class Tap:
    """What only a tap has."""

    persistent: bool  # it stays when nobody has it open
    multiqueue: bool
    queues: int  # open ones; known only with multiqueue


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    index: int
    name: str
    up: bool
    carrier: bool  # and the kernel has begun to send by it, which it does up to a second later
    mtu: int
    kind: str
    tap: Tap | None = None


def netns_path(netns: str | None) -> Path | None:
    """Return the file of a namespace as a configuration names it; None: the switch's own."""
    return None if netns is None else NETNS_DIR / netns  # an absolute path stays as it is


async def run_in_namespace(path: Path | None, call: Callable[[], T]) -> T:
    """Run `call` in a thread that has entered a namespace and ends with it; FileNotFoundError when there is none."""

    def body() -> T:
        if path is not None:
            _enter(path)
        return call()

    # A pool's thread would stay in the namespace; leaving the `with` ends this one.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as thread:
        try:
            answer = asyncio.get_running_loop().run_in_executor(thread, body)
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no thread can be started: raise the limit of processes") from error
        return await answer


def _enter(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would never be open
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


def _identity(path: Path | None) -> tuple[int, int]:
    """Return what tells one namespace from another that has its name later."""
    info = (path or Path("/proc/self/ns/net")).stat()
    return info.st_dev, info.st_ino


# ---- questions and changes


class Route:
    """A netlink socket in the caller's namespace: blocking, one request at a time."""

    def __init__(self) -> None:
        """Open it; OSError."""
        self._sock = _open_socket(0)
        self._sock.settimeout(ROUTE_SECONDS)
        self._sequence = 0

    def __enter__(self) -> Route:
        """Use it for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._sock.close()

    def link(self, name: str) -> Link | None:
        """Return an interface, or None when there is none of this name."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", _IFLA_EXT_MASK_SKIP_STATS)]
        try:
            answers = self._ask(message, RTM_GETLINK, 0)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return next(map(_link, answers), None)

    def links(self) -> list[Link]:
        """Return all interfaces."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", _IFLA_EXT_MASK_SKIP_STATS)]
        return [_link(answer) for answer in self._ask(message, RTM_GETLINK, NLM_F_DUMP)]

    def holder(self, address: str) -> Link | None:
        """Return the interface that has an address, or None."""
        for answer in self._ask(ifaddrmsg(), RTM_GETADDR, NLM_F_DUMP):
            if (answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")) == address:
                return next((link for link in self.links() if link.index == answer["index"]), None)
        return None

    def tunnel_devices(self, port: int) -> list[str]:
        """Return the names of the kernel's VXLAN and Geneve interfaces that a UDP port belongs to."""
        message = ifinfmsg()
        message["attrs"] = [("IFLA_EXT_MASK", _IFLA_EXT_MASK_SKIP_STATS)]
        found = []
        for answer in self._ask(message, RTM_GETLINK, NLM_F_DUMP):
            kind = answer.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
            data = answer.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
            if kind in ("vxlan", "geneve") and data is not None and data.get_attr(f"IFLA_{kind.upper()}_PORT") == port:
                found.append(answer.get_attr("IFLA_IFNAME"))
        return found

    def bring_up(self, index: int) -> None:
        """Set an interface up."""
        message = ifinfmsg()
        message["index"], message["flags"], message["change"] = index, IFF_UP, IFF_UP
        self._ask(message, RTM_NEWLINK, NLM_F_ACK)

    def set_mac(self, index: int, mac: str) -> None:
        """Set an interface's hardware address."""
        message = ifinfmsg()
        message["index"], message["attrs"] = index, [("IFLA_ADDRESS", mac)]
        self._ask(message, RTM_NEWLINK, NLM_F_ACK)

    def set_mtu(self, index: int, mtu: int) -> None:
        """Set an interface's MTU."""
        message = ifinfmsg()
        message["index"], message["attrs"] = index, [("IFLA_MTU", mtu)]
        self._ask(message, RTM_NEWLINK, NLM_F_ACK)

    def add_address(self, index: int, address: str) -> bool:
        """Give an interface an address with its prefix length; False when it has it already."""
        try:
            self._ask(_address(index, address), RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def addresses(self, index: int) -> set[str]:
        """Return an interface's addresses with their prefix lengths."""
        answers = self._ask(ifaddrmsg(), RTM_GETADDR, NLM_F_DUMP)
        return {
            f"{answer.get_attr('IFA_LOCAL') or answer.get_attr('IFA_ADDRESS')}/{answer['prefixlen']}"
            for answer in answers
            if answer["index"] == index
        }

    def remove_addresses(self, index: int, doomed: Collection[str]) -> None:
        """Take addresses from an interface; those that have gone already don't matter.

        With the first IPv4 address of a network the kernel removes all others of it: they come back.
        """
        kept = self.addresses(index).difference(doomed) if doomed else set()
        for address in doomed:
            try:
                self._ask(_address(index, address), RTM_DELADDR, NLM_F_ACK)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                    raise
        for address in sorted(kept.difference(self.addresses(index)) if doomed else ()):
            self.add_address(index, address)

    def _ask(self, message: Any, kind: int, flags: int) -> list[Any]:
        """Send a request; return the answers. OSError with the kernel's errno."""
        self._sequence += 1
        message["header"] = {"type": kind, "flags": NLM_F_REQUEST | flags, "sequence_number": self._sequence, "pid": 0}
        message.reset()
        message.encode()
        self._sock.send(message.data)
        answers: list[Any] = []
        while True:
            for answer in _parse(self._sock.recv(_MAX_MESSAGE)):
                header = answer["header"]
                if header["sequence_number"] != self._sequence:
                    continue
                if isinstance(error := header["error"], NetlinkError):
                    raise OSError(error.code, os.strerror(error.code))
                if header["type"] in (NLMSG_ERROR, NLMSG_DONE):
                    return answers
                answers.append(answer)
                if not flags & (NLM_F_DUMP | NLM_F_ACK):
                    return answers


def _open_socket(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        sock.bind((0, groups))
    except OSError:
        sock.close()
        raise
    return sock


def _parse(data: bytes) -> Iterator[Any]:
    yield from MarshalRtnl().parse(data)


def _address(index: int, address: str) -> Any:
    interface = ipaddress.ip_interface(address)
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    message["index"], message["prefixlen"] = index, interface.network.prefixlen
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    if interface.version == 4 and interface.network.prefixlen < 31:
        message["attrs"].append(("IFA_BROADCAST", str(interface.network.broadcast_address)))
    return message


def _link(message: Any) -> Link:
    data = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    kind = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or ""
    tap = None
    if kind == "tun" and data is not None and data.get_attr("IFLA_TUN_TYPE") == _TUN_TAP:
        tap = Tap(
            bool(data.get_attr("IFLA_TUN_PERSIST")),
            bool(data.get_attr("IFLA_TUN_MULTI_QUEUE")),
            int(data.get_attr("IFLA_TUN_NUM_QUEUES") or 0),
        )
    up, running = bool(message["flags"] & IFF_UP), message["flags"] & IFF_RUNNING and message["flags"] & IFF_LOWER_UP
    name, mtu = message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU")
    return Link(message["index"], name, up, bool(running), mtu or 0, kind, tap)


# ---- following


class LinkWatch:
    """The interfaces of one namespace, as they are now. Made by `Watches`."""

    def __init__(self, path: Path | None) -> None:
        """`path` is the namespace's file; `open` begins."""
        self.path = path
        self.users = 0
        self._links: dict[int, Link] = {}
        self._names: dict[str, int] = {}
        self._listeners: dict[str, list[Callable[[], None]]] = {}
        self._sock: socket.socket | None = None
        self._identity = (0, 0)
        self._seen: list[Link] | None = None  # told of while the table is read anew
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to follow; OSError, FileNotFoundError when there is no such namespace."""
        self._identity = _identity(self.path)
        await self._read_table()

    async def close(self) -> None:
        """Stop following."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._close_socket()

    @property
    def gone(self) -> bool:
        """Whether the name leads to another namespace by now, or to none."""
        try:
            return self.path is not None and _identity(self.path) != self._identity
        except OSError:
            return True

    def by_name(self, name: str) -> Link | None:
        """Return the interface of this name."""
        index = self._names.get(name)
        return None if index is None else self._links[index]

    def by_index(self, index: int) -> Link | None:
        """Return the interface of this index, whatever it is called now."""
        return self._links.get(index)

    def put(self, link: Link) -> None:
        """Take note of an interface before the kernel's message about it has been read."""
        if self._seen is not None:
            self._seen.append(link)
        self._forget(link.index)
        self._links[link.index], self._names[link.name] = link, link.index

    def listen(self, name: str, listener: Callable[[], None]) -> None:
        """Have `listener` called when an interface of this name appears, changes or goes."""
        self._listeners.setdefault(name, []).append(listener)

    def unlisten(self, name: str, listener: Callable[[], None]) -> None:
        """Have it called no more."""
        self._listeners[name].remove(listener)
        if not self._listeners[name]:
            del self._listeners[name]

    def _forget(self, index: int) -> str:
        """Remove an interface from the table; return the name it had."""
        old = self._links.pop(index, None)
        if old is not None and self._names.get(old.name) == index:
            del self._names[old.name]
        return "" if old is None else old.name

    def _tell(self, *names: str) -> None:
        for name in names:
            for listener in tuple(self._listeners.get(name, ())):
                listener()

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("messages about interfaces were lost, reading them anew", netns=self.path, error=str(error))
            self._close_socket()
            self._reading = asyncio.create_task(self._read_again(), name="interfaces")
            return
        for message in _parse(data):
            if message["header"]["type"] == RTM_DELLINK and not message["family"]:
                self._tell(self._forget(message["index"]))
            elif message["header"]["type"] == RTM_NEWLINK and not message["family"]:
                link = _link(message)
                before = self._links.get(link.index)
                if link != before:
                    self.put(link)
                    self._tell(link.name, *([before.name] if before and before.name != link.name else []))

    async def _read_again(self) -> None:
        while self._sock is None:
            try:
                await self._read_table()
            except OSError as error:
                log.warning("interfaces can't be read, trying again", netns=self.path, error=str(error))
                await asyncio.sleep(1)

    async def _read_table(self) -> None:
        """Subscribe, then read: what changes in between comes as a message afterwards."""

        def read() -> tuple[socket.socket, list[Link]]:
            sock = _open_socket(RTMGRP_LINK)
            try:
                with Route() as route:
                    return sock, route.links()
            except OSError:
                sock.close()
                raise

        self._seen = []
        sock, links = await run_in_namespace(self.path, read)
        told, self._seen = self._seen, None
        self._links, self._names = {}, {}
        for link in (*links, *told):
            self.put(link)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._on_readable)
        self._tell(*self._listeners)

    def _close_socket(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None


class Watches:
    """One `LinkWatch` for each namespace in use.

    `closing` limits how many threads close interfaces at a time: the kernel takes 20 ms to remove one, mostly waiting.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.closing = asyncio.Semaphore(CLOSING_AT_ONCE)
        self._open: dict[Path | None, LinkWatch] = {}
        self._lock = asyncio.Lock()

    async def acquire(self, path: Path | None) -> LinkWatch:
        """Return the watch of a namespace; give it back with `release`. OSError, as `LinkWatch.open`."""
        async with self._lock:
            watch = self._open.get(path)
            if watch is None or watch.gone:  # a watch that has gone is closed by its last user
                watch = LinkWatch(path)
                await watch.open()
                self._open[path] = watch
            watch.users += 1
            return watch

    async def release(self, watch: LinkWatch) -> None:
        """Stop following the namespace when nobody uses it any more."""
        watch.users -= 1
        if watch.users == 0:
            if self._open.get(watch.path) is watch:
                del self._open[watch.path]
            await watch.close()
