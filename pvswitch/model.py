# SPDX-License-Identifier: Apache-2.0
"""What a switch is: the configuration document, and how it changes. What a switch does is in `state`.

The configuration models are frozen: a `SwitchConfig` that exists is valid, and a change is a new
one. Values that follow from others (paths below runtime_dir, the only bridge, br0) are filled in
before validation, so that a document read back says everything in full. Errors are collected by
`pvswitch.validation.parse`. Every room may import this module; it imports only the foundation.
"""

from __future__ import annotations

import functools
import grp
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pvswitch.bpf import FilterError, NoLibpcap, compile_filter
from pvswitch.capture_model import MAX_SNAPLEN
from pvswitch.checks import cross_errors
from pvswitch.flow_model import MAX_FLOWS, MAX_METERS, Flow, FlowIndex, Flows, Meter
from pvswitch.port_model import (
    MAX_ADDRESSES,
    MAX_BURST,
    MAX_KBPS,
    MAX_PAIRS,
    MAX_REMOTES,
    MAX_SENDERS,
    MAX_SPEED,
    MAX_TAP_MTU,
    MAX_WORKERS,
    PORT_TYPES,
    AfPacketPort,
    AnyPort,
    ConfigModel,
    Features,
    GenevePort,
    GrePort,
    PcapPort,
    Port,
    PortSecurity,
    RateLimit,
    StormControl,
    TapPort,
    TunnelPort,
    TunnelType,
    UdpTunnelPort,
    VhostUserPort,
    VxlanPort,
    port_type,
)
from pvswitch.values import (
    ELSEWHERE,
    MAX_VID,
    AbsolutePath,
    Bool,
    Cpu,
    FileMode,
    Group,
    Int,
    Listen,
    Name,
    Text,
    UnicastMac,
    Vid,
    Vlans,
    is_name,
    refuse,
)

__all__ = [
    "MAX_ADDRESSES",
    "MAX_BRIDGES",
    "MAX_BURST",
    "MAX_FLOWS",
    "MAX_KBPS",
    "MAX_METERS",
    "MAX_MIRRORS",
    "MAX_PAIRS",
    "MAX_PORTS",
    "MAX_REMOTES",
    "MAX_SENDERS",
    "MAX_SPEED",
    "MAX_TAP_MTU",
    "MAX_WORKERS",
    "PORT_TYPES",
    "AfPacketPort",
    "AnyPort",
    "Api",
    "Bridge",
    "Change",
    "ConfigModel",
    "DatapathConfig",
    "Features",
    "Flow",
    "FlowIndex",
    "GenevePort",
    "GrePort",
    "Meter",
    "Mirror",
    "PcapPort",
    "Plan",
    "Port",
    "PortSecurity",
    "RateLimit",
    "Recorder",
    "Revision",
    "StaticEntry",
    "StormControl",
    "SwitchConfig",
    "TapPort",
    "Tls",
    "TunnelPort",
    "TunnelType",
    "UdpTunnelPort",
    "VhostUserPort",
    "VxlanPort",
    "default_api_socket",
    "default_runtime_dir",
    "default_state_dir",
    "port_type",
]

MAX_PORTS = 1024
MAX_BRIDGES = 64
MAX_MIRRORS = 32  # of a bridge


# ---- configuration ----


class StaticEntry(ConfigModel):
    """A static FDB entry: frames for `mac` leave at `port`; never aged, moved or evicted."""

    mac: UnicastMac
    vid: Vid = 0
    port: Name


class Mirror(ConfigModel):
    """Frames that are sent once more, to who watches; of all ports where none is selected."""

    select_src_port: tuple[Name, ...] = Field((), max_length=MAX_PORTS, description="frames that came by these ports")
    select_dst_port: tuple[Name, ...] = Field((), max_length=MAX_PORTS, description="frames that leave by these ports")
    select_vlan: Vlans = Field((), description="only frames of these VLANs (0: untagged); of all when empty")
    output_port: Name | None = Field(None, description="where they go; no other frames pass by this port then")
    output_vlan: Int | None = Field(None, ge=1, le=MAX_VID, description="or the VLAN into which they go")
    snaplen: Int | None = Field(None, ge=14, le=65535, description="bytes that are kept of each; all when absent")
    drops: Bool = Field(False, description="frames that came by a selected port and were dropped, as well")

    def names(self, port: str) -> bool:
        """Return whether it takes frames of a port, or sends to it, by name."""
        return port in (*self.select_src_port, *self.select_dst_port, self.output_port)


class Bridge(ConfigModel):
    """A learning switch: the ports that name it exchange frames."""

    aging_time: Int = Field(300, ge=0, le=1_000_000, description="seconds; 0 = never")
    fdb_size: Int = Field(8192, ge=1, le=1_000_000, description="entries at most")
    forward_bpdu: Bool = Field(True, description="forward 01-80-C2-00-00-0x between ports; PAUSE never")
    flood_unknown: Bool = Field(True, description="flood frames for unknown unicast addresses")
    fdb: tuple[StaticEntry, ...] = Field((), description="static entries")
    mirrors: dict[Name, Mirror] = Field(default_factory=dict, max_length=MAX_MIRRORS)
    meters: dict[Name, Meter] = Field(default_factory=dict, max_length=MAX_METERS)
    flows: Flows = Field(default_factory=dict, max_length=MAX_FLOWS, description="by name, or by priority and match")

    @functools.cached_property
    def flow_index(self) -> FlowIndex:
        """What its flows name, and how many there are in the core."""
        return FlowIndex.of(self.flows)


class Tls(ConfigModel):
    """The certificate of the TCP port."""

    cert: AbsolutePath = Field(description="PEM: the certificate, and those between it and the root")
    key: AbsolutePath = Field(description="PEM: its private key, without a password")


class Api(ConfigModel):
    """Where the HTTP API listens, and who may use it."""

    socket: AbsolutePath = Field(Path("/run/pvswitch/api.sock"), description="default: {runtime_dir}/api.sock")
    listen: Listen | None = Field(None, description="address and TCP port; off when absent")
    tokens_file: AbsolutePath | None = Field(
        None, description="who may use TCP; required beyond loopback, and asked for wherever it is set"
    )
    tls: Tls | None = Field(None, description="TLS on TCP; off when absent")


class DatapathConfig(ConfigModel):
    """The poll threads."""

    workers: Int = Field(1, ge=1, le=MAX_WORKERS, description="poll threads")
    cpus: tuple[Cpu, ...] = Field((), max_length=MAX_WORKERS, description="one per worker; unpinned when empty")
    polling: Literal["busy", "adaptive", "interrupt"] = "adaptive"
    poll_us: Int = Field(50, ge=0, le=1_000_000, description="microseconds of polling before sleep, at most (adaptive)")
    rebalance_seconds: Int = Field(
        0, ge=0, le=3600, description="how often to move queues from busy workers to others; 0 = never by itself"
    )


class Recorder(ConfigModel):
    """The flight recorder, which keeps the last drops always: which other frames it keeps."""

    sample: Int = Field(4096, ge=0, le=1_000_000_000, description="one frame of so many that come in; 0 = none")
    filter: Text = Field("", max_length=1024, description="of those that pass this filter, pcap-filter(7)")

    @field_validator("filter")
    @classmethod
    def _check_filter(cls, expression: str, info: ValidationInfo) -> str:
        """Refuse what is no filter, as far as this machine can tell: the one that runs it may have libpcap."""
        if info.context is ELSEWHERE:
            return expression
        try:
            compile_filter(expression, MAX_SNAPLEN)
        except NoLibpcap:
            pass
        except FilterError as error:
            refuse(str(error))
        return expression


def default_runtime_dir() -> Path:
    """Return /run/pvswitch for root, else $XDG_RUNTIME_DIR/pvswitch (its usual value where it is not set)."""
    if os.geteuid() == 0:
        return Path("/run/pvswitch")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "pvswitch"


def default_state_dir() -> Path:
    """Return /var/lib/pvswitch for root, else $XDG_STATE_HOME/pvswitch (its usual value where it is not set)."""
    home = Path("~").expanduser() if os.environ.get("HOME") else None
    if os.geteuid() == 0 or home is None:
        return Path("/var/lib/pvswitch")
    return Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "pvswitch"


def default_api_socket() -> Path:
    """Return the API's socket of a switch whose configuration doesn't move it."""
    return default_runtime_dir() / "api.sock"


class SwitchConfig(ConfigModel):
    """The whole document: the truth of one switch."""

    # A change of these takes a restart: the running process has built on them.
    RESTART: ClassVar[tuple[str, ...]] = (
        "runtime_dir",
        "state_dir",
        "socket_dir",
        "socket_mode",
        "socket_group",
        "api",
        "datapath",
    )

    runtime_dir: AbsolutePath = Field(Path("/run/pvswitch"), description="as root; else $XDG_RUNTIME_DIR/pvswitch")
    state_dir: AbsolutePath = Field(
        Path("/var/lib/pvswitch"), description="revisions; as root, else $XDG_STATE_HOME/pvswitch"
    )
    socket_dir: AbsolutePath = Field(Path("/run/pvswitch/ports"), description="default: {runtime_dir}/ports")
    socket_mode: FileMode = Field("0660", description="of the ports' sockets, octal")
    socket_group: Group | None = Field(None, description="default: kvm if it exists, else the process's")
    api: Api = Field(default_factory=Api)
    datapath: DatapathConfig = Field(default_factory=DatapathConfig)
    recorder: Recorder = Field(default_factory=Recorder)
    bridges: dict[Name, Bridge] = Field(default_factory=dict, max_length=MAX_BRIDGES)
    ports: dict[Name, AnyPort] = Field(default_factory=dict, max_length=MAX_PORTS)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: object) -> object:
        """Write out the values that follow from others."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        runtime_dir = filled.setdefault("runtime_dir", default_runtime_dir())
        filled.setdefault("state_dir", default_state_dir())
        if isinstance(runtime_dir, str | Path) and str(runtime_dir).startswith("/"):
            filled.setdefault("socket_dir", Path(runtime_dir) / "ports")
            if isinstance(api := filled.get("api", {}), Mapping):
                filled["api"] = {"socket": Path(runtime_dir) / "api.sock", **api}
        if filled.get("bridges", {}) == {}:
            filled["bridges"] = {"br0": {}}
        bridges, ports, socket_dir = filled["bridges"], filled.get("ports"), filled.get("socket_dir")
        if isinstance(ports, Mapping):
            implied: dict[str, object] = {}
            if isinstance(bridges, Mapping) and len(bridges) == 1:
                implied["bridge"] = next(iter(bridges))
            filled["ports"] = {name: _fill_port(name, port, implied, socket_dir) for name, port in ports.items()}
        return filled

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if errors := cross_errors(self):
            raise ValidationError.from_exception_data(
                "document",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("refused", "{message}", {"message": error.message}),
                        loc=error.loc,
                        input=None,
                    )
                    for error in errors
                ],
            )
        return self

    def port_bridge(self, name: str) -> str:
        """Return the bridge that port `name` is on; KeyError when there is no such port."""
        bridge = self.ports[name].bridge
        assert bridge is not None  # filled in, or refused by cross_errors
        return bridge

    def port_socket(self, name: str) -> Path:
        """Return the path of the socket of port `name`; KeyError when there is no such vhost-user port."""
        port = self.ports[name]
        if not isinstance(port, VhostUserPort):
            raise KeyError(name)
        assert port.socket is not None  # filled in
        return port.socket

    def bridge_ports(self, bridge: str) -> list[str]:
        """Return the names of the ports on `bridge`, in the order of the document."""
        return [name for name in self.ports if self.port_bridge(name) == bridge]

    def socket_gid(self) -> int:
        """Return the sockets' group: socket_group, else kvm where this process may give it, else its own."""
        if self.socket_group is not None:
            return grp.getgrnam(self.socket_group).gr_gid
        try:
            kvm = grp.getgrnam("kvm").gr_gid
        except KeyError:
            return os.getegid()
        return kvm if os.geteuid() == 0 or kvm in os.getgroups() else os.getegid()

    def socket_mode_bits(self) -> int:
        """Return socket_mode as a number."""
        return int(self.socket_mode, 8)

    def document(self) -> dict[str, Any]:
        """Return the document as JSON values, complete; what is absent by choice is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def plain(self) -> dict[str, Any]:
        """Return the document without flows: there may be very many, each of which keeps its own text and hash."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"bridges": {"__all__": {"flows"}}})

    def editable(self) -> dict[str, Any]:
        """Return the document for a change: its ports and flows as they are, so that only new ones are judged."""
        hidden: Any = {"ports": True, "bridges": {"__all__": {"flows"}}}
        document = self.model_dump(mode="json", exclude_none=True, exclude=hidden)
        for name, bridge in document["bridges"].items():
            bridge["flows"] = dict(self.bridges[name].flows)
        return {**document, "ports": dict(self.ports)}

    def text(self) -> str:
        """Return the document as JSON, of texts that its flows keep."""
        document = self.plain()
        bridges = [
            f"{json.dumps(name)}: {json.dumps(plain)[:-1]}, {_named('flows', _flow_texts(self.bridges[name].flows))}}}"
            for name, plain in document["bridges"].items()
        ]
        keys = [
            _named("bridges", bridges) if key == "bridges" else f'"{key}": {json.dumps(value)}'
            for key, value in document.items()
        ]
        return f"{{{', '.join(keys)}}}"


def _flow_texts(flows: Mapping[str, Flow]) -> list[str]:
    return [f"{json.dumps(name)}: {flow.text}" for name, flow in flows.items()]


def _named(key: str, members: list[str]) -> str:
    """Return a key with an object of these members, as JSON."""
    return f'"{key}": {{{", ".join(members)}}}'


def _fill_port(name: object, port: object, implied: dict[str, object], socket_dir: object) -> object:
    """Return `port` with its bridge and socket written out where they follow from the rest."""
    by_socket = port_type(port) == "vhost-user"
    if isinstance(port, Port) and port.bridge is not None and not (by_socket and getattr(port, "socket", None) is None):
        return port
    fill = dict(implied)
    if by_socket and isinstance(socket_dir, str | Path) and isinstance(name, str) and is_name(name):
        fill["socket"] = Path(socket_dir) / f"{name}.sock"
    if isinstance(port, Port):
        return port.model_copy(update={key: value for key, value in fill.items() if getattr(port, key) is None})
    if isinstance(port, Mapping):
        return {**fill, **{key: value for key, value in port.items() if key not in fill or value is not None}}
    return port


# ---- changes ----


class Change(BaseModel):
    """One step from a configuration to another."""

    model_config = ConfigDict(frozen=True)

    op: Literal["add", "change", "remove"]
    pointer: str = Field(description='the resource: "#/ports/vm1"')
    disruptive: bool = Field(description="an open connection of a VM ends")
    keys: tuple[str, ...] = Field((), description="what differs, for a change")
    detail: str = Field(description="the change in words")


class Plan(BaseModel):
    """The ordered difference between two configurations, as `controller.plan` finds it."""

    model_config = ConfigDict(frozen=True)

    changes: tuple[Change, ...] = ()

    @property
    def disruptive(self) -> bool:
        """Whether any change ends a connection."""
        return any(change.disruptive for change in self.changes)


class Revision(BaseModel):
    """A configuration that was put in force."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="its number")
    number: int = Field(ge=1, description="only grows; none is used twice")
    time: str = Field(description="RFC 3339")
    etag: str = Field(description="of the configuration")
    actor: str = Field(description="who wanted it")
    summary: list[str] = Field(description="the changes in words; those of many are cut short")
