"""A keyed work queue with a dirty set and a backoff per key, after client-go's. It knows nothing of sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar, assert_never

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is due for the key until it is added again."""


@dataclass(frozen=True, slots=True)
class Again:
    """Progress was made and more may be due: process the key again at once."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """It failed: process the key again after `seconds`, or after its backoff, which doubles with each failure."""

    seconds: float | None = None


Result = Done | Again | RetryLater


class WorkQueue(Generic[K]):
    """Processes each added key, one task a key, until nothing is due for it.

    A key that is added while it is processed is marked dirty, and processed again right after, whatever comes of the
    processing under way: `add` means news, so it resets the key's backoff. `process` must not raise.
    `backoff` is seconds after the first failure, and the most that the doubling reaches. `schedule` is `call_later` of
    the running loop unless given.
    """

    def __init__(
        self,
        process: Callable[[K], Awaitable[Result]],
        backoff: tuple[float, float],
        schedule: Callable[[float, Callable[[], None]], asyncio.TimerHandle] | None = None,
    ) -> None:
        self._process, self._backoff, self._schedule = process, backoff, schedule
        self._dirty: set[K] = set()
        self._processing: dict[K, asyncio.Task[None]] = {}
        self._delays: dict[K, float] = {}  # seconds that the key's last failure waited
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def add(self, key: K) -> None:
        """Process the key at once, or right after the processing under way: something about it is new."""
        self._forget(key)
        if key in self._processing:
            self._dirty.add(key)
        else:
            self._start(key)

    def add_if_idle(self, key: K) -> None:
        """Process the key at once, unless it is being processed or waits out its backoff: nothing about it is new."""
        if key not in self._processing and key not in self._timers:
            self._start(key)

    def is_processing(self, key: K) -> bool:
        """Return whether the key is being processed now."""
        return key in self._processing

    async def drain(self, seconds: float) -> None:
        """Wait until nothing is being processed, `seconds` at most."""
        if self._processing:
            await asyncio.wait(set(self._processing.values()), timeout=seconds)

    def _start(self, key: K) -> None:
        self._processing[key] = asyncio.create_task(self._run(key))

    async def _run(self, key: K) -> None:
        try:
            while True:
                self._dirty.discard(key)
                result = await self._process(key)
                match result:
                    case Done():
                        self._forget(key)
                        if key not in self._dirty:
                            return None
                    case Again():
                        self._forget(key)
                    case RetryLater(seconds):
                        if key not in self._dirty:
                            return self._retry_later(key, seconds)
                    case _:
                        assert_never(result)
        finally:
            self._dirty.discard(key)
            del self._processing[key]

    def _retry_later(self, key: K, seconds: float | None) -> None:
        first, most = self._backoff
        delay = self._delays[key] = (
            min(max(self._delays.get(key, 0.0) * 2, first), most) if seconds is None else seconds
        )
        schedule = self._schedule or asyncio.get_running_loop().call_later
        self._timers[key] = schedule(delay, lambda: self._on_time(key))

    def _on_time(self, key: K) -> None:
        del self._timers[key]
        self._start(key)

    def _forget(self, key: K) -> None:
        self._delays.pop(key, None)
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
