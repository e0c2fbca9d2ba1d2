"""What the controller asks the store to write: one attempt's share of a statement each, and its weight."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any
from uuid import UUID

from controller.protocol.actions import Record, Retry
from controller.protocol.model import Key, ObservedRun, Outcome, Output, Row
from controller.protocol.text import storable, tail

MESSAGE_LENGTH, TEXT_LENGTH = 2000, 1000  # characters of an outcome's message, and of every other text but the output


@dataclass(frozen=True, slots=True)
class Write:
    """A write to the row of one attempt."""

    key: Key

    @property
    def id(self) -> UUID:
        return self.key.sandbox_id

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return 500

    def values(self, output_bytes: int) -> dict[str, Any]:
        """This row's element of each array of the statement. `output_bytes`: how much of an output is kept."""
        own = {f"{field.name}s": getattr(self, field.name) for field in fields(self)[1:]}
        texts = {name: shortened(value) for name, value in own.items() if isinstance(value, str)}
        return {"ids": self.key.sandbox_id, "attempts": self.key.attempt} | own | texts


@dataclass(frozen=True, slots=True)
class WriteBind(Write):
    """Makes `run_uid` the one run of this attempt."""

    epoch: int
    run_uid: str


@dataclass(frozen=True, slots=True)
class PutBack(Write):
    """Lets this attempt wait in the queue, for `delay` seconds at most."""

    epoch: int
    reason: str
    delay: float


@dataclass(frozen=True, slots=True)
class MakeDue(Write):
    """Ends the wait of an attempt that was put back."""


@dataclass(frozen=True, slots=True)
class SetWaiting(Write):
    """Says in a sentence why this attempt does not run yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class WriteRunning(Write):
    """Says that the bound run was seen running."""

    run_uid: str


@dataclass(frozen=True, slots=True)
class MarkCleaned(Write):
    """Says that the engine has nothing of this sandbox any more."""


@dataclass(frozen=True, slots=True)
class Ended(Write):
    """Writes an attempt's outcome, what the engine last saw of it and the end of its output."""

    run_uid: str | None
    outcome: Outcome
    seen: ObservedRun | None = None
    output: Output | None = None
    lost: bool = False  # it may have written something, and nothing of that could be had
    counted: bool = False  # it used up one of max_attempts
    delay: float = 0.0  # seconds until the next attempt
    epoch: int | None = None  # if given, an end of what is not bound is only for who still holds this lease
    afresh: bool = False  # the next attempt has a start deadline of its own

    @property
    def size(self) -> int:
        return 500 + (len(self.output.tail) if self.output else 0)

    def values(self, output_bytes: int) -> dict[str, Any]:
        outcome, seen, output = self.outcome, self.seen, self.output
        text, cut = tail(output.tail, output_bytes) if output else (None, False)
        return {
            "ids": self.key.sandbox_id,
            "attempts": self.key.attempt,
            "run_uids": self.run_uid,
            "states": str(outcome.state),
            "exit_codes": outcome.exit_code,
            "reasons": str(outcome.reason),
            "messages": shortened(outcome.message, MESSAGE_LENGTH),
            "outputs": text,
            "truncated": cut or self.lost or bool(output and output.truncated),
            "started": seen and seen.started_at,
            "ended": seen and seen.ended_at,
            "nodes": seen and shortened(seen.node),
            "digests": seen and shortened(seen.image_digest),
            "counted": self.counted,
            "delays": self.delay,
            "epochs": self.epoch,
            "afresh": self.afresh,
        }


def ended_by(row: Row, action: Record | Retry) -> Ended:
    """Return the write of an attempt's end, fenced by the row's epoch unless the engine itself saw the run end."""
    ended = Ended(row.key, row.run_uid, action.outcome, epoch=row.epoch)
    if isinstance(action, Record):
        return ended
    epoch = None if action.counted else row.epoch  # only the lease's holder may write that a run never started
    return replace(ended, counted=action.counted, delay=action.delay, epoch=epoch, afresh=action.new_start_deadline)


def shortened(text: str | None, length: int = TEXT_LENGTH) -> str | None:
    """The text as Postgres can store it, with at most that many characters; None if nothing is left."""
    return storable(text)[:length] or None if text else None
