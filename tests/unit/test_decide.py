"""The protocol's decisions: case by case, over every combination, and by two controllers in every order of events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, product
from typing import Any
from uuid import UUID

import pytest

from controller.protocol.decide import REPLACE_DELAY, RETRY_MOST, RETRYABLE, Do, Standing, Step, decide, settle
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
from tests.support import protocol_model

ROW = Row(
    id=UUID(int=7),
    attempt=1,
    epoch=1,
    state=State.LAUNCHING,
    run_uid=None,
    claimed_by="me",
    cancelled=False,
    max_attempts=1,
    runs=0,
    timeout_seconds=60,
    claimed_age=1.0,
    started_age=None,
)
BOUND = replace(ROW, run_uid="a")
RUNNING = replace(BOUND, state=State.RUNNING)
MINE, OTHERS = Standing(mine=True), Standing(mine=False)
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


CASES: dict[str, tuple[Row, list[ObservedRun], Standing, Do]] = {
    # 2: create, inert
    "claimed: make it": (ROW, [], MINE, Do.CREATE),
    "in other hands: not ours to make": (ROW, [], OTHERS, Do.WAIT),
    "made, its run still to appear": (ROW, [], Standing(mine=True, created=True), Do.WAIT),
    "made, and lost before it was bound: make it again": (
        ROW,
        [],
        Standing(mine=True, created=True, missing=True),
        Do.CREATE,
    ),
    "only a removed run is left: make it": (ROW, [GONE], MINE, Do.CREATE),
    "too late to make it": (ROW, [], Standing(mine=True, overdue=True), Do.RECORD),
    # 3: bind, release
    "bind what was made": (ROW, [INERT], MINE, Do.BIND),
    "do not bind in other hands": (ROW, [INERT], OTHERS, Do.WAIT),
    "release what is bound": (BOUND, [INERT], MINE, Do.RELEASE),
    "do not release in other hands": (BOUND, [INERT], OTHERS, Do.WAIT),
    "too late to bind: it is never to start": (ROW, [INERT], Standing(mine=True, overdue=True), Do.DISCARD),
    "too late to release: it is never to start": (BOUND, [INERT], Standing(mine=True, overdue=True), Do.DISCARD),
    "another run of the attempt goes first": (BOUND, [INERT, seen("b", Phase.INERT)], MINE, Do.DISCARD),
    "of two unbound runs one is bound before the other goes": (ROW, [INERT, seen("b", Phase.INERT)], MINE, Do.BIND),
    "one that can start is bound before one that cannot": (ROW, [NEVER, seen("b", Phase.INERT)], MINE, Do.BIND),
    "its engine was set back to before its start": (RUNNING, [INERT], OTHERS, Do.DISCARD),
    "what was seen to run is no more unstarted": (RUNNING, [NEVER], OTHERS, Do.RECORD),
    "past its gate before it was bound: it is the one": (ROW, [ALIVE], OTHERS, Do.BIND),
    "ended before it was bound: it is the one": (ROW, [DONE], OTHERS, Do.BIND),
    # 4 and 5: run, observe
    "starting: wait": (BOUND, [STARTING], MINE, Do.WAIT),
    "seen running: write it down": (BOUND, [ALIVE], OTHERS, Do.START),
    "running, and written down": (RUNNING, [ALIVE], OTHERS, Do.WAIT),
    "starting for too long": (BOUND, [STARTING], Standing(mine=True, overdue=True), Do.KILL),
    "the start deadline does not end what runs": (RUNNING, [ALIVE], Standing(mine=False, overdue=True), Do.WAIT),
    "past every timer": (RUNNING, [ALIVE], Standing(mine=False, overrun=True), Do.KILL),
    "seen running after it was told to end: not called running": (
        BOUND,
        [ALIVE],
        Standing(mine=True, overdue=True, killed=True, doomed=True),
        Do.WAIT,
    ),
    "told to end long ago, and runs all the same": (
        BOUND,
        [ALIVE],
        Standing(mine=True, overdue=True, doomed=True),
        Do.KILL,
    ),
    "told to end a moment ago": (RUNNING, [ALIVE], Standing(mine=False, overrun=True, killed=True), Do.WAIT),
    # 6: record
    "ended well": (RUNNING, [DONE], OTHERS, Do.RECORD),
    "ended badly": (RUNNING, [BAD], OTHERS, Do.RECORD),
    "ended before it was seen running": (BOUND, [DONE], OTHERS, Do.RECORD),
    "no trace, once": (RUNNING, [], OTHERS, Do.WAIT),
    "no trace, twice over a grace": (RUNNING, [], Standing(mine=False, missing=True), Do.RECORD),
    "removed by somebody, once": (RUNNING, [GONE], OTHERS, Do.WAIT),
    "removed before its holder released it": (
        BOUND,
        [GONE],
        Standing(mine=True, missing=True, unreleased=True),
        Do.AGAIN,
    ),
    "removed by somebody, twice": (RUNNING, [GONE], Standing(mine=False, missing=True), Do.RECORD),
    # 7: not started, retry
    "never started: replace it": (BOUND, [NEVER], OTHERS, Do.AGAIN),
    "never started, too late to replace": (BOUND, [NEVER], Standing(mine=False, overdue=True), Do.RECORD),
    "ended badly, with attempts left": (replace(RUNNING, max_attempts=2), [BAD], OTHERS, Do.AGAIN),
    "ended badly, the last attempt": (replace(RUNNING, max_attempts=2, runs=1), [BAD], OTHERS, Do.RECORD),
    "ended well, with attempts left": (replace(RUNNING, max_attempts=2), [DONE], OTHERS, Do.RECORD),
    "lost is never run again": (
        replace(RUNNING, max_attempts=9),
        [seen("a", Phase.ENDED, LOST)],
        OTHERS,
        Do.RECORD,
    ),
    # 8: cancel
    "cancelled before it was made": (cancelled(ROW), [], OTHERS, Do.RECORD),
    "cancelled before it was bound": (cancelled(ROW), [INERT], OTHERS, Do.DISCARD),
    "cancelled before release": (cancelled(BOUND), [INERT], MINE, Do.DISCARD),
    "cancelled, and its holder may be releasing it": (cancelled(BOUND), [INERT], OTHERS, Do.WAIT),
    "cancelled while it starts": (cancelled(BOUND), [STARTING], OTHERS, Do.KILL),
    "cancelled while it runs": (cancelled(RUNNING), [ALIVE], OTHERS, Do.KILL),
    "cancelled and told to end": (cancelled(RUNNING), [ALIVE], Standing(mine=False, killed=True), Do.WAIT),
    "cancelled, and never started": (cancelled(BOUND), [NEVER], OTHERS, Do.RECORD),
    "cancelled, with attempts left": (cancelled(replace(RUNNING, max_attempts=5)), [BAD], OTHERS, Do.RECORD),
    # 9: clean
    "recorded: remove its object": (replace(BOUND, state=State.SUCCEEDED), [DONE], OTHERS, Do.CLEAN),
    "recorded, and its object is gone": (replace(BOUND, state=State.LOST), [], OTHERS, Do.CLEAN),
    "queued again, elsewhere": (replace(ROW, state=State.QUEUED), [INERT], MINE, Do.DROP),
}


@pytest.mark.parametrize("case", CASES)
def test_each_line_of_the_protocol(case: str) -> None:
    row, runs, standing, expected = CASES[case]
    assert decide(row, runs, standing).do is expected


def test_outcomes_say_what_happened() -> None:
    def outcome(row: Row, runs: list[ObservedRun], standing: Standing = OTHERS) -> tuple[State, Reason]:
        step = decide(row, runs, standing)
        assert step.outcome is not None
        return step.outcome.state, step.outcome.reason

    missing, overrun = Standing(mine=False, missing=True), Standing(mine=False, overrun=True)
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
    waiting = decide(ROW, [], Standing(mine=True, overdue=True, waiting="no node has room")).outcome
    assert waiting is not None
    assert waiting.reason is Reason.START_TIMEOUT
    assert waiting.message == "not started within the start deadline: no node has room"


def ended(uid: str, outcome: Outcome, seconds: float, **more: Any) -> ObservedRun:
    """A run that ended so after that time by its engine's clock."""
    began = datetime(2030, 1, 1, tzinfo=UTC)
    return replace(
        seen(uid, Phase.ENDED, outcome), started_at=began, ended_at=began + timedelta(seconds=seconds), **more
    )


LATE, DOOMED = Standing(mine=True, overdue=True), Standing(mine=True, overdue=True, doomed=True)
GIVEN_UP = {"permanent": True, "timeout_reason": Reason.IMAGE_PULL_FAILED, "waiting": "no such image"}
KILLS: dict[str, tuple[Row, ObservedRun, Standing, Reason, str]] = {
    "late, ended by this controller": (BOUND, ended("a", KILLED, 1), DOOMED, Reason.START_TIMEOUT, "started too late"),
    "late, ended by one that crashed": (BOUND, ended("a", KILLED, 1), LATE, Reason.START_TIMEOUT, "started too late"),
    "late, by one that crashed, called running since": (
        RUNNING,
        ended("a", KILLED, 1, ending=True),
        replace(LATE, mine=False),
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
        replace(DOOMED, overdue=False),
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
        Standing(mine=False, overrun=True),
        Reason.DEADLINE_EXCEEDED,
        "its own timer gone",
    ),
    "by somebody else while it ran": (RUNNING, ended("a", KILLED, 1), LATE, Reason.KILLED, "from outside"),
    "by somebody else in time, found long after": (
        RUNNING,
        ended("a", KILLED, 1),
        Standing(mine=False, overrun=True),
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
    row, run, standing, reason, words = KILLS[case]
    outcome = decide(row, [run], standing).outcome
    assert outcome is not None
    assert outcome.reason is reason
    assert words in (outcome.message or "")


def test_retries_back_off_up_to_a_minute() -> None:
    delays = [settle(replace(RUNNING, max_attempts=100, runs=runs), exit_outcome(1)).delay for runs in range(99)]
    assert delays[:3] == [1, 2, 4]
    assert max(delays) == delays[-1] == RETRY_MOST
    assert decide(BOUND, [NEVER], OTHERS).delay == REPLACE_DELAY > 0


NO_IMAGE = Reason.IMAGE_PULL_FAILED
ENDINGS = (exit_outcome(0), exit_outcome(1), KILLED, LOST)
STANDINGS = [
    Standing(mine, created, overdue, overrun, missing, killed, doomed, unreleased=unreleased)
    for mine, created, overdue, overrun, missing, killed, doomed, unreleased in product((False, True), repeat=8)
    if doomed or not killed
]


def rows() -> Iterator[Row]:
    for state, uid, asked, (most, runs) in product(State, (None, "a"), (False, True), ((1, 0), (2, 0), (2, 1))):
        if uid is not None or state is not State.RUNNING:  # nothing runs unbound
            yield replace(ROW, state=state, run_uid=uid, cancelled=asked, max_attempts=most, runs=runs)


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
        for standing in STANDINGS:
            step = decide(row, runs, standing)
            assert promises_kept(row, runs, standing, step), (row, runs, standing, step)


def promises_kept(row: Row, runs: tuple[ObservedRun, ...], standing: Standing, step: Step) -> bool:
    if row.state.terminal:
        return step == Step(Do.CLEAN)
    if row.state is State.QUEUED:
        return step == Step(Do.DROP)
    there = [run for run in runs if run.phase is not Phase.GONE]
    own = next((run for run in runs if run.run_uid == row.run_uid), None)
    launch = standing.mine and not row.cancelled and not standing.overdue
    run, outcome = step.run, step.outcome
    alone = not there or there == [own] or (row.run_uid is None and len(there) == 1)
    if alone and own is not None and own.phase is Phase.ENDED and step.do not in (Do.RECORD, Do.AGAIN):
        return False  # what ended is written down, whatever else is true
    match step.do:
        case Do.CREATE:
            return launch and row.run_uid is None and not there
        case Do.BIND:
            assert run is not None
            past_gate = [one for one in there if one.phase not in (Phase.INERT, Phase.NEVER_STARTED)]
            furthest = run in past_gate or not past_gate
            return row.run_uid is None and furthest and (launch or run.phase is not Phase.INERT)
        case Do.RELEASE:
            assert run is not None
            return launch and run.run_uid == row.run_uid and run.phase is Phase.INERT and alone
        case Do.START:
            return (
                run is own
                and own is not None
                and own.phase is Phase.RUNNING
                and row.state is State.LAUNCHING
                and not standing.doomed
            )
        case Do.KILL:
            assert run is not None
            late = run.phase is Phase.STARTING and (standing.overdue or run.permanent)
            due = row.cancelled or standing.overrun or late or standing.doomed
            return run is own and run.phase in (Phase.STARTING, Phase.RUNNING) and due and not standing.killed
        case Do.DISCARD:
            assert run is not None
            if run.run_uid == row.run_uid:  # the bound run goes only unstarted, and by its holder
                set_back = row.state is State.RUNNING
                return run.phase is Phase.INERT and (set_back or (standing.mine and not launch))
            given_up = row.cancelled or (standing.mine and standing.overdue)
            return run.phase is not Phase.GONE and (row.run_uid is not None or given_up)
        case Do.AGAIN:
            assert outcome is not None
            none_started = bool(there) and all(one.phase is Phase.NEVER_STARTED for one in there)
            removed_unreleased = unreleased(there, own, standing)
            if row.cancelled or not (alone or (row.run_uid is None and none_started)):
                return False
            if step.counted:
                ended = own is not None and own.phase is Phase.ENDED
                return ended and outcome.reason in RETRYABLE and row.runs + 1 < row.max_attempts
            never = none_started or removed_unreleased
            permanent = all(one.permanent for one in [*there, own] if one is not None and own in (None, one))
            untried = row.state is State.LAUNCHING and not standing.overdue and not permanent
            return never and outcome.reason is Reason.NOT_STARTED and untried
        case Do.RECORD:
            assert outcome is not None
            ended = own is not None and own.phase is Phase.ENDED
            never = bool(there) and all(one.phase is Phase.NEVER_STARTED for one in there)
            permanent = never and outcome.reason is NO_IMAGE and any(one.permanent for one in there)
            never |= unreleased(there, own, standing)
            return (
                outcome.state.terminal
                and alone_or_never(row, there, own)
                and {
                    State.LOST: (standing.missing and row.run_uid is not None)
                    or ended
                    or (never and row.state is State.RUNNING),
                    State.CANCELLED: row.cancelled,
                    State.SUCCEEDED: ended,
                    State.TIMED_OUT: ended,
                    State.FAILED: ended or permanent or (standing.overdue and outcome.reason is Reason.START_TIMEOUT),
                }.get(outcome.state, False)
            )
        case Do.WAIT:
            return step == Step(Do.WAIT) and may_wait(row, there, own, standing)
        case Do.CLEAN | Do.DROP:
            return False


def unreleased(there: list[ObservedRun], own: ObservedRun | None, standing: Standing) -> bool:
    """Its one run was removed, and the only controller that could have released it had not."""
    return not there and own is not None and own.phase is Phase.GONE and standing.unreleased


def alone_or_never(row: Row, there: list[ObservedRun], own: ObservedRun | None) -> bool:
    """No run is forgotten: others were discarded before."""
    return (
        not there or there == [own] or (row.run_uid is None and {run.phase for run in there} == {Phase.NEVER_STARTED})
    )


def may_wait(row: Row, there: list[ObservedRun], own: ObservedRun | None, standing: Standing) -> bool:
    """Something else must be able to move it on: a holder, the engine, the clock or the next look."""
    if own is None or own.phase is Phase.GONE:
        if row.run_uid is not None:
            return not standing.missing and (own is None or not standing.unreleased)
        inert = any(run.phase is Phase.INERT for run in there)
        return not standing.mine or (not inert and standing.created and not standing.missing)
    if own.phase is Phase.INERT:
        return not standing.mine
    late = standing.overdue and own.phase is Phase.STARTING
    due = row.cancelled or standing.overrun or late or standing.doomed
    if due:
        return standing.killed
    return own.phase is Phase.STARTING or row.state is State.RUNNING


@pytest.mark.parametrize(("max_attempts", "faults"), [(1, 2), (2, 1)])
def test_two_controllers_start_an_attempt_once_and_end_every_row(max_attempts: int, faults: int) -> None:
    graph = protocol_model.explore(max_attempts, faults)
    assert len(graph) > 10_000
    assert not protocol_model.stuck(graph)


@pytest.mark.parametrize("rule", ["FENCED", "SPENT", "MARKED", "DOUBTED"])
def test_the_model_finds_what_a_missing_rule_breaks(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_model, rule, False)
    with pytest.raises(protocol_model.Broken):
        protocol_model.explore(1, 2)
