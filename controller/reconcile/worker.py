"""Carries sandboxes on: one task a sandbox, one step after another, until it has to wait."""

from __future__ import annotations

import asyncio
import logging
import time
from uuid import UUID

from controller.db.store import Store
from controller.db.writes import SetWaiting
from controller.errors import DatabaseUnavailableError, TransientEngineError, WriteRejectedError
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol.actions import Wait
from controller.protocol.decide import decide
from controller.protocol.model import ObservedRun, State
from controller.reconcile.steps import Steps
from controller.reconcile.tracker import Live, Lives

log = logging.getLogger(__name__)

BACKOFF_FIRST, BACKOFF_MOST = 0.2, 10.0  # seconds between tries of what the engine had no room or no answer for


class Carrier:
    """Decides and acts for the sandboxes in hand, again whenever something about one is new."""

    def __init__(self, store: Store, steps: Steps, lives: Lives, metrics: Metrics) -> None:
        self._store, self._steps, self._lives, self._metrics = store, steps, lives, metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self, live: Live) -> None:
        """Takes this sandbox in hand, and on."""
        self._lives.by_id[live.row.id] = live
        self.news(live)

    def saw(self, seen: ObservedRun) -> None:
        """The engine says this of one run."""
        live = self._lives.saw(seen)
        if live is not None:
            self.news(live)

    def news(self, live: Live) -> None:
        """Something about it is new, and may be just what it waited for: it is decided anew at once, or right after
        the step under way, whatever comes of that."""
        live.dirty, live.backoff, live.not_before = True, 0.0, 0.0
        self.poke(live)

    def poke(self, live: Live) -> None:
        """Takes a sandbox as far as it can go now."""
        if not live.busy and time.monotonic() >= live.not_before:
            live.busy = True
            task = asyncio.create_task(self._carry(live))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cancel(self, sandbox_id: UUID) -> None:
        """Its requester asked for its end."""
        live = self._lives.by_id.get(sandbox_id)
        if live is not None and not live.row.cancelled:
            live.row.cancelled = True
            self.news(live)

    async def settled(self, timeout: float) -> None:
        """Waits until the steps under way are done, at most `timeout` seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)

    async def _carry(self, live: Live) -> None:
        try:
            while not await self._try(live):
                live.look = True  # what failed may have been done all the same
                if not live.dirty:
                    self._later(live)
                    return
        finally:
            live.busy = False

    async def _try(self, live: Live) -> bool:
        """Whether it went as far as it can; false where a step failed."""
        try:
            try:
                await self._onward(live)
            except TransientEngineError as error:
                live.waiting = str(error)
                await self._tell_waiting(live)
                return False
        except (DatabaseUnavailableError, WriteRejectedError) as error:
            log.warning("sandbox %s: %s, trying again", live.row.id, error, extra=about(live.row.key))
            return False
        except Exception:  # whatever one row does, the others go on
            self._metrics.errors.inc()
            log.exception("a step failed and will be tried again", extra=about(live.row.key))
            return False
        return True

    async def _onward(self, live: Live) -> None:
        while self._lives.holds(live):
            live.dirty = False
            action = decide(live.row, live.runs.values(), self._lives.context(live))
            if not isinstance(action, Wait):
                await self._steps.take(live, action)
                live.backoff = 0.0
            elif not await self._tell_waiting(live):
                return  # nothing was awaited since the decision, so nothing seen since it is missed

    def _later(self, live: Live) -> None:
        live.backoff = min(max(live.backoff * 2, BACKOFF_FIRST), BACKOFF_MOST)
        live.not_before = time.monotonic() + live.backoff
        asyncio.get_running_loop().call_later(live.backoff + 0.001, self._retry, live)

    def _retry(self, live: Live) -> None:
        if self._lives.holds(live):
            self.poke(live)

    async def _tell_waiting(self, live: Live) -> bool:
        run = live.runs.get(live.row.run_uid or "")
        if run is not None and run.waiting:
            live.waiting = run.waiting
        if live.waiting is None or live.waiting == live.told or live.row.state is not State.LAUNCHING:
            return False
        told = live.waiting
        await self._store.wait(SetWaiting(live.row.key, told))
        live.told = told
        return True
