"""`run` stops in order and leaves what runs running; `drain` ends everything and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stage import ROOT, Stage, stage


def drain(made: Stage, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user gives it, with the controller's own rights."""
    more = "&" if "?" in made.url else "?"
    env = os.environ | {
        "DATABASE_URL": f"{made.url}{more}options=-crole%3Dsandbox_controller",
        "SANDBOX_BACKEND": "process",
        "SANDBOX_WORK_DIR": str(made.place),
        "LOG_FORMAT": "console",
    }
    line = [sys.executable, "-m", "controller", "drain", *words]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


def test_sigterm_leaves_runs_running_and_the_next_controller_has_their_outcome(tmp_path: Path, database: str) -> None:
    with stage("process", tmp_path, database) as made:
        (one,) = made.insert([("sleep 2; exit 5", 60)])
        first = made.start()
        made.wait("the run", lambda: bool(made.query("select 1 from sandboxes where state = 'running'")))
        made.kill(first, signal.SIGTERM)
        assert first.wait() == 0, made.log()
        assert made.query("select state from sandboxes") == [{"state": "running"}]
        made.start()
        made.wait_until_done(30)
        assert made.query("select state, exit_code from sandboxes") == [{"state": "failed", "exit_code": 5}]
        assert made.starts() == {str(one): 1}
        assert made.leftovers() == []


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a controller"])
def test_drain_ends_what_runs_and_what_waits_and_leaves_nothing(tmp_path: Path, database: str, beside: bool) -> None:
    with stage("process", tmp_path, database, MAX_RUNNING=2) as made:
        made.insert([("sleep 300", 600)] * 4)
        running = made.start()
        made.wait("two runs", lambda: len(made.query("select 1 from sandboxes where state = 'running'")) == 2)
        if not beside:
            made.kill(running)
        done = drain(made)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "drain: nothing is left"
        assert {row["state"] for row in made.query("select state from sandboxes")} == {"cancelled"}
        assert not made.query("select 1 from sandboxes where cleaned_at is null")
        if beside:
            made.kill(running, signal.SIGTERM)
        assert made.leftovers() == []


def test_drain_says_what_is_left_on_an_engine_that_nobody_answers_for(tmp_path: Path, database: str) -> None:
    with stage("process", tmp_path, database) as made:
        made.insert([("true", 60)])
        made.query("update sandboxes set state = 'launching', engine = 'docker:gone', epoch = 1, claimed_by = 'x'")
        done = drain(made, "--timeout", "2")
        assert done.returncode == 1
        assert "1 sandboxes are left on engine docker:gone" in done.stderr
        assert "Traceback" not in done.stderr
