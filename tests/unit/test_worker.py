"""What an action may conclude: never that a run did not start unless nothing could have started it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

import pytest

from controller.db.writes import Ended, WriteBind
from controller.errors import RunNotFoundError, TransientEngineError
from controller.metrics import Metrics
from controller.protocol import actions
from controller.protocol.model import Key, Launch, ObservedRun, Phase, Row, State, exit_outcome
from controller.reconcile.config import ControllerConfig
from controller.reconcile.tracker import TrackedSandbox, Tracker
from controller.reconcile.worker import Worker
from controller.reconcile.workqueue import Again, RetryLater

ROW = Row(UUID(int=7), 1, 1, State.LAUNCHING, None, "me", False, 1, 0, 60, 1.0, None)
BOUND = replace(ROW, run_uid="a")
INERT = ObservedRun(Key(ROW.id, 1), "a", Phase.INERT)
NEVER = replace(INERT, phase=Phase.NEVER_STARTED)
LAUNCH = Launch(INERT.key, "true", 60)
CONFIG = ControllerConfig(
    max_running=1, max_launching=1, engine_calls=1, output_bytes=1024, start_deadline=600.0, lease=60.0, poll=1.0
)


@dataclass
class World:
    """A table that takes every write, or none, and an engine that answers as told."""

    answers: list[Exception | None] = field(default_factory=list)
    row: Row | None = None
    takes: bool = True
    written: list[Ended] = field(default_factory=list)

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        return replace(INERT, run_uid="made")

    async def bind(self, item: WriteBind) -> bool:
        return True

    async def set_waiting(self, item: object) -> bool:
        return True

    async def mark_running(self, item: object) -> bool:
        return self.takes

    async def record(self, item: Ended) -> bool:
        self.written.append(item)
        return self.takes

    requeue = record

    async def rows(self, ids: list[UUID]) -> dict[UUID, Row]:
        return {self.row.id: self.row} if self.row else {}

    async def release(self, key: Key, run_uid: str) -> None:
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer

    async def delete(self, key: Key, run_uid: str | None) -> None:
        pass


class Reconciled:
    """One tracked sandbox, and the worker that takes it from action to action."""

    def __init__(self, world: World, row: Row = ROW, run: ObservedRun = INERT, launch: Launch | None = None) -> None:
        self.tracker = Tracker(CONFIG.start_deadline, lambda: None)
        either = cast(Any, world)
        self._worker = Worker(either, either, self.tracker, Metrics(), CONFIG, lambda: None)
        self.tracked = TrackedSandbox(row, time.monotonic(), lease_end=1e12, launch=launch, runs={run.run_uid: run})
        self.tracker.add(self.tracked)

    def next(self) -> actions.Action:
        """What the real decision is now."""
        return self.tracker.next_action(self.tracked)

    async def does(self, expected: type[actions.Action], result: type = Again) -> None:
        """The worker executes just that."""
        assert type(self.next()) is expected
        assert type(await self._worker.reconcile(INERT.key)) is result

    def sees(self, run: ObservedRun) -> None:
        """The engine reports this."""
        self.tracked.on_observed(run, time.monotonic())

    def expires(self) -> None:
        """The start deadline passes."""
        self.tracked.on_row(replace(self.tracked.row, claimed_age=1e6), time.monotonic())

    @property
    def phase(self) -> Phase:
        """What is believed of the run."""
        return self.tracked.runs["a"].phase


async def bound(world: World) -> Reconciled:
    """After its bind."""
    made = Reconciled(world)
    await made.does(actions.Bind)
    return made


async def lost_release(world: World) -> Reconciled:
    """After a release that was answered, and that the engine lost."""
    made = await bound(world)
    await made.does(actions.Release)
    made.sees(INERT)
    return made


async def unanswered_release(world: World) -> Reconciled:
    """After a release without an answer."""
    made = await bound(world)
    await made.does(actions.Release, RetryLater)
    return made


async def test_what_vanished_before_its_first_release_never_started() -> None:
    made = await bound(World([RunNotFoundError()]))
    await made.does(actions.Release)
    assert made.phase is Phase.NEVER_STARTED


async def test_what_is_discarded_before_its_first_release_never_started() -> None:
    made = await bound(World())
    made.expires()
    await made.does(actions.Discard)
    assert made.phase is Phase.NEVER_STARTED


async def test_what_vanished_after_a_release_without_answer_may_have_started() -> None:
    made = await unanswered_release(World([TransientEngineError(), RunNotFoundError()]))
    await made.does(actions.Release)
    assert made.phase is Phase.GONE


async def test_a_release_that_met_an_error_of_our_own_may_have_started() -> None:
    made = await unanswered_release(World([ValueError("not an answer"), RunNotFoundError()]))
    await made.does(actions.Release)
    assert made.phase is Phase.GONE


async def test_what_vanished_after_a_release_may_have_started() -> None:
    made = await lost_release(World([None, RunNotFoundError()]))
    await made.does(actions.Release)
    assert made.phase is Phase.GONE


@pytest.mark.parametrize(
    ("released", "answer"),
    [(lost_release, None), (unanswered_release, TransientEngineError())],
    ids=["answered", "without answer"],
)
async def test_what_is_discarded_after_a_release_may_have_started(
    released: Callable[[World], Awaitable[Reconciled]], answer: Exception | None
) -> None:
    made = await released(World([answer]))
    made.expires()
    await made.does(actions.Discard)
    assert made.phase is Phase.GONE


async def test_what_was_removed_before_its_first_release_never_started() -> None:
    made = await bound(World())
    made.sees(replace(INERT, phase=Phase.GONE))
    assert isinstance(made.next(), actions.Retry)


async def test_what_was_removed_after_its_release_may_have_started() -> None:
    made = await lost_release(World([None]))
    made.sees(replace(INERT, phase=Phase.GONE))
    action = made.next()
    assert isinstance(action, actions.Record)
    assert action.outcome.state is State.LOST


async def test_what_was_seen_past_its_gate_before_its_bind_was_answered_may_have_started() -> None:
    made = Reconciled(World())
    for phase in (Phase.STARTING, Phase.GONE):  # somebody else started it, and removed it
        made.sees(replace(INERT, phase=phase))
    made.tracked.on_bound(INERT)
    action = made.next()
    assert isinstance(action, actions.Record)
    assert action.outcome.state is State.LOST


async def test_what_was_removed_before_its_bind_was_answered_never_started() -> None:
    made = Reconciled(World())
    made.sees(replace(INERT, phase=Phase.GONE))
    made.tracked.on_bound(INERT)
    assert isinstance(made.next(), actions.Retry)


async def test_a_bind_that_another_controller_made_is_no_proof_that_nothing_was_released() -> None:
    made = Reconciled(World([RunNotFoundError()]), BOUND)
    await made.does(actions.Release)
    assert made.phase is Phase.GONE


async def test_what_was_just_made_is_bound_and_not_what_a_listing_from_before_still_shows() -> None:
    made = Reconciled(World(), launch=LAUNCH)  # "a" was half made, and the call that made another removed it
    made.tracked.on_created(replace(INERT, run_uid="made"), time.monotonic())
    action = made.next()
    assert isinstance(action, actions.Bind)
    assert action.run.run_uid == "made"


async def test_what_went_past_its_gate_stays_known_when_another_is_made() -> None:
    made = Reconciled(World(), run=replace(INERT, phase=Phase.RUNNING), launch=LAUNCH)
    made.tracked.on_created(replace(INERT, run_uid="made"), time.monotonic())
    assert made.phase is Phase.RUNNING


async def test_what_is_created_is_bound_next() -> None:
    made = Reconciled(World(), run=replace(INERT, phase=Phase.GONE), launch=LAUNCH)
    await made.does(actions.Create)
    assert isinstance(made.next(), actions.Bind)


async def test_that_it_never_started_is_said_only_under_the_lease() -> None:
    world = World()
    made = Reconciled(world, BOUND, NEVER)
    await made.does(actions.Retry)
    assert [ended.epoch for ended in world.written] == [1]


async def test_of_what_is_in_other_hands_nothing_is_believed_any_more() -> None:
    world = World(row=replace(BOUND, epoch=2), takes=False)
    made = Reconciled(world, BOUND, NEVER)
    await made.does(actions.Retry)
    assert made.tracker.get(INERT.key) is None


async def test_the_removal_of_another_run_while_it_is_discarded_does_not_make_the_bound_one_missing() -> None:
    another = replace(INERT, run_uid="another")
    made = Reconciled(World(), BOUND, another)
    made.sees(replace(another, phase=Phase.GONE))
    made.tracked.on_discarded(another)
    assert isinstance(made.next(), actions.Wait)


async def test_an_end_that_is_observed_while_its_run_is_discarded_is_kept() -> None:
    made = await unanswered_release(World([TransientEngineError()]))
    made.expires()
    made.sees(replace(INERT, phase=Phase.ENDED, outcome=exit_outcome(0)))
    made.tracked.on_discarded(INERT)  # the answer of a deletion that was decided before
    action = made.next()
    assert isinstance(action, actions.Record)
    assert action.outcome == exit_outcome(0)


async def test_a_lost_reply_to_running_frees_the_slot_of_a_row_that_was_taken_over() -> None:
    running = replace(INERT, phase=Phase.RUNNING)
    made = Reconciled(World(row=replace(BOUND, state=State.RUNNING), takes=False), BOUND, running)
    made.tracker.add(made.tracked, launching=True)
    await made.does(actions.MarkRunning)
    assert made.tracker.launching() == []


async def test_an_answer_older_than_the_controllers_own_claim_does_not_drop_it() -> None:
    made = Reconciled(World(row=BOUND, takes=False), replace(BOUND, epoch=2), NEVER)
    await made.does(actions.Retry)
    assert made.tracker.get(INERT.key) is made.tracked
    assert made.tracked.row.epoch == 2


async def test_a_cancel_heard_while_the_row_is_read_stays() -> None:
    made = Reconciled(World(), BOUND)
    made.tracked.on_cancel_requested()
    made.tracked.on_row(BOUND, time.monotonic())
    assert made.tracked.row.cancelled
    made.tracked.on_claimed(replace(BOUND, epoch=2), LAUNCH, None, now=0.0, lease_end=1.0, may_exist=True)
    assert made.tracked.row.cancelled
