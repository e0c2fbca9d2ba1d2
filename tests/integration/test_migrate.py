"""Migrations: from nothing, again, beside another, by a login with few rights; and who may run on what they leave."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from psycopg import conninfo
from psycopg.sql import SQL, Identifier, Literal

from controller.db import sql
from controller.db.migrate import CODE_VERSION, check_schema, migrate
from controller.errors import DatabaseUnavailableError, SandboxError, SchemaError, SettingsError
from tests.support.database import Connection, connect, insert, one, together, until

NOBODY = "postgresql://u:s3cr3t@127.0.0.1:1/x"


def as_login(url: str, user: str, password: str = "pw") -> str:
    """The same database's URL for another login."""
    given = conninfo.conninfo_to_dict(url)
    host, port = str(given.get("host", "")), given.get("port") or 5432
    where = f"/{given['dbname']}?host={host}" if host.startswith("/") else f"{host}:{port}/{given['dbname']}"
    return f"postgresql://{user}:{password}@{where}"


@pytest.fixture
def modest(postgres: str, empty_database: str) -> Iterator[str]:
    """An empty database whose owner may make roles, and is no superuser; on a server that may have ours already."""
    name = f"modest_{uuid4().hex[:8]}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(SQL("create role {} login createrole password 'pw'").format(Identifier(name)))
        database = str(conninfo.conninfo_to_dict(empty_database)["dbname"])
        admin.execute(SQL("alter database {} owner to {}").format(Identifier(database), Identifier(name)))
        yield as_login(empty_database, name)
        with psycopg.connect(empty_database, autocommit=True) as inside:
            inside.execute(SQL("reassign owned by {} to current_user").format(Identifier(name)))
            inside.execute(SQL("drop owned by {}").format(Identifier(name)))
        admin.execute(SQL("alter database {} owner to current_user").format(Identifier(database)))
        admin.execute(SQL("drop role {}").format(Identifier(name)))


def applied(url: str) -> list[int]:
    with connect(url) as connection:
        return [row["version"] for row in connection.execute("select version from sandbox_migrations order by 1")]


def cli(url: str | None, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m controller …`, which must never show a stack trace or a password."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
    given |= {"LOG_FORMAT": "console"} | environment | ({} if url is None else {"DATABASE_URL": url})
    done = subprocess.run(
        [sys.executable, "-m", "controller", *words], env=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr + done.stdout
    assert "s3cr3t" not in done.stderr + done.stdout
    return done


def refused(url: str, **given: int) -> str:
    with pytest.raises(SandboxError) as caught:
        asyncio.run(check_schema(url, **given))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# migrate


def test_from_empty_and_then_nothing_is_left_to_do(empty_database: str) -> None:
    assert migrate(empty_database, {}) == CODE_VERSION
    assert migrate(empty_database, {}) == 0
    assert applied(empty_database) == list(range(1, CODE_VERSION + 1))
    asyncio.run(check_schema(empty_database))
    with connect(empty_database) as connection:
        insert(connection)


def test_of_two_at_once_exactly_one_applies(empty_database: str) -> None:
    steps = together([lambda: migrate(empty_database, {})] * 4)
    assert sorted(steps) == [0, 0, 0, CODE_VERSION]
    assert applied(empty_database) == list(range(1, CODE_VERSION + 1))


def test_of_two_processes_at_once_exactly_one_applies(empty_database: str) -> None:
    with connect(empty_database) as connection:
        environment = os.environ | {"DATABASE_URL": empty_database, "LOG_FORMAT": "console"}
        command = [sys.executable, "-m", "controller", "migrate"]
        with connection.transaction(force_rollback=True):  # both stand at the door
            connection.execute("create table sandbox_migrations ()")
            both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
            waiting = "select count(*) = 2 from pg_locks where not granted and pid <> pg_backend_pid()"
            until(connection, waiting, seconds=30)
        told = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(told) == [f"migrate: {CODE_VERSION} applied\n", "migrate: nothing to do\n"]
    assert [process.returncode for process in both] == [0, 0]


def test_a_step_that_fails_leaves_nothing_behind(empty_database: str) -> None:
    with connect(empty_database) as connection:
        connection.execute("create table sandbox_results (mine int)")
        with pytest.raises(SchemaError, match='"sandbox_results" already exists'):
            migrate(empty_database, {})
        assert one(connection, "select to_regclass('sandboxes') as made") == {"made": None}
        assert one(connection, "select to_regclass('sandbox_migrations') as made") == {"made": None}
        connection.execute("drop table sandbox_results")
    assert migrate(empty_database, {}) == CODE_VERSION


def test_an_owner_without_superuser_can_migrate(modest: str, empty_database: str) -> None:
    with connect(modest) as connection:
        assert one(connection, "select rolsuper from pg_roles where rolname = current_user") == {"rolsuper": False}
        connection.execute("revoke all on schema public from public")  # as many a database has it
        newer = connection.info.server_version >= 160000
    if newer:  # from Postgres 16 on, roles that somebody else made are out of reach: it says what puts that right
        with pytest.raises(SchemaError, match="another login made the roles of this server") as caught:
            migrate(modest, {})
        with connect(empty_database) as admin:
            admin.execute(str(caught.value).split("`")[1].encode())
    assert migrate(modest, {"sandbox_requester": "requester"}) == CODE_VERSION
    assert migrate(modest, {}) == 0
    asyncio.run(check_schema(modest))
    with connect(modest) as connection:
        connection.execute("set role sandbox_owner")
        connection.execute("set role none")
        connection.execute("insert into sandboxes (command) values ('x')")


def test_an_owner_without_superuser_can_migrate_a_server_that_has_none_of_our_roles(
    modest: str, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roles are the whole server's, so this test calls them by other names."""
    other = f"sbx{uuid4().hex[:8]}_"
    rename_roles(monkeypatch, other)
    login = f"{other}requester"
    try:
        assert migrate(modest, {login: "pw2"}) == CODE_VERSION
        assert migrate(modest, {login: "pw3"}) == 0
        with connect(modest) as connection:
            connection.execute("insert into sandboxes (command) values ('x')")
        with connect(as_login(modest, login, "pw3")) as requester:
            insert(requester)
    finally:
        with connect(empty_database) as connection:
            for role in ("owner", "controller", "requester"):
                connection.execute(f"drop owned by {other}{role} cascade")
                connection.execute(f"drop role {other}{role}")


def rename_roles(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    read = sql._read
    steps = sql.migrations()

    def renamed(text: str) -> str:
        for role in ("owner", "controller", "requester"):
            text = text.replace(f"sandbox_{role}", f"{prefix}{role}")
        return text

    monkeypatch.setattr(sql, "_read", lambda file: renamed(read(file)))
    made = [replace(step, sql=renamed(step.sql)) for step in steps]
    monkeypatch.setattr(sql, "migrations", lambda: made)


def test_passwords_are_set_each_time_and_only_where_given(empty_database: str) -> None:
    def verifiers(connection: Connection) -> dict[str, str | None]:
        found = connection.execute("select rolname, rolpassword from pg_authid where rolname like 'sandbox%'")
        return {row["rolname"]: row["rolpassword"] for row in found}

    with connect(empty_database) as connection:
        migrate(empty_database, {"sandbox_controller": "controller", "sandbox_requester": "requester"})
        before = verifiers(connection)
        migrate(empty_database, {"sandbox_controller": None, "sandbox_requester": "requester"})
        after = verifiers(connection)
        assert after["sandbox_controller"] == before["sandbox_controller"]
        assert after["sandbox_requester"] != before["sandbox_requester"]  # another salt
        assert after["sandbox_owner"] is None
        assert all(value.startswith("SCRAM-SHA-256$") for value in after.values() if value)


# check_schema


def test_an_empty_database_says_run_migrate(empty_database: str) -> None:
    assert refused(empty_database) == (
        f"the database is at version 0, and this controller needs {CODE_VERSION}: run `python -m controller migrate`"
    )


def test_an_older_database_says_run_migrate(database: str) -> None:
    told = refused(database, code_version=CODE_VERSION + 1)
    assert f"at version {CODE_VERSION}, and this controller needs {CODE_VERSION + 1}: run" in told


def test_a_merely_newer_database_will_do(database: str) -> None:
    with connect(database) as connection:
        connection.execute("insert into sandbox_migrations values (999, 'later', 1)")
    asyncio.run(check_schema(database))
    assert migrate(database, {}) == 0


def test_a_database_that_shut_this_version_out_says_both(database: str) -> None:
    with connect(database) as connection:
        connection.execute("insert into sandbox_migrations values (999, 'later', 998)")
    told = refused(database)
    version = f"and this controller is version {CODE_VERSION}: run a newer controller"
    assert told == f"the database's min_code_version is 998, {version}"


def test_a_controllers_login_may_check_and_a_requesters_may_not(database: str) -> None:
    options = "&" if "?" in database else "?"
    asyncio.run(check_schema(f"{database}{options}options=-crole%3Dsandbox_controller"))
    told = refused(f"{database}{options}options=-crole%3Dsandbox_requester")
    assert told == "this login does not have the controller's rights: permission denied for table sandbox_migrations"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (NOBODY, "the database of DATABASE_URL does not answer, or refuses this login: connection to server"),
        (
            "postgresql://u:s3cr3t@no.such.host.invalid/x",
            "the database of DATABASE_URL does not answer, or refuses this login: ",
        ),
        ("postgresql://u:s3cr3t%zz@h/x", "DATABASE_URL has an unencoded % in its user or password: percent-encode it"),
        ("postgresql://u:s3cr3t word@h/x", "DATABASE_URL has a space in it: percent-encode it"),
    ],
)
def test_where_nothing_answers_one_sentence_says_so(url: str, told: str) -> None:
    for call in (lambda: migrate(url, {}), lambda: asyncio.run(check_schema(url))):
        with pytest.raises(DatabaseUnavailableError if "does not answer" in told else SettingsError) as caught:
            call()
        assert str(caught.value).startswith(told)
        assert "\n" not in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


# The command line


def test_the_command_line_migrates_and_sets_passwords(empty_database: str) -> None:
    done = cli(
        empty_database, "migrate", SANDBOX_CONTROLLER_PASSWORD="controller", SANDBOX_REQUESTER_PASSWORD="requester"
    )
    assert (done.returncode, done.stdout) == (0, f"migrate: {CODE_VERSION} applied\n")
    assert "password" not in done.stderr
    again = cli(empty_database, "migrate")
    assert (again.returncode, again.stdout) == (0, "migrate: nothing to do\n")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (None, "migrate: DATABASE_URL is not set"),
        (NOBODY, "migrate: the database of DATABASE_URL does not answer"),
        ("postgresql://u:s3cr3t%zz@h/x", "migrate: DATABASE_URL has an unencoded %"),
        ("s3cr3t", "migrate: "),
    ],
)
def test_the_command_line_says_in_one_sentence_why_it_cannot(url: str | None, told: str) -> None:
    done = cli(url, "migrate")
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == 1


def test_a_login_without_the_rights_is_told_what_it_lacks(empty_database: str) -> None:
    options = "&" if "?" in empty_database else "?"
    with connect(empty_database) as connection:
        if not connection.execute("select from pg_roles where rolname = 'sandbox_requester'").rowcount:
            connection.execute(SQL("create role sandbox_requester login password {}").format(Literal("requester")))
    done = cli(f"{empty_database}{options}options=-crole%3Dsandbox_requester", "migrate")
    assert done.returncode == 1
    assert done.stderr.startswith("migrate: migrate needs a superuser, or the owner of the database ")
    assert done.stderr.count("\n") == 1


def test_run_says_in_one_sentence_why_it_does_not_start(empty_database: str, database: str) -> None:
    with connect(database) as connection:
        connection.execute("insert into sandbox_migrations values (999, 'later', 998)")
    for url, told in {
        NOBODY: "run: the database of DATABASE_URL does not answer",
        empty_database: "run: the database is at version 0",
        database: "run: the database's min_code_version is 998",
        "postgresql://u:s3cr3t%zz@h/x": "run: DATABASE_URL has an unencoded %",
    }.items():
        done = cli(url, "run", SANDBOX_BACKEND="process", HTTP_PORT="0")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(told)
