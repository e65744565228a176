# SPDX-License-Identifier: Apache-2.0
"""The cases of flow rules, captures and the flight recorder: part of `cases`.

`flows-RULES[-MASKSm]-TUPLESf`: frames of so many tuples through a table of so many rules. All combinations have a name;
without a pattern a few are measured, as tables of 100,000 rules take long to fill.
"""

from __future__ import annotations

from collections.abc import Iterator

from pvswitch.bench.rules import FIRST_PORT, MAX_MASKS
from pvswitch.bench.work import OVS, PVSWITCH, Against, Case, FlowBatch, FlowFrames, Frames, Watched

BOTH = (PVSWITCH, OVS)
TUPLES = (1, 1_000, 100_000)
USUAL = ("flows-0-1f", "flows-1-1f", "flows-0-1000f", "flows-1000-1m-1000f", "flows-1000-50m-1000f")


def _tables() -> Iterator[Case]:
    for rules, masks in ((0, 1), (1, 1), (1_000, 1), (1_000, MAX_MASKS), (100_000, 1), (100_000, MAX_MASKS)):
        for tuples in TUPLES:
            name = f"flows-{rules}-{masks}m-{tuples}f" if rules > 1 else f"flows-{rules}-{tuples}f"
            words = f"{rules:,} rules in {masks} mask{'s' * (masks > 1)}" if rules > 1 else ("no rule", "a rule")[rules]
            yield Case(
                name,
                f"64 B, {tuples:,} concurrent flow{'s' * (tuples > 1)}, {words}",
                FlowFrames(Frames(64, tuples=tuples), rules, masks),
                figure="cycles",
                switches=BOTH,
                usual=name in USUAL,
            )


def _batches() -> Iterator[Case]:
    for before in (0, 100_000):
        yield Case(
            f"flows-batch-{before}",
            f"10,000 rules added at once to {before:,}",
            FlowBatch(before),
            figure="seconds",
            switches=BOTH,
            usual=before == 0,
        )


def _captures() -> Iterator[Case]:
    for watcher, words in (
        ("", "no capture"),
        ("some", "a capture of one frame of a thousand, read"),
        ("all", "a capture of all frames, read as fast as that goes"),
        ("unread", "a capture of all frames that isn't read"),
    ):
        yield Case(
            f"capture-{watcher or 'none'}",
            f"64 B, {words}",
            Watched(Frames(64, tuples=1_000), watcher),
            figure="cycles",
            switches=(PVSWITCH,),
            against=Against("capture-all", "cycles", 1.1) if watcher == "unread" else None,
        )


def _recorder() -> Iterator[Case]:
    for what, flows in (("forwarded", ()), ("dropped", (f"udp,tp_dst={FIRST_PORT},actions=drop",))):
        for watcher in ("", "drops"):
            read = ", /drops read ten times a second" if watcher else ""
            yield Case(
                f"recorder-{what}{'-read' if watcher else ''}",
                f"64 B, {'every other frame dropped' if flows else 'forwarded'}{read}",
                Watched(Frames(64, tuples=2), watcher, flows),
                figure="cycles",
                switches=(PVSWITCH,),
                against=Against(f"recorder-{what}", "cycles", 1.1) if watcher else None,
                loss_allowed=bool(flows),
            )


def flow_cases() -> Iterator[Case]:
    """Return all of them."""
    yield from _tables()
    yield from _batches()
    yield from _captures()
    yield from _recorder()
