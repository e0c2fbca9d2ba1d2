"""The requester's side of the queue: asks for a sandbox, follows it, reads what became of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier, Placeholder
from psycopg.types.json import Jsonb

from controller.db import sql
from controller.db.faults import in_words, line
from controller.db.pool import connect
from controller.errors import DatabaseUnavailable, SandboxError, SchemaError, WriteRefused
from controller.protocol.model import State

POLL_SECONDS = 0.5  # between looks where no notification comes
AWAY_SECONDS = 60.0  # that the database may be gone for while somebody waits
NAME = "sandbox-client"


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
        self._url, self._sql = url, sql.statements("client.sql")
        self._connection = connect(url, NAME)
        self._listening: psycopg.Connection[DictRow] | None = None  # the connection that notifications come on

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()

    def submit(self, request: Mapping[str, Any]) -> UUID | None:
        """Asks for a sandbox by these columns; None where its idempotency_key or id is taken. Raises RequestRefused.

        With an `id` it is asked for again where the connection is lost: that makes one row, and None may be its own.
        """
        columns, values = SQL(", ").join(map(Identifier, request)), SQL(", ").join(map(Placeholder, request))
        params = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in request.items()}
        statement = SQL(self._sql["submit"]).format(columns=columns, values=values)
        try:
            found = self._insistent(statement, params) if "id" in request else self._once(statement, params)
        except WriteRefused as error:
            match error.__cause__:
                case UnicodeError():
                    raise RequestRefused("it has text that is not UTF-8") from error
                case psycopg.IntegrityError() | psycopg.DataError() as cause:
                    raise RequestRefused(cause.diag.constraint_name or line(cause)) from error
            raise
        return found[0]["id"] if found else None

    def cancel(self, sandbox_id: UUID) -> None:
        """Asks for its end."""
        self._rows("cancel", id=sandbox_id)

    def progress(self, ids: Sequence[UUID]) -> list[Progress]:
        """How those stand that are still in the table."""
        return [Progress(**row | {"state": State(row["state"])}) for row in self._rows("progress", ids=list(ids))]

    def follow(self, sandbox_id: UUID) -> Iterator[Progress]:
        """How it stands: now, every half second, and when it has ended, which is the last."""
        self._listen()
        while found := self.progress([sandbox_id]):
            yield found[0]
            if found[0].state.terminal:
                return
            try:
                for notification in self._connection.notifies(timeout=POLL_SECONDS):
                    if notification.payload == str(sandbox_id):
                        break
            except psycopg.OperationalError:
                pass  # the next look connects again
            self._listen()
        raise SandboxError(f"sandbox {sandbox_id} is no longer in the table")

    def output(self, sandbox_id: UUID) -> tuple[str, bool]:
        """What its last attempt wrote, and whether the beginning of that is missing."""
        row = self._rows("output", id=sandbox_id)[0]
        return row["output"] or "", row["output_truncated"]

    def facts(self, sandbox_id: UUID) -> tuple[list[DictRow], ...]:
        """Its row, if there is one, its timeline and its attempts that are over."""
        return tuple(self._rows(name, id=sandbox_id) for name in ("sandbox", "events", "attempts"))

    def _rows(self, name: str, **params: Any) -> list[DictRow]:
        return self._insistent(SQL(self._sql[name]), params)

    def _insistent(self, statement: SQL | Composed, params: Mapping[str, Any]) -> list[DictRow]:
        give_up = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return self._once(statement, params)
            except DatabaseUnavailable:
                if time.monotonic() > give_up:
                    raise
            time.sleep(POLL_SECONDS)

    def _listen(self) -> None:
        if self._listening is not self._connection or self._connection.closed:
            with suppress(DatabaseUnavailable):  # without notifications, as of a standby, the looks suffice
                self._once(SQL(self._sql["listen"]), {})
                self._listening = self._connection

    def _once(self, statement: SQL | Composed, params: Mapping[str, Any]) -> list[DictRow]:
        if self._connection.closed:
            self._connection = connect(self._url, NAME)
        try:
            with in_words("the queue cannot be used"):
                cursor = self._connection.execute(statement, params)
                return cursor.fetchall() if cursor.description else []
        except DatabaseUnavailable:
            self._connection.close()  # another one may be writable again
            raise
        except WriteRefused as error:
            if isinstance(error.__cause__, psycopg.ProgrammingError):
                hint = "run `python -m controller migrate` as its owner, or use a login that may use the queue"
                raise SchemaError(f"{error}; {hint}") from error
            raise
