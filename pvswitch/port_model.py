# SPDX-License-Identifier: Apache-2.0
"""What a port is: the configuration of each type of port, one frozen model each.

`pvswitch.model` has the rest of the document, and hands these on: who wants a port imports it from there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pvswitch.values import (
    MAX_VID,
    AbsolutePath,
    Bool,
    Checksums,
    Float,
    GreKeys,
    HostAddress,
    Int,
    InterfaceAddress,
    InterfaceName,
    IpNetwork,
    Name,
    Netns,
    Text,
    Tos,
    UnicastMac,
    Vlans,
    Vnis,
    choice,
)

MAX_WORKERS = 16
MAX_PAIRS = 16  # queue pairs of a port
MAX_ADDRESSES = 64  # of a tap
MAX_TAP_MTU = 65521  # the kernel's: 65535 with the Ethernet header
MAX_SPEED = 1_000_000
MAX_REMOTES = 1024  # of a tunnel, in its configuration
MAX_SENDERS = 1024  # MAC addresses, and networks, of a port
MAX_KBPS = 1_000_000_000
MIN_BURST, DEFAULT_BURST, MAX_BURST = 65_550, 131_072, 4_000_000_000
Pps = Annotated[Int, Field(ge=1, le=1_000_000_000)]
Worker = Annotated[Int, Field(ge=0, le=MAX_WORKERS - 1)]
TunnelType = Literal["vxlan", "geneve", "gre"]


class ConfigModel(BaseModel):
    """Base of every part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Features(ConfigModel):
    """Virtio features offered to a front end; switch off single ones."""

    mrg_rxbuf: Bool = True
    csum: Bool = Field(True, description="checksums left to the other side; without it no tso and no uso either")
    tso: Bool = Field(True, description="TCP frames of up to 64 KiB, both ways")
    uso: Bool = Field(True, description="the same for UDP")
    event_idx: Bool = True
    indirect: Bool = True
    packed: Bool = Field(True, description="packed rings, for drivers that ask for them")
    in_order: Bool = Field(True, description="rings in order, for drivers that ask for them")


class StormControl(ConfigModel):
    """How many frames a second a port may have flooded, by class; a tenth of a second's at once. Absent: no limit."""

    broadcast_pps: Pps | None = None
    multicast_pps: Pps | None = None
    unknown_pps: Pps | None = Field(None, description="unicast for addresses that the bridge doesn't know")


class PortSecurity(ConfigModel):
    """Who may send from a port; all else is dropped."""

    sticky: Bool = Field(False, description="what was learned stays, and can't be learned on another port")
    max_macs: Int | None = Field(None, ge=1, le=1_000_000, description="addresses that are learned at most")
    allowed_macs: tuple[UnicastMac, ...] = Field((), max_length=MAX_SENDERS, description="any when empty")
    allowed_ips: tuple[IpNetwork, ...] = Field(
        (), max_length=MAX_SENDERS, description="addresses and networks; with them only IPv4, IPv6 and ARP pass"
    )


class RateLimit(ConfigModel):
    """A token bucket."""

    rate_kbps: Int = Field(ge=1, le=MAX_KBPS, description="10^3 bit/s, of whole frames without FCS")
    burst_bytes: Int = Field(
        DEFAULT_BURST, ge=MIN_BURST, le=MAX_BURST, description="at once; default: 10 ms at this rate, 131072 at least"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: object) -> object:
        """Write out the burst that follows from the rate."""
        if not isinstance(data, Mapping) or "burst_bytes" in data:
            return data
        rate = data.get("rate_kbps")
        whole = rate if isinstance(rate, int) and not isinstance(rate, bool) and 0 < rate <= MAX_KBPS else 0
        return {**data, "burst_bytes": max(DEFAULT_BURST, whole * 1000 // 8 // 100)}


class Port(ConfigModel):
    """What all types of ports have. A port itself is one of PORT_TYPES, by its `type`."""

    # A change of these ends the front end's connection, or takes an interface or a file anew; all others are live.
    DISRUPTIVE: ClassVar[frozenset[str]] = frozenset(
        {
            *("type", "socket", "mode", "queues", "features", "rxq_affinity"),
            *("ifname", "netns"),
            *("read", "speed", "loop", "write"),
            *("local", "dst_port"),
        }
    )

    type: str
    bridge: Name | None = Field(None, description="may be left out when there is one bridge")
    enabled: Bool = Field(True, description="false: administratively down")
    labels: dict[Text, Text] = Field(default_factory=dict, description="free text for people and programs")
    mtu: Int | None = Field(
        None, ge=68, le=65535, description="L3 size in bytes, checked at egress and offered to the guest"
    )
    vlan_mode: Literal["access", "trunk", "native-tagged", "native-untagged", "dot1q-tunnel"] | None = Field(
        None, description="absent: access where there is a tag, else trunk"
    )
    tag: Int | None = Field(None, ge=1, le=MAX_VID, description="the port's own VLAN, in other modes than trunk")
    trunks: Vlans = Field((), description="VLANs that a trunk or native port carries (0: untagged); all when empty")
    cvlans: Vlans = Field((), description="customer VLANs that a dot1q-tunnel port takes (0: untagged); all when empty")
    protected: Bool = Field(False, description="isolated from other protected ports of its bridge")
    port_security: PortSecurity | None = None
    storm_control: StormControl | None = None
    policing: RateLimit | None = Field(None, description="what comes from the port: what is more is dropped")
    shaping: RateLimit | None = Field(None, description="what goes to the port: what is more waits, 100 ms at most")
    on_full: Literal["drop", "backpressure"] = Field(
        "drop", description="what happens to known unicast for this port while it takes nothing"
    )
    backpressure_ms: Int = Field(
        10, ge=1, le=1000, description="milliseconds that its senders wait at most, with on_full: backpressure"
    )

    @property
    def effective_vlan_mode(self) -> str:
        """Its mode, also where that follows from its other keys."""
        return self.vlan_mode or ("access" if self.tag is not None else "trunk")


class VhostUserPort(Port):
    """A vhost-user port: one front end at a time, by `socket`."""

    type: Annotated[
        Literal["vhost-user"], choice(("vhost-user", "tap", "af_packet", "pcap", "vxlan", "geneve", "gre"))
    ] = "vhost-user"
    socket: AbsolutePath | None = Field(None, description="default: {socket_dir}/{name}.sock")
    mode: Literal["server", "client"] = Field(
        "server", description="server: the switch listens, the VM connects; client: the other way round"
    )
    queues: Int = Field(8, ge=1, le=MAX_PAIRS, description="queue pairs offered at most")
    rxq_affinity: tuple[Worker, ...] = Field(
        (), max_length=MAX_PAIRS, description="the worker of each queue pair, from the first on; spread when absent"
    )
    features: Features = Field(default_factory=Features)


class TapPort(Port):
    """A tap: an interface of the host's network stack. Made if it is missing, and removed at the end if made."""

    type: Literal["tap"]
    mtu: Int | None = Field(
        None, ge=68, le=MAX_TAP_MTU, description="L3 size in bytes, checked at egress; a tap that is made gets it"
    )
    ifname: InterfaceName
    queues: Int = Field(1, ge=1, le=MAX_PAIRS, description="queues of the interface")
    netns: Netns | None = Field(None, description="a name below /run/netns, or a path; default: the switch's own")
    addresses: tuple[InterfaceAddress, ...] = Field(
        (), max_length=MAX_ADDRESSES, description="of the interface, each with its prefix length"
    )


class AfPacketPort(Port):
    """An interface that is there already, by a packet socket."""

    type: Literal["af_packet"]
    mtu: Int | None = Field(None, ge=68, le=65535, description="L3 size in bytes, checked at egress")
    ifname: InterfaceName
    netns: Netns | None = Field(None, description="a name below /run/netns, or a path; default: the switch's own")
    promisc: Bool = Field(True, description="take frames for all addresses, not only for the interface's own")


class PcapPort(Port):
    """A capture file whose frames come into the switch, and a file that gets those that leave it; one of them, or both.

    A file that is written is made if it is missing, and emptied if it is there.
    """

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["read"]}, {"required": ["write"]}]})

    type: Literal["pcap"]
    mtu: Int | None = Field(None, ge=68, le=65535, description="L3 size in bytes, checked at egress")
    read: AbsolutePath | None = Field(None, description="a pcap or pcapng file of Ethernet frames, to be played")
    speed: Float = Field(
        1.0,
        ge=0,
        le=MAX_SPEED,
        description="divides the times between frames; 0: as fast as the switch takes them",
    )
    loop: Bool = Field(False, description="play it again and again")
    write: AbsolutePath | None = Field(None, description="a pcap file (nanoseconds) of what leaves by the port")


class TunnelPort(Port):
    """What the types of tunnels have: frames go to other hosts, in packets of the host's own stack."""

    type: TunnelType
    mtu: Int | None = Field(None, ge=68, le=65535, description="L3 size in bytes, checked at egress")
    local: HostAddress = Field(description="an address of this host, which packets come to and go from")
    remotes: tuple[HostAddress, ...] = Field(
        (), max_length=MAX_REMOTES, description="the other hosts: each gets a copy of what is flooded"
    )
    external: Bool = Field(False, description="a control plane adds remotes by the API, so that there may be none here")
    ttl: Int = Field(64, ge=1, le=255, description="of the outer header")
    tos: Tos = Field("inherit", description="of the outer header; inherit: the inner one's. ECN follows RFC 6040")
    df: Bool = Field(True, description="routers don't fragment: what doesn't fit the path is known before it is sent")
    learning: Bool = Field(True, description="learn which addresses are behind which host, and take packets of any")
    icmp_too_big: Bool = Field(True, description="tell who sends what doesn't fit by ICMP; false: drop it silently")

    @property
    @abstractmethod
    def networks(self) -> int | dict[str, int | str] | None:
        """Its VNIs: one, or a map from VLANs to them. Of GRE the keys; None: it has none."""

    @property
    def udp_port(self) -> int | None:
        """The UDP port where its packets come in; None for GRE."""
        return None

    @property
    def checksums(self) -> bool:
        """Whether what it sends has UDP checksums."""
        return False

    @property
    def mapped(self) -> bool:
        """Whether it carries VLANs, each in a network of its own."""
        return isinstance(self.networks, dict)


class UdpTunnelPort(TunnelPort):
    """A tunnel in UDP."""

    vni: Vnis = Field(description="the virtual network, or a map of VLANs to them")
    udp_csum: Checksums = Field("auto", description="UDP checksums in what is sent; auto: yes")

    @property
    def networks(self) -> int | dict[str, int | str]:
        """See `TunnelPort`."""
        return self.vni

    @property
    def checksums(self) -> bool:
        """See `TunnelPort`: the kernel cuts only datagrams with checksums, and IPv6 wants them."""
        return self.udp_csum is not False


class VxlanPort(UdpTunnelPort):
    """A VXLAN tunnel (RFC 7348) to other hosts."""

    type: Literal["vxlan"]
    dst_port: Int = Field(4789, ge=1, le=65535, description="UDP port, here and there")

    @property
    def udp_port(self) -> int:
        """See `TunnelPort`."""
        return self.dst_port


class GenevePort(UdpTunnelPort):
    """A Geneve tunnel (RFC 8926) to other hosts."""

    type: Literal["geneve"]
    dst_port: Int = Field(6081, ge=1, le=65535, description="UDP port, here and there")

    @property
    def udp_port(self) -> int:
        """See `TunnelPort`."""
        return self.dst_port


class GrePort(TunnelPort):
    """A GRE tunnel (RFC 2784, RFC 2890) of Ethernet frames to other hosts."""

    type: Literal["gre"]
    key: GreKeys | None = Field(None, description="the key, or a map of VLANs to keys; absent: packets have none")

    @property
    def networks(self) -> int | dict[str, int | str] | None:
        """See `TunnelPort`."""
        return self.key


PORT_TYPES: dict[str, type[Port]] = {
    "vhost-user": VhostUserPort,
    "tap": TapPort,
    "af_packet": AfPacketPort,
    "pcap": PcapPort,
    "vxlan": VxlanPort,
    "geneve": GenevePort,
    "gre": GrePort,
}


def port_type(port: object) -> str:
    """Return which of PORT_TYPES judges `port`; vhost-user where the type is absent or wrong, which it then says."""
    found = port.get("type") if isinstance(port, Mapping) else getattr(port, "type", None)
    return found if isinstance(found, str) and found in PORT_TYPES else "vhost-user"


AnyPort = Annotated[
    Annotated[VhostUserPort, Tag("vhost-user")]
    | Annotated[TapPort, Tag("tap")]
    | Annotated[AfPacketPort, Tag("af_packet")]
    | Annotated[PcapPort, Tag("pcap")]
    | Annotated[VxlanPort, Tag("vxlan")]
    | Annotated[GenevePort, Tag("geneve")]
    | Annotated[GrePort, Tag("gre")],
    Discriminator(port_type),
]
