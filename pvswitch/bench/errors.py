# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a measurement, apart from what is measured. Any module of the package may raise these."""

from __future__ import annotations

from pvswitch.errors import PvswitchError


class BenchError(PvswitchError):
    """A measurement could not be made; the message says why."""


class MissingPeer(BenchError):
    """A switch or a generator can't run here at all; the message says what to install or to do."""


class NotOffered(BenchError):
    """A switch runs, and can't do what a case is about; the message says what it lacks."""
