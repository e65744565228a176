# SPDX-License-Identifier: Apache-2.0
"""Checks between parts of a configuration: references, duplicates, what only fits together.

Called by `SwitchConfig` once every single value is right (and by `validation.parse`, through it,
with the wrong values left out).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pvswitch.errors import FieldError
from pvswitch.flow_checks import flow_errors
from pvswitch.tunnel_checks import tunnel_errors
from pvswitch.values import listens_on_loopback

if TYPE_CHECKING:
    from pvswitch.model import SwitchConfig

MAX_SOCKET_PATH = 107  # sun_path of unix(7), without its final NUL


def cross_errors(config: SwitchConfig) -> list[FieldError]:
    """Return every error that takes more than one value to see."""
    return [
        *_api_errors(config),
        *_bridge_errors(config),
        *_fdb_errors(config),
        *_socket_errors(config),
        *_interface_errors(config),
        *_file_errors(config),
        *_worker_errors(config),
        *_vlan_errors(config),
        *_mirror_errors(config),
        *flow_errors(config),
        *_policy_errors(config),
        *tunnel_errors(config),
    ]


def _api_errors(config: SwitchConfig) -> list[FieldError]:
    api = config.api
    if api.listen is None:
        return [
            FieldError(("api", key), "is for TCP: set `api.listen` too, or leave it out")
            for key in ("tokens_file", "tls")
            if getattr(api, key) is not None
        ]
    if api.tokens_file is None and not listens_on_loopback(api.listen):
        message = "beyond loopback a token is required: set `api.tokens_file` too, or use an address like 127.0.0.1"
        return [FieldError(("api", "listen"), message)]
    return []


def _bridge_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    names = ", ".join(config.bridges)
    for name, port in config.ports.items():
        if port.bridge is None:
            message = f"must name its bridge, as there are several: {names}"
        elif port.bridge not in config.bridges:
            message = f"there is no bridge {port.bridge!r}: declare it under `bridges`, or use one of {names}"
        else:
            continue
        errors.append(FieldError(("ports", name, "bridge"), message))
    return errors


def _fdb_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    for bridge, settings in config.bridges.items():
        seen: set[tuple[int, str]] = set()
        for i, entry in enumerate(settings.fdb):
            if not entry.mac:  # stands for an entry with errors of its own
                continue
            loc = ("bridges", bridge, "fdb", i)
            port = config.ports.get(entry.port)
            if port is None:
                errors.append(FieldError((*loc, "port"), f"there is no port {entry.port!r}"))
            elif port.bridge != bridge:
                errors.append(
                    FieldError((*loc, "port"), f"port {entry.port!r} is on bridge {port.bridge!r}, not on this one")
                )
            if (entry.vid, entry.mac) in seen:
                errors.append(FieldError((*loc, "mac"), f"{entry.mac} has a static entry already: keep one"))
            seen.add((entry.vid, entry.mac))
        if len(settings.fdb) > settings.fdb_size:
            errors.append(
                FieldError(("bridges", bridge, "fdb"), f"has more static entries than fdb_size, {settings.fdb_size}")
            )
    return errors


def _mirror_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    for bridge, settings in config.bridges.items():
        outputs = {mirror.output_port for mirror in settings.mirrors.values()} - {None}
        for name, mirror in settings.mirrors.items():
            loc = ("bridges", bridge, "mirrors", name)
            if (mirror.output_port is None) == (mirror.output_vlan is None):
                errors.append(FieldError(loc, "needs one of `output_port` and `output_vlan`: where its frames go"))
            named: list[tuple[tuple[str | int, ...], str]] = []
            if mirror.output_port is not None:
                named.append(((*loc, "output_port"), mirror.output_port))
            for key in ("select_src_port", "select_dst_port"):
                named += [((*loc, key, i), port) for i, port in enumerate(getattr(mirror, key))]
            for place, port in named:
                if port not in config.ports:
                    errors.append(FieldError(place, f"there is no port {port!r}"))
                elif (other := config.ports[port].bridge) != bridge:
                    errors.append(FieldError(place, f"port {port!r} is on bridge {other!r}, not on this one"))
                elif port in outputs and place[-1] != "output_port":
                    message = f"port {port!r} is the output of a mirror: no frames but mirrored ones pass by it"
                    errors.append(FieldError(place, message))
    return errors


def _policy_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    for name, port in config.ports.items():
        if port.shaping is not None and port.on_full == "backpressure":
            message = "doesn't go with `shaping`, which lets frames wait itself: leave one of them out"
            errors.append(FieldError(("ports", name, "on_full"), message))
        rules = port.port_security
        if rules is not None and rules.sticky and rules.max_macs is None:
            message = "needs `max_macs`: one port could fill the bridge's table with addresses that never go"
            errors.append(FieldError(("ports", name, "port_security", "sticky"), message))
    return errors


def _socket_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    owner: dict[Path, str] = {}
    sockets: list[tuple[tuple[str, ...], Path | None, str]] = [(("api", "socket"), config.api.socket, "the API")]
    sockets += [
        (("ports", name, "socket"), port.socket, f"port {name!r}")
        for name, port in config.ports.items()
        if port.type == "vhost-user"
    ]
    for loc, path, user in sockets:
        if path is None:  # its directory is wrong, and says so itself
            continue
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            message = f"{path} is longer than the {MAX_SOCKET_PATH} bytes of a socket path: use a shorter folder"
            errors.append(FieldError(loc, message))
        if path in owner:
            errors.append(FieldError(loc, f"{path} is the socket of {owner[path]} already"))
        owner.setdefault(path, user)
    return errors


def _interface_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    owner: dict[tuple[str | None, str], str] = {}
    for name, port in config.ports.items():
        if port.type not in ("tap", "af_packet"):
            continue
        if (first := owner.setdefault((port.netns, port.ifname), name)) != name:
            message = f"{port.ifname} is the interface of port {first!r} already"
            errors.append(FieldError(("ports", name, "ifname"), message))
        if port.type == "tap":
            errors += [
                FieldError(("ports", name, "addresses", i), f"{address} is listed already: keep one")
                for i, address in enumerate(port.addresses)
                if address in port.addresses[:i]
            ]
    return errors


def _file_errors(config: SwitchConfig) -> list[FieldError]:
    """A file that is written is written by one port, and nobody reads it meanwhile."""
    errors = []
    files = {name: port for name, port in config.ports.items() if port.type == "pcap"}
    readers: dict[Path, str] = {}
    writers: dict[Path, str] = {}
    for name, port in files.items():
        if port.read is not None:
            readers.setdefault(port.read, name)
    for name, port in files.items():
        loc = ("ports", name, "write")
        if port.write is None:
            if port.read is None:
                message = "is missing: a pcap port has a file to `read`, one to `write`, or both"
                errors.append(FieldError(("ports", name, "read"), message))
            continue
        if port.read == port.write:
            errors.append(FieldError(loc, f"{port.write} is the file that this port reads: use another one"))
        elif (reader := readers.get(port.write)) is not None:
            errors.append(FieldError(loc, f"{port.write} is the file that port {reader!r} reads: use another one"))
        if (first := writers.setdefault(port.write, name)) != name:
            errors.append(FieldError(loc, f"{port.write} is the file that port {first!r} writes already"))
    return errors


def _worker_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    workers, cpus = config.datapath.workers, config.datapath.cpus
    if len(cpus) not in (0, workers):
        message = f"must name a processor for each of the {workers} workers, or none: {len(cpus)} are named"
        errors.append(FieldError(("datapath", "cpus"), message))
    if config.datapath.rebalance_seconds and workers == 1:
        message = "moves queues between workers, and there is one: raise `datapath.workers`, or leave it out"
        errors.append(FieldError(("datapath", "rebalance_seconds"), message))
    for name, port in config.ports.items():
        if port.type != "vhost-user":
            continue
        loc = ("ports", name, "rxq_affinity")
        if len(port.rxq_affinity) > port.queues:
            message = f"has {len(port.rxq_affinity)} entries for {port.queues} queue pairs: raise `queues` or cut it"
            errors.append(FieldError(loc, message))
        errors += [
            FieldError((*loc, i), f"there is no worker {worker}: `datapath.workers` is {workers}, they count from 0")
            for i, worker in enumerate(port.rxq_affinity)
            if worker >= workers
        ]
    return errors


def _vlan_errors(config: SwitchConfig) -> list[FieldError]:
    errors = []
    for name, port in config.ports.items():
        if getattr(port, "mapped", False):  # its map says which; see tunnel_checks
            continue
        mode = port.effective_vlan_mode
        if mode == "trunk" and port.tag is not None:
            errors.append(FieldError(("ports", name, "tag"), "is not for trunks: use native-untagged, or leave it out"))
        if mode != "trunk" and port.tag is None:
            errors.append(FieldError(("ports", name, "tag"), f"is missing: {mode} ports have a VLAN of their own"))
        if mode in ("access", "dot1q-tunnel") and port.trunks:
            hint = "native-untagged" if mode == "access" else "cvlans for the customer's VLANs"
            errors.append(
                FieldError(("ports", name, "trunks"), f"is not for {mode} ports: use {hint}, or leave it out")
            )
        if mode != "dot1q-tunnel" and port.cvlans:
            message = f"is for dot1q-tunnel ports only, and this is {mode}: use `trunks`, or leave it out"
            errors.append(FieldError(("ports", name, "cvlans"), message))
    return errors
