"""Settles the rows of engines that have no controller, since nobody else would."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import assert_never

from controller.db.group_commit import Batch
from controller.db.registry import Attendant
from controller.db.store import Store
from controller.db.writes import Ended, MarkCleaned, ended_by
from controller.errors import SandboxError
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol.actions import Clean, Drop, Record, Retry, Wait
from controller.protocol.decide import abandon
from controller.protocol.model import Row
from controller.reconcile.presence import Lasting

log = logging.getLogger(__name__)


class Abandoned:
    """Writes what `abandon` decides. Each write is the compare-and-set of a controller of that engine, so it never
    overwrites what one that comes back writes meanwhile. `start_deadline` and `grace`, for which an engine must be
    without a controller, are in seconds."""

    def __init__(self, store: Store, metrics: Metrics, start_deadline: float, grace: float) -> None:
        self._store, self._metrics, self._start_deadline = store, metrics, start_deadline
        self._left = Lasting(grace)
        self._reported: set[str] = set()

    async def look(self, attending: Collection[Attendant]) -> None:
        """Settle the rows of engines that have had no controller throughout the grace."""
        attended = {each.engine for each in attending if each.connected} | {self._store.engine}
        left = self._left.look({each.engine for each in attending} - attended)
        for engine in sorted(left):
            if await self.settle(engine) and engine not in self._reported:
                self._reported.add(engine)
                log.warning("engine has no controller, settling its rows", extra=about(engine=engine))
        self._reported &= left

    async def settle(self, engine: str, *, given_up: bool = False) -> Counter[str]:
        """Take the next action for every row of that engine; return how many became what."""
        rows = await self._store.owned_rows(engine)
        done = await asyncio.gather(*(self._settle(row, given_up) for row in rows))
        return Counter(each for each in done if each)

    async def _settle(self, row: Row, given_up: bool) -> str | None:
        action = abandon(row, self._start_deadline, given_up=given_up)
        try:
            match action:
                case Record():
                    return str(action.outcome.state) if await self._write(self._store.record, row, action) else None
                case Retry():
                    return "queued again" if await self._write(self._store.requeue, row, action) else None
                case Clean():
                    return "cleaned" if await self._store.mark_cleaned(MarkCleaned(row.key)) else None
                case Wait() | Drop():
                    return None
        except SandboxError as error:
            log.warning("row of an abandoned engine not settled, retrying", extra=about(row.key, error=error))
            return None
        assert_never(action)

    async def _write(self, write: Batch[Ended], row: Row, action: Record | Retry) -> bool:
        ended = replace(ended_by(row, action), lost=row.run_uid is not None)
        done = await write(ended)
        if done:
            self._metrics.ended(ended.outcome)
            outcome = ended.outcome
            log.info("outcome recorded", extra=about(row.key, state=outcome.state, reason=outcome.reason))
        return done
