"""A listing may take an engine minutes: what was made since it began is not in it, and is there all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from controller.backends.memory import MemoryBackend
from controller.model import Listing, Seen
from tests.support.control import control, table

GRACES = 10  # listings of 0.2 s each; the grace is 0.6 s


class Blind(MemoryBackend):
    """Its listings show nothing. They began when it was made, or just now."""

    def __init__(self, *, old: bool) -> None:
        super().__init__(list_seconds=0.2)
        self._begun = time.monotonic() if old else None
        self._listed = 0

    async def observe(self) -> AsyncIterator[Listing | Seen]:
        """The changes as they are, and listings without a run."""
        async for sight in super().observe():
            if isinstance(sight, Listing):
                self._listed += 1
                yield replace(sight, runs=(), begun=sight.begun if self._begun is None else self._begun)
            else:
                yield sight

    async def listed(self, times: int) -> None:
        """Waits for that many more listings."""
        last = self._listed + times
        async with asyncio.timeout(20):
            while self._listed < last:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("old", [True, False])
def test_a_run_counts_as_gone_only_by_a_listing_that_began_after_it(database: str, old: bool) -> None:
    async def test() -> None:
        backend = Blind(old=old)
        async with table(database) as asked, control(database, backend):
            sandbox = await asked.insert("sleep 600")
            await asked.until(sandbox, lambda row: row["state"] == "running")
            await backend.listed(GRACES)
            row = await asked.row(sandbox) if old else await asked.cleaned(sandbox)
            assert row["state"] == ("running" if old else "lost")

    asyncio.run(test())
