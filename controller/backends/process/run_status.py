"""Reads the state and output of a run from its files, and writes its request file."""

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
NO_FILE = {  # errors if the file is missing, or the command replaced it by something else
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EACCES, errno.ENXIO, errno.EAGAIN, errno.ESPIPE),
}
Found = TypeVar("Found")
SEGMENT = re.compile("[0-9]{1,18}")
UID = re.compile(rb"[0-9a-f]{32}")
NO_RECORD = "its supervisor died without a record: it was killed, or the host restarted"
BAD_RECORD = "its supervisor's record cannot be read"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run, from its files."""

    observed: ObservedRun
    alive: bool = False  # its supervisor is alive
    orphaned: bool = False  # its supervisor died without a record; its processes must end before that is reported


def request_bytes(launch: Launch, run_uid: str, output_bytes: int) -> bytes:
    """The content of the request file. Raises RequestRejectedError if no process can be started with it.

    The fields keep their positions: a run that one version created may be started by an older or a newer one. A new
    field gets a name that no variable of a request can have.
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
    """The state of the run in that open directory, or None if there is no run in it."""
    for token, phase in ((run_files.INERT, Phase.INERT), (run_files.NEVER, Phase.NEVER_STARTED)):
        head = read(directory, token)
        if head is not None:
            run_uid = _request(head)[0]
            return RunStatus(ObservedRun(key, run_uid, phase)) if run_uid else None
    request, alive = _in_file(directory, run_files.STARTED, _head_and_lock) or (b"", False)
    run_uid, timeout = _request(request)
    if not run_uid:
        return None
    record = read(directory, run_files.EXIT)  # read after the lock: it is written before the lock is released
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
    """The last `limit` bytes of the command's output."""
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
    """The beginning of a file, or None if it does not exist."""
    return _in_file(directory, name, _head)


def _in_file(directory: int, name: str, action: Callable[[int], Found]) -> Found | None:
    """The result of `action` for a file of a run; None if it is missing, or its command replaced it."""
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
    """The beginning of a file, and whether a process holds its lock."""
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
    """The run uid and the timeout in a request file; an empty uid if it is not a request file."""
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
    """The outcome in a record; a command that ended by itself before the kill keeps its own."""
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
