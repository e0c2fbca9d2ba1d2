"""The wake-up: notifications come through, a dead connection is never trusted, and the poll alone suffices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from controller.app import assemble
from controller.db import listener as listening
from controller.db.listener import listen
from controller.settings import Settings
from tests.support.database import Connection, ask, insert, insert_many, one, until
from tests.support.memory_backend import MemoryBackend
from tests.support.proxy import Proxy

LISTENS = (
    "select count(*) = 1 from pg_stat_activity"
    " where application_name = 'sandbox-listener' and datname = current_database() and state = 'idle'"
)


def with_listener(
    url: str,
    work: Callable[[asyncio.Queue[str]], Awaitable[None]],
    *,
    channel: str = "sandbox_wake",
    probe: float = 10.0,
) -> None:
    """Runs `work` beside a listener whose wakes go into the queue."""

    async def go() -> None:
        woken: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.timeout(30):
            listener = asyncio.create_task(listen(url, channel, woken.put_nowait, probe))
            try:
                assert await woken.get() == ""  # connected: whatever came before is looked for
                await work(woken)
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    asyncio.run(go())


def test_each_statement_wakes_once_with_what_it_was(database: str, owner: Connection) -> None:
    async def work(woken: asyncio.Queue[str]) -> None:
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

    with_listener(database, work)


def test_an_outcome_is_told_to_whoever_listens(database: str, owner: Connection) -> None:
    async def work(woken: asyncio.Queue[str]) -> None:
        made = insert(owner)
        owner.execute("update sandboxes set cancel_requested_at = now()")
        assert len(ask(owner, "cancel_queued")) == 1
        assert await woken.get() == str(made)

    with_listener(database, work, channel="sandbox_finished")


def test_a_killed_listener_comes_back(database: str, owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "RECONNECT_SECONDS", 0.01)

    async def work(woken: asyncio.Queue[str]) -> None:
        owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'sandbox-listener'"
        )
        assert await woken.get() == ""
        insert(owner)
        assert await woken.get() == "insert"

    with_listener(database, work)


def test_a_half_open_connection_is_noticed_by_the_probe_and_replaced(
    database: str, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr(listening, "PROBE_TIMEOUT", 0.2)

    async def go() -> None:
        async with Proxy(database) as proxy:

            async def work(woken: asyncio.Queue[str]) -> None:
                proxy.silence()
                insert(owner)  # its notification goes nowhere
                assert await woken.get() == ""  # reconnected: look at the table
                insert(owner)
                assert await woken.get() == "insert"
                assert proxy.accepted >= 2

            woken: asyncio.Queue[str] = asyncio.Queue()
            async with asyncio.timeout(30):
                listener = asyncio.create_task(listen(proxy.url, "sandbox_wake", woken.put_nowait, 0.2))
                assert await woken.get() == ""
                await work(woken)
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    asyncio.run(go())


def test_a_listener_that_no_longer_listens_is_replaced(
    database: str, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that hands the session's connection to somebody else."""
    monkeypatch.setattr(listening, "RECONNECT_SECONDS", 0.01)
    connected: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
    connect_really = psycopg.AsyncConnection.connect

    async def keep(*args: object, **kwargs: object) -> psycopg.AsyncConnection[tuple[object, ...]]:
        made = await connect_really(*args, **kwargs)  # type: ignore[arg-type]
        connected.append(made)
        return made

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", keep)

    async def work(woken: asyncio.Queue[str]) -> None:
        insert(owner)
        assert await woken.get() == "insert"
        connected[0].pgconn.send_query(b"unlisten *")
        connected[0].pgconn.flush()
        assert await woken.get() == ""
        assert len(connected) == 2
        insert(owner)
        assert await woken.get() == "insert"

    with_listener(database, work, probe=0.1)


def test_without_triggers_the_poll_still_claims(database: str, owner: Connection) -> None:
    owner.execute("drop trigger wake_on_insert on sandboxes")
    owner.execute("drop trigger wake_on_cancel on sandboxes")

    async def go() -> None:
        settings = Settings(database_url=database, sandbox_poll_seconds=0.05)
        async with asyncio.timeout(30), assemble(settings, MemoryBackend()) as (controller, _, _):
            stop = asyncio.Event()
            running = asyncio.create_task(controller.run(stop))
            short, long = insert(owner), insert(owner, command="sleep 1000")
            await asyncio.to_thread(
                until, owner, "select finished_at is not null from sandboxes where id = %s", [short]
            )
            await asyncio.to_thread(until, owner, "select state = 'running' from sandboxes where id = %s", [long])
            owner.execute("update sandboxes set cancel_requested_at = now() where id = %s", [long])
            await asyncio.to_thread(until, owner, "select state = 'cancelled' from sandboxes where id = %s", [long])
            stop.set()
            await running

    asyncio.run(go())


def test_a_row_becomes_a_sandbox_and_its_result(database: str, owner: Connection) -> None:
    async def go() -> None:
        settings = Settings(database_url=database, sandbox_poll_seconds=60)
        async with asyncio.timeout(30), assemble(settings, MemoryBackend()) as (controller, _, _):
            stop = asyncio.Event()
            running = asyncio.create_task(controller.run(stop))
            listener = asyncio.create_task(listen(database, "sandbox_wake", controller.wake))
            await asyncio.to_thread(until, owner, LISTENS)
            made = insert(owner, command="echo hi; exit 3")
            await asyncio.to_thread(until, owner, "select finished_at is not null from sandboxes where id = %s", [made])
            result = one(
                owner, "select state, exit_code, reason, output, output_truncated, attempts from sandbox_results"
            )
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

    asyncio.run(go())
