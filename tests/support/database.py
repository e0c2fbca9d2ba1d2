"""The queue from a test's side: connections, the named statements, a clock that stands still, rows by the thousand."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.sql import SQL, Identifier, Placeholder

from controller.db import sql
from controller.db.pool import Pool
from controller.db.store import Store

Connection = psycopg.Connection[DictRow]
QUEUE = sql.statements("queue.sql")
START = datetime(2030, 1, 1, tzinfo=UTC)  # second 0 of the fake clock
ENGINE = "engine-1"


@contextmanager
def connect(url: str, role: str | None = None) -> Iterator[Connection]:
    """A connection of the owner, or in the role's place."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("set enable_seqscan = off")  # as the controller's have it
        if role is not None:
            connection.execute(SQL("set session authorization {}").format(Identifier(role)))
        yield connection


def clock(connection: Connection, seconds: float) -> None:
    """Lets this connection's time stand still there; the others' goes on."""
    settable_clock(connection)
    connection.execute("select set_config('sandbox.now', %s, false)", [at(seconds).isoformat()])


def settable_clock(connection: Connection) -> None:
    """Puts a clock that a setting fakes in the place of this database's own, which no login can set."""
    if "sandbox.now" not in one(connection, "select pg_get_functiondef('sandbox_now'::regproc) as body")["body"]:
        connection.execute(
            "create or replace function sandbox_now() returns timestamptz language sql stable parallel safe"
            " return coalesce(nullif(current_setting('sandbox.now', true), '')::timestamptz, clock_timestamp())"
        )


def at(seconds: float) -> datetime:
    """That second of the fake clock."""
    return START + timedelta(seconds=seconds)


def ask(connection: Connection, name: str, **params: Any) -> list[DictRow]:
    """Runs one named statement of queue.sql."""
    return connection.execute(QUEUE[name], params).fetchall()


def insert(connection: Connection, **columns: Any) -> UUID:
    """One sandbox; without columns, `true`."""
    given = {"command": "true"} | columns
    query = SQL("insert into sandboxes ({}) values ({}) returning id").format(
        SQL(", ").join(map(Identifier, given)), SQL(", ").join(map(Placeholder, given))
    )
    found: UUID = one(connection, query, given)["id"]
    return found


def insert_many(connection: Connection, count: int, tenants: int = 1) -> None:
    """That many, spread over the tenants t0, t1, … in turn."""
    connection.execute(
        "insert into sandboxes (command, tenant) select 'true', 't' || i %% %s from generate_series(0, %s) i",
        [tenants, count - 1],
    )


def claim(connection: Connection, most: int = 1000, **other: Any) -> list[DictRow]:
    """A claim by controller `a`."""
    params = {"me": "a", "engine": ENGINE, "lease": 60.0, "max_running": 1_000_000, "most": most}
    return ask(connection, "claim", **(params | other))


def take_over(connection: Connection, **other: Any) -> list[DictRow]:
    """What controller `b` can take over."""
    params = {"me": "b", "engine": ENGINE, "lease": 60.0, "most": 1000, "mine": False, "held": []}
    return ask(connection, "take_over", **(params | other))


def one(connection: Connection, query: Any, params: Any = None) -> DictRow:
    """The only row of the answer."""
    [row] = connection.execute(query, params).fetchall()
    return row


def row(connection: Connection, sandbox_id: UUID) -> DictRow:
    """One sandbox, whole."""
    return one(connection, "select * from sandboxes where id = %s", [sandbox_id])


def steps(connection: Connection, sandbox_id: UUID) -> list[str]:
    """Its timeline."""
    found = connection.execute("select step from sandbox_events where sandbox_id = %s order by id", [sandbox_id])
    return [event["step"] for event in found]


@asynccontextmanager
async def opened(url: str, me: str = "a", size: int = 6, output_bytes: int = 1 << 20) -> AsyncIterator[Store]:
    """A controller's queue on its own pool."""
    async with Pool(url, me, size=size) as pool:
        yield Store(pool, me, ENGINE, output_bytes)


def until(connection: Connection, query: str, params: Any = None, seconds: float = 10.0) -> None:
    """Waits for the database to say true."""
    end = time.monotonic() + seconds
    while not next(iter(one(connection, query, params).values())):
        assert time.monotonic() < end, f"never true: {query}"
        time.sleep(0.005)


def kill_controllers(connection: Connection) -> None:
    """Ends every connection of the pools of controllers `a` and `b`."""
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name in ('a', 'b') and datname = current_database()"
    )


WAITS_FOR_LOCK = (
    "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())"
)


def together(parts: list[Callable[[], Any]]) -> list[Any]:
    """Runs them at once, one thread each; returns what each returned, or raises what one raised."""
    results: list[Any] = [None] * len(parts)
    begin = threading.Barrier(len(parts))

    def run(index: int) -> None:
        try:
            begin.wait(timeout=10)
            results[index] = parts[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
