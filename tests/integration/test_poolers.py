"""A pooler between controller and database: what it changes is noticed before anything is claimed or called lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controller.db.pool import Pool, check_own_sessions, connect_async, refuse_shared_sessions
from controller.db.registry import Registry
from controller.db.store import Store
from controller.errors import SettingsError
from controller.reconcile.presence import Presence
from tests.support.memory_backend import MemoryBackend

ME, ENGINE = "host/1-abc", "memory:one"


@asynccontextmanager
async def presence(url: str, name: str, me: str = ME) -> AsyncIterator[tuple[Presence, Registry]]:
    """That of the controller `me`, whose connections reach the server under `name`."""
    async with Pool(url, name, size=1) as pool:
        store = Store(pool, me, ENGINE, 1024)
        registry = Registry(store)
        yield Presence(registry, MemoryBackend(), me, ENGINE, grace=0.0, patience=1.0), registry


def test_a_controller_whose_name_does_not_arrive_refuses_to_start(database: str) -> None:
    async def test() -> None:
        async with presence(database, f"{ME} - 10.0.0.1:5") as (renamed, registry):
            with pytest.raises(SettingsError, match="a pooler that changes application_name"):
                async with renamed.entered():
                    pass
            assert await registry.attending() == []

    asyncio.run(test())


def test_a_name_that_stops_arriving_makes_nobody_count_as_gone(database: str) -> None:
    async def test() -> None:
        async with presence(database, ME) as (known, registry), known.entered():
            assert [each.connected for each in await known.tend()] == [True]
            assert known.sole
            async with presence(database, "a pool", "host/2-def") as (renamed, _):
                assert await renamed.tend() == []
                assert not renamed.sole
            assert [each.name for each in await registry.attending()] == [ME]

    asyncio.run(test())


def test_connections_that_share_a_session_are_refused(database: str) -> None:
    async def test() -> None:
        async with await connect_async(database, "one") as one, await connect_async(database, "other") as other:
            with pytest.raises(SettingsError, match="a pooler that shares sessions"):
                await check_own_sessions(one, one)
            await check_own_sessions(one, other)
        await refuse_shared_sessions(database)

    asyncio.run(test())
