"""A running controller whose DATABASE_URL suddenly leads to another installation's database touches nothing there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from controller.db.migrate import migrate
from controller.db.pool import Pool
from controller.db.store import Store
from controller.errors import DatabaseExchangedError, DatabaseUnavailableError
from tests.support.database import ENGINE, Connection, connect, insert, one, row, until
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy

SECONDS = 30.0  # in which a controller notices, and ends


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Postgres, Postgres]]:
    """Two servers, on each of them a database with an installation of its own."""
    made = Postgres(tmp_path / "first"), Postgres(tmp_path / "second")
    try:
        for server in made:
            migrate(server.url, {})
        yield made
    finally:
        for server in made:
            server.stop()


def installation(connection: Connection) -> UUID:
    found: UUID = one(connection, "select id from sandbox_installation")["id"]
    return found


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database) as opened:
        yield opened


@asynccontextmanager
async def running(url: str, work_dir: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m controller run` on that database, with processes as its engine; ended at the end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SANDBOX_", "PG"))}
    env |= {"DATABASE_URL": url, "LOG_FORMAT": "console", "HTTP_PORT": "0"}
    env |= {"SANDBOX_BACKEND": "process", "SANDBOX_WORK_DIR": str(work_dir), "SANDBOX_POLL_SECONDS": "0.2"}
    words = (sys.executable, "-m", "controller", "run")
    started = await asyncio.create_subprocess_exec(*words, env=env, stderr=subprocess.PIPE)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
            await asyncio.wait_for(started.communicate(), 60)


async def test_a_controller_ends_and_its_next_start_is_the_other_installations(
    servers: tuple[Postgres, Postgres], tmp_path: Path
) -> None:
    first, second = servers
    with connect(first.url) as ours, connect(second.url) as theirs:
        async with Proxy(first.url) as proxy:
            runs = insert(ours, command="sleep 8; exit 3")
            async with running(proxy.url, tmp_path / "work") as controller:
                await asyncio.to_thread(until, ours, "select bool_and(state = 'running') from sandboxes", None, SECONDS)
                queued, launching = insert(theirs, command="exit 4"), insert(theirs, command="exit 5")
                theirs.execute(
                    "update sandboxes set state = 'launching', engine = %s, epoch = 1, claimed_by = 'gone',"
                    " claimed_at = now(), lease_until = now() where id = %s",  # which any controller there takes over
                    [row(ours, runs)["engine"], launching],
                )
                before = [row(theirs, queued), row(theirs, launching)]
                proxy.lead_to(second.url)
                _, log = await asyncio.wait_for(controller.communicate(), SECONDS)
            told = log.decode().splitlines()[-1]
            assert (controller.returncode, "Traceback" in log.decode()) == (1, False), log.decode()
            assert told.startswith("run: DATABASE_URL now leads to another installation "), told
            assert f"({installation(theirs)}; this controller works for {installation(ours)})" in told
            assert f"remove objects labelled installation={installation(ours)}." in told
            assert [row(theirs, queued), row(theirs, launching)] == before
            assert theirs.execute("select * from sandbox_controllers").fetchall() == []
            async with running(proxy.url, tmp_path / "work"):
                ended = "select bool_and(exit_code in (4, 5) and cleaned_at is not null) from sandboxes"
                await asyncio.to_thread(until, theirs, ended, None, SECONDS)
            assert row(ours, runs)["state"] == "running"
            proxy.lead_to(first.url)
            async with running(proxy.url, tmp_path / "work"):
                ended = "select bool_and(exit_code = 3 and cleaned_at is not null) from sandboxes"
                await asyncio.to_thread(until, ours, ended, None, SECONDS)


async def test_no_statement_runs_on_a_session_of_another_installation(database: str, connection: Connection) -> None:
    sandbox = insert(connection)
    async with Pool(database, "a", installation=uuid4()) as pool:
        store = Store(pool, "a", ENGINE, 1024)
        with pytest.raises(DatabaseUnavailableError):  # what waited for a session waits no longer
            await store.claim(10, 10, 60.0)
        for refused in (store.claim(10, 10, 60.0), store.cancel_queued(), store.rows([sandbox])):
            with pytest.raises(DatabaseExchangedError, match=str(installation(connection))):
                await refused
    assert row(connection, sandbox)["state"] == "queued"


async def test_a_database_without_an_installation_is_waited_for(
    database: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """It is being restored, or has yet to be migrated: whose it will be is not known yet."""
    sandbox = insert(connection)
    mine = installation(connection)
    connection.execute("alter table sandbox_installation rename to put_aside")
    async with Pool(database, "a", installation=mine) as pool:
        store = Store(pool, "a", ENGINE, 1024)
        asked = asyncio.create_task(store.rows([sandbox]))
        async with asyncio.timeout(SECONDS):
            while "a session cannot be set up: relation" not in caplog.text:
                await asyncio.sleep(0.02)
        assert not asked.done()
        connection.execute("alter table put_aside rename to sandbox_installation")
        assert (await asyncio.wait_for(asked, SECONDS)).keys() == {sandbox}


async def test_a_session_of_before_the_exchange_is_not_used_after_it(database: str, connection: Connection) -> None:
    """The pool may still have sessions of the former database: what the others meet decides for all of them."""
    async with Pool(database, "a", size=2, installation=installation(connection)) as pool:
        store = Store(pool, "a", ENGINE, 1024)
        async with pool.connection() as kept:
            connection.execute("update sandbox_installation set id = gen_random_uuid()")
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'a' and datname = current_database() and pid <> %s",
                [kept.info.backend_pid],
            )
            with pytest.raises(DatabaseExchangedError):
                await store.rows([])
        with pytest.raises(DatabaseExchangedError):
            await store.rows([])
        assert pool.exchanged.done()
