# SPDX-License-Identifier: Apache-2.0
"""What passes an interface of a namespace, recorded by tcpdump, and what tshark has to say of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from pvswitch.namespace import Namespace
from tests.system.raw import RawSocket

GOOD = "1"
"""tshark's word for a checksum that is right."""
ABSENT = {"IPv4": "3", "IPv6": "4"}
"""And for UDP's, when it is zero: to IPv6 it isn't legal, outside of tunnels (RFC 6935)."""
SUMS = ("ip", "tcp", "udp")


@contextlib.asynccontextmanager
async def record(namespace: Namespace, device: str, file: Path, filters: str = "") -> AsyncIterator[None]:
    """Record all frames on an interface of a namespace during the body, or those that pass the filter."""
    # When the last frame of all is in the file, so is every one before it.
    sentinel = os.urandom(60)
    if filters:
        filters = f"({filters}) or ether[0:4] == 0x{sentinel[:4].hex()}"
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", *namespace.launcher),
        *("tcpdump", "-Z", "root", "-B", "32768", "-U", "-ni", device, "-w", str(file), filters),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"listening on" not in await process.stderr.readline():
                pass
        yield
        async with RawSocket(namespace.path, device) as sock:
            await sock.send(sentinel)
        await asyncio.to_thread(wait_for_bytes, file, sentinel)
        process.terminate()
        async with asyncio.timeout(20):
            _, told = await process.communicate()
        assert re.search(rb"\b0 packets dropped by kernel", told), told
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def wait_for_bytes(file: Path, wanted: bytes) -> None:
    """Wait until they are in the file."""
    deadline = time.monotonic() + 20
    while wanted not in file.read_bytes():
        assert time.monotonic() < deadline, "tcpdump did not record the last frame"
        time.sleep(0.05)


_SAME_NUMBER = "tcp.checksum.ffff"


async def explained(
    file: Path, fields: Mapping[str, str], *, inner: bool = False, options: tuple[str, ...] = ()
) -> list[dict[str, str]]:
    """What tshark says of each recorded frame, checksums looked at: its fields, by names of one's own.

    With `inner` a field that occurs several times, as it does in a tunnel's packets, has all its values with commas
    between them; else the first one. A TCP checksum of 0xffff in the place of 0x0000, which Linux writes
    (skb_checksum_help), is good: they are the same number (RFC 1624), but tshark calls it bad.
    """
    wanted = [word for name in (*fields.values(), _SAME_NUMBER) for word in ("-e", name)]
    looked_at = [word for name in SUMS for word in ("-o", f"{name}.check_checksum:TRUE")]
    process = await asyncio.create_subprocess_exec(
        *("tshark", "-n", "-r", str(file), *looked_at, *options),
        *("-T", "fields", "-E", f"occurrence={'a' if inner else 'f'}", *wanted),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 0
    rows = [line.split("\t") for line in output.decode().splitlines()]
    found = [(dict(zip(fields, values, strict=True)), same_number) for *values, same_number in rows]
    tcp = [name for name, field in fields.items() if field == "tcp.checksum.status"]
    return [packet | dict.fromkeys(tcp, "1") if same_number else packet for packet, same_number in found]
