# SPDX-License-Identifier: Apache-2.0
"""Who asks, and what they may: the check before every request, and how many may be under way.

On the unix socket the file's permission is the access, and the peer's credentials are the identity. On TCP, where
`api.tokens_file` is set, a bearer token says both: `read` is for every GET, `write` for everything. Without a file
(loopback only) everybody on this machine may do everything, and the guard against web pages of other sites stands.
The pages without any data in them (`pages.PUBLIC`) need no token: a browser could not send one.

`current()` is the caller of the request that a task is working on; `audit` writes it into the log.
"""

from __future__ import annotations

import contextlib
import ipaddress
import pwd
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pvswitch.api.connection import Connection, Peer
from pvswitch.api.problem import ApiProblem
from pvswitch.api.tokens import Role, Tokens, read

MAX_REQUESTS = 64  # under way at once, on the unix socket and on TCP each; one may hold a body of 8 MiB
MAX_FAILURES = 10  # wrong tokens of one address in a row, and after that one in FAILURE_SECONDS
FAILURE_SECONDS = 6.0
MAX_ADDRESSES = 1024  # remembered for their failures
SAFE_METHODS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True)
class Caller:
    """Who asks; `who` are the fields of the audit line."""

    actor: str
    role: Role
    who: Mapping[str, Any] = field(default_factory=dict)


_CALLER: ContextVar[Caller | None] = ContextVar("pvswitch_caller", default=None)


def current() -> Caller | None:
    """Return who asks for what the running task does; None before that is known."""
    return _CALLER.get()


def actor() -> str:
    """Return the caller of the running request in words, for a revision and the log."""
    caller = _CALLER.get()
    return "" if caller is None else caller.actor


class Failures:
    """How often an address has shown a wrong token: a bucket of MAX_FAILURES that empties with time."""

    def __init__(self) -> None:
        """Begin without any."""
        self._full_until: OrderedDict[str, float] = OrderedDict()  # when the last failure will be forgotten

    def wait(self, address: str, now: float) -> float:
        """Return for how many seconds this address may not try again; 0 = it may."""
        until = self._full_until.get(_client(address), now)
        return max(0.0, until - now - (MAX_FAILURES - 1) * FAILURE_SECONDS)

    def note(self, address: str, now: float) -> None:
        """Count a failure."""
        client = _client(address)
        until = max(self._full_until.pop(client, now), now) + FAILURE_SECONDS
        self._full_until[client] = until
        while len(self._full_until) > MAX_ADDRESSES:
            self._full_until.popitem(last=False)


def _client(address: str) -> str:
    """Return what one client can't easily change: its IPv4 address, or the /64 of an IPv6 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return address


class Access:
    """The check of every request."""

    def __init__(self, tokens_file: Path | None = None) -> None:
        """Read the tokens; PvswitchError when the file is of no use."""
        self._file = tokens_file
        self._tokens: Tokens | None = None if tokens_file is None else read(tokens_file)
        self._failures = Failures()
        self._under_way: Counter[bool] = Counter()  # on TCP or not: the network can't lock out this machine's users

    def reload(self) -> None:
        """Read the tokens again; PvswitchError, and the old ones stay, when the file is of no use."""
        if self._file is not None:
            self._tokens = read(self._file)

    def middleware(self, public: frozenset[str], streams: frozenset[str]) -> Middleware:
        """Return the check as middleware; `public` are the paths without data, `streams` those without an end."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            caller = self._identify(request, public)
            _CALLER.set(caller)
            if caller.role != "write" and request.method not in SAFE_METHODS:
                raise ApiProblem(403, f"{caller.actor} may only read: use a token with the role write")
            resource = request.match_info.route.resource
            if resource is not None and resource.canonical in streams:
                return await handler(request)
            with self._count(tcp="remote" in caller.who):
                return await handler(request)

        return check

    @contextlib.contextmanager
    def _count(self, *, tcp: bool) -> Iterator[None]:
        if self._under_way[tcp] >= MAX_REQUESTS:
            raise ApiProblem(
                503, f"{MAX_REQUESTS} requests are under way: try again in a second", headers={"Retry-After": "1"}
            )
        self._under_way[tcp] += 1
        try:
            yield
        finally:
            self._under_way[tcp] -= 1

    def _identify(self, request: web.Request, public: frozenset[str]) -> Caller:
        assert isinstance(request.protocol, Connection)
        peer = request.protocol.peer
        if peer.address is None:
            return _local(peer)
        if self._tokens is None:
            _refuse_other_sites(request)
            return Caller(peer.address, "write", {"remote": peer.address})
        if request.path in public:
            return Caller(peer.address, "read", {"remote": peer.address})
        return self._token(request, self._tokens, peer.address)

    def _token(self, request: web.Request, tokens: Tokens, address: str) -> Caller:
        now = time.monotonic()
        if wait := self._failures.wait(address, now):
            raise ApiProblem(
                429,
                "too many wrong tokens came from this address: wait, and use one of api.tokens_file",
                headers={"Retry-After": str(int(wait) + 1)},
            )
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            raise ApiProblem(
                401,
                "a token is required here: send `Authorization: Bearer TOKEN`",
                headers={"WWW-Authenticate": 'Bearer realm="pvswitch"'},
            )
        token = tokens.find(secret.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            self._failures.note(address, now)
            raise ApiProblem(
                401,
                "this token is not known: use `Authorization: Bearer TOKEN` with one of api.tokens_file",
                headers={"WWW-Authenticate": 'Bearer realm="pvswitch", error="invalid_token"'},
            )
        return Caller(f"token {token.name} at {address}", token.role, {"token": token.name, "remote": address})


def _local(peer: Peer) -> Caller:
    assert peer.uid is not None
    try:
        user = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        user = str(peer.uid)
    return Caller(f"{user} (uid {peer.uid}, pid {peer.pid})", "write", {"user": user, "uid": peer.uid, "pid": peer.pid})


def _refuse_other_sites(request: web.Request) -> None:
    """Refuse, on TCP without tokens, what a web page of another site may have sent.

    A browser on this machine can be made to send requests here under a foreign name (DNS rebinding, cross-site
    requests); the Host and Origin headers tell.
    """
    if not _is_loopback(request.headers.get("Host", "")):
        raise ApiProblem(403, "the Host header must name this machine: use 127.0.0.1, [::1] or localhost")
    origin = request.headers.get("Origin")
    if origin is not None and not _is_loopback(origin.partition("://")[2]):
        raise ApiProblem(403, "requests from pages of other sites are refused")


def _is_loopback(authority: str) -> bool:
    """Return whether "HOST" or "HOST:PORT" is a loopback address or localhost."""
    try:
        host = urlsplit(f"//{authority}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
