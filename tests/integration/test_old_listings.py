"""A listing may take an engine minutes: what was made since it began is not in it, and is there all the same."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from controller.protocol.model import Listing
from tests.support.control import control, table
from tests.support.memory_listings import CountedListings

GRACES = 10  # listings of 0.2 s each; the grace is 0.6 s


@pytest.mark.parametrize("old", [True, False])
def test_a_run_counts_as_gone_only_by_a_listing_that_began_after_it(database: str, old: bool) -> None:
    async def test() -> None:
        made = time.monotonic()

        def blind(listing: Listing) -> Listing:
            return replace(listing, runs=(), begun=made if old else listing.begun)

        backend = CountedListings(change=blind)
        async with table(database) as asked, control(database, backend):
            sandbox = await asked.insert("sleep 600")
            await asked.until(sandbox, lambda row: row["state"] == "running")
            await backend.lists(GRACES)
            row = await asked.row(sandbox) if old else await asked.cleaned(sandbox)
            assert row["state"] == ("running" if old else "lost")

    asyncio.run(test())
