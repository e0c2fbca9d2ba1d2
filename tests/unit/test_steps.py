"""What a step may conclude: never that something did not start unless nothing could have started it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

import pytest

from controller.db.writes import Bind, Ended
from controller.errors import RunNotFoundError, TransientEngineError
from controller.metrics import Metrics
from controller.protocol.actions import Bind as BindRun
from controller.protocol.actions import Create, Discard, Record, Release, Retry
from controller.protocol.decide import decide
from controller.protocol.model import Key, Launch, ObservedRun, Outcome, Phase, Reason, Row, State
from controller.reconcile.steps import Steps
from controller.reconcile.tracker import Live, Lives

ROW = Row(UUID(int=7), 1, 1, State.LAUNCHING, None, "me", False, 1, 0, 60, 1.0, None)
INERT = ObservedRun(Key(ROW.id, 1), "a", Phase.INERT)
LAUNCH = Launch(INERT.key, "true", 60)
NEVER = Retry(Outcome(State.FAILED, Reason.NOT_STARTED, "never started"), counted=False)


@dataclass
class World:
    """A queue that takes every write, or none, and an engine that answers as told."""

    answers: list[Exception | None] = field(default_factory=list)
    row: Row | None = None
    takes: bool = True
    written: list[Ended] = field(default_factory=list)

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        return replace(INERT, run_uid="made")

    async def bind(self, item: Bind) -> bool:
        return True

    async def record(self, item: Ended) -> bool:
        return self.takes

    async def again(self, item: Ended) -> bool:
        self.written.append(item)
        return self.takes

    async def facts(self, ids: list[UUID]) -> dict[UUID, Row]:
        return {self.row.id: self.row} if self.row else {}

    async def release(self, key: Key, run_uid: str) -> None:
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer

    async def delete(self, key: Key, run_uid: str | None) -> None:
        pass


def in_hand(world: World) -> tuple[Steps, Lives, Live]:
    lives = Lives(600)
    either = cast(Any, world)
    live = lives.by_id[ROW.id] = Live(replace(ROW), time.monotonic(), lease_end=1e12, runs={"a": INERT})
    return Steps(either, either, lives, Metrics(), output_bytes=1024, at_once=1), lives, live


def phase_after(world: World, *does: type[BindRun | Release | Discard]) -> Phase:
    """What is believed of the run after these steps, each of which finds it inert."""

    async def go() -> Phase:
        steps, _, live = in_hand(world)
        for do in does:
            live.runs["a"] = INERT
            try:
                await steps.take(live, do(INERT))
            except TransientEngineError:
                continue
        return live.runs["a"].phase

    return asyncio.run(go())


def test_what_vanished_before_its_first_release_never_started() -> None:
    assert phase_after(World([RunNotFoundError()]), BindRun, Release) is Phase.NEVER_STARTED


def test_what_is_discarded_before_its_first_release_never_started() -> None:
    assert phase_after(World(), BindRun, Discard) is Phase.NEVER_STARTED


def test_what_vanished_after_a_release_without_answer_may_have_started() -> None:
    assert phase_after(World([TransientEngineError(), RunNotFoundError()]), BindRun, Release, Release) is Phase.GONE


def test_what_vanished_after_a_release_may_have_started() -> None:
    assert phase_after(World([None, RunNotFoundError()]), BindRun, Release, Release) is Phase.GONE


@pytest.mark.parametrize("answer", [None, TransientEngineError()], ids=["answered", "without answer"])
def test_what_is_discarded_after_a_release_may_have_started(answer: Exception | None) -> None:
    assert phase_after(World([answer]), BindRun, Release, Discard) is Phase.GONE


def test_what_was_removed_before_its_first_release_never_started() -> None:
    async def go() -> None:
        steps, lives, live = in_hand(World([None]))
        await steps.take(live, BindRun(INERT))
        lives.saw(replace(INERT, phase=Phase.GONE))
        assert isinstance(decide(live.row, live.runs.values(), lives.context(live)), Retry)
        live.runs["a"], live.missing = INERT, False
        await steps.take(live, Release(INERT))
        lives.saw(replace(INERT, phase=Phase.GONE))
        action = decide(live.row, live.runs.values(), lives.context(live))
        assert isinstance(action, Record)
        assert action.outcome.state is State.LOST

    asyncio.run(go())


def test_what_was_just_made_is_bound_and_not_what_a_listing_from_before_still_shows() -> None:
    async def go() -> None:
        steps, lives, live = in_hand(World())  # "a" was half made, and the call that made another removed it
        live.launch = LAUNCH
        await steps.take(live, Create())
        action = decide(live.row, live.runs.values(), lives.context(live))
        assert isinstance(action, BindRun)
        assert action.run.run_uid == "made"

    asyncio.run(go())


def test_what_went_past_its_gate_stays_known_when_another_is_made() -> None:
    async def go() -> None:
        steps, _, live = in_hand(World())
        live.launch, live.runs["a"] = LAUNCH, replace(INERT, phase=Phase.RUNNING)
        await steps.take(live, Create())
        assert live.runs["a"].phase is Phase.RUNNING

    asyncio.run(go())


def test_that_it_never_started_is_said_only_under_the_lease() -> None:
    async def go() -> None:
        world = World()
        steps, _, live = in_hand(world)
        await steps.take(live, NEVER)
        assert [ended.epoch for ended in world.written] == [1]

    asyncio.run(go())


def test_of_what_is_in_other_hands_nothing_is_believed_any_more() -> None:
    async def go() -> None:
        world = World(row=replace(ROW, epoch=2, run_uid="a"), takes=False)
        steps, lives, live = in_hand(world)
        live.row.run_uid = "a"
        await steps.take(live, NEVER)
        assert not lives.holds(live) or (not live.runs and not live.fresh and not live.lease_end)

    asyncio.run(go())
