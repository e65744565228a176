# SPDX-License-Identifier: Apache-2.0
"""What a switch does: the state and the counters that the API shows.

The data plane makes them, the API and the metrics read them; a client gets the same ones back. They are values:
nothing here knows where they come from. Every room may import this module; it imports nothing of pvswitch.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class LinkReason(StrEnum):
    """Why a port's link is down."""

    ADMIN_DOWN = "admin_down"
    WAITING_FOR_FRONTEND = "waiting_for_frontend"
    DRIVER_NOT_STARTED = "driver_not_started"
    MEMORY_NOT_SHARED = "memory_not_shared"
    FEATURES_REFUSED = "features_refused"
    QUEUE_DISABLED = "queue_disabled"
    INTERFACE_MISSING = "interface_missing"
    INTERFACE_DOWN = "interface_down"
    BROKEN = "broken"


LINK_MESSAGES: dict[LinkReason, str] = {
    LinkReason.ADMIN_DOWN: ("port {port} is switched off: bring it up with `pvswitch port set {port} enabled=true`"),
    LinkReason.WAITING_FOR_FRONTEND: (
        "no VM is connected to {socket}: start one with the lines of `pvswitch port qemu-args {port}`"
    ),
    LinkReason.DRIVER_NOT_STARTED: (
        "a VM is connected, but its network driver has not started: let the guest boot and load virtio_net"
    ),
    LinkReason.MEMORY_NOT_SHARED: (
        "the VM's memory is not shared with the switch: start QEMU with `share=on` on its memory backend and"
        " `-numa node,memdev=...` (libvirt: <memoryBacking> with <access mode='shared'/>)"
    ),
    LinkReason.FEATURES_REFUSED: (
        "the VM asks for virtio features that port {port} does not offer: leave them out of its `-device`, or"
        " allow them under `features` of the port"
    ),
    LinkReason.QUEUE_DISABLED: ("the guest keeps its queue disabled: bring its interface up, or reload its driver"),
    LinkReason.INTERFACE_MISSING: (
        "interface {interface} is not there: make it, or correct `ifname` and `netns` of port {port}; the switch takes"
        " it as soon as it appears"
    ),
    LinkReason.INTERFACE_DOWN: (
        "interface {interface} is down or has no carrier: bring it and its other end up (`ip link set NAME up`; in a"
        " namespace `ip -n NAMESPACE link set NAME up`)"
    ),
    LinkReason.BROKEN: "port {port} was stopped because its guest broke the ring's rules: restart the VM",
}


WAITING_AS_CLIENT = (
    "no VM listens on {socket}, where the switch connects again and again: start QEMU with the lines of"
    " `pvswitch port qemu-args {port}` (server=on,wait=off)"
)


def link_message(
    reason: LinkReason,
    port: str,
    socket: Path | str = "",
    detail: str = "",
    *,
    mode: str = "server",
    interface: str = "",
) -> str:
    """Return the one sentence for `state.message`, with the remedy; `detail` is what the caller saw."""
    waits_as_client = reason is LinkReason.WAITING_FOR_FRONTEND and mode == "client"
    template = WAITING_AS_CLIENT if waits_as_client else LINK_MESSAGES[reason]
    message = template.format(port=port, socket=socket, interface=interface)
    return f"{message} ({detail})" if detail else message


class Frontend(BaseModel):
    """The process at the other end of a port's socket (SO_PEERCRED of unix(7))."""

    pid: int
    uid: int


class Queues(BaseModel):
    """Queue pairs; queues of an interface."""

    offered: int = 1
    enabled: int = Field(0, description="both rings started and enabled; of an interface: in use")


class Memory(BaseModel):
    """Guest memory that is mapped."""

    regions: int = 0
    bytes: int = 0


class PortState(BaseModel):
    """What a port is doing; read-only."""

    link: Literal["up", "down"]
    reason: LinkReason | None = Field(None, description="why the link is down")
    message: str | None = Field(None, description="one sentence with the remedy")
    frontend: Frontend | None = None
    features: list[str] = Field(default_factory=list, description="virtio features the driver accepted")
    queues: Queues = Field(default_factory=Queues)
    memory: Memory = Field(default_factory=Memory)
    mtu: int | None = None
    ifindex: int | None = None


class QueueStats(BaseModel):
    """Counters of one ring, the switch's view: "rx" is taken from the guest, "tx" is what it receives."""

    queue: int = Field(description="queue pair")
    direction: Literal["rx", "tx"]
    packets: int = 0
    bytes: int = 0
    notifications: int | None = Field(None, description="absent where there is nobody to notify: uplinks")
    notifications_suppressed: int | None = None
    cycles: int | None = Field(None, description="TSC cycles spent on taking frames from it; absent for tx")
    worker: int | None = Field(None, description="who polls it; absent while the ring isn't started")


class PortStats(BaseModel):
    """Counters of one port, the switch's view: a port's tx is what its guest receives. They only grow."""

    rx_packets: int = 0
    rx_bytes: int = 0
    rx_dropped: int = Field(0, description="the sum of rx_drops")
    rx_errors: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    tx_dropped: int = Field(0, description="the sum of tx_drops")
    tx_errors: int = 0
    rx_broadcast_packets: int = 0
    rx_multicast_packets: int = 0
    rx_1_to_64_packets: int = 0
    rx_65_to_127_packets: int = 0
    rx_128_to_255_packets: int = 0
    rx_256_to_511_packets: int = 0
    rx_512_to_1023_packets: int = 0
    rx_1024_to_1522_packets: int = 0
    rx_1523_to_max_packets: int = 0
    rx_drops: dict[str, int] = Field(default_factory=dict, description="by reason")
    tx_drops: dict[str, int] = Field(default_factory=dict, description="by reason")
    queues: list[QueueStats] = Field(default_factory=list)


class FdbEntry(BaseModel):
    """One address of a bridge's forwarding database."""

    name: str = Field(description='"{vid}/{mac}"')
    mac: str
    vid: int
    port: str
    type: Literal["dynamic", "static", "sticky", "external"] = Field(
        description="sticky: learned, by a port that keeps it; external: told by a control plane, of a tunnel"
    )
    age: float | None = Field(None, description="seconds since its last frame; absent for static and external ones")
    remote: str | None = Field(None, description="of a tunnel: the host that it is behind")


class VlanMember(BaseModel):
    """A port's part in a VLAN."""

    port: str
    tagged: bool = Field(description="frames leave it with the VLAN's tag")


class VlanInfo(BaseModel):
    """One VLAN of a bridge. 0 is what is in no VLAN."""

    name: str = Field(description="its VID, as text")
    vid: int
    members: list[VlanMember]
    packets: int = Field(description="frames that came into it since the bridge was made")
    bytes: int


class WorkerPerf(BaseModel):
    """What one poll thread has spent since it was started; intervals are the difference of two looks."""

    name: str = Field(description='"worker0"')
    worker: int
    packets: int = 0
    cycles: int = Field(0, description="TSC cycles spent on rounds that had work")
    idle_cycles: int = Field(0, description="TSC cycles spent on looking in vain; asleep it spends none")
    cycles_per_packet: float | None = Field(None, description="absent before the first packet")
    busy_seconds: float = Field(0.0, description="`cycles` as time")
    busy_share: float = Field(0.0, description="0 to 1, of the time since the start")
    burst_count: int = Field(0, description="turns of a queue that gave frames")
    mean_burst: float | None = Field(None, description="frames in a burst; absent before the first")
    bursts: dict[str, int] = Field(default_factory=dict, description="bursts by size: lower bound -> count")
    queue_full: int = Field(0, description="copies that found their receiver full: dropped, or left to wait")
    notifications: int = Field(0, description="guests called")
    notifications_suppressed: int = Field(0, description="guests that had asked not to be called")
    kicks: int = Field(0, description="of guests")
    polls: int = 0
    sleeps: int = 0
    sleeping: bool = Field(False, description="at this moment")


class QueuePerf(BaseModel):
    """What one queue that frames are taken from has cost since its port was made."""

    name: str = Field(description='"{port}/{queue}"')
    port: str
    queue: int
    worker: int = Field(description="who polls it now")
    packets: int = 0
    cycles: int = Field(0, description="TSC cycles spent on taking frames from it and forwarding them")
    cycles_per_packet: float | None = Field(None, description="absent before the first packet")
    busy_share: float = Field(0.0, description="0 to 1, of a worker's time since the start")
    pinned: bool = Field(False, description="`rxq_affinity` names its worker: it is not moved")


class QueueMove(BaseModel):
    """A queue that goes to another worker."""

    model_config = ConfigDict(populate_by_name=True)

    port: str
    queue: int
    source: int = Field(alias="from", description="worker")
    to: int = Field(description="worker")
    load: float = Field(description="0 to 1, of a worker's time")


class WorkerLoads(BaseModel):
    """How busy the workers are with the queues they poll."""

    workers: list[float] = Field(description="0 to 1 each, in the order of their numbers")
    busiest: float
    variance: float


class Rebalance(BaseModel):
    """What was measured, which queues go to other workers, and what is then expected."""

    moves: list[QueueMove]
    before: WorkerLoads
    after: WorkerLoads
    applied: bool = Field(description="the moves were made; false for a dry run, and where there are none")
    message: str = Field(description="the same in one sentence; why nothing moves, where nothing does")


class TunnelRemote(BaseModel):
    """Another host of a tunnel."""

    address: str
    origin: Literal["static", "external", "learned"] = Field(
        description="the configuration; a control plane by the API; a frame that came from it"
    )
    vni: int | None = Field(None, description="of an external one, which is one of this network only")


class TunnelEndpoint(BaseModel):
    """Where packets of tunnels come in: one for all tunnels of a type, local address and UDP port."""

    name: str = Field(description='"vxlan-192.0.2.1-4789"')
    queues: int = Field(description="sockets, one for each worker; of GRE one")
    running: int
    rx_packets: int = 0
    rx_bytes: int = 0
    drops: dict[str, int] = Field(default_factory=dict, description="packets that came to no tunnel, by reason")


class TunnelInfo(BaseModel):
    """A tunnel: its networks, who is on them, and how large a frame may be."""

    name: str = Field(description="of the port")
    bridge: str
    type: Literal["vxlan", "geneve", "gre"]
    local: str
    dst_port: int | None = Field(None, description="UDP; absent for GRE")
    vni: int | dict[str, int | str] | None = Field(
        None, description="the network, or VLANs and their networks; of GRE the keys, absent where it has none"
    )
    vnis: int = Field(description="how many networks")
    remotes: list[TunnelRemote] = Field(description="the first ones, where there are very many")
    remotes_omitted: int = 0
    macs: int = Field(0, description="addresses that a control plane has told")
    room: int | None = Field(None, description="the largest Ethernet frame that fits the paths; absent: any does")
    mtu: int | None = Field(None, description="the same as the size of an L3 packet without tags")
    endpoint: TunnelEndpoint
    error: str | None = Field(None, description="what went wrong last when it sent")


class TunnelMac(BaseModel):
    """An address behind a remote, as a control plane has told it."""

    name: str = Field(description='"{vid}/{mac}"')
    vid: int
    mac: str
    remote: str


class ExternalRemote(BaseModel):
    """A remote of one network, as a control plane has told it; or one of the configuration."""

    name: str = Field(description="its address")
    address: str
    vni: int
    origin: Literal["static", "external"]


class TunnelChanges(BaseModel):
    """What a change of a tunnel's remotes and addresses has done: what was there, or gone, already isn't counted."""

    added: int
    removed: int


class FlowStats(BaseModel):
    """What a flow has counted since it was added or changed; frames that were dropped are counted as well."""

    packets: int = Field(0, description="frames that matched; one that is to be segmented is one")
    bytes: int = Field(0, description="of these, without FCS")
    duration: float = Field(0.0, description="seconds since it was added")
    idle: float = Field(0.0, description="seconds since the last frame, or since it was added")


class MeterStats(BaseModel):
    """What a meter has counted."""

    packets: int = Field(0, description="frames that came to it")
    bytes: int = 0
    dropped_packets: int = Field(0, description="of these, those that were too many")
    dropped_bytes: int = 0
