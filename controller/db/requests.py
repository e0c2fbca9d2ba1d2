"""What a requester asks of the queue: the statements of client.sql, on one connection; a lost one is made anew."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier, Placeholder
from psycopg.types.json import Jsonb

from controller.db import sql
from controller.db.faults import in_words
from controller.db.pool import connect
from controller.errors import DatabaseUnavailableError, SchemaError, WriteRejectedError

NAME = "sandbox-client"


class Requests:
    """Each call sends one statement; it raises DatabaseUnavailableError, SchemaError or WriteRejectedError."""

    def __init__(self, url: str) -> None:
        self._url, self._sql = url, sql.statements("client.sql")
        self._connection = connect(url, NAME)
        self._listening: psycopg.Connection[DictRow] | None = None  # the connection that notifications come on

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()

    def insert(self, request: Mapping[str, Any]) -> UUID | None:
        """Adds a sandbox with these columns; None where its idempotency_key or id is taken."""
        columns, values = SQL(", ").join(map(Identifier, request)), SQL(", ").join(map(Placeholder, request))
        params = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in request.items()}
        found = self._ask(SQL(self._sql["submit"]).format(columns=columns, values=values), params)
        return found[0]["id"] if found else None

    def rows(self, name: str, **params: Any) -> list[DictRow]:
        """What the statement of that name answers."""
        return self._ask(SQL(self._sql[name]), params)

    def listen(self) -> None:
        """Asks for the notifications of ends, where this connection has not yet."""
        if self._listening is not self._connection or self._connection.closed:
            with suppress(DatabaseUnavailableError):  # without notifications, as of a standby, the looks suffice
                self._ask(SQL(self._sql["listen"]), {})
                self._listening = self._connection

    def wait(self, payload: str, seconds: float) -> None:
        """Waits for the notification that says this, or for so long."""
        with suppress(psycopg.OperationalError):  # the next look connects again
            for notification in self._connection.notifies(timeout=seconds):
                if notification.payload == payload:
                    break

    def _ask(self, statement: SQL | Composed, params: Mapping[str, Any]) -> list[DictRow]:
        if self._connection.closed:
            self._connection = connect(self._url, NAME)
        try:
            with in_words("the sandbox tables cannot be used"):
                cursor = self._connection.execute(statement, params)
                return cursor.fetchall() if cursor.description else []
        except DatabaseUnavailableError:
            self._connection.close()  # another one may be writable again
            raise
        except WriteRejectedError as error:
            if isinstance(error.__cause__, psycopg.ProgrammingError):
                hint = "run `python -m controller migrate` as its owner, or use a login that may use the queue"
                raise SchemaError(f"{error}; {hint}") from error
            raise
