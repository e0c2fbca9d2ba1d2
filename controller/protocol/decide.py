"""The protocol's decisions, pure: a row and what the engine has of it give the next step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from controller.protocol.model import KILL_MARGIN, ObservedRun, Outcome, Phase, Reason, Row, State

RETRY_FIRST, RETRY_MOST = 1.0, 60.0  # seconds before the second attempt; doubled up to the second
REPLACE_DELAY = 1.0  # seconds before an attempt that never started is replaced

RETRYABLE = frozenset(
    {Reason.NON_ZERO_EXIT, Reason.DEADLINE_EXCEEDED, Reason.OOM_KILLED, Reason.KILLED, Reason.EVICTED}
)


class Do(Enum):
    """What comes next for a sandbox."""

    WAIT = auto()
    CREATE = auto()  # make its object, inert
    BIND = auto()  # make `run` the one run that may start
    RELEASE = auto()  # start it
    START = auto()  # write down that it runs
    KILL = auto()  # end it, leaving its outcome to be read
    DISCARD = auto()  # remove a run that is not to start
    RECORD = auto()  # write its outcome
    AGAIN = auto()  # write this attempt's outcome and queue the next
    CLEAN = auto()  # remove its object and write that down
    DROP = auto()  # nothing here is ours to do


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: what to do, to which run, with which outcome."""

    do: Do
    run: ObservedRun | None = None
    outcome: Outcome | None = None
    counted: bool = False
    delay: float = 0.0
    afresh: bool = False  # the next attempt has a start deadline of its own


@dataclass(frozen=True, slots=True)
class Standing:
    """What a controller knows beside the row and the runs."""

    mine: bool  # this controller holds the row's lease
    created: bool = False  # the object was made under this lease; its run may yet appear
    overdue: bool = False  # past the start deadline
    overrun: bool = False  # past its timeout and every margin
    missing: bool = False  # the engine has had no trace of it, twice over a grace
    killed: bool = False  # it was told to end, a moment ago
    doomed: bool = False  # it was told to end, however long ago
    waiting: str | None = None  # why it does not run yet
    unreleased: bool = False  # this controller bound its run, under this lease, and has not released it


WAIT = Step(Do.WAIT)


def decide(row: Row, runs: Collection[ObservedRun], standing: Standing) -> Step:
    """The next step for this row, given every run of its attempt that the engine has."""
    match row.state:
        case State.LAUNCHING | State.RUNNING:
            return _active(row, runs, standing)
        case State.QUEUED:
            return Step(Do.DROP)
        case State.SUCCEEDED | State.FAILED | State.TIMED_OUT | State.CANCELLED | State.LOST:
            return Step(Do.CLEAN)
    assert_never(row.state)


def _active(row: Row, runs: Collection[ObservedRun], standing: Standing) -> Step:
    run = _own(row, runs)
    if row.run_uid is not None or row.cancelled or (standing.mine and standing.overdue):
        for other in runs:  # not before one is bound: whoever slept through its lease might take away another's choice
            if other is not run and other.phase is not Phase.GONE:
                return Step(Do.DISCARD, other)
    if run is None or run.phase is Phase.GONE:
        if run is not None and standing.unreleased:
            return _never_started(row, run, standing)
        return _absent(row, run, standing)
    if run.phase is Phase.INERT:
        return _inert(row, run, standing)
    if run.phase is Phase.NEVER_STARTED:
        return _never_started(row, run, standing)
    if row.run_uid is None and row.cancelled:
        return Step(Do.DISCARD, run)
    if row.run_uid is None:  # it went past its gate before it was bound: it is the one
        return Step(Do.BIND, run)
    match run.phase:
        case Phase.STARTING | Phase.RUNNING:
            return _alive(row, run, standing)
        case Phase.ENDED:
            if run.outcome is None:
                raise ValueError(f"{run} has ended without an outcome")
            return settle(row, _attributed(row, run, run.outcome, standing))
    assert_never(run.phase)


def _own(row: Row, runs: Collection[ObservedRun]) -> ObservedRun | None:
    """The row's run: the bound one, else the one furthest on."""
    if row.run_uid is not None:
        return next((run for run in runs if run.run_uid == row.run_uid), None)
    return min((run for run in runs if run.phase is not Phase.GONE), key=_nearness, default=None)


def _nearness(run: ObservedRun) -> int:
    """Of the runs of an unbound row one that went past its gate is the one; one that never can is so last."""
    return {Phase.INERT: 1, Phase.NEVER_STARTED: 2}.get(run.phase, 0)


def _absent(row: Row, run: ObservedRun | None, standing: Standing) -> Step:
    if row.run_uid is None:
        if row.cancelled:
            return Step(Do.RECORD, outcome=cancelled("before it started"))
        if not standing.mine:
            return WAIT
        if standing.overdue:
            return Step(Do.RECORD, outcome=not_in_time(standing.waiting))
        return WAIT if standing.created and not standing.missing else Step(Do.CREATE)
    if not standing.missing:
        return WAIT
    if row.cancelled:
        return Step(Do.RECORD, run, cancelled("and its object is gone, with its output"))
    if standing.overdue and row.state is State.LAUNCHING:
        message = "not seen to start within the start deadline; whether it began before it was removed is not known"
        return Step(Do.RECORD, run, Outcome(State.LOST, Reason.LOST, message))
    if run is not None:
        message = "its object was removed by somebody else before its end and its output could be read"
        return Step(Do.RECORD, run, Outcome(State.LOST, Reason.DELETED, message))
    message = "its engine has no trace of it; whether its command ended, how, and with what output, is not known"
    return Step(Do.RECORD, run, Outcome(State.LOST, Reason.LOST, message))


def _inert(row: Row, run: ObservedRun, standing: Standing) -> Step:
    if row.cancelled and row.run_uid is None:
        return Step(Do.DISCARD, run)
    if row.state is State.RUNNING:  # its engine was set back to before its start; it did start
        return Step(Do.DISCARD, run)
    if not standing.mine:  # its holder may be about to release it
        return WAIT
    if row.cancelled or standing.overdue:
        return Step(Do.DISCARD, run)
    return Step(Do.BIND if row.run_uid is None else Do.RELEASE, run)


def _alive(row: Row, run: ObservedRun, standing: Standing) -> Step:
    late = standing.overrun or (run.phase is Phase.STARTING and (standing.overdue or run.permanent))
    if row.cancelled or late or standing.doomed:  # one that was told to end is not called running any more
        return WAIT if standing.killed else Step(Do.KILL, run)
    if run.phase is Phase.RUNNING and row.state is State.LAUNCHING:
        return Step(Do.START, run)
    return WAIT


def _never_started(row: Row, run: ObservedRun, standing: Standing) -> Step:
    if row.state is State.RUNNING:  # it cannot have been both: no second try
        message = "it was seen to run, and its engine says that it never did"
        return Step(Do.RECORD, outcome=Outcome(State.LOST, Reason.LOST, message))
    if row.cancelled:
        return Step(Do.RECORD, outcome=cancelled("before it started"))
    if run.permanent:
        return Step(Do.RECORD, outcome=Outcome(State.FAILED, run.timeout_reason or Reason.START_FAILED, run.waiting))
    if standing.overdue:
        return Step(Do.RECORD, outcome=not_in_time(run.waiting or standing.waiting, run.timeout_reason))
    message = "its run was removed or ended before its command started"
    return Step(Do.AGAIN, outcome=Outcome(State.FAILED, Reason.NOT_STARTED, message), delay=REPLACE_DELAY)


def _attributed(row: Row, run: ObservedRun, outcome: Outcome, standing: Standing) -> Outcome:
    """The same; of a run that was killed, what it was killed for where a controller did it. That is told by what the
    next controller finds too (the row, the clock, what the engine keeps): between the kill and its record may lie a
    crash."""
    discarded = outcome.reason is Reason.DELETED and row.state is State.LAUNCHING  # inert, as it seemed, it had begun
    if outcome.reason is not Reason.KILLED and not discarded:
        return outcome
    if row.cancelled:
        return cancelled("while it ran")
    if standing.overrun and _ran_over(row, run):
        message = f"ran past timeout_seconds = {row.timeout_seconds} with its own timer gone, and was killed"
        return Outcome(State.FAILED, Reason.DEADLINE_EXCEEDED, message, outcome.exit_code)
    ended = standing.doomed or run.ending
    if ended and (run.permanent or not standing.overdue):
        why = run.waiting or standing.waiting or "it would not have started"
        message = f"it was given up before it started, and was ended: {why}"
        return Outcome(State.FAILED, run.timeout_reason or Reason.START_FAILED, message)
    if standing.overdue and (ended or row.state is State.LAUNCHING):
        waited = f", after it had waited: {standing.waiting}" if standing.waiting else ""
        message = f"it started too late, past the start deadline, and was ended{waited}"
        return Outcome(State.FAILED, Reason.START_TIMEOUT, message)
    return outcome


def _ran_over(row: Row, run: ObservedRun) -> bool:
    """Whether it ran for longer than its timeout, as far as its engine tells."""
    if run.started_at is None or run.ended_at is None:
        return True
    return (run.ended_at - run.started_at).total_seconds() > row.timeout_seconds


def settle(row: Row, outcome: Outcome) -> Step:
    """What becomes of a row whose run ended so: its outcome, or another attempt."""
    if outcome.reason in RETRYABLE and row.runs + 1 < row.max_attempts and not row.cancelled:
        delay = min(RETRY_FIRST * 2.0**row.runs, RETRY_MOST)
        return Step(Do.AGAIN, outcome=outcome, counted=True, delay=delay)
    return Step(Do.RECORD, outcome=outcome)


def abandon(row: Row, start_deadline: float, *, given_up: bool = False) -> Step:
    """The next step for a row whose engine has no controller, so that nobody can look at its run or end it.

    `start_deadline` in seconds. `given_up`: the engine is gone for good, so nothing runs there any more.
    """
    match row.state:
        case State.QUEUED:
            return Step(Do.DROP)
        case State.SUCCEEDED | State.FAILED | State.TIMED_OUT | State.CANCELLED | State.LOST:
            return Step(Do.CLEAN)
        case State.LAUNCHING | State.RUNNING:
            bound = row.run_uid is not None or row.state is State.RUNNING
            if row.cancelled:
                when = "while its engine had no controller; whether its command ended, and how, is not known"
                return Step(Do.RECORD, outcome=cancelled(when if bound else "before it started"))
            if not bound:  # only what is bound is ever released
                return WAIT if row.leased and not given_up else _unstarted()
            if not given_up and not _is_over(row, start_deadline):
                return WAIT
            return _abandoned_run(row, never_again=given_up or row.state is State.RUNNING)
    assert_never(row.state)


def _unstarted() -> Step:
    message = "its engine has no controller any more, and had not started it"
    return Step(Do.AGAIN, outcome=Outcome(State.FAILED, Reason.NOT_STARTED, message), afresh=True)


def _abandoned_run(row: Row, *, never_again: bool) -> Step:
    """`never_again`: it will not start any more, wherever it is; another attempt may."""
    message = "its engine has no controller any more; whether its command ended, and how, is not known"
    outcome = Outcome(State.LOST, Reason.LOST, message)
    if never_again and row.runs + 1 < row.max_attempts:
        return Step(Do.AGAIN, outcome=outcome, counted=True, delay=REPLACE_DELAY)
    return Step(Do.RECORD, outcome=outcome)


def _is_over(row: Row, start_deadline: float) -> bool:
    """Whether a run that was started, wherever it is, has been ended by its own timer, with every margin."""
    if row.started_age is not None:
        return row.started_age > row.timeout_seconds + KILL_MARGIN
    return row.claimed_age is None or row.claimed_age > start_deadline + row.timeout_seconds + KILL_MARGIN


def cancelled(when: str) -> Outcome:
    """The outcome of a sandbox that its requester gave up."""
    return Outcome(State.CANCELLED, Reason.CANCELLED, f"cancelled {when}")


def not_in_time(waiting: str | None, timeout_reason: Reason | None = None) -> Outcome:
    """The outcome of a sandbox that did not start within the start deadline, for want of what it waited for."""
    why = f": {waiting}" if waiting else ""
    return Outcome(State.FAILED, timeout_reason or Reason.START_TIMEOUT, f"not started within the start deadline{why}")
