"""The wake-up: notifications come through, a dead connection is never trusted, and the poll alone suffices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from controller.app import assemble
from controller.db.listener import ListenerConfig, listen
from controller.settings import Settings
from tests.support.database import Connection, ask, insert, insert_many, one, until
from tests.support.memory_backend import MemoryBackend
from tests.support.proxy import Proxy

LISTENS = (
    "select count(*) = 1 from pg_stat_activity"
    " where application_name = 'sandbox-listener' and datname = current_database() and state = 'idle'"
)


@asynccontextmanager
async def listening(
    url: str, channel: str = "sandbox_wake", config: ListenerConfig | None = None
) -> AsyncIterator[asyncio.Queue[str]]:
    """The wakes of a listener that is connected."""
    woken: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(30):
        listener = asyncio.create_task(listen(url, channel, woken.put_nowait, config))
        try:
            assert await woken.get() == ""  # connected: whatever came before is looked for
            yield woken
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def test_each_statement_wakes_once_with_what_it_was(database: str, owner: Connection) -> None:
    async with listening(database) as woken:
        made = insert(owner)
        assert await woken.get() == "insert"
        insert_many(owner, 1000)
        assert await woken.get() == "insert"
        owner.execute("update sandboxes set cancel_requested_at = now() where id = %s", [made])
        assert await woken.get() == "update"
        owner.execute("update sandboxes set waiting = 'x'")  # a controller's own writes wake nobody
        with owner.transaction(force_rollback=True):
            insert(owner)
        owner.execute("select pg_notify('sandbox_wake', 'last')")
        assert await woken.get() == "last"
        assert woken.empty()


async def test_an_outcome_is_told_to_whoever_listens(database: str, owner: Connection) -> None:
    async with listening(database, channel="sandbox_finished") as woken:
        made = insert(owner)
        owner.execute("update sandboxes set cancel_requested_at = now()")
        assert len(ask(owner, "cancel_queued")) == 1
        assert await woken.get() == str(made)


async def test_a_killed_listener_comes_back(database: str, owner: Connection) -> None:
    async with listening(database, config=ListenerConfig(reconnect=0.01)) as woken:
        owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'sandbox-listener'"
        )
        assert await woken.get() == ""
        insert(owner)
        assert await woken.get() == "insert"


async def test_a_half_open_connection_is_noticed_by_the_probe_and_replaced(database: str, owner: Connection) -> None:
    quick = ListenerConfig(probe=0.2, probe_timeout=0.2, reconnect=0.01)
    async with Proxy(database) as proxy, listening(proxy.url, config=quick) as woken:
        proxy.silence()
        insert(owner)  # its notification goes nowhere
        assert await woken.get() == ""  # reconnected: look at the table
        insert(owner)
        assert await woken.get() == "insert"
        assert proxy.accepted >= 2


async def test_a_listener_that_no_longer_listens_is_replaced(
    database: str, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that hands the session's connection to somebody else."""
    connected: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
    connect_really = psycopg.AsyncConnection.connect

    async def keep(*args: object, **kwargs: object) -> psycopg.AsyncConnection[tuple[object, ...]]:
        made = await connect_really(*args, **kwargs)  # type: ignore[arg-type]
        connected.append(made)
        return made

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", keep)
    async with listening(database, config=ListenerConfig(probe=0.1, reconnect=0.01)) as woken:
        insert(owner)
        assert await woken.get() == "insert"
        connected[0].pgconn.send_query(b"unlisten *")
        connected[0].pgconn.flush()
        assert await woken.get() == ""
        assert len(connected) == 2
        insert(owner)
        assert await woken.get() == "insert"


async def test_without_triggers_the_poll_still_claims(database: str, owner: Connection) -> None:
    owner.execute("drop trigger wake_on_insert on sandboxes")
    owner.execute("drop trigger wake_on_cancel on sandboxes")
    settings = Settings(database_url=database, sandbox_poll_seconds=0.05)
    async with asyncio.timeout(30), assemble(settings, MemoryBackend()) as (controller, _, _):
        stop = asyncio.Event()
        running = asyncio.create_task(controller.run(stop))
        short, long = insert(owner), insert(owner, command="sleep 1000")
        await asyncio.to_thread(until, owner, "select finished_at is not null from sandboxes where id = %s", [short])
        await asyncio.to_thread(until, owner, "select state = 'running' from sandboxes where id = %s", [long])
        owner.execute("update sandboxes set cancel_requested_at = now() where id = %s", [long])
        await asyncio.to_thread(until, owner, "select state = 'cancelled' from sandboxes where id = %s", [long])
        stop.set()
        await running


async def test_a_row_becomes_a_sandbox_and_its_result(database: str, owner: Connection) -> None:
    settings = Settings(database_url=database, sandbox_poll_seconds=60)
    async with asyncio.timeout(30), assemble(settings, MemoryBackend()) as (controller, _, _):
        stop = asyncio.Event()
        running = asyncio.create_task(controller.run(stop))
        listener = asyncio.create_task(listen(database, "sandbox_wake", controller.wake))
        await asyncio.to_thread(until, owner, LISTENS)
        made = insert(owner, command="echo hi; exit 3")
        await asyncio.to_thread(until, owner, "select finished_at is not null from sandboxes where id = %s", [made])
        result = one(owner, "select state, exit_code, reason, output, output_truncated, attempts from sandbox_results")
        assert result == {
            "state": "failed",
            "exit_code": 3,
            "reason": "NonZeroExit",
            "output": "hi\n",
            "output_truncated": False,
            "attempts": 1,
        }
        stop.set()
        await running
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
