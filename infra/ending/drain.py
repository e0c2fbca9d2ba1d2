"""How a stack's sandboxes are drained: the policy, the words of a refusal, and the reports of progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType
from typing import Self

import grpc
import pulumi

from infra.errors import EndRefusedError
from infra.waiting.container_verdict import event_words, last_words

REPORT = "drain: "  # how the lines of `python -m controller drain` begin that are for people
WAITING = f"{REPORT}waiting, "
DRAINED = f"{REPORT}nothing is left"


@dataclass(frozen=True)
class Patience:
    """How long the end of a stack waits for what, in seconds."""

    margin: float = 60.0  # beyond the drain's own limit: for its start, and for its last words
    start: float = 240.0  # for its pod to start: a node may have to pull the image
    stop: float = 90.0  # for controllers, and for pods that are terminating
    report: float = 10.0  # between two reports of the same wait


@dataclass(frozen=True)
class Ending:
    """`seconds`: how long a drain may take, 0 for no drain. `protect`: the database may not go, and so nothing may."""

    stack: str
    seconds: int
    protect: bool

    @property
    def announcement(self) -> str:
        """The line that begins a drain."""
        return f"cancels every sandbox, and waits up to {self.seconds} s for their end"

    def refused(self, why: str) -> EndRefusedError:
        """The error that says why the sandboxes could not be ended, and what to do."""
        command = f"pulumi config set --stack {self.stack} drainSeconds 0"
        return EndRefusedError(
            f"Nothing that sandboxes need was deleted, because they may still run: {why}. Fix that and repeat"
            f" `destroy`. To delete without ending them: {command}."
        )

    def forgotten(self) -> EndRefusedError:
        """The error that says that something is gone of which a drain is made, and what to do."""
        command = f"`pulumi up --refresh --run-program --stack {self.stack}`"
        return EndRefusedError(
            "The state lacks what a drain container is made of (an `up` was interrupted)."
            f" Run {command}, then `destroy`."
        )

    def moved(self, before: Mapping[str, str], now: Mapping[str, str]) -> EndRefusedError:
        """The error that says which keys were changed since the last `up`, so that they name another place."""
        words = [f"{key} was {was!r} at the last complete `up`, and is {now[key]!r} now" for key, was in before.items()]
        if "name" in before:
            back = "name the project and the stack as they were (pulumi stack rename)"
        else:
            back = " && ".join(f"pulumi config set --stack {self.stack} {key} {was!r}" for key, was in before.items())
            back = f"destroy with the former value: {back}, or `pulumi up --stack {self.stack}` first"
        return EndRefusedError(f"nothing was deleted: {'; '.join(words)}; {back}")


def runnable_here(line: str, inside: str) -> str:
    """A drain's line with its commands as they are typed here; `inside` runs one in a controller's container."""
    return line.replace("`python -m controller ", f"`{inside} python -m controller ")


def final_words(lines: Sequence[str]) -> str:
    """Why a drain left something, each reason once. A drain that was cut off said it only while it waited."""
    reports = [line for line in lines if line.startswith(REPORT)] or lines
    final = [line for line in reports if not line.startswith(WAITING)] or reports
    return " ".join(list(dict.fromkeys(final))[-3:])


class DrainProgress:
    """Reports, again and again, that a drain is still waited for while it reports nothing itself.

    A context manager: a thread of its own reports until the block ends. `what` drains; it may write nothing for
    `longest` seconds.
    """

    def __init__(
        self, what: str, longest: float, patience: Patience, tell: Callable[[str], None] = pulumi.log.info
    ) -> None:
        self._what, self._longest, self._seconds, self._tell = what, longest, patience.report, tell
        self._began, self._last = time.monotonic(), ""
        self._news, self._closed = Event(), False
        self._thread = Thread(target=copy_context().run, args=(self._run,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._news.set()
        self._thread.join()

    def heard(self, line: str) -> None:
        """Notes a line that the drain has written, if it is a report or an event: another may hold anything.

        A report of its own starts the time again.
        """
        if line.startswith(REPORT) or event_words(line) is not None:
            self._last = line
        if line.startswith(REPORT):
            self._news.set()

    def _run(self) -> None:
        while not self._closed:
            if self._news.wait(self._seconds):
                self._news.clear()
                continue
            wrote = f"it last wrote: {last_words([self._last])}" if self._last else "it has written nothing yet"
            waited = f"{time.monotonic() - self._began:.0f} s, silent for at most {self._longest:.0f} s"
            try:
                self._tell(f"waiting for {self._what} to end ({waited}): {wrote}")
            except grpc.RpcError:  # the engine was killed, and nobody reads this
                return
