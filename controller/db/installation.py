"""The installation's id, and whose it is if its database was copied or moved: what `migrate` settles, as the owner."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from typing import Literal
from uuid import UUID

import psycopg

from controller.db import sql
from controller.db.faults import in_words, meaning
from controller.db.pool import connect, connect_async
from controller.errors import DatabaseUnavailableError, SchemaError
from controller.logs import about

log = logging.getLogger(__name__)

RENEWED = "this database is a copy with nothing under way: it has a new installation id"
FOREIGN = (
    "this database is a copy, and sandboxes are under way in it. If the original is still used, run "
    "`python -m controller migrate --copy` (they end `lost` here). If it is gone, run "
    "`python -m controller migrate --moved` (they continue here)."
)
Whose = Literal["copy", "moved"]
RETRY_SECONDS = 1.0


async def identify(url: str) -> tuple[UUID, bool]:
    """Returns the id of this database's installation, and whether it is a new one; waits while the database is away.

    Raises WriteRejectedError, or SchemaError if only a person can tell whose it is.
    """
    while True:
        try:
            return await _identify(url)
        except DatabaseUnavailableError as error:
            log.warning("installation not identified, retrying", extra=about(error=error))
        await asyncio.sleep(RETRY_SECONDS)


async def _identify(url: str) -> tuple[UUID, bool]:
    async with await connect_async(url, "sandbox-check") as connection:
        with in_words("the installation of the database cannot be read"):
            [found] = await (await connection.execute(sql.statements("installation.sql")["identify"])).fetchall()
    if found["standing"] == "foreign":
        raise SchemaError(FOREIGN)
    return found["id"], found["standing"] == "renewed"


def settle_identity(url: str, whose: Whose | None) -> str | None:
    """Settles whose the installation's id is, `None`: where there is no doubt. Returns what to tell, if anything.

    Raises DatabaseUnavailableError, or SchemaError where a controller is connected that would go on under the old id.
    """
    statements = sql.statements("installation.sql")
    with closing(connect(url, "sandbox-migrate")) as connection:
        try:
            with connection.transaction():
                connection.execute(sql.statements("roles.sql")["become_owner"])
                if whose == "moved":
                    connection.execute(statements["moved"])
                    return "this database keeps the installation's id; what was under way is its own"
                if whose == "copy":
                    if connected := connection.execute(statements["connected"]).fetchall():
                        raise SchemaError(f"the controller {connected[0]['name']} is connected: stop it, then run this")
                    (copied,) = connection.execute(statements["copied"])
                    rows = copied["touched"]
                    return f"this database is an installation of its own; {rows} rows belonged to the original"
                (found,) = connection.execute(statements["identify"])
        except psycopg.Error as error:
            told = meaning(error, "the installation's id cannot be read or set")
            raise told if isinstance(told, DatabaseUnavailableError) else SchemaError(str(told)) from error
    return {"own": None, "renewed": RENEWED, "foreign": FOREIGN}[found["standing"]]
