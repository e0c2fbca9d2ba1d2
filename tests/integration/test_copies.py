"""A database that was copied or moved: nothing of the original's is touched, and what cannot be told is asked for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.sql import SQL, Identifier

from controller.backends.process.backend import ProcessBackend
from controller.db.installation import FOREIGN, identify, settle_identity
from controller.db.pool import Pool
from controller.db.store import Store
from controller.errors import DatabaseExchangedError, SchemaError
from tests.conftest import in_database
from tests.integration.test_gone_engines import verb
from tests.support.control import Table, control, table
from tests.support.copies import by_dump, by_template, name_of
from tests.support.database import connect, one


def go(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


@pytest.fixture
def copy(database: str) -> Iterator[str]:
    """The URL of a database that a test makes as a copy."""
    name = f"sandbox_copy_{uuid4().hex[:12]}"
    yield in_database(database, name)
    with connect(in_database(database, "postgres")) as admin:
        admin.execute(SQL("drop database if exists {} with (force)").format(Identifier(name)))


def installation(url: str) -> UUID:
    with connect(url) as connection:
        found: UUID = one(connection, "select id from sandbox_installation")["id"]
        return found


async def started(asked: Table, *commands: str, **columns: Any) -> list[Any]:
    """Sandboxes with these commands, once they run."""
    sandboxes = [await asked.insert(command, **columns) for command in commands]
    for sandbox in sandboxes:
        await asked.until(sandbox, lambda row: row["state"] == "running")
    return sandboxes


def test_a_copys_controller_refuses_to_start_where_something_is_under_way(
    database: str, copy: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with control(database, ProcessBackend(tmp_path)), table(database) as asked:
            sandboxes = await started(asked, *["sleep 3; exit 3"] * 3)
            await asyncio.to_thread(by_dump, database, name_of(copy))
            with pytest.raises(SchemaError) as caught:
                async with control(copy, ProcessBackend(tmp_path)):
                    pass
            assert str(caught.value) == FOREIGN
            rows = [await asked.cleaned(sandbox) for sandbox in sandboxes]
        assert {(row["state"], row["exit_code"]) for row in rows} == {("failed", 3)}

    go(test)


def test_a_copy_with_nothing_under_way_takes_an_id_of_its_own_and_the_originals_runs_go_on(
    database: str, copy: str, tmp_path: Path
) -> None:
    async def test() -> None:
        by_template(database, name_of(copy))
        async with control(database, ProcessBackend(tmp_path)), table(database) as asked, table(copy) as beside:
            sandboxes = await started(asked, *["sleep 2; exit 3"] * 3)
            async with control(copy, ProcessBackend(tmp_path)):
                own = await beside.cleaned(await beside.insert("exit 4"))
                rows = [await asked.cleaned(sandbox) for sandbox in sandboxes]
        assert own["exit_code"] == 4
        assert {(row["state"], row["exit_code"]) for row in rows} == {("failed", 3)}
        assert installation(copy) != installation(database)

    go(test)


def test_migrate_copy_leaves_what_runs_to_the_original(database: str, copy: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with control(database, ProcessBackend(tmp_path)), table(database) as asked:
            sandboxes = await started(asked, *["sleep 4; exit 3"] * 2)
            before = installation(database)
            await asyncio.to_thread(by_dump, database, name_of(copy))
            settle_identity(copy, "copy")
            assert installation(copy) != before
            async with control(copy, ProcessBackend(tmp_path)), table(copy) as beside:
                for sandbox in sandboxes:
                    row = await beside.cleaned(sandbox)
                    assert (row["state"], row["reason"]) == ("lost", "Lost")
                    assert "the original's" in row["message"]
                rows = [await asked.cleaned(sandbox) for sandbox in sandboxes]
        assert {(row["state"], row["exit_code"]) for row in rows} == {("failed", 3)}

    go(test)


def test_migrate_moved_goes_on_with_what_runs(database: str, copy: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with control(database, ProcessBackend(tmp_path)), table(database) as asked:
            (sandbox,) = await started(asked, "sleep 2; exit 3")
        by_template(database, name_of(copy))
        settle_identity(copy, "moved")
        async with control(copy, ProcessBackend(tmp_path)), table(copy) as moved:
            row = await moved.cleaned(sandbox)
        assert (row["state"], row["exit_code"]) == ("failed", 3)
        assert installation(copy) == installation(database)

    go(test)


def test_a_copy_queues_again_what_was_never_started_and_ends_what_was_to_be_cancelled(database: str, copy: str) -> None:
    with connect(database) as owner:
        for command in ("unbound", "cancelled", "ended", "queued"):
            owner.execute("insert into sandboxes (command) values (%s)", [command])
        launching = "update sandboxes set state = 'launching', engine = 'e', epoch = 1, claimed_by = 'x'"
        owner.execute(f"{launching} where command <> 'queued'")
        owner.execute("update sandboxes set cancel_requested_at = now() where command = 'cancelled'")
        owner.execute(
            "update sandboxes set state = 'succeeded', reason = 'Completed', finished_at = now()"
            " where command = 'ended'"
        )
    by_template(database, name_of(copy))
    settle_identity(copy, "copy")
    with connect(copy) as owner:
        rows = owner.execute("select command, state, attempt, cleaned_at is null as left from sandboxes").fetchall()
        assert {row["command"]: (row["state"], row["attempt"], row["left"]) for row in rows} == {
            "unbound": ("queued", 2, True),
            "cancelled": ("cancelled", 1, False),
            "ended": ("succeeded", 1, False),
            "queued": ("queued", 1, True),
        }


def test_a_running_controllers_statements_are_refused_by_an_unsettled_copy_of_its_database(
    database: str, copy: str
) -> None:
    by_template(database, name_of(copy))

    async def test() -> None:
        mine = installation(database)
        async with Pool(copy, "a", mine) as pool:
            store = Store(pool, "a", "e", 1024)
            with pytest.raises(DatabaseExchangedError, match=f"another installation \\(a copy of {mine}; "):
                await store.rows([])
        settle_identity(copy, "moved")
        async with Pool(copy, "a", mine) as pool:
            assert await Store(pool, "a", "e", 1024).rows([]) == {}

    go(test)


def test_a_start_waits_out_a_database_that_fails_while_it_is_asked_whose_it_is(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        with connect(database) as owner:
            whole = one(owner, "select pg_get_functiondef('sandbox_identify_v5'::regproc) as text")["text"]
            owner.execute(
                "create or replace function sandbox_identify_v5(out id uuid, out standing text) language plpgsql"
                " as $$ begin raise 'it is broken' using errcode = '40P01'; end $$"
            )
            asked = asyncio.create_task(identify(database))
            async with asyncio.timeout(30):
                while "installation not identified, retrying" not in caplog.text:
                    await asyncio.sleep(0.02)
            assert not asked.done()
            owner.execute(whole)
            assert await asyncio.wait_for(asked, 30) == (installation(database), False)

    go(test)


def test_a_renamed_database_is_the_same(database: str, copy: str) -> None:
    with connect(database) as owner:
        owner.execute("insert into sandboxes (command) values ('x')")
        owner.execute("update sandboxes set state = 'launching', engine = 'e', epoch = 1, claimed_by = 'x'")
    before = installation(database)
    renamed = SQL("alter database {} rename to {}")
    with connect(in_database(database, "postgres")) as admin:
        admin.execute(renamed.format(Identifier(name_of(database)), Identifier(name_of(copy))))
        try:
            assert settle_identity(copy, None) is None
            assert installation(copy) == before
        finally:
            admin.execute(renamed.format(Identifier(name_of(copy)), Identifier(name_of(database))))


def test_a_copy_is_not_made_an_installation_of_its_own_under_a_controller(database: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with control(database, ProcessBackend(tmp_path)):
            before = installation(database)
            with pytest.raises(SchemaError, match=r"the controller .* is connected: stop it, then run this"):
                settle_identity(database, "copy")
            assert installation(database) == before

    go(test)


def test_every_verb_says_in_one_sentence_what_to_do_with_a_copy(database: str, copy: str, tmp_path: Path) -> None:
    with connect(database) as owner:
        owner.execute("insert into sandboxes (command) values ('x')")
        owner.execute("update sandboxes set state = 'launching', engine = 'e', epoch = 1, claimed_by = 'x'")
    by_template(database, name_of(copy))
    before = installation(database)
    for words in (["run"], ["drain"]):
        done = verb(copy, tmp_path, *words)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"{words[0]}: {FOREIGN}")
    told = migrate(copy)
    assert (told.returncode, told.stderr) == (0, f"migrate: {FOREIGN}\n")
    assert installation(copy) == before
    told = migrate(copy, "--copy")
    assert (told.returncode, "1 rows belonged to the original" in told.stderr) == (0, True)
    assert installation(copy) != before


def migrate(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"DATABASE_URL": url, "LOG_FORMAT": "console"}
    return subprocess.run(
        [sys.executable, "-m", "controller", "migrate", *words], env=env, capture_output=True, text=True, timeout=60
    )
