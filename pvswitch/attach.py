# SPDX-License-Identifier: Apache-2.0
"""The exact lines that start a VM on a port, for QEMU and for libvirt.

Who listens on the port's socket is the port's `mode`; the other side connects, again and again until it
succeeds and after every loss. Guest memory must be shared, or the switch can't see it. Pure text: the API
serves it, tests and the demo start their guests with it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import quoteattr

from pvswitch.errors import PvswitchError
from pvswitch.model import SwitchConfig, VhostUserPort

Accel = Literal["kvm", "tcg"]
Version = tuple[int, int]

RECONNECT_MS_SINCE: Version = (9, 2)  # `reconnect-ms`; `reconnect`, in seconds, is gone in 10.2
# QEMU 7.2 crashes with vhost-user and MSI-X under TCG, 10.0 does not: vectors=0 turns MSI-X off.
TCG_MSIX_SINCE: Version = (10, 0)
DEFAULT_MEMORY = "256M"
MEMORY_PATTERN = r"[1-9][0-9]{0,8}[MG]"
VERSION_PATTERN = r"[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,3})?"


class NoVmPort(PvswitchError):
    """A VM can't be started on a port of this type (HTTP 409)."""


@dataclass(frozen=True)
class Guest:
    """What the lines depend on, besides the port. `version` None: an unknown QEMU before 10.2.

    `queues` are the queue pairs of the VM's device, at most as many as the port offers.
    """

    version: Version | None = None
    accel: Accel = "kvm"
    memory: str = DEFAULT_MEMORY
    queues: int = 1


def parse_version(text: str) -> Version:
    """Return (major, minor) of "9.2" or "9.2.1"; ValueError for anything else."""
    if not re.fullmatch(VERSION_PATTERN, text):
        raise ValueError("must be a QEMU version like 9.2 or 10.0.3")
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def port_mac(name: str) -> str:
    """Return the MAC address of the VM on port `name`: locally administered, the same every time."""
    digest = hashlib.sha256(f"pvswitch port {name}".encode()).digest()
    return bytes([digest[0] & 0xFC | 0x02, *digest[1:6]]).hex(":")


def vm_port(config: SwitchConfig, name: str) -> VhostUserPort:
    """Return port `name`; NoVmPort when it is of another type, KeyError when there is no such port."""
    port = config.ports[name]
    if not isinstance(port, VhostUserPort):
        raise NoVmPort(
            f"port {name!r} has type {port.type}: a VM starts on a port of type vhost-user, add one for it with"
            " `pvswitch port add NAME`"
        )
    return port


def qemu_lines(config: SwitchConfig, name: str, guest: Guest) -> list[list[str]]:
    """Return QEMU's arguments for port `name`, grouped in lines; the errors of `vm_port`."""
    port, netdev = vm_port(config, name), f"vhost-user,id=net-{name},chardev=char-{name}"
    device = f"virtio-net-pci,netdev=net-{name},mac={port_mac(name)}"
    if port.mtu is not None:
        device += f",host_mtu={port.mtu}"
    if guest.queues > 1:
        netdev += f",queues={guest.queues}"
        device += ",mq=on"
    if guest.accel == "tcg" and (guest.version is None or guest.version < TCG_MSIX_SINCE):
        device += ",vectors=0"
    elif guest.queues > 1:
        device += f",vectors={2 * guest.queues + 2}"  # one for each ring, for the control queue and for changes
    return [
        ["-m", guest.memory],
        ["-object", f"memory-backend-memfd,id=mem,size={guest.memory},share=on"],
        ["-numa", "node,memdev=mem"],
        ["-chardev", f"socket,id=char-{name},path={_option(config.port_socket(name))},{_side(port, guest)}"],
        ["-netdev", netdev],
        ["-device", device],
    ]


def _side(port: VhostUserPort, guest: Guest) -> str:
    """Return how QEMU comes by its connection: by listening or by connecting."""
    if port.mode == "client":
        return "server=on,wait=off"
    modern = guest.version is not None and guest.version >= RECONNECT_MS_SINCE
    return "reconnect-ms=1000" if modern else "reconnect=1"


def qemu_text(lines: list[list[str]]) -> str:
    """Return the arguments as lines for a shell, each but the last continued."""
    return " \\\n".join(shlex.join(line) for line in lines)


def libvirt_xml(config: SwitchConfig, name: str, queues: int = 1) -> str:
    """Return the elements for a libvirt domain on port `name`; the errors of `vm_port`."""
    port, path = vm_port(config, name), quoteattr(str(config.port_socket(name)))
    if port.mode == "client":
        words = "libvirt's `server` is its own side, the switch connects: the VM waits for that before it boots"
        source = [f"  <source type='unix' path={path} mode='server'/>"]
    else:
        words = "libvirt's `client` is its own side, the switch listens"
        source = [
            f"  <source type='unix' path={path} mode='client'>",
            "    <reconnect enabled='yes' timeout='1'/>",
            "  </source>",
        ]
    return "\n".join(
        [
            "<!-- in <domain>: memory that the switch can see -->",
            "<memoryBacking>",
            "  <source type='memfd'/>",
            "  <access mode='shared'/>",
            "</memoryBacking>",
            f"<!-- in <devices>: {words} -->",
            "<interface type='vhostuser'>",
            f"  <mac address='{port_mac(name)}'/>",
            *source,
            "  <model type='virtio'/>",
            *([f"  <driver queues='{queues}'/>"] if queues > 1 else []),
            *([f"  <mtu size='{port.mtu}'/>"] if port.mtu is not None else []),
            "</interface>",
        ]
    )


def _option(path: Path) -> str:
    """Return a path as a value in a QEMU option, where a comma is written twice."""
    return str(path).replace(",", ",,")
