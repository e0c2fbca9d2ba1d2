"""Carries sandboxes through the protocol: acts on one decision after another until each has to wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import assert_never
from uuid import UUID

import psycopg

from controller.backends.base import Backend
from controller.errors import NotNow, Refused, Vanished
from controller.lifecycle import KILL_MARGIN, Do, Standing, Step, decide
from controller.log import about
from controller.metrics import Metrics
from controller.model import Launch, Output, Phase, Row, Seen, State
from controller.queue.store import Bind, Ended, Mark, Queue

log = logging.getLogger(__name__)

BACKOFF_FIRST, BACKOFF_MOST = 0.2, 10.0  # seconds between tries of what the engine had no room or no answer for
KILL_AGAIN = 10.0  # seconds after which a run that was told to end is told again
ORDER = (Phase.INERT, Phase.STARTING, Phase.RUNNING, Phase.GONE, Phase.NEVER, Phase.ENDED)  # later knowledge stays
OUTPUT_TRIES = 4  # what cannot be read by then does not hold up the outcome


@dataclass(slots=True, eq=False)
class Live:
    """A sandbox in this controller's hands. Nothing here that the next controller could not find out."""

    row: Row
    read_at: float  # monotonic seconds when the row's ages were read
    lease_end: float = 0.0  # monotonic; before it the row is ours to launch
    launch: Launch | None = None  # until it is bound
    look: bool = False  # its object may be there already
    created: bool = False
    fresh: bool = False  # bound by us, for the first time, and no release of ours went unanswered
    runs: dict[str, Seen] = field(default_factory=dict)
    waiting: str | None = None
    told: str | None = None  # the last `waiting` that the row was given
    missing: bool = False
    killed_at: float | None = None
    backoff: float = 0.0
    not_before: float = 0.0
    output_tries: int = 0
    busy: bool = False


class Steps:
    """Takes the protocol's steps for the sandboxes in hand, each sandbox by one task at a time."""

    def __init__(
        self,
        queue: Queue,
        backend: Backend,
        metrics: Metrics,
        *,
        start_deadline: float,
        output_bytes: int,
        at_once: int,
    ) -> None:
        self._queue, self._backend, self._metrics = queue, backend, metrics
        self._start_deadline, self._output_bytes = start_deadline, output_bytes
        self._engine = asyncio.Semaphore(at_once)
        self.freed: Callable[[], None] = lambda: None  # called where another row may have become claimable
        self._tasks: set[asyncio.Task[None]] = set()
        self.lives: dict[UUID, Live] = {}
        self.launching: set[UUID] = set()  # claimed, and not yet released
        self.stopping = False

    def hold(self, live: Live) -> None:
        """Takes this sandbox in hand, and on."""
        self.lives[live.row.id] = live
        self.poke(live)

    def saw(self, seen: Seen) -> None:
        """Takes in what the engine says of one run; of sandboxes in other hands nothing."""
        live = self.lives.get(seen.key.sandbox_id)
        if live is None or live.row.attempt != seen.key.attempt:
            return
        if seen.phase is Phase.GONE and seen.run_uid not in live.runs and seen.run_uid != live.row.run_uid:
            return
        known = live.runs.get(seen.run_uid)
        if known is not None and _rank(known) >= _rank(seen) and known.waiting == seen.waiting:
            return
        live.runs[seen.run_uid] = seen
        live.missing = seen.phase is Phase.GONE
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
        live = self.lives.get(sandbox_id)
        if live is not None and not live.row.cancelled:
            live.row.cancelled = True
            self.poke(live)

    async def settled(self, timeout: float) -> None:
        """Waits until the steps under way are done, at most `timeout` seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)

    def standing(self, live: Live) -> Standing:
        """What is known of it beside its row and runs."""
        now, row = time.monotonic(), live.row
        since = now - live.read_at
        return Standing(
            mine=now < live.lease_end and not self.stopping,
            created=live.created,
            overdue=row.claimed_age is not None and row.claimed_age + since > self._start_deadline,
            overrun=row.started_age is not None and row.started_age + since > row.timeout_seconds + KILL_MARGIN,
            missing=live.missing,
            killed=live.killed_at is not None and now - live.killed_at < KILL_AGAIN,
            waiting=live.waiting,
        )

    async def _carry(self, live: Live) -> None:
        try:
            await self._onward(live)
        except NotNow as error:
            live.waiting = str(error)
            await self._tell_waiting(live)
            self._later(live)
        except Exception:  # whatever one row does, the others go on
            self._metrics.errors.inc()
            log.exception("a step failed and will be tried again", extra=about(live.row.key))
            self._later(live)
        finally:
            live.busy = False

    async def _onward(self, live: Live) -> None:
        while self.lives.get(live.row.id) is live:
            step = decide(live.row, live.runs.values(), self.standing(live))
            if step.do is not Do.WAIT:
                await self._take(live, step)
                live.backoff = 0.0
            elif not await self._tell_waiting(live):
                return  # nothing was awaited since the decision, so nothing seen since it is missed

    def _later(self, live: Live) -> None:
        live.look = True
        live.backoff = min(max(live.backoff * 2, BACKOFF_FIRST), BACKOFF_MOST)
        live.not_before = time.monotonic() + live.backoff
        asyncio.get_running_loop().call_later(live.backoff + 0.001, self._retry, live)

    def _retry(self, live: Live) -> None:
        if self.lives.get(live.row.id) is live:
            self.poke(live)

    async def _tell_waiting(self, live: Live) -> bool:
        run = live.runs.get(live.row.run_uid or "")
        if run is not None and run.waiting:
            live.waiting = run.waiting
        if live.waiting is None or live.waiting == live.told or live.row.state is not State.LAUNCHING:
            return False
        live.told = live.waiting
        await self._queue.wait(Mark(live.row.key, live.waiting))
        return True

    async def _take(self, live: Live, step: Step) -> None:
        match step.do:
            case Do.CREATE:
                await self._create(live)
            case Do.BIND:
                await self._bind(live, _run(step))
            case Do.RELEASE:
                await self._release(live, _run(step))
            case Do.START:
                await self._start(live, _run(step))
            case Do.KILL:
                async with self._engine:
                    await self._backend.kill(live.row.key, _run(step).run_uid)
                live.killed_at = time.monotonic()
            case Do.DISCARD:
                await self._discard(live, _run(step))
            case Do.RECORD | Do.AGAIN:
                await self._record(live, step)
            case Do.CLEAN:
                await self._clean(live)
            case Do.DROP:
                self.drop(live)
            case Do.WAIT:
                pass
            case _:
                assert_never(step.do)

    async def _create(self, live: Live) -> None:
        if live.launch is None:
            return await self._refresh(live)
        try:
            async with self._engine:
                seen = await self._backend.create(live.launch, look=live.look)
        except Refused as error:
            return await self._record(live, Step(Do.RECORD, outcome=error.outcome))
        live.created, live.missing = True, False
        if seen is not None:
            live.runs.setdefault(seen.run_uid, seen)
        return None

    async def _bind(self, live: Live, run: Seen) -> None:
        row = live.row
        if not await self._queue.bind(Bind(row.key, row.epoch, run.run_uid)):
            return await self._refresh(live)
        live.fresh = row.run_uid is None and run.phase is Phase.INERT
        row.run_uid = run.run_uid
        live.launch = None
        return None

    async def _release(self, live: Live, run: Seen) -> None:
        try:
            async with self._engine:
                await self._backend.release(live.row.key, run.run_uid)
        except Vanished:  # with an earlier release in doubt, it may have run and be gone
            phase = Phase.NEVER if live.fresh else Phase.GONE
            live.runs[run.run_uid] = replace(run, phase=phase)
        except Refused as error:
            live.runs[run.run_uid] = replace(run, phase=Phase.ENDED, outcome=error.outcome)
        except NotNow:
            live.fresh = False
            raise
        else:
            if live.runs[run.run_uid].phase is Phase.INERT:
                live.runs[run.run_uid] = replace(run, phase=Phase.STARTING)
        self._released(live)

    async def _start(self, live: Live, run: Seen) -> None:
        row = live.row
        if not await self._queue.start(Mark(row.key, run.run_uid)):
            return await self._refresh(live)
        row.state, row.started_age = State.RUNNING, live.read_at - time.monotonic()
        live.waiting = None
        self._released(live)
        return None

    async def _discard(self, live: Live, run: Seen) -> None:
        async with self._engine:
            await self._backend.delete(live.row.key, run.run_uid)
        if run.run_uid == live.row.run_uid and run.phase is Phase.INERT:
            live.runs[run.run_uid] = replace(run, phase=Phase.NEVER)
        else:
            del live.runs[run.run_uid]
            live.created = False

    async def _record(self, live: Live, step: Step) -> None:
        row, outcome = live.row, step.outcome
        if outcome is None:
            raise ValueError(f"{step} has no outcome")
        run = live.runs.get(row.run_uid or "")
        output = await self._output(live, run) if run is not None and run.phase is Phase.ENDED else None
        write = self._queue.record if step.do is Do.RECORD else self._queue.again
        ended = Ended(row.key, row.run_uid, outcome, run, output, step.counted, step.delay)
        try:
            done = await write(ended)
        except psycopg.Error as error:
            log.error("the output cannot be stored, recording without it: %s", error, extra=about(row.key))
            done = await write(replace(ended, output=None))
        if not done:
            return await self._refresh(live)
        self._released(live)
        self.freed()
        self._metrics.ended(outcome)
        log.info("%s %s", outcome.state, outcome.reason, extra=about(row.key))
        if step.do is Do.RECORD:
            row.state = outcome.state
        else:
            self.drop(live)
            await self._delete(live)  # where this fails, the sweep finds an object of a past attempt
        return None

    async def _delete(self, live: Live) -> None:
        uid = live.row.run_uid
        async with self._engine:
            await self._backend.delete(live.row.key, uid if uid is not None and set(live.runs) <= {uid} else None)

    async def _output(self, live: Live, run: Seen) -> Output | None:
        try:
            async with self._engine:
                return await self._backend.output(run.key, run.run_uid, self._output_bytes)
        except Vanished:
            return None
        except NotNow as error:
            live.output_tries += 1
            if live.output_tries < OUTPUT_TRIES:
                raise
            log.warning("recording without output: %s", error, extra=about(run.key))
            return None

    async def _clean(self, live: Live) -> None:
        await self._delete(live)
        await self._queue.clean(Mark(live.row.key))
        self.drop(live)

    async def _refresh(self, live: Live) -> None:
        """Looks at the row again: somebody else wrote it."""
        row = (await self._queue.facts([live.row.id])).get(live.row.id)
        if row is None or row.attempt != live.row.attempt:
            return self.drop(live)
        if row.epoch != live.row.epoch:
            live.lease_end = 0.0
            self._released(live)
        live.row, live.read_at = row, time.monotonic()
        return None

    def drop(self, live: Live) -> None:
        """Lets go of a sandbox that needs no more, or is in other hands."""
        self.lives.pop(live.row.id, None)
        self._released(live)

    def _released(self, live: Live) -> None:
        if live.row.id in self.launching:
            self.launching.discard(live.row.id)
            self.freed()


def _run(step: Step) -> Seen:
    if step.run is None:
        raise ValueError(f"{step} names no run")
    return step.run


def _rank(seen: Seen) -> int:
    return ORDER.index(seen.phase)
