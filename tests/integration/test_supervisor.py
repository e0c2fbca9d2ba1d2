"""One start at the most and an end always, wherever a supervisor or a controller is killed or paused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import psutil
import pytest

from controller.backends.process import run_files
from controller.backends.process.orphans import kill_marked_processes
from controller.backends.process.run_status import request_bytes
from controller.backends.process.runs import MODULES, RunDirectory
from controller.errors import RunNotFoundError
from controller.protocol.model import Key, Launch, ObservedRun, Phase, Reason

DEADLINE = 20.0
BACKENDS = str(Path(run_files.__file__).parents[1])

# A supervisor that sends itself a signal before the nth line that it executes, and writes to stdout if it got there.
STOPPING = f"""
import os, sys
sys.path.append({MODULES!r})
from controller.backends.process import supervisor
number, left, own = int(sys.argv[1]), int(sys.argv[2]), os.getpid()
def trace(frame, event, argument):
    global left
    if not frame.f_code.co_filename.startswith({BACKENDS!r}):
        return None
    if event == "line" and os.getpid() == own:
        left -= 1
        if left == 0:
            os.kill(own, number)
    return trace
sys.settrace(trace)
supervisor.main(*sys.argv[3:])
sys.settrace(None)
print(left if left > 0 else 0)
"""


@dataclass
class Host:
    """A work directory, and what its commands did."""

    path: Path
    runs: RunDirectory

    @classmethod
    def make(cls, path: Path) -> Host:
        runs = RunDirectory(path / "work", uuid4())
        runs.prepare()
        return cls(path, runs)

    def launch(self, command: str, *, key: Key | None = None) -> ObservedRun:
        launch = Launch(key or Key(uuid4(), 1), f"echo >> {self.path}/starts-$_SANDBOX_RUN; {command}", 30)
        return self.runs.create(launch.key, request_bytes(launch, uuid4().hex, 1000), look_first=False)

    def starts(self, run: ObservedRun) -> int:
        counted = self.path / f"starts-{run.run_uid}"
        return len(counted.read_text().splitlines()) if counted.exists() else 0

    def phase(self, run: ObservedRun) -> Phase:
        found = self.runs.look_at([run.key])
        return found[0].phase if found else Phase.GONE

    def ended(self, run: ObservedRun) -> ObservedRun:
        until(lambda: self.phase(run) is Phase.ENDED)
        return self.runs.look_at([run.key])[0]

    def bury(self, run: ObservedRun) -> None:
        until(lambda: buried(self.runs, run))
        assert self.phase(run) is Phase.GONE

    def stopping(self, run: ObservedRun, number: int, line: int) -> subprocess.Popen[bytes]:
        arguments = [str(number), str(line), str(self.runs.root / run.key.name), run.run_uid, str(self.runs.wake)]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", STOPPING, *arguments],
            stdout=subprocess.PIPE,
            env={run_files.MARKER: run.run_uid},
        )


def buried(runs: RunDirectory, run: ObservedRun) -> bool:
    try:
        return runs.move_to_trash(run.key, None) is not None
    except RunNotFoundError:
        return True


def until(true: Callable[[], bool]) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.003)


def marked(run: ObservedRun) -> list[int]:
    """The processes that belong to a run; a zombie has no environment."""
    mark, found = f"{run_files.MARKER}={run.run_uid}".encode(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
    return found


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host.make(tmp_path)
    yield made
    made.runs.tidy()
    assert not os.listdir(made.runs.trash)


@pytest.mark.parametrize("killed", [False, True], ids=["ending", "killed"])
def test_killed_before_any_line_it_never_starts_twice_and_always_ends(host: Host, killed: bool) -> None:
    def crash_before(line: int) -> bool:
        run = host.launch("sleep 30" if killed else "(setsid sleep 30 &); :")
        if killed:
            (host.runs.root / run.key.name / run_files.KILL).touch()
        with host.stopping(run, signal.SIGKILL, line) as supervisor:
            survived = supervisor.wait() == 0
        assert survived or supervisor.returncode == -signal.SIGKILL
        if host.phase(run) is Phase.INERT:
            assert host.starts(run) == 0
            host.runs.release(run.key, run.run_uid)
        outcome = host.ended(run).outcome
        assert outcome is not None
        assert outcome.reason in (Reason.COMPLETED, Reason.KILLED, Reason.LOST)
        assert outcome.reason is not Reason.LOST or not survived
        assert outcome.reason is not Reason.LOST or not marked(run)
        until(lambda: not marked(run))  # a supervisor that has told all ends a little later
        host.runs.release(run.key, run.run_uid)
        host.bury(run)
        assert host.starts(run) == 1 or killed or outcome.reason is Reason.LOST
        assert host.starts(run) <= 1
        return survived

    with ThreadPoolExecutor(2) as pool:
        line = 1
        while not any(pool.map(crash_before, range(line, line + 10))):
            line += 10
    assert line > 60, "the trace did not reach the supervisor's code"


# What others do while a supervisor is paused: release it again, remove it, or remove it and make another of its name.
@pytest.mark.parametrize("meanwhile", ["released", "removed", "replaced"])
def test_paused_before_any_line_it_starts_nothing_that_others_started_or_removed(host: Host, meanwhile: str) -> None:
    def pause_before(line: int) -> bool:
        run = host.launch("exit 3")
        replacement = None
        with host.stopping(run, signal.SIGSTOP, line) as supervisor:
            until(lambda: psutil.Process(supervisor.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
            taken = host.phase(run) is not Phase.INERT
            if taken:
                supervisor.send_signal(signal.SIGCONT)
                assert host.ended(run).outcome is not None
                return True
            if meanwhile == "released":
                host.runs.release(run.key, run.run_uid)
                until(lambda run=run: host.phase(run) is Phase.ENDED or len(marked(run)) == 1)  # type: ignore[misc]
            else:
                host.bury(run)
            if meanwhile == "replaced":
                replacement = host.launch("exit 3", key=run.key)
            supervisor.send_signal(signal.SIGCONT)
        if meanwhile == "released":
            assert host.ended(run).outcome is not None
        assert host.starts(run) == (1 if meanwhile == "released" else 0)
        if replacement is not None:
            assert host.phase(replacement) is Phase.INERT
            assert host.starts(replacement) == 0
        return False

    line = 1
    while not pause_before(line):
        line += 1
    assert line > 20, "the trace did not reach the taking of the run"


def forked(work: Callable[[], object], line: int) -> bool:
    """Does some work in a child that kills itself before the nth line of the adapter's; True if it got through."""
    pid = os.fork()
    if pid == 0:
        left = line

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(BACKENDS):
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


def test_a_controller_killed_before_any_line_of_create_leaves_a_whole_run_or_none(host: Host) -> None:
    key, line = Key(uuid4(), 1), 1
    while True:
        through = forked(lambda: host.launch("exit 3", key=key), line)
        assert [seen.phase for seen in host.runs.listing().runs] in ([], [Phase.INERT])
        run = host.launch("exit 3", key=key)
        assert run.phase is Phase.INERT
        host.bury(run)
        if through:
            break
        line += 1
    for name in os.listdir(host.runs.staging):
        os.utime(host.runs.staging / name, (0, 0))
    host.runs.tidy()
    assert not os.listdir(host.runs.staging)
    assert line > 20


def test_a_controller_killed_before_any_line_of_release_can_be_followed_by_another(host: Host) -> None:
    line = 1
    while True:
        run = host.launch("exit 3")
        through = forked(lambda run=run: host.runs.release(run.key, run.run_uid), line)  # type: ignore[misc]
        host.runs.release(run.key, run.run_uid)
        outcome = host.ended(run).outcome
        assert outcome is not None
        assert outcome.exit_code == 3
        assert host.starts(run) == 1
        if through:
            break
        line += 1
    assert line > 20


@pytest.mark.parametrize("phase", [Phase.INERT, Phase.RUNNING])
def test_a_controller_killed_before_any_line_of_delete_is_finished_by_another(host: Host, phase: Phase) -> None:
    def delete(run: ObservedRun) -> None:
        host.bury(run)

    line = 1
    while True:
        run = host.launch("sleep 30")
        if phase is Phase.RUNNING:
            host.runs.release(run.key, run.run_uid)
            until(lambda run=run: host.phase(run) is Phase.RUNNING)  # type: ignore[misc]
        through = forked(lambda run=run: delete(run), line)  # type: ignore[misc]
        if phase is Phase.INERT and host.phase(run) is not Phase.GONE:
            host.runs.release(run.key, run.run_uid)
        host.bury(run)
        until(lambda run=run: not marked(run))  # type: ignore[misc]  # a late supervisor finds nothing and ends
        if through:
            break
        line += 2 if phase is Phase.RUNNING else 1
    assert line > 30


def test_a_term_to_the_supervisor_kills_its_run_and_is_recorded(host: Host) -> None:
    run = host.launch("trap '' TERM HUP INT; sleep 30")
    host.runs.release(run.key, run.run_uid)
    until(lambda: host.phase(run) is Phase.RUNNING)
    os.kill(supervisor_of(run), signal.SIGTERM)
    outcome = host.ended(run).outcome
    assert outcome is not None
    assert outcome.reason is Reason.KILLED


def test_a_supervisor_that_does_not_answer_is_killed_with_its_run(host: Host) -> None:
    run = host.launch("sleep 30")
    host.runs.release(run.key, run.run_uid)
    until(lambda: host.phase(run) is Phase.RUNNING)
    os.kill(supervisor_of(run), signal.SIGSTOP)
    assert host.runs.move_to_trash(run.key, run.run_uid) is None
    host.runs.kill_all_processes(run.key, run.run_uid)
    host.bury(run)
    assert not marked(run)


def test_of_a_killed_supervisor_nothing_runs_on(host: Host) -> None:
    run = host.launch("trap '' TERM; setsid sleep 30 & sleep 30")
    host.runs.release(run.key, run.run_uid)
    until(lambda: len(marked(run)) == 4)
    os.kill(supervisor_of(run), signal.SIGKILL)
    outcome = host.ended(run).outcome
    assert outcome is not None
    assert outcome.reason is Reason.LOST
    assert not marked(run)


def test_daemons_of_an_ended_command_are_killed_whatever_they_hide(host: Host) -> None:
    pids = host.path / "pids"
    daemon = f"env -i setsid /bin/sh -c 'trap \"\" TERM HUP; echo $$ >> {pids}; while :; do sleep 30; done'"
    run = host.launch(f"for i in 1 2 3; do ({daemon} &) ; done; until [ $(wc -l < {pids}) = 3 ]; do :; done; exit 4")
    host.runs.release(run.key, run.run_uid)
    outcome = host.ended(run).outcome
    assert outcome is not None
    assert outcome.exit_code == 4
    assert not [pid for pid in pids.read_text().split() if psutil.pid_exists(int(pid))]


def test_orphans_that_end_while_the_command_runs_are_reaped(host: Host) -> None:
    run = host.launch("for i in 1 2 3 4 5 6 7 8 9; do (sleep 0 &); done; touch done; sleep 30")
    host.runs.release(run.key, run.run_uid)
    until((host.runs.root / run.key.name / run_files.WORK / "done").exists)
    supervisor = psutil.Process(supervisor_of(run))
    until(lambda: len(supervisor.children()) == 1)
    host.bury(run)


def supervisor_of(run: ObservedRun) -> int:
    """The pid of the process that supervises a run."""
    module = "controller.backends.process.supervisor"
    return next(pid for pid in marked(run) if module in " ".join(psutil.Process(pid).cmdline()))


def test_only_marked_processes_are_swept(host: Host) -> None:
    with subprocess.Popen(["sleep", "30"], env={run_files.MARKER: "another"}) as stranger:
        assert kill_marked_processes([uuid4().hex])
        assert stranger.poll() is None
        assert kill_marked_processes(["another"])
        assert stranger.wait() == -signal.SIGKILL
