# SPDX-License-Identifier: Apache-2.0
"""/tunnels: what tunnels do, and what a control plane tells them: remotes, and the addresses behind them.

These are no edits of the configuration: they have no ETag, and go with their port and with the switch.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from aiohttp import web

from pvswitch.api.call import Call, reply
from pvswitch.api.problem import ApiProblem, not_found
from pvswitch.api.request import page, page_of_many, read_object
from pvswitch.api.schemas import BatchMac, BatchMacKey, BatchRemote, ProblemError, TunnelBatch, TunnelMacBody
from pvswitch.errors import ApplyError, FieldError, InvalidDocument
from pvswitch.model import TunnelPort
from pvswitch.state import ExternalRemote, TunnelMac
from pvswitch.tunnel_checks import network_numbers
from pvswitch.tunnel_plane import MacChange, RemoteChange
from pvswitch.validation import parse_part

MAX_BATCH = 10_000


def _tunnel(call: Call, name: str) -> TunnelPort:
    port = call.config.ports.get(name)
    if not isinstance(port, TunnelPort):
        raise not_found("tunnel", name)
    return port


def _networks(port: TunnelPort) -> dict[int, int | None]:
    """Return the VLAN of each network of a tunnel; None where there is no map."""
    return {number or 0: vid for vid, number in network_numbers(port)}


async def list_tunnels(call: Call) -> web.Response:
    """List the tunnels."""
    tunnels = [name for name, port in call.config.ports.items() if isinstance(port, TunnelPort)]
    names = page(tunnels, str, call.query)
    items = [await call.dataplane.tunnels.info(name) for name in names.items if name in call.config.ports]
    return reply(names.model_copy(update={"items": items}))


async def get_tunnel(call: Call) -> web.Response:
    """Return a tunnel."""
    _tunnel(call, call.path("port"))
    return reply(await call.dataplane.tunnels.info(call.path("port")))


# ---- what a control plane tells


def _network(call: Call) -> tuple[str, int, TunnelPort]:
    """Return the tunnel and the VNI of the path; 404 when they aren't there."""
    name, text = call.path("port"), call.path("vni")
    port = _tunnel(call, name)
    vni = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else -1
    if vni not in _networks(port):
        raise not_found(f"network of tunnel {name!r} with VNI", text)
    return name, vni, port


def _remote(call: Call) -> tuple[str, RemoteChange]:
    name, vni, port = _network(call)
    item = parse_part(BatchRemote, {"vni": vni, "address": call.path("address")}, ())
    _refuse(_remote_errors(port, item, ()))
    return name, RemoteChange(vni, item.address)


def _mac(call: Call, remote: str | None) -> tuple[str, MacChange]:
    name, vni, port = _network(call)
    vid = call.path("vid")
    given = {"vni": vni, "vid": int(vid) if vid.isascii() and vid.isdigit() and len(vid) <= 4 else vid}
    item = parse_part(BatchMacKey, {**given, "mac": call.path("mac")}, ())
    _refuse(_mac_errors(port, item, ()))
    return name, MacChange(vni, item.vid, item.mac, remote)


async def list_tunnel_remotes(call: Call) -> web.Response:
    """List the remotes of one network of a tunnel."""
    name, vni, _ = _network(call)
    items = call.dataplane.tunnels.remotes(name, vni)
    return reply(await page_of_many(items, lambda item: item.name, call.query))


def _find_remote(call: Call, name: str, change: RemoteChange) -> ExternalRemote | None:
    found = call.dataplane.tunnels.remotes(name, change.vni)
    return next((item for item in found if item.address == change.address), None)


async def get_tunnel_remote(call: Call) -> web.Response:
    """Return a remote of one network of a tunnel."""
    name, change = _remote(call)
    found = _find_remote(call, name, change)
    if found is None:
        raise not_found("remote", change.address)
    return reply(found)


async def put_tunnel_remote(call: Call) -> web.Response:
    """Add a remote to one network of a tunnel: it gets a copy of what is flooded, and its packets are taken."""
    name, change = _remote(call)
    done = await _change(call, name, add_remotes=[change])
    shown = ExternalRemote(name=change.address, address=change.address, vni=change.vni, origin="external")
    return reply(shown, 201 if done.added else 200)


async def delete_tunnel_remote(call: Call) -> web.Response:
    """Remove a remote that was added by the API."""
    name, change = _remote(call)
    found = _find_remote(call, name, change)
    if found is None:
        raise not_found("remote", change.address)
    if found.origin == "static":
        detail = f"{change.address} is a remote of the configuration: take it from `remotes` of port {name!r}"
        raise ApiProblem(409, detail, [ProblemError(pointer=f"#/ports/{name}/remotes", detail="has it")])
    await _change(call, name, remove_remotes=[change])
    return web.Response(status=204)


async def list_tunnel_macs(call: Call) -> web.Response:
    """List the addresses that were told of one network of a tunnel."""
    name, vni, _ = _network(call)
    items = call.dataplane.tunnels.macs(name, vni)
    return reply(await page_of_many(items, lambda item: f"{item.vid:04}/{item.mac}", call.query))


def _find_mac(call: Call, name: str, change: MacChange) -> TunnelMac:
    found = call.dataplane.tunnels.macs(name, change.vni)
    for item in found:
        if (item.vid, item.mac) == (change.vid, change.mac):
            return item
    raise not_found("address", f"{change.vid}/{change.mac}")


async def get_tunnel_mac(call: Call) -> web.Response:
    """Return where an address is, as it was told."""
    return reply(_find_mac(call, *_mac(call, None)))


async def put_tunnel_mac(call: Call) -> web.Response:
    """Tell a tunnel which remote an address is behind."""
    body = parse_part(TunnelMacBody, await read_object(call.request), ())
    name, change = _mac(call, body.remote)
    port = _tunnel(call, name)
    _refuse(_host_errors(port, body.remote, ("remote",)))
    done = await _change(call, name, add_macs=[change])
    shown = TunnelMac(name=f"{change.vid}/{change.mac}", vid=change.vid, mac=change.mac, remote=body.remote)
    return reply(shown, 201 if done.added else 200)


async def delete_tunnel_mac(call: Call) -> web.Response:
    """Forget where an address is that was told."""
    name, change = _mac(call, None)
    _find_mac(call, name, change)
    await _change(call, name, remove_macs=[change])
    return web.Response(status=204)


async def change_tunnel(call: Call) -> web.Response:
    """Remove and add remotes and addresses of a tunnel, all or nothing."""
    name = call.path("port")
    port = _tunnel(call, name)
    batch = parse_part(TunnelBatch, await read_object(call.request), ())
    lists = (batch.add.remotes, batch.add.macs, batch.remove.remotes, batch.remove.macs)
    if (total := sum(map(len, lists))) > MAX_BATCH:
        raise InvalidDocument([FieldError((), f"has {total} items: send {MAX_BATCH} at most at a time")])
    errors: list[FieldError] = []
    networks = _networks(port)
    for i, remote in enumerate(batch.add.remotes):
        errors += _remote_errors(port, remote, ("add", "remotes", i), networks)
    for i, mac in enumerate(batch.add.macs):
        errors += _mac_errors(port, mac, ("add", "macs", i), networks)
    for i, remote in enumerate(batch.remove.remotes):
        errors += _remote_errors(port, remote, ("remove", "remotes", i), networks)
    for i, key in enumerate(batch.remove.macs):
        errors += _mac_errors(port, key, ("remove", "macs", i), networks)
    _refuse(errors)
    done = await _change(
        call,
        name,
        add_remotes=[RemoteChange(item.vni, item.address) for item in batch.add.remotes],
        remove_remotes=[RemoteChange(item.vni, item.address) for item in batch.remove.remotes],
        add_macs=[MacChange(item.vni, item.vid, item.mac, item.remote) for item in batch.add.macs],
        remove_macs=[MacChange(item.vni, item.vid, item.mac) for item in batch.remove.macs],
    )
    return reply(done)


async def _change(call: Call, name: str, **changes: Any) -> Any:
    try:
        return await call.dataplane.tunnels.change(name, **changes)
    except KeyError:  # it has gone, or changed, meanwhile
        raise ApplyError(f"tunnel {name!r} has changed meanwhile: read it again", f"#/ports/{name}") from None


# ---- what is refused


def _refuse(errors: list[FieldError]) -> None:
    if errors:
        raise InvalidDocument(errors[:1000], max(0, len(errors) - 1000))


Loc = tuple[str | int, ...]


def _remote_errors(
    port: TunnelPort, item: BatchRemote, loc: Loc, networks: dict[int, int | None] | None = None
) -> list[FieldError]:
    known = _networks(port) if networks is None else networks
    return _vni_errors(item.vni, loc, known) + _host_errors(port, item.address, (*loc, "address"))


def _mac_errors(
    port: TunnelPort, item: BatchMac | BatchMacKey, loc: Loc, networks: dict[int, int | None] | None = None
) -> list[FieldError]:
    known = _networks(port) if networks is None else networks
    errors = _vni_errors(item.vni, loc, known)
    mapped = known.get(item.vni)
    if mapped is not None and mapped != item.vid:
        errors.append(FieldError((*loc, "vid"), f"must be {mapped}, the VLAN that {item.vni} is mapped to"))
    if isinstance(item, BatchMac):
        errors += _host_errors(port, item.remote, (*loc, "remote"))
    return errors


def _vni_errors(vni: int, loc: Loc, known: dict[int, int | None]) -> list[FieldError]:
    return [] if vni in known else [FieldError((*loc, "vni"), f"the tunnel has no network {vni}")]


def _host_errors(port: TunnelPort, address: str, loc: Loc) -> list[FieldError]:
    if address == port.local:
        return [FieldError(loc, f"{address} is the tunnel's own `local`")]
    if ipaddress.ip_address(address).version != ipaddress.ip_address(port.local).version:
        return [FieldError(loc, f"{address} and `local`, {port.local}, are not of one family")]
    return []
