"""What an error of the database means: wait and try again, or something has to change first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from controller.errors import DatabaseReadOnlyError, DatabaseUnavailableError, SandboxError, WriteRejectedError

READ_ONLY = "25006"
# Classes of SQLSTATE. These pass by themselves: serialization and deadlock, no memory, disk or connection left, the
# server's own disk; no connection, a read-only transaction or server, a full queue of notifications (54: no value
# of ours is beyond a limit of the server's), locks, timeouts and shutdowns.
STRAINED, PASSING, DATA = {"40", "53", "58"}, {"08", "25", "54", "55", "57"}, {"22"}
TIMED_OUT = "57014"
# What the session itself may be at fault of, where another one will do: it keeps the read-only default that it was
# opened with when the database is writable again; its prepared statements and cached plans may be of another schema.
STALE = {READ_ONLY, "0A000", "26000", "42804", "42P05", "XX000"}


class Locked(DatabaseUnavailableError):
    """Another transaction holds rows that this write needs."""


class Strained(DatabaseUnavailableError):
    """The database has no room or time for this statement now; a smaller one, or one without some row, may pass."""


@contextmanager
def in_words(doing: str) -> Iterator[None]:
    """Turns what the driver raises into errors of our own; `doing` says what cannot be done."""
    try:
        yield
    except (psycopg.Error, UnicodeError, OverflowError) as error:
        raise meaning(error, doing) from error


def meaning(error: psycopg.Error | UnicodeError | OverflowError, doing: str) -> SandboxError:
    """Returns a DatabaseUnavailableError if it passes by itself, else a WriteRejectedError."""
    if not isinstance(error, psycopg.Error):
        return WriteRejectedError(f"{doing}: a value that the database cannot hold: {error}", data=True)
    state = error.sqlstate
    ours = isinstance(error, psycopg.DataError | psycopg.ProgrammingError | psycopg.NotSupportedError)
    if state is None and not ours:
        return DatabaseUnavailableError(f"{doing}: the database does not answer: {line(error)}")
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return Locked(f"{doing}: {line(error)}")
    if state == READ_ONLY:
        return DatabaseReadOnlyError(f"{doing}: the database is read-only: {line(error)}")
    kind = re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__).lower()
    if state is not None and (state[:2] in STRAINED or state == TIMED_OUT):
        return Strained(f"{doing}: {line(error)} ({kind})")
    if state is not None and state[:2] in PASSING:
        return DatabaseUnavailableError(f"{doing}: {line(error)} ({kind})")
    return WriteRejectedError(f"{doing}: {line(error)} ({kind})", data=state is None or state[:2] in DATA)


def broken_rule(error: WriteRejectedError) -> str | None:
    """Which rule of the table's an insert broke, or None where it is not the request that is at fault."""
    match error.__cause__:
        case UnicodeError():
            return "it has text that is not UTF-8"
        case psycopg.IntegrityError() | psycopg.DataError() as cause:
            return cause.diag.constraint_name or line(cause)
    return None


def line(error: psycopg.Error) -> str:
    """What it says, in one line: without its details, and without what a driver guesses about it."""
    if error.diag.message_primary:
        return " ".join(error.diag.message_primary.split())
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
