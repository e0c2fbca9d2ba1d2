"""What stops a stack: what happened, to which thing, what to do. Pulumi shows the words without a stack trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pulumi


class ConfigError(pulumi.RunError):
    """The stack's configuration is wrong; the message says each key, what it was given and what it takes."""


class PreflightError(pulumi.RunError):
    """Something that the stack needs is not there; the message says what, and what to do."""

    @classmethod
    def of(cls, faults: Sequence[str]) -> Self:
        """One fault, or all of them, a line each."""
        return cls(faults[0] if len(faults) == 1 else "\n  ".join(["the stack cannot come up:", *faults]))


class NotReady(pulumi.RunError):
    """What was made does not come up; the message says why, in its own words or those of the engine or cluster."""


class EndRefused(pulumi.RunError):
    """The stack cannot end yet; the message says what is in the way, and what to do."""
