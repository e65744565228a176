# SPDX-License-Identifier: Apache-2.0
"""The bodies that only the API has: resources with their names, pages, errors."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, RootModel, Tag

from pvswitch.model import (
    AfPacketPort,
    AnyPort,
    Bridge,
    Change,
    ConfigModel,
    Flow,
    GenevePort,
    GrePort,
    Meter,
    Mirror,
    PcapPort,
    Revision,
    TapPort,
    VhostUserPort,
    VxlanPort,
    port_type,
)
from pvswitch.state import FlowStats, MeterStats, PortState
from pvswitch.values import MAX_GRE_KEY, HostAddress, Int, Name, UnicastMac, Vid

T = TypeVar("T")
Network = Annotated[Int, Field(ge=0, le=MAX_GRE_KEY)]


class ProblemError(BaseModel):
    """One wrong value."""

    pointer: str = Field(description='"#/ports/vm1/mtu" in the document, "?limit" in the query')
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemError] = Field(default_factory=list)


class Page(BaseModel, Generic[T]):
    """A part of a collection."""

    items: list[T]
    next: str | None = Field(description="the `cursor` of the next part; null at the end")


class Named(BaseModel):
    """Base of a resource with a name; listed last among the bases, it puts `name` first."""

    name: Name


class BridgeResource(Bridge, Named):
    """A bridge's configuration."""


class MirrorResource(Mirror, Named):
    """A mirror's configuration."""


class MeterResource(Meter, Named):
    """A meter's configuration, and what it has counted."""

    stats: Annotated[MeterStats, Field(json_schema_extra={"readOnly": True})]


class FlowNamed(BaseModel):
    """Base of a flow's resource."""

    name: str = Field(description="its own, or its priority and match")


class FlowResource(Flow, FlowNamed):
    """A flow, and what it has counted."""

    stats: Annotated[FlowStats | None, Field(json_schema_extra={"readOnly": True})] = None


class FlowText(ConfigModel):
    """A flow as OVS text."""

    flow: str = Field(description="as for ovs-ofctl add-flow: priority=100,ip,in_port=vm1,actions=drop")


class FlowBody(RootModel[Flow | FlowText]):
    """A flow, as keys or as OVS text."""


class NewFlow(Flow):
    """A flow of a batch; without a name, its priority and match are its name."""

    name: str | None = None


class FlowBatch(ConfigModel):
    """A change of many flows, made as a whole or not at all. First some are removed, then others added or replaced."""

    add: dict[str, Flow | FlowText | str] | list[NewFlow | FlowText | str] | str = Field(
        default_factory=dict, description="by name, as a list, or OVS text with one in each line"
    )
    delete: list[str] = Field(default_factory=list, description="names, or priorities and matches")


class FlowChanges(BaseModel):
    """What a batch has done."""

    added: int
    changed: int
    removed: int


_State = Annotated[PortState, Field(json_schema_extra={"readOnly": True})]


class VhostUserPortResource(VhostUserPort, Named):
    """A vhost-user port's configuration, and what it is doing."""

    state: _State


class TapPortResource(TapPort, Named):
    """A tap's configuration, and what it is doing."""

    state: _State


class AfPacketPortResource(AfPacketPort, Named):
    """The configuration of a port of type af_packet, and what it is doing."""

    state: _State


class PcapPortResource(PcapPort, Named):
    """The configuration of a port of type pcap, and what it is doing."""

    state: _State


class VxlanPortResource(VxlanPort, Named):
    """The configuration of a VXLAN tunnel, and what it is doing."""

    state: _State


class GenevePortResource(GenevePort, Named):
    """The configuration of a Geneve tunnel, and what it is doing."""

    state: _State


class GrePortResource(GrePort, Named):
    """The configuration of a GRE tunnel, and what it is doing."""

    state: _State


TunnelPortResource = VxlanPortResource | GenevePortResource | GrePortResource
PORT_RESOURCES: dict[
    str,
    type[VhostUserPortResource | TapPortResource | AfPacketPortResource | PcapPortResource | TunnelPortResource],
] = {
    "vhost-user": VhostUserPortResource,
    "tap": TapPortResource,
    "af_packet": AfPacketPortResource,
    "pcap": PcapPortResource,
    "vxlan": VxlanPortResource,
    "geneve": GenevePortResource,
    "gre": GrePortResource,
}
AnyPortResource = Annotated[
    Annotated[VhostUserPortResource, Tag("vhost-user")]
    | Annotated[TapPortResource, Tag("tap")]
    | Annotated[AfPacketPortResource, Tag("af_packet")]
    | Annotated[PcapPortResource, Tag("pcap")]
    | Annotated[VxlanPortResource, Tag("vxlan")]
    | Annotated[GenevePortResource, Tag("geneve")]
    | Annotated[GrePortResource, Tag("gre")],
    Discriminator(port_type),
]


class PortResource(RootModel[AnyPortResource]):
    """A port's configuration, by its type, and what it is doing."""


class PortBody(RootModel[AnyPort]):
    """A port's configuration, by its type."""


class StaticEntryBody(BaseModel):
    """A static FDB entry, as the body of a PUT on its address."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Name


class TunnelMacBody(ConfigModel):
    """Where an address is, as the body of a PUT."""

    remote: HostAddress


class BatchRemote(ConfigModel):
    """A remote of one network of a tunnel."""

    vni: Network
    address: HostAddress


class BatchMac(ConfigModel):
    """An address behind a remote, in one network of a tunnel; `vid` is the VLAN that the network is mapped to."""

    vni: Network
    vid: Vid = 0
    mac: UnicastMac
    remote: HostAddress


class BatchMacKey(ConfigModel):
    """An address that is to be removed."""

    vni: Network
    vid: Vid = 0
    mac: UnicastMac


class BatchAdd(ConfigModel):
    """What is added; what is there already may be named."""

    remotes: tuple[BatchRemote, ...] = ()
    macs: tuple[BatchMac, ...] = ()


class BatchRemove(ConfigModel):
    """What is removed, before anything is added; what isn't there may be named."""

    remotes: tuple[BatchRemote, ...] = ()
    macs: tuple[BatchMacKey, ...] = ()


class TunnelBatch(ConfigModel):
    """A change of what a tunnel was told: made as a whole or not at all, of 10,000 items at most."""

    add: BatchAdd = Field(default_factory=BatchAdd)
    remove: BatchRemove = Field(default_factory=BatchRemove)


class PlanResult(BaseModel):
    """What a configuration would change, in order."""

    changes: list[Change]
    disruptive: bool


class MergePatch(RootModel[dict[str, JsonValue]]):
    """Keys to change (RFC 7396): what is not named stays, null goes back to the default, or removes."""


class RevisionResource(Revision):
    """A revision with its whole configuration, as it was then."""

    config: dict[str, JsonValue]


class Attachment(BaseModel):
    """How to start a VM on a port."""

    name: str
    format: Literal["qemu", "libvirt"]
    args: list[str] = Field(description="QEMU's arguments, one by one; empty for libvirt")
    text: str = Field(description="the lines to paste")


class Totals(RootModel[dict[str, int]]):
    """Counters of the whole switch."""


class Status(BaseModel):
    """A probe's answer."""

    status: Literal["ok", "ready"]


class Info(BaseModel):
    """Which program answers."""

    name: str = "pvswitch"
    version: str
    pid: int
    started: str = Field(description="RFC 3339")
    config_file: str | None = None
