"""The controller's loops: what claims rows, watches the engine, and lets time pass.

A row's way, and which coroutine takes it there:

    claim ─► create ─► bind ─► release ─► observe ─► record ─► clean
      │      └──────┬──────────────┘         │       └────┬─────┘
      │     Worker.reconcile, one task       │     Worker.reconcile
      │     a sandbox: decide, execute       │
      │                                      └ _observe_loop: engine events and lists → Worker.observe
      └ _claim_loop: rows → Tracker → Worker.track

    _tick_loop    each poll, or a notification: cancels, retries, take-overs, lease renewals, retention
    _resync_loop  each few seconds: this engine's open rows with its newest listing, for what events missed
    _attend_loop  each few seconds: this controller's registration and mark; rows of engines without a controller
    _pulse_loop   each second: that the event loop turns
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

from controller.backends.base import Backend
from controller.db.store import Claimed, Store
from controller.errors import DatabaseExchangedError, DatabaseUnavailableError, TransientEngineError, WriteRejectedError
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol.model import Listing, ObservedRun, State
from controller.reconcile.abandoned import Abandoned
from controller.reconcile.claims import Claims
from controller.reconcile.config import ControllerConfig
from controller.reconcile.presence import Presence
from controller.reconcile.resync import Resync
from controller.reconcile.tracker import TrackedSandbox, Tracker
from controller.reconcile.worker import Worker

log = logging.getLogger(__name__)

CLAIM_MOST = 500  # rows a claim; more would hold the claim's lock for long
PULSE_SECONDS = 1.0
FORGET_SECONDS = 60.0  # between deletions of what is past its retention


async def cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """End these tasks. Asks again each second: before Python 3.12 `wait_for`, which libraries use, may swallow it."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1)


class Controller:
    """Runs until it is told to stop; any number may run at once on one database.

    `claims_due` is set when another row may have become claimable.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        worker: Worker,
        tracker: Tracker,
        resync: Resync,
        presence: Presence,
        abandoned: Abandoned,
        metrics: Metrics,
        config: ControllerConfig,
        claims_due: asyncio.Event,
    ) -> None:
        self._store, self._backend, self._worker, self.tracker = store, backend, worker, tracker
        self._resync, self._presence, self._abandoned = resync, presence, abandoned
        self._metrics, self._config, self._claims_due = metrics, config, claims_due
        self._update, self._listed, self._peers = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._listing: Listing | None = None
        self._claim_in_doubt = False
        self._renewed = self._forgot = 0.0
        self.claims = Claims(tracker, config.max_running)
        self.turned = time.monotonic()  # when the event loop last turned

    def wake(self, payload: str = "") -> None:
        """Take in that the table changed: by an `insert`, an `update`, another controller's `register`, or in any way
        (the empty string)."""
        if payload in ("insert", ""):
            self._claims_due.set()
        if payload in ("update", ""):
            self._update.set()
        if payload in ("register", ""):
            self._peers.set()

    async def run(self, stop: asyncio.Event, *, claim: bool = True) -> None:
        """Work until `stop` is set; then finish the actions under way, and leave what runs running."""
        loops = [self._pulse_loop, self._tick_loop, self._observe_loop, self._resync_loop, self._attend_loop]
        loops += [self._claim_loop] if claim else []
        tasks = [asyncio.create_task(self._forever(loop)) for loop in loops]
        try:
            await stop.wait()
        finally:
            await cancel(tasks)
            await self._shut_down()

    async def _forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await loop()
            except (DatabaseUnavailableError, DatabaseExchangedError, WriteRejectedError) as error:
                log.warning("database unavailable, retrying", extra=about(loop=loop.__name__, error=error))
            except TransientEngineError as error:
                self._metrics.engine_up.set(0)
                log.warning("engine unavailable, retrying", extra=about(loop=loop.__name__, error=error))
            except Exception:
                self._metrics.errors.inc()
                log.exception("unexpected error, retrying", extra=about(loop=loop.__name__))
            await asyncio.sleep(self._config.poll)

    # claim

    async def _claim_loop(self) -> None:
        while True:
            self._claims_due.clear()
            while (room := min(self._config.max_launching - self.tracker.slots_taken, CLAIM_MOST)) > 0:
                if not await self._claim(room):
                    break
            else:
                self.claims.full()
            await self._claims_due.wait()

    async def _claim(self, room: int) -> int:
        sent = time.monotonic()
        with self.claims.sent():
            if self._claim_in_doubt:  # a claim's reply was lost: what it claimed is this controller's, and not tracked
                held = list(self.tracker.sandboxes)
                self._track(await self._store.take_over(room, self._config.lease, held), sent, taken_over=True)
            self._claim_in_doubt = True
            claimed = await self._store.claim(room, self._config.max_running, self._config.lease)
            self._claim_in_doubt = False
            self._track(claimed, sent, taken_over=False)
        if claimed:
            self.claims.brought_rows()
        return len(claimed)

    def _track(self, claimed: Sequence[Claimed], sent: float, *, taken_over: bool) -> None:
        for each in claimed:
            tracked = self.tracker.get(each.row.key) or TrackedSandbox(each.row, sent)
            lease_end = sent + self._config.lease
            tracked.on_claimed(each.row, each.launch, each.waited, now=sent, lease_end=lease_end, may_exist=taken_over)
            self._metrics.claimed.labels("taken_over" if taken_over else "claimed").inc()
            if not taken_over and each.waited is None:  # not again if it was put back
                self._metrics.queued_for.observe(each.created_age)
            self._worker.track(tracked, launching=True)

    # tick

    async def _tick_loop(self) -> None:
        while True:
            self._update.clear()
            await self._tick()
            try:
                async with asyncio.timeout(self._config.poll):  # wait_for would swallow a cancellation now and then
                    await self._update.wait()
            except TimeoutError:
                self._claims_due.set()  # the poll: it alone suffices

    async def _tick(self) -> None:
        parts = (self._cancel_queued, self._requeue_due, self._cancel, self._take_over, self._renew, self._forget)
        for part in parts:
            try:
                await part()
            except WriteRejectedError as error:  # it may be for one row alone: the other parts go on
                log.warning("statement rejected, retrying", extra=about(error=error))

    async def _cancel_queued(self) -> None:
        if await self._store.cancel_queued():
            self._claims_due.set()

    async def _requeue_due(self) -> None:
        if await self._store.retry_due():
            self._claims_due.set()

    async def _cancel(self) -> None:
        for sandbox_id in await self._store.cancelling():
            self._worker.cancel(sandbox_id)

    async def _take_over(self) -> None:
        sent = time.monotonic()
        self._track(await self._store.take_over(CLAIM_MOST, self._config.lease), sent, taken_over=True)

    async def _renew(self) -> None:
        sent = time.monotonic()
        if sent - self._renewed <= self._config.lease / 4:
            return
        self._renewed = sent
        leased = [
            tracked
            for tracked in self.tracker.sandboxes.values()
            if tracked.lease_end and tracked.row.state is State.LAUNCHING
        ]
        renewed = await self._store.renew([tracked.row for tracked in leased], self._config.lease)
        for tracked in leased:
            if tracked.row.id in renewed:  # a row that somebody held locked is renewed next time
                tracked.on_renewed(sent + self._config.lease)

    async def _forget(self) -> None:
        now = time.monotonic()
        if now - self._forgot > FORGET_SECONDS:
            self._forgot = now
            for each in await self._store.set_aside(FORGET_SECONDS):
                log.warning("rows set aside, their claim is rejected", extra=about(rows=each.n, error=each.why))
            if await self._store.forget():
                self._forgot = 0.0  # there may be more: next time round

    # observe, resync, attend

    async def _observe_loop(self) -> None:
        async for sight in self._backend.observe():
            self._metrics.engine_up.set(1)
            match sight:
                case ObservedRun():
                    self._worker.observe(sight)
                case Listing():
                    for run in sight.runs:
                        self._worker.observe(run)
                    self._listing = sight
                    self._listed.set()

    async def _resync_loop(self) -> None:
        while True:
            await self._listed.wait()
            self._listed.clear()
            listing, self._listing = self._listing, None  # one that comes during the resync is the next one's
            if listing is not None:
                await self._resync.run(listing)
            await asyncio.sleep(self._config.resync)

    async def _attend_loop(self) -> None:
        while True:
            self._peers.clear()
            await self._abandoned.look(await self._presence.tend())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.resync):
                    await self._peers.wait()

    async def _pulse_loop(self) -> None:
        while True:
            self.turned = time.monotonic()
            self._metrics.in_hand.set(len(self.tracker.sandboxes))
            await asyncio.sleep(PULSE_SECONDS)

    async def _shut_down(self) -> None:
        self.tracker.stop()
        await self._worker.queue.drain(self._config.stop)
        try:
            async with asyncio.timeout(self._config.stop):
                await self._store.hand_back()
        except TimeoutError:
            log.warning("leases not handed back, left to expire: the database does not answer")
