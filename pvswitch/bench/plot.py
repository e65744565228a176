# SPDX-License-Identifier: Apache-2.0
"""An SVG of a run: for each case a bar for each switch, as long as its median, with its interval as a whisker.

Cases differ by orders of magnitude, so each has a scale of its own: the longest interval in it ends at the right edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from pvswitch.bench.results import Results
from pvswitch.bench.stats import Summary
from pvswitch.bench.work import BRIDGE, FIGURES, OVS, PVSWITCH, QEMU_TAP, TESTPMD, Case

COLOURS = {PVSWITCH: "#2563a8", OVS: "#d97b29", TESTPMD: "#8a8a8a", BRIDGE: "#4d8f4d", QEMU_TAP: "#4d8f4d"}
NAME_WIDTH, BAR_WIDTH, VALUE_WIDTH = 190, 420, 250
BAR, GAP, MARGIN = 14, 12, 16
TEXT = "font-family='sans-serif' font-size='11' fill='#222'"


def svg(results: Results, cases: Sequence[Case]) -> str:
    """Return the picture as an SVG document."""
    parts: list[str] = []
    shown = {case.name: rows for case in cases if (rows := _rows(results, case))}
    y = _legend(parts, [*dict.fromkeys(switch for rows in shown.values() for switch, _ in rows)])
    for case in cases:
        if case.name in shown:
            y = _case(parts, case, shown[case.name], y)
    width = NAME_WIDTH + BAR_WIDTH + VALUE_WIDTH + 2 * MARGIN
    head = f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{y}' viewBox='0 0 {width} {y}'>"
    return "\n".join([head, f"<rect width='{width}' height='{y}' fill='#fff'/>", *parts, "</svg>"]) + "\n"


def _rows(results: Results, case: Case) -> list[tuple[str, Summary]]:
    found = [(switch, results.summary(case.name, switch, case.figure)) for switch in results.switches(case.name)]
    return [(switch, value) for switch, value in found if value is not None]


def _legend(parts: list[str], switches: Sequence[str]) -> int:
    x = MARGIN
    for switch in switches:
        parts.append(f"<rect x='{x}' y='{MARGIN}' width='{BAR}' height='{BAR}' fill='{_colour(switch)}'/>")
        parts.append(_text(x + BAR + 5, MARGIN + BAR - 3, switch))
        x += 120
    return MARGIN + BAR + GAP


def _case(parts: list[str], case: Case, rows: Sequence[tuple[str, Summary]], y: int) -> int:
    """Draw one case from `y` on; return where the next begins."""
    figure = FIGURES[case.figure]
    longest = max(value.high for _, value in rows) or 1.0
    parts.append(f"<g><title>{escape(case.text)}</title>")
    parts.append(_text(MARGIN, y + BAR - 3, case.name))
    for switch, value in rows:
        left, middle = MARGIN + NAME_WIDTH, y + BAR / 2
        length, low, high = (end / longest * BAR_WIDTH for end in (value.median, value.low, value.high))
        colour = _colour(switch)
        parts.append(f"<rect x='{left}' y='{y}' width='{length:.1f}' height='{BAR - 2}' fill='{colour}'/>")
        low, high = left + low, left + high
        parts.append(
            f"<path d='M{low:.1f} {middle - 4:.1f}v6M{low:.1f} {middle - 1:.1f}H{high:.1f}m0 -3v6' "
            "stroke='#111' fill='none'/>"
        )
        label = f"{value.show(figure.digits)} {figure.unit}"
        parts.append(_text(left + BAR_WIDTH + 8, y + BAR - 3, label))
        y += BAR
    parts.append("</g>")
    return y + GAP


def _colour(switch: str) -> str:
    return COLOURS.get(switch, "#555")


def _text(x: float, y: float, words: str) -> str:
    return f"<text x='{x}' y='{y}' {TEXT}>{escape(words)}</text>"
