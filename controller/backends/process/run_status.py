"""What the files of a run say, and what is asked in them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from controller.backends.process import run_files
from controller.errors import RequestRejectedError
from controller.protocol.model import (
    Key,
    Launch,
    ObservedRun,
    Outcome,
    Output,
    Phase,
    Reason,
    State,
    exit_outcome,
    timeout_outcome,
)

HEAD = 4096
NO_FILE = {  # what opening or reading tells where a command put something else
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EACCES, errno.ENXIO, errno.EAGAIN, errno.ESPIPE),
}
Found = TypeVar("Found")
SEGMENT = re.compile("[0-9]{1,18}")
UID = re.compile(rb"[0-9a-f]{32}")
NO_RECORD = "its supervisor died without a record (host restarted or killed)"
BAD_RECORD = "its supervisor's record cannot be read"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One look at a run's files."""

    observed: ObservedRun
    alive: bool = False  # its supervisor lives
    orphaned: bool = False  # over without a record: what is left of it must die before that is told


def request_bytes(launch: Launch, run_uid: str, output_bytes: int) -> bytes:
    """The request file; raises RequestRejectedError where no process could be started so.

    Its fields keep their places: a run that one version made may be started by another, older or newer. What is new
    comes under a name that no variable of a request can have.
    """
    fields = {run_files.FILE_BYTES: str(launch.disk_mib + 1 << 20), **launch.env}
    strings = [launch.command, *(f"{name}={value}" for name, value in fields.items())]
    if any("\0" in text for text in strings):
        raise RequestRejectedError(Reason.INVALID_REQUEST, "command and env cannot hold the character NUL")
    if any("=" in name or not name for name in launch.env):
        raise RequestRejectedError(Reason.INVALID_REQUEST, "a name in env cannot be empty or hold the character =")
    numbers = (launch.timeout_seconds, launch.memory_mib << 20, output_bytes)
    try:
        return "\0".join([run_uid, *map(str, numbers), *strings]).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise RequestRejectedError(
            Reason.INVALID_REQUEST, f"command or env is not Unicode text: {error.reason}"
        ) from error


def read_status(directory: int, key: Key) -> RunStatus | None:
    """What the run in that open directory is, or None where none is there."""
    for token, phase in ((run_files.INERT, Phase.INERT), (run_files.NEVER, Phase.NEVER_STARTED)):
        head = read(directory, token)
        if head is not None:
            run_uid = _request(head)[0]
            return RunStatus(ObservedRun(key, run_uid, phase)) if run_uid else None
    request, alive = _in_file(directory, run_files.STARTED, _head_and_lock) or (b"", False)
    run_uid, timeout = _request(request)
    if not run_uid:
        return None
    record = read(directory, run_files.EXIT)  # after the lock: it is written before the lock is let go
    ending = read(directory, run_files.KILL) == run_files.BY_CONTROLLER
    if record is not None:
        return RunStatus(replace(_recorded(key, run_uid, timeout, _fields(record)), ending=ending), alive)
    started_at = _in_file(directory, run_files.RUNNING, _changed)
    if alive:
        phase = Phase.RUNNING if started_at else Phase.STARTING
        return RunStatus(ObservedRun(key, run_uid, phase, started_at=started_at, ending=ending), alive)
    timed_out = read(directory, run_files.TIMEOUT) is not None
    outcome = timeout_outcome(timeout) if timed_out else Outcome(State.LOST, Reason.LOST, NO_RECORD)
    return RunStatus(ObservedRun(key, run_uid, Phase.ENDED, outcome, started_at=started_at), orphaned=True)


def read_output(directory: int, limit: int) -> Output:
    """The last `limit` bytes of what the command wrote."""
    suffixes = (
        name.removeprefix(run_files.OUTPUT) for name in os.listdir(directory) if name.startswith(run_files.OUTPUT)
    )
    numbers = sorted(int(suffix) for suffix in suffixes if SEGMENT.fullmatch(suffix))
    tail, cut = b"", bool(numbers) and numbers[-1] > 1
    for number in numbers[-2:]:
        segment, more = _in_file(directory, f"{run_files.OUTPUT}{number}", partial(_end_of, limit=limit)) or (b"", True)
        tail, cut = tail + segment, cut or more
    kept = tail[max(0, len(tail) - limit) :]
    total = _fields(read(directory, run_files.EXIT) or b"").get("output", "")
    lost = bool(SEGMENT.fullmatch(total)) and int(total) > len(kept)
    return Output(kept, cut or lost or len(tail) > len(kept))


def read(directory: int, name: str) -> bytes | None:
    """The beginning of a small file, or None where there is no such file."""
    return _in_file(directory, name, _head)


def _in_file(directory: int, name: str, action: Callable[[int], Found]) -> Found | None:
    """What `action` makes of a file of a run, whose command may have put anything in its place; None: no file."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=directory)
        try:
            return action(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in NO_FILE:
            return None
        raise


def _head(descriptor: int) -> bytes:
    return os.read(descriptor, HEAD)


def _head_and_lock(descriptor: int) -> tuple[bytes, bool]:
    """The beginning of a file, and whether somebody holds its lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _head(descriptor), True
    return _head(descriptor), False


def _changed(descriptor: int) -> datetime:
    return datetime.fromtimestamp(os.fstat(descriptor).st_mtime, UTC)


def _end_of(descriptor: int, limit: int) -> tuple[bytes, bool]:
    """The last `limit` bytes of a file, and whether it has more."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, limit, max(0, size - limit)), size > limit


def _request(head: bytes) -> tuple[str, int]:
    """The uid and the timeout in a request; no uid where it is not one."""
    run_uid, _, rest = head.partition(b"\0")
    timeout = rest.partition(b"\0")[0]
    return (run_uid.decode(), int(timeout)) if UID.fullmatch(run_uid) and timeout.isdigit() else ("", 0)


def _fields(record: bytes) -> dict[str, str]:
    lines = (line.partition(" ") for line in record.decode(errors="replace").splitlines())
    return {name: value for name, _, value in lines}


def _recorded(key: Key, run_uid: str, timeout: int, record: Mapping[str, str]) -> ObservedRun:
    if "never" in record:
        return ObservedRun(key, run_uid, Phase.NEVER_STARTED, waiting=record["never"])
    started_at, ended_at = (_time(record.get(name, "")) for name in ("started", "ended"))
    return ObservedRun(key, run_uid, Phase.ENDED, _outcome(record, timeout), started_at=started_at, ended_at=ended_at)


def _outcome(record: Mapping[str, str], timeout: int) -> Outcome:
    """How a run with that record ended; its own end counts where `kill` came late."""
    if "failed" in record:
        return Outcome(State.FAILED, Reason.START_FAILED, f"/bin/sh could not be started: {record['failed']}")
    if "timed_out" in record:
        return timeout_outcome(timeout)
    if "killed" in record and record.get("signal") == "9":
        return Outcome(State.FAILED, Reason.KILLED, "the command was killed from outside", 137)
    text = record.get("signal", record.get("exit", ""))
    if not (text.isascii() and text.isdigit() and len(text) <= 3):  # the command can write there too
        return Outcome(State.LOST, Reason.LOST, BAD_RECORD)
    code = int(text) + (128 if "signal" in record else 0)
    return exit_outcome(code) if code <= 255 else Outcome(State.LOST, Reason.LOST, BAD_RECORD)


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        return None
