"""Everything killed, again and again: every row ends with its true outcome, and no command runs twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.engines import make_engine
from tests.support.stage import Postgres, Stage, stage

EXPECTED = {
    "exit 0": ("succeeded", 0),
    "exit 3": ("failed", 3),
    "sleep 0.5": ("succeeded", 0),
    "sleep 60": ("timed_out", None),
}
KILL_SECONDS = 2.0
LEASE_SECONDS = 3


def run_storm(made: Stage, postgres: Postgres, rows: int) -> dict[UUID, str]:
    """Inserts the rows while controllers are killed, Postgres is shaken and one controller is paused past its lease."""
    chance = random.Random(7)
    asked: dict[UUID, str] = {}
    two = [made.start(), made.start()]
    shakes: list[Callable[[], None]] = [
        lambda: terminate_backends(made),
        lambda: pause(made),
        postgres.restart,
        lambda: terminate_backends(made),
    ]
    while len(asked) < rows:
        commands = chance.choices(list(EXPECTED), weights=[10, 5, 4, 1], k=max(rows // 8, 1))[: rows - len(asked)]
        ids = made.insert([(command, 1 if command == "sleep 60" else 60) for command in commands])
        asked |= dict(zip(ids, commands, strict=True))
        time.sleep(KILL_SECONDS)
        made.kill(two[0])
        two = [two[1], made.start()]
        if shakes:
            shakes.pop(0)()
    return asked


def terminate_backends(made: Stage) -> None:
    """Cuts every connection of every controller."""
    made.query(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


def pause(made: Stage) -> None:
    """Stops a controller past its lease, and lets it go on."""
    paused = made.controllers[0]
    made.kill(paused, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS + 1)
    made.kill(paused, signal.SIGCONT)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "rows"), [("memory", 500), ("process", 500), ("docker", 100)])
def test_nothing_is_lost_and_nothing_starts_twice_whatever_is_killed(kind: str, rows: int, tmp_path: Path) -> None:
    make_engine(kind, tmp_path)
    postgres = Postgres(tmp_path / "postgres")
    try:
        with stage(kind, tmp_path, postgres.url, LEASE_SECONDS=LEASE_SECONDS) as made:
            asked = run_storm(made, postgres, rows)
            made.wait_until_done(300)
            made.wait_until_empty()
            for controller in list(made.controllers):
                made.kill(controller, signal.SIGTERM)
            results = {row["id"]: row for row in made.query("select * from sandbox_results")}
            wrong = {
                str(one): (command, results[one]["state"], results[one]["exit_code"], results[one]["message"])
                for one, command in asked.items()
                if (results[one]["state"], results[one]["exit_code"]) != EXPECTED[command]
            }
            assert not wrong, f"{wrong}\n{made.log()[-5000:]}"
            assert made.starts() == {str(one): 1 for one in asked}
            assert made.leftovers() == []
    finally:
        postgres.stop()
