"""The wake-up: LISTEN on a connection of its own, watched so that a dead one is never trusted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from psycopg.sql import SQL, Identifier

from controller.db.faults import in_words
from controller.db.pool import connect_async
from controller.errors import SandboxError
from controller.logs import about

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """Intervals of a listener in seconds."""

    probe: float = 10.0  # silence after which the connection must prove that it still listens
    probe_timeout: float = 5.0
    reconnect: float = 1.0  # before the next connection; the poll serves meanwhile


async def listen(url: str, channel: str, wake: Callable[[str], None], config: ListenerConfig | None = None) -> None:
    """Calls `wake` with each notification's payload, and with "" after every (re)connect. Never returns."""
    config = config or ListenerConfig()
    while True:
        try:
            await _listen_once(url, channel, wake, config)
        except (SandboxError, TimeoutError) as error:
            why = str(error) or "the database does not answer"
            log.warning("notifications interrupted, polling", extra=about(error=why))
        await asyncio.sleep(config.reconnect)


async def _listen_once(url: str, channel: str, wake: Callable[[str], None], config: ListenerConfig) -> None:
    connection = await connect_async(url, "sandbox-listener")
    try:
        with in_words("the listener has no connection"):
            await connection.execute(SQL("listen {}").format(Identifier(channel)))
            wake("")
            while True:
                async for notification in connection.notifies(timeout=config.probe):
                    wake(notification.payload)
                async with asyncio.timeout(config.probe_timeout):
                    cursor = await connection.execute("select from pg_listening_channels() c where c = %s", [channel])
                    if cursor.rowcount != 1:
                        return
    finally:
        await connection.close()
