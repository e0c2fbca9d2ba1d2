"""In a storm, an engine is lost for good, and a second database is copied from the first: every row ends true."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest

from controller.db.installation import FOREIGN
from tests.conftest import in_database
from tests.support.copies import by_dump
from tests.support.engines import make_engine
from tests.support.postgres import Postgres
from tests.support.stage import ROOT, Stage, stage

EXPECTED = {
    "echo done": ("succeeded", 0),
    "echo broken; exit 3": ("failed", 3),
    "echo slow; sleep 2": ("succeeded", 0),
}
TIMEOUT = 5  # seconds of each command; a lost run is known to be over 35 s after it
SETTINGS = {"MAX_RUNNING": 20, "START_DEADLINE_SECONDS": 40}  # a run that was about to start is waited for as long
ROUNDS = 6
RUNS = "select 1 from sandboxes where state = 'running'"


def insert(made: Stage, chance: random.Random, count: int) -> dict[UUID, str]:
    commands = chance.choices(list(EXPECTED), weights=[4, 2, 4], k=count)
    return dict(zip(made.insert([(command, TIMEOUT) for command in commands]), commands, strict=True))


def lose_engine(made: Stage) -> None:
    """Its host is gone: every process of it and all that it kept."""
    for controller in list(made.controllers):
        made.kill(controller)
    for process in psutil.process_iter(["cmdline"]):
        if str(made.place) in " ".join(process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):
                for one in (*process.children(recursive=True), process):
                    one.kill()
    shutil.rmtree(made.place)


@pytest.mark.timeout(400)
def test_a_controllers_engine_lost_for_good_in_the_storm_costs_what_ran_there_and_nothing_else(tmp_path: Path) -> None:
    chance, postgres = random.Random(5), Postgres(tmp_path / "postgres")
    for name in ("doomed", "kept"):
        (tmp_path / name).mkdir()
    try:
        with (
            stage("process", tmp_path / "doomed", postgres.url, **SETTINGS) as doomed,
            stage("process", tmp_path / "kept", postgres.url, **SETTINGS) as kept,
        ):
            for _ in range(2):
                doomed.start()
            asked = insert(kept, chance, 20)
            doomed.wait("a row on the engine that will be lost", lambda: bool(kept.query(RUNS)))
            lost_engine = f"process:{(doomed.place / 'engine').read_text()}"
            two = [kept.start(), kept.start()]
            for turn in range(ROUNDS):
                asked |= insert(kept, chance, 20)
                time.sleep(2)
                kept.kill(two[0])
                two = [two[1], kept.start()]
                if turn == ROUNDS // 2:
                    lose_engine(doomed)
            kept.wait_until_done(200)
            kept.wait("the engine that is left to be empty", lambda: not list(kept.place.rglob("sandbox-*")), 30, 0.2)
            rows = kept.query(
                "select s.*, a.engine as ran_on from sandboxes s"
                " join sandbox_attempts a on a.sandbox_id = s.id and a.attempt = s.attempt"
            )
            assert {row["id"] for row in rows} == asked.keys()
            wrong = [
                row
                for row in rows
                if (row["state"], row["exit_code"]) != EXPECTED[asked[row["id"]]]
                and not (row["state"] == "lost" and row["ran_on"] == lost_engine)
            ]
            assert not wrong, f"{wrong}\n{kept.log()[-5000:]}"
            assert any(row["ran_on"] == lost_engine for row in rows)
            starts = kept.starts()
            assert max(starts.values()) == 1
            assert {str(row["id"]) for row in rows if row["state"] != "lost"} <= starts.keys()
    finally:
        postgres.stop()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "count"), [("process", 20), ("docker", 8)])
def test_a_second_database_copied_from_the_first_in_the_storm_touches_nothing_of_it(
    kind: str, count: int, tmp_path: Path
) -> None:
    make_engine(kind, tmp_path)
    chance, postgres = random.Random(6), Postgres(tmp_path / "postgres")
    try:
        with stage(kind, tmp_path, postgres.url, MAX_RUNNING=20) as made, ExitStack() as stack:
            asked: dict[UUID, str] = {}
            two = [made.start(), made.start()]
            copies: list[Stage] = []
            for turn in range(ROUNDS):
                asked |= insert(made, chance, count)
                made.wait("a run", lambda: bool(made.query(RUNS)))
                if turn in (1, 3):
                    copies.append(copied(made, postgres, stack))
                made.kill(two[0])
                two = [two[1], made.start()]
                time.sleep(1)
            made.wait_until_done(200)
            rows = {row["id"]: (row["state"], row["exit_code"]) for row in made.query("select * from sandboxes")}
            assert rows == {one: EXPECTED[command] for one, command in asked.items()}, made.log()[-5000:]
            assert made.starts() == {str(one): 1 for one in asked}
            for copy in copies:
                copy.wait_until_done(60)
                states = {row["state"] for row in copy.query("select state from sandboxes")}
                assert states <= {"succeeded", "failed", "lost", "cancelled"}
    finally:
        postgres.stop()


def copied(made: Stage, postgres: Postgres, stack: ExitStack) -> Stage:
    """A copy of the database with a controller on the same engine: refused first, then an installation of its own."""
    name = f"copy_{uuid4().hex[:8]}"
    by_dump(postgres.url, name)
    (made.directory / name).mkdir()
    copy = stack.enter_context(stage(made.kind, made.directory / name, in_database(postgres.url, name)))
    copy.place = made.place
    refused = copy.start()
    assert refused.wait(timeout=60) != 0
    assert FOREIGN in copy.log()
    copy.controllers.remove(refused)
    line = [sys.executable, "-m", "controller", "migrate", "--copy"]
    env = os.environ | {"DATABASE_URL": copy.url}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    copy.query("update sandboxes set cancel_requested_at = now() where state = 'queued'")  # they run in the original
    copy.start()
    return copy
