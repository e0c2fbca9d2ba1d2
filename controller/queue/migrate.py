"""Brings a database to this version's schema, and tells whether a controller may run on it."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.sql import SQL, Identifier, Literal

from controller import sql
from controller.errors import DatabaseUnavailable, SchemaError

log = logging.getLogger(__name__)

BAD_URL = "DATABASE_URL cannot be read: it must be a postgresql:// URL, special characters percent-encoded (@ is %40)"
LOCK = 7263002  # an advisory lock: one migration at a time
CODE_VERSION = sql.migrations()[-1].version  # what this code was written for


def migrate(url: str, passwords: dict[str, str | None]) -> int:
    """Applies what is missing, as the owner; sets the passwords given, by login. Returns how many steps it took.

    Safe beside another migration, and on a database that is newer. Raises DatabaseUnavailable, or SchemaError where
    the login may not do it or the database refuses it.
    """
    try:
        with psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=10) as connection:
            connection.execute("select pg_advisory_lock(%s)", [LOCK])
            return _migrate(connection, passwords)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(f"migrate needs the database's owner with the right to make roles: {_line(error)}") from error
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"the database does not answer, or refuses this login: {_line(error)}") from error
    except psycopg.Error as error:
        if error.sqlstate is None:  # the URL could not be read, and its reader's words repeat it
            raise DatabaseUnavailable(BAD_URL) from None
        raise SchemaError(f"the database refuses the migration: {_line(error)}") from error


def _migrate(connection: psycopg.Connection[DictRow], passwords: dict[str, str | None]) -> int:
    roles = sql.statements("roles.sql")
    for role in ("owner", "controller", "requester"):
        connection.execute(roles[role])
    for login, password in passwords.items():
        if password is not None:  # sent as its verifier, so that no log can hold it
            verifier = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256").decode()
            connection.execute(SQL("alter role {} password {}").format(Identifier(login), Literal(verifier)))
    connection.execute(roles["become_owner"])
    connection.execute(roles["history"])
    applied = {found["version"] for found in connection.execute(roles["applied"])}
    steps = [step for step in sql.migrations() if step.version not in applied]
    for step in steps:
        with connection.transaction():
            connection.execute(step.sql)
            noted: dict[str, Any] = {"version": step.version, "name": step.name}
            connection.execute(roles["note_applied"], noted | {"min_code_version": step.min_code_version})
        log.info("applied migration %04d %s", step.version, step.name)
    return len(steps)


async def check_schema(url: str, code_version: int = CODE_VERSION) -> None:
    """Raises SchemaError where this code must not run on that database: it is too old, or has shut this code out.
    A merely newer one will do. Raises DatabaseUnavailable where it does not answer."""
    try:
        async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row, connect_timeout=10) as connection:
            found = await (await connection.execute(sql.statements("roles.sql")["standing"])).fetchone()
    except psycopg.errors.UndefinedTable:
        found = None
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(f"this login has not the controller's rights: {_line(error)}") from error
    except psycopg.Error as error:
        if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
            raise DatabaseUnavailable(BAD_URL) from None
        raise DatabaseUnavailable(f"the database does not answer, or refuses this login: {_line(error)}") from error
    version, oldest = (found["version"], found["min_code_version"]) if found else (0, 0)
    if oldest > code_version:
        raise SchemaError(
            f"the database's min_code_version is {oldest}, and this controller is version {code_version}: "
            "run a newer controller"
        )
    if version < code_version:
        raise SchemaError(
            f"the database is at version {version}, and this controller needs {code_version}: "
            "run `python -m controller migrate`"
        )


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
