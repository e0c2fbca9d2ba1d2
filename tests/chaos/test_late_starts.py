"""More rows than a cluster can start in time: each that starts too late, or never, is told as that and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.engines import make_engine
from tests.support.stage import stage

ROWS = 24
NOT_IN_TIME = {"StartTimeout", "Unschedulable"}
UNKNOWN = "not seen to start within the start deadline; whether it began before it was removed is not known"
BOUND, ENDED = ("select 1 from sandboxes where " + what for what in ("run_uid is not null", "finished_at is not null"))


@pytest.mark.parametrize("kills", [(), (BOUND, ENDED)], ids=["in peace", "controllers killed"])
def test_a_kill_for_a_late_start_is_never_told_as_somebody_elses(
    kills: tuple[str, ...], tmp_path: Path, database: str
) -> None:
    make_engine("kubernetes", tmp_path)
    with stage("kubernetes", tmp_path, database, START_DEADLINE_SECONDS=4) as made:
        made.insert([("sleep 8", 60)] * ROWS)
        controller = made.start()
        for when in kills:
            made.wait(when, lambda when=when: bool(made.query(when)))
            made.kill(controller)
            controller = made.start()
        made.wait_until_done(150)
        rows = made.query("select state, reason, message from sandboxes")
        failed = {row["reason"] for row in rows if row["state"] == "failed"}
        lost = {row["message"] for row in rows if row["state"] == "lost"}
        assert {row["state"] for row in rows} <= {"succeeded", "failed", "lost"}, rows
        assert failed <= NOT_IN_TIME, rows
        assert lost <= ({UNKNOWN} if kills else set()), rows  # removed unstarted by the controller that died
        assert max(made.starts().values(), default=1) == 1
