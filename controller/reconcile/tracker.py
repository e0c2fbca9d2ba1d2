"""In-memory state of the tracked sandboxes. Its loss starts no command twice and loses no row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

from controller.protocol.actions import Action
from controller.protocol.decide import Context, decide
from controller.protocol.model import KILL_MARGIN, Key, Launch, ObservedRun, Outcome, Phase, Row, State

KILL_AGAIN = 10.0  # seconds after which a kill that did not end its run is sent again
ORDER = (  # of what is known of a run: later knowledge is not replaced by earlier
    Phase.INERT,
    Phase.STARTING,
    Phase.RUNNING,
    Phase.GONE,
    Phase.NEVER_STARTED,
    Phase.ENDED,
)


@dataclass(slots=True, eq=False)
class TrackedSandbox:
    """One tracked sandbox: its row and runs as last known, and what this controller did under its lease.

    Its fields are read by others and assigned by its own methods alone, one for each event, so each rule that the
    protocol's safety rests on is written once, in the docstring of the method that keeps it. Times are monotonic
    seconds, which the caller passes in.
    """

    row: Row
    read_at: float  # when the row's ages were read
    lease_end: float = 0.0  # until then the row is this controller's to launch
    launch: Launch | None = None  # until the run is bound
    may_exist: bool = False  # the attempt's object may exist already: look before creating it
    created: bool = False
    unreleased: bool = False
    runs: Mapping[str, ObservedRun] = field(default_factory=dict)  # by run_uid
    seen_past_gate: frozenset[str] = frozenset()  # run_uids, until one is bound
    missing: bool = False
    kill_sent_at: float | None = None
    waiting: str | None = None  # why it does not run yet
    written_waiting: str | None = None  # what the row says about that
    output_deadline: float | None = None  # set once its output could not be read

    def __post_init__(self) -> None:
        if any(run.ending for run in self.runs.values()):
            self.kill_sent_at = self.read_at

    @property
    def bound_run(self) -> ObservedRun | None:
        """The run that the row is bound to, as last observed."""
        return self.runs.get(self.row.run_uid or "")

    def on_claimed(
        self, row: Row, launch: Launch, waiting: str | None, *, now: float, lease_end: float, may_exist: bool
    ) -> None:
        """Begin a lease.

        A run is believed gone, or never started, only under the lease under which that was learned: the lease may have
        been lost meanwhile, and another controller have released the run. `created`, `unreleased` and `missing` begin
        anew: the run that was missing need not be the one that the row is bound to now.
        """
        over = (Phase.NEVER_STARTED, Phase.GONE)
        self.runs = {uid: run for uid, run in self.runs.items() if run.phase not in over}
        self.on_row(row, now)
        self.lease_end = lease_end
        self.launch, self.may_exist = launch, may_exist
        self.created = self.unreleased = self.missing = False
        self.waiting = self.written_waiting = waiting

    def on_renewed(self, lease_end: float) -> None:
        """Prolong the lease."""
        self.lease_end = lease_end

    def on_adopted(self, controller: str) -> None:
        """The row has this controller's name now."""
        self.row = replace(self.row, claimed_by=controller)

    def on_created(self, run: ObservedRun | None, now: float) -> None:
        """The engine created the attempt's object, or found it; `run` is None if the run appears later.

        Any other inert run came from a list begun before this call, which removed that run. A run that is past its gate
        stays known: it may be the one to bind.
        """
        self.created, self.missing, self.waiting = True, False, None
        if run is not None:
            kept = {uid: each for uid, each in self.runs.items() if each.phase is not Phase.INERT or uid == run.run_uid}
            self.runs = kept
            if run.run_uid not in kept:
                self._learn(run, now)

    def on_bound(self, run: ObservedRun) -> None:
        """The table took `run` as the one run of the attempt.

        `unreleased`: nobody but this controller, under this lease, can release it, and it has not. So only the first
        bind of a run that is inert sets it; a bind that another controller made may have been followed by its release,
        and a run that was seen past its gate while the bind was under way was started by somebody else.
        """
        first = self.row.run_uid is None and run.phase is Phase.INERT
        self.unreleased = first and run.run_uid not in self.seen_past_gate
        self.row, self.launch = replace(self.row, run_uid=run.run_uid), None

    def on_released(self, run: ObservedRun) -> None:
        """The engine released the run: from now on, "gone" does not prove "never started".

        What was observed while the call was under way is newer than its answer.
        """
        if self.runs.get(run.run_uid, run).phase is Phase.INERT:
            self._assume(run, Phase.STARTING)
        self.unreleased = False

    def on_release_unanswered(self) -> None:
        """A release may have taken effect: from now on, "gone" does not prove "never started"."""
        self.unreleased = False

    def on_release_found_nothing(self, run: ObservedRun) -> None:
        """There is no such run to release. It never started if no release may have taken effect before; else it may
        have run, and be gone."""
        self._assume(run, Phase.NEVER_STARTED if self.unreleased else Phase.GONE)

    def on_release_rejected(self, run: ObservedRun, outcome: Outcome) -> None:
        """The engine cannot start the run at all, for this reason."""
        self._assume(run, Phase.ENDED, outcome)

    def on_marked_running(self, now: float) -> None:
        """The table has the row as running; its age counts from `now`."""
        self.row = replace(self.row, state=State.RUNNING, started_age=self.read_at - now)
        self.waiting = None

    def on_kill_sending(self, now: float) -> None:
        """A kill is about to be sent. Without an answer it may have taken effect, and is due again at once: so from now
        on it counts as sent, and not as pending."""
        self.kill_sent_at = now - KILL_AGAIN

    def on_kill_answered(self, now: float) -> None:
        """The engine took the kill: it is not sent again for KILL_AGAIN seconds."""
        self.kill_sent_at = now

    def on_discarded(self, run: ObservedRun) -> None:
        """The engine deleted the run.

        If it was the bound one and seemed inert, it never started only if no release of it may have taken effect; else
        it may have begun just before. Of an attempt whose unbound run was deleted, the object is to be created anew.
        """
        if run.run_uid == self.row.run_uid and run.phase is Phase.INERT:
            self._assume(run, Phase.NEVER_STARTED if self.unreleased else Phase.GONE)
            self.missing = True
        else:
            self.runs = {uid: known for uid, known in self.runs.items() if uid != run.run_uid}
            self.created = False

    def on_recorded(self, outcome: Outcome) -> None:
        """The table has the outcome: what is left is to clean."""
        self.row, self.output_deadline = replace(self.row, state=outcome.state), None

    def on_output_unanswered(self, now: float, patience: float) -> bool:
        """The output could not be read. Return whether there is time for another try: `patience` seconds from the
        first failure."""
        if self.output_deadline is None:
            self.output_deadline = now + patience
        return now < self.output_deadline

    def on_failed(self, waiting: str | None = None) -> None:
        """An action failed, and may have taken effect all the same: look before creating anything. `waiting`: the
        engine's words, if it was the engine."""
        self.may_exist = True
        self.waiting = waiting or self.waiting

    def on_waiting_written(self, waiting: str) -> None:
        """The row says what the sandbox waits for."""
        self.written_waiting = waiting

    def on_cancel_requested(self) -> bool:
        """The requester asked for the sandbox's end. Return whether that is news."""
        news = not self.row.cancelled
        self.row = replace(self.row, cancelled=True)
        return news

    def on_row(self, row: Row, now: float) -> None:
        """Take over the row as it was just read. A cancel stays, which may have been heard of while it was read."""
        self.row, self.read_at = replace(row, cancelled=row.cancelled or self.row.cancelled), now

    def on_observed(self, run: ObservedRun, now: float) -> bool:
        """The engine reports this of one run. Return whether that is news.

        What is known already of a run stays, whatever an older list or event says, with one exception: a run that was
        released and is inert again lost its release, and is released again.
        """
        known = self.runs.get(run.run_uid)
        foreign = run.key != self.row.key
        unknown = run.phase is Phase.GONE and known is None and run.run_uid != self.row.run_uid
        if foreign or unknown or (known is not None and not _is_news(known, run)):
            return False
        if known is not None and known.permanent and run.phase is Phase.ENDED:  # this may be why it was ended
            run = replace(run, permanent=True, waiting=known.waiting, timeout_reason=known.timeout_reason)
        self._learn(run, now)
        if self.row.run_uid in (None, run.run_uid):  # the removal of another run says nothing of the bound one
            self.missing = run.phase is Phase.GONE
        return True

    def on_resync(self, row: Row, missing: bool, waiting: str | None) -> bool:
        """Agree with the table and a list, both read a while ago; return whether they say something new.

        `missing`: this list and one a grace before lack the run. A run that was created or bound since the table was
        read is not the one that the list was asked for, so it is not missing. Of a run that is missing, only what says
        that it is over stays believed.
        """
        if row.run_uid != self.row.run_uid or (row.run_uid is None and self.runs):
            missing = self.missing
        ended = row.state.terminal and not self.row.state.terminal  # by another controller
        lost = missing and not self.missing and (self.created or self.row.run_uid is not None)
        news = ended or lost or (row.cancelled and not self.row.cancelled)
        state = row.state if ended else self.row.state
        self.row = replace(self.row, state=state, cancelled=self.row.cancelled or row.cancelled)
        self.missing = missing
        if missing:
            over = (Phase.ENDED, Phase.NEVER_STARTED, Phase.GONE)
            self.runs = {uid: run for uid, run in self.runs.items() if run.phase in over}
        self.waiting = waiting or self.waiting
        return news

    def waiting_to_write(self) -> str | None:
        """Return what the launching sandbox waits for, if its row does not say so yet.

        What the bound run waits for comes first, and stays known after the run has ended.
        """
        if self.bound_run is not None and self.bound_run.waiting:
            self.waiting = self.bound_run.waiting
        written = self.waiting == self.written_waiting or self.row.state is not State.LAUNCHING
        return None if written else self.waiting

    def is_same_claim(self, row: Row) -> bool:
        """Return whether the row is still at this attempt and epoch: else it is in another controller's hands."""
        return (row.attempt, row.epoch) == (self.row.attempt, self.row.epoch)

    def is_older(self, row: Row) -> bool:
        """Return whether the row was read before this controller claimed it again: epochs only grow."""
        return row.epoch < self.row.epoch

    def past_timeout(self, now: float) -> bool:
        """Return whether its run, if it runs, should have been ended by its own timer, with every margin."""
        age = self.row.started_age
        return age is not None and age + now - self.read_at > self.row.timeout_seconds + KILL_MARGIN

    def context(self, now: float, start_deadline: float, *, stopping: bool = False) -> Context:
        """Return what is known of it beside its row and runs. A controller that is stopping launches nothing more."""
        age, sent = self.row.claimed_age, self.kill_sent_at
        return Context(
            holds_lease=now < self.lease_end and not stopping,
            created=self.created,
            past_start_deadline=age is not None and age + now - self.read_at > start_deadline,
            past_timeout=self.past_timeout(now),
            missing=self.missing,
            kill_pending=sent is not None and now - sent < KILL_AGAIN,
            kill_sent=sent is not None,
            waiting=self.waiting,
            unreleased=self.unreleased,
        )

    def _learn(self, run: ObservedRun, now: float) -> None:
        self.runs = {**self.runs, run.run_uid: run}
        if self.row.run_uid is None and run.phase in (Phase.STARTING, Phase.RUNNING, Phase.ENDED):
            self.seen_past_gate |= {run.run_uid}
        if run.ending and self.kill_sent_at is None:  # by the controller before: sent again if that does not end it
            self.kill_sent_at = now

    def _assume(self, run: ObservedRun, phase: Phase, outcome: Outcome | None = None) -> None:
        """Conclude this from an answer, unless the run's end was observed while the call was under way."""
        if (known := self.runs.get(run.run_uid)) is not None and known.phase is Phase.ENDED:
            return
        self.runs = {**self.runs, run.run_uid: replace(run, phase=phase, outcome=outcome)}


class Tracker:
    """Every tracked sandbox, and which of them hold a launch slot.

    `on_room` is called when another row may have become claimable. `start_deadline` is in seconds.
    """

    def __init__(
        self, start_deadline: float, on_room: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._start_deadline, self._on_room, self.clock = start_deadline, on_room, clock
        self._launching: set[UUID] = set()  # claimed, and not yet released
        self._stopping = False
        self.sandboxes: dict[UUID, TrackedSandbox] = {}

    def get(self, key: Key) -> TrackedSandbox | None:
        """Return the tracked sandbox of this attempt."""
        tracked = self.sandboxes.get(key.sandbox_id)
        return tracked if tracked is not None and tracked.row.attempt == key.attempt else None

    def add(self, tracked: TrackedSandbox, *, launching: bool = False) -> None:
        """Track the sandbox, in place of what was tracked of it; `launching`: it holds a launch slot."""
        self.sandboxes[tracked.row.id] = tracked
        if launching:
            self._launching.add(tracked.row.id)

    def drop(self, tracked: TrackedSandbox) -> None:
        """Stop tracking a sandbox that needs nothing more, or is in another controller's hands."""
        if self.sandboxes.get(tracked.row.id) is tracked:
            del self.sandboxes[tracked.row.id]
        self.free_slot(tracked)

    def free_slot(self, tracked: TrackedSandbox) -> None:
        """The sandbox no longer holds a launch slot."""
        if tracked.row.id in self._launching:
            self._launching.discard(tracked.row.id)
            self._on_room()

    @property
    def slots_taken(self) -> int:
        """How many launch slots are taken."""
        return len(self._launching)

    def launching(self) -> list[TrackedSandbox]:
        """Return those that hold a launch slot."""
        return [tracked for each in self._launching if (tracked := self.sandboxes.get(each)) is not None]

    def stop(self) -> None:
        """Launch nothing more: the controller is stopping."""
        self._stopping = True

    def next_action(self, tracked: TrackedSandbox) -> Action:
        """Return what is due for it now."""
        context = tracked.context(self.clock(), self._start_deadline, stopping=self._stopping)
        return decide(tracked.row, tracked.runs.values(), context)

    def launch_seconds_left(self, tracked: TrackedSandbox) -> float:
        """Return the seconds until its start deadline."""
        age = (tracked.row.claimed_age or 0.0) + self.clock() - tracked.read_at
        return max(self._start_deadline - age, 0.0)


def _is_news(known: ObservedRun, run: ObservedRun) -> bool:
    if run.phase is Phase.INERT and known.phase is Phase.STARTING:
        return True
    if run.phase is known.phase:
        return (known.waiting, known.permanent, known.ending) != (run.waiting, run.permanent, run.ending)
    return ORDER.index(run.phase) > ORDER.index(known.phase)
