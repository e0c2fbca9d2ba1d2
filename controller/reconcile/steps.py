"""The protocol's steps, each one act on database or engine, for one sandbox."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import assert_never

from controller.backends.base import Backend
from controller.db.store import Store
from controller.db.writes import Bind, MakeDue, MarkCleaned, MarkRunning, PutBack, ended_by
from controller.errors import (
    ImagePullingError,
    RequestRejectedError,
    RunNotFoundError,
    TransientEngineError,
    WriteRejectedError,
)
from controller.logs import about
from controller.metrics import Metrics
from controller.protocol import actions
from controller.protocol.model import Key, ObservedRun, Outcome, Output, Phase, Reason, State
from controller.reconcile.tracker import KILL_AGAIN, Live, Lives

log = logging.getLogger(__name__)

PULL_SECONDS = 60.0  # that a row waits for a pull of which nobody tells it the end: its controller has gone
PULL_AGAIN_SECONDS = 10.0  # before another try of a pull that came to nothing
OUTPUT_SECONDS = 3.5  # what cannot be read by then does not hold up the outcome
TOLD_MOST = 1500  # characters of an outcome's message, where a sentence about its output follows
OUTPUT_PAUSE = 2.0  # seconds between tries: an engine's agent that restarts is back by then


class Steps:
    """Takes steps. Each may fail with TransientEngineError, and may be taken again."""

    def __init__(
        self, store: Store, backend: Backend, lives: Lives, metrics: Metrics, *, output_bytes: int, at_once: int
    ) -> None:
        self._store, self._backend, self._lives, self._metrics = store, backend, lives, metrics
        self._output_bytes = output_bytes
        self._engine = asyncio.Semaphore(at_once)
        self._making_due: set[asyncio.Task[None]] = set()

    async def take(self, live: Live, action: actions.Action) -> None:
        """Does what was decided for this sandbox."""
        match action:
            case actions.Create():
                await self._create(live)
            case actions.Bind(run):
                await self._bind(live, run)
            case actions.Release(run):
                await self._release(live, run)
            case actions.MarkRunning(run):
                await self._start(live, run)
            case actions.Kill(run):
                await self._kill(live, run)
            case actions.Discard(run):
                await self._discard(live, run)
            case actions.Record() | actions.Retry():
                await self._record(live, action)
            case actions.Clean():
                await self._clean(live)
            case actions.Drop():
                self._lives.drop(live)
            case actions.Wait():
                pass
            case _:
                assert_never(action)

    async def _create(self, live: Live) -> None:
        if live.launch is None:
            return await self._refresh(live)
        try:
            async with self._engine:
                seen = await self._backend.create(live.launch, look=live.look)
        except RequestRejectedError as error:
            return await self._record(live, actions.Record(error.outcome))
        except ImagePullingError as error:
            return await self._put_back(live, error)
        live.created, live.missing, live.waiting = True, False, None
        if seen is not None:  # an inert other is what a listing from before still shows, removed by this very call
            live.runs = {
                uid: run for uid, run in live.runs.items() if run.phase is not Phase.INERT or uid == seen.run_uid
            }
            live.runs.setdefault(seen.run_uid, seen)
        return None

    async def _put_back(self, live: Live, away: ImagePullingError) -> None:
        """Lets it wait in the queue: until its image is there it holds nothing that another sandbox could use."""
        row, most = live.row, PULL_AGAIN_SECONDS if away.over is None else PULL_SECONDS
        delay = min(most, self._lives.left(live) + 0.1)  # past its start deadline the next claim ends it
        if not await self._store.put_back(PutBack(row.key, row.epoch, str(away), delay)):
            return await self._refresh(live)
        self._lives.drop(live)
        self._lives.freed()
        if away.over is not None:
            away.over.add_done_callback(lambda over: None if over.cancelled() else self._pulled(row.key))
        return None

    def _pulled(self, key: Key) -> None:
        """The pull that an attempt was put back for has ended, well or not: its next claim tells."""
        task = asyncio.create_task(self._make_due(key))
        self._making_due.add(task)
        task.add_done_callback(self._making_due.discard)

    async def _make_due(self, key: Key) -> None:
        if await self._store.make_due(MakeDue(key)):
            self._lives.freed()

    async def _bind(self, live: Live, run: ObservedRun) -> None:
        row = live.row
        if not await self._store.bind(Bind(row.key, row.epoch, run.run_uid)):
            return await self._refresh(live)
        live.fresh = row.run_uid is None and run.phase is Phase.INERT
        row.run_uid = run.run_uid
        live.launch = None
        return None

    async def _release(self, live: Live, run: ObservedRun) -> None:
        try:
            async with self._engine:
                await self._backend.release(live.row.key, run.run_uid)
        except RunNotFoundError:  # with an earlier release in doubt, it may have run and be gone
            phase = Phase.NEVER_STARTED if live.fresh else Phase.GONE
            live.runs[run.run_uid] = replace(run, phase=phase)
        except RequestRejectedError as error:
            live.runs[run.run_uid] = replace(run, phase=Phase.ENDED, outcome=error.outcome)
        except TransientEngineError:
            live.fresh = False
            raise
        else:
            if live.runs.get(run.run_uid, run).phase is Phase.INERT:
                live.runs[run.run_uid] = replace(run, phase=Phase.STARTING)
            live.fresh = False  # from now on, gone is not proof of never started
        self._lives.released(live)

    async def _start(self, live: Live, run: ObservedRun) -> None:
        row = live.row
        if not await self._store.start(MarkRunning(row.key, run.run_uid)):
            return await self._refresh(live)
        row.state, row.started_age = State.RUNNING, live.read_at - time.monotonic()
        live.waiting = None
        self._lives.released(live)
        return None

    async def _kill(self, live: Live, run: ObservedRun) -> None:
        # Without an answer it may be done all the same, and is due again.
        live.killed_at = time.monotonic() - KILL_AGAIN
        async with self._engine:
            await self._backend.kill(live.row.key, run.run_uid)
        live.killed_at = time.monotonic()

    async def _discard(self, live: Live, run: ObservedRun) -> None:
        async with self._engine:
            await self._backend.delete(live.row.key, run.run_uid)
        if run.run_uid == live.row.run_uid and run.phase is Phase.INERT:
            live.runs[run.run_uid] = replace(run, phase=Phase.NEVER_STARTED if live.fresh else Phase.GONE)
            live.missing = True
        else:
            live.runs.pop(run.run_uid, None)
            live.created = False

    async def _record(self, live: Live, action: actions.Record | actions.Retry) -> None:
        row, outcome = live.row, action.outcome
        run = live.runs.get(row.run_uid or "")
        output, lost = None, row.run_uid is not None and (run is None or run.phase is Phase.GONE)
        if run is not None and run.phase is Phase.ENDED:
            output, why = await self._output(live, run)
            lost = why is not None
            outcome = outcome if why is None else _without_output(outcome, f"could not be had: {why}")
        ended = replace(ended_by(row, action), outcome=outcome, seen=run, output=output, lost=lost)
        write = self._store.record if isinstance(action, actions.Record) else self._store.again
        try:
            done = await write(ended)
        except WriteRejectedError as error:
            if not error.data or output is None:
                raise
            told = _without_output(outcome, f"could not be stored: {error}")
            done = await write(replace(ended, outcome=told, output=None, lost=True))
            log.error("recorded without its output: %s", error, extra=about(row.key))
        if not done:
            return await self._refresh(live)
        self._lives.released(live)
        self._lives.freed()
        self._metrics.ended(outcome)
        log.info("%s %s", outcome.state, outcome.reason, extra=about(row.key))
        if isinstance(action, actions.Record):
            row.state = outcome.state
        else:
            self._lives.drop(live)
            await self._delete(live)  # where this fails, the sweep finds an object of a past attempt
        return None

    async def _delete(self, live: Live) -> None:
        uid = live.row.run_uid
        async with self._engine:
            await self._backend.delete(live.row.key, uid if uid is not None and set(live.runs) <= {uid} else None)

    async def _output(self, live: Live, run: ObservedRun) -> tuple[Output | None, str | None]:
        """What an ended run wrote; or why it cannot be had, which does not hold up the outcome."""
        try:
            async with self._engine:
                return await self._backend.output(run.key, run.run_uid, self._output_bytes), None
        except RunNotFoundError as error:
            unstarted = run.started_at is None and run.outcome is not None and run.outcome.reason is Reason.START_FAILED
            return None, None if unstarted else str(error)
        except TransientEngineError as error:
            live.output_due = live.output_due or time.monotonic() + OUTPUT_SECONDS
            if time.monotonic() < live.output_due:
                live.backoff = OUTPUT_PAUSE / 2  # it is doubled
                raise
            log.warning("recording without output: %s", error, extra=about(run.key))
            return None, str(error)

    async def _clean(self, live: Live) -> None:
        await self._delete(live)
        await self._store.clean(MarkCleaned(live.row.key))
        self._lives.drop(live)

    async def _refresh(self, live: Live) -> None:
        """Looks at the row again: somebody else wrote it."""
        row = (await self._store.facts([live.row.id])).get(live.row.id)
        if row is None or (row.attempt, row.epoch) != (live.row.attempt, live.row.epoch):
            return self._lives.drop(live)  # in other hands, and what was believed of its run with it
        live.row, live.read_at = row, time.monotonic()
        return None


def _without_output(outcome: Outcome, why: str) -> Outcome:
    told = (outcome.message or "")[:TOLD_MOST]  # the column has an end, and this is not to fall off it
    return replace(outcome, message="; ".join(filter(None, (told, f"its output {why}"))))
