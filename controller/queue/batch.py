"""Writes that gather while the one before them is under way: group commit without a wait to fill it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import psycopg


class Write(Protocol):
    """One row's share of a batch."""

    @property
    def id(self) -> UUID: ...

    @property
    def size(self) -> int:
        """Bytes, roughly."""


W = TypeVar("W", bound=Write)


class Batch(Generic[W]):
    """Turns single writes into statements over all that wait; answers each whether its row matched."""

    def __init__(
        self, write: Callable[[Sequence[W]], Awaitable[set[UUID]]], most: int = 1000, size: int = 8 << 20
    ) -> None:
        self._write = write
        self._most, self._size = most, size
        self._waiting: list[tuple[W, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: W) -> bool:
        """Writes `item` with whatever else is ready. Raises psycopg.Error where the database refuses this very item."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._settle(self._take())
        finally:
            self._task = None

    def _take(self) -> list[tuple[W, asyncio.Future[bool]]]:
        count = size = 0
        for item, _ in self._waiting[: self._most]:
            size += item.size
            if count and size > self._size:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return sorted(taken, key=lambda pair: pair[0].id)

    async def _settle(self, pairs: list[tuple[W, asyncio.Future[bool]]]) -> None:
        try:
            done = await self._write([item for item, _ in pairs])
        except psycopg.Error as error:
            if len(pairs) > 1:  # one bad item must not hold up the others
                for pair in pairs:
                    await self._settle([pair])
            elif not pairs[0][1].done():
                pairs[0][1].set_exception(error)
            return
        except BaseException:
            for _, future in pairs:
                future.cancel()
            raise
        for item, future in pairs:
            if not future.done():
                future.set_result(item.id in done)
