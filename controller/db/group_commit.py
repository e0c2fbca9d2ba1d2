"""Writes that gather while the one before them is under way: group commit without a wait to fill it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Generic, TypeVar
from uuid import UUID

from controller.db.faults import Locked, Strained
from controller.db.writes import Write
from controller.logs import about

log = logging.getLogger(__name__)

MOST_ROWS, MOST_BYTES = 1000, 8 << 20  # of one statement
LOCKED_SECONDS = 0.5  # between looks at a row that another transaction holds
STRAINED_SECONDS = 2.0  # between tries of a row that the database has no room or time for


W = TypeVar("W", bound=Write)
Pair = tuple[W, asyncio.Future[bool]]  # a write, and where its answer goes


class Batch(Generic[W]):
    """Turns single writes into statements over all that wait; answers each whether its row matched.

    `write` raises Locked where it would have to wait for another transaction's rows, and `locked` tells which: those
    wait apart, so that a requester's open transaction holds up nobody else.
    """

    def __init__(
        self,
        write: Callable[[Sequence[W]], Awaitable[set[UUID]]],
        locked: Callable[[Sequence[UUID]], Awaitable[set[UUID]]],
    ) -> None:
        self._write, self._locked = write, locked
        self._deferred: set[asyncio.Task[None]] = set()
        self._waiting: list[Pair[W]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: W) -> bool:
        """Writes `item` with what else is ready. Raises WriteRejectedError if the database refuses this item."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._add((item, future))
        return await future

    def _add(self, pair: Pair[W]) -> None:
        self._waiting.append(pair)
        if self._task is None:
            self._task = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._settle(self._take())
        finally:
            self._task = None

    def _take(self) -> list[Pair[W]]:
        """As many as fit, each sandbox at most once: a statement takes only one of two writes to a row."""
        count = size = 0
        ids: set[UUID] = set()
        for item, _ in self._waiting[:MOST_ROWS]:
            size += item.size
            if (count and size > MOST_BYTES) or item.id in ids:
                break
            ids.add(item.id)
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return sorted(taken, key=lambda pair: pair[0].id)

    async def _settle(self, pairs: list[Pair[W]]) -> None:
        while pairs:
            try:
                done = await self._write([item for item, _ in pairs])
            except Locked:
                pairs = await self._set_locked_aside(pairs)
                continue
            except Exception as error:
                if half := len(pairs) // 2:  # one bad item must not hold up the others
                    await self._settle(pairs[:half])
                    await self._settle(pairs[half:])
                elif isinstance(error, Strained):
                    self._defer(pairs[0], asyncio.sleep(STRAINED_SECONDS))
                else:
                    _fail(pairs, error)
                return
            except BaseException:
                for _, future in pairs:
                    future.cancel()
                raise
            for item, future in pairs:
                if not future.done():
                    future.set_result(item.id in done)
            return

    async def _set_locked_aside(self, pairs: list[Pair[W]]) -> list[Pair[W]]:
        """Defer those whose rows another transaction holds; return the others."""
        try:
            held = await self._locked([item.id for item, _ in pairs])
        except Exception as error:
            _fail(pairs, error)
            return []
        for pair in pairs:
            if pair[0].id in held:
                log.warning("row locked by another transaction, waiting", extra=about(pair[0].key))
                self._defer(pair, self._unlocked(pair[0].id))
        return [pair for pair in pairs if pair[0].id not in held]

    def _defer(self, pair: Pair[W], waiting: Coroutine[None, None, None]) -> None:
        """Writes this one later, when `waiting` is over."""
        task = asyncio.create_task(self._rejoin(pair, waiting))
        self._deferred.add(task)
        task.add_done_callback(self._deferred.discard)

    async def _rejoin(self, pair: Pair[W], waiting: Coroutine[None, None, None]) -> None:
        try:
            await waiting
        except Exception as error:
            _fail([pair], error)
        except BaseException:
            pair[1].cancel()
            raise
        else:
            self._add(pair)

    async def _unlocked(self, sandbox_id: UUID) -> None:
        while await self._locked([sandbox_id]):  # noqa: ASYNC110 (its holder tells nobody when it lets go)
            await asyncio.sleep(LOCKED_SECONDS)


def _fail(pairs: Sequence[Pair[W]], error: Exception) -> None:
    for _, future in pairs:
        if not future.done():
            future.set_exception(error)
