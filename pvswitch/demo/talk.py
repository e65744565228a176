# SPDX-License-Identifier: Apache-2.0
"""What the demo's guests saw of each other, and of the host: their traffic writes it, the screen reads it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Talk:
    """Pings, bytes that arrived whole, results in words, and what went wrong."""

    sent: int = 0
    answered: int = 0
    fastest_ms: float = float("inf")
    slowest_ms: float = 0.0
    total_ms: float = 0.0
    verified_bytes: int = 0
    results: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def success(self) -> bool:
        """Whether the guests really talked: pings were answered, data arrived whole, nothing failed.

        A ping may be lost to a guest that falls behind its download: the switch then counts a drop, which is shown.
        """
        return self.answered > 0 and self.verified_bytes > 0 and not self.failures

    def add_pings(self, sent: int, answered: int, fastest_ms: float, mean_ms: float, slowest_ms: float) -> None:
        """Add the result of some pings; the times count only when there was an answer."""
        self.sent += sent
        self.answered += answered
        if answered:
            self.fastest_ms = min(self.fastest_ms, fastest_ms)
            self.slowest_ms = max(self.slowest_ms, slowest_ms)
            self.total_ms += mean_ms * answered

    def __str__(self) -> str:
        """Return one line for people."""
        text = f"{self.answered} of {self.sent} pings answered"
        if self.answered:
            mean = self.total_ms / self.answered
            text += f", min/avg/max {self.fastest_ms:.2f}/{mean:.2f}/{self.slowest_ms:.2f} ms"
        return f"{text}; {self.verified_bytes / 1e6:.1f} MB arrived whole"
