"""What stops a stack: what happened, to which thing, what to do. Pulumi shows the words without a stack trace."""

from __future__ import annotations

import pulumi


class ConfigError(pulumi.RunError):
    """The stack's configuration is wrong; the message says each key, what it was given and what it takes."""


class PreflightError(pulumi.RunError):
    """Something that the stack needs is not there; the message says what, and what to do."""


class MigrationFailed(pulumi.RunError):
    """The migration ended with an error; the message says where its words are, and how to go on."""
