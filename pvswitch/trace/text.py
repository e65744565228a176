# SPDX-License-Identifier: Apache-2.0
"""A trace as people read it: one line for each step, aligned, and the verdict last. Pure; used by the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pvswitch.trace.model import Trace


def lines(told: Trace) -> list[str]:
    """Return a trace as text: one line for each step, aligned, and the verdict last."""
    steps = [(step.step, step.detail) for step in told.steps]
    return [f"{name:<8}{detail}" for name, detail in [*steps, ("verdict", verdict(told))]]


def verdict(told: Trace) -> str:
    """Return in one line what becomes of the frame."""
    leaving = [copy.port for copy in told.verdict.egress if copy.drop is None]
    lost = [f"{copy.port} ({copy.drop})" for copy in told.verdict.egress if copy.drop is not None]
    words = [] if told.verdict.reason is None else [f"dropped: {told.verdict.reason}"]
    words += [f"leaves by {', '.join(leaving)}"] if leaving else []
    words += [f"not by {', '.join(lost)}"] if lost else []
    return "; ".join(words) or "goes nowhere"
