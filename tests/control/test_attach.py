# SPDX-License-Identifier: Apache-2.0
"""The lines that start a VM."""

from __future__ import annotations

import shlex
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvswitch.attach import Guest, NoVmPort, libvirt_xml, parse_version, port_mac, qemu_lines, qemu_text
from pvswitch.validation import parse

CONFIG = parse(
    {
        "runtime_dir": "/r",
        "ports": {"vm1": {}, "vm2": {"mtu": 9000, "socket": "/a b/x,y&'\".sock"}, "vm3": {"mode": "client"}},
    }
)


def test_the_whole_of_it() -> None:
    assert qemu_text(qemu_lines(CONFIG, "vm1", Guest())).splitlines() == [
        "-m 256M \\",
        "-object memory-backend-memfd,id=mem,size=256M,share=on \\",
        "-numa node,memdev=mem \\",
        "-chardev socket,id=char-vm1,path=/r/ports/vm1.sock,reconnect=1 \\",
        "-netdev vhost-user,id=net-vm1,chardev=char-vm1 \\",
        f"-device virtio-net-pci,netdev=net-vm1,mac={port_mac('vm1')}",
    ]


@pytest.mark.parametrize(
    ("version", "accel", "reconnect", "vectors"),
    [
        (None, "kvm", "reconnect=1", False),
        (None, "tcg", "reconnect=1", True),
        ("7.2", "kvm", "reconnect=1", False),
        ("7.2.9", "tcg", "reconnect=1", True),
        ("9.1", "kvm", "reconnect=1", False),
        ("9.2", "tcg", "reconnect-ms=1000", True),
        ("10.0", "tcg", "reconnect-ms=1000", False),
        ("10.2", "kvm", "reconnect-ms=1000", False),
    ],
)
def test_what_depends_on_the_version(version: str | None, accel: str, reconnect: str, vectors: bool) -> None:
    guest = Guest(version=None if version is None else parse_version(version), accel=accel)  # type: ignore[arg-type]
    text = qemu_text(qemu_lines(CONFIG, "vm1", guest))
    assert f",{reconnect} " in text
    assert text.endswith(",vectors=0") is vectors


def test_a_switch_that_connects_needs_a_vm_that_listens() -> None:
    chardev = "-chardev socket,id=char-vm3,path=/r/ports/vm3.sock,server=on,wait=off \\"
    for version in ((7, 2), (9, 2)):
        assert chardev in qemu_text(qemu_lines(CONFIG, "vm3", Guest(version))).splitlines()
    root = ElementTree.fromstring(f"<domain>{libvirt_xml(CONFIG, 'vm3')}</domain>")
    source = root.find("interface/source")
    assert source is not None
    assert source.attrib == {"type": "unix", "path": "/r/ports/vm3.sock", "mode": "server"}
    assert len(source) == 0  # libvirt refuses `reconnect` there


@pytest.mark.parametrize(
    ("version", "accel", "device"),
    [
        (None, "kvm", ",mq=on,vectors=10"),
        ("7.2", "tcg", ",mq=on,vectors=0"),
        ("10.0", "tcg", ",mq=on,vectors=10"),
    ],
)
def test_several_queue_pairs(version: str | None, accel: str, device: str) -> None:
    guest = Guest(None if version is None else parse_version(version), accel, queues=4)  # type: ignore[arg-type]
    text = qemu_text(qemu_lines(CONFIG, "vm1", guest))
    assert "-netdev vhost-user,id=net-vm1,chardev=char-vm1,queues=4 " in text
    assert text.endswith(device)
    root = ElementTree.fromstring(f"<domain>{libvirt_xml(CONFIG, 'vm1', 4)}</domain>")
    assert root.find("interface/driver[@queues='4']") is not None
    assert ElementTree.fromstring(f"<domain>{libvirt_xml(CONFIG, 'vm1')}</domain>").find("interface/driver") is None


@pytest.mark.parametrize("text", ["", "9", "9.x", "9.2-rc1", "9.2.1.1", "-9.2", "99999.1"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_version(text)


def test_awkward_paths_survive_the_shell_and_qemu_and_xml() -> None:
    words = shlex.split(qemu_text(qemu_lines(CONFIG, "vm2", Guest())).replace("\\\n", " "))
    assert "socket,id=char-vm2,path=/a b/x,,y&'\".sock,reconnect=1" in words
    root = ElementTree.fromstring(f"<domain>{libvirt_xml(CONFIG, 'vm2')}</domain>")
    source = root.find("interface/source")
    assert source is not None
    assert (source.get("path"), source.get("mode")) == ("/a b/x,y&'\".sock", "client")
    assert root.find("memoryBacking/access[@mode='shared']") is not None
    assert root.find("interface/mtu[@size='9000']") is not None


@given(st.text(min_size=1, max_size=63))
def test_macs_are_local_unicast_and_stable(name: str) -> None:
    first = int(port_mac(name)[:2], 16)
    assert first & 0b11 == 0b10
    assert port_mac(name) == port_mac(name)


def test_macs_differ() -> None:
    assert len({port_mac(f"vm{i}") for i in range(1024)}) == 1024


@pytest.mark.parametrize(("kind", "key"), [("tap", "ifname"), ("af_packet", "ifname"), ("pcap", "read")])
def test_a_port_that_is_an_interface_or_a_file_has_no_lines(kind: str, key: str) -> None:
    config = parse({"ports": {"up0": {"type": kind, key: "/e7"[key == "ifname" :]}}})
    with pytest.raises(NoVmPort, match=f"'up0' has type {kind}"):
        qemu_lines(config, "up0", Guest())
    with pytest.raises(NoVmPort, match=f"'up0' has type {kind}"):
        libvirt_xml(config, "up0")
