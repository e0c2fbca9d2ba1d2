"""Makes every connection of the project to Postgres, each with the same settings of its session."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection, Connection, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from controller.db import sql
from controller.db.faults import in_words, line
from controller.db.url import check_url
from controller.errors import DatabaseExchangedError, DatabaseUnavailableError, SchemaError, SettingsError

DEFAULTS: dict[str, Any] = {  # a URL's own parameters come before these
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # ms; a half-open socket is noticed even with data under way
}
PARTS = {  # of a URL, by what the driver and an English server say
    r"authentication failed|no password|role .* does not exist|not permitted to log in|pg_hba": "user and password",
    r"database .* does not exist|permission denied for database": "database",
    r"(resolve|translate) host": "host",
    r"configuration parameter|requires a value|invalid value for parameter": "options",
    r"requirement .* failed": "require_auth",
    r"root certificate|verify failed|server certificate": "sslmode and sslrootcert",
    r"certificate|private key": "sslcert and sslkey",
    r"\bSSL\b": "sslmode",
    r"read-only|read-write|standby mode": "target_session_attrs",
    r"refused|timeout|timed out|No such file|unreachable|No route": "host and port",
}
SETTING_UP = "a session cannot be set up"
EXCHANGED = (
    "DATABASE_URL now leads to another installation ({found}; this controller works for {ours}). Nothing was written "
    "there; the controller ends. To go on with {ours}, set DATABASE_URL back. Otherwise remove objects labelled "
    "installation={ours}."
)
SESSION = sql.statements("session.sql")


def connect(url: str, name: str) -> Connection[DictRow]:
    """One connection under this name, in autocommit. Raises SettingsError, DatabaseUnavailableError or SchemaError."""
    conninfo = _conninfo(url, name)
    try:
        connection = Connection[DictRow].connect(conninfo, autocommit=True, row_factory=dict_row)
    except psycopg.Error as error:
        raise _no_connection(error, url) from error
    try:
        _check_encoding(connection)
        with in_words(SETTING_UP):
            connection.execute(SESSION["session"])
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_async(url: str, name: str) -> AsyncConnection[DictRow]:
    """The same for asyncio."""
    conninfo = _conninfo(url, name)
    try:
        connection = await AsyncConnection[DictRow].connect(conninfo, autocommit=True, row_factory=dict_row)
    except psycopg.Error as error:
        raise _no_connection(error, url) from error
    try:
        _check_encoding(connection)
        with in_words(SETTING_UP):
            await connection.execute(SESSION["session"])
    except BaseException:
        await connection.close()
        raise
    return connection


async def refuse_shared_sessions(url: str) -> None:
    """Raises SettingsError where a pooler gives one session of the server to several connections: what one of them sets
    would be the others', and notifications would be lost."""
    async with await connect_async(url, "sandbox-check") as one, await connect_async(url, "sandbox-check") as other:
        await check_own_sessions(one, other)


async def check_own_sessions(one: AsyncConnection[DictRow], other: AsyncConnection[DictRow]) -> None:
    """Raises SettingsError where what one connection sets is set for the other."""
    mark = uuid4().hex
    with in_words(SETTING_UP):
        await one.execute(SESSION["mark"], {"mark": mark})
        found = await (await other.execute(SESSION["marked"])).fetchone()
    if found is not None and found["mark"] == mark:
        raise SettingsError(
            "DATABASE_URL leads through a pooler that shares sessions (PgBouncer: pool_mode = transaction or "
            "statement): connect without it, or with pool_mode = session"
        )


class Pool(AsyncConnectionPool[AsyncConnection[DictRow]]):
    """A controller's sessions on one database, `size` at most, under its name. Open it with `async with`.

    Each new session is first asked whose its database is. If it is another installation's than the one given, or a
    copy of that one's, the session is refused, and from then on so is every statement: see `refuse_exchanged`.
    """

    def __init__(self, url: str, name: str, installation: UUID | None = None, size: int = 6) -> None:
        super().__init__(
            _conninfo(url, name),
            connection_class=AsyncConnection[DictRow],
            kwargs={"autocommit": True, "row_factory": dict_row},
            min_size=1,
            max_size=size,
            timeout=5,
            reconnect_timeout=3,  # then anew with the next statement: its pause would else double through an outage
            configure=self._set_up,
            open=False,
        )
        self._installation = installation
        self.exchanged: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # whose database was found

    def refuse_exchanged(self) -> None:
        """Raises DatabaseExchangedError if any session was another installation's."""
        if self.exchanged.done():
            raise DatabaseExchangedError(EXCHANGED.format(ours=self._installation, found=self.exchanged.result()))

    async def _set_up(self, connection: AsyncConnection[DictRow]) -> None:
        with in_words(SETTING_UP):
            cursor = await connection.execute(SESSION["installation"] + SESSION["session"] + SESSION["controller"])
            rows = await cursor.fetchall()
        found = [f"a copy of {row['id']}" if row["copied"] else str(row["id"]) for row in rows]
        if self._installation is not None and found != [str(self._installation)] and not self.exchanged.done():
            self.exchanged.set_result(", ".join(found) or "none")
        self.refuse_exchanged()


def _conninfo(url: str, name: str) -> str:
    check_url(url)
    # client_encoding goes before what the database, the role or PGCLIENTENCODING say
    return make_conninfo(**DEFAULTS | conninfo_to_dict(url) | {"application_name": name, "client_encoding": "utf8"})


def _no_connection(error: psycopg.Error, url: str) -> DatabaseUnavailableError:
    told = re.sub(r"^connection (failed|is bad): ", "", line(error))
    if re.match(r"invalid .* value|invalid SSL protocol|definition of service", told):
        return DatabaseUnavailableError(f"{_named_by(told, url)} cannot be used: {told}")
    part = next((part for words, part in PARTS.items() if re.search(words, told)), None)
    look = f"; look at its {part}" if part else ""
    return DatabaseUnavailableError(
        f"the database of DATABASE_URL does not answer, or refuses this login: {told}{look}"
    )


def _named_by(told: str, url: str) -> str:
    """The variable that has the parameter named there: the driver reads some of its own where the URL has none."""
    for option in pq.Conninfo.get_defaults():
        variable = (option.envvar or b"").decode()
        named = re.search(rf"\b{option.keyword.decode()}\b", told)
        if named and variable in os.environ and f"{named[0]}=" not in url:
            return f"{variable} of the environment"
    return "DATABASE_URL"


def _check_encoding(connection: Connection[DictRow] | AsyncConnection[DictRow]) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        raise SchemaError(
            f"the database's encoding is {encoding}, and the queue needs UTF8: create one with "
            "`create database … encoding 'UTF8' template template0`"
        )
