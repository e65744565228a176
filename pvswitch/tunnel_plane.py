# SPDX-License-Identifier: Apache-2.0
"""What the API asks of the tunnels: `tunnels.Tunnels` in a running switch, a fake one in tests.

Every room above the ports may import this; it knows only the values of `state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pvswitch.state import ExternalRemote, TunnelChanges, TunnelEndpoint, TunnelInfo, TunnelMac


@dataclass(frozen=True, slots=True)
class RemoteChange:
    """A remote of one network."""

    vni: int
    address: str


@dataclass(frozen=True, slots=True)
class MacChange:
    """An address in one network; `remote` is None where it is removed."""

    vni: int
    vid: int
    mac: str
    remote: str | None = None


class TunnelPlane(Protocol):
    """The tunnels, and what a control plane tells them."""

    def endpoints(self) -> list[TunnelEndpoint]:
        """Return where packets come in."""

    async def info(self, name: str) -> TunnelInfo:
        """Return what there is to say of a tunnel; KeyError."""

    def remotes(self, name: str, vni: int) -> list[ExternalRemote]:
        """Return the remotes of a network; KeyError where there is no such tunnel or network."""

    def macs(self, name: str, vni: int) -> list[TunnelMac]:
        """Return the addresses that were told of a network; KeyError where there is no such tunnel or network."""

    async def change(
        self,
        name: str,
        *,
        add_remotes: Sequence[RemoteChange] = (),
        remove_remotes: Sequence[RemoteChange] = (),
        add_macs: Sequence[MacChange] = (),
        remove_macs: Sequence[MacChange] = (),
    ) -> TunnelChanges:
        """Change what a tunnel was told, all or nothing. KeyError, ApplyError."""
