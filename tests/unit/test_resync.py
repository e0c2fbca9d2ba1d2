"""A resync looks at the past: what a controller has done since the table was read is not undone by it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

import pytest

from controller.metrics import Metrics
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Phase, Row, State
from controller.reconcile.resync import Resync
from controller.reconcile.tracker import TrackedSandbox, Tracker
from controller.reconcile.workqueue import Done, WorkQueue

ROW = Row(UUID(int=7), 1, 1, State.LAUNCHING, None, "me", False, 1, 0, 60, 1.0, None)
INERT = ObservedRun(Key(ROW.id, 1), "made", Phase.INERT)
LAUNCH = Launch(INERT.key, "true", 60)


@dataclass
class Table:
    """Reads the row as it was; a presence that is alone, and a worker that only notes what it is given."""

    row: Row
    me: str = "me"
    sole: bool = True
    worked_on: list[TrackedSandbox] = field(default_factory=list)
    deleted: list[tuple[Key, str | None]] = field(default_factory=list)
    queue: WorkQueue[Key] = field(default_factory=lambda: WorkQueue(done, (1.0, 1.0)))

    async def owned_rows(self) -> Sequence[Row]:
        return [replace(self.row)]

    async def adopt(self, rows: Sequence[Row]) -> set[UUID]:
        return {row.id for row in rows}

    async def rows(self, ids: Sequence[UUID]) -> dict[UUID, Row]:
        return {self.row.id: self.row} if self.row.id in ids else {}

    async def delete(self, key: Key, run_uid: str | None) -> None:
        self.deleted.append((key, run_uid))

    def track(self, tracked: TrackedSandbox) -> None:
        self.worked_on.append(tracked)


async def done(key: Key) -> Done:
    """Nothing is done for any key."""
    return Done()


def resync_of(table: Table, missing_grace: float, tracker: Tracker) -> Resync:
    """A resync whose every part but the tracker is the fake table."""
    any_of = cast(Any, table)
    return Resync(any_of, any_of, any_of, tracker, Metrics(), any_of, missing_grace)


async def resynced(tracked: TrackedSandbox, table: Table, looks: int, missing_grace: float = 0.0) -> Tracker:
    """Compares the table with an engine that has nothing, so many times; returns what is tracked then."""
    tracker = Tracker(600, lambda: None)
    tracker.add(tracked)
    resync = resync_of(table, missing_grace, tracker)
    for _ in range(looks):
        await resync.run(Listing((), time.monotonic()))
    return tracker


def tracked_with(run_uid: str | None, *runs: ObservedRun) -> TrackedSandbox:
    row = replace(ROW, run_uid=run_uid)
    runs_by_uid = {run.run_uid: run for run in runs}
    return TrackedSandbox(row, time.monotonic(), lease_end=1e12, created=True, runs=runs_by_uid)


async def test_a_run_that_was_bound_since_the_table_was_read_is_not_missing() -> None:
    tracked = tracked_with("made", INERT)
    await resynced(tracked, Table(ROW), looks=3)
    assert not tracked.missing
    assert tracked.runs == {"made": INERT}


async def test_a_table_read_before_a_take_over_does_not_drop_it() -> None:
    tracked = tracked_with("made", INERT)
    tracked.on_claimed(replace(tracked.row, epoch=2), LAUNCH, None, now=0.0, lease_end=1e12, may_exist=True)
    tracker = await resynced(tracked, Table(replace(ROW, run_uid="made")), looks=1)
    assert tracker.get(tracked.row.key) is tracked


async def test_a_run_that_is_just_being_bound_is_not_missing() -> None:
    tracked = tracked_with(None, INERT)
    await resynced(tracked, Table(ROW), looks=3)
    assert not tracked.missing
    assert tracked.runs == {"made": INERT}


async def test_what_was_made_and_shows_no_run_is_missing() -> None:
    tracked = tracked_with(None)
    await resynced(tracked, Table(ROW), looks=3)
    assert tracked.missing


async def test_a_bound_run_that_the_engine_has_not_got_is_missing() -> None:
    tracked = tracked_with("made", INERT)
    await resynced(tracked, Table(replace(ROW, run_uid="made")), looks=3)
    assert tracked.missing
    assert tracked.runs == {}


async def test_a_run_is_missing_only_after_a_whole_grace() -> None:
    tracked = tracked_with("made", INERT)
    await resynced(tracked, Table(replace(ROW, run_uid="made")), looks=3, missing_grace=3600.0)
    assert not tracked.missing


async def test_a_stray_is_deleted_at_the_second_look() -> None:
    table, stray = Table(ROW), ObservedRun(Key(UUID(int=8), 1), "stray", Phase.RUNNING)
    resync = resync_of(table, 0.0, Tracker(600, lambda: None))
    await resync.run(Listing((stray,), time.monotonic()))
    assert table.deleted == []
    await resync.run(Listing((stray,), time.monotonic()))
    assert table.deleted == [(stray.key, "stray")]


@pytest.mark.parametrize(("begun", "acted_on"), [(-9.0, False), (-5.0, False), (-1.0, True)])
async def test_a_run_listed_before_its_start_is_not_taken_for_one_of_an_engine_set_back(
    begun: float, acted_on: bool
) -> None:
    table = Table(replace(ROW, state=State.RUNNING, run_uid="made", claimed_by="gone", orphaned=True, started_age=6.0))
    await resync_of(table, 2.0, Tracker(600, lambda: None)).run(Listing((INERT,), time.monotonic() + begun))
    assert [(each.row.id, each.runs) for each in table.worked_on] == ([(ROW.id, {"made": INERT})] if acted_on else [])
