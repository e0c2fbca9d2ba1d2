"""Every engine in turn, for the one suite that all must pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import session_namespace
from tests.support.engines import Engine, Watched, make_engine


@pytest.fixture(params=["memory", "process", "docker", "kubernetes"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine, emptied of this test's runs at the end."""
    made = make_engine(request.param, tmp_path)
    if not made.real and request.node.get_closest_marker("real_shell"):
        pytest.skip("backend memory: it pretends commands, and this promise needs a shell")
    yield made
    clear(made)


@pytest.fixture
async def watched(engine: Engine) -> AsyncIterator[Watched]:
    """One adapter of the engine, open and observed."""
    async with engine.backend() as found:
        yield found


def clear(engine: Engine) -> None:
    """Deletes every run that the test left; a cluster's are gone a few seconds later."""
    if engine.name == "kubernetes":
        for path in session_namespace().leftovers(f"installation={engine.installation}"):
            session_namespace().delete(path)
        return

    async def delete_all() -> None:
        async with engine.backend() as watched:
            await watched.until("a listing", lambda: bool(watched.said))
            listing = watched.said[0]
            for seen in getattr(listing, "runs", ()):
                await watched.backend.delete(seen.key, None)

    asyncio.run(delete_all())
