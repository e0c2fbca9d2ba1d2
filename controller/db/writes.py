"""What the controller asks the queue to write: one row's share of a statement each, and how much it weighs there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from controller.protocol.actions import Record, Retry
from controller.protocol.model import Key, ObservedRun, Outcome, Output, Row


@dataclass(frozen=True, slots=True)
class Bind:
    """Asks that `run_uid` become the one run of this attempt."""

    key: Key
    epoch: int
    run_uid: str
    size: int = 200

    @property
    def id(self) -> UUID:
        return self.key.sandbox_id


@dataclass(frozen=True, slots=True)
class PutBack:
    """Asks that this attempt wait in the queue, for `delay` seconds at most."""

    key: Key
    epoch: int
    waiting: str
    delay: float
    size: int = 500

    @property
    def id(self) -> UUID:
        return self.key.sandbox_id


@dataclass(frozen=True, slots=True)
class Mark:
    """A short note on a row: that it runs, waits or is cleaned."""

    key: Key
    text: str | None = None
    size: int = 200

    @property
    def id(self) -> UUID:
        return self.key.sandbox_id


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt's outcome, what the engine last saw of it and what it wrote."""

    key: Key
    run_uid: str | None
    outcome: Outcome
    seen: ObservedRun | None = None
    output: Output | None = None
    lost: bool = False  # it may have written something, and nothing of that could be had
    counted: bool = False
    delay: float = 0.0  # seconds until the next attempt
    epoch: int | None = None  # where given, an end of what is not bound is only for who still holds this lease
    afresh: bool = False  # the next attempt has a start deadline of its own

    @property
    def id(self) -> UUID:
        return self.key.sandbox_id

    @property
    def size(self) -> int:
        return 500 + (len(self.output.tail) if self.output else 0)


def ended_by(row: Row, action: Record | Retry) -> Ended:
    """Return the write of an attempt's end, fenced by the row's epoch unless the engine itself saw the run end."""
    ended = Ended(row.key, row.run_uid, action.outcome, epoch=row.epoch)
    if isinstance(action, Record):
        return ended
    epoch = None if action.counted else row.epoch  # only the lease's holder may write that a run never started
    return replace(ended, counted=action.counted, delay=action.delay, epoch=epoch, afresh=action.new_start_deadline)
