"""The controller: claims what may run, watches the engine, and lets time pass."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from controller.backends.base import Backend
from controller.db.store import Claimed, Store
from controller.errors import DatabaseUnavailableError, TransientEngineError, WriteRejectedError
from controller.metrics import Metrics
from controller.protocol.model import Listing, ObservedRun, Phase, State
from controller.reconcile.abandoned import Abandoned
from controller.reconcile.claims import Claims
from controller.reconcile.presence import Presence
from controller.reconcile.resync import Comparison
from controller.reconcile.tracker import Live, Lives
from controller.reconcile.worker import Carrier

log = logging.getLogger(__name__)

CLAIM_MOST = 500  # rows a claim; more would hold the claim's lock for long
PULSE_SECONDS = 1.0
FORGET_SECONDS = 60.0  # between deletions of what is past its retention
STOP_SECONDS = 15.0  # for the steps under way when the controller is told to stop


@dataclass(frozen=True, slots=True)
class Pace:
    """How much, how often."""

    max_running: int
    poll: float  # seconds
    lease: float  # seconds
    launching: int  # rows claimed and not yet released, at most: each has its start deadline running
    compare: float = 5.0  # seconds between comparisons of the whole table with the whole engine
    grace: float = 10.0  # seconds that a run must stay without a trace before it counts as gone
    abandon: float = 20.0  # seconds that an engine, or a registration, must be without a controller to count as left
    patience: float = 15.0  # seconds for the mark of an earlier controller to come back at a start


async def cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """Ends these tasks. Asks again each second: before Python 3.12 `wait_for`, which libraries use, may swallow it."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1)


class Controller:
    """Runs until told to stop; any number may run at once on one database."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        carrier: Carrier,
        lives: Lives,
        comparison: Comparison,
        presence: Presence,
        abandoned: Abandoned,
        metrics: Metrics,
        pace: Pace,
    ) -> None:
        self._store, self._backend, self._carrier, self._lives = store, backend, carrier, lives
        self._comparison, self._presence, self._abandoned = comparison, presence, abandoned
        self._metrics, self._pace = metrics, pace
        lives.freed = lambda: self._insert.set()
        self._insert, self._update, self._listed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._peers = asyncio.Event()
        self._listing: Listing | None = None
        self._claim_in_doubt = False
        self._renewed = self._forgot = 0.0
        self.claims = Claims(lives, pace.max_running)
        self.turned = time.monotonic()  # when the event loop last turned

    def wake(self, payload: str = "") -> None:
        """The table changed: by an `insert`, an `update`, another controller's `register`, or in any way at all (the
        empty string)."""
        if payload in ("insert", ""):
            self._insert.set()
        if payload in ("update", ""):
            self._update.set()
        if payload in ("register", ""):
            self._peers.set()

    async def run(self, stop: asyncio.Event, *, claim: bool = True) -> None:
        """Works until `stop` is set; then finishes the steps under way, and leaves what runs running."""
        parts = [self._pulse, self._ticks, self._observe, self._compare, self._attend]
        parts += [self._claims] if claim else []
        tasks = [asyncio.create_task(self._forever(part)) for part in parts]
        try:
            await stop.wait()
        finally:
            await cancel(tasks)
            await self._let_go()

    async def _forever(self, part: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await part()
            except (DatabaseUnavailableError, WriteRejectedError) as error:
                log.warning("%s, trying again", error)
            except TransientEngineError as error:
                self._metrics.engine_up.set(0)
                log.warning("the engine does not answer, trying again: %s", error)
            except Exception:
                self._metrics.errors.inc()
                log.exception("the loop met an error of its own and goes on")
            await asyncio.sleep(self._pace.poll)

    async def _pulse(self) -> None:
        while True:
            self.turned = time.monotonic()
            self._metrics.in_hand.set(len(self._lives.by_id))
            await asyncio.sleep(PULSE_SECONDS)

    async def _claims(self) -> None:
        while True:
            self._insert.clear()
            while (room := min(self._pace.launching - len(self._lives.launching), CLAIM_MOST)) > 0:
                if not await self._claim(room):
                    break
            else:
                self.claims.full()
            await self._insert.wait()

    async def _claim(self, room: int) -> int:
        with self.claims.one():
            count = await self._claim_now(room)
        if count:
            self.claims.brought = time.monotonic()
        return count

    async def _claim_now(self, room: int) -> int:
        sent = time.monotonic()
        if self._claim_in_doubt:  # a claim's reply was lost: what it claimed is ours, and nobody works on it
            held = list(self._lives.by_id)
            self._take_in_hand(await self._store.take_over(room, self._pace.lease, held), sent, "taken over")
        self._claim_in_doubt = True
        claimed = await self._store.claim(room, self._pace.max_running, self._pace.lease)
        self._claim_in_doubt = False
        self._take_in_hand(claimed, sent, "claimed")
        return len(claimed)

    def _take_in_hand(self, claimed: Sequence[Claimed], sent: float, how: str) -> None:
        for each in claimed:
            live = self._lives.by_id.get(each.row.id)
            if live is None or live.row.attempt != each.row.attempt:
                live = Live(each.row, sent)
            live.row, live.read_at, live.lease_end = each.row, sent, sent + self._pace.lease
            over = (Phase.NEVER_STARTED, Phase.GONE)  # believed under a lease that may have been lost meanwhile
            live.runs = {uid: seen for uid, seen in live.runs.items() if seen.phase not in over}
            live.launch, live.look, live.created, live.fresh = each.launch, how != "claimed", False, False
            live.waiting = live.told = each.waited
            self._metrics.claimed.labels(how).inc()
            if how == "claimed" and each.waited is None:  # not again where it was put back
                self._metrics.queued_for.observe(each.created_age)
            self._lives.launching.add(each.row.id)
            self._carrier.hold(live)

    async def _ticks(self) -> None:
        while True:
            self._update.clear()
            await self._tick()
            try:
                async with asyncio.timeout(self._pace.poll):  # wait_for would swallow a cancellation now and then
                    await self._update.wait()
            except TimeoutError:
                self._insert.set()  # the poll: it alone suffices

    async def _tick(self) -> None:
        parts = (self._cancel_queued, self._retry, self._cancel, self._take_over, self._renew, self._forget)
        for part in parts:
            try:
                await part()
            except WriteRejectedError as error:  # for one row, it may be: the other parts go on
                log.warning("%s, trying again", error)

    async def _cancel_queued(self) -> None:
        if await self._store.cancel_queued():
            self._insert.set()

    async def _retry(self) -> None:
        if await self._store.retry_due():
            self._insert.set()

    async def _cancel(self) -> None:
        for sandbox_id in await self._store.cancelling():
            self._carrier.cancel(sandbox_id)

    async def _take_over(self) -> None:
        now = time.monotonic()
        self._take_in_hand(await self._store.take_over(CLAIM_MOST, self._pace.lease), now, "taken over")

    async def _forget(self) -> None:
        now = time.monotonic()
        if now - self._forgot > FORGET_SECONDS:
            self._forgot = now
            for each in await self._store.aside(FORGET_SECONDS):
                log.warning(
                    "%d rows are set aside, since the database refuses to have them claimed: %s", each.n, each.why
                )
            if await self._store.forget():
                self._forgot = 0.0  # there may be more: next time round

    async def _renew(self) -> None:
        sent = time.monotonic()
        if sent - self._renewed <= self._pace.lease / 4:
            return
        self._renewed = sent
        lives = [live for live in self._lives.by_id.values() if live.lease_end and live.row.state is State.LAUNCHING]
        held = await self._store.renew([live.row for live in lives], self._pace.lease)
        for live in lives:
            if live.row.id in held:  # one that somebody held locked keeps its old end, and is renewed next time
                live.lease_end = sent + self._pace.lease

    async def _observe(self) -> None:
        async for sight in self._backend.observe():
            self._metrics.engine_up.set(1)
            match sight:
                case ObservedRun():
                    self._carrier.saw(sight)
                case Listing():
                    for seen in sight.runs:
                        self._carrier.saw(seen)
                    self._listing = sight
                    self._listed.set()

    async def _compare(self) -> None:
        while True:
            await self._listed.wait()
            self._listed.clear()
            if self._listing is not None:
                await self._comparison.make(self._listing)
            self._listing = None
            await asyncio.sleep(self._pace.compare)

    async def _attend(self) -> None:
        while True:
            self._peers.clear()
            await self._abandoned.look(await self._presence.tend())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.compare):
                    await self._peers.wait()

    async def _let_go(self) -> None:
        self._lives.stopping = True
        await self._carrier.settled(STOP_SECONDS)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._store.hand_back()
        except TimeoutError:
            log.warning("the database does not answer: this controller's leases run out by themselves")
