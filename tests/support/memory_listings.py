"""A memory backend whose listings a test counts and changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from controller.protocol.model import Listing, ObservedRun
from tests.support.memory_backend import MemoryBackend, MemoryEngine

LIST_SECONDS = 0.2


class CountedListings(MemoryBackend):
    """Lists every 0.2 s; `change` is applied to each listing."""

    def __init__(self, engine: MemoryEngine | None = None, change: Callable[[Listing], Listing] = lambda each: each):
        super().__init__(engine, list_seconds=LIST_SECONDS)
        self._change, self._listed = change, 0

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """The sights of the engine, with changed listings."""
        async for sight in super().observe():
            if isinstance(sight, Listing):
                self._listed += 1
                sight = self._change(sight)
            yield sight

    async def lists(self, times: int) -> None:
        """Waits for that many more listings."""
        last = self._listed + times
        async with asyncio.timeout(20):
            while self._listed < last:
                await asyncio.sleep(0.02)
