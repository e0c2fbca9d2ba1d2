"""Settles the rows of engines that have no controller: nobody else would."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection

from controller.db.registry import Attendant
from controller.db.store import Store
from controller.db.writes import Ended, Mark
from controller.errors import SandboxError
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol.decide import Do, abandon
from controller.protocol.model import Row
from controller.reconcile.presence import Lasting

log = logging.getLogger(__name__)


class Abandoned:
    """Writes what `abandon` decides. Each write is the compare-and-set of a controller of that engine, so one that
    comes back meanwhile is never written over. `start_deadline` and `grace`, without a controller, in seconds."""

    def __init__(self, store: Store, metrics: Metrics, start_deadline: float, grace: float) -> None:
        self._store, self._metrics, self._start_deadline = store, metrics, start_deadline
        self._left: Lasting[str] = Lasting(grace)
        self._told: set[str] = set()

    async def look(self, attending: Collection[Attendant]) -> None:
        """Settles the rows of engines that have had no controller throughout the grace."""
        attended = {each.engine for each in attending if each.connected} | {self._store.engine}
        left = self._left.look({each.engine for each in attending} - attended)
        for engine in sorted(left):
            if await self.settle(engine) and engine not in self._told:
                self._told.add(engine)
                log.warning("no controller of engine %s is connected: its rows are settled without it", engine)
        self._told &= left

    async def settle(self, engine: str, *, given_up: bool = False) -> Counter[str]:
        """Takes the next step for every row of that engine; returns how many came to what."""
        rows = await self._store.standing(engine)
        done = await asyncio.gather(*(self._settle(row, given_up) for row in rows))
        return Counter(each for each in done if each)

    async def _settle(self, row: Row, given_up: bool) -> str | None:
        step = abandon(row, self._start_deadline, given_up=given_up)
        try:
            match step.do:
                case Do.RECORD | Do.AGAIN if step.outcome is not None:
                    # a run that never started is known to be so only under the epoch of the look
                    epoch = None if step.counted else row.epoch
                    ended = Ended(
                        row.key,
                        row.run_uid,
                        step.outcome,
                        lost=row.run_uid is not None,
                        counted=step.counted,
                        delay=step.delay,
                        epoch=epoch,
                        afresh=step.afresh,
                    )
                    again = step.do is Do.AGAIN
                    if not await (self._store.again if again else self._store.record)(ended):
                        return None
                    self._metrics.ended(step.outcome)
                    log.info("%s %s", step.outcome.state, step.outcome.reason, extra=about(row.key))
                    return "queued again" if again else str(step.outcome.state)
                case Do.CLEAN:
                    return "cleaned" if await self._store.clean(Mark(row.key)) else None
                case Do.WAIT | Do.DROP:
                    return None
                case _:
                    raise ValueError(f"{step} is no step for a row without an engine")
        except SandboxError as error:
            log.warning("%s, trying again", error, extra=about(row.key))
            return None
