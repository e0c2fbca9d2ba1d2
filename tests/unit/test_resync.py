"""A comparison looks at the past: what a controller has done since the table was read is not undone by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

import pytest

from controller.metrics import Metrics
from controller.protocol.model import Key, Listing, ObservedRun, Phase, Row, State
from controller.reconcile.resync import Comparison
from controller.reconcile.tracker import Live, Lives

ROW = Row(UUID(int=7), 1, 1, State.LAUNCHING, None, "me", False, 1, 0, 60, 1.0, None)
INERT = ObservedRun(Key(ROW.id, 1), "made", Phase.INERT)


@dataclass
class Table:
    """Reads the row as it was; a presence that is alone, and a carrier that only notes what it is given."""

    row: Row
    me: str = "me"
    sole: bool = True
    carried: list[Live] = field(default_factory=list)

    async def standing(self) -> Sequence[Row]:
        return [replace(self.row)]

    async def adopt(self, rows: Sequence[Row]) -> set[UUID]:
        return {row.id for row in rows}

    def news(self, live: Live) -> None:
        self.carried.append(live)

    poke = hold = news


def compared(live: Live, table: Table, looks: int) -> None:
    """Compares the table with an engine that has nothing, each look begun a grace after the one before."""

    async def go() -> None:
        lives, any_of = Lives(600), cast(Any, table)
        lives.by_id[ROW.id] = live
        comparison = Comparison(any_of, any_of, any_of, lives, Metrics(), any_of, grace=0.0)
        for _ in range(looks):
            await comparison.make(Listing((), time.monotonic()))

    asyncio.run(go())


def in_hand(run_uid: str | None) -> Live:
    live = Live(replace(ROW, run_uid=run_uid), time.monotonic(), lease_end=1e12, created=True)
    live.runs = {"made": INERT}
    return live


def test_a_run_that_was_bound_since_the_table_was_read_is_not_missing() -> None:
    live = in_hand("made")
    compared(live, Table(ROW), looks=3)
    assert not live.missing
    assert live.runs == {"made": INERT}


def test_a_run_that_is_just_being_bound_is_not_missing() -> None:
    live = in_hand(None)
    compared(live, Table(ROW), looks=3)
    assert not live.missing
    assert live.runs == {"made": INERT}


def test_what_was_made_and_shows_no_run_is_missing() -> None:
    live = in_hand(None)
    live.runs = {}
    compared(live, Table(ROW), looks=3)
    assert live.missing


def test_a_bound_run_that_the_engine_has_not_got_is_missing() -> None:
    live = in_hand("made")
    compared(live, Table(replace(ROW, run_uid="made")), looks=3)
    assert live.missing
    assert live.runs == {}


@pytest.mark.parametrize(("begun", "acted_on"), [(-9.0, False), (-5.0, False), (-1.0, True)])
def test_a_run_listed_before_its_start_is_not_taken_for_one_of_an_engine_set_back(begun: float, acted_on: bool) -> None:
    table = Table(replace(ROW, state=State.RUNNING, run_uid="made", claimed_by="gone", orphaned=True, started_age=6.0))

    async def go() -> None:
        any_of = cast(Any, table)
        comparison = Comparison(any_of, any_of, any_of, Lives(600), Metrics(), any_of, grace=2.0)
        await comparison.make(Listing((INERT,), time.monotonic() + begun))

    asyncio.run(go())
    assert [(live.row.id, live.runs) for live in table.carried] == ([(ROW.id, {"made": INERT})] if acted_on else [])
