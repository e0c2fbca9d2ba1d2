"""The protocol's decisions: case by case, over every combination, and by two controllers in every order of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, product
from typing import Any
from uuid import UUID

import pytest

from controller.protocol.actions import (
    Action,
    Bind,
    Clean,
    Create,
    Discard,
    Drop,
    Kill,
    MarkRunning,
    Record,
    Release,
    Retry,
    Wait,
)
from controller.protocol.decide import REPLACE_DELAY, RETRY_MOST, RETRYABLE, Context, decide, resolve_outcome
from controller.protocol.model import (
    Key,
    ObservedRun,
    Outcome,
    Phase,
    Reason,
    Row,
    State,
    exit_outcome,
    timeout_outcome,
)
from controller.reconcile.tracker import TrackedSandbox
from tests.support import protocol_model
from tests.support.protocol_model import Rules

ROW = Row(
    id=UUID(int=7),
    attempt=1,
    epoch=1,
    state=State.LAUNCHING,
    run_uid=None,
    claimed_by="me",
    cancelled=False,
    max_attempts=1,
    failed_attempts=0,
    timeout_seconds=60,
    claimed_age=1.0,
    started_age=None,
)
BOUND = replace(ROW, run_uid="a")
RUNNING = replace(BOUND, state=State.RUNNING)
MINE, OTHERS = Context(holds_lease=True), Context(holds_lease=False)
DELETED = Outcome(State.FAILED, Reason.DELETED, "deleted by somebody else", 137)
KILLED = Outcome(State.FAILED, Reason.KILLED, "killed from outside", 137)
LOST = Outcome(State.LOST, Reason.NODE_LOST, "its node went away")


def seen(uid: str, phase: Phase, outcome: Outcome | None = None) -> ObservedRun:
    if phase is Phase.ENDED and outcome is None:
        outcome = exit_outcome(0)
    return ObservedRun(Key(ROW.id, 1), uid, phase, outcome)


INERT, STARTING, ALIVE, NEVER, GONE = (
    seen("a", phase) for phase in (Phase.INERT, Phase.STARTING, Phase.RUNNING, Phase.NEVER_STARTED, Phase.GONE)
)
DONE, BAD = seen("a", Phase.ENDED), seen("a", Phase.ENDED, exit_outcome(3))


def cancelled(row: Row) -> Row:
    return replace(row, cancelled=True)


CASES: dict[str, tuple[Row, list[ObservedRun], Context, type[Action]]] = {
    # 2: create, inert
    "claimed: make it": (ROW, [], MINE, Create),
    "in other hands: not ours to make": (ROW, [], OTHERS, Wait),
    "made, its run still to appear": (ROW, [], Context(holds_lease=True, created=True), Wait),
    "made, and lost before it was bound: make it again": (
        ROW,
        [],
        Context(holds_lease=True, created=True, missing=True),
        Create,
    ),
    "only a removed run is left: make it": (ROW, [GONE], MINE, Create),
    "too late to make it": (ROW, [], Context(holds_lease=True, past_start_deadline=True), Record),
    # 3: bind, release
    "bind what was made": (ROW, [INERT], MINE, Bind),
    "do not bind in other hands": (ROW, [INERT], OTHERS, Wait),
    "release what is bound": (BOUND, [INERT], MINE, Release),
    "do not release in other hands": (BOUND, [INERT], OTHERS, Wait),
    "too late to bind: it is never to start": (
        ROW,
        [INERT],
        Context(holds_lease=True, past_start_deadline=True),
        Discard,
    ),
    "too late to release: it is never to start": (
        BOUND,
        [INERT],
        Context(holds_lease=True, past_start_deadline=True),
        Discard,
    ),
    "another run of the attempt goes first": (BOUND, [INERT, seen("b", Phase.INERT)], MINE, Discard),
    "of two unbound runs one is bound before the other goes": (ROW, [INERT, seen("b", Phase.INERT)], MINE, Bind),
    "one that can start is bound before one that cannot": (ROW, [NEVER, seen("b", Phase.INERT)], MINE, Bind),
    "its engine was set back to before its start": (RUNNING, [INERT], OTHERS, Discard),
    "what was seen to run is no more unstarted": (RUNNING, [NEVER], OTHERS, Record),
    "past its gate before it was bound: it is the one": (ROW, [ALIVE], OTHERS, Bind),
    "ended before it was bound: it is the one": (ROW, [DONE], OTHERS, Bind),
    # 4 and 5: run, observe
    "starting: wait": (BOUND, [STARTING], MINE, Wait),
    "seen running: write it down": (BOUND, [ALIVE], OTHERS, MarkRunning),
    "running, and written down": (RUNNING, [ALIVE], OTHERS, Wait),
    "starting for too long": (BOUND, [STARTING], Context(holds_lease=True, past_start_deadline=True), Kill),
    "the start deadline does not end what runs": (
        RUNNING,
        [ALIVE],
        Context(holds_lease=False, past_start_deadline=True),
        Wait,
    ),
    "past every timer": (RUNNING, [ALIVE], Context(holds_lease=False, past_timeout=True), Kill),
    "seen running after it was told to end: not called running": (
        BOUND,
        [ALIVE],
        Context(holds_lease=True, past_start_deadline=True, kill_pending=True, kill_sent=True),
        Wait,
    ),
    "told to end long ago, and runs all the same": (
        BOUND,
        [ALIVE],
        Context(holds_lease=True, past_start_deadline=True, kill_sent=True),
        Kill,
    ),
    "told to end a moment ago": (
        RUNNING,
        [ALIVE],
        Context(holds_lease=False, past_timeout=True, kill_pending=True),
        Wait,
    ),
    # 6: record
    "ended well": (RUNNING, [DONE], OTHERS, Record),
    "ended badly": (RUNNING, [BAD], OTHERS, Record),
    "ended before it was seen running": (BOUND, [DONE], OTHERS, Record),
    "no trace, once": (RUNNING, [], OTHERS, Wait),
    "no trace, twice over a grace": (RUNNING, [], Context(holds_lease=False, missing=True), Record),
    "removed by somebody, once": (RUNNING, [GONE], OTHERS, Wait),
    "removed before its holder released it": (
        BOUND,
        [GONE],
        Context(holds_lease=True, missing=True, unreleased=True),
        Retry,
    ),
    "removed by somebody, twice": (RUNNING, [GONE], Context(holds_lease=False, missing=True), Record),
    # 7: not started, retry
    "never started: replace it": (BOUND, [NEVER], OTHERS, Retry),
    "never started, too late to replace": (
        BOUND,
        [NEVER],
        Context(holds_lease=False, past_start_deadline=True),
        Record,
    ),
    "ended badly, with attempts left": (replace(RUNNING, max_attempts=2), [BAD], OTHERS, Retry),
    "ended badly, the last attempt": (replace(RUNNING, max_attempts=2, failed_attempts=1), [BAD], OTHERS, Record),
    "ended well, with attempts left": (replace(RUNNING, max_attempts=2), [DONE], OTHERS, Record),
    "lost is never run again": (
        replace(RUNNING, max_attempts=9),
        [seen("a", Phase.ENDED, LOST)],
        OTHERS,
        Record,
    ),
    # 8: cancel
    "cancelled before it was made": (cancelled(ROW), [], OTHERS, Record),
    "cancelled before it was bound": (cancelled(ROW), [INERT], OTHERS, Discard),
    "cancelled before release": (cancelled(BOUND), [INERT], MINE, Discard),
    "cancelled, and its holder may be releasing it": (cancelled(BOUND), [INERT], OTHERS, Wait),
    "cancelled while it starts": (cancelled(BOUND), [STARTING], OTHERS, Kill),
    "cancelled while it runs": (cancelled(RUNNING), [ALIVE], OTHERS, Kill),
    "cancelled and told to end": (cancelled(RUNNING), [ALIVE], Context(holds_lease=False, kill_pending=True), Wait),
    "cancelled, and never started": (cancelled(BOUND), [NEVER], OTHERS, Record),
    "cancelled, with attempts left": (cancelled(replace(RUNNING, max_attempts=5)), [BAD], OTHERS, Record),
    # 9: clean
    "recorded: remove its object": (replace(BOUND, state=State.SUCCEEDED), [DONE], OTHERS, Clean),
    "recorded, and its object is gone": (replace(BOUND, state=State.LOST), [], OTHERS, Clean),
    "queued again, elsewhere": (replace(ROW, state=State.QUEUED), [INERT], MINE, Drop),
}


@pytest.mark.parametrize("case", CASES)
def test_each_line_of_the_protocol(case: str) -> None:
    row, runs, context, expected = CASES[case]
    assert type(decide(row, runs, context)) is expected


def test_outcomes_say_what_happened() -> None:
    def outcome(row: Row, runs: list[ObservedRun], context: Context = OTHERS) -> tuple[State, Reason]:
        action = decide(row, runs, context)
        assert isinstance(action, Record | Retry)
        return action.outcome.state, action.outcome.reason

    missing, overrun = Context(holds_lease=False, missing=True), Context(holds_lease=False, past_timeout=True)
    killed = seen("a", Phase.ENDED, KILLED)
    assert outcome(RUNNING, [], missing) == (State.LOST, Reason.LOST)
    assert outcome(RUNNING, [GONE], missing) == (State.LOST, Reason.DELETED)
    assert outcome(cancelled(RUNNING), [], missing) == (State.CANCELLED, Reason.CANCELLED)
    assert outcome(RUNNING, [killed]) == (State.FAILED, Reason.KILLED)
    assert outcome(cancelled(RUNNING), [killed]) == (State.CANCELLED, Reason.CANCELLED)
    assert outcome(RUNNING, [killed], overrun) == (State.FAILED, Reason.DEADLINE_EXCEEDED)
    assert outcome(BOUND, [killed]) == (State.FAILED, Reason.KILLED)
    assert outcome(cancelled(RUNNING), [BAD]) == (State.FAILED, Reason.NON_ZERO_EXIT)  # it ended first
    assert outcome(cancelled(RUNNING), [DONE]) == (State.SUCCEEDED, Reason.COMPLETED)
    assert outcome(RUNNING, [seen("a", Phase.ENDED, timeout_outcome(60))]) == (
        State.TIMED_OUT,
        Reason.DEADLINE_EXCEEDED,
    )
    waiting = decide(ROW, [], Context(holds_lease=True, past_start_deadline=True, waiting="no node has room"))
    assert isinstance(waiting, Record)
    assert waiting.outcome.reason is Reason.START_TIMEOUT
    assert waiting.outcome.message == "not started within the start deadline: no node has room"


def ended(uid: str, outcome: Outcome, seconds: float, **more: Any) -> ObservedRun:
    """A run that ended so after that time by its engine's clock."""
    began = datetime(2030, 1, 1, tzinfo=UTC)
    return replace(
        seen(uid, Phase.ENDED, outcome), started_at=began, ended_at=began + timedelta(seconds=seconds), **more
    )


LATE, DOOMED = (
    Context(holds_lease=True, past_start_deadline=True),
    Context(holds_lease=True, past_start_deadline=True, kill_sent=True),
)
GIVEN_UP = {"permanent": True, "timeout_reason": Reason.IMAGE_PULL_FAILED, "waiting": "no such image"}
KILLS: dict[str, tuple[Row, ObservedRun, Context, Reason, str]] = {
    "late, ended by this controller": (BOUND, ended("a", KILLED, 1), DOOMED, Reason.START_TIMEOUT, "started too late"),
    "late, ended by one that crashed": (BOUND, ended("a", KILLED, 1), LATE, Reason.START_TIMEOUT, "started too late"),
    "late, by one that crashed, called running since": (
        RUNNING,
        ended("a", KILLED, 1, ending=True),
        replace(LATE, holds_lease=False),
        Reason.START_TIMEOUT,
        "started too late",
    ),
    "late, after it had waited": (
        BOUND,
        ended("a", KILLED, 1),
        replace(DOOMED, waiting="no node has room"),
        Reason.START_TIMEOUT,
        "after it had waited: no node has room",
    ),
    "given up, and started all the same": (
        BOUND,
        ended("a", KILLED, 1, **GIVEN_UP),
        replace(DOOMED, past_start_deadline=False),
        Reason.IMAGE_PULL_FAILED,
        "no such image",
    ),
    "given up, past the start deadline by now": (
        BOUND,
        ended("a", KILLED, 1, **GIVEN_UP),
        DOOMED,
        Reason.IMAGE_PULL_FAILED,
        "no such image",
    ),
    "given up by one that crashed": (
        BOUND,
        ended("a", KILLED, 1, ending=True),
        MINE,
        Reason.START_FAILED,
        "given up before it started",
    ),
    "past every timer": (
        RUNNING,
        ended("a", KILLED, 99),
        Context(holds_lease=False, past_timeout=True),
        Reason.DEADLINE_EXCEEDED,
        "its own timer gone",
    ),
    "by somebody else while it ran": (RUNNING, ended("a", KILLED, 1), LATE, Reason.KILLED, "from outside"),
    "by somebody else in time, found long after": (
        RUNNING,
        ended("a", KILLED, 1),
        Context(holds_lease=False, past_timeout=True),
        Reason.KILLED,
        "from outside",
    ),
    "late, by the removal of what had seemed inert": (
        BOUND,
        ended("a", DELETED, 1),
        LATE,
        Reason.START_TIMEOUT,
        "started too late",
    ),
    "removed by somebody else while it ran": (RUNNING, ended("a", DELETED, 1), LATE, Reason.DELETED, "somebody else"),
    "late, and ended by itself": (BOUND, ended("a", exit_outcome(0), 1), DOOMED, Reason.COMPLETED, ""),
    "late, and ended by its own timeout": (
        BOUND,
        ended("a", timeout_outcome(60), 60),
        DOOMED,
        Reason.DEADLINE_EXCEEDED,
        "longer than timeout_seconds",
    ),
}


@pytest.mark.parametrize("case", KILLS)
def test_a_kill_is_told_as_whose_it_was(case: str) -> None:
    row, run, context, reason, words = KILLS[case]
    action = decide(row, [run], context)
    assert isinstance(action, Record | Retry)
    assert action.outcome.reason is reason
    assert words in (action.outcome.message or "")


def test_retries_back_off_up_to_a_minute() -> None:
    def delay(failed: int) -> float:
        action = resolve_outcome(replace(RUNNING, max_attempts=100, failed_attempts=failed), exit_outcome(1))
        assert isinstance(action, Retry)
        return action.delay

    delays = [delay(failed) for failed in range(99)]
    assert delays[:3] == [1, 2, 4]
    assert max(delays) == delays[-1] == RETRY_MOST
    replaced = decide(BOUND, [NEVER], OTHERS)
    assert isinstance(replaced, Retry)
    assert replaced.delay == REPLACE_DELAY > 0


NO_IMAGE = Reason.IMAGE_PULL_FAILED
ENDINGS = (exit_outcome(0), exit_outcome(1), KILLED, LOST)
CONTEXTS = [
    Context(mine, created, overdue, overrun, missing, killed, doomed, unreleased=unreleased)
    for mine, created, overdue, overrun, missing, killed, doomed, unreleased in product((False, True), repeat=8)
    if doomed or not killed
]


def rows() -> Iterator[Row]:
    for state, uid, asked, (most, failed) in product(State, (None, "a"), (False, True), ((1, 0), (2, 0), (2, 1))):
        if uid is not None or state is not State.RUNNING:  # nothing runs unbound
            yield replace(ROW, state=state, run_uid=uid, cancelled=asked, max_attempts=most, failed_attempts=failed)


def looks() -> list[tuple[ObservedRun, ...]]:
    """Every pair of runs that an engine may show, or one, or none."""

    def of(uid: str) -> list[tuple[ObservedRun, ...]]:
        others = [(seen(uid, phase),) for phase in Phase if phase is not Phase.ENDED]
        permanent = [
            replace(seen(uid, phase), timeout_reason=NO_IMAGE, permanent=True)
            for phase in (Phase.STARTING, Phase.NEVER_STARTED)
        ]
        given_up = [(run,) for run in permanent]
        return [(), *others, *given_up, *((seen(uid, Phase.ENDED, ending),) for ending in ENDINGS)]

    return [tuple(chain(*pair)) for pair in product(of("a"), of("b"))]


def test_no_combination_breaks_a_promise() -> None:
    for row, runs in product(rows(), looks()):
        for context in CONTEXTS:
            action = decide(row, runs, context)
            assert promises_kept(row, runs, context, action), (row, runs, context, action)


def promises_kept(row: Row, runs: tuple[ObservedRun, ...], context: Context, action: Action) -> bool:
    if row.state.terminal:
        return action == Clean()
    if row.state is State.QUEUED:
        return action == Drop()
    there = [run for run in runs if run.phase is not Phase.GONE]
    own = next((run for run in runs if run.run_uid == row.run_uid), None)
    launch = context.holds_lease and not row.cancelled and not context.past_start_deadline
    alone = not there or there == [own] or (row.run_uid is None and len(there) == 1)
    if alone and own is not None and own.phase is Phase.ENDED and not isinstance(action, Record | Retry):
        return False  # what ended is written down, whatever else is true
    match action:
        case Create():
            return launch and row.run_uid is None and not there
        case Bind(run):
            past_gate = [one for one in there if one.phase not in (Phase.INERT, Phase.NEVER_STARTED)]
            furthest = run in past_gate or not past_gate
            return row.run_uid is None and furthest and (launch or run.phase is not Phase.INERT)
        case Release(run):
            return launch and run.run_uid == row.run_uid and run.phase is Phase.INERT and alone
        case MarkRunning(run):
            return (
                run is own
                and own is not None
                and own.phase is Phase.RUNNING
                and row.state is State.LAUNCHING
                and not context.kill_sent
            )
        case Kill(run):
            late = run.phase is Phase.STARTING and (context.past_start_deadline or run.permanent)
            due = row.cancelled or context.past_timeout or late or context.kill_sent
            return run is own and run.phase in (Phase.STARTING, Phase.RUNNING) and due and not context.kill_pending
        case Discard(run):
            if run.run_uid == row.run_uid:  # the bound run goes only unstarted, and by its holder
                set_back = row.state is State.RUNNING
                return run.phase is Phase.INERT and (set_back or (context.holds_lease and not launch))
            given_up = row.cancelled or (context.holds_lease and context.past_start_deadline)
            return run.phase is not Phase.GONE and (row.run_uid is not None or given_up)
        case Retry(outcome, counted):
            none_started = bool(there) and all(one.phase is Phase.NEVER_STARTED for one in there)
            removed_unreleased = unreleased(there, own, context)
            if row.cancelled or not (alone or (row.run_uid is None and none_started)):
                return False
            if counted:
                ended = own is not None and own.phase is Phase.ENDED
                return ended and outcome.reason in RETRYABLE and row.failed_attempts + 1 < row.max_attempts
            never = none_started or removed_unreleased
            permanent = all(one.permanent for one in [*there, own] if one is not None and own in (None, one))
            untried = row.state is State.LAUNCHING and not context.past_start_deadline and not permanent
            return never and outcome.reason is Reason.NOT_STARTED and untried
        case Record(outcome):
            ended = own is not None and own.phase is Phase.ENDED
            never = bool(there) and all(one.phase is Phase.NEVER_STARTED for one in there)
            permanent = never and outcome.reason is NO_IMAGE and any(one.permanent for one in there)
            never |= unreleased(there, own, context)
            return (
                outcome.state.terminal
                and alone_or_never(row, there, own)
                and {
                    State.LOST: (context.missing and row.run_uid is not None)
                    or ended
                    or (never and row.state is State.RUNNING),
                    State.CANCELLED: row.cancelled,
                    State.SUCCEEDED: ended,
                    State.TIMED_OUT: ended,
                    State.FAILED: ended
                    or permanent
                    or (context.past_start_deadline and outcome.reason is Reason.START_TIMEOUT),
                }.get(outcome.state, False)
            )
        case Wait():
            return may_wait(row, there, own, context)
        case Clean() | Drop():
            return False


def unreleased(there: list[ObservedRun], own: ObservedRun | None, context: Context) -> bool:
    """Its one run was removed, and the only controller that could have released it had not."""
    return not there and own is not None and own.phase is Phase.GONE and context.unreleased


def alone_or_never(row: Row, there: list[ObservedRun], own: ObservedRun | None) -> bool:
    """No run is forgotten: others were discarded before."""
    return (
        not there or there == [own] or (row.run_uid is None and {run.phase for run in there} == {Phase.NEVER_STARTED})
    )


def may_wait(row: Row, there: list[ObservedRun], own: ObservedRun | None, context: Context) -> bool:
    """Something else must be able to move it on: a holder, the engine, the clock or the next look."""
    if own is None or own.phase is Phase.GONE:
        if row.run_uid is not None:
            return not context.missing and (own is None or not context.unreleased)
        inert = any(run.phase is Phase.INERT for run in there)
        return not context.holds_lease or (not inert and context.created and not context.missing)
    if own.phase is Phase.INERT:
        return not context.holds_lease
    late = context.past_start_deadline and own.phase is Phase.STARTING
    due = row.cancelled or context.past_timeout or late or context.kill_sent
    if due:
        return context.kill_pending
    return own.phase is Phase.STARTING or row.state is State.RUNNING


@pytest.mark.timeout(400)  # 300,000 worlds take 20 s of a core, and more of a busy one
@pytest.mark.parametrize(("max_attempts", "faults"), [(1, 2), (2, 1)])
def test_two_controllers_start_an_attempt_once_and_end_every_row(max_attempts: int, faults: int) -> None:
    graph = protocol_model.explore(max_attempts, faults)
    assert len(graph) > 10_000
    assert not protocol_model.stuck(graph)


class BelievesOldSights(TrackedSandbox):
    """Once a release was answered, an old sight of the run says that it has not begun."""

    def on_released(self, run: ObservedRun) -> None:
        unreleased = self.unreleased
        super().on_released(run)
        self.unreleased = unreleased


class ForgetsUnansweredReleases(TrackedSandbox):
    """A release without an answer did not take effect."""

    def on_release_unanswered(self) -> None:
        pass


class BelievesDeletions(TrackedSandbox):
    """A bound run that was deleted while it seemed inert never started."""

    def on_discarded(self, run: ObservedRun) -> None:
        self.unreleased = True
        super().on_discarded(run)


class KeepsForeignRows(TrackedSandbox):
    """A row that another controller took over is still this controller's."""

    def is_same_claim(self, row: Row) -> bool:
        return row.attempt == self.row.attempt


class BelievesWhatWasMissing(TrackedSandbox):
    """A run that was missing before a take-over still is."""

    def on_claimed(self, *claimed: Any, **lease: Any) -> None:
        missing = self.missing
        super().on_claimed(*claimed, **lease)
        self.missing = missing


BROKEN_RULES = {
    "an answered release is no doubt": Rules(tracked=BelievesOldSights),
    "an unanswered release is no doubt": Rules(tracked=ForgetsUnansweredReleases),
    "a deletion is a proof": Rules(tracked=BelievesDeletions),
    "an epoch is no fence": Rules(tracked=KeepsForeignRows, fenced=False),
    "a take-over forgets nothing": Rules(tracked=BelievesWhatWasMissing),
    "an engine forgets kills": Rules(marked=False),
    "another engine's bound row counts as never started": Rules(proven=False),
}


@pytest.mark.parametrize("rule", BROKEN_RULES)
def test_the_model_finds_what_a_missing_rule_breaks(rule: str) -> None:
    with pytest.raises(protocol_model.Broken):
        protocol_model.explore(1, 2, BROKEN_RULES[rule])
