# SPDX-License-Identifier: Apache-2.0
"""What a guest's own tcpdump sees on an interface, and what it has to say of it."""

from __future__ import annotations

import re

from pvswitch.vm import Machine

COMPLAINT = re.compile(r"\b(bad|incorrect)\b")
"""In tcpdump's words."""


async def capture(machine: Machine, interface: str, filters: str) -> None:
    """Begin to record what passes the filter on an interface of a guest, frame by frame as they are on the wire."""
    await machine.check(f"ethtool -K {interface} gro off")
    command = f"tcpdump -Z root -B 32768 -ni {interface} -w /tmp/seen '{filters}'"
    await machine.check(f"{command} > /tmp/tcpdump 2>&1 &")
    await machine.check("until grep -q 'listening on' /tmp/tcpdump; do sleep 0.1; done")


async def end_capture(machine: Machine) -> None:
    """Stop recording; everything is in the file."""
    await machine.check("killall -INT tcpdump; while pidof tcpdump; do sleep 0.1; done")


async def recorded(machine: Machine, filters: str) -> list[str]:
    """The recorded frames that pass the filter, as `tcpdump -evv` explains them, one line each."""
    text = await machine.check(f"tcpdump -Z root -nevv -r /tmp/seen '{filters}' 2> /dev/null", seconds=100)
    # A frame begins at the margin, what belongs to it is indented.
    return re.split(r"\n(?=\S)", text.strip()) if text.strip() else []
