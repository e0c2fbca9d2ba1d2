"""Brings a database to this version's schema, and tells whether a controller may run on it."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

import psycopg
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier, Literal

from controller import sql
from controller.errors import DatabaseUnavailable, SchemaError
from controller.queue.connect import connect, connect_async
from controller.queue.faults import line, meaning

log = logging.getLogger(__name__)

LOCK = 7263002  # an advisory lock: one migration at a time
CODE_VERSION = sql.migrations()[-1].version  # what this code was written for


def migrate(url: str, passwords: dict[str, str | None]) -> int:
    """Applies what is missing, as the owner; sets the passwords given, by login. Returns how many steps it took.

    Safe beside another migration, and on a database that is newer. Raises DatabaseUnavailable, or SchemaError where
    the login may not do it or the database refuses it.
    """
    with closing(connect(url, "sandbox-migrate")) as connection:
        try:
            connection.execute("select pg_advisory_lock(%s)", [LOCK])
            return _migrate(connection, passwords)
        except psycopg.errors.InsufficientPrivilege as error:
            needs = "migrate needs the database's owner with the right to make roles"
            raise SchemaError(f"{needs}: {line(error)}") from error
        except psycopg.Error as error:
            found = meaning(error, "the database refuses the migration")
            raise found if isinstance(found, DatabaseUnavailable) else SchemaError(str(found)) from error


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
        async with await connect_async(url, "sandbox-check") as connection:
            found = await (await connection.execute(sql.statements("roles.sql")["standing"])).fetchone()
    except psycopg.errors.UndefinedTable:
        found = None
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(f"this login has not the controller's rights: {line(error)}") from error
    except psycopg.Error as error:
        raise meaning(error, "the schema's version cannot be read") from error
    if found and found["only_reads"]:
        raise DatabaseUnavailable(f"the database only reads: {found['only_reads']}; a controller needs one that writes")
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
