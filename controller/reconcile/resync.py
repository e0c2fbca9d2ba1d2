"""Periodic resync with a whole listing: repairs what events missed, adopts rows of dead controllers, sweeps strays."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from controller.backends.base import Backend
from controller.db.store import Store
from controller.errors import TransientEngineError
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol.actions import Wait
from controller.protocol.model import Key, Listing, ObservedRun, Phase, Row, State
from controller.reconcile.presence import Presence
from controller.reconcile.tracker import TrackedSandbox, Tracker
from controller.reconcile.worker import Worker

log = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0  # of one resync: the other strays are left for the next


class Resync:
    """Compares this engine's open rows (active, or ended and not cleaned) with its newest whole listing.

    Rows of a controller that is gone are adopted. Those of one that is still connected are acted on only if an action
    stayed due between two looks: that controller is stuck, and an action taken twice does no harm. A run counts as gone
    only if this controller may say so: it may be on another machine with the same identity.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        worker: Worker,
        tracker: Tracker,
        metrics: Metrics,
        presence: Presence,
        missing_grace: float,
    ) -> None:
        self._store, self._backend, self._worker, self._tracker = store, backend, worker, tracker
        self._metrics, self._presence, self._grace = metrics, presence, missing_grace
        self._due: set[Key] = set()  # other controllers' rows with an action due at the last look
        self._strays: set[Key] = set()  # attempts without a row at the last look
        self._missing: dict[tuple[Key, str | None], float] = {}  # runs that the engine does not have, and since when

    async def run(self, listing: Listing) -> None:
        """Make table and engine agree. The list was taken before the table is read, so every run in it that is not a
        stray has its row."""
        began = time.monotonic()
        rows = {row.id: row for row in await self._store.owned_rows()}
        read = time.monotonic()  # the table may have kept us waiting for longer than any grace
        named = {(row.key, row.run_uid) for row in rows.values()}
        runs: dict[Key, list[ObservedRun]] = {}
        for run in listing.runs:
            runs.setdefault(run.key, []).append(run)
        for run in listing.recorded:  # a database that lost its last commits asks for it again
            if run.key.sandbox_id in rows and not rows[run.key.sandbox_id].state.terminal:
                runs.setdefault(run.key, []).append(run)
        self._missing = {each: since for each, since in self._missing.items() if each in named}
        due, orphans = set(), []
        for row in rows.values():
            there = runs.get(row.key, [])
            age = read - listing.begun
            found = TrackedSandbox(row, began, runs={run.run_uid: run for run in there if self._counts(run, row, age)})
            created = row.run_uid is None and row.key in listing.pending
            excused = created or not self._may_say(found)
            found = replace(found, missing=self._is_missing(row, there, excused, read, listing.begun))
            tracked = self._tracker.sandboxes.get(row.id)
            if tracked is not None:
                self._agree(tracked, row, found.missing, listing.pending.get(row.key))
            elif row.orphaned and row.state is not State.LAUNCHING and self._may_adopt(found):
                orphans.append(found)
            elif not isinstance(self._tracker.next_action(found), Wait):
                due.add(row.key)
                if row.key in self._due:
                    self._worker.track(found)
        await self._adopt(orphans)
        self._due = due
        tracked_before = [each for each in self._tracker.sandboxes.values() if each.read_at < began]
        await self._drop_finished([each for each in tracked_before if each.row.id not in rows])
        objects: dict[Key, list[str | None]] = {key: [None] for key in listing.pending}
        objects |= {key: [run.run_uid for run in there] for key, there in runs.items()}
        strays = {key: uids for key, uids in objects.items() if self._is_stray(key, rows)}
        await self._sweep({key: uids for key, uids in strays.items() if key in self._strays})
        self._strays = set(strays)  # one that was recorded since the list was begun is not in the next

    def _is_missing(self, row: Row, there: Collection[ObservedRun], excused: bool, read: float, begun: float) -> bool:
        """Return whether the run is missing: a list lacks it that was begun a whole grace after another list was found
        to lack it. A list that was begun before may be older than the run."""
        if excused or row.state.terminal or any(row.run_uid in (None, run.run_uid) for run in there):
            self._missing.pop((row.key, row.run_uid), None)
            return False
        return begun - self._missing.setdefault((row.key, row.run_uid), read) >= self._grace

    def _counts(self, run: ObservedRun, row: Row, age: float) -> bool:
        """Return whether the run may be acted on. `age`: seconds since the list was begun.

        An inert run of a row that runs is either from before that start, or its engine was restored since. Only a list
        that was begun a grace after the start tells: the first, taken for the second, would be removed with its result.
        """
        if run.phase is not Phase.INERT or row.state is not State.RUNNING:
            return True
        return row.started_age is not None and row.started_age - age >= self._grace

    def _may_say(self, found: TrackedSandbox) -> bool:
        """Return whether this controller may call a run missing that its engine does not have.

        It may if no other engine can have the run, or if the row is its own. Otherwise only the row's controller may.
        If that one is gone, this controller may once the run's timeout and KILL_MARGIN are past.
        """
        mine = found.row.claimed_by == self._store.me
        return self._presence.sole or mine or (found.row.orphaned and found.past_timeout(time.monotonic()))

    def _may_adopt(self, found: TrackedSandbox) -> bool:
        """Return whether this engine has its run, or will not have it any more."""
        return found.row.state.terminal or found.missing or found.row.run_uid in found.runs

    def _agree(self, tracked: TrackedSandbox, row: Row, missing: bool, waiting: str | None) -> None:
        """Bring a tracked sandbox up to what the table says, and go on with what time alone makes due."""
        if tracked.is_older(row):
            return
        if not tracked.is_same_claim(row):
            if not self._worker.queue.is_processing(tracked.row.key):
                self._tracker.drop(tracked)  # in another controller's hands
            return
        if tracked.on_resync(row, missing, waiting):
            self._worker.queue.add(tracked.row.key)
        if self._worker.queue.is_processing(tracked.row.key):
            return
        unwritten = waiting and waiting != tracked.written_waiting
        if unwritten or not isinstance(self._tracker.next_action(tracked), Wait):
            self._worker.queue.add_if_idle(tracked.row.key)
        elif row.claimed_by != self._store.me:
            self._tracker.drop(tracked)

    async def _adopt(self, orphans: Sequence[TrackedSandbox]) -> None:
        adopted = await self._store.adopt([found.row for found in orphans]) if orphans else set()
        for found in orphans:
            if found.row.id in adopted:
                found.on_adopted(self._store.me)
                self._worker.track(found)

    async def _drop_finished(self, sandboxes: Collection[TrackedSandbox]) -> None:
        """Drop what the table no longer has, or has as ended."""
        rows = await self._store.rows([tracked.row.id for tracked in sandboxes]) if sandboxes else {}
        for tracked in sandboxes:
            row = rows.get(tracked.row.id)
            over = row is None or row.state.terminal or not tracked.is_same_claim(row)
            if over and not self._worker.queue.is_processing(tracked.row.key):
                self._tracker.drop(tracked)

    def _is_stray(self, key: Key, rows: Mapping[UUID, Row]) -> bool:
        row = rows.get(key.sandbox_id)
        return (row is None or row.attempt != key.attempt) and key.sandbox_id not in self._tracker.sandboxes

    async def _sweep(self, strays: Mapping[Key, Collection[str | None]]) -> None:
        """Delete objects (uid None: an object without a run) whose row is gone, cleaned, or at a later attempt."""
        rows = await self._store.rows([key.sandbox_id for key in strays]) if strays else {}
        began = time.monotonic()
        for key in random.sample(sorted(strays), len(strays)):  # so that no stuck object is always the first
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
                    log.warning("stray not deleted, left for the next resync", extra=about(key, error=error))
                    continue
                self._metrics.swept.inc()
                log.info("stray deleted", extra=about(key, object=key.name))
