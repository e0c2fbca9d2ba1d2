"""What may come next for a sandbox: one class for each act of the protocol, with just what that act needs."""

from __future__ import annotations

from dataclasses import dataclass

from controller.protocol.model import ObservedRun, Outcome


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is due until something new is known."""


@dataclass(frozen=True, slots=True)
class Create:
    """Create the attempt's object, inert."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Write that `run` is the one run of the attempt that may start."""

    run: ObservedRun


@dataclass(frozen=True, slots=True)
class Release:
    """Let the bound `run` start."""

    run: ObservedRun


@dataclass(frozen=True, slots=True)
class MarkRunning:
    """Write that `run` was seen running."""

    run: ObservedRun


@dataclass(frozen=True, slots=True)
class Kill:
    """End `run`, and leave its outcome and output to be read."""

    run: ObservedRun


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete `run`, which must not start."""

    run: ObservedRun


@dataclass(frozen=True, slots=True)
class Record:
    """Write `outcome` as the sandbox's outcome: its state becomes terminal."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Retry:
    """Write `outcome` as this attempt's outcome, and queue the next attempt, due in `delay` seconds."""

    outcome: Outcome
    counted: bool  # the attempt counts against max_attempts
    delay: float = 0.0
    new_start_deadline: bool = False  # the next attempt's start deadline counts from its own claim


@dataclass(frozen=True, slots=True)
class Clean:
    """Delete the attempt's object, then write that the sandbox is cleaned."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Stop tracking the row: it has no step that this controller could take."""


Action = Wait | Create | Bind | Release | MarkRunning | Kill | Discard | Record | Retry | Clean | Drop
Settlement = Wait | Record | Retry | Clean | Drop  # what may be done for a row without its engine
