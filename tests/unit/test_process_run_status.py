"""What the files of a process run say."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.backends.process import run_files
from controller.backends.process.run_status import RunStatus, read_output, read_status, request_bytes
from controller.errors import RequestRejectedError
from controller.protocol.model import Key, Launch, Output, Phase, Reason, State

KEY = Key(uuid4(), 1)
UID = "0123456789abcdef" * 2
REQUEST = request_bytes(Launch(KEY, "true", 7), UID, 100)


class Directory:
    """A run's directory, as a supervisor might have left it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)

    def put(self, **contents: bytes | str) -> None:
        for name, content in contents.items():
            (self.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def look(self) -> RunStatus | None:
        return read_status(self.descriptor, KEY)

    def ended(self, record: str) -> RunStatus:
        self.put(started=REQUEST, exit=record)
        found = self.look()
        assert found is not None
        return found


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    made = Directory(tmp_path)
    yield made
    os.close(made.descriptor)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT, st.dictionaries(TEXT.filter(lambda name: name and "=" not in name), TEXT))
def test_a_request_holds_command_and_env_byte_for_byte(command: str, env: dict[str, str]) -> None:
    fields = request_bytes(Launch(KEY, command, 7, env=env, memory_mib=3, disk_mib=1), UID, 100).split(b"\0")
    assert fields[:4] == [UID.encode(), b"7", str(3 << 20).encode(), b"100"]
    assert fields[4].decode() == command
    limit = {".file_bytes": str(2 << 20)}
    assert dict(field.decode().split("=", 1) for field in fields[5:]) == limit | env


@pytest.mark.parametrize(
    ("command", "env"),
    [("a\0b", {}), ("a", {"X": "\0"}), ("a", {"X=Y": "1"}), ("a", {"": "1"}), ("\ud800", {})],
)
def test_what_no_process_can_be_given_is_refused(command: str, env: dict[str, str]) -> None:
    with pytest.raises(RequestRejectedError) as refused:
        request_bytes(Launch(KEY, command, 7, env=env), UID, 100)
    assert refused.value.outcome.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize(("token", "phase"), [(run_files.INERT, Phase.INERT), (run_files.NEVER, Phase.NEVER_STARTED)])
def test_the_requests_name_tells_what_has_not_started(directory: Directory, token: str, phase: Phase) -> None:
    directory.put(**{token: REQUEST})
    found = directory.look()
    assert found is not None
    assert (found.observed.run_uid, found.observed.phase, found.alive, found.orphaned) == (UID, phase, False, False)


def test_a_held_lock_is_a_live_supervisor(directory: Directory) -> None:
    directory.put(started=REQUEST)
    holder = os.open(directory.path / run_files.STARTED, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    starting = directory.look()
    directory.put(running="")
    os.utime(directory.path / run_files.RUNNING, (1700000000.25, 1700000000.25))
    running = directory.look()
    os.close(holder)
    assert starting is not None
    assert (starting.observed.phase, starting.alive) == (Phase.STARTING, True)
    assert running is not None
    assert (running.observed.phase, running.alive) == (Phase.RUNNING, True)
    assert running.observed.started_at == datetime(2023, 11, 14, 22, 13, 20, 250000, UTC)


def test_a_dead_supervisor_without_a_record_is_a_loss_to_be_swept(directory: Directory) -> None:
    directory.put(started=REQUEST, running="")
    found = directory.look()
    assert found is not None
    assert found.orphaned
    assert found.observed.outcome is not None
    assert (found.observed.outcome.state, found.observed.outcome.reason) == (State.LOST, Reason.LOST)


def test_a_timeouts_evidence_outlives_its_supervisor(directory: Directory) -> None:
    directory.put(started=REQUEST, timeout="")
    found = directory.look()
    assert found is not None
    assert found.orphaned
    assert found.observed.outcome is not None
    assert found.observed.outcome.state is State.TIMED_OUT


@pytest.mark.parametrize(
    ("record", "state", "reason", "code"),
    [
        ("exit 0", State.SUCCEEDED, Reason.COMPLETED, 0),
        ("exit 3", State.FAILED, Reason.NON_ZERO_EXIT, 3),
        ("signal 15", State.FAILED, Reason.NON_ZERO_EXIT, 143),
        ("killed\nsignal 9", State.FAILED, Reason.KILLED, 137),
        ("killed\nexit 0", State.SUCCEEDED, Reason.COMPLETED, 0),
        ("timed_out\nsignal 15", State.TIMED_OUT, Reason.DEADLINE_EXCEEDED, None),
        ("timed_out\nexit 0", State.TIMED_OUT, Reason.DEADLINE_EXCEEDED, None),
        ("failed [Errno 7] Argument list too long", State.FAILED, Reason.START_FAILED, None),
        ("", State.LOST, Reason.LOST, None),
        ("exit x", State.LOST, Reason.LOST, None),
    ],
)
def test_a_record_tells_how_the_run_ended(
    directory: Directory, record: str, state: State, reason: Reason, code: int | None
) -> None:
    outcome = directory.ended(record).observed.outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason, outcome.exit_code) == (state, reason, code)


def test_a_record_has_the_times_of_the_run(directory: Directory) -> None:
    seen = directory.ended("exit 0\nstarted 1700000000.000250\nended 1700000001.500000\n").observed
    assert seen.started_at == datetime(2023, 11, 14, 22, 13, 20, 250, UTC)
    assert seen.ended_at == datetime(2023, 11, 14, 22, 13, 21, 500000, UTC)


def test_a_record_that_nothing_was_started_is_no_end(directory: Directory) -> None:
    seen = directory.ended("never [Errno 11] Resource temporarily unavailable").observed
    assert (seen.phase, seen.outcome) == (Phase.NEVER_STARTED, None)
    assert "temporarily" in (seen.waiting or "")


@given(
    st.sampled_from([run_files.INERT, run_files.STARTED, run_files.NEVER, run_files.EXIT, run_files.RUNNING]),
    st.binary(max_size=300),
)
def test_garbage_in_any_file_breaks_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    directory = Directory(tmp_path_factory.mktemp("run"))
    directory.put(**{run_files.STARTED: REQUEST, name: content})
    directory.look()
    read_output(directory.descriptor, 10)
    os.close(directory.descriptor)


@pytest.mark.parametrize("name", [run_files.INERT, run_files.STARTED, run_files.EXIT, run_files.OUTPUT + "0"])
@pytest.mark.parametrize("kind", ["fifo", "loop", "directory", "dangling"])
def test_anything_in_a_files_place_breaks_nothing(directory: Directory, name: str, kind: str) -> None:
    path = directory.path / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else "/nowhere/at/all")
    if name != run_files.STARTED:
        directory.put(started=REQUEST)
    directory.look()
    assert read_output(directory.descriptor, 10).tail == b""


def test_output_is_put_together_from_the_last_two_segments(directory: Directory) -> None:
    (directory.path / "output.9").write_bytes(b"abcdef")
    (directory.path / "output.10").write_bytes(b"ghi")
    assert read_output(directory.descriptor, 5) == Output(b"efghi", True)
    assert read_output(directory.descriptor, 50) == Output(b"abcdefghi", True)
    assert read_output(directory.descriptor, 0) == Output(b"", True)


def test_output_is_whole_where_nothing_is_missing(directory: Directory) -> None:
    (directory.path / "output.0").write_bytes(b"abc")
    assert read_output(directory.descriptor, 3) == Output(b"abc", False)
    assert read_output(directory.descriptor, 2) == Output(b"bc", True)
    directory.put(exit="exit 0\noutput 5\n")  # a full disk lost some
    assert read_output(directory.descriptor, 3) == Output(b"abc", True)
