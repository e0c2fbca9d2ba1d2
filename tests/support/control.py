"""Controllers in the test's own process, hurried, on a fake engine whose every verb may fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from controller import app
from controller.backends.base import Backend
from controller.db.listener import listen
from controller.db.store import Store
from controller.reconcile.controller import Controller, cancel
from controller.settings import Settings

DEADLINE = 20.0  # seconds that a condition may take to come true


class Table:
    """The database as a requester has it."""

    def __init__(self, connection: psycopg.AsyncConnection[DictRow]) -> None:
        self._connection = connection

    async def rows(self, statement: str, *values: object) -> list[DictRow]:
        """Whatever that statement returns."""
        cursor = await self._connection.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []

    async def insert(self, command: str = "echo hi; exit 3", **columns: Any) -> Any:
        """Asks for a sandbox; its id."""
        names, values = ["command", *columns], [command, *columns.values()]
        places = ", ".join(["%s"] * len(values))
        rows = await self.rows(f"insert into sandboxes ({', '.join(names)}) values ({places}) returning id", *values)
        return rows[0]["id"]

    async def row(self, sandbox: Any) -> DictRow:
        """The whole row."""
        return (await self.rows("select * from sandboxes where id = %s", sandbox))[0]

    async def cancel(self, sandbox: Any) -> None:
        """Asks for its end."""
        await self.rows("update sandboxes set cancel_requested_at = now() where id = %s", sandbox)

    async def until(self, sandbox: Any, true: Callable[[DictRow], bool], what: str = "the row to change") -> DictRow:
        """Waits for a condition on the row."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not true(row := await self.row(sandbox)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            events = await self.rows("select attempt, step, detail from sandbox_events where sandbox_id = %s", sandbox)
            pytest.fail(f"waited {DEADLINE} s for {what}: {await self.row(sandbox)}\n{events}")
        return row

    async def cleaned(self, sandbox: Any) -> DictRow:
        """Waits for the end of it all."""
        return await self.until(sandbox, lambda row: row["cleaned_at"] is not None, "the end")


@asynccontextmanager
async def table(url: str) -> AsyncIterator[Table]:
    """A connection to ask by."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row) as connection:
        yield Table(connection)


@asynccontextmanager
async def control(
    url: str,
    backend: Backend,
    config: Mapping[str, Any] | None = None,
    *,
    listen_url: str | None = None,
    store_type: type[Store] = Store,
    **settings: Any,
) -> AsyncIterator[Controller]:
    """A controller at work, which stops in order at the end.

    `config`: fields of its ControllerConfig; `listen_url`: of another way to the database, for its notifications.
    """
    asked = Settings(database_url=url, **{"sandbox_poll_seconds": 0.1, **settings})
    hurried: dict[str, Any] = {"resync": 0.2, "missing_grace": 0.6, "engine_grace": 0.5, "mark_patience": 0.5}
    hurried_config = replace(app.config_of(asked, backend), **hurried, **(config or {}))
    async with app.assemble(asked, backend, hurried_config, store_type=store_type) as (controller, _, _):
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(controller.run(stop)),
            asyncio.create_task(listen(listen_url or url, "sandbox_wake", controller.wake)),
        ]
        try:
            yield controller
        finally:
            stop.set()
            await tasks[0]
            await cancel(tasks)
