"""The requester's side of the queue: asks for a sandbox, follows it, reads what became of it."""

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

POLL_SECONDS = 0.5  # between looks where no notification comes
AWAY_SECONDS = 60.0  # that the database may be gone for while somebody waits

Answer = TypeVar("Answer")


class RequestRefused(SandboxError):
    """The database refuses this request."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a sandbox stands; the columns of the statement `progress`."""

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
    """A requester's connection to the queue; where it is lost, another is made."""

    def __init__(self, url: str) -> None:
        self._requests = Requests(url)

    def close(self) -> None:
        """Lets go of the database."""
        self._requests.close()

    def submit(self, request: Mapping[str, Any]) -> UUID | None:
        """Asks for a sandbox by these columns; None where its idempotency_key or id is taken. Raises RequestRefused.

        With an `id` it is asked for again where the connection is lost: that makes one row, and None may be its own.
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
        """Asks for its end."""
        self._rows("cancel", id=sandbox_id)

    def progress(self, ids: Sequence[UUID]) -> list[Progress]:
        """How those stand that are still in the table."""
        return [Progress(**row | {"state": State(row["state"])}) for row in self._rows("progress", ids=list(ids))]

    def follow(self, sandbox_id: UUID) -> Iterator[Progress]:
        """How it stands: now, every half second, and when it has ended, which is the last."""
        self._requests.listen()
        while found := self.progress([sandbox_id]):
            yield found[0]
            if found[0].state.terminal:
                return
            self._requests.wait(str(sandbox_id), POLL_SECONDS)
            self._requests.listen()
        raise SandboxError(f"sandbox {sandbox_id} is no longer in the table")

    def output(self, sandbox_id: UUID) -> tuple[str, bool]:
        """What its last attempt wrote, and whether the beginning of that is missing."""
        row = self._rows("output", id=sandbox_id)[0]
        return row["output"] or "", row["output_truncated"]

    def facts(self, sandbox_id: UUID) -> tuple[list[dict[str, Any]], ...]:
        """Its row, if there is one, its timeline and its attempts that are over."""
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
