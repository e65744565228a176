# SPDX-License-Identifier: Apache-2.0
"""Why a port has no link: one sentence for each, with the remedy.

What the switch knows about a port it says in `state.message` (`state.link_message`); this adds what
can only be seen from outside: whether the sockets are there and whom they let in. Used by
`pvswitch doctor`, on the machine of the switch.
"""

from __future__ import annotations

import grp
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What is to say about one port; `ok` when nothing needs doing."""

    port: str
    ok: bool
    message: str


def diagnose(ports: Sequence[dict[str, Any]], *, local: bool = True) -> list[Finding]:
    """Return findings for ports as the API shows them; `local`: their sockets are on this machine."""
    return [finding for port in ports for finding in _port(port, local)]


def _port(port: dict[str, Any], local: bool) -> list[Finding]:
    name, state = port["name"], port["state"]
    if state["link"] == "up":
        features = ", ".join(state.get("features") or []) or "none"
        if "ifname" in port:
            what = f"interface: {port['ifname']}"
        elif "local" in port:
            size = f"; frames of up to {state['mtu']} bytes (L3)" if state.get("mtu") else ""
            what = f"{port['type']} at {port['local']}, remotes: {', '.join(port.get('remotes') or []) or 'none'}{size}"
        elif port.get("type") == "pcap":
            what = "; ".join([*(f"{key}: {port[key]}" for key in ("read", "write") if port.get(key)), *_words(state)])
        else:
            what = f"features: {features}"
        return [Finding(name, True, f"link up; {what}")]
    message = state.get("message") or "the link is down"
    findings = [Finding(name, False, f"{state.get('reason') or 'down'}: {message}")]
    listens = port.get("mode") != "client"  # else the socket is the VM's, and the switch says itself what it met there
    waits = listens and state.get("reason") == "waiting_for_frontend"
    if local and waits and (problem := socket_problem(Path(port["socket"]))):
        findings.append(Finding(name, False, problem))
    return findings


def _words(state: dict[str, Any]) -> list[str]:
    """Return what the port says of itself, if anything."""
    return [state["message"]] if state.get("message") else []


def socket_problem(path: Path) -> str | None:
    """Return what keeps a VM from a port's socket, None when that is nothing; it helps with waiting ports.

    A VM runs as a user of its own (libvirt-qemu, or whoever starts QEMU), which must be in the socket's group.
    """
    try:
        info = path.stat()
    except PermissionError:
        return f"{path} is in a folder that you may not enter: run the doctor as root"
    except OSError:
        return f"{path} is gone, somebody removed it: remove the port and add it again"
    if not stat.S_ISSOCK(info.st_mode):
        return f"{path} is no socket any more: remove it, then remove the port and add it again"
    if info.st_mode & stat.S_IWOTH:
        return None
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    if not info.st_mode & stat.S_IWGRP:
        return f'{path} lets in root and its owner only: set `socket_mode: "0660"` and restart the switch'
    if group == "root":
        return f"{path} lets in root only: set `socket_group` to the group of the VM's user and restart the switch"
    return None
