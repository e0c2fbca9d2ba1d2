"""What becomes of a row whose engine has no controller, and how long something must last to count."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from controller.protocol.actions import Action, Clean, Drop, Record, Retry, Wait
from controller.protocol.decide import abandon
from controller.protocol.model import KILL_MARGIN, Reason, Row, State
from controller.reconcile.presence import GAP_SECONDS, Lasting

DEADLINE = 100.0
OVER = 60 + KILL_MARGIN  # of a run with timeout_seconds = 60
ROW = Row(UUID(int=1), 1, 1, State.LAUNCHING, None, "dead", False, 1, 0, 60, 1.0, None)
BOUND = replace(ROW, run_uid="u")
RUNNING = replace(BOUND, state=State.RUNNING, started_age=1.0)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (replace(ROW, leased=True), Wait),
        (ROW, Retry),
        (BOUND, Wait),
        (replace(BOUND, claimed_age=DEADLINE + OVER - 1), Wait),
        (replace(BOUND, claimed_age=DEADLINE + OVER + 1), Record),
        (replace(BOUND, claimed_age=DEADLINE + OVER + 1, max_attempts=2), Record),  # it may start yet
        (replace(BOUND, claimed_age=None), Record),  # since when is not known: no reason to wait for ever
        (RUNNING, Wait),
        (replace(RUNNING, started_age=OVER - 1), Wait),
        (replace(RUNNING, started_age=OVER + 1), Record),
        (replace(RUNNING, started_age=OVER + 1, max_attempts=2), Retry),
        (replace(RUNNING, started_age=OVER + 1, max_attempts=2, failed_attempts=1), Record),
        (replace(ROW, state=State.QUEUED), Drop),
        *((replace(BOUND, state=state), Clean) for state in State if state.terminal),
    ],
)
def test_only_what_nothing_can_contradict_any_more_is_settled(row: Row, expected: type[Action]) -> None:
    assert type(abandon(row, DEADLINE)) is expected


@pytest.mark.parametrize("row", [ROW, replace(ROW, leased=True), BOUND, RUNNING])
def test_a_cancel_is_waited_for_by_nothing(row: Row) -> None:
    action = abandon(replace(row, cancelled=True, max_attempts=5), DEADLINE)
    assert isinstance(action, Record)
    assert (action.outcome.state, action.outcome.reason) == (State.CANCELLED, Reason.CANCELLED)


@pytest.mark.parametrize("row", [replace(ROW, leased=True), BOUND, RUNNING])
def test_what_is_given_up_is_waited_for_by_nothing(row: Row) -> None:
    assert isinstance(abandon(row, DEADLINE, given_up=True), Record | Retry)


def test_what_is_given_up_starts_nowhere_any_more_and_has_its_next_attempt() -> None:
    assert isinstance(abandon(replace(BOUND, max_attempts=2), DEADLINE, given_up=True), Retry)


def test_what_never_started_costs_no_attempt_and_has_a_start_deadline_of_its_own() -> None:
    action = abandon(ROW, DEADLINE)
    assert isinstance(action, Retry)
    assert (action.counted, action.new_start_deadline, action.outcome.reason) == (False, True, Reason.NOT_STARTED)
    action = abandon(replace(RUNNING, started_age=OVER + 1, max_attempts=2), DEADLINE)
    assert isinstance(action, Retry)
    assert (action.counted, action.outcome.reason) == (True, Reason.LOST)


def test_something_lasts_if_every_look_saw_it() -> None:
    now = 100.0
    lasting = Lasting(20.0, lambda: now)
    for at, seen, lasted in [
        (100, "ab", ""),
        (115, "ab", ""),
        (120, "a", "a"),
        (125, "ab", "a"),  # b was away at one look
        (144, "ab", "a"),
        (145, "ab", "ab"),
        (166, "ab", ""),  # nobody looked for longer than that
    ]:
        now = float(at)
        assert lasting.look(set(seen)) == set(lasted), at


def test_a_short_time_may_lie_between_any_two_looks() -> None:
    now = 100.0
    lasting = Lasting(0.5, lambda: now)
    assert lasting.look({"a"}) == set()
    now += GAP_SECONDS
    assert lasting.look({"a"}) == {"a"}
