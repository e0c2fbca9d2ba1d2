"""The protocol's decisions, pure: a row and the observed runs of its attempt give the next action."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import assert_never

from controller.protocol import actions
from controller.protocol.model import KILL_MARGIN, ObservedRun, Outcome, Phase, Reason, Row, State

RETRY_FIRST, RETRY_MOST = 1.0, 60.0  # seconds before the second attempt; doubled up to the second
REPLACE_DELAY = 1.0  # seconds before an attempt that never started is replaced

RETRYABLE = frozenset(
    {Reason.NON_ZERO_EXIT, Reason.DEADLINE_EXCEEDED, Reason.OOM_KILLED, Reason.KILLED, Reason.EVICTED}
)


@dataclass(frozen=True, slots=True)
class Context:
    """What a controller knows beside the row and the observed runs; none of it is stored in the row."""

    holds_lease: bool
    created: bool = False  # the object was created under this lease; its run may appear later
    past_start_deadline: bool = False
    past_timeout: bool = False  # past timeout_seconds and every margin
    missing: bool = False  # two lists, a grace apart, lack the run
    kill_pending: bool = False  # a kill was sent a moment ago
    kill_sent: bool = False  # a kill was sent, however long ago
    waiting: str | None = None  # why it does not run yet
    unreleased: bool = False  # this controller bound the run under this lease, and no release of it may have started it


def decide(row: Row, runs: Collection[ObservedRun], context: Context) -> actions.Action:
    """Return the next action for this row, given every run of its attempt that the engine has."""
    match row.state:
        case State.LAUNCHING | State.RUNNING:
            return _active(row, runs, context)
        case State.QUEUED:
            return actions.Drop()
        case State.SUCCEEDED | State.FAILED | State.TIMED_OUT | State.CANCELLED | State.LOST:
            return actions.Clean()
    assert_never(row.state)


def _active(row: Row, runs: Collection[ObservedRun], context: Context) -> actions.Action:
    run = _own(row, runs)
    if row.run_uid is not None or row.cancelled or (context.holds_lease and context.past_start_deadline):
        # Only after binding: a controller whose lease has expired must not delete the run that another one chose.
        for other in runs:
            if other is not run and other.phase is not Phase.GONE:
                return actions.Discard(other)
    if run is None or run.phase is Phase.GONE:
        if run is not None and context.unreleased:
            return _never_started(row, run, context)
        return _absent(row, run, context)
    if run.phase is Phase.INERT:
        return _inert(row, run, context)
    if run.phase is Phase.NEVER_STARTED:
        return _never_started(row, run, context)
    if row.run_uid is None and row.cancelled:
        return actions.Discard(run)
    if row.run_uid is None:  # it passed its gate before it was bound, so no other may
        return actions.Bind(run)
    match run.phase:
        case Phase.STARTING | Phase.RUNNING:
            return _alive(row, run, context)
        case Phase.ENDED:
            if run.outcome is None:
                raise ValueError(f"{run} has ended without an outcome")
            return resolve_outcome(row, _attributed(row, run, run.outcome, context))
    assert_never(run.phase)


def _own(row: Row, runs: Collection[ObservedRun]) -> ObservedRun | None:
    """Return the row's run: the bound one, else the preferred one of those that exist."""
    if row.run_uid is not None:
        return next((run for run in runs if run.run_uid == row.run_uid), None)
    return min((run for run in runs if run.phase is not Phase.GONE), key=_preference, default=None)


def _preference(run: ObservedRun) -> int:
    """Order the runs of an unbound row: already past the gate, then gated, then unable to start."""
    return {Phase.INERT: 1, Phase.NEVER_STARTED: 2}.get(run.phase, 0)


def _absent(row: Row, run: ObservedRun | None, context: Context) -> actions.Action:
    if row.run_uid is None:
        if row.cancelled:
            return actions.Record(cancelled("before it started"))
        if not context.holds_lease:
            return actions.Wait()
        if context.past_start_deadline:
            return actions.Record(not_in_time(context.waiting))
        return actions.Wait() if context.created and not context.missing else actions.Create()
    if not context.missing:
        return actions.Wait()
    if row.cancelled:
        return actions.Record(cancelled("and its object is gone, with its output"))
    if context.past_start_deadline and row.state is State.LAUNCHING:
        message = "not seen to start within the start deadline; whether it began before it was removed is not known"
        return actions.Record(Outcome(State.LOST, Reason.LOST, message))
    if run is not None:
        message = "its object was removed by somebody else before its end and its output could be read"
        return actions.Record(Outcome(State.LOST, Reason.DELETED, message))
    message = "its engine has no trace of it; whether its command ended, how, and with what output, is not known"
    return actions.Record(Outcome(State.LOST, Reason.LOST, message))


def _inert(row: Row, run: ObservedRun, context: Context) -> actions.Action:
    if row.cancelled and row.run_uid is None:
        return actions.Discard(run)
    if row.state is State.RUNNING:  # its engine was restored to a state before the start, which did happen
        return actions.Discard(run)
    if not context.holds_lease:  # the lease's holder may be about to release it
        return actions.Wait()
    if row.cancelled or context.past_start_deadline:
        return actions.Discard(run)
    return actions.Bind(run) if row.run_uid is None else actions.Release(run)


def _alive(row: Row, run: ObservedRun, context: Context) -> actions.Action:
    late = context.past_timeout or (run.phase is Phase.STARTING and (context.past_start_deadline or run.permanent))
    if row.cancelled or late or context.kill_sent:  # a killed run is not marked running
        return actions.Wait() if context.kill_pending else actions.Kill(run)
    if run.phase is Phase.RUNNING and row.state is State.LAUNCHING:
        return actions.MarkRunning(run)
    return actions.Wait()


def _never_started(row: Row, run: ObservedRun, context: Context) -> actions.Action:
    if row.state is State.RUNNING:  # the two contradict each other: no second attempt
        message = "it was seen to run, and its engine says that it never did"
        return actions.Record(Outcome(State.LOST, Reason.LOST, message))
    if row.cancelled:
        return actions.Record(cancelled("before it started"))
    if run.permanent:
        return actions.Record(Outcome(State.FAILED, run.timeout_reason or Reason.START_FAILED, run.waiting))
    if context.past_start_deadline:
        return actions.Record(not_in_time(run.waiting or context.waiting, run.timeout_reason))
    message = "its run was removed or ended before its command started"
    return actions.Retry(Outcome(State.FAILED, Reason.NOT_STARTED, message), counted=False, delay=REPLACE_DELAY)


def _attributed(row: Row, run: ObservedRun, outcome: Outcome, context: Context) -> Outcome:
    """Return the outcome, with the cause of a controller's own kill in place of "killed".

    The cause follows from facts that the next controller finds as well (the row, the clock, what the engine keeps),
    because a crash may lie between the kill and its record.
    """
    discarded = outcome.reason is Reason.DELETED and row.state is State.LAUNCHING  # taken for inert, and had begun
    if outcome.reason is not Reason.KILLED and not discarded:
        return outcome
    if row.cancelled:
        return cancelled("while it ran")
    if context.past_timeout and _ran_over(row, run):
        message = f"ran past timeout_seconds = {row.timeout_seconds} with its own timer gone, and was killed"
        return Outcome(State.FAILED, Reason.DEADLINE_EXCEEDED, message, outcome.exit_code)
    ended = context.kill_sent or run.ending
    if ended and (run.permanent or not context.past_start_deadline):
        why = run.waiting or context.waiting or "it would not have started"
        message = f"it was given up before it started, and was ended: {why}"
        return Outcome(State.FAILED, run.timeout_reason or Reason.START_FAILED, message)
    if context.past_start_deadline and (ended or row.state is State.LAUNCHING):
        waited = f", after it had waited: {context.waiting}" if context.waiting else ""
        message = f"it started too late, past the start deadline, and was ended{waited}"
        return Outcome(State.FAILED, Reason.START_TIMEOUT, message)
    return outcome


def _ran_over(row: Row, run: ObservedRun) -> bool:
    """Return whether it ran for longer than its timeout, as far as its engine reports."""
    if run.started_at is None or run.ended_at is None:
        return True
    return (run.ended_at - run.started_at).total_seconds() > row.timeout_seconds


def resolve_outcome(row: Row, outcome: Outcome) -> actions.Record | actions.Retry:
    """Return what follows from a run's outcome: the sandbox's outcome, or another attempt if `max_attempts` allows."""
    if outcome.reason in RETRYABLE and row.failed_attempts + 1 < row.max_attempts and not row.cancelled:
        delay = min(RETRY_FIRST * 2.0**row.failed_attempts, RETRY_MOST)
        return actions.Retry(outcome, counted=True, delay=delay)
    return actions.Record(outcome)


def abandon(row: Row, start_deadline: float, *, given_up: bool = False) -> actions.Settlement:
    """Return the next action for a row whose engine has no controller, so that nobody can observe or end its run.

    `start_deadline` is in seconds. `given_up`: the engine is gone for good, so nothing runs there any more.
    """
    match row.state:
        case State.QUEUED:
            return actions.Drop()
        case State.SUCCEEDED | State.FAILED | State.TIMED_OUT | State.CANCELLED | State.LOST:
            return actions.Clean()
        case State.LAUNCHING | State.RUNNING:
            bound = row.run_uid is not None or row.state is State.RUNNING
            if row.cancelled:
                when = "while its engine had no controller; whether its command ended, and how, is not known"
                return actions.Record(cancelled(when if bound else "before it started"))
            if not bound:  # only a bound run is ever released
                return actions.Wait() if row.leased and not given_up else _unstarted()
            if not given_up and not _is_over(row, start_deadline):
                return actions.Wait()
            return _abandoned_run(row, never_again=given_up or row.state is State.RUNNING)
    assert_never(row.state)


def _unstarted() -> actions.Retry:
    message = "its engine has no controller any more, and had not started it"
    return actions.Retry(Outcome(State.FAILED, Reason.NOT_STARTED, message), counted=False, new_start_deadline=True)


def _abandoned_run(row: Row, *, never_again: bool) -> actions.Record | actions.Retry:
    """Return how a bound row of an abandoned engine ends. `never_again`: its run cannot start any more, wherever it
    is, so that another attempt may."""
    message = "its engine has no controller any more; whether its command ended, and how, is not known"
    outcome = Outcome(State.LOST, Reason.LOST, message)
    if never_again and row.failed_attempts + 1 < row.max_attempts:
        return actions.Retry(outcome, counted=True, delay=REPLACE_DELAY)
    return actions.Record(outcome)


def _is_over(row: Row, start_deadline: float) -> bool:
    """Return whether the own timer of a run, wherever it is, must have ended it by now, with every margin."""
    if row.started_age is not None:
        return row.started_age > row.timeout_seconds + KILL_MARGIN
    return row.claimed_age is None or row.claimed_age > start_deadline + row.timeout_seconds + KILL_MARGIN


def cancelled(when: str) -> Outcome:
    """Return the outcome of a sandbox that its requester cancelled."""
    return Outcome(State.CANCELLED, Reason.CANCELLED, f"cancelled {when}")


def not_in_time(waiting: str | None, timeout_reason: Reason | None = None) -> Outcome:
    """Return the outcome of a sandbox that did not start within the start deadline, with what it waited for."""
    why = f": {waiting}" if waiting else ""
    return Outcome(State.FAILED, timeout_reason or Reason.START_TIMEOUT, f"not started within the start deadline{why}")
