"""Writes that gather: one that meets a lock is never lost, however often the lock flickers."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from controller.db.faults import Locked
from controller.db.group_commit import Batch
from controller.db.writes import MakeDue
from controller.protocol.model import Key

WRITE = MakeDue(Key(UUID(int=1), 1))
FLICKERS = 5_000  # more than Python's calls may nest


async def test_a_lock_that_is_gone_whenever_it_is_looked_for_is_met_as_often_as_it_takes() -> None:
    left = FLICKERS

    async def write(items: Sequence[MakeDue]) -> set[UUID]:
        nonlocal left
        if left:
            left -= 1
            raise Locked("locked")
        return {item.id for item in items}

    async def locked(ids: Sequence[UUID]) -> set[UUID]:
        return set()

    assert await Batch(write, locked)(WRITE)
    assert left == 0
