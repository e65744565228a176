# SPDX-License-Identifier: Apache-2.0
"""The switch as a process, and guests on it. One that doesn't end cleanly fails the tests that used it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pvswitch.bench.far import build_root
from pvswitch.bench.machine import hugepages
from pvswitch.process import SwitchProcess
from pvswitch.vm import (
    Image,
    Machine,
    MissingTool,
    Nic,
    accelerator,
    build_image,
    cache_dir,
    find_busybox,
    find_kernel,
    qemu_version,
)
from tests.conftest import RequirePeer, missing_peer
from tests.system.traffic import Host, build_traffic

Switch = TypeVar("Switch", bound=SwitchProcess)
AT_ONCE = 20  # pings
StartSwitch = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[SwitchProcess]]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@contextlib.asynccontextmanager
async def running_switch(config: Mapping[str, Any]) -> AsyncIterator[SwitchProcess]:
    """A switch for the body; then SIGTERM must end it with status 0, leaving no socket and no traceback."""
    async with orderly(SwitchProcess(config)) as switch:
        yield switch


@contextlib.asynccontextmanager
async def orderly(process: Switch) -> AsyncIterator[Switch]:
    """Run a switch for the body, and let it end as `running_switch` says."""
    async with process as switch:
        yield switch
        assert switch.running, f"the switch died during the test; log:\n{switch.log()}"
        status = await switch.stop()
        log = switch.log()
        assert status == 0, f"status {status} after SIGTERM; log:\n{log}"
        assert not switch.leftovers()
        assert "Traceback" not in log, log
        assert "AddressSanitizer" not in log, log


@pytest.fixture(scope="session")
def start_switch() -> StartSwitch:
    return running_switch


@pytest.fixture(scope="session")
def qemu(require_peer: RequirePeer) -> str:
    """The installed QEMU, with the kernel and busybox that its guests need."""
    program = require_peer("qemu-system-x86_64", package="qemu-system-x86")
    try:
        find_kernel()
        find_busybox()
    except MissingTool as error:
        missing_peer(str(error))
    return program


@pytest.fixture(scope="session")
def qemu10(qemu: str) -> str:
    """A QEMU of version 10 or later, which works with MSI-X."""
    for program in (str(cache_dir() / "bin/qemu-system-x86_64-10"), qemu):
        if shutil.which(program) and qemu_version(program) >= (10, 0):
            return program
    missing_peer("QEMU 10 not found: run scripts/fetch-guest-tools, which takes it from bookworm-backports")
    raise AssertionError


@pytest.fixture(scope="session")
def image(qemu: str, require_peer: RequirePeer, tmp_path_factory: pytest.TempPathFactory) -> Image:
    require_peer("ping", package="iputils-ping")
    return build_image(tmp_path_factory.mktemp("image"), extra_binaries=("ping",))


@pytest.fixture(scope="session")
def tools(require_peer: RequirePeer, tmp_path_factory: pytest.TempPathFactory) -> Sequence[str | Path]:
    """Programs for guests that are examined closely, among them the tests' own traffic.c."""
    packages = {"ping": "iputils-ping", "ethtool": "ethtool", "tcpdump": "tcpdump"}
    found = [require_peer(program, package=package) for program, package in packages.items()]
    compiler = require_peer("gcc", package="gcc")
    return [*found, build_traffic(compiler, tmp_path_factory.mktemp("traffic"))]


@pytest.fixture(scope="session")
def tools_image(qemu: str, tools: Sequence[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Image:
    return build_image(tmp_path_factory.mktemp("tools-image"), extra_binaries=tools)


@pytest.fixture(scope="session")
def uso_image(qemu: str, tools: Sequence[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Image:
    """One with a kernel whose virtio-net knows USO."""
    try:
        kernel = find_kernel(minimum=(6, 2))
    except MissingTool as error:
        missing_peer(str(error))
    return build_image(tmp_path_factory.mktemp("uso-image"), kernel=kernel, extra_binaries=tools)


@pytest.fixture(scope="session")
def host_root(tools: Sequence[str | Path], require_peer: RequirePeer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What hosts without a VM share as their root: the programs of guests, and iperf3."""
    require_peer("ip", package="iproute2")
    if os.geteuid() != 0:
        missing_peer("hosts need network namespaces: run the tests as root")
    return build_root(tmp_path_factory.mktemp("root"), [*tools, require_peer("iperf3", package="iperf3")])


@pytest.fixture(scope="session")
def testpmd_huge(require_peer: RequirePeer) -> Iterator[bool]:
    """Whether testpmd has hugepages (reserved for the session when root; the old number comes back)."""
    require_peer("dpdk-testpmd", package="dpdk-dev")
    with hugepages(300) as huge:
        yield huge


async def machine_on(
    switch: SwitchProcess,
    port: str,
    image: Image,
    program: str,
    *,
    address: str = "",
    address6: str = "",
    mtu: int | None = None,
    pairs: int = 1,
    extra: Sequence[str] = (),
    launcher: Sequence[str] = (),
) -> Machine:
    """A guest on a port, with exactly the lines that `pvswitch port qemu-args` prints; not yet booted.

    With several queue pairs it has as many CPUs.
    """
    devices = [*await switch.qemu_args(port, qemu_version(program), accelerator(), pairs), *extra]
    nics = [Nic("eth0", address, mtu, address6)] if address or address6 else []
    return Machine(port, image, devices, nics=nics, cpus=pairs, qemu=program, launcher=launcher)


async def boot_all(switch: SwitchProcess, *machines: Machine) -> None:
    """Boot guests together and wait until the ports of their names are up."""
    await asyncio.gather(*(machine.boot(120) for machine in machines))
    for machine in machines:
        await switch.wait_link(machine.name)


async def icmp_counters(machine: Host) -> dict[str, int]:
    """What a host's kernel has counted of ICMP (SNMP's names)."""
    lines = (await machine.check("grep ^Icmp: /proc/net/snmp")).splitlines()
    names, values = (line.split()[1:] for line in lines)
    return {name: int(value) for name, value in zip(names, values, strict=True)}


async def echo_replies(machine: Host) -> int:
    """How many of them a host's kernel has counted, of both families."""
    text = await machine.run("cat /proc/net/snmp6")  # not there without IPv6
    found = re.search(r"Icmp6InEchoReplies\s+(\d+)", text[1])
    return (await icmp_counters(machine))["InEchoReps"] + (int(found[1]) if found else 0)


async def ping(source: Host, target: Host, address: str, *, count: int, size: int) -> None:
    """Ping `target`, which has `address`, every 10 ms: each request and each reply must arrive.

    They are sent a few at a time: a guest that the host gives no CPU for a while has room for so many, also when each
    takes several buffers. What the kernels at both ends have counted says, when one is missing, where it was lost.
    """
    before = await icmp_counters(source), await icmp_counters(target)
    answered = await echo_replies(source)
    # Not busybox's: its receive buffer holds less than two large replies, and overflows where the host gives the
    # guest no CPU for a while, long after the switch has delivered.
    times, rest = divmod(count, AT_ONCE)
    batches = [f"for i in $(seq {times}); do /bin/ping -q -i 0.01 -c {AT_ONCE} -s {size} {address}; done"] * (times > 0)
    batches += [f"/bin/ping -q -i 0.01 -c {rest} -s {size} {address}"] * (rest > 0)
    _, output = await source.run("; ".join(batches), seconds=30 + count * 0.06)
    # Late isn't lost: ping waits for the last ones no longer than for two of the round trips that it has seen.
    for _ in range(20):
        if await echo_replies(source) >= answered + count:
            return
        await asyncio.sleep(0.1)
    after = await icmp_counters(source), await icmp_counters(target)
    near, far = ({name: new[name] - old[name] for name in new} for old, new in zip(before, after, strict=True))
    raise AssertionError(f"{output}\nnear end: {near}\nfar end: {far}")


async def transfer(source: Host, target: Host, address: str, *, megabytes: int = 10) -> None:
    """Send noise over TCP from `source`, which has `address` (IPv6 in brackets); both ends must see one SHA-256."""
    await source.check(f"mkdir -p /www; dd if=/dev/urandom of=/www/noise bs=1M count={megabytes} 2>&1")
    await source.check("netstat -ltn | grep -q :80 || httpd -p 80 -h /www")
    wanted = (await source.check("sha256sum < /www/noise")).split()[0]
    await target.check(f"wget -q -O /tmp/noise http://{address}/noise", seconds=100)
    assert (await target.check("sha256sum < /tmp/noise; rm /tmp/noise")).split()[0] == wanted


def from_environment(name: str, default: int) -> int:
    """A number that a long run may raise: the tests' default is made for CI."""
    return int(os.environ.get(name, default))
