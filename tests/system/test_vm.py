# SPDX-License-Identifier: Apache-2.0
"""The QEMU guest itself: its command channel, its end, and what is said when something is missing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pvswitch.vm import Image, Machine, MachineError, Nic, build_image, find_kernel, find_qemu

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

NIC = ("-netdev", "socket,id=n{0},udp=127.0.0.1:1,localaddr=127.0.0.1:0", "-device", "virtio-net-pci,netdev=n{0}")
DEVICES = [word.format(number) for number in range(2) for word in NIC]
NICS = [Nic("eth0", "10.1.2.3/24", 1400), Nic("eth1", "10.1.3.3/24", address6="fd00::3/64")]
LAUNCHER = ("env", "LAUNCHED=yes")
ORPHAN = """
import asyncio, sys
from pathlib import Path
from pvswitch.vm import Image, Machine

async def main():
    machine = Machine("orphan", Image(Path(sys.argv[1]), Path(sys.argv[2])), [], qemu=sys.argv[3])
    await machine.boot(60)
    print(machine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def command_line(pid: int) -> str:
    """A process's command line; empty when it is gone or a zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def environment(pid: int) -> list[str]:
    """A process's environment."""
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(image: Image, qemu: str) -> AsyncIterator[Machine]:
    async with Machine("vm", image, DEVICES, nics=NICS, qemu=qemu, launcher=LAUNCHER) as machine:
        await machine.boot()
        yield machine


async def test_output_and_status_come_back(machine: Machine) -> None:
    assert await machine.run("echo one; echo two >&2; exit 3") == (3, "one\ntwo\n")
    assert await machine.run("printf 'a\\r\\nb\\003\\004c'") == (0, "a\r\nb\003\004c")
    assert (await machine.run("seq 1 5000"))[1].splitlines()[-1] == "5000"


async def test_commands_at_a_time_take_turns(machine: Machine) -> None:
    answers = await asyncio.gather(*(machine.run(f"echo {number}") for number in range(5)))
    assert [output.strip() for _, output in answers] == ["0", "1", "2", "3", "4"]


async def test_commands_stay_whole_while_orphans_end(machine: Machine) -> None:
    """Each command leaves an orphan that ends a second later, in the middle of another one's line."""
    for number in range(100):
        words = f"{number} " * 100
        assert await machine.run(f"(sleep 1) & echo '{words}'") == (0, f"{words}\n")


async def test_a_command_that_hangs_is_ended(machine: Machine) -> None:
    status, _ = await machine.run("sleep 60", seconds=1)
    assert status == 143
    assert await machine.run("echo alive") == (0, "alive\n")


async def test_a_cancelled_call_does_not_confuse_the_next(machine: Machine) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await machine.run("sleep 1; echo late")
    assert await machine.run("echo next") == (0, "next\n")


async def test_interface_is_set_up_from_the_command_line(machine: Machine) -> None:
    assert (await machine.check("cat /sys/class/net/eth0/mtu")).strip() == "1400"
    assert "10.1.2.3" in await machine.check("ifconfig eth0")


async def test_only_an_interface_with_such_an_address_speaks_ipv6(machine: Machine) -> None:
    assert "inet6" not in await machine.check("ip address show eth0")
    assert "fd00::3/64" in await machine.check("ip address show eth1")


async def test_launcher_becomes_qemu(machine: Machine) -> None:
    assert "qemu" in command_line(machine.pid)
    assert "LAUNCHED=yes" in environment(machine.pid)


async def test_check_names_the_command_that_failed(machine: Machine) -> None:
    with pytest.raises(MachineError, match="`false` ended with status 1"):
        await machine.check("false")


async def test_a_machine_that_died_says_so(image: Image, qemu: str) -> None:
    async with Machine("mortal", image, [], qemu=qemu) as mortal:
        await mortal.boot()
        with pytest.raises(MachineError, match="QEMU is gone"):
            await mortal.run("poweroff -f")


async def test_a_refused_device_shows_in_the_error(image: Image, qemu: str) -> None:
    async with Machine("refused", image, ["-device", "no-such-device"], qemu=qemu) as refused:
        with pytest.raises(MachineError, match="no-such-device"):
            await refused.boot()


async def test_programs_of_the_host_run_in_the_guest(tmp_path: Path, qemu: str) -> None:
    image = build_image(tmp_path, modules=(), extra_binaries=("env",))
    async with Machine("tools", image, [], qemu=qemu) as tools:
        await tools.boot()
        assert "GNU coreutils" in await tools.check("/bin/env --version")


async def test_a_guest_dies_with_its_parent(image: Image, qemu: str) -> None:
    arguments = [sys.executable, "-c", ORPHAN, str(image.kernel), str(image.initramfs), qemu]
    parent = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert "qemu" in command_line(pid)
    parent.kill()
    await parent.communicate()
    async with asyncio.timeout(10):
        while command_line(pid):  # noqa: ASYNC110 (nobody tells of a stranger's end)
            await asyncio.sleep(0.05)


async def test_missing_qemu_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVSWITCH_QEMU", "no-such-qemu")
    with pytest.raises(MachineError, match="qemu-system-x86"):
        find_qemu()


async def test_missing_kernel_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PVSWITCH_CACHE", str(tmp_path))
    monkeypatch.setattr("pvswitch.vm.SYSTEM_ROOT", tmp_path)
    with pytest.raises(MachineError, match="linux-image-cloud-amd64"):
        find_kernel()


async def test_kernel_of_a_wanted_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PVSWITCH_CACHE", str(tmp_path))
    monkeypatch.setattr("pvswitch.vm.SYSTEM_ROOT", tmp_path / "none")
    for folder, release in (("kernel", "6.1.0-9-cloud-amd64"), ("kernel-backports", "6.12.3+deb12-cloud-amd64")):
        (tmp_path / folder / "boot").mkdir(parents=True)
        (tmp_path / folder / "boot" / f"vmlinuz-{release}").touch()
        (tmp_path / folder / "lib/modules" / release).mkdir(parents=True)
    assert find_kernel().modules.name == "6.1.0-9-cloud-amd64"
    assert find_kernel(minimum=(6, 2)).modules.name == "6.12.3+deb12-cloud-amd64"
    with pytest.raises(MachineError, match=r"6\.13 or later"):
        find_kernel(minimum=(6, 13))
