"""A controller killed between any two steps of the protocol: the next one ends every row, and nothing starts twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.crashing import BACKEND_STEPS, QUEUE_STEPS
from tests.support.engines import make_engine
from tests.support.stage import stage

STEPS = [
    step for step in (*QUEUE_STEPS, *BACKEND_STEPS) if step not in ("kill", "again")
]  # these two have a test of their own
POINTS = [f"{side}:{step}" for step in STEPS for side in ("before", "after")]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["memory", "process", "docker", "kubernetes"])
def test_a_crash_there_loses_nothing_and_starts_nothing_twice(
    kind: str, point: str, tmp_path: Path, database: str
) -> None:
    make_engine(kind, tmp_path)
    with stage(kind, tmp_path, database, LEASE_SECONDS=1) as made:
        failing = made.insert([("exit 3", 60)])
        sleeping = made.insert([("sleep 1; exit 4", 60)])
        doomed = made.start(point)
        assert doomed.wait(timeout=60) == -9, made.log()
        made.controllers.remove(doomed)
        made.start()
        made.wait_until_done(60)
        rows = {row["id"]: row for row in made.query("select * from sandbox_results")}
        for one, code in ((failing[0], 3), (sleeping[0], 4)):
            assert (rows[one]["state"], rows[one]["exit_code"]) == ("failed", code), made.log()
        assert made.starts() == {str(one): 1 for one in failing + sleeping}
        made.wait_until_empty()


@pytest.mark.parametrize("point", ["before:kill", "after:kill"])
@pytest.mark.parametrize("kind", ["memory", "process", "docker", "kubernetes"])
def test_a_crash_while_cancelling_still_cancels(kind: str, point: str, tmp_path: Path, database: str) -> None:
    make_engine(kind, tmp_path)
    with stage(kind, tmp_path, database, LEASE_SECONDS=1) as made:
        (one,) = made.insert([("sleep 300", 600)])
        doomed = made.start(point)
        made.wait("the run", lambda: made.query("select 1 from sandboxes where state = 'running'"))
        made.wait("its command's mark", lambda: bool(made.starts()))
        made.query("update sandboxes set cancel_requested_at = now() where id = %s", one)
        assert doomed.wait(timeout=60) == -9, made.log()
        made.controllers.remove(doomed)
        made.start()
        made.wait_until_done(60)
        (row,) = made.query("select state, reason from sandboxes")
        assert (row["state"], row["reason"]) == ("cancelled", "Cancelled")
        assert made.starts() == {str(one): 1}
        made.wait_until_empty()


@pytest.mark.parametrize("point", ["before:again", "after:again"])
@pytest.mark.parametrize("kind", ["memory", "process", "docker", "kubernetes"])
def test_a_crash_while_an_attempt_is_queued_again_runs_each_attempt_once(
    kind: str, point: str, tmp_path: Path, database: str
) -> None:
    make_engine(kind, tmp_path)
    with stage(kind, tmp_path, database, LEASE_SECONDS=1) as made:
        (one,) = made.insert([("exit 3", 60)], max_attempts=2)
        doomed = made.start(point)
        assert doomed.wait(timeout=60) == -9, made.log()
        made.controllers.remove(doomed)
        made.start()
        made.wait_until_done(60)
        (row,) = made.query("select state, exit_code, attempt, runs from sandboxes")
        assert row == {"state": "failed", "exit_code": 3, "attempt": 2, "runs": 1}
        assert made.starts() == {str(one): 2}
        made.wait_until_empty()
