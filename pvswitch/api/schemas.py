# SPDX-License-Identifier: Apache-2.0
"""The bodies that only the API has: resources with their names, pages, errors."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel

from pvswitch.model import Bridge, Change, Port, PortState
from pvswitch.values import Name

T = TypeVar("T")


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


class PortResource(Port, Named):
    """A port's configuration, and what it is doing."""

    state: PortState = Field(json_schema_extra={"readOnly": True})


class StaticEntryBody(BaseModel):
    """A static FDB entry, as the body of a PUT on its address."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: Name


class PlanResult(BaseModel):
    """What a configuration would change, in order."""

    changes: list[Change]
    disruptive: bool


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
