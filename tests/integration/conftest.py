"""What several tests of this directory ask for: a requester's view of the database, and its owner's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.control import Table, table
from tests.support.database import Connection, connect
from tests.support.engines import Engine, Watched


@pytest.fixture
async def asked(database: str) -> AsyncIterator[Table]:
    """The database as a requester has it."""
    async with table(database) as asked:
        yield asked


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    """A connection of the database's owner."""
    with connect(database) as connection:
        yield connection


@pytest.fixture
async def watched(engine: Engine) -> AsyncIterator[Watched]:
    """A backend on the test's own engine, open and observed."""
    async with engine.backend() as watched:
        yield watched
