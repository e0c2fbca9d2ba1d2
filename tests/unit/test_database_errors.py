"""What each error of the database means: wait and try again, or something has to change first."""

from __future__ import annotations

import psycopg
import pytest
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from controller.db.faults import Locked, in_words, meaning
from controller.errors import DatabaseUnavailableError, WriteRejectedError

PASSES = {
    "08006": "connection failure",
    "25006": "read only sql transaction",
    "25P03": "idle in transaction session timeout",
    "25P04": "transaction timeout",
    "40001": "serialization failure",
    "40P01": "deadlock detected",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "54000": "program limit exceeded",
    "55006": "object in use",
    "57014": "query canceled",
    "57P01": "admin shutdown",
    "57P02": "crash shutdown",
    "57P03": "cannot connect now",
    "57P05": "idle session timeout",
    "58030": "io error",
}
REFUSED = {  # and whether it is a value
    "22003": True,
    "22021": True,
    "22P05": True,
    "0A000": False,
    "23505": False,
    "23514": False,
    "42501": False,
    "42804": False,
    "42883": False,
    "42P01": False,
    "P0001": False,
    "XX000": False,
}


@pytest.mark.parametrize("state", PASSES)
def test_what_passes_by_itself_is_waited_out(state: str) -> None:
    found = meaning(psycopg.errors.lookup(state)("words"), "the outcome cannot be written")
    assert isinstance(found, DatabaseUnavailableError)
    assert str(found).startswith("the outcome cannot be written: ")
    assert ("the database is read-only" if state == "25006" else PASSES[state]) in str(found)


@pytest.mark.parametrize("state", REFUSED)
def test_what_does_not_is_told_and_whether_a_value_is_at_fault(state: str) -> None:
    found = meaning(psycopg.errors.lookup(state)("words"), "the outcome cannot be written")
    assert isinstance(found, WriteRejectedError)
    assert found.data is REFUSED[state]
    assert str(found).startswith("the outcome cannot be written: words (")


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("server closed the connection unexpectedly\n\tThis probably means …"),
        psycopg.InterfaceError("the connection is closed"),
        PoolTimeout("couldn't get a connection after 5.00 sec"),
        PoolClosed("the pool is closed"),
        TooManyRequests("the pool has too many requests"),
    ],
)
def test_a_connection_that_is_lost_or_not_to_be_had_is_waited_out(error: psycopg.Error) -> None:
    found = meaning(error, "x")
    assert isinstance(found, DatabaseUnavailableError)
    assert "the database does not answer" in str(found)
    assert "\n" not in str(found)


def test_rows_that_another_transaction_holds_are_told_apart() -> None:
    assert isinstance(meaning(psycopg.errors.LockNotAvailable("words"), "x"), Locked)


def test_a_value_that_the_driver_cannot_send_is_refused_as_one() -> None:
    for error in (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), psycopg.DataError("too long")):
        with pytest.raises(WriteRejectedError) as caught, in_words("x"):
            raise error
        assert caught.value.data
