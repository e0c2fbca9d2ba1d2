"""Whatever a database, a role or the environment sets for sessions, every verb works as it does without."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from psycopg import conninfo
from psycopg.sql import SQL, Identifier, Literal

from controller.db.migrate import check_schema, migrate
from controller.db.pool import connect as connect_ours
from controller.db.writes import Ended, MarkCleaned, WriteBind, WriteRunning
from controller.errors import SchemaError
from controller.protocol.model import Key, ObservedRun, Outcome, Output, Phase, Reason, State
from controller.requester.client import Client
from tests.conftest import in_database
from tests.support.command_line import command_line
from tests.support.database import at, one, opened

SETTINGS = {  # each on its own would break a statement, or what is read from its answer
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "datestyle": "German, DMY",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "enable_indexscan": "off",
    "enable_nestloop": "off",
    "exit_on_error": "on",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "100ms",
    "idle_session_timeout": "50ms",
    "intervalstyle": "iso_8601",
    "lock_timeout": "1ms",
    "plan_cache_mode": "force_custom_plan",
    "restrict_nonsystem_relation_kind": "view",
    "row_security": "off",
    "search_path": "app",
    "standard_conforming_strings": "off",
    "statement_timeout": "100ms",
    "synchronous_commit": "off",
    "timezone": "<+03>-03",
    "transaction_timeout": "100ms",
}
OUTPUT = "€ 漢字 \U0001f600 \\ ' \n"


def setting(url: str, **values: str) -> None:
    """Sets them for every session to come; those that this server does not have are left out."""
    with psycopg.connect(url, autocommit=True) as admin:
        name = Identifier(str(conninfo.conninfo_to_dict(url)["dbname"]))
        known = {row[0] for row in admin.execute("select lower(name) from pg_settings")}
        for key in values.keys() & known:
            value = SQL(", ").join(map(Literal, values[key].split(", ")))
            admin.execute(SQL("alter database {} set {} to {}").format(name, SQL(key), value))


def carry_one(url: str) -> UUID:
    """One sandbox from its request to its removal, by the controller's own statements."""

    async def go(client: Client) -> UUID:
        asked = client.submit({"command": f"printf '{OUTPUT}'", "env": {"A": OUTPUT}, "tenant": "a\\b"})
        await check_schema(url)
        async with asyncio.timeout(30), opened(url) as store:
            [got] = await store.claim(10, 10, 60)
            assert (got.row.id, got.launch.env) == (asked, {"A": OUTPUT})
            assert 0 <= got.created_age < 20
            key: Key = got.row.key
            assert await store.renew([got.row], 60) == {key.sandbox_id}
            assert await store.bind(WriteBind(key, 1, "u"))
            assert await store.mark_running(WriteRunning(key, "u"))
            outcome = Outcome(State.FAILED, Reason.OOM_KILLED, "€")
            seen = ObservedRun(key, "u", Phase.ENDED, outcome, started_at=at(1), ended_at=None)
            assert await store.record(Ended(key, "u", outcome, seen, Output(OUTPUT.encode(), False)))
            assert await store.mark_cleaned(MarkCleaned(key))
            assert [each.id for each in await store.owned_rows()] == []
            return key.sandbox_id

    client = Client(url)
    try:
        made = asyncio.run(go(client))
        assert [each.seconds >= 0 for each in client.progress([made])] == [True]
        assert client.output(made) == (OUTPUT, False)
        [[row], events, [attempt]] = client.facts(made)
        assert row["finished_at"] > row["created_at"]
        assert [each["step"] for each in events] == ["claimed", "bound", "running", "failed", "cleaned"]
        assert (attempt["started_at"], attempt["ended_at"], attempt["node"]) == (at(1), None, None)
    finally:
        client.close()
    return made


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_session_setting_of_the_database_changes_nothing(name: str, database: str) -> None:
    setting(database, **{name: SETTINGS[name]})
    carry_one(database)


def test_all_of_them_at_once_and_every_verb_works(empty_database: str) -> None:
    setting(empty_database, **SETTINGS)
    migrate(empty_database, {})
    made = carry_one(empty_database)
    told = command_line(empty_database, "explain", str(made), PGCLIENTENCODING="SJIS")
    assert (told.returncode, told.stderr) == (0, "")
    assert "€" in told.stdout
    with connect_ours(empty_database, "test") as connection:
        kinds = one(connection, "select count(*) as n from pg_class where relnamespace = 'public'::regnamespace")
        assert kinds["n"] > 5


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP", "nonsense"])
def test_the_encoding_that_the_environment_names_changes_nothing(
    encoding: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    assert migrate(database, {}) == 0
    carry_one(database)


def test_an_outcome_outlives_a_crash_of_the_server_whatever_the_database_sets(database: str) -> None:
    for given, kept in {"off": "local", "remote_apply": "remote_apply"}.items():
        setting(database, synchronous_commit=given)
        with connect_ours(database, "test") as connection:
            assert one(connection, "show synchronous_commit") == {"synchronous_commit": kept}


def test_a_urls_own_options_and_parameters_stay(database: str) -> None:
    joint = "&" if "?" in database else "?"
    url = f"{database}{joint}options=-c%20work_mem%3D7MB%20-c%20role%3Dsandbox_requester&connect_timeout=3"
    with connect_ours(url, "test") as connection:
        assert one(connection, "select current_setting('work_mem') as m, current_user as u") == {
            "m": "7MB",
            "u": "sandbox_requester",
        }
        assert connection.info.get_parameters()["connect_timeout"] == "3"
        assert connection.info.get_parameters()["application_name"] == "test"


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def narrow(request: pytest.FixtureRequest, postgres: str) -> Iterator[tuple[str, str]]:
    """The URL of a database that cannot hold every text, and its encoding."""
    name = f"narrow_{request.param.lower()}_{os.getpid()}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(
            SQL("create database {} encoding {} locale 'C' template template0").format(
                Identifier(name), Literal(request.param)
            )
        )
        yield in_database(postgres, name), request.param
        admin.execute(SQL("drop database {} with (force)").format(Identifier(name)))


def test_a_database_that_cannot_hold_every_text_is_refused_in_one_sentence(narrow: tuple[str, str]) -> None:
    url, encoding = narrow
    told = f"the database's encoding is {encoding}, and the queue needs UTF8"
    with pytest.raises(SchemaError, match=told):
        asyncio.run(check_schema(url))
    for words in (["migrate"], ["run"], ["submit", "true"], ["explain", str(UUID(int=1))], ["drain"]):
        done = command_line(url, *words)
        assert done.returncode not in (0, None)
        assert done.stderr.splitlines()[-1].startswith(f"{words[0]}: {told}")


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ("user=nobody_of_that_name&password=x", "user and password"),
        ("dbname=no_such_database", "database"),
        ("options=-c%20no.such%20thing", "options"),
        ("options=-c%20no_such_setting%3D1", "options"),
        ("target_session_attrs=standby", "target_session_attrs"),
    ],
)
def test_what_the_server_refuses_is_told_with_the_part_of_the_url_to_look_at(
    parameters: str, part: str, database: str
) -> None:
    url = f"{database}{'&' if '?' in database else '?'}{parameters}"
    for words in (["run"], ["explain", str(UUID(int=1))]):  # an asyncio connection and a plain one
        told = command_line(url, *words).stderr.splitlines()[-1]
        assert told.startswith(f"{words[0]}: the database of DATABASE_URL does not answer, or refuses this login: ")
        assert told.endswith(f"; look at its {part}")
