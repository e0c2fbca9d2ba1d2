"""Reconciles tracked sandboxes: decides what is due for one, executes it, and goes on until nothing is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never
from uuid import UUID

from controller.backends.base import Backend
from controller.db.store import Store
from controller.db.writes import MakeDue, MarkCleaned, PutBack, SetWaiting, WriteBind, WriteRunning, ended_by
from controller.errors import (
    DatabaseExchangedError,
    DatabaseUnavailableError,
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
from controller.reconcile.config import ControllerConfig
from controller.reconcile.tracker import TrackedSandbox, Tracker
from controller.reconcile.workqueue import Again, Done, Result, RetryLater, WorkQueue

log = logging.getLogger(__name__)

PULL_SECONDS = 60.0  # that a row waits for a pull whose end nobody reports: its controller has gone
PULL_AGAIN_SECONDS = 10.0  # before another try of a pull that failed
MESSAGE_CHARACTERS = 1500  # of an outcome's message that a sentence about its output follows: the column has an end


class Worker:
    """Takes each tracked sandbox from action to action, again whenever something about it is new.

    An action is one request to the table or to the engine. Each may fail, and may then be executed again.
    `on_room` is called when another row may have become claimable.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        tracker: Tracker,
        metrics: Metrics,
        config: ControllerConfig,
        on_room: Callable[[], None],
    ) -> None:
        self._store, self._backend, self._tracker, self._metrics = store, backend, tracker, metrics
        self._config, self._on_room = config, on_room
        self._engine = asyncio.Semaphore(config.engine_calls)
        self.queue: WorkQueue[Key] = WorkQueue(self.reconcile, config.backoff)
        self._making_due: set[asyncio.Task[None]] = set()

    def track(self, tracked: TrackedSandbox, *, launching: bool = False) -> None:
        """Track the sandbox, and begin to work on it."""
        self._tracker.add(tracked, launching=launching)
        self.queue.add(tracked.row.key)

    def observe(self, run: ObservedRun) -> None:
        """Take in what the engine reports of one run."""
        tracked = self._tracker.get(run.key)
        if tracked is not None and tracked.on_observed(run, self._tracker.clock()):
            self.queue.add(run.key)

    def cancel(self, sandbox_id: UUID) -> None:
        """Take in that the sandbox's requester asked for its end."""
        tracked = self._tracker.sandboxes.get(sandbox_id)
        if tracked is not None and tracked.on_cancel_requested():
            self.queue.add(tracked.row.key)

    async def reconcile(self, key: Key) -> Result:
        """Decide what is due for one sandbox, and execute it; return when to come back to it. Raises nothing."""
        tracked = self._tracker.get(key)
        if tracked is None:
            return Done()
        try:
            try:
                return await self._advance(tracked)
            except TransientEngineError as error:
                tracked.on_failed(str(error))
                await self._write_waiting(tracked)
                return RetryLater(self._config.output_pause if tracked.output_deadline is not None else None)
        except (DatabaseUnavailableError, DatabaseExchangedError, WriteRejectedError) as error:
            log.warning("action failed, retrying", extra=about(key, error=error))
        except Exception:  # one row's error must not stop the others
            self._metrics.errors.inc()
            log.exception("unexpected error, retrying", extra=about(key))
        tracked.on_failed()
        return RetryLater()

    async def _advance(self, tracked: TrackedSandbox) -> Result:
        action = self._tracker.next_action(tracked)
        if isinstance(action, actions.Wait):
            return Again() if await self._write_waiting(tracked) else Done()
        await self._execute(tracked, action)
        return Again()

    async def _write_waiting(self, tracked: TrackedSandbox) -> bool:
        waiting = tracked.waiting_to_write()
        if waiting is None:
            return False
        await self._store.set_waiting(SetWaiting(tracked.row.key, waiting))
        tracked.on_waiting_written(waiting)
        return True

    async def _execute(self, tracked: TrackedSandbox, action: actions.Action) -> None:
        match action:
            case actions.Create():
                await self._create(tracked)
            case actions.Bind(run):
                await self._bind(tracked, run)
            case actions.Release(run):
                await self._release(tracked, run)
            case actions.MarkRunning(run):
                await self._mark_running(tracked, run)
            case actions.Kill(run):
                await self._kill(tracked, run)
            case actions.Discard(run):
                async with self._engine:
                    await self._backend.delete(tracked.row.key, run.run_uid)
                tracked.on_discarded(run)
            case actions.Record() | actions.Retry():
                await self._record(tracked, action)
            case actions.Clean():
                await self._delete(tracked)
                await self._store.mark_cleaned(MarkCleaned(tracked.row.key))
                self._tracker.drop(tracked)
            case actions.Drop():
                self._tracker.drop(tracked)
            case actions.Wait():
                pass
            case _:
                assert_never(action)

    async def _create(self, tracked: TrackedSandbox) -> None:
        if tracked.launch is None:
            return await self._refresh(tracked)
        try:
            async with self._engine:
                run = await self._backend.create(tracked.launch, look=tracked.may_exist)
        except RequestRejectedError as error:
            return await self._record(tracked, actions.Record(error.outcome))
        except ImagePullingError as error:
            return await self._put_back(tracked, error)
        return tracked.on_created(run, self._tracker.clock())

    async def _put_back(self, tracked: TrackedSandbox, pulling: ImagePullingError) -> None:
        """Let it wait in the queue: until its image is there it holds nothing that another sandbox could use."""
        row, most = tracked.row, PULL_AGAIN_SECONDS if pulling.over is None else PULL_SECONDS
        delay = min(most, self._tracker.launch_seconds_left(tracked) + 0.1)  # after its deadline the next claim ends it
        if not await self._store.put_back(PutBack(row.key, row.epoch, str(pulling), delay)):
            return await self._refresh(tracked)
        if tracked.row.epoch == row.epoch:  # else it was claimed again before this answer came
            self._tracker.drop(tracked)
        self._on_room()
        if pulling.over is not None:
            pulling.over.add_done_callback(lambda over: None if over.cancelled() else self._pulled(row.key))
        return None

    def _pulled(self, key: Key) -> None:
        """The pull that an attempt waits for has ended, well or not: the next claim finds out."""
        task = asyncio.create_task(self._make_due(key))
        self._making_due.add(task)
        task.add_done_callback(self._making_due.discard)

    async def _make_due(self, key: Key) -> None:
        if await self._store.make_due(MakeDue(key)):
            self._on_room()

    async def _bind(self, tracked: TrackedSandbox, run: ObservedRun) -> None:
        if not await self._store.bind(WriteBind(tracked.row.key, tracked.row.epoch, run.run_uid)):
            return await self._refresh(tracked)
        return tracked.on_bound(run)

    async def _release(self, tracked: TrackedSandbox, run: ObservedRun) -> None:
        try:
            async with self._engine:
                await self._backend.release(tracked.row.key, run.run_uid)
        except RunNotFoundError:
            tracked.on_release_found_nothing(run)
        except RequestRejectedError as error:
            tracked.on_release_rejected(run, error.outcome)
        except BaseException:
            tracked.on_release_unanswered()
            raise
        else:
            tracked.on_released(run)
        self._tracker.free_slot(tracked)

    async def _mark_running(self, tracked: TrackedSandbox, run: ObservedRun) -> None:
        if not await self._store.mark_running(WriteRunning(tracked.row.key, run.run_uid)):
            return await self._refresh(tracked)
        tracked.on_marked_running(self._tracker.clock())
        return self._tracker.free_slot(tracked)

    async def _kill(self, tracked: TrackedSandbox, run: ObservedRun) -> None:
        tracked.on_kill_sending(self._tracker.clock())
        async with self._engine:
            await self._backend.kill(tracked.row.key, run.run_uid)
        tracked.on_kill_answered(self._tracker.clock())

    async def _record(self, tracked: TrackedSandbox, action: actions.Record | actions.Retry) -> None:
        row, run, outcome, output = tracked.row, tracked.bound_run, action.outcome, None
        lost = row.run_uid is not None and (run is None or run.phase is Phase.GONE)
        if run is not None and run.phase is Phase.ENDED:
            output, why = await self._output(tracked, run)
            lost = why is not None
            outcome = outcome if why is None else _without_output(outcome, f"could not be had: {why}")
        ended = replace(ended_by(row, action), outcome=outcome, seen=run, output=output, lost=lost)
        write = self._store.record if isinstance(action, actions.Record) else self._store.requeue
        try:
            done = await write(ended)
        except WriteRejectedError as error:
            if not error.data or output is None:
                raise
            outcome = _without_output(outcome, f"could not be stored: {error}")
            done = await write(replace(ended, outcome=outcome, output=None, lost=True))
            log.error("recorded without the output", extra=about(row.key, error=error))
        if not done:
            return await self._refresh(tracked)
        self._tracker.free_slot(tracked)
        self._on_room()
        self._metrics.ended(outcome)
        log.info("outcome recorded", extra=about(row.key, state=outcome.state, reason=outcome.reason))
        if isinstance(action, actions.Record):
            return tracked.on_recorded(outcome)
        self._tracker.drop(tracked)
        return await self._delete(tracked)  # if this fails, the sweep finds an object of a past attempt

    async def _delete(self, tracked: TrackedSandbox) -> None:
        uid = tracked.row.run_uid
        alone = uid is not None and set(tracked.runs) <= {uid}
        async with self._engine:
            await self._backend.delete(tracked.row.key, uid if alone else None)

    async def _output(self, tracked: TrackedSandbox, run: ObservedRun) -> tuple[Output | None, str | None]:
        """Return what an ended run wrote; or None and why that cannot be had, which does not hold up the outcome."""
        try:
            async with self._engine:
                return await self._backend.output(run.key, run.run_uid, self._config.output_bytes), None
        except RunNotFoundError as error:
            unstarted = run.started_at is None and run.outcome is not None and run.outcome.reason is Reason.START_FAILED
            return None, None if unstarted else str(error)
        except TransientEngineError as error:
            if tracked.on_output_unanswered(self._tracker.clock(), self._config.output_patience):
                raise
            log.warning("recording without the output", extra=about(run.key, error=error))
            return None, str(error)

    async def _refresh(self, tracked: TrackedSandbox) -> None:
        """Read the row again, since somebody else wrote it. In another controller's hands it is not tracked any more,
        and nothing that was believed of its run is."""
        row = (await self._store.rows([tracked.row.id])).get(tracked.row.id)
        if row is not None and tracked.is_older(row):
            return
        if row is None or not tracked.is_same_claim(row):
            self._tracker.drop(tracked)
            return
        tracked.on_row(row, self._tracker.clock())
        if row.state is not State.LAUNCHING:
            self._tracker.free_slot(tracked)


def _without_output(outcome: Outcome, why: str) -> Outcome:
    message = (outcome.message or "")[:MESSAGE_CHARACTERS]
    return replace(outcome, message="; ".join(filter(None, (message, f"its output {why}"))))
