# SPDX-License-Identifier: Apache-2.0
"""OVS-DPDK as the switch of a host with a VXLAN, as its documentation of userspace tunnels says.

Bridge br0 has the guests' ports and a tunnel to each remote. Bridge br-phy has the host's address, which it takes over
from the veth, and as its network card the veth itself: by DPDK's af_packet device, which the poll thread serves, unlike
OVS's own devices of that kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pvswitch.bench.errors import MissingPeer
from pvswitch.bench.ovs import Ovs
from pvswitch.bench.underlay import DEVICE, PREFIX, VNI, address
from pvswitch.namespace import Namespace


class OvsHost:
    """OVS-DPDK on host `number`, 1 or 2. Use it as `async with`; raises MissingPeer where it isn't installed."""

    def __init__(
        self, host: Namespace, number: int, remotes: Sequence[str], ports: Sequence[str], *, pmd_cpu: int
    ) -> None:
        """Nothing is started yet."""
        self._host = host
        self._number = number
        self._remotes = remotes
        self.switch = Ovs(ports, pmd_cpu=pmd_cpu, launcher=host.launcher, memory=512)

    async def __aenter__(self) -> Self:
        """Start it, and build the tunnel."""
        await self.switch.__aenter__()
        try:
            await self._build()
        except BaseException:
            await self.switch.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it."""
        await self.switch.close()

    @property
    def pid(self) -> int:
        """The process that forwards."""
        return self.switch.pid

    @property
    def sockets(self) -> list[Path]:
        """Where it listens for its guests."""
        return [*self.switch.sockets.values()]

    async def set_neighbour(self, one: str, mac: str) -> None:
        """Tell the hardware address of a host on the wire, which isn't asked for then."""
        await self.switch.appctl("tnl/neigh/set", "br-phy", one, mac)

    async def _build(self) -> None:
        words = ["add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev"]
        words += ["--", "add-port", "br-phy", "phy", "--", "set", "Interface", "phy", "type=dpdk"]
        words += [f"options:dpdk-devargs=net_af_packet0,iface={DEVICE}"]
        for place, remote in enumerate(self._remotes):
            words += ["--", "add-port", "br0", f"vx{place}", "--", "set", "Interface", f"vx{place}", "type=vxlan"]
            words += [f"options:remote_ip={remote}", f"options:local_ip={address(self._number)}", f"options:key={VNI}"]
        await self.switch.vsctl(*words)
        error = (await self.switch.vsctl("get", "Interface", "phy", "error")).strip()
        if error != "[]":
            raise MissingPeer(f"OVS-DPDK can't use a veth ({error}): apt-get install librte-net-af-packet23")
        await self._host.ip(f"address flush dev {DEVICE}")
        await self._host.ip(f"address add {address(self._number)}/{PREFIX} dev br-phy")
        await self._host.ip("link set br-phy up")
