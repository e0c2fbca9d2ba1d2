"""Controllers killed between any two steps of the protocol: the next one ends every row, and nothing starts twice.

One controller dies at each point, at that step of rows of its own, and each finds what those before it left. Steps that
are a statement alone are the same whatever the engine: of those, Docker and Kubernetes meet only the binding.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest
from psycopg.rows import DictRow

from tests.support.crashing import Failpoint
from tests.support.engines import make_engine
from tests.support.stage import Stage, stage

ENGINE_STEPS = ("create", "bind", "release", "output", "delete", "kill")
ALL_STEPS = (*ENGINE_STEPS, "claim", "mark_running", "record", "mark_cleaned", "requeue")


class End(NamedTuple):
    """What a row comes to; `output` is its last line."""

    state: str
    reason: str
    exit_code: int | None
    output: str | None
    attempts: int = 1
    runs: int = 0  # failed attempts before the last
    starts: int = 1


FAILED = {
    "echo short; exit 3": End("failed", "NonZeroExit", 3, "short"),
    "echo long; sleep 1; exit 4": End("failed", "NonZeroExit", 4, "long"),
}
TWICE = End("failed", "NonZeroExit", 3, "short", attempts=2, runs=1, starts=2)
CANCELLED = End("cancelled", "Cancelled", None, "begun")


def crash(made: Stage, point: str) -> dict[UUID, End]:
    """Lets a controller die at that point of new rows; returns what they must come to."""
    match point.partition(":")[2]:
        case "requeue":
            expected = {made.insert([("echo short; exit 3", 60)], max_attempts=2)[0]: TWICE}
            doomed = made.start(Failpoint(point, expected))
        case "kill":
            expected = {made.insert([("echo begun; sleep 300", 600)])[0]: CANCELLED}
            doomed = made.start(Failpoint(point, expected))
            (sandbox,) = expected
            running = "select 1 from sandboxes where state = 'running' and id = %s"
            made.wait(f"{point}: the run", lambda: bool(made.query(running, sandbox)))
            made.wait(f"{point}: its command's mark", lambda: made.starts()[str(sandbox)] == 1)
            made.query("update sandboxes set cancel_requested_at = now() where id = %s", sandbox)
        case _:
            ids = made.insert([(command, 60) for command in FAILED])
            expected = dict(zip(ids, FAILED.values(), strict=True))
            doomed = made.start(Failpoint(point, expected))
    made.wait(f"{point}: the controller's death", lambda: doomed.poll() is not None, 60)
    assert doomed.wait() == -signal.SIGKILL, f"{point}: {made.log()}"
    made.controllers.remove(doomed)
    return expected


def end(row: DictRow, starts: int) -> End:
    """What a row came to, its command having left so many marks."""
    output = row["output"].splitlines()[-1] if row["output"] else None
    return End(row["state"], row["reason"], row["exit_code"], output, row["attempts"], row["runs"], starts)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "steps"),
    [("memory", ALL_STEPS), ("process", ALL_STEPS), ("docker", ENGINE_STEPS), ("kubernetes", ENGINE_STEPS)],
    ids=["memory", "process", "docker", "kubernetes"],
)
def test_a_crash_at_any_point_loses_nothing_and_starts_nothing_twice(
    kind: str, steps: tuple[str, ...], tmp_path: Path, database: str
) -> None:
    make_engine(kind, tmp_path)
    points = [f"{side}:{step}" for step in steps for side in ("before", "after")]
    with stage(kind, tmp_path, database, LEASE_SECONDS=1) as made:
        expected = {point: crash(made, point) for point in points}
        made.start()
        made.wait_until_done(90)
        rows = made.query("select r.*, s.runs from sandbox_results r join sandboxes s using (id)")
        starts = made.starts()
        ends = {row["id"]: end(row, starts[str(row["id"])]) for row in rows}
        assert {point: {one: ends[one] for one in ids} for point, ids in expected.items()} == expected, made.log()
        assert starts.keys() == {str(one) for one in ends}
        made.wait_until_empty()
