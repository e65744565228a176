# SPDX-License-Identifier: Apache-2.0
"""The demo's screen: what the HTTP API says, as a live picture on a terminal, else as a plain line now and then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pvswitch.demo.talk import Talk
from pvswitch.process import SwitchProcess

# Without a terminal a line every so often is enough.
LINE_SECONDS = 4.0


@dataclass(frozen=True)
class Sample:
    """What the API said at one moment."""

    when: float
    ports: list[dict[str, Any]]
    stats: dict[str, dict[str, Any]]
    fdb: list[dict[str, Any]]


async def sample(switch: SwitchProcess) -> Sample:
    """Ask the API for all that the screen shows."""
    ports = (await switch.get("/ports"))["items"]
    stats = {port["name"]: await switch.get(f"/ports/{port['name']}/stats") for port in ports}
    fdb = (await switch.get("/bridges/br0/fdb"))["items"]
    return Sample(time.monotonic(), ports, stats, fdb)


def rates(old: Sample, new: Sample, port: str) -> tuple[float, float]:
    """Return a port's frames per second and Mbit/s, both directions together, between two samples."""
    seconds = max(new.when - old.when, 1e-9)
    before, after = old.stats[port], new.stats[port]
    frames = sum(after[key] - before[key] for key in ("rx_packets", "tx_packets"))
    octets = sum(after[key] - before[key] for key in ("rx_bytes", "tx_bytes"))
    return frames / seconds, octets * 8 / 1e6 / seconds


def dropped(new: Sample, port: str) -> int:
    """Return the frames from and for a port that the switch has dropped."""
    return int(new.stats[port]["rx_dropped"] + new.stats[port]["tx_dropped"])


def port_table(old: Sample, new: Sample) -> Table:
    """Return the table of ports with their links, counters and rates."""
    table = Table(title="Ports (rx: from the guest or host, tx: to it)", title_justify="left")
    for heading in ("port", "link", "rx frames", "tx frames", "dropped", "frames/s", "Mbit/s"):
        table.add_column(heading, justify="left" if heading in ("port", "link") else "right")
    for port in new.ports:
        name, state, stats = port["name"], port["state"], new.stats[port["name"]]
        link = "[green]up" if state["link"] == "up" else f"[red]down[/]: {state['reason']}"
        frames, mbits = rates(old, new, name)
        counters = (stats["rx_packets"], stats["tx_packets"], dropped(new, name))
        table.add_row(name, link, *(f"{count:,}" for count in counters), f"{frames:,.0f}", f"{mbits:,.1f}")
    return table


def fdb_table(new: Sample) -> Table:
    """Return the table of learned addresses."""
    table = Table(title="FDB of br0", title_justify="left")
    for heading in ("address", "port", "type"):
        table.add_column(heading)
    for entry in new.fdb:
        table.add_row(entry["mac"], entry["port"], entry["type"])
    return table


class Screen:
    """Shows samples: a live picture on a terminal, else a plain line now and then."""

    def __init__(self, console: Console, heading: str) -> None:
        """Print nothing yet."""
        self._console = console
        self._heading = Text(heading)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._next_line = 0.0
        self._told = 0  # results

    def __enter__(self) -> Screen:
        """Take the terminal."""
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(self._heading, soft_wrap=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back; the last picture stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, old: Sample, new: Sample, talk: Talk) -> None:
        """Show the newer of two samples, with the rates between them."""
        if self._live is not None:
            words = Text("\n".join([*talk.results, str(talk)]))
            self._live.update(Group(self._heading, port_table(old, new), fdb_table(new), words), refresh=True)
            return
        for result in talk.results[self._told :]:
            self._console.print(result, soft_wrap=True, highlight=False)
        self._told = len(talk.results)
        if new.when >= self._next_line:
            self._next_line = new.when + LINE_SECONDS
            ports = []
            for port in new.ports:
                frames, mbits = rates(old, new, port["name"])
                link, lost = port["state"]["link"], dropped(new, port["name"])
                ports.append(f"{port['name']} {link} {frames:.0f} frames/s {mbits:.1f} Mbit/s, {lost} dropped")
            self._console.print(f"{'; '.join(ports)}; FDB {len(new.fdb)}; {talk}", soft_wrap=True)
