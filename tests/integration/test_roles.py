"""Least rights: what each role can and cannot do, from the catalog and by trying."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from controller.db.migrate import migrate
from tests.support.database import Connection, ask, claim, connect, insert, one, row

REQUEST = {
    *("id", "command", "image", "env", "cpu_millis", "memory_mib", "disk_mib", "timeout_seconds", "network", "tenant"),
    *("priority", "max_attempts", "idempotency_key"),
}
OUTCOME = {
    *(
        "state",
        "attempt",
        "runs",
        "exit_code",
        "reason",
        "message",
        "waiting",
        "claimed_at",
        "launched_at",
        "started_at",
    ),
    *("finished_at", "cleaned_at", "epoch", "claimed_by", "lease_until", "engine", "run_uid", "retry_at"),
}
ASIDE = {"sandbox_id", "step", "why", "since", "again_at"}
TABLES = {"sandboxes", "sandbox_attempts", "sandbox_events", "sandbox_results", "sandbox_tenants"}
READS = {
    "sandbox_requester": TABLES,
    "sandbox_controller": TABLES
    | {"sandbox_installation", "sandbox_migrations", "sandbox_set_aside", "sandbox_controllers"},
}
CALLS = {
    "sandbox_requester": {"sandbox_now", "sandbox_cancel"},
    "sandbox_controller": {
        *("sandbox_now", "sandbox_claim", "sandbox_claim_v3", "sandbox_forget", "sandbox_forget_v3"),
        *("sandbox_cancel_all", "sandbox_register", "sandbox_unregister", "sandbox_saw", "sandbox_identify"),
        *("sandbox_connected", "sandbox_connected_v5", "sandbox_register_v5", "sandbox_unregister_v5"),
        *("sandbox_saw_v5", "sandbox_cancel_all_v5", "sandbox_identify_v5"),
    },
}
ROLES = pytest.mark.parametrize("role", ["sandbox_requester", "sandbox_controller"])
DENIED = psycopg.errors.InsufficientPrivilege


def column_rights(connection: Connection, role: str) -> dict[tuple[str, str], set[str]]:
    """Of each table and each right, the columns; by what the role may do, however it came by it."""
    found = connection.execute(
        "select c.relname, p.power, a.attname"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0,"
        " unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) as p (power)"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'p', 'm')"
        " and has_column_privilege(%s, c.oid, a.attnum, p.power)",
        [role],
    )
    rights: dict[tuple[str, str], set[str]] = {}
    for each in found:
        rights.setdefault((each["relname"], each["power"]), set()).add(each["attname"])
    return rights


def table_rights(connection: Connection, role: str) -> set[tuple[str, str]]:
    found = connection.execute(
        "select c.relname, p.power from pg_class c, unnest(array['DELETE', 'TRUNCATE', 'TRIGGER']) as p (power)"
        " where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v')"
        " and has_table_privilege(%s, c.oid, p.power)",
        [role],
    )
    return {(each["relname"], each["power"]) for each in found}


@ROLES
def test_the_catalog_grants_what_the_protocol_needs_and_nothing_else(role: str, owner: Connection) -> None:
    rights = column_rights(owner, role)
    assert {table for table, right in rights if right == "SELECT"} == READS[role]
    wanted: dict[tuple[str, str], set[str]] = {
        "sandbox_requester": {
            ("sandboxes", "INSERT"): REQUEST,
        },
        "sandbox_controller": {
            ("sandboxes", "UPDATE"): OUTCOME,
            ("sandbox_attempts", "INSERT"): rights["sandbox_attempts", "SELECT"],
            ("sandbox_events", "INSERT"): rights["sandbox_events", "SELECT"],
            ("sandbox_set_aside", "INSERT"): ASIDE,
            ("sandbox_set_aside", "UPDATE"): ASIDE,
        },
    }[role]
    assert {key: columns for key, columns in rights.items() if key[1] != "SELECT"} == wanted
    assert table_rights(owner, role) == set()


@ROLES
def test_a_role_calls_its_own_functions_alone(role: str, owner: Connection) -> None:
    found = owner.execute(
        "select proname from pg_proc where pronamespace = 'public'::regnamespace"
        " and has_function_privilege(%s, oid, 'EXECUTE')",
        [role],
    )
    assert {each["proname"] for each in found} == CALLS[role]


def test_public_can_do_nothing(owner: Connection) -> None:
    nobody = f"nobody_{uuid4().hex[:8]}"
    owner.execute(f"create role {nobody}")
    try:
        assert column_rights(owner, nobody) == {}
        assert table_rights(owner, nobody) == set()
        found = owner.execute(
            "select proname from pg_proc where pronamespace = 'public'::regnamespace"
            " and has_function_privilege(%s, oid, 'EXECUTE')",
            [nobody],
        )
        assert found.fetchall() == []
        power = "has_sequence_privilege(%s, oid, 'USAGE, SELECT, UPDATE')"
        sequences = f"select from pg_class where case relkind when 'S' then {power} end"
        assert owner.execute(sequences, [nobody]).fetchall() == []
    finally:
        owner.execute(f"drop role {nobody}")


def test_no_role_of_ours_has_a_power_of_the_whole_server(owner: Connection) -> None:
    found = owner.execute(
        "select rolname, rolcanlogin from pg_roles where rolname like 'sandbox\\_%%' and not"
        " (rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls)",
        [],
    )
    assert {(each["rolname"], each["rolcanlogin"]) for each in found} == {
        ("sandbox_owner", False),
        ("sandbox_controller", True),
        ("sandbox_requester", True),
    }
    memberships = (
        "select from pg_auth_members where member in ('sandbox_controller'::regrole, 'sandbox_requester'::regrole)"
    )
    assert owner.execute(memberships).rowcount == 0


def test_everything_belongs_to_the_owner_role(owner: Connection) -> None:
    found = owner.execute(
        "select relname as name, relowner::regrole::text as owner from pg_class"
        " where relnamespace = 'public'::regnamespace"
        " union all select proname, proowner::regrole::text from pg_proc where pronamespace = 'public'::regnamespace"
    ).fetchall()
    assert len(found) > 15
    assert {each["owner"] for each in found} == {"sandbox_owner"}


def test_what_runs_with_the_owners_rights_has_a_fixed_search_path(owner: Connection) -> None:
    found = owner.execute(
        "select proname, proconfig from pg_proc where prosecdef and pronamespace = 'public'::regnamespace"
    ).fetchall()
    assert {each["proname"] for each in found} == {
        *("sandbox_forget", "sandbox_forget_v3", "sandbox_cancel", "sandbox_apply_cancel", "sandbox_cancel_all_v5"),
        *("sandbox_register_v5", "sandbox_unregister_v5", "sandbox_saw_v5", "sandbox_identify", "sandbox_identify_v5"),
    }
    assert {each["proconfig"][0] for each in found} == {"search_path=pg_catalog, public, pg_temp"}


def test_a_requester_asks_cancels_and_reads(database: str, owner: Connection) -> None:
    with connect(database, "sandbox_requester") as requester:
        made = insert(requester, command="x", env='{"A": "1"}', idempotency_key="k")
        assert one(requester, "select sandbox_cancel(%s) as asked", [made]) == {"asked": True}
        assert row(requester, made)["cancel_requested_at"] is not None
        assert one(requester, "select * from sandbox_results")["state"] == "queued"
        for table in READS["sandbox_requester"]:
            requester.execute(f"select * from {table}")
        requester.execute("listen sandbox_finished")


def test_a_requester_does_nothing_else(database: str, owner: Connection) -> None:
    made = insert(owner)
    with connect(database, "sandbox_requester") as requester:
        for column in OUTCOME | {"created_at", "seq", "cancel_requested_at"}:
            value = "default" if column == "seq" else "null"
            with pytest.raises(DENIED):
                requester.execute(f"insert into sandboxes (command, {column}) values ('x', {value})")
        for column in OUTCOME | REQUEST | {"created_at", "cancel_requested_at"}:
            with pytest.raises(DENIED):
                requester.execute(f"update sandboxes set {column} = {column} where id = %s", [made])
        refuse_all(
            requester,
            "delete from sandboxes",
            "truncate sandboxes cascade",
            "insert into sandbox_events (sandbox_id, attempt, step) values (gen_random_uuid(), 1, 'x')",
            "insert into sandbox_attempts (sandbox_id, attempt, state, reason) select id, 1, 'x', 'x' from sandboxes",
            "update sandbox_attempts set output = 'x'",
            "insert into sandbox_tenants values ('t', 1, 1)",
            "update sandbox_tenants set max_running = null",
            "select * from sandbox_installation",
            "select * from sandbox_controllers",
            "begin; lock table sandbox_controllers in access share mode",
            "select sandbox_register('x', 'e')",
            "select sandbox_unregister(array['x'])",
            "select sandbox_identify()",
            "select sandbox_identify_v5()",
            "select sandbox_register_v5('x', 'e')",
            "select sandbox_cancel_all_v5()",
            "select * from sandbox_migrations",
            "select sandbox_claim('me', 'e', 60, 1, 1)",
            "select sandbox_claim_v3('me', 'e', 60, 1, 1)",
            "select sandbox_forget(0, 1000)",
            "select sandbox_forget_v3(1000)",
            "select sandbox_forget_before(now(), 1000)",
            "select * from sandbox_set_aside",
            "insert into sandbox_cancels (sandbox_id) select id from sandboxes",
            "select sandbox_cancel_all()",
            "alter table sandboxes disable trigger all",
            "drop trigger wake_on_insert on sandboxes",
            "create table public.mine (x int)",
            "create function public.sandbox_now(int) returns int language sql return 1",
            "set role sandbox_owner",
            "set role sandbox_controller",
            "set session_replication_role = replica",
        )


def test_a_controller_lives_through_a_whole_sandbox(database: str, owner: Connection) -> None:
    made = insert(owner)
    with connect(database, "sandbox_controller") as controller:
        [got] = claim(controller)
        bound = ask(controller, "bind", ids=[made], attempts=[1], epochs=[got["epoch"]], run_uids=["u"])
        assert bound == [{"id": made}]
        assert ask(controller, "mark_running", ids=[made], attempts=[1], run_uids=["u"]) == [{"id": made}]
        ended: dict[str, Any] = {
            name: [None] for name in ("exit_codes", "messages", "outputs", "started", "ended", "nodes", "digests")
        }
        ended |= {"ids": [made], "attempts": [1], "run_uids": ["u"], "states": ["lost"], "reasons": ["Lost"]}
        assert [each["id"] for each in ask(controller, "record", truncated=[False], epochs=[None], **ended)] == [made]
        assert ask(controller, "mark_cleaned", ids=[made]) == [{"id": made}]
        assert ask(controller, "locked", ids=[made]) == []
        assert ask(controller, "forget") == [{"forgotten": 0, "kept": 0, "why": []}]
        controller.execute("listen sandbox_wake")


def test_a_controller_does_nothing_else(database: str, owner: Connection) -> None:
    made = insert(owner)
    with connect(database, "sandbox_controller") as controller:
        for column in REQUEST | {"cancel_requested_at", "created_at"}:
            with pytest.raises(DENIED):
                controller.execute(f"update sandboxes set {column} = {column} where id = %s", [made])
        refuse_all(
            controller,
            "insert into sandboxes (command) values ('x')",
            "insert into sandboxes default values",
            "delete from sandboxes",
            "delete from sandbox_attempts",
            "delete from sandbox_events",
            "update sandbox_attempts set output = 'x'",
            "update sandbox_events set step = 'x'",
            "update sandbox_installation set id = gen_random_uuid()",
            "select sandbox_copied()",
            "select sandbox_moved()",
            "begin; lock table sandbox_controllers in share mode",
            "delete from sandbox_controllers",
            "update sandbox_installation set retention_seconds = 1",
            "select sandbox_forget_before(now(), 1000)",
            "select sandbox_cancel(gen_random_uuid())",
            "begin; lock table sandbox_migrations in share row exclusive mode",
            "update sandbox_migrations set version = 0",
            "insert into sandbox_migrations values (99, 'x', 99)",
            "insert into sandbox_tenants values ('t', 1, 1)",
            "alter table sandboxes disable trigger all",
            "create table public.mine (x int)",
            "set role sandbox_owner",
        )
    assert row(owner, made)["command"] == "true"


def refuse_all(connection: Connection, *queries: str) -> None:
    for query in queries:
        try:
            connection.execute(query)
        except DENIED:
            connection.rollback()
        else:
            pytest.fail(f"allowed: {query}")


@pytest.mark.parametrize("name", ["controller", "requester"])
def test_the_password_that_migrate_set_opens_the_door_and_no_other_does(
    name: str, database: str, owner: Connection
) -> None:
    verifier = one(owner, "select rolpassword from pg_authid where rolname = %s", [f"sandbox_{name}"])["rolpassword"]
    assert verifier.startswith("SCRAM-SHA-256$4096:")
    given = conninfo_to_dict(database)
    if str(given.get("host", "/")).startswith("/"):
        return  # a socket's peer is trusted: there is no door
    with psycopg.connect(make_conninfo(database, user=f"sandbox_{name}", password=name)) as connection:
        assert connection.execute("select current_user").fetchall() == [(f"sandbox_{name}",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(make_conninfo(database, user=f"sandbox_{name}", password="wrong"))


# What a requester can lock


HOLDS = {
    "its advisory locks": [
        "select pg_advisory_lock(k) from generate_series(7263001, 7263002) k",
        "select pg_advisory_xact_lock(k) from generate_series(7263001, 7263002) k",
    ],
    "the tables, as far as it may": [
        "lock table sandboxes, sandbox_attempts, sandbox_events, sandbox_results, sandbox_tenants in access share mode"
    ],
    "a cancel of every row": ["select sandbox_cancel(id) from sandboxes"],
    "a request": ["insert into sandboxes (command, priority) values ('x', 9)"],
    "a request that is not committed, of the same tenant and key": [
        "insert into sandboxes (command, idempotency_key) values ('x', 'k')"
    ],
    "a cursor over every row": ["declare held cursor for select * from sandboxes", "fetch 1 from held"],
    "a snapshot": [
        "set transaction isolation level serializable",
        "select count(*) from sandboxes s join sandbox_attempts a on true",
    ],
}


@pytest.mark.parametrize("hold", HOLDS)
def test_nothing_that_a_requester_holds_is_waited_for(hold: str, database: str, owner: Connection) -> None:
    """Rows are claimed, recorded, cleaned, forgotten and drained meanwhile, within a controller's own timeouts."""
    first = insert(owner)
    owner.execute("update sandbox_installation set retention_seconds = 1")
    with connect(database, "sandbox_requester") as requester, connect(database, "sandbox_controller") as controller:
        controller.execute("set lock_timeout = '300ms'")
        controller.execute("set statement_timeout = '3s'")
        [got] = claim(controller)
        with requester.transaction(force_rollback=True):
            for statement in HOLDS[hold]:
                requester.execute(statement.encode())
            second = insert(owner)
            assert [each["id"] for each in claim(controller)] == [second]
            assert ask(controller, "bind", ids=[first], attempts=[1], epochs=[got["epoch"]], run_uids=["u"])
            assert ask(controller, "mark_running", ids=[first], attempts=[1], run_uids=["u"])
            assert ask(controller, "record", **an_end(first))
            assert ask(controller, "mark_cleaned", ids=[first])
            assert ask(controller, "locked", ids=[first, second]) == []
            assert ask(controller, "cancel_all") == [{"asked": 1}]
            assert ask(controller, "forget")
            assert migrate(database, {}, patience=0) == 0


def an_end(made: object) -> dict[str, Any]:
    ended: dict[str, Any] = {
        name: [None] for name in ("exit_codes", "messages", "outputs", "started", "ended", "nodes", "digests")
    }
    return ended | {
        **{"ids": [made], "attempts": [1], "run_uids": ["u"], "states": ["lost"], "reasons": ["Lost"]},
        **{"truncated": [False], "epochs": [None]},
    }


def test_a_requester_locks_no_row_and_no_table(database: str, owner: Connection) -> None:
    insert(owner)
    owner.execute(
        "insert into sandbox_attempts (sandbox_id, attempt, state, reason) select id, 1, 'x', 'x' from sandboxes"
    )
    owner.execute("insert into sandbox_tenants (name) values ('default')")
    with connect(database, "sandbox_requester") as requester:
        for table in READS["sandbox_requester"]:
            for strength in ("update", "no key update", "share", "key share"):
                refuse_all(requester, f"select * from {table} for {strength}")
        modes = ("row share", "row exclusive", "share update exclusive", "share", "share row exclusive", "exclusive")
        for mode in (*modes, "access exclusive"):
            for table in (*READS["sandbox_requester"], "sandbox_migrations", "sandbox_claim_turn", "sandbox_set_aside"):
                refuse_all(requester, f"begin; lock table {table} in {mode} mode")
        refuse_all(
            requester,
            "update sandboxes set cancel_requested_at = now()",
            "merge into sandboxes s using (select 1) x on true when matched then update set state = 'lost'",
            "insert into sandboxes (id, command) select id, 'x' from sandboxes"
            " on conflict (id) do update set cancel_requested_at = now()",
        )


def test_a_cancel_tells_whether_there_is_something_to_cancel(database: str, owner: Connection) -> None:
    waiting, ended = insert(owner), insert(owner, priority=9)
    [got] = claim(owner, 1)
    ask(owner, "bind", ids=[ended], attempts=[1], epochs=[got["epoch"]], run_uids=["u"])
    assert ask(owner, "record", **an_end(ended))
    with connect(database, "sandbox_requester") as requester:
        for sandbox, asked in ((waiting, True), (waiting, True), (ended, False), (uuid4(), False), (None, False)):
            assert one(requester, "select sandbox_cancel(%s) as asked", [sandbox]) == {"asked": asked}
        with requester.transaction(force_rollback=True):
            assert one(requester, "select sandbox_cancel(%s) as asked", [insert(requester)]) == {"asked": True}
        made = insert(requester)
        with requester.transaction():
            requester.execute("select sandbox_cancel(%s)", [made])
    assert row(owner, made)["cancel_requested_at"] is not None
    assert row(owner, ended)["cancel_requested_at"] is None
    assert one(owner, "select count(*) as n from sandbox_cancels")["n"] == 0


@pytest.mark.parametrize("path", ["''", "pg_temp, public", "public, pg_catalog", "app, public", "pg_temp, app"])
def test_whatever_search_path_a_login_has_its_statements_mean_the_same(
    path: str, database: str, owner: Connection
) -> None:
    owner.execute("create schema app")
    owner.execute("create table app.sandboxes (id uuid); create table app.sandbox_events (x int)")
    for name in ("sandbox_now()", "clock_timestamp()"):
        owner.execute(f"create function app.{name} returns timestamptz language sql return 'infinity'::timestamptz")
    owner.execute("create function app.lower(text) returns text language sql as $$ select 'x' $$")
    owner.execute("grant usage on schema app to sandbox_requester, sandbox_controller")
    with connect(database, "sandbox_requester") as requester, connect(database, "sandbox_controller") as controller:
        for login in (requester, controller):
            login.execute(
                "create temporary table sandbox_cancels (x int); create temporary table sandbox_claim_turn ()"
            )
            login.execute(f"set search_path = {path}")
        query = "insert into public.sandboxes (command, env) values ('true', %s) returning id, created_at"
        made = one(requester, query, ['{"A": "1"}'])
        assert one(owner, "select %s < clock_timestamp() as past", [made["created_at"]])["past"]
        assert one(requester, "select public.sandbox_cancel(%s) as asked", [made["id"]])["asked"]
        assert row(owner, made["id"])["cancel_requested_at"] is not None
        insert(owner)
        assert len(controller.execute("select * from public.sandbox_claim_v3('a', 'e', 60, 9, 9)").fetchall()) == 1
        assert len(controller.execute("select * from public.sandbox_claim('a', 'e', 60, 9, 9)").fetchall()) == 0
        assert one(controller, "select * from public.sandbox_forget_v3(10)")["forgotten"] == 0
        assert one(controller, "select public.sandbox_cancel_all() as asked")["asked"] == 1


def test_what_a_requester_makes_in_public_is_never_called_by_the_owner(
    database: str, owner: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    owner.execute("grant create on schema public to sandbox_requester")  # as every login has it up to Postgres 14
    with connect(database, "sandbox_requester") as requester:
        for arguments in ("text, text, name", "text, text, text", "text, integer, text", "text, name"):
            requester.execute(
                f"create function public.format({arguments}) returns text language plpgsql"
                " as $$ begin raise 'called as %', current_user; end $$"
            )
    owner.execute("alter table sandbox_tenants owner to current_user")  # something for migrate to put right
    migrate(database, {})
    warned = [record.__dict__["fields"] for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == [
        {"login": "sandbox_requester", "advice": "revoke create on schema public from public, sandbox_requester"}
    ]
    made = insert(owner, max_attempts=2)
    with connect(database, "sandbox_controller") as controller:
        [got] = claim(controller)
        ended = an_end(made) | {"run_uids": [None], "counted": [False], "delays": [0.0], "afresh": [False]}
        assert ask(controller, "requeue", **ended | {"epochs": [got["epoch"]]}) == [{"id": made}]
    assert row(owner, made)["waiting"] == "attempt 1 ended: Lost; the next is due"
