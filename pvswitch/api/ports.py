# SPDX-License-Identifier: Apache-2.0
"""/ports: configuration, state, counters, and how to start a VM on one."""

from __future__ import annotations

from aiohttp import web

from pvswitch import attach as lines
from pvswitch.api.call import Call, edited, no_content, patch_resource, put_resource, reply
from pvswitch.api.flows import refuse_named
from pvswitch.api.problem import ApiProblem, not_found
from pvswitch.api.request import page, read_if_match
from pvswitch.api.schemas import PORT_RESOURCES, Attachment, PortResource, ProblemError
from pvswitch.model import SwitchConfig


def _port(call: Call, name: str) -> PortResource:
    _check_port(call, name)
    state = call.dataplane.port_state(name)
    port = call.config.ports[name]
    resource = PORT_RESOURCES[port.type].model_construct(name=name, state=state, **dict(port))
    return PortResource.model_construct(root=resource)


def _check_port(call: Call, name: str) -> None:
    if name not in call.config.ports:
        raise not_found("port", name)


async def list_ports(call: Call) -> web.Response:
    """List the ports with their state."""
    names = page(list(call.config.ports), str, call.query)
    items = [_port(call, name) for name in names.items]
    return reply(names.model_copy(update={"items": items}))


async def get_port(call: Call) -> web.Response:
    """Return a port with its state."""
    return reply(_port(call, call.path("name")))


async def put_port(call: Call) -> web.Response:
    """Make or replace a port."""
    return await put_resource(call, ("ports",), call.path("name"), _port, "state")


async def patch_port(call: Call) -> web.Response:
    """Change some keys of a port."""
    return await patch_resource(call, "ports", call.path("name"), _port, "state")


async def delete_port(call: Call) -> web.Response:
    """Remove a port that no static address, no mirror and no flow needs."""
    name = call.path("name")

    def delete(config: SwitchConfig) -> SwitchConfig:
        if name not in config.ports:
            raise not_found("port", name)
        bridge = config.port_bridge(name)
        if macs := [entry.mac for entry in config.bridges[bridge].fdb if entry.port == name]:
            raise ApiProblem(
                409,
                f"port {name!r} still has static addresses on bridge {bridge!r}: remove {macs[0]} first",
                [ProblemError(pointer=f"#/bridges/{bridge}/fdb", detail=f"{mac} is on this port") for mac in macs],
            )
        if mirrors := [key for key, mirror in config.bridges[bridge].mirrors.items() if mirror.names(name)]:
            raise ApiProblem(
                409,
                f"mirror {mirrors[0]!r} of bridge {bridge!r} names port {name!r}: change or remove it first",
                [ProblemError(pointer=f"#/bridges/{bridge}/mirrors/{key}", detail="names it") for key in mirrors],
            )
        refuse_named(bridge, config.bridges[bridge], "port", name)
        return edited(lambda document: document["ports"].pop(name))(config)

    await call.edit(delete, if_match=read_if_match(call.request))
    return no_content(call)


async def get_port_stats(call: Call) -> web.Response:
    """Return a port's counters."""
    name = call.path("name")
    _check_port(call, name)
    return reply(call.dataplane.port_stats(name))


async def get_attachment(call: Call) -> web.Response:
    """Return the lines that start a VM on a port."""
    name = call.path("name")
    _check_port(call, name)
    try:
        offered = lines.vm_port(call.config, name).queues
    except lines.NoVmPort as error:
        raise ApiProblem(409, str(error), [ProblemError(pointer=f"#/ports/{name}", detail=str(error))]) from None
    queues = call.query.get("queues", 1)
    if queues > offered:
        message = f"port {name!r} offers {offered} queue pairs: ask for fewer, or raise its `queues`"
        raise ApiProblem(422, message, [ProblemError(pointer="?queues", detail=f"must be at most {offered}")])
    if call.query.get("format") == "libvirt":
        text = lines.libvirt_xml(call.config, name, queues) + "\n"
        return reply(Attachment(name=name, format="libvirt", args=[], text=text))
    guest = lines.Guest(
        version=call.query.get("qemu_version"),
        accel=call.query.get("accel", "kvm"),
        memory=call.query.get("memory", lines.DEFAULT_MEMORY),
        queues=queues,
    )
    groups = lines.qemu_lines(call.config, name, guest)
    args = [word for group in groups for word in group]
    return reply(Attachment(name=name, format="qemu", args=args, text=lines.qemu_text(groups) + "\n"))
