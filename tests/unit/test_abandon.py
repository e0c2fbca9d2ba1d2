"""What becomes of a row whose engine has no controller, and how long something must last to count."""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import UUID

import pytest

from controller.protocol.decide import Do, abandon
from controller.protocol.model import KILL_MARGIN, Reason, Row, State
from controller.reconcile.presence import GAP_SECONDS, Lasting

DEADLINE = 100.0
OVER = 60 + KILL_MARGIN  # of a run with timeout_seconds = 60
ROW = Row(UUID(int=1), 1, 1, State.LAUNCHING, None, "dead", False, 1, 0, 60, 1.0, None)
BOUND = replace(ROW, run_uid="u")
RUNNING = replace(BOUND, state=State.RUNNING, started_age=1.0)


@pytest.mark.parametrize(
    ("row", "do"),
    [
        (replace(ROW, leased=True), Do.WAIT),
        (ROW, Do.AGAIN),
        (BOUND, Do.WAIT),
        (replace(BOUND, claimed_age=DEADLINE + OVER - 1), Do.WAIT),
        (replace(BOUND, claimed_age=DEADLINE + OVER + 1), Do.RECORD),
        (replace(BOUND, claimed_age=DEADLINE + OVER + 1, max_attempts=2), Do.RECORD),  # it may start yet
        (replace(BOUND, claimed_age=None), Do.RECORD),  # since when is not known: no reason to wait for ever
        (RUNNING, Do.WAIT),
        (replace(RUNNING, started_age=OVER - 1), Do.WAIT),
        (replace(RUNNING, started_age=OVER + 1), Do.RECORD),
        (replace(RUNNING, started_age=OVER + 1, max_attempts=2), Do.AGAIN),
        (replace(RUNNING, started_age=OVER + 1, max_attempts=2, runs=1), Do.RECORD),
        (replace(ROW, state=State.QUEUED), Do.DROP),
        *((replace(BOUND, state=state), Do.CLEAN) for state in State if state.terminal),
    ],
)
def test_only_what_nothing_can_contradict_any_more_is_settled(row: Row, do: Do) -> None:
    assert abandon(row, DEADLINE).do is do


@pytest.mark.parametrize("row", [ROW, replace(ROW, leased=True), BOUND, RUNNING])
def test_a_cancel_is_waited_for_by_nothing(row: Row) -> None:
    step = abandon(replace(row, cancelled=True, max_attempts=5), DEADLINE)
    assert step.do is Do.RECORD
    assert step.outcome is not None
    assert (step.outcome.state, step.outcome.reason) == (State.CANCELLED, Reason.CANCELLED)


@pytest.mark.parametrize("row", [replace(ROW, leased=True), BOUND, RUNNING])
def test_what_is_given_up_is_waited_for_by_nothing(row: Row) -> None:
    assert abandon(row, DEADLINE, given_up=True).do in (Do.RECORD, Do.AGAIN)


def test_what_is_given_up_starts_nowhere_any_more_and_has_its_next_attempt() -> None:
    assert abandon(replace(BOUND, max_attempts=2), DEADLINE, given_up=True).do is Do.AGAIN


def test_what_never_started_costs_no_attempt_and_has_a_start_deadline_of_its_own() -> None:
    step = abandon(ROW, DEADLINE)
    assert (step.counted, step.afresh, step.outcome and step.outcome.reason) == (False, True, Reason.NOT_STARTED)
    step = abandon(replace(RUNNING, started_age=OVER + 1, max_attempts=2), DEADLINE)
    assert (step.counted, step.outcome and step.outcome.reason) == (True, Reason.LOST)


def test_something_lasts_if_every_look_saw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lasting: Lasting[str] = Lasting(20.0)
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


def test_a_short_time_may_lie_between_any_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lasting: Lasting[str] = Lasting(0.5)
    assert lasting.look({"a"}) == set()
    now += GAP_SECONDS
    assert lasting.look({"a"}) == {"a"}
