"""No statement reads rows in proportion to what has ended or what is queued, with statistics or before they come."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from controller.db import sql
from controller.db.pool import Pool
from tests.conftest import in_database
from tests.support.database import ENGINE, QUEUE, Connection, claim, connect, one

FINISHED, QUEUED, ACTIVE, UNCLEANED = 100_000, 20_000, 300, 50
MOST = 2_500  # rows that a statement may read: batches of 1,000, their joins, and what is active
MORE = {  # what `drain` counts, and a count that stops at 10,000: of the queue, never of what has ended
    "counts": 10_000 + MOST,
    "unfinished": 2 * (QUEUED + MOST),
}

FILL = [
    "set session_replication_role = replica",  # no triggers, no foreign keys: a history by the thousand
    "alter table sandboxes set (autovacuum_enabled = off)",  # statistics come when the test says so
    "alter table sandbox_attempts set (autovacuum_enabled = off)",
    "alter table sandbox_events set (autovacuum_enabled = off)",
    "insert into sandboxes"
    " (command, tenant, state, reason, exit_code, finished_at, cleaned_at, engine, run_uid, claimed_by)"
    " select 'true', 't' || i %% {tenants}, 'succeeded', 'Completed', 0, now() - i * interval '1 second', now(),"
    f" '{ENGINE}', 'u' || i, 'a' from generate_series(1, {FINISHED}) i",
    "insert into sandbox_attempts (sandbox_id, attempt, state, reason) select id, 1, state, reason from sandboxes",
    "insert into sandbox_events (sandbox_id, attempt, step) select id, 1, 'succeeded' from sandboxes",
    "insert into sandboxes (command, tenant, state, reason, finished_at, engine, run_uid)"
    f" select 'true', 't' || i %% {{tenants}}, 'lost', 'Lost', now(), '{ENGINE}', 'u'"
    f" from generate_series(1, {UNCLEANED}) i",
    "insert into sandboxes (command, tenant, retry_at, cancel_requested_at) select 'true', 't' || i %% {tenants},"
    f" case when i %% 20 = 0 then now() + (i - {QUEUED // 2}) * interval '1 minute' end,"
    f" case when i %% 50 = 1 then now() end from generate_series(1, {QUEUED}) i",
    "insert into sandboxes (command, tenant, state, engine, run_uid, claimed_by, lease_until, epoch, claimed_at)"
    " select 'true', 't' || i %% {tenants}, case when i %% 3 = 0 then 'launching' else 'running' end,"
    f" '{ENGINE}', 'u' || i, 'a', case when i %% 3 = 0 then now() + (i - 150) * interval '1 second' end, 1, now()"
    f" from generate_series(1, {ACTIVE}) i",
    "insert into sandbox_tenants select 't' || i, 1000, 1 + i from generate_series(0, {tenants} - 1) i",
    "update sandbox_installation set retention_seconds = 5000",
    "set session_replication_role = origin",
]


@pytest.fixture(scope="module", params=[1, 100], ids=["1 tenant", "100 tenants"])
def filled(request: pytest.FixtureRequest, postgres: str, template: str) -> Iterator[str]:
    name = f"sandbox_plans_{uuid4().hex[:8]}"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(SQL("create database {} template {}").format(Identifier(name), Identifier(template)))
        with connect(in_database(postgres, name)) as connection:
            for query in FILL:
                connection.execute(query.replace("{tenants}", str(request.param)), [])
        yield in_database(postgres, name)
        admin.execute(SQL("drop database {} with (force)").format(Identifier(name)))


def parameters(connection: Connection, name: str) -> dict[str, Any]:
    """What a busy controller would send with that statement."""

    def some(where: str, count: int) -> list[UUID]:
        rows = connection.execute(f"select id from sandboxes where {where} order by id limit {count}").fetchall()
        return [row["id"] for row in rows]

    active = some("state in ('launching', 'running')", ACTIVE)
    launching = some("state = 'launching'", ACTIVE)
    count = len(active)
    ended: dict[str, Any] = {
        key: [None] * count for key in ("exit_codes", "messages", "outputs", "started", "ended", "nodes", "digests")
    } | {
        "ids": active,
        "attempts": [1] * count,
        "run_uids": one_of(connection, active),
        "states": ["lost"] * count,
        "reasons": ["Lost"] * count,
        "truncated": [False] * count,
    }
    chosen: dict[str, dict[str, Any]] = {
        "renew": {"ids": launching, "epochs": [1] * len(launching)},
        "mark_cleaned": {"ids": some("state = 'lost' and cleaned_at is null", UNCLEANED)},
        "rows": {"ids": some("true", 1000)},
        "locked": {"ids": some("true", 1000)},
        "adopt": {"ids": active, "epochs": [1] * count, "claimed_by": ["a"] * count},
        "put_back": {"waiting": ["pulled"] * count, "epochs": [1] * count, "delays": [1.0] * count},
        "set_waiting": {"waiting": ["no room"] * count},
        "bind": {"epochs": [1] * count},
        "record": {"epochs": [1] * count},
        "requeue": {
            "counted": [True] * count,
            "delays": [1.0] * count,
            "epochs": [1] * count,
            "afresh": [False] * count,
        },
    }
    common: dict[str, Any] = {
        "me": "a",
        "engine": ENGINE,
        "lease": 60.0,
        "most": 100,
        "max_running": 1000,
        "mine": True,
        "seconds": 3600.0,
    }
    common |= {"held": active, "names": ["a", "b"], "marks": ["a", "b"]}
    return common | ended | chosen.get(name, {})


def one_of(connection: Connection, ids: list[UUID]) -> list[str]:
    rows = connection.execute("select run_uid from sandboxes where id = any(%s) order by id", [ids]).fetchall()
    return [row["run_uid"] for row in rows]


def explain(connection: Connection, query: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """Every node of the statement's generic plan, as it went; nothing of it stays."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    for number, name in enumerate(names, 1):
        query = query.replace(f"%({name})s", f"${number}")
    given = SQL(", ").join(Literal(params[name]) for name in names)
    with connection.transaction(force_rollback=True):
        connection.execute("set local plan_cache_mode = force_generic_plan")
        connection.execute("set local jit = off")
        connection.execute(f"prepare guarded as {query.replace('%%', '%').rstrip(';')}".encode())
        execute = SQL("execute guarded ({})").format(given) if names else SQL("execute guarded")
        answer = one(connection, SQL("explain (analyze, timing off, format json) ") + execute)
    connection.execute("deallocate guarded")
    return list(nodes(answer["QUERY PLAN"][0]["Plan"]))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def rows_read(node: dict[str, Any]) -> float:
    if "Scan" not in node["Node Type"] or node["Node Type"] in ("CTE Scan", "Function Scan"):
        return 0
    removed = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


def inner_claim(connection: Connection) -> str:
    """The statement inside sandbox_claim(), its variables made parameters."""
    source = one(connection, "select prosrc from pg_proc where proname = 'sandbox_claim_v3'")["prosrc"]
    body = re.sub(r"--.*", "", source)
    body = body[body.index("with recursive") : body.index("into batch")].replace("%", "%%")
    for name, kind in {
        "controller": "text",
        "on_engine": "text",
        "lease_seconds": "float8",
        "max_running": "integer",
        "most": "integer",
        "spent": "text[]",
        "aside": "uuid[]",
    }.items():
        body = re.sub(rf"(?<![.\w])(?<!as ){name}\b(?! =>)", f"%({name})s::{kind}", body)
    return body


STAGES = ["never analysed", "analysed"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_statement_reads_no_more_than_it_has_to_do_with(stage: str, filled: str) -> None:
    with connect(filled) as connection:
        assert one(connection, "select reltuples::int as n from pg_class where relname = 'sandboxes'")["n"] in (
            (-1, 0) if stage == STAGES[0] else (one(connection, "select count(*) as n from sandboxes")["n"], -1, 0)
        )
        if stage == STAGES[1]:
            connection.execute("vacuum analyze")
        statements = QUEUE | sql.statements("controllers.sql")
        order = sorted(statements, key="cancel_all".__eq__)  # it leaves many dead rows
        plans = {name: explain(connection, statements[name], parameters(connection, name)) for name in order}
        given = {"controller": "a", "on_engine": ENGINE, "lease_seconds": 60.0, "max_running": 1000, "most": 100}
        plans["inside sandbox_claim_v3"] = explain(
            connection, inner_claim(connection), given | {"spent": [], "aside": []}
        )
        over = {
            name: [
                (node["Node Type"], node.get("Index Name", node.get("Relation Name")), rows_read(node))
                for node in plan
                if rows_read(node) > MORE.get(name, MOST)
            ]
            for name, plan in plans.items()
        }
        assert {name: found for name, found in over.items() if found} == {}
        did = sum(node["Actual Rows"] for node in plans["inside sandbox_claim_v3"] if node["Node Type"] == "LockRows")
        assert did > 0  # it was the real thing


@pytest.mark.parametrize(
    ("call", "least"),
    [
        (f"select count(*) as n from sandbox_claim_v3('a', '{ENGINE}', 60, 1000, 100)", 100),
        ("select forgotten as n from sandbox_forget_v3(1000)", 1000),
        ("select sandbox_cancel_all_v5() as n", QUEUED - QUEUED // 50 + ACTIVE),
    ],
    ids=["claim", "forget", "cancel_all"],
)
def test_a_function_reads_no_more_than_it_has_to_do_with(call: str, least: int, filled: str) -> None:
    counters = "select seq_tup_read + idx_tup_fetch as read from pg_stat_xact_user_tables where relname = 'sandboxes'"
    with connect(filled) as connection, connection.transaction(force_rollback=True):
        before = connection.execute(counters).fetchall()
        assert one(connection, call)["n"] == least
        after = one(connection, counters)["read"]
        assert after - sum(row["read"] for row in before) < least * 5 + ACTIVE * 3 + 500


def test_the_index_of_the_queue_alone_orders_the_queue(filled: str) -> None:
    """No other index begins with the tenant: the planner once read ended rows by one that did."""
    with connect(filled) as connection:
        found = connection.execute(
            "select indexrelid::regclass::text as name, pg_get_expr(indpred, indrelid) as only from pg_index"
            " where indrelid = 'sandboxes'::regclass and pg_get_indexdef(indexrelid, 1, true) = 'tenant'"
        ).fetchall()
        assert {row["name"] for row in found} == {"sandboxes_queue", "sandboxes_active"}
        assert all(row["only"] for row in found)


def test_a_claim_is_quick_while_the_queue_is_long(filled: str) -> None:
    """Where it can, Postgres compiles a plan that looks dear, as this one does: for half a second, at each claim."""
    with connect(filled) as connection, connection.transaction(force_rollback=True):
        began = time.monotonic()
        for _ in range(10):
            assert len(claim(connection, 10, max_running=10_000)) == 10
        assert time.monotonic() - began < 2.0


def test_no_statement_of_a_controller_is_compiled(filled: str) -> None:
    async def setting() -> str:
        async with Pool(filled, "a") as pool, pool.connection() as connection:
            found = await (await connection.execute("show jit")).fetchone()
            return str(found and found["jit"])

    assert asyncio.run(setting()) == "off"
