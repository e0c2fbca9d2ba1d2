"""A database of an older version is upgraded under its running controllers, and both versions work on it together."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from controller.db import sql
from controller.db.migrate import CODE_VERSION, migrate
from tests.support.database import ENGINE, Connection, ask, connect, insert, one, row, until
from tests.support.older import ROOT, Older, controller, run_verb

TABLES = ("sandboxes", "sandbox_attempts", "sandbox_events", "sandbox_installation")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Older:
    return Older(tmp_path_factory.mktemp("older"))


@pytest.fixture
def old_database(older: Older, empty_database: str) -> str:
    """A database that the older version made."""
    done = older.verb(empty_database, "migrate")
    assert done.stdout == "migrate: 2 applied\n", done.stderr
    return empty_database


@pytest.fixture
def owner(old_database: str) -> Iterator[Connection]:
    with connect(old_database) as connection:
        yield connection


Ask = Callable[..., list[dict[str, Any]]]


def a_claim(ask_it: Ask, connection: Connection, name: str, most: int = 1) -> list[dict[str, Any]]:
    params = {"me": name, "engine": ENGINE, "lease": 60.0, "max_running": 1000, "most": most}
    return ask_it(connection, "claim", **params)


def an_end(made: UUID, attempt: int = 1) -> dict[str, Any]:
    columns = ("exit_codes", "messages", "outputs", "started", "ended", "nodes", "digests")
    return {name: [None] for name in columns} | {
        **{"ids": [made], "attempts": [attempt], "run_uids": ["u"], "states": ["failed"], "reasons": ["Killed"]},
        **{"truncated": [False], "epochs": [None]},
    }


def rows_in_every_state(older: Older, owner: Connection) -> dict[str, UUID]:
    """One row that the older version brought to each state, by its own statements."""
    made: dict[str, UUID] = {}
    for state in ("launching", "bound", "running", "ended", "cleaned", "cancelling"):
        made[state] = insert(owner, command=state, env='{"A": "1"}', tenant=state)
        [claimed] = a_claim(older.ask, owner, "old")
        bind = {"ids": [made[state]], "attempts": [1], "epochs": [claimed["epoch"]], "run_uids": ["u"]}
        if state == "launching":
            continue
        assert older.ask(owner, "bind", **bind)
        if state == "bound":
            continue
        assert older.ask(owner, "mark_running", ids=[made[state]], attempts=[1], run_uids=["u"])
        if state in ("ended", "cleaned"):
            assert older.ask(owner, "record", **an_end(made[state]))
        if state == "cleaned":
            assert older.ask(owner, "mark_cleaned", ids=[made[state]])
    owner.execute("update sandboxes set cancel_requested_at = now() where id = %s", [made["cancelling"]])
    made["again"] = insert(owner, command="again", max_attempts=2)
    [claimed] = a_claim(older.ask, owner, "old")
    assert older.ask(owner, "bind", ids=[made["again"]], attempts=[1], epochs=[claimed["epoch"]], run_uids=["u"])
    again = an_end(made["again"]) | {"counted": [True], "delays": [1000.0], "epochs": [None]}
    assert older.ask(owner, "requeue", **again)
    made["queued"] = insert(owner, command="queued")
    return made


def test_rows_in_every_state_are_what_they_were(older: Older, old_database: str, owner: Connection) -> None:
    rows_in_every_state(older, owner)
    owner.execute("insert into tenants (name, max_running, weight) values ('bound', 7, 2)")
    before = {table: owner.execute(f"select * from {table} order by 1, 2").fetchall() for table in TABLES}
    assert migrate(old_database, {}) == CODE_VERSION - 2
    for table, rows in before.items():
        columns = ", ".join(rows[0])
        assert owner.execute(f"select {columns} from {table} order by 1, 2".encode()).fetchall() == rows
    assert owner.execute("select name, max_running, weight from sandbox_tenants").fetchall() == [
        {"name": "bound", "max_running": 7, "weight": 2.0}
    ]
    assert one(owner, "select bool_and(convalidated) as valid from pg_constraint where contype = 'c'")["valid"]
    assert migrate(old_database, {}) == 0


@pytest.mark.parametrize("finisher", ["old", "new"])
def test_what_either_version_claimed_the_other_brings_to_its_end(
    finisher: str, older: Older, old_database: str, owner: Connection
) -> None:
    made = rows_in_every_state(older, owner)
    migrate(old_database, {})
    theirs, ours = (older.ask, ask) if finisher == "old" else (ask, older.ask)
    with connect(old_database, "sandbox_controller") as session:
        for name in ("fresh 1", "fresh 2"):
            insert(owner, command=name)
        fresh = [each["id"] for each in a_claim(ours, session, "first", 3)]
        assert len(fresh) == 3  # what was queued before, too
        standing = {each["id"]: each for each in theirs(session, "owned_rows", engine=ENGINE)}
        assert standing.keys() == {*fresh, *made.values()} - {made["cleaned"], made["again"]}
        assert {each["id"] for each in theirs(session, "cancelling", engine=ENGINE)} == {made["cancelling"]}
        for sandbox in (*fresh, made["launching"]):
            bind = {"ids": [sandbox], "attempts": [1], "epochs": [standing[sandbox]["epoch"]], "run_uids": ["u"]}
            assert theirs(session, "bind", **bind)
        for sandbox in (*fresh, made["launching"], made["bound"]):
            assert theirs(session, "mark_running", ids=[sandbox], attempts=[1], run_uids=["u"])
        for sandbox in standing.keys() - {made["ended"]}:
            assert theirs(session, "record", **an_end(sandbox))
        assert len(theirs(session, "mark_cleaned", ids=list(standing))) == len(standing)
        assert theirs(session, "retry_due") == []
        owner.execute("update sandboxes set retry_at = now() where id = %s", [made["again"]])
        assert theirs(session, "retry_due") == [{"id": made["again"]}]
        assert [each["attempt"] for each in a_claim(theirs, session, "second")] == [2]
        assert {each["state"] for each in owner.execute("select state from sandboxes")} == {"failed", "launching"}


def test_sessions_of_the_version_before_go_on_through_the_upgrade(
    older: Older, old_database: str, owner: Connection
) -> None:
    """Their plans are prepared and cached; nothing of them breaks, and no claim is lost."""
    with connect(old_database, "sandbox_controller") as session:
        for expected in range(2):
            for _ in range(12):  # past the number at which the driver and plpgsql keep a plan
                sandbox = insert(owner)
                assert [each["id"] for each in a_claim(older.ask, session, "old")] == [sandbox]
                assert older.ask(session, "owned_rows", engine=ENGINE)
                assert older.ask(session, "forget", retention=1.0) == [{"forgotten": 0}]
            if not expected:
                migrate(old_database, {})
        owner.execute("alter table sandboxes add column build_id uuid")
        insert(owner)
        assert len(a_claim(older.ask, session, "old")) == 1


@pytest.mark.timeout(180)
def test_controllers_of_both_versions_work_together_through_the_upgrade(
    older: Older, old_database: str, owner: Connection, tmp_path: Path
) -> None:
    settings = {"BACKEND": "process", "WORK_DIR": tmp_path / "work", "POLL_SECONDS": 0.2, "LEASE_SECONDS": 3}
    log = tmp_path / "log"
    stop = threading.Event()

    def ask_all_the_time() -> None:
        with psycopg.connect(old_database, autocommit=True) as application:
            while not stop.wait(0.1):
                application.execute("insert into sandboxes (command, memory_mib) values ('echo hi; sleep 0.3', 64)")

    asking = threading.Thread(target=ask_all_the_time)
    ended = "select count(*) >= %s from sandboxes where state = 'succeeded'"
    with controller(older.directory, old_database, log, **settings):
        asking.start()
        try:
            long = insert(owner, command="sleep 8; echo through", memory_mib=64)
            until(owner, "select state = 'running' from sandboxes where id = %s", [long], seconds=30)
            assert migrate(old_database, {}) == CODE_VERSION - 2
            with controller(ROOT, old_database, log, **settings):
                until(owner, "select count(distinct claimed_by) = 2 from sandboxes", seconds=30)
                count = one(owner, "select count(*) as n from sandboxes")["n"]
                until(owner, ended, [count], seconds=60)
            count = one(owner, "select count(*) as n from sandboxes")["n"]  # the older version is alone again
            until(owner, ended, [count + 5], seconds=60)
        finally:
            stop.set()
            asking.join()
        until(owner, "select bool_and(finished_at is not null) from sandboxes", seconds=60)
    states = owner.execute("select state, output from sandbox_results group by 1, 2 order by 2").fetchall()
    assert states == [
        {"state": "succeeded", "output": "hi\n"},
        {"state": "succeeded", "output": "through\n"},
    ], log.read_text()[-4000:]
    assert row(owner, long)["attempt"] == 1


def test_a_controller_whose_files_are_replaced_under_it_starts_runs_until_it_is_stopped(
    older: Older, old_database: str, owner: Connection, tmp_path: Path
) -> None:
    """As where a checkout is brought up to date before its controller is started again."""
    checkout = tmp_path / "checkout"
    shutil.copytree(older.directory, checkout)
    log = tmp_path / "log"
    with controller(checkout, old_database, log, BACKEND="process", WORK_DIR=tmp_path / "work", POLL_SECONDS=0.2):
        for text in ("before", "after"):
            sandbox = insert(owner, command=f"echo {text}", memory_mib=64)
            until(owner, "select finished_at is not null from sandboxes where id = %s", [sandbox], seconds=30)
            found = one(owner, "select state, output from sandbox_results where id = %s", [sandbox])
            assert found == {"state": "succeeded", "output": f"{text}\n"}, log.read_text()[-4000:]
            shutil.rmtree(checkout / "controller")
            shutil.copytree(ROOT / "controller", checkout / "controller")


def test_verbs_of_the_version_before_work_on_the_upgraded_database(
    older: Older, old_database: str, owner: Connection
) -> None:
    sandbox = insert(owner, tenant="ci")
    owner.execute("insert into tenants (name, max_running) values ('ci', 0)")
    migrate(old_database, {})
    owner.execute("update tenants set weight = 2 where name = 'ci'")
    owner.execute("insert into tenants (name) values ('another')")
    assert one(owner, "select count(*) as n from sandbox_tenants where weight = 2")["n"] == 1
    explained = older.verb(old_database, "explain", str(sandbox))
    assert explained.returncode == 0, explained.stderr
    assert "its limit: 0, reached" in explained.stdout
    assert older.verb(old_database, "migrate").stdout == "migrate: nothing to do\n"
    assert run_verb(ROOT, old_database, "migrate").stdout == "migrate: nothing to do\n"
    with connect(old_database, "sandbox_requester") as requester:
        insert(requester)


@pytest.mark.parametrize("step", [step for step in sql.migrations() if step.version > 2], ids=lambda step: step.name)
def test_a_migration_leaves_the_sessions_of_a_running_controller_working(
    step: sql.Migration, older: Older, old_database: str, owner: Connection
) -> None:
    """Whatever it adds: the functions that a controller calls go on in sessions that have called them."""
    calls = ["select id, command from sandbox_claim('a', 'e', 60, 1000, 1)", "select sandbox_forget(1, 10)"]
    owner.execute("set role sandbox_owner")
    for before in sql.migrations()[2 : step.version - 1]:
        owner.execute(before.sql)
    if step.version > 3:
        calls += [
            "select id, command from sandbox_claim_v3('a', 'e', 60, 1000, 1)",
            "select * from sandbox_forget_v3(1)",
        ]
    if step.version > 4:
        calls += [
            *("select sandbox_connected()", "select sandbox_register('a', 'e')", "select sandbox_saw('a', array['a'])"),
            *("select sandbox_unregister(array['a'])", "select sandbox_identify()", "select sandbox_cancel_all()"),
        ]
    with connect(old_database) as session:
        for _ in range(6):
            insert(owner)
            for call in calls:
                session.execute(call.encode())
        owner.execute("begin;" + step.sql + "commit")
        for call in calls:
            insert(owner)
            assert session.execute(call.encode()).rowcount == 1, call


def test_the_functions_of_the_versions_before_are_called_and_answer_like_the_new_ones(database: str) -> None:
    """Controllers of the versions before call them by these names, beside controllers that call the others."""
    shape = (
        "select proargnames as names, proargtypes::text as types, proallargtypes as all_types, prorettype as returns,"
        " proretset as many, provolatile as volatile from pg_proc where proname = %s"
    )
    with connect(database) as owner:
        found = owner.execute("select proname from pg_proc where proname ~ '^sandbox_.*_v5$'").fetchall()
        assert len(found) == 6
        for name in (each["proname"] for each in found):
            assert one(owner, shape, [name.removesuffix("_v5")]) == one(owner, shape, [name])
    with connect(database, "sandbox_controller") as before, connect(database, "sandbox_controller") as after:
        for beside, alone in ((before, ""), (after, "_v5")):
            identity = one(beside, f"select id, standing from sandbox_identify{alone}()")
            assert (identity["id"], identity["standing"]) == (installation(beside), "own")
            assert one(beside, f"select sandbox_register{alone}('c{alone}', 'e') as new") == {"new": True}
            assert one(beside, f"select sandbox_register{alone}('c{alone}', 'e') as new") == {"new": False}
            beside.execute(f"select sandbox_saw{alone}('c{alone}', array['m'])")
        seen = "select name, sees, looks from sandbox_controllers order by name"
        told = {"sees": ["m"], "looks": 1}
        assert before.execute(seen).fetchall() == [{"name": "c"} | told, {"name": "c_v5"} | told]
        before.execute("select sandbox_unregister(array['c_v5'])")
        after.execute("select sandbox_unregister_v5(array['c'])")
        assert before.execute(seen).fetchall() == []
        for beside, alone in ((before, ""), (after, "_v5")):
            with connect(database, "sandbox_requester") as requester:
                insert(requester)
            assert one(beside, f"select sandbox_cancel_all{alone}() as asked") == {"asked": 1}
            assert isinstance(one(beside, f"select sandbox_connected{alone}() as names")["names"], list)


def installation(connection: Connection) -> UUID:
    found: UUID = one(connection, "select id from sandbox_installation")["id"]
    return found


OLD_MODULES = """
from controller.backends.process_runs import Runs
from controller.backends.process_spec import request_bytes
from controller.model import Key, Launch, Phase
"""
NEW_MODULES = """
from controller.backends.process.runs import RunDirectory as Runs
from controller.backends.process.run_status import request_bytes
from controller.protocol.model import Key, Launch, Phase
"""
MAKE_OR_START = """
import sys, time
from pathlib import Path
from uuid import UUID

what, key = sys.argv[1], Key(UUID(sys.argv[3]), 1)
runs = Runs(Path(sys.argv[2]), UUID(int=1))
runs.prepare()
if what == "make":
    launch = Launch(key, 'echo "$A $B"; exit 7', 60, env={"A": "as", "B": "asked"})
    runs.create(key, request_bytes(launch, "0" * 32, 1 << 20), look_first=False)
else:
    runs.release(key, "0" * 32)
    while (run := runs.look_at([key])[0]).phase is not Phase.ENDED:
        time.sleep(0.01)
    print(run.outcome.exit_code, runs.output(key, "0" * 32, 100).tail.decode().strip())
"""


@pytest.mark.parametrize("maker", ["old", "new"])
def test_what_either_version_made_the_other_starts_as_it_was_asked_for(
    maker: str, older: Older, tmp_path: Path
) -> None:
    versions, key = [(older.directory, OLD_MODULES), (ROOT, NEW_MODULES)], str(uuid4())
    turns = versions if maker == "old" else reversed(versions)
    for what, (directory, modules) in zip(("make", "start"), turns, strict=True):
        line = [sys.executable, "-c", modules + MAKE_OR_START, what, str(tmp_path / "work"), key]
        done = subprocess.run(line, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
        assert not done.stderr
    assert done.stdout == "7 as asked\n"
