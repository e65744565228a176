# SPDX-License-Identifier: Apache-2.0
"""What a run found: every sample, what could not be measured and why; and the JSON document that holds it all.

The document is what `--json` writes and `--compare` reads. Its `format` rises when an older reader would misread it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pvswitch.bench.errors import BenchError
from pvswitch.bench.stats import Summary, summary

FORMAT = 1

# A round, and what was measured in it where a turn measures more than one thing (the direction of a stream).
Turn = tuple[int, str]


@dataclass(frozen=True)
class Sample:
    """One measurement. `faults` are sentences: frames lost, changed, out of order, broken protocol, or what failed.

    With faults a rate counts what arrived; where nothing could be measured there are no figures.
    """

    case: str
    switch: str
    round: int
    figures: Mapping[str, float]
    part: str = ""
    faults: tuple[str, ...] = ()
    seen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turn(self) -> tuple[str, str, int, str]:
        """Whose it is: case, switch, round, and what was measured of it."""
        return self.case, self.switch, self.round, self.part


@dataclass
class Results:
    """All of a run. `missing` are switches by name, `left_out` cases and switches that don't go together."""

    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, samples: Sequence[Sample]) -> None:
        """Add the samples of a turn, in the place of those of an earlier try; faults of that stay."""
        for sample in samples:
            for place, old in enumerate(self.samples):
                if old.turn == sample.turn:
                    self.samples[place] = replace(sample, faults=(*old.faults, *sample.faults))
                    break
            else:
                self.samples.append(sample)

    def leave_out(self, case: str, switch: str, reason: str) -> None:
        """Note why a switch has no sample of a case."""
        self.left_out.setdefault(case, {})[switch] = reason

    def values(self, case: str, switch: str, figure: str) -> dict[Turn, float]:
        """Return a figure of a case by turn, as far as it was measured.

        Turns without a steady slice count only where there are no others.
        """
        found = [
            sample
            for sample in self.samples
            if (sample.case, sample.switch) == (case, switch) and figure in sample.figures
        ]
        steady = [sample for sample in found if sample.seen.get("steady") != 0]
        return {(sample.round, sample.part): sample.figures[figure] for sample in steady or found}

    def summary(self, case: str, switch: str, figure: str) -> Summary | None:
        """Return median and interval of a figure, or None where there is no sample."""
        values = self.values(case, switch, figure)
        return summary([*values.values()]) if values else None

    def switches(self, case: str) -> list[str]:
        """Return the switches that a case was measured with, in the order of their first turns."""
        return [*dict.fromkeys(sample.switch for sample in self.samples if sample.case == case)]

    def faults(self, switch: str | None = None) -> list[tuple[Sample, str]]:
        """Return every fault, or those of one switch, each with its sample."""
        return [
            (sample, fault) for sample in self.samples if switch in (None, sample.switch) for fault in sample.faults
        ]

    def failures(self, case: str, switch: str) -> list[str]:
        """Return what failed where nothing could be measured."""
        return [
            fault
            for sample in self.samples
            if (sample.case, sample.switch) == (case, switch) and not sample.figures
            for fault in sample.faults
        ]

    # ---- the document

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        summaries: dict[str, dict[str, Any]] = {}
        for sample in self.samples:
            found = summaries.setdefault(sample.case, {}).setdefault(sample.switch, {})
            for figure in sample.figures:
                one = self.summary(sample.case, sample.switch, figure)
                found[figure] = asdict(one) if one else None
        return {"format": FORMAT, **asdict(self), "summaries": summaries}

    def save(self, path: Path) -> None:
        """Write the document; raises BenchError."""
        try:
            path.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BenchError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a document; raises BenchError for a file that is none."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise BenchError(f"{path} has format {found['format']}, this pvswitch reads {FORMAT}: measure anew.")
            samples = [Sample(**{**item, "faults": tuple(item["faults"])}) for item in found["samples"]]
            names = ("machine", "versions", "options", "missing", "left_out")
            return cls(samples=samples, **{name: found[name] for name in names})
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"{path} is no result of `pvswitch bench --json`.") from error
