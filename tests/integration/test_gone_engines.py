"""Engines that are gone: their rows end, or run elsewhere; an engine that comes back changes nothing of that."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from controller import app
from controller.settings import Settings
from tests.support.control import Table, control, table
from tests.support.memory_backend import Fault, MemoryBackend, MemoryEngine
from tests.support.stage import ROOT

HOUR = "now() - interval '1 hour'"


async def leave(asked: Table, state: str, *, uid: str | None, engine: str = "docker:gone", **columns: Any) -> Any:
    """A row as a controller that died left it on an engine that is gone, long ago."""
    sandbox = await asked.insert("exit 3", timeout_seconds=5, **columns)
    started = HOUR if state == "running" else "null"
    await asked.rows(
        f"update sandboxes set state = 'launching', engine = %s, epoch = 1, claimed_by = 'dead/1-abc', run_uid = %s,"
        f" claimed_at = {HOUR}, lease_until = {HOUR} where id = %s",
        engine,
        uid,
        sandbox,
    )
    if state == "running":
        await asked.rows(f"update sandboxes set state = 'running', started_at = {started} where id = %s", sandbox)
    return sandbox


async def test_a_run_on_an_engine_without_a_controller_is_lost_once_it_must_be_over(
    database: str, asked: Table
) -> None:
    over = await leave(asked, "running", uid="u")
    released = await leave(asked, "launching", uid="v")
    young = await leave(asked, "running", uid="w")
    await asked.rows("update sandboxes set started_at = now() where id = %s", young)
    async with control(database, MemoryBackend(), sandbox_max_running=3):
        for sandbox in (over, released):
            row = await asked.cleaned(sandbox)
            assert (row["state"], row["reason"], row["exit_code"]) == ("lost", "Lost", None)
            assert "no controller any more" in row["message"]
        ran = await asked.cleaned(await asked.insert())  # their places are free
        assert ran["state"] == "failed"
        assert (await asked.row(young))["state"] == "running"


async def test_a_run_that_may_be_tried_again_is_tried_on_another_engine(database: str, asked: Table) -> None:
    sandbox = await leave(asked, "running", uid="u", max_attempts=2)
    async with control(database, MemoryBackend()):
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"], row["attempt"], row["runs"]) == ("failed", 3, 2, 1)
    attempts = await asked.rows("select reason, engine from sandbox_attempts order by attempt")
    assert attempts[0] == {"reason": "Lost", "engine": "docker:gone"}


async def test_what_was_never_started_there_runs_elsewhere_with_a_start_deadline_of_its_own(
    database: str, asked: Table
) -> None:
    sandboxes = [await leave(asked, "launching", uid=None) for _ in range(3)]
    leased = await leave(asked, "launching", uid=None)
    await asked.rows("update sandboxes set lease_until = now() + interval '1 hour' where id = %s", leased)
    async with control(database, MemoryBackend(), sandbox_max_running=4, sandbox_start_deadline_seconds=60):
        for sandbox in sandboxes:
            row = await asked.cleaned(sandbox)
            assert (row["state"], row["exit_code"], row["attempt"], row["runs"]) == ("failed", 3, 2, 0)
        assert (await asked.row(leased))["state"] == "launching"


@pytest.mark.parametrize(("state", "uid"), [("launching", None), ("launching", "u"), ("running", "u")])
async def test_a_cancel_ends_a_row_of_a_gone_engine(database: str, state: str, uid: str | None, asked: Table) -> None:
    sandbox = await leave(asked, state, uid=uid)
    young = "update sandboxes set lease_until = now() + interval '1 hour', claimed_at = now(), started_at = now()"
    await asked.rows(f"{young} where id = %s", sandbox)
    async with control(database, MemoryBackend()):
        await asked.cancel(sandbox)
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["reason"]) == ("cancelled", "Cancelled")
    assert ("not known" in row["message"]) == (uid is not None)


async def test_an_ended_row_of_a_gone_engine_counts_as_cleaned_and_keeps_its_outcome(
    database: str, asked: Table
) -> None:
    sandbox = await leave(asked, "running", uid="u")
    await asked.rows(
        "update sandboxes set state = 'succeeded', reason = 'Completed', exit_code = 0, finished_at = now()"
    )
    async with control(database, MemoryBackend()):
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("succeeded", 0)


async def test_an_engine_whose_controller_is_connected_is_left_to_it(database: str, asked: Table) -> None:
    """Registered or not: controllers of a schema version before 4 do not register, and hold rows."""
    registered = await leave(asked, "running", uid="u", engine="docker:registered")
    holding = await leave(asked, "running", uid="u", engine="docker:holding")
    gone = await leave(asked, "running", uid="u")
    async with table(f"{database}{'&' if '?' in database else '?'}application_name=alive") as alive:
        await alive.rows("select sandbox_register('alive', 'docker:registered')")
        await asked.rows("update sandboxes set claimed_by = 'alive' where id = %s", holding)
        async with control(database, MemoryBackend()):
            await asked.cleaned(gone)
            assert {(await asked.row(one))["state"] for one in (registered, holding)} == {"running"}


async def test_a_requester_with_a_controllers_name_does_not_pass_for_it(database: str, asked: Table) -> None:
    gone = await leave(asked, "running", uid="u")
    await asked.rows("select sandbox_register('dead/1-abc', 'docker:gone')")
    login = {"user": "sandbox_requester", "password": "requester", "application_name": "dead/1-abc"}
    async with table(make_conninfo(database, **login)), control(database, MemoryBackend()):
        assert (await asked.cleaned(gone))["state"] == "lost"


async def test_an_engine_that_comes_back_loses_its_strays_and_overwrites_nothing(database: str, asked: Table) -> None:
    engine, elsewhere = MemoryEngine(), MemoryEngine()
    held = MemoryBackend(engine, lambda verb, key: Fault.BUSY if verb == "release" else None, 0.2)
    async with control(database, MemoryBackend(engine)):
        running = await asked.insert("sleep 600")
        again = await asked.insert("sleep 600", max_attempts=2)
        for sandbox in (running, again):
            await asked.until(sandbox, lambda row: row["state"] == "running")
    async with control(database, held):
        bound = await asked.insert("sleep 600")
        await asked.until(bound, lambda row: row["run_uid"] is not None)
    await asked.rows(f"update sandboxes set started_at = {HOUR} where started_at is not null")
    await asked.rows(f"update sandboxes set claimed_at = {HOUR}, timeout_seconds = timeout_seconds")
    async with control(database, MemoryBackend(elsewhere)):
        for sandbox in (running, bound):
            assert (await asked.cleaned(sandbox))["state"] == "lost"
        await asked.until(again, lambda row: row["attempt"] == 2 and row["state"] == "running")
        before = await asked.rows("select * from sandboxes where id = any(%s) order by id", [running, bound])
        assert len(engine.runs) == 3
        async with control(database, MemoryBackend(engine, list_seconds=0.2)):
            async with asyncio.timeout(20):
                while engine.runs:
                    await asyncio.sleep(0.02)
        after = await asked.rows("select * from sandboxes where id = any(%s) order by id", [running, bound])
        assert after == before
        row = await asked.row(again)
        assert (row["attempt"], row["state"], row["engine"]) == (2, "running", elsewhere.identity)
    assert len(elsewhere.runs) == 1
    assert max(engine.starts.values()) == 1


async def test_a_controller_cut_off_from_the_table_lets_go_of_what_was_settled_without_it(
    database: str, asked: Table
) -> None:
    """Its rows run elsewhere under the next attempt; what it has of the attempt before is deleted."""
    engine, elsewhere = MemoryEngine(), MemoryEngine()
    async with control(database, MemoryBackend(engine, list_seconds=0.2)):
        sandbox = await asked.insert("sleep 600", max_attempts=2)
        row = await asked.until(sandbox, lambda row: row["state"] == "running")
        # what another controller writes that saw no connection of this one
        await asked.rows(
            "update sandboxes set state = 'queued', attempt = 2, runs = 1, run_uid = null, claimed_by = null,"
            " engine = null, started_at = null, retry_at = now() + interval '1 hour' where id = %s",
            sandbox,
        )
        async with asyncio.timeout(20):
            while engine.runs:
                await asyncio.sleep(0.02)
        assert (await asked.row(sandbox))["attempt"] == 2
    assert row["engine"] == engine.identity
    assert not elsewhere.runs


# The verbs


def verb(url: str, work_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    more = "&" if "?" in url else "?"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")} | {
        "DATABASE_URL": f"{url}{more}options=-crole%3Dsandbox_controller",
        "SANDBOX_BACKEND": "process",
        "SANDBOX_WORK_DIR": str(work_dir),
        "LOG_FORMAT": "console",
    }
    line = [sys.executable, "-m", "controller", *words]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


async def test_drain_ends_what_is_left_on_a_gone_engine(
    database: str, capsys: pytest.CaptureFixture[str], asked: Table
) -> None:
    sandboxes = [await leave(asked, "running", uid="u"), await leave(asked, "launching", uid=None)]
    await asked.rows("update sandboxes set started_at = now(), claimed_at = now() where started_at is not null")
    settings = Settings(database_url=database, sandbox_poll_seconds=0.1)
    backend = MemoryBackend()
    config = replace(app.config_of(settings, backend), resync=0.2, engine_grace=0.5)
    assert await app.drain(settings, backend, 20, config) == 0
    assert {(await asked.row(sandbox))["state"] for sandbox in sandboxes} == {"cancelled"}
    assert capsys.readouterr().out.endswith("drain: nothing is left\n")


async def test_drain_names_the_verb_for_an_engine_that_is_gone(database: str, tmp_path: Path, asked: Table) -> None:
    await leave(asked, "running", uid="u")
    done = verb(database, tmp_path, "drain", "--timeout", "2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "drain: 1 sandboxes are left on engine docker:gone: if no controller of it will come back, "
        "give it up: `python -m controller give-up docker:gone`"
    )


async def test_give_up_settles_all_rows_of_an_engine_at_once(database: str, tmp_path: Path, asked: Table) -> None:
    running = await leave(asked, "running", uid="u")
    await asked.rows("update sandboxes set started_at = now(), timeout_seconds = timeout_seconds")
    never = await leave(asked, "launching", uid=None)
    other = await leave(asked, "running", uid="u", engine="docker:other")
    done = verb(database, tmp_path, "give-up", "docker:gone")
    assert (done.returncode, done.stdout) == (0, "give-up: 1 cleaned, 1 lost, 1 queued again\n"), done.stderr
    assert (await asked.row(running))["cleaned_at"] is not None
    assert (await asked.row(never))["state"] == "queued"
    assert (await asked.row(other))["state"] == "running"


async def test_give_up_fails_if_the_database_refuses_to_have_a_row_settled(
    database: str, tmp_path: Path, asked: Table
) -> None:
    refused = await leave(asked, "running", uid="u")
    await leave(asked, "launching", uid=None)
    await asked.rows(
        "create function refused() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$;"
        f" create trigger refused before update on sandboxes for each row when (old.id = '{refused}')"
        " execute function refused()"
    )
    done = verb(database, tmp_path, "give-up", "docker:gone")
    assert done.returncode == 1
    assert "not this one" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "give-up: 1 sandboxes are still on engine docker:gone, the log says why: run it again"
    )


async def test_give_up_names_the_engines_that_there_are(database: str, tmp_path: Path, asked: Table) -> None:
    await leave(asked, "running", uid="u")
    done = verb(database, tmp_path, "give-up", "docker:wrong")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "give-up: no sandbox is left on an engine docker:wrong; engines in the table: docker:gone\n"


async def test_give_up_is_refused_while_a_controller_of_the_engine_is_connected(
    database: str, tmp_path: Path, asked: Table
) -> None:
    async with control(database, MemoryBackend()) as _:
        sandbox = await asked.insert("sleep 600")
        row = await asked.until(sandbox, lambda row: row["state"] == "running")
        done = await asyncio.to_thread(verb, database, tmp_path, "give-up", row["engine"])
        assert done.returncode == 1
        holder = row["claimed_by"]
        assert done.stderr == (
            f"give-up: the controller {holder} of engine {row['engine']} is connected: stop it first\n"
        )
        assert (await asked.row(sandbox))["state"] == "running"
