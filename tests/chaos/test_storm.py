"""Everything killed, again and again, and the database only reads at times: every row ends with its true outcome and
output, and no command runs twice."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from psycopg.rows import DictRow

from tests.support.engines import make_engine
from tests.support.postgres import Postgres
from tests.support.stage import Stage, stage

EXPECTED = {  # state, exit code, last line of the output
    "echo done": ("succeeded", 0, "done"),
    "echo broken; exit 3": ("failed", 3, "broken"),
    "echo slow; sleep 0.5": ("succeeded", 0, "slow"),
    "echo late; sleep 60": ("timed_out", None, "late"),
}
KILL_SECONDS = 2.0
LEASE_SECONDS = 3
READ_SECONDS = 3.0  # of a spell in which the database only reads


def run_storm(made: Stage, postgres: Postgres, rows: int) -> dict[UUID, str]:
    """Inserts the rows while controllers are killed, Postgres is shaken and only reads for two spells, and one
    controller is paused past its lease."""
    chance = random.Random(7)
    asked: dict[UUID, str] = {}
    two = [made.start(), made.start()]
    shakes: list[Callable[[], None]] = [
        lambda: terminate_backends(made),
        lambda: only_read(made),
        lambda: pause(made),
        postgres.restart,
        lambda: only_read(made),
        lambda: terminate_backends(made),
    ]
    while len(asked) < rows:
        commands = chance.choices(list(EXPECTED), weights=[10, 5, 4, 1], k=max(rows // 8, 1))[: rows - len(asked)]
        ids = made.insert([(command, 1 if "sleep 60" in command else 60) for command in commands])
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


def only_read(made: Stage) -> None:
    """Lets the database only read for a while, as an operator does; sessions that it then has stay so."""
    [name] = made.query("select quote_ident(current_database()) as name")
    made.query(f"alter database {name['name']} set default_transaction_read_only = on")
    terminate_backends(made)
    time.sleep(READ_SECONDS)
    made.query(f"begin read write; alter database {name['name']} reset default_transaction_read_only; commit")


def pause(made: Stage) -> None:
    """Stops a controller past its lease, and lets it go on."""
    paused = made.controllers[0]
    made.kill(paused, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS + 1)
    made.kill(paused, signal.SIGCONT)


def ended(row: DictRow) -> tuple[str, int | None, str | None]:
    """What EXPECTED has; the pretended commands of the memory backend also print their mark."""
    return row["state"], row["exit_code"], (row["output"] or "none").splitlines()[-1]


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
            wrong = {str(one): (asked[one], row) for one, row in results.items() if ended(row) != EXPECTED[asked[one]]}
            assert results.keys() == asked.keys()
            assert not wrong, f"{wrong}\n{made.log()[-5000:]}"
            assert made.starts() == {str(one): 1 for one in asked}
            assert made.leftovers() == []
    finally:
        postgres.stop()
