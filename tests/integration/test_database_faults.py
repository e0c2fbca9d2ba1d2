"""A database that only reads, is full, refuses or goes away for a while: every row ends with its own outcome and its
own output, soon after it is well again, and what is wrong is told by its name."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from controller import logs
from controller.app import serve
from controller.db.migrate import check_schema, migrate
from controller.errors import DatabaseReadOnlyError, DatabaseUnavailableError
from controller.requester.client import Client
from controller.settings import Settings
from tests.support.command_line import command_line
from tests.support.control import control
from tests.support.database import Connection, connect, insert, until
from tests.support.memory_backend import MemoryBackend
from tests.support.postgres import Postgres

WELL_SECONDS = 10.0  # after which everything is written that waited
Fault = Callable[[Connection, bool], None]


def name_of(connection: Connection) -> Identifier:
    return Identifier(str(connection.info.dbname))


def end_sessions(connection: Connection) -> None:
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and application_name <> 'operator'"
    )


def only_reads(connection: Connection, on: bool) -> None:
    """As an operator does it; sessions that were there before keep what they have, so those are ended."""
    setting = SQL("on" if on else "off")
    connection.execute(
        SQL("alter database {} set default_transaction_read_only = {}").format(name_of(connection), setting)
    )
    if on:
        end_sessions(connection)


def full_disk(connection: Connection, on: bool) -> None:
    raising(connection, on, "disk_full")


def full_memory(connection: Connection, on: bool) -> None:
    raising(connection, on, "out_of_memory")


def deadlocks(connection: Connection, on: bool) -> None:
    raising(connection, on, "deadlock_detected")


def internal_error(connection: Connection, on: bool) -> None:
    raising(connection, on, "internal_error")


def rule(connection: Connection, on: bool) -> None:
    raising(connection, on, "check_violation")


def raising(connection: Connection, on: bool, condition: str, when: str = "true") -> None:
    if on:
        connection.execute(
            "create or replace function broken() returns trigger language plpgsql as $$ begin"
            f" raise exception using errcode = '{condition}', message = 'it is broken'; end $$".encode()
        )
        connection.execute(
            "create trigger broken before insert on sandbox_attempts for each row"
            f" when ({when}) execute function broken()".encode()
        )
    else:
        connection.execute("drop trigger broken on sandbox_attempts")


def missing_right(connection: Connection, on: bool) -> None:
    for right in ("insert on sandbox_attempts", "update (state) on sandboxes"):
        verb, direction = ("revoke", "from") if on else ("grant", "to")
        connection.execute(f"{verb} {right} {direction} sandbox_controller".encode())


def missing_table(connection: Connection, on: bool) -> None:
    was, now = ("sandbox_events", "put_aside") if on else ("put_aside", "sandbox_events")
    connection.execute(SQL("alter table {} rename to {}").format(Identifier(was), Identifier(now)))


def no_connections(connection: Connection, on: bool) -> None:
    limit = SQL("0" if on else "-1")
    connection.execute(SQL("alter database {} connection limit {}").format(name_of(connection), limit))
    if on:
        end_sessions(connection)


def ended_sessions(connection: Connection, on: bool) -> None:
    end_sessions(connection)


FAULTS: dict[str, tuple[Fault, str]] = {  # and what the log says of it
    "only reads": (only_reads, "the database is read-only: cannot execute"),
    "full disk": (full_disk, "the outcome cannot be written: it is broken (disk full)"),
    "no memory": (full_memory, "the outcome cannot be written: it is broken (out of memory)"),
    "deadlocks": (deadlocks, "the outcome cannot be written: it is broken (deadlock detected)"),
    "an internal error": (internal_error, "the outcome cannot be written: it is broken (internal error"),
    "a rule of the operator's": (rule, "the outcome cannot be written: it is broken (check violation)"),
    "a right is missing": (missing_right, "cannot be written: permission denied for table"),
    "a table is missing": (missing_table, 'relation "sandbox_events" does not exist (undefined table)'),
    "sessions are ended": (ended_sessions, "notifications interrupted, polling error="),
    "no connection is to be had": (no_connections, "couldn't get a connection after"),
}


@pytest.fixture
def operator(database: str) -> Iterator[Connection]:
    """Whose session nobody ends, and which always writes."""
    with connect(f"{database}{'&' if '?' in database else '?'}application_name=operator") as connection:
        yield connection


def as_controller(url: str) -> str:
    """The same database's URL for the controller's login."""
    return f"{url}{'&' if '?' in url else '?'}user=sandbox_controller&password=controller"


def line(record: logging.LogRecord) -> str:
    """What the log says to people, without the quotes that a field may have."""
    return logs.ConsoleFormatter().format(record).replace('\\"', '"')


async def until_told(caplog: pytest.LogCaptureFixture, told: str, times: int = 1) -> None:
    async with asyncio.timeout(20):
        while sum(told in line(record) for record in caplog.records) < times:
            await asyncio.sleep(0.02)


async def ask_and_hurt(url: str, owner: str, hurt: Callable[[], Awaitable[None]]) -> dict[UUID, int]:
    """Twenty rows under way and ten inserted since, with that happening to the database between."""
    async with control(url, MemoryBackend()):
        with connect(owner) as asking:
            ids = {insert(asking, command=f"echo precious {n}; sleep 1; exit {n}"): n for n in range(20)}
            await asyncio.to_thread(until, asking, "select count(*) = 20 from sandboxes where state = 'running'")
        await hurt()
        with connect(owner) as asking:
            ids |= {insert(asking, command=f"echo precious {n}; sleep 0.2; exit {n}"): n for n in range(20, 30)}
            done = "select count(*) = 30 from sandboxes where cleaned_at is not null"
            await asyncio.to_thread(until, asking, done, None, WELL_SECONDS)
    return ids


def check_outcomes(operator: Connection, asked: dict[UUID, int], caplog: pytest.LogCaptureFixture) -> None:
    rows = operator.execute("select * from sandbox_results").fetchall()
    assert {each["id"]: (each["exit_code"], each["output"], each["attempts"]) for each in rows} == {
        sandbox: (n, f"precious {n}\n", 1) for sandbox, n in asked.items()
    }
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_of_the_database_costs_an_outcome_or_an_output(
    fault: str, database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    make, told = FAULTS[fault]

    async def hurt() -> None:
        make(operator, True)
        await until_told(caplog, told, 3 if fault != "sessions are ended" else 1)
        make(operator, False)

    check_outcomes(operator, await ask_and_hurt(as_controller(database), database, hurt), caplog)


async def test_short_spells_of_only_reading_cost_no_output(
    database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Shorter than a statement's pause before its next try, while outcomes come in."""

    async def hurt() -> None:
        for spell in range(1, 7):
            only_reads(operator, True)
            await until_told(caplog, "the database is read-only", spell)
            only_reads(operator, False)

    check_outcomes(operator, await ask_and_hurt(as_controller(database), database, hurt), caplog)


async def test_an_output_that_the_database_cannot_hold_is_left_out_and_its_row_says_so(
    database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The others, written in the same statement, keep theirs."""
    raising(operator, True, "untranslatable_character", "new.output like '%precious 7%'")

    async def nothing() -> None: ...

    asked = await ask_and_hurt(as_controller(database), database, nothing)
    rows = {asked[each["id"]]: each for each in operator.execute("select * from sandbox_results").fetchall()}
    assert (rows[7]["output"], rows[7]["exit_code"], rows[7]["state"]) == (None, 7, "failed")
    assert rows[7]["message"] == (
        "the command exited with 7; its output could not be stored: "
        "the outcome cannot be written: it is broken (untranslatable character)"
    )
    assert all(each["output"] == f"precious {n}\n" for n, each in rows.items() if n != 7)


async def test_a_refused_write_is_told_by_its_name_with_its_sandbox(
    database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = insert(operator)
    operator.execute("revoke insert on sandbox_attempts from sandbox_controller")
    async with control(as_controller(database), MemoryBackend()):
        await until_told(caplog, "action failed, retrying", 2)
        operator.execute("grant insert on sandbox_attempts to sandbox_controller")
        await asyncio.to_thread(until, operator, "select cleaned_at is not null from sandboxes")
    told = [record.__dict__["fields"] for record in caplog.records if record.levelno >= logging.WARNING]
    assert {(fields["sandbox"], str(fields["error"])) for fields in told} == {
        (
            str(sandbox),
            "the outcome cannot be written: permission denied for table sandbox_attempts (insufficient privilege)",
        )
    }


@pytest.mark.parametrize("condition", ["disk_full", "query_canceled", "deadlock_detected"])
async def test_one_row_that_the_database_has_no_room_for_holds_up_no_other(
    condition: str, database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    raising(operator, True, condition, "new.output like '%precious 7%'")
    async with control(as_controller(database), MemoryBackend()):
        ids = {insert(operator, command=f"echo precious {n}; sleep 0.5; exit {n}"): n for n in range(30)}
        others = "select count(*) = 29 from sandboxes where cleaned_at is not null"
        await asyncio.to_thread(until, operator, others, None, 20.0)
        raising(operator, False, condition)
        await asyncio.to_thread(until, operator, "select count(*) = 30 from sandboxes where cleaned_at is not null")
    check_outcomes(operator, ids, caplog)


async def test_a_rule_that_refuses_one_row_its_end_holds_up_no_other(
    database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger of the application's on `sandboxes`: the leases, the cancels and the queue go on."""
    operator.execute(
        "create function broken() returns trigger language plpgsql as $$ begin raise exception 'not this one'; end $$"
    )
    operator.execute(
        "create trigger broken before update on sandboxes for each row"
        " when (new.tenant = 'kept' and new.finished_at is not null) execute function broken()"
    )
    operator.execute("insert into sandbox_tenants (name, max_running) values ('kept', 0)")
    kept = insert(operator, tenant="kept")
    operator.execute("update sandboxes set cancel_requested_at = now() where id = %s", [kept])
    async with control(as_controller(database), MemoryBackend()):
        await until_told(caplog, "the statement cancel_queued failed: not this one (raise exception)", 2)
        long = insert(operator, command="sleep 1000")
        await asyncio.to_thread(until, operator, "select state = 'running' from sandboxes where id = %s", [long])
        operator.execute("update sandboxes set cancel_requested_at = now() where id = %s", [long])
        await asyncio.to_thread(until, operator, "select state = 'cancelled' from sandboxes where id = %s", [long])


def test_a_requester_follows_a_sandbox_through_a_spell_of_only_reading(database: str, operator: Connection) -> None:
    """Where it asks to cancel, the request waits and is made on a session that writes again."""
    with closing(Client(database)) as client:
        sandbox = client.submit({"command": "true"})
        assert sandbox is not None
        following = client.follow(sandbox)
        assert next(following).state == "queued"
        only_reads(operator, True)
        assert next(following).state == "queued"  # reading goes on
        with pytest.raises(DatabaseReadOnlyError, match="the database is read-only: cannot execute INSERT"):
            client.submit({"command": "true"})
        with ThreadPoolExecutor() as threads:
            cancelling = threads.submit(client.cancel, sandbox)
            with pytest.raises(TimeoutError):
                cancelling.result(1)
            only_reads(operator, False)
            cancelling.result(WELL_SECONDS)
    assert operator.execute("select from sandboxes where cancel_requested_at is not null").rowcount == 1


async def test_a_controller_that_starts_while_the_database_only_reads_waits_for_it(
    database: str, operator: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it writes, or until the controller is told to stop."""
    sandbox = insert(operator)
    settings = Settings(database_url=as_controller(database), http_port=0)

    async def go(ends: bool) -> None:
        caplog.clear()
        only_reads(operator, True)
        serving = asyncio.create_task(serve(settings, MemoryBackend()))
        await until_told(caplog, "the database is read-only: default_transaction_read_only is on")
        if not ends:
            only_reads(operator, False)
            await asyncio.to_thread(
                until, operator, f"select cleaned_at is not null from sandboxes where id = '{sandbox}'"
            )
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(WELL_SECONDS):
            await serving

    await go(ends=False)
    await go(ends=True)


def test_a_verb_that_has_to_write_says_in_one_sentence_that_the_database_only_reads(
    database: str, operator: Connection
) -> None:
    sandbox = insert(operator)
    only_reads(operator, True)
    for words, code, told in (
        (["drain"], 1, "drain: the database is read-only: default_transaction_read_only is on; "),
        (["migrate"], 1, "migrate: the database refuses the migration: the database is read-only: cannot execute "),
    ):
        done = command_line(database, *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.splitlines()[-1].startswith(told)
    assert command_line(database, "explain", str(sandbox)).returncode == 0


def all_of_the_server(postgres: Postgres, on: bool) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(f"alter system set default_transaction_read_only = {'on' if on else 'off'}".encode())
        admin.execute("select pg_reload_conf()")


def as_standby(postgres: Postgres, on: bool) -> None:
    """As where a server fails over and back: it takes no writes until it is promoted."""
    if on:
        postgres.restart(standby=True)
    else:
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute("select pg_promote()")


@pytest.mark.parametrize("make", [all_of_the_server, as_standby])
async def test_a_server_that_only_reads_for_a_while_costs_nothing(
    make: Callable[[Postgres, bool], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    postgres = Postgres(tmp_path / "postgres")

    async def reads_only() -> str:
        with pytest.raises(DatabaseUnavailableError) as caught:
            await check_schema(postgres.url)
        return str(caught.value)

    try:
        migrate(postgres.url, {})

        async def hurt() -> None:
            await asyncio.to_thread(make, postgres, True)
            await until_told(caplog, "the database is read-only", 3)
            assert (await reads_only()).startswith("the database is read-only")
            await asyncio.to_thread(make, postgres, False)

        asked = await ask_and_hurt(postgres.url, postgres.url, hurt)
        with connect(postgres.url) as operator:
            check_outcomes(operator, asked, caplog)
    finally:
        postgres.stop()
