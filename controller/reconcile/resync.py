"""The whole table against the whole engine: finds what events missed, and what a dead controller left."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from controller.backends.base import Backend
from controller.db.store import Store
from controller.errors import TransientEngineError
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol.actions import Action, Wait
from controller.protocol.decide import decide
from controller.protocol.model import Key, Listing, ObservedRun, Phase, Row, State
from controller.reconcile.presence import Presence
from controller.reconcile.tracker import Live, Lives
from controller.reconcile.worker import Carrier

log = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0  # of one look: the others are left for the next


class Comparison:
    """Compares rows with runs. Rows of a controller that is gone are adopted. Those of one that is still connected
    are acted on only where a step stayed due between two looks: it is stuck, and a step taken twice does no harm.
    A run counts as gone only if this controller may say so: it may be on another machine with the same identity."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        carrier: Carrier,
        lives: Lives,
        metrics: Metrics,
        presence: Presence,
        grace: float,
    ) -> None:
        self._store, self._backend, self._carrier, self._lives = store, backend, carrier, lives
        self._metrics, self._presence, self._grace = metrics, presence, grace
        # `grace`: seconds that a run must stay without a trace before it counts as gone
        self._due: set[Key] = set()  # others' rows with a step due at the last look
        self._strays: set[Key] = set()  # attempts without a row at the last look
        self._missing: dict[tuple[Key, str | None], float] = {}  # runs that the engine does not have, and since when

    async def make(self, listing: Listing) -> None:
        """Makes table and engine agree. The list was taken before the table is read, so every run in it that is
        not a stray has its row."""
        began = time.monotonic()
        rows = {row.id: row for row in await self._store.standing()}
        read = time.monotonic()  # the table may have kept us waiting for longer than any grace
        named = {(row.key, row.run_uid) for row in rows.values()}
        runs: dict[Key, list[ObservedRun]] = {}
        for seen in listing.runs:
            runs.setdefault(seen.key, []).append(seen)
        for seen in listing.recorded:  # a database that lost its last commits asks for it again
            if seen.key.sandbox_id in rows and not rows[seen.key.sandbox_id].state.terminal:
                runs.setdefault(seen.key, []).append(seen)
        self._missing = {one: since for one, since in self._missing.items() if one in named}
        due, orphans = set(), []
        for row in rows.values():
            there = runs.get(row.key, [])
            listed = read - listing.begun  # seconds ago
            live = Live(row, began, runs={seen.run_uid: seen for seen in there if self._holds(seen, row, listed)})
            made = row.run_uid is None and row.key in listing.pending
            excused = made or not self._may_say(live)
            live.missing = self._is_missing(row, there, excused, read, listing.begun)
            held = self._lives.by_id.get(row.id)
            if held is not None:
                self._agree(held, row, live.missing, listing.pending.get(row.key))
            elif row.orphaned and row.state is not State.LAUNCHING and self._may_adopt(live):
                orphans.append(live)
            elif not isinstance(self._next(live), Wait):
                due.add(row.key)
                if row.key in self._due:
                    self._carrier.hold(live)
        await self._adopt(orphans)
        self._due = due
        await self._let_go(
            [live for one, live in self._lives.by_id.items() if one not in rows and live.read_at < began]
        )
        found: dict[Key, list[str | None]] = {key: [None] for key in listing.pending}
        found |= {key: [seen.run_uid for seen in there] for key, there in runs.items()}
        strays = {key: uids for key, uids in found.items() if self._is_stray(key, rows)}
        await self._sweep({key: uids for key, uids in strays.items() if key in self._strays})
        self._strays = set(strays)  # one that was recorded since the list was made is gone from the next

    def _is_missing(self, row: Row, there: Collection[ObservedRun], excused: bool, read: float, begun: float) -> bool:
        """Whether a listing that began a whole grace after the row was first seen without its run has not got it
        either: one that began before may be older than the run."""
        if excused or row.state.terminal or any(row.run_uid in (None, seen.run_uid) for seen in there):
            self._missing.pop((row.key, row.run_uid), None)
            return False
        return begun - self._missing.setdefault((row.key, row.run_uid), read) >= self._grace

    def _holds(self, seen: ObservedRun, row: Row, listed: float) -> bool:
        """Whether it may be acted on: a run that waits for its release, of a row that runs, is either from before that
        start, or its engine was set back since. Only a list begun a grace after the start tells; taken for the second,
        the first would be removed, with its result. `listed`: seconds since the list was begun."""
        if seen.phase is not Phase.INERT or row.state is not State.RUNNING:
            return True
        return row.started_age is not None and row.started_age - listed >= self._grace

    def _may_say(self, live: Live) -> bool:
        """Whether what this engine does not have is nowhere: else it is for the row's holder to say, and where that is
        gone, for nobody before the run's own timer has ended it."""
        mine = live.row.claimed_by == self._store.me
        return self._presence.sole or mine or (live.row.orphaned and self._lives.context(live).past_timeout)

    def _may_adopt(self, live: Live) -> bool:
        """Whether this engine has its run, or will not have it any more."""
        return live.row.state.terminal or live.missing or live.row.run_uid in live.runs

    def _next(self, live: Live) -> Action:
        return decide(live.row, live.runs.values(), self._lives.context(live))

    def _agree(self, live: Live, row: Row, missing: bool, waiting: str | None) -> None:
        """Brings a sandbox in hand up to what the table says, and moves on what time alone moves on."""
        if (row.attempt, row.epoch) != (live.row.attempt, live.row.epoch):
            if not live.busy:
                self._lives.drop(live)  # in other hands
            return
        if row.run_uid != live.row.run_uid or (row.run_uid is None and live.runs):
            missing = live.missing  # made or bound since the table was read: what was missing was no run of its own yet
        ended = row.state.terminal and not live.row.state.terminal  # by another controller
        lost = missing > live.missing and (live.created or live.row.run_uid is not None)
        news = ended or lost or row.cancelled > live.row.cancelled
        live.row.state = row.state if ended else live.row.state
        live.row.cancelled |= row.cancelled
        live.missing = missing
        if missing:
            over = (Phase.ENDED, Phase.NEVER_STARTED, Phase.GONE)
            live.runs = {uid: seen for uid, seen in live.runs.items() if seen.phase in over}
        live.waiting = waiting or live.waiting
        if news:
            self._carrier.news(live)
        if live.busy:
            return
        if not isinstance(self._next(live), Wait) or (waiting and waiting != live.told):
            self._carrier.poke(live)
        elif row.claimed_by != self._store.me:
            self._lives.drop(live)

    async def _adopt(self, orphans: Sequence[Live]) -> None:
        adopted = await self._store.adopt([live.row for live in orphans]) if orphans else set()
        for live in orphans:
            if live.row.id in adopted:
                live.row.claimed_by = self._store.me
                self._carrier.hold(live)

    async def _let_go(self, lives: Collection[Live]) -> None:
        """Drops what the table no longer has, or has as ended."""
        rows = await self._store.facts([live.row.id for live in lives]) if lives else {}
        for live in lives:
            row = rows.get(live.row.id)
            lost = row is None or (row.attempt, row.epoch) != (live.row.attempt, live.row.epoch)
            if not live.busy and (lost or (row is not None and row.state.terminal)):
                self._lives.drop(live)

    def _is_stray(self, key: Key, rows: Mapping[UUID, Row]) -> bool:
        row = rows.get(key.sandbox_id)
        return (row is None or row.attempt != key.attempt) and key.sandbox_id not in self._lives.by_id

    async def _sweep(self, strays: Mapping[Key, Collection[str | None]]) -> None:
        """Deletes runs (None: what was made for one) whose row is gone, ended and cleaned, or past their attempt."""
        rows = await self._store.facts([key.sandbox_id for key in strays]) if strays else {}
        began = time.monotonic()
        for key in random.sample(sorted(strays), len(strays)):  # in no order: one that is stuck is not always the first
            if time.monotonic() - began > SWEEP_SECONDS:
                return
            uids = strays[key]
            row = rows.get(key.sandbox_id)
            if row is not None and not row.state.terminal and row.attempt <= key.attempt:
                continue  # claimed since, or about to be
            for uid in uids:
                try:
                    await self._backend.delete(key, uid)
                except TransientEngineError as error:
                    log.warning("an object without a row is left for the next look: %s", error, extra=about(key))
                    continue
                self._metrics.swept.inc()
                log.info("deleted an object without a row: %s", key.name, extra=about(key))
