# SPDX-License-Identifier: Apache-2.0
"""Filters as tcpdump takes them -> instructions of classic BPF, which the core runs (struct pvs_bpf in pvs_api.h).

libpcap compiles them, through ctypes: it is loaded when the first filter comes, so that a switch without one needs no
libpcap. It would ask the resolver for names of hosts and networks, and wait for the answer: such names are refused
before it sees them. Names of services (`port http`) and of protocols (`ip proto ospf`) come from files of this machine
and are taken. A compilation is short; it may take place in any thread.

Knows nothing of switches and ports. Anyone may call it.
"""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import re
import threading
from typing import Any

from pvswitch.errors import PvswitchError

MAX_EXPRESSION = 1024  # characters
MAX_INSTRUCTIONS = 4096  # PVS_MAX_FILTER

_LIBRARIES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")  # of Debian; of others; of who builds from source
_ETHERNET = 1  # DLT_EN10MB
_NO_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The words of pcap-filter(7). What a bare word behind them names is told by the last one of the second or third kind.
_KEYWORDS = _words(
    """
    and or not len length byte mask less greater broadcast multicast vlan mpls pppoed pppoes geneve
    icmptype icmpcode icmp-echoreply icmp-unreach icmp-sourcequench icmp-redirect icmp-echo icmp-routeradvert
    icmp-routersolicit icmp-timxceed icmp-paramprob icmp-tstamp icmp-tstampreply icmp-ireq icmp-ireqreply icmp-maskreq
    icmp-maskreply icmp6type icmp6code tcpflags tcp-fin tcp-syn tcp-rst tcp-push tcp-ack tcp-urg tcp-ece tcp-cwr
    """
)
_OF_ADDRESSES = _words(
    """
    host net gateway src dst link ether ppp slip fddi tr wlan arp rarp ip sctp tcp udp icmp igmp igrp pim vrrp carp
    ip6 icmp6 ah esp atalk aarp decnet lat sca moprc mopdl iso esis es-is isis is-is l1 l2 iih lsp snp csnp psnp clnp
    stp ipx netbeui
    """
)
_OF_FILES = frozenset(("port", "portrange", "proto", "protochain"))
_OF_SOCKETS = frozenset(("inbound", "outbound", "ifindex", "ifname"))  # what only a kernel's socket knows
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]+|[0-9]+(\.[0-9]+){0,3}")
_MAC = re.compile(r"[0-9A-Fa-f]{1,2}([:.-][0-9A-Fa-f]{1,2}){5}|([0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4}|\$[0-9A-Fa-f]+")
_WORD = re.compile(r"[\\$]?[A-Za-z0-9_:][A-Za-z0-9_.:-]*")
_INDEX = re.compile(r"\[[^\[\]]*\]")  # tcp[tcpflags]: libpcap looks nothing up in there

_compiling = threading.Lock()  # libpcap before 1.8 can't do two at a time


class FilterError(PvswitchError):
    """An expression is no filter, or can't be compiled here; the sentence says why."""


class NoLibpcap(FilterError):
    """The expression may be right: there is nothing here to compile it with."""


class _Program(ctypes.Structure):
    """struct bpf_program."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def compile_filter(expression: str, snaplen: int) -> bytes:
    """Return a filter's instructions, 8 bytes each; none for an empty expression. Raises FilterError."""
    if not expression.strip():
        return b""
    _check(expression)
    pcap = _library()
    with _compiling:
        handle = pcap.pcap_open_dead(_ETHERNET, snaplen)
        if not handle:
            raise FilterError("there is no memory to compile a filter")
        try:
            return _compiled(pcap, handle, expression)
        finally:
            pcap.pcap_close(handle)


def _compiled(pcap: Any, handle: int, expression: str) -> bytes:
    program = _Program()
    if pcap.pcap_compile(handle, ctypes.byref(program), expression.encode("ascii"), 1, _NO_NETMASK) != 0:
        raise FilterError(f"libpcap says: {pcap.pcap_geterr(handle).decode(errors='replace')}")
    try:
        if program.length > MAX_INSTRUCTIONS:
            raise FilterError(
                f"becomes {program.length} instructions, and {MAX_INSTRUCTIONS} are possible: make it simpler"
            )
        return ctypes.string_at(program.instructions, 8 * program.length)
    finally:
        pcap.pcap_freecode(ctypes.byref(program))


@functools.cache
def _library() -> Any:
    """Return libpcap with the types of what is called."""
    for name in _LIBRARIES:
        try:
            pcap = ctypes.CDLL(name)
        except OSError:
            continue
        pcap.pcap_open_dead.restype = ctypes.c_void_p
        pcap.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
        pcap.pcap_compile.argtypes = [
            ctypes.c_void_p,
            ctypes.POINTER(_Program),
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        ]
        pcap.pcap_geterr.restype = ctypes.c_char_p
        pcap.pcap_geterr.argtypes = [ctypes.c_void_p]
        pcap.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
        pcap.pcap_close.argtypes = [ctypes.c_void_p]
        return pcap
    raise NoLibpcap("filters need libpcap, which is not installed: apt-get install libpcap0.8 (elsewhere: libpcap)")


def _check(expression: str) -> None:
    """Refuse what is too long, or would have libpcap look up a name."""
    if len(expression) > MAX_EXPRESSION:
        raise FilterError(f"has {len(expression)} characters, and {MAX_EXPRESSION} are possible: make it shorter")
    if not expression.isascii() or not expression.isprintable():
        raise FilterError("must be printable ASCII in one line")
    named_by_files = False
    for word in _WORD.findall(_INDEX.sub(" ", expression)):
        if word in _OF_FILES:
            named_by_files = True
        elif word in _OF_ADDRESSES:
            named_by_files = False
        elif word in _OF_SOCKETS:
            raise FilterError(f"{word!r} is nothing that a frame says: choose ports and direction beside the filter")
        elif word not in _KEYWORDS and not named_by_files and not _is_number(word):
            raise FilterError(f"{word!r} is a name, or no word of pcap-filter(7): write addresses as numbers")


def _is_number(word: str) -> bool:
    if _NUMBER.fullmatch(word) or _MAC.fullmatch(word):
        return True
    try:
        ipaddress.IPv6Address(word)
    except ValueError:
        return False
    return True
