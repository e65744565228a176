# SPDX-License-Identifier: Apache-2.0
"""Two hosts and the wire between them, for tunnels: network namespaces joined by a pair of veths.

    near  192.0.2.1 on up0            far  192.0.2.2 on up0            MTU 1500

The veths keep the offloads that the kernel gives them: what a switch hands over as one large packet arrives as one.
With `single` packets go one by one with their checksums made, as they do on a real wire; where they arrive the kernel
may put those of a flow together (GRO), which network cards have by default and veths have not. Neither host has a rule,
a route beyond the wire, or IPv6. Needs root.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pvswitch.bench.errors import NotOffered
from pvswitch.namespace import Namespace, NamespaceMissing

DEVICE = "up0"
PREFIX = 24
VNI = 100
MTU = 1500
INNER_MTU = MTU - 50
"""What is left within the headers of VXLAN over IPv4."""
NOBODY = "02:00:00:00:ff:ff"
"""A hardware address that no host has: what is sent to it is dropped where it arrives."""
FIRST_SINK = 101
OUTER = 14 + 20 + 8
"""Bytes around what UDP carries."""
VXLAN_HEADER = 8


class Hosts(NamedTuple):
    """Both hosts."""

    near: Namespace
    far: Namespace


class Messages(NamedTuple):
    """UDP messages that a host's stack took from and gave to its sockets; one that the kernel cuts counts once."""

    sent: int
    received: int


def address(number: int) -> str:
    """Return the address of a host, 1 (near) or 2 (far), or of a sink."""
    return f"192.0.2.{number}"


@asynccontextmanager
async def joined(*, single: bool = False, gro: bool = True) -> AsyncIterator[Hosts]:
    """Make both hosts with their addresses; raises NotOffered where they can't be had.

    `gro` False: single packets stay so for who takes them from the device.
    """
    if single and shutil.which("ethtool") is None:
        raise NotOffered("ethtool not found: apt-get install ethtool")
    try:
        async with Namespace() as near, Namespace() as far:
            pair = f"link add {DEVICE} mtu {MTU} type veth peer name {DEVICE} mtu {MTU}"
            await near.ip(f"{pair} netns {far.holder}")
            for number, host in enumerate((near, far), 1):
                await host.command("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6")
                if single:
                    await _make_single(host, gro=gro)
                await host.ip(f"address add {address(number)}/{PREFIX} dev {DEVICE}")
                await host.ip(f"link set {DEVICE} up")
            yield Hosts(near, far)
    except NamespaceMissing as error:
        raise NotOffered(str(error)) from error


async def _make_single(host: Namespace, *, gro: bool) -> None:
    """Let packets leave a host one by one, with their checksums, and come in as by a network card."""
    off = [word for what in ("tx", "gso", "tso", "tx-udp-segmentation") for word in (what, "off")]
    await host.command("ethtool", "-K", DEVICE, *off, "gro", "on" if gro else "off")


async def add_sinks(host: Namespace, count: int) -> list[str]:
    """Have a host believe that there are so many others on the wire; return their addresses.

    What is sent to them arrives at the other host, which drops it at once, since it is for another hardware address.
    """
    found = [address(FIRST_SINK + number) for number in range(count)]
    for one in found:
        await host.ip(f"neighbour add {one} lladdr {NOBODY} dev {DEVICE} nud permanent")
    return found


def messages(host: Namespace) -> Messages:
    """Return the UDP messages of a host so far (RFC 4113, as /proc/net/snmp counts them)."""
    text = Path(f"/proc/{host.holder}/net/snmp").read_text()
    names, values = re.findall(r"^Udp: (.*)$", text, re.MULTILINE)
    counted = dict(zip(names.split(), values.split(), strict=True))
    return Messages(int(counted["OutDatagrams"]), int(counted["InDatagrams"]))


def datagrams(host: Namespace, frame: int) -> int:
    """Return how many frames of so many bytes have come to a host by VXLAN, where nothing else comes.

    One large packet that holds several of them has its outer headers once: their bytes tell how many there are. (Not
    with GRO on: a veth counts otherwise then.)
    """
    text = Path(f"/proc/{host.holder}/net/dev").read_text()
    counted = re.search(rf"^ *{DEVICE}: *(\d+) +(\d+) ", text, re.MULTILINE)
    assert counted is not None
    octets, packets = int(counted[1]), int(counted[2])
    return (octets - packets * OUTER) // (VXLAN_HEADER + frame)


def tunnel(number: int, remotes: Sequence[str]) -> dict[str, Any]:
    """Return a VXLAN port of pvswitch from a host to others."""
    return {"type": "vxlan", "vni": VNI, "local": address(number), "remotes": [*remotes]}
