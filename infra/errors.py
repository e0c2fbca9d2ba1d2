"""The errors that stop a stack. Pulumi shows their messages without a stack trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pulumi


class ConfigError(pulumi.RunError):
    """The stack's configuration is wrong; the message names each key, its value and what it takes."""


class PreflightError(pulumi.RunError):
    """Something that the stack needs is missing; the message names it, and says what to do."""

    @classmethod
    def of(cls, faults: Sequence[str]) -> Self:
        """The error for one fault, or for all of them, one line each."""
        return cls(faults[0] if len(faults) == 1 else "\n  ".join(["the stack cannot come up:", *faults]))


class NotReadyError(pulumi.RunError):
    """Something that was created does not become ready; the message has the reason that it, the engine or the
    cluster reports."""


class EndRefusedError(pulumi.RunError):
    """The stack cannot end yet; the message says what is in the way, and what to do."""
