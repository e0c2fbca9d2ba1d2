"""The sandboxes in one controller's hands. Nothing here that the next controller could not find out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID

from controller.protocol.decide import Context
from controller.protocol.model import KILL_MARGIN, Launch, ObservedRun, Phase, Row

KILL_AGAIN = 10.0  # seconds after which a run that was told to end is told again
ORDER = (
    Phase.INERT,
    Phase.STARTING,
    Phase.RUNNING,
    Phase.GONE,
    Phase.NEVER_STARTED,
    Phase.ENDED,
)  # later knowledge stays


@dataclass(slots=True, eq=False)
class Live:
    """One sandbox in hand: its row and runs as last known, and where its steps stand."""

    row: Row
    read_at: float  # monotonic seconds when the row's ages were read
    lease_end: float = 0.0  # monotonic; before it the row is ours to launch
    launch: Launch | None = None  # until it is bound
    look: bool = False  # its object may be there already
    created: bool = False
    fresh: bool = False  # bound by us, for the first time, and no release of ours was answered or went unanswered
    runs: dict[str, ObservedRun] = field(default_factory=dict)
    waiting: str | None = None
    told: str | None = None  # the last `waiting` that the row was given
    missing: bool = False
    killed_at: float | None = None
    backoff: float = 0.0
    not_before: float = 0.0
    output_due: float = 0.0  # monotonic; 0: reading its output has not failed yet
    busy: bool = False
    dirty: bool = False  # something is new since the last decision


class Lives:
    """Every sandbox in hand, and which of them are still being launched."""

    def __init__(self, start_deadline: float) -> None:
        self._start_deadline = start_deadline
        self.by_id: dict[UUID, Live] = {}
        self.launching: set[UUID] = set()  # claimed, and not yet released
        self.stopping = False
        self.freed: Callable[[], None] = lambda: None  # called where another row may have become claimable

    def holds(self, live: Live) -> bool:
        """Whether this very one is still in hand."""
        return self.by_id.get(live.row.id) is live

    def saw(self, seen: ObservedRun) -> Live | None:
        """Takes in what the engine says of one run; returns the sandbox in hand that it is news to, if any."""
        live = self.by_id.get(seen.key.sandbox_id)
        if live is None or live.row.attempt != seen.key.attempt:
            return None
        if seen.phase is Phase.GONE and seen.run_uid not in live.runs and seen.run_uid != live.row.run_uid:
            return None
        known = live.runs.get(seen.run_uid)
        if known is not None and not _is_news(known, seen):
            return None
        if known is not None and known.permanent and seen.phase is Phase.ENDED:  # why it may have been ended
            seen = replace(seen, permanent=True, waiting=known.waiting, timeout_reason=known.timeout_reason)
        live.runs[seen.run_uid] = seen
        live.missing = seen.phase is Phase.GONE
        return live

    def context(self, live: Live) -> Context:
        """What is known of it beside its row and runs."""
        now, row = time.monotonic(), live.row
        since = now - live.read_at
        if live.killed_at is None and any(run.ending for run in live.runs.values()):
            live.killed_at = now  # by the controller before: told again where that does not end it
        return Context(
            holds_lease=now < live.lease_end and not self.stopping,
            created=live.created,
            past_start_deadline=row.claimed_age is not None and row.claimed_age + since > self._start_deadline,
            past_timeout=row.started_age is not None and row.started_age + since > row.timeout_seconds + KILL_MARGIN,
            missing=live.missing,
            unreleased=live.fresh,
            kill_pending=live.killed_at is not None and now - live.killed_at < KILL_AGAIN,
            kill_sent=live.killed_at is not None,
            waiting=live.waiting,
        )

    def left(self, live: Live) -> float:
        """Seconds until its start deadline."""
        age = (live.row.claimed_age or 0.0) + time.monotonic() - live.read_at
        return max(self._start_deadline - age, 0.0)

    def drop(self, live: Live) -> None:
        """Lets go of a sandbox that needs no more, or is in other hands."""
        if self.holds(live):
            del self.by_id[live.row.id]
        self.released(live)

    def released(self, live: Live) -> None:
        """It no longer takes a place among those being launched."""
        if live.row.id in self.launching:
            self.launching.discard(live.row.id)
            self.freed()


def _is_news(known: ObservedRun, seen: ObservedRun) -> bool:
    if seen.phase is Phase.INERT and known.phase is Phase.STARTING:
        return True  # its release came to nothing: it is released again
    if seen.phase is known.phase:
        return (known.waiting, known.permanent, known.ending) != (seen.waiting, seen.permanent, seen.ending)
    return ORDER.index(seen.phase) > ORDER.index(known.phase)
