"""What the wrapper and its keeper write down of a command, and the outcome that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from controller.protocol.model import Outcome, Reason, State, exit_outcome, timeout_outcome

EXIT_NO_STATE_FILE = 125  # of a wrapper that exited before the command: no state file permitted a start
KILLED_EXIT_CODES = (137, 255)  # of a wrapper that was killed, or whose host went down


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the wrapper wrote. The command can write there too, but falsifies only its own outcome by that."""

    started: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None
    timed_out: bool = False
    exit_code: int | None = None
    oom: bool = False
    written_mib: int | None = None  # size of its files, if they exceeded disk_mib
    again: bool = False  # the container was started again: the engine reports on that start

    @classmethod
    def parse(cls, text: str) -> Evidence:
        """Parses the state file. The first line with each word counts, and other lines are ignored."""
        words: dict[str, int | None] = {}
        for line in text.split("\n"):
            word, _, number = line.partition(" ")
            if STATE_FILE_WORDS.get(word) is bool(number) and (not number or is_number(number)):
                words.setdefault(word, int(number) if number else None)
        order = list(words)
        ended = order.index("exit") if "exit" in words else len(order)
        code = words.get("exit")
        return cls(
            started=bool(words),  # PID 1 writes none before; the first may have been wiped by the command
            started_at=_moment(words.get("started_at")),
            ended_at=_moment(words.get("ended_at")),
            timed_out="timeout" in order[:ended],
            exit_code=code if code is None or code <= 255 else None,
            oom="oom" in words,
            written_mib=words.get("disk") if "disk" in order[:ended] else None,
            again="again" in words,
        )

    def outcome(self, *, timeout_seconds: int, memory_mib: int, disk_mib: int = 0, oom: bool = False) -> Outcome | None:
        """The command's outcome, or None if its end was not written. `oom`: the engine reported a kill for memory."""
        oom, limit = oom or self.oom, f"it went over memory_mib = {memory_mib}"
        if self.timed_out:
            return timeout_outcome(timeout_seconds)
        if self.written_mib is not None:
            written = f"it was killed: its files held {self.written_mib} MiB, over disk_mib = {disk_mib}"
            return Outcome(State.FAILED, Reason.EVICTED, written, 137)
        if oom and self.exit_code in (None, 137):
            return Outcome(State.FAILED, Reason.OOM_KILLED, f"it was killed: {limit}", 137)
        if self.exit_code is None:
            return None
        outcome = exit_outcome(self.exit_code)
        if not oom:
            return outcome
        message = f"the command ended by itself after a process of it was killed: {limit}"
        return replace(outcome, message=f"{outcome.message}; {message}" if outcome.message else message)


STATE_FILE_WORDS = {  # each line's first word, and whether a number follows it
    "started": False,
    "started_at": True,
    "timeout": False,
    "exit": True,
    "oom": False,
    "disk": True,
    "ended_at": True,
    "again": False,
}


def killed_outcome(code: int | None) -> Outcome:
    """The outcome of a command that was ended from outside; `code`: its exit code, if the engine knows it."""
    return Outcome(State.FAILED, Reason.KILLED, "it was killed from outside the command", code)


def outcome_without_evidence(code: int, why: str | None = None) -> Outcome:
    """The outcome of a run that exited with `code` and an empty state file.

    No reason that leads to a replacement: the command may have run, and emptied the file.
    """
    if code in KILLED_EXIT_CODES:
        return Outcome(State.FAILED, Reason.KILLED, "it was killed from outside the command, or before it", 137)
    if code == EXIT_NO_STATE_FILE:
        return Outcome(State.FAILED, Reason.START_FAILED, "its state file could not be written, or was wiped")
    why = why or f"it exited with {code} before the command; its output may say why"
    return Outcome(State.FAILED, Reason.START_FAILED, f"the image's /bin/sh does not run: {why}")


def is_number(text: str) -> bool:
    """Whether it is a decimal number short enough to be safe, whoever wrote it."""
    return text.isascii() and text.isdigit() and len(text) <= 11


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
