"""The protocol's types: states, reasons, rows, requests, and what an engine reports of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

KILL_MARGIN = 35.0  # seconds past its timeout by which a run's own timer must have ended it: TERM, 5 s, KILL, 30 s


class State(StrEnum):
    """The state of a sandbox. The last five are terminal, and are written once."""

    QUEUED = "queued"
    LAUNCHING = "launching"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        return self not in (State.QUEUED, State.LAUNCHING, State.RUNNING)


class Reason(StrEnum):
    """Why a sandbox ended as it did: the closed list of `sandboxes.reason`."""

    COMPLETED = "Completed"  # exit code 0
    NON_ZERO_EXIT = "NonZeroExit"  # the command's own exit code
    DEADLINE_EXCEEDED = "DeadlineExceeded"  # ran longer than timeout_seconds
    OOM_KILLED = "OOMKilled"  # went over memory_mib
    KILLED = "Killed"  # ended by a signal from outside the command
    EVICTED = "Evicted"  # evicted by its node, or for files over disk_mib
    CANCELLED = "Cancelled"  # its requester asked for it
    DELETED = "Deleted"  # its object was deleted by somebody else
    NODE_LOST = "NodeLost"  # its node went away
    LOST = "Lost"  # its engine has no trace of the run
    INVALID_REQUEST = "InvalidRequest"  # the engine rejected it; `message` has the engine's words
    NAME_CONFLICT = "NameConflict"  # an object of somebody else has its name
    IMAGE_PULL_FAILED = "ImagePullFailed"  # no such image, or no right to it
    START_FAILED = "StartFailed"  # the engine could not start the command's shell
    START_TIMEOUT = "StartTimeout"  # not started within the start deadline
    NOT_STARTED = "NotStarted"  # its object was lost before release; replaced under a new attempt
    UNSCHEDULABLE = "Unschedulable"  # no node had room within the start deadline


class Phase(StrEnum):
    """The phase of one run, as its engine reports it.

    NEVER_STARTED leads to another attempt: if it is reported without proof, a command may start twice. If the engine
    cannot tell whether the command started, the run is ENDED (it is still there) or GONE (it was removed).
    """

    INERT = "inert"  # created, not released: its command has not started
    STARTING = "starting"  # released, its command not yet observed running
    RUNNING = "running"
    ENDED = "ended"  # over, and its command started or may have: `outcome` says how it ended
    NEVER_STARTED = "never"  # over or removed, and its command provably never started and never will
    GONE = "gone"  # removed; whether it started, and how it ended, is not known


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One attempt of one sandbox. It names the attempt's object on every engine."""

    sandbox_id: UUID
    attempt: int

    @property
    def name(self) -> str:
        """`sandbox-<id>` for attempt 1, `sandbox-<id>-<attempt>` after."""
        suffix = "" if self.attempt == 1 else f"-{self.attempt}"
        return f"sandbox-{self.sandbox_id}{suffix}"

    @classmethod
    def of_name(cls, name: str) -> Key | None:
        """Return the key whose name this is, or None for any other name."""
        head, identity, suffix = name[:8], name[8:44], name[44:]
        try:
            key = cls(UUID(identity), int(suffix[1:]) if suffix else 1)
        except ValueError:
            return None
        return key if head == "sandbox-" and key.name == name else None


@dataclass(frozen=True, slots=True)
class Launch:
    """What an attempt requests of its engine."""

    key: Key
    command: str  # for `/bin/sh -c`
    timeout_seconds: int
    image: str | None = None  # None: the engine's default
    env: Mapping[str, str] = field(default_factory=dict)
    cpu_millis: int = 1000  # limit; 1000 is one core
    memory_mib: int = 1024  # limit
    disk_mib: int = 1024  # limit of work directory and temporary files together
    network: str = "none"  # or "egress"
    tenant: str = "default"  # who requested it


@dataclass(frozen=True, slots=True)
class Row:
    """A sandbox's row, as last read or written."""

    id: UUID
    attempt: int
    epoch: int
    state: State
    run_uid: str | None  # the one run that this attempt may start
    claimed_by: str | None
    cancelled: bool  # its requester asked for a cancel
    max_attempts: int
    failed_attempts: int  # attempts that counted against max_attempts
    timeout_seconds: int
    claimed_age: float | None  # seconds from its first claim until it was read
    started_age: float | None  # seconds from its start until it was read
    orphaned: bool = False  # its controller has no connection to the database
    leased: bool = False  # the lease of its claim has not expired

    @property
    def key(self) -> Key:
        return Key(self.id, self.attempt)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sandbox, or an attempt of it, ended."""

    state: State
    reason: Reason
    message: str | None = None
    exit_code: int | None = None  # None: unknown, or a timeout


@dataclass(frozen=True, slots=True)
class Output:
    """The end of what the command wrote, stdout and stderr as they came."""

    tail: bytes
    truncated: bool  # something before the tail is missing


@dataclass(frozen=True, slots=True)
class ObservedRun:
    """What an engine reports of one run at one moment.

    `waiting`, `timeout_reason` and `permanent` describe a run that was released and does not run yet. `permanent`: it
    will not recover, so a STARTING run is killed at once, and the row of it or of a NEVER_STARTED run fails with
    `timeout_reason` (without one: StartFailed) and gets no other attempt.

    `ending`: a controller asked for its end. It tells the next controller that a run that ended as Killed was not ended
    by a stranger. An engine that cannot keep it (Docker) never sets it.
    """

    key: Key
    run_uid: str  # the engine's own id of the run: no other run ever has it
    phase: Phase
    outcome: Outcome | None = None  # set if and only if the phase is ENDED
    waiting: str | None = None  # why it does not run yet, in a sentence: the row shows it
    timeout_reason: Reason | None = None  # the row's reason if it has not started by the start deadline
    permanent: bool = False
    ending: bool = False
    started_at: datetime | None = None  # of the command, by the engine's own clock; None: not known, or not started
    ended_at: datetime | None = None
    node: str | None = None
    image_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Every run of this installation that the engine has, from one whole successful list.

    `begun`: monotonic seconds when it was requested. What was created later may be missing, however late it is read.

    `pending`: the attempts whose object exists and has no run yet, with the reason in a sentence if it is known. An
    attempt that is neither here nor in `runs` is missing: after a grace its object is created again, or its row ends
    `lost`.

    `recorded`: runs that ended and were cleaned, and that the engine removes by itself later. They are not in `runs`
    and are no strays. They count only for a row that has not ended, because its database was restored to an earlier
    state.
    """

    runs: tuple[ObservedRun, ...]
    begun: float
    pending: Mapping[Key, str | None] = field(default_factory=dict)
    recorded: tuple[ObservedRun, ...] = ()


def exit_outcome(code: int) -> Outcome:
    """Return the outcome of a command that ended by itself with `code` (128 + n if signal n ended it)."""
    if code == 0:
        return Outcome(State.SUCCEEDED, Reason.COMPLETED, exit_code=0)
    signal = f" (signal {code - 128})" if 128 < code <= 192 else ""
    return Outcome(State.FAILED, Reason.NON_ZERO_EXIT, f"the command exited with {code}{signal}", code)


def timeout_outcome(timeout_seconds: int) -> Outcome:
    """Return the outcome of a command that its timeout ended."""
    message = f"the command ran longer than timeout_seconds = {timeout_seconds}"
    return Outcome(State.TIMED_OUT, Reason.DEADLINE_EXCEEDED, message)
