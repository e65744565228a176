# SPDX-License-Identifier: Apache-2.0
"""A Linux bridge with taps for QEMU, in a network namespace, which QEMU joins through its `launcher`.

No rule of the host's firewall is in there; bridge-nf-call is off all the same, since it costs even without a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pvswitch.namespace import Namespace, NamespaceMissing


async def make_bridge(namespace: Namespace, taps: Sequence[str], address: str = "") -> None:
    """Make a bridge `br0` with the named taps, each with vnet_hdr and one queue, as QEMU makes them by itself.

    With an address (and its prefix length) the bridge is the namespace's own interface on it.
    """
    _require_taps()
    await namespace.ip("link add br0 type bridge forward_delay 0")
    for family in ("iptables", "ip6tables", "arptables"):
        await namespace.command("sh", "-c", f"! cd /proc/sys/net/bridge || echo 0 > bridge-nf-call-{family}")
    if address:
        await namespace.ip(f"address add {address} dev br0")
    await namespace.ip("link set br0 up")
    for tap in taps:
        await namespace.ip(f"tuntap add dev {tap} mode tap vnet_hdr")
        await namespace.ip(f"link set {tap} master br0 up")


def _require_taps() -> None:
    if not Path("/dev/net/tun").exists():
        raise NamespaceMissing("there is no /dev/net/tun, without which there are no taps: modprobe tun")
