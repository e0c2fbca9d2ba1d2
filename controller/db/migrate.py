"""Brings a database to this version's schema, and tells whether a controller may run on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier, Literal

from controller.db import sql
from controller.db.faults import in_words, line, meaning
from controller.db.pool import connect, connect_async
from controller.errors import DatabaseReadOnlyError, DatabaseUnavailableError, SchemaError, SettingsError
from controller.logs import about

log = logging.getLogger(__name__)
T = TypeVar("T")
Roles = dict[str, LiteralString]  # the statements of roles.sql

CODE_VERSION = sql.migrations()[-1].version  # what this code was written for
LOCK_TIMEOUT = "3s"  # who waits for the queue's tables holds up all who come after: only so long at a time
PAUSE_SECONDS = 1.0  # in which those come through
PATIENCE_SECONDS = 60.0  # for transactions that hold the queue's tables, and for another migration
CONTENDED = (  # another session is at the same objects
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.InternalError_,  # "tuple concurrently updated": of a grant, by another migration
)


def migrate(
    url: str, passwords: dict[str, str | None], retention: float | None = None, patience: float = PATIENCE_SECONDS
) -> int:
    """Applies what is missing and puts owners and rights right; sets the passwords given, by login, and the seconds
    that ended sandboxes stay. Returns how many steps it took.

    Safe beside controllers, beside another migration, and on a database that is newer. Raises DatabaseUnavailableError,
    or SchemaError if the login may not do it, the database refuses it, or another session is in the way for longer
    than `patience` seconds.
    """
    roles = sql.statements("roles.sql")
    with closing(connect(url, "sandbox-migrate")) as connection:
        try:
            steps = _patiently(connection, roles, patience, lambda: _migrate(connection, roles, passwords, retention))
            _patiently(connection, roles, patience, lambda: _validate(connection, roles))
            return steps
        except psycopg.errors.InsufficientPrivilege as error:
            who = "a superuser, or the owner of the database and of its tables with the right to create roles"
            raise SchemaError(f"migrate needs {who}: {line(error)}") from error
        except psycopg.Error as error:
            found = meaning(error, "the database refuses the migration")
            raise found if isinstance(found, DatabaseUnavailableError) else SchemaError(str(found)) from error


def _patiently(connection: psycopg.Connection[DictRow], roles: Roles, patience: float, part: Callable[[], T]) -> T:
    """Does `part` in one transaction, again and again where another session is in its way."""
    give_up = time.monotonic() + patience
    while True:
        try:
            with connection.transaction():
                connection.execute(SQL("set local lock_timeout = {}").format(LOCK_TIMEOUT))
                connection.execute(roles["in_catalog"])
                connection.execute(roles["schema"])
                return part()
        except CONTENDED as error:
            if time.monotonic() > give_up:
                raise SchemaError(_held(connection, roles, error)) from error
            log.info("another session holds what the migration needs, retrying", extra=about(error=line(error)))
        time.sleep(PAUSE_SECONDS)


def _migrate(
    connection: psycopg.Connection[DictRow], roles: Roles, passwords: dict[str, str | None], retention: float | None
) -> int:
    for name in ("owner", "controller", "requester", "membership", "settle", "become_owner", "in_public", "history"):
        connection.execute(roles[name])
    connection.execute(roles["one_at_a_time"])
    applied = {found["version"] for found in connection.execute(roles["applied"])}
    steps = [step for step in sql.migrations() if step.version not in applied]
    for step in steps:
        connection.execute(step.sql)
        noted: dict[str, Any] = {"version": step.version, "name": step.name}
        connection.execute(roles["note_applied"], noted | {"min_code_version": step.min_code_version})
        log.info("migration applied", extra=about(version=step.version, name=step.name))
    if max(applied, default=0) <= CODE_VERSION:  # a newer version grants what this one does not know
        connection.execute(roles["grants"])
    if retention is not None:
        connection.execute(roles["set_retention"], {"seconds": retention})
    connection.execute(roles["in_catalog"])
    connection.execute(roles["become_login"])
    for login, password in passwords.items():
        if password is not None:  # sent as its verifier, so that no log can hold it
            verifier = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256").decode()
            connection.execute(SQL("alter role {} password {}").format(Identifier(login), Literal(verifier)))
    for found in connection.execute(roles["makers"]):
        advice = f"revoke create on schema public from public, {found['rolname']}"
        log.warning(
            "login may create functions in schema public, which the queue's statements could call",
            extra=about(login=found["rolname"], advice=advice),
        )
    return len(steps)


def _validate(connection: psycopg.Connection[DictRow], roles: Roles) -> None:
    """Compares rows from before with the rules of migrations, while everybody goes on reading and writing."""
    connection.execute(roles["become_owner"])
    for found in connection.execute(roles["unproven"]).fetchall():
        connection.execute(str(found["validate"]).encode())


def _held(connection: psycopg.Connection[DictRow], roles: Roles, error: psycopg.Error) -> str:
    by = line(error)
    for found in connection.execute(roles["holder"]):
        who = f"process {found['pid']} of {found['usename']} ({found['application_name'] or 'unnamed'})"
        by = f"{who}, its transaction open for {found['seconds']} s"
    return f"another session holds what the migration needs: {by}: end it, then run migrate again; nothing was changed"


async def check_schema(url: str, code_version: int = CODE_VERSION) -> None:
    """Raises SchemaError where this code must not run on that database: it is too old, or has shut this code out.
    A merely newer one will do. Raises DatabaseUnavailableError where it does not answer,
    DatabaseReadOnlyError where it takes no writes."""
    try:
        async with await connect_async(url, "sandbox-check") as connection:
            found = await (await connection.execute(sql.statements("roles.sql")["schema_version"])).fetchone()
    except psycopg.errors.UndefinedTable:
        found = None
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(f"this login does not have the controller's rights: {line(error)}") from error
    except psycopg.Error as error:
        raise meaning(error, "the schema's version cannot be read") from error
    if found and found["only_reads"]:
        raise DatabaseReadOnlyError(
            f"the database is read-only: {found['only_reads']}; a controller needs a writable one"
        )
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


async def retain(url: str, seconds: float) -> None:
    """Keeps ended sandboxes for so long. Raises SettingsError where that is not this login's to say."""
    roles = sql.statements("roles.sql")
    async with await connect_async(url, "sandbox-check") as connection:
        with in_words("the retention cannot be read or set"):
            [found] = await (await connection.execute(roles["retention"])).fetchall()
            if found["may_set"]:
                await connection.execute(roles["set_retention"], {"seconds": seconds})
            elif found["retention_seconds"] != seconds:
                raise SettingsError(
                    f"SANDBOX_RETENTION_SECONDS = {seconds:.15g}, and the database keeps ended sandboxes for "
                    f"{found['retention_seconds']:.15g} s, which is its owner's to change: run `python -m controller "
                    "migrate` with that setting, or leave it out here"
                )
