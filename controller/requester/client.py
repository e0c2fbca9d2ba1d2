"""The requester's side of the queue: inserts a sandbox, follows it, reads its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from controller.db.faults import broken_rule
from controller.db.requests import Requests
from controller.errors import DatabaseUnavailableError, SandboxError, WriteRejectedError
from controller.protocol.model import State

POLL_SECONDS = 0.5  # between looks if no notification comes
AWAY_SECONDS = 60.0  # for which the database may be unavailable while a caller waits

Answer = TypeVar("Answer")


class RequestRefused(SandboxError):
    """The database refuses this request."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a sandbox: the columns of the statement `progress`."""

    id: UUID
    state: State
    attempt: int
    exit_code: int | None
    reason: str | None
    message: str | None
    waiting: str | None
    resting: bool
    seconds: float
    controllers: int | None


class Client:
    """A requester's connection to the queue; if it is lost, the client opens another."""

    def __init__(self, url: str) -> None:
        self._requests = Requests(url)

    def close(self) -> None:
        """Closes the connection."""
        self._requests.close()

    def submit(self, request: Mapping[str, Any]) -> UUID | None:
        """Inserts a sandbox with these columns; returns its id, or None if its idempotency_key or id is taken.

        Raises RequestRefused. With an `id` the insert is sent again if the connection is lost: that makes one row, and
        None may then mean the row of the first insert.
        """
        try:
            if "id" in request:
                return self._insistent(lambda: self._requests.insert(request))
            return self._requests.insert(request)
        except WriteRejectedError as error:
            rule = broken_rule(error)
            if rule is None:
                raise
            raise RequestRefused(rule) from error

    def cancel(self, sandbox_id: UUID) -> None:
        """Cancels that sandbox."""
        self._rows("cancel", id=sandbox_id)

    def progress(self, ids: Sequence[UUID]) -> list[Progress]:
        """The state of each of those sandboxes that is still in the table."""
        return [Progress(**row | {"state": State(row["state"])}) for row in self._rows("progress", ids=list(ids))]

    def follow(self, sandbox_id: UUID) -> Iterator[Progress]:
        """Yields the state now, every half second, and when the sandbox has ended, which is the last."""
        self._requests.listen()
        while found := self.progress([sandbox_id]):
            yield found[0]
            if found[0].state.terminal:
                return
            self._requests.wait(str(sandbox_id), POLL_SECONDS)
            self._requests.listen()
        raise SandboxError(f"sandbox {sandbox_id} is no longer in the table")

    def output(self, sandbox_id: UUID) -> tuple[str, bool]:
        """The output of the last attempt, and whether its beginning is missing."""
        row = self._rows("output", id=sandbox_id)[0]
        return row["output"] or "", row["output_truncated"]

    def facts(self, sandbox_id: UUID) -> tuple[list[dict[str, Any]], ...]:
        """The sandbox's row, if there is one, its timeline and its ended attempts."""
        return tuple(self._rows(name, id=sandbox_id) for name in ("sandbox", "events", "attempts"))

    def _rows(self, name: str, **params: Any) -> list[dict[str, Any]]:
        return self._insistent(lambda: self._requests.rows(name, **params))

    def _insistent(self, ask: Callable[[], Answer]) -> Answer:
        give_up = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return ask()
            except DatabaseUnavailableError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(POLL_SECONDS)
