"""Migrations where others live too: an application's names, search paths, dumps, open transactions."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from controller.db import sql
from controller.db.migrate import CODE_VERSION, check_schema, migrate
from controller.errors import SchemaError
from tests.support.database import Connection, connect, insert, one, opened
from tests.support.older import ROOT, Older, controller, run_verb
from tests.support.postgres import Postgres


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Older:
    return Older(tmp_path_factory.mktemp("older"))


@pytest.fixture
def owner(empty_database: str) -> Iterator[Connection]:
    with connect(empty_database) as connection:
        yield connection


def catalogue(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """Owner and rights of every object in public, as far as every version of Postgres has them."""
    return {
        "relations": connection.execute(
            "select relname, relkind, relowner::regrole::text as owner,"
            ""
            " array(select replace(a::text, 'Dxtm', 'Dxt') from unnest(relacl) a order by 1) as acl,"
            " array(select attname || unnest(attacl)::text from pg_attribute"
            " where attrelid = c.oid order by 1) as columns"
            " from pg_class c where relnamespace = 'public'::regnamespace order by 1"
        ).fetchall(),
        "functions": connection.execute(
            "select oid::regprocedure::text, proowner::regrole::text as owner, prosecdef, proconfig,"
            " array(select a::text from unnest(proacl) a order by 1) as acl"
            " from pg_proc where pronamespace = 'public'::regnamespace order by 1"
        ).fetchall(),
    }


# Names

THEIRS = {
    "a table": "create table tenants (name text primary key, plan text)",
    "a table with our columns": "create table tenants (name text primary key, max_running integer, weight float8)",
    "a view": "create view tenants as select 'them' as name",
    "a materialized view": "create materialized view tenants as select 'them' as name",
    "a type": "create type tenants as enum ('them')",
    "a sequence": "create sequence tenants",
    "an index": "create table theirs (x integer); create index tenants on theirs (x)",
    "tables that begin as ours": "create table sandbox_builds (id integer); create table sandbox_policies (id integer)",
    "a function that begins as ours": "create function sandbox_quota() returns integer language sql return 1",
}


@pytest.mark.parametrize("theirs", THEIRS)
def test_an_applications_names_are_left_to_it(theirs: str, empty_database: str, owner: Connection) -> None:
    owner.execute(THEIRS[theirs])
    before = catalogue(owner)
    assert migrate(empty_database, {}) == CODE_VERSION
    assert migrate(empty_database, {}) == 0
    after = catalogue(owner)
    assert all(each in after[kind] for kind in before for each in before[kind])
    insert(owner)
    assert len(owner.execute("select * from sandbox_claim('a', 'e', 60, 9, 9)").fetchall()) == 1


def test_where_the_version_before_met_the_applications_table_this_one_migrates(
    older: Older, empty_database: str, owner: Connection
) -> None:
    owner.execute("create table tenants (id integer)")
    assert 'relation "tenants" already exists' in older.verb(empty_database, "migrate").stderr
    assert migrate(empty_database, {}) == CODE_VERSION
    assert one(owner, "select count(*) as n from tenants")["n"] == 0


def test_the_former_name_is_the_applications_once_it_drops_our_view(
    older: Older, empty_database: str, owner: Connection
) -> None:
    older.verb(empty_database, "migrate")
    owner.execute("insert into tenants (name, weight) values ('a', 2)")
    migrate(empty_database, {})
    assert one(owner, "select weight from tenants")["weight"] == 2
    owner.execute("drop view tenants; create table tenants (id integer primary key)")
    assert migrate(empty_database, {}) == 0
    assert one(owner, "select count(*) as n from tenants")["n"] == 0
    assert one(owner, "select weight from sandbox_tenants")["weight"] == 2


def test_migrate_names_every_object_of_ours_and_no_other(empty_database: str, owner: Connection) -> None:
    """What `settle` may give to another owner, and what `grants` says the rights of."""
    migrate(empty_database, {})
    roles = sql.statements("roles.sql")
    relations, functions = re.findall(r"constant text\[\] := array\[(.*?)\];", roles["settle"], re.DOTALL)
    made = owner.execute(
        "select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v')"
    ).fetchall()
    assert set(re.findall(r"'(\w+)'", relations)) - {"tenants"} == {each["name"] for each in made}
    made = owner.execute("select proname as name from pg_proc where pronamespace = 'public'::regnamespace").fetchall()
    assert set(re.findall(r"'(\w+)'", functions)) == {each["name"] for each in made}
    revoked = " ".join(re.findall(r"revoke all on (.*?)from", roles["grants"], re.DOTALL))
    for each in re.findall(r"'(\w+)'", relations + functions):
        assert re.search(rf"\b{each}\b", revoked), each


# Search paths

PATHS = {
    "of the database": "create schema app; alter database {database} set search_path = app, public",
    "of the database, without public": "create schema app; alter database {database} set search_path = app",
    "of a schema that everybody may use": (
        "create schema app; grant all on schema app to public; alter database {database} set search_path = app, public"
    ),
    "with nothing in it": "alter database {database} set search_path = ''",
    "with a schema of the login's name": "create schema {login}; grant all on schema {login} to public",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", PATHS)
def test_every_verb_works_whatever_the_search_path(
    path: str, empty_database: str, owner: Connection, tmp_path: Path
) -> None:
    database = Identifier(str(conninfo_to_dict(empty_database)["dbname"]))
    owner.execute(SQL(PATHS[path]).format(database=database, login=Identifier(owner.info.user)))
    assert run_verb(ROOT, empty_database, "migrate").stdout == f"migrate: {CODE_VERSION} applied\n"
    elsewhere = (
        "select count(*) as n from pg_class where relname like 'sandbox%' and relnamespace <> 'public'::regnamespace"
    )
    assert one(owner, elsewhere)["n"] == 0
    settings = {"BACKEND": "process", "WORK_DIR": tmp_path / "work", "POLL_SECONDS": 0.2}
    with controller(ROOT, empty_database, tmp_path / "log", **settings):
        done = run_verb(ROOT, empty_database, "submit", "--memory", "64", "--", "echo there; exit 3")
        assert (done.returncode, done.stdout) == (3, "there\n"), done.stderr
    sandbox = one(owner, "select id from public.sandboxes")["id"]
    explained = run_verb(ROOT, empty_database, "explain", str(sandbox))
    assert "NonZeroExit" in explained.stdout, explained.stderr
    asyncio.run(check_schema(empty_database))


def test_a_queue_that_the_version_before_made_in_another_schema_is_moved_with_its_rows(
    older: Older, empty_database: str, owner: Connection
) -> None:
    name = Identifier(str(conninfo_to_dict(empty_database)["dbname"]))
    owner.execute("create schema app; grant all on schema app to public; create table app.theirs (id integer)")
    owner.execute(SQL("alter database {} set search_path = app, public").format(name))
    assert older.verb(empty_database, "migrate").stdout == "migrate: 2 applied\n"
    with connect(empty_database) as there:  # with the database's path
        made = insert(there)
        there.execute("insert into tenants (name) values ('a')")
        there.execute("create table app.builds (sandbox_id uuid references sandboxes)")
        assert one(there, "select to_regclass('app.sandboxes') is not null as there")["there"]
        assert migrate(empty_database, {}) == CODE_VERSION - 2
        assert migrate(empty_database, {}) == 0
        assert one(there, "select id from public.sandboxes")["id"] == made
        assert one(there, "select name from public.sandbox_tenants")["name"] == "a"
        left = there.execute("select relname from pg_class where relnamespace = 'app'::regnamespace and relkind = 'r'")
        assert {each["relname"] for each in left} == {"theirs", "builds"}
        assert older.verb(empty_database, "explain", str(made)).returncode == 0

    async def claimed() -> list[Any]:
        async with opened(empty_database) as store:
            return [each.row.id for each in await store.claim(9, 9, 60)]

    assert asyncio.run(claimed()) == [made]


def test_of_two_queues_in_one_database_none_is_touched(older: Older, empty_database: str, owner: Connection) -> None:
    assert older.verb(empty_database, "migrate").stdout == "migrate: 2 applied\n"
    insert(owner)
    name = Identifier(str(conninfo_to_dict(empty_database)["dbname"]))
    owner.execute("create schema app; grant all on schema app to public")
    owner.execute(SQL("alter database {} set search_path = app, public").format(name))
    assert older.verb(empty_database, "migrate").stdout == "migrate: 2 applied\n"  # an empty one beside the full one
    with pytest.raises(SchemaError, match="the database has more than one queue, in the schemas app, public: drop"):
        migrate(empty_database, {})
    assert one(owner, "select count(*) as n from public.sandboxes")["n"] == 1
    owner.execute("drop schema app cascade")
    assert migrate(empty_database, {}) == CODE_VERSION - 2


def test_without_a_schema_public_one_sentence_says_so(empty_database: str, owner: Connection) -> None:
    owner.execute("drop schema public")
    with pytest.raises(SchemaError, match="the database has no schema public, in which the queue lives: create it"):
        migrate(empty_database, {})


# Another server


@pytest.fixture(scope="module")
def new_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that has none of our roles."""
    server = Postgres(tmp_path_factory.mktemp("server") / "data")
    yield server
    server.stop()


def dumped(server: Postgres, url: str, *options: str) -> str:
    """The database as SQL."""
    words = [server.tool("pg_dump"), *options, "--dbname", url]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "server version mismatch" in done.stderr:
        pytest.skip(f"this pg_dump is for another server: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def restored(server: Postgres, name: str, dump: str, role: str | None = None) -> str:
    """The URL of a new database with that content, restored by that role."""
    url = make_conninfo(server.url, dbname=name)
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute(SQL("create database {}").format(Identifier(name)))
        if role is not None:
            admin.execute(SQL("alter database {} owner to {}").format(Identifier(name), Identifier(role)))
    target = make_conninfo(url, user=role) if role else url
    words = [server.tool("psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", target]
    done = subprocess.run(words, input=dump, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    query = conninfo_to_dict(target)
    return f"postgresql://{query['user']}@/{name}?host={query['host']}"


def test_a_dump_without_owners_and_rights_is_put_right_by_migrate(database: str, new_server: Postgres) -> None:
    with connect(database) as here:
        wanted = catalogue(here)
        made = insert(here, env='{"A": "1"}')
        here.execute("create table builds (sandbox_id uuid references sandboxes)")
        url = restored(new_server, "moved", dumped(new_server, database, "--no-owner", "--no-privileges"))
    with connect(url) as there:
        assert migrate(url, {"sandbox_controller": "c", "sandbox_requester": "r"}) == 0
        found = catalogue(there)
        theirs = [each for each in found["relations"] if each not in wanted["relations"]]
        assert [(each["relname"], each["owner"], each["acl"]) for each in theirs] == [("builds", "postgres", [])]
        assert [each for each in found["relations"] if each not in theirs] == wanted["relations"]
        assert found["functions"] == wanted["functions"]
        assert one(there, "select id from sandboxes")["id"] == made
        asyncio.run(check_schema(url))
    with connect(url, "sandbox_requester") as requester, connect(url, "sandbox_controller") as claimer:
        insert(requester)
        assert len(claimer.execute("select * from sandbox_claim_v3('a', 'e', 60, 9, 9)").fetchall()) == 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            requester.execute("select sandbox_forget(1, 1)")


def test_a_dump_of_the_version_before_is_put_right_and_upgraded_by_an_owner_without_superuser(
    older: Older, empty_database: str, owner: Connection, new_server: Postgres
) -> None:
    older.verb(empty_database, "migrate")
    insert(owner)
    owner.execute("insert into tenants (name) values ('a')")
    with psycopg.connect(new_server.url, autocommit=True) as admin:
        admin.execute("create role modest login createrole")
        for role in ("owner", "controller", "requester"):  # not left from another test: its own to grant
            if admin.execute("select from pg_roles where rolname = %s", [f"sandbox_{role}"]).rowcount:
                admin.execute(f"grant sandbox_{role} to modest with admin option".encode())
    dump = dumped(new_server, empty_database, "--no-owner", "--no-privileges")
    url = restored(new_server, "moved_by_its_owner", dump, role="modest")
    assert migrate(url, {}) == CODE_VERSION - 2
    assert migrate(url, {}) == 0
    with connect(url) as there:
        assert one(there, "select name from sandbox_tenants")["name"] == "a"
        assert {each["owner"] for each in catalogue(there)["relations"]} == {"sandbox_owner"}


def test_who_is_not_the_owner_of_a_restored_queue_is_told_so(database: str, new_server: Postgres) -> None:
    url = restored(new_server, "anothers", dumped(new_server, database, "--no-owner", "--no-privileges"))
    with psycopg.connect(new_server.url, autocommit=True) as admin:
        admin.execute("create role stranger login createrole")
        admin.execute("alter database anothers owner to stranger")
        if admin.execute("select from pg_roles where rolname = 'sandbox_owner'").rowcount:
            admin.execute("grant sandbox_owner to stranger with admin option")
    with pytest.raises(SchemaError, match=r"migrate needs a superuser, or the owner of the database and of its tables"):
        migrate(url.replace("postgres@", "stranger@"), {})


@pytest.mark.parametrize(
    "loss",
    [
        "revoke update on sandboxes from sandbox_controller",
        "revoke update (state) on sandboxes from sandbox_controller",
        "revoke execute on function sandbox_cancel from sandbox_requester",
        "grant execute on function sandbox_forget_v3 to public",
        "grant update on sandboxes to sandbox_requester",
        "grant delete on sandboxes to public",
        "alter table sandboxes owner to current_user",
        "alter function sandbox_cancel owner to current_user",
    ],
)
def test_rights_that_were_changed_are_put_right_by_the_next_migrate(loss: str, database: str) -> None:
    with connect(database) as owner:
        wanted = catalogue(owner)
        owner.execute(loss.encode())
        assert catalogue(owner) != wanted
        migrate(database, {})
        assert catalogue(owner) == wanted


def test_a_newer_versions_rights_are_left_alone(database: str) -> None:
    with connect(database) as owner:
        owner.execute("insert into sandbox_migrations values (999, 'later', 1)")
        owner.execute("grant select on sandbox_cancels to sandbox_requester")
        wanted = catalogue(owner)
        assert migrate(database, {}) == 0
        assert catalogue(owner) == wanted


# Open transactions


def test_an_open_transaction_is_named_after_a_while_and_holds_up_nobody_else_meanwhile(
    older: Older, empty_database: str, owner: Connection
) -> None:
    older.verb(empty_database, "migrate")
    made: list[Any] = []
    stop = threading.Event()

    def ask_all_the_time() -> None:
        with connect(empty_database) as application:
            while not stop.is_set():
                made.append(insert(application))

    asking = threading.Thread(target=ask_all_the_time)
    with connect(empty_database, "sandbox_requester") as idle:
        with idle.transaction():
            idle.execute("set application_name = 'an orm'")
            insert(idle)
            asking.start()
            try:
                with pytest.raises(SchemaError) as caught:
                    migrate(empty_database, {}, patience=0)
            finally:
                before = len(made)
                stop.set()
                asking.join()
        told = rf"process {idle.info.backend_pid} of \w+ \(an orm\), its transaction open for \d+ s: end it, then run"
        assert re.search(told, str(caught.value)), str(caught.value)
    assert before
    assert migrate(empty_database, {}) == CODE_VERSION - 2
