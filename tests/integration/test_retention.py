"""What has ended is forgotten when its owner says, not before; and what something keeps is in no other's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from controller.db.migrate import migrate, retain
from controller.errors import SettingsError
from tests.support.database import Connection, ask, claim, clock, connect, insert, insert_many, one, opened

LATER = 10_000.0  # second of the fake clock at which what ended at its beginning is past the retention


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    with connect(database) as connection:
        connection.execute("update sandbox_installation set retention_seconds = 3")
        clock(connection, 0)
        yield connection


def ended(owner: Connection, count: int) -> list[UUID]:
    """That many, each ended and cleaned a second after the one before, with an attempt and an event."""
    made = []
    for second in range(count):
        clock(owner, second)
        made.append(insert(owner, idempotency_key=str(second)))
        claim(owner)
        finish(owner)
    return made


def finish(owner: Connection) -> None:
    owner.execute(
        "with ended as (update sandboxes set state = 'lost', reason = 'Lost', finished_at = sandbox_now(),"
        " cleaned_at = sandbox_now() where state = 'launching' returning id)"
        " insert into sandbox_attempts (sandbox_id, attempt, state, reason) select id, 1, 'lost', 'Lost' from ended"
    )


def left(owner: Connection) -> list[UUID]:
    return [each["id"] for each in owner.execute("select id from sandboxes order by finished_at").fetchall()]


KEEPERS = {
    "a foreign key": (
        "create table builds (sandbox_id uuid constraint builds_sandbox references sandboxes);"
        "insert into builds values ('{id}')",
        "foreign key builds_sandbox of table builds",
    ),
    "a foreign key that restricts": (
        "create table builds (sandbox_id uuid constraint builds_sandbox references sandboxes on delete restrict);"
        "insert into builds values ('{id}')",
        "foreign key builds_sandbox of table builds",
    ),
    "a deferred foreign key": (
        "create table builds (sandbox_id uuid constraint builds_sandbox references sandboxes"
        " deferrable initially deferred); insert into builds values ('{id}')",
        "foreign key builds_sandbox of table builds",
    ),
    "a foreign key to the idempotency key": (
        "create table builds (k text, t text, constraint builds_sandbox foreign key (k, t)"
        " references sandboxes (idempotency_key, tenant));"
        "insert into builds select idempotency_key, tenant from sandboxes where id = '{id}'",
        "foreign key builds_sandbox of table builds",
    ),
    "a foreign key to the attempt": (
        "create table reports (sandbox_id uuid, attempt integer,"
        " constraint reports_attempt foreign key (sandbox_id, attempt) references sandbox_attempts);"
        "insert into reports values ('{id}', 1)",
        "foreign key reports_attempt of table reports",
    ),
    "a foreign key to the event": (
        "create table lines (event bigint constraint lines_event references sandbox_events);"
        "insert into lines select id from sandbox_events where sandbox_id = '{id}' limit 1",
        "foreign key lines_event of table lines",
    ),
    "a foreign key that sets null where null is refused": (
        "create table builds (sandbox_id uuid not null references sandboxes on delete set null);"
        "insert into builds values ('{id}')",
        'null value in column "sandbox_id" of relation "builds" violates not-null constraint',
    ),
    "a trigger that refuses": (
        "create function keep() returns trigger language plpgsql as $$ begin raise 'it is under audit'; end $$;"
        "create trigger keep before delete on sandboxes for each row when (old.id = '{id}') execute function keep()",
        "it is under audit",
    ),
    "a deferred trigger that refuses": (
        "create function keep() returns trigger language plpgsql as $$ begin raise 'it is under audit'; end $$;"
        "create constraint trigger keep after delete on sandboxes deferrable initially deferred"
        " for each row when (old.id = '{id}') execute function keep()",
        "it is under audit",
    ),
    "a trigger that says nothing": (
        "create function keep() returns trigger language plpgsql as $$ begin return null; end $$;"
        "create trigger keep before delete on sandboxes for each row when (old.id = '{id}') execute function keep()",
        "a trigger of the table sandboxes",
    ),
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_row_that_something_keeps_is_left_whole_and_the_others_are_forgotten(
    keeper: str, database: str, owner: Connection
) -> None:
    kept, *_ = ended(owner, 21)
    made, told = KEEPERS[keeper]
    owner.execute(made.replace("{id}", str(kept)))
    with connect(database, "sandbox_controller") as controller:
        clock(controller, LATER)
        assert ask(controller, "forget") == [{"forgotten": 20, "kept": 1, "why": [told]}]
        assert ask(controller, "forget") == [{"forgotten": 0, "kept": 0, "why": []}]
    assert left(owner) == [kept]
    assert one(owner, "select count(*) as n from sandbox_attempts")["n"] == 1
    assert one(owner, "select count(*) as n from sandbox_events")["n"] == 1


def test_rows_that_are_kept_by_the_thousand_stop_nothing(database: str, owner: Connection) -> None:
    insert_many(owner, 2_500)
    claim(owner, 2_500)
    finish(owner)
    owner.execute("create table builds (sandbox_id uuid references sandboxes)")
    owner.execute("insert into builds select id from sandboxes")
    clock(owner, 1)
    insert_many(owner, 10)
    claim(owner)
    finish(owner)
    with connect(database, "sandbox_controller") as controller:
        clock(controller, LATER)
        answers = [ask(controller, "forget")[0] for _ in range(20)]  # each takes at most 5 s
    assert [sum(each[what] for each in answers) for what in ("forgotten", "kept")] == [10, 2_500]
    assert answers[-1] == {"forgotten": 0, "kept": 0, "why": []}


def test_what_is_let_go_is_forgotten_when_it_is_tried_again(owner: Connection) -> None:
    kept = ended(owner, 1)
    owner.execute("create table builds (sandbox_id uuid references sandboxes)")
    owner.execute("insert into builds select id from sandboxes")
    clock(owner, LATER)
    assert ask(owner, "forget")[0]["kept"] == 1
    owner.execute("delete from builds")
    assert left(owner) == kept
    clock(owner, LATER + 61)
    assert ask(owner, "forget")[0]["forgotten"] == 1
    assert one(owner, "select count(*) as n from sandbox_set_aside")["n"] == 0


def test_what_keeps_rows_is_logged_once(database: str, owner: Connection, caplog: pytest.LogCaptureFixture) -> None:
    owner.execute("create table builds (sandbox_id uuid constraint of_sandbox references sandboxes)")

    async def go() -> None:
        async with opened(database) as store:
            for _ in range(3):
                insert(owner)
                claim(owner)
                finish(owner)
                owner.execute("insert into builds select id from sandboxes on conflict do nothing")
                assert await store.forget() == 1
            assert await store.forget() == 0

    owner.execute("set sandbox.now = ''")
    owner.execute("update sandbox_installation set retention_seconds = 1")
    owner.execute("create or replace function sandbox_now() returns timestamptz return clock_timestamp()")
    finish_earlier(owner)
    with caplog.at_level(logging.WARNING, "controller.db.store"):
        asyncio.run(go())
    assert [(record.message, record.__dict__["fields"]) for record in caplog.records] == [
        (
            "retention could not delete some sandboxes, retrying later",
            {"kept_by": "foreign key of_sandbox of table builds"},
        )
    ]


def finish_earlier(owner: Connection) -> None:
    """From now on, what ends has ended an hour ago."""
    owner.execute(
        "create or replace function sandbox_ended_now() returns trigger language plpgsql as"
        " $$ begin new.finished_at := clock_timestamp() - interval '1 hour'; return new; end $$"
    )


# Whose the retention is

ATTEMPTS = [
    "select sandbox_forget(-1, 2147483647)",
    "select sandbox_forget(0, 1000)",
    "select sandbox_forget('-infinity', 1000)",
    "select sandbox_forget('NaN', 1000)",
    "select sandbox_forget(null, 1000)",
    "select * from sandbox_forget_v3(2147483647)",
    "select sandbox_forget_before(now(), 1000)",
    "update sandbox_installation set retention_seconds = 1",
    "set sandbox.now = '2200-01-01'; select sandbox_forget(1, 1000)",
    "set timezone = 'Pacific/Kiritimati'; select sandbox_forget(1, 1000)",
    "create temporary table sandbox_installation as select 1 as retention_seconds; select sandbox_forget(1, 1000)",
    "delete from sandboxes",
    "delete from sandbox_set_aside",
]


def test_no_call_of_a_controllers_login_deletes_what_is_younger_than_the_owners_retention(database: str) -> None:
    with connect(database) as owner:
        insert_many(owner, 10)
        with connect(database, "sandbox_controller") as controller:
            claim(controller)
            controller.execute(  # it forges what it may write
                "update sandboxes set state = 'lost', reason = 'Lost', finished_at = '1999-01-01',"
                " cleaned_at = '1999-01-01', started_at = '1999-01-01', claimed_at = '1999-01-01'"
            )
            for attempt in ATTEMPTS:
                try:
                    controller.execute(attempt.encode())
                except psycopg.Error:
                    controller.rollback()
                assert one(owner, "select count(*) as n from sandboxes")["n"] == 10, attempt


def test_the_version_befores_controller_keeps_rows_for_the_longer_of_both(owner: Connection) -> None:
    ended(owner, 1)
    for second, age, forgotten in ((10, 1000, 0), (2.9, -1, 0), (10, -1, 1)):
        clock(owner, second)
        assert one(owner, "select sandbox_forget(%s, 1000) as n", [age])["n"] == forgotten


def test_migrate_sets_the_owners_retention_and_leaves_it_where_none_is_given(database: str) -> None:
    def kept() -> Any:
        with connect(database) as owner:
            return one(owner, "select retention_seconds from sandbox_installation")["retention_seconds"]

    assert kept() == 30 * 86_400
    for given, now in ((60.0, 60.0), (None, 60.0), (90.5, 90.5)):
        migrate(database, {}, given)
        assert kept() == now


def test_only_the_owners_login_changes_the_retention_at_a_start(database: str) -> None:
    asyncio.run(retain(database, 60.0))
    as_controller = f"{database}{'&' if '?' in database else '?'}options=-crole%3Dsandbox_controller"
    asyncio.run(retain(as_controller, 60.0))
    with pytest.raises(SettingsError) as caught:
        asyncio.run(retain(as_controller, 59.0))
    assert str(caught.value) == (
        "SANDBOX_RETENTION_SECONDS = 59, and the database keeps ended sandboxes for 60 s, which is its owner's to"
        " change: run `python -m controller migrate` with that setting, or leave it out here"
    )
