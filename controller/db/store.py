"""The controller's side of the queue: each method is one step of the protocol, in one statement."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow

from controller.db import sql
from controller.db.faults import STALE, Locked, Strained, in_words
from controller.db.group_commit import Batch
from controller.db.pool import Pool
from controller.db.writes import Ended, MakeDue, MarkCleaned, PutBack, SetWaiting, Write, WriteBind, WriteRunning
from controller.errors import DatabaseUnavailableError
from controller.logs import about
from controller.protocol.model import Key, Launch, Outcome, Reason, Row, State

log = logging.getLogger(__name__)

STRAINED_TRIES = 4
RENEW_SECONDS = 1.0  # between renewals of the whole pool


@dataclass(frozen=True, slots=True)
class Claimed:
    """A row just claimed or taken over, and what its attempt asks of the engine."""

    row: Row
    launch: Launch
    created_age: float  # seconds since its insert
    waited: str | None = None  # what it waited for until now


@dataclass(frozen=True, slots=True)
class SetAside:
    """Why rows are set aside that claims pass over; the columns of the statement `set_aside`."""

    why: str
    n: int
    claimed: bool  # any row was, lately


@dataclass(frozen=True, slots=True)
class Overdue:
    """A row that should have been claimed by now; the columns of the statement `overdue`."""

    id: UUID
    seconds: float  # since its insert
    blockers: str | None  # processes of the database that this controller's statements wait for


class Store:
    """The statements of one controller, `me`, of one engine, on its pool. Each may be repeated.

    A verb that uses `retried` waits until the database has answered; one that uses `once` raises
    DatabaseUnavailableError instead; a gathered write is retried, but waits for no lock of another transaction. All
    raise WriteRejectedError, and DatabaseExchangedError once the database is another installation's.
    """

    def __init__(self, pool: Pool, me: str, engine: str, output_bytes: int) -> None:
        self._pool, self.me, self.engine, self._output_bytes = pool, me, engine, output_bytes
        self.exchanged, self.refuse_exchanged = pool.exchanged, pool.refuse_exchanged
        self._sql = sql.statements("queue.sql") | sql.statements("controllers.sql")
        self._renewed = 0.0  # monotonic seconds
        self._keepers: set[str] = set()  # what keeps rows from being forgotten, told once
        self._doing: dict[str, str] = {}  # what the statements do, for the errors of those that fail
        self.put_back: Batch[PutBack] = self._batch("put_back", "cannot record that it waits for its image")
        self.make_due: Batch[MakeDue] = self._batch("make_due", "cannot record the end of its pull")
        self.bind: Batch[WriteBind] = self._batch("bind", "its run cannot be bound")
        self.mark_running: Batch[WriteRunning] = self._batch("mark_running", "its start cannot be written")
        self.set_waiting: Batch[SetWaiting] = self._batch("set_waiting", "what it waits for cannot be written")
        self.record: Batch[Ended] = self._batch("record", "the outcome cannot be written")
        self.requeue: Batch[Ended] = self._batch("requeue", "the end of its attempt cannot be written")
        self.mark_cleaned: Batch[MarkCleaned] = self._batch("mark_cleaned", "cannot record its removal")

    async def claim(self, most: int, max_running: int, lease: float) -> list[Claimed]:
        """The next rows that may run. Raises DatabaseUnavailableError where the reply was lost: see `take_over`."""
        params = {"me": self.me, "engine": self.engine, "lease": lease, "max_running": max_running, "most": most}
        return await self._readable(await self.once("claim", params))

    async def take_over(self, most: int, lease: float, held: Sequence[UUID] | None = None) -> list[Claimed]:
        """Rows whose lease ran out; with `held`, also those claimed for this controller that it does not hold."""
        params = {"me": self.me, "engine": self.engine, "lease": lease, "most": most}
        params |= {"mine": held is not None, "held": list(held or ())}
        return await self._readable(await self.once("take_over", params))

    async def renew(self, rows: Sequence[Row], lease: float) -> set[UUID]:
        """Prolongs these leases to `lease` seconds from now; returns those that were still held."""
        params = {"ids": [row.id for row in rows], "epochs": [row.epoch for row in rows], "lease": lease}
        return await self._retried_ids("renew", params)

    async def hand_back(self) -> None:
        """Ends this controller's leases now, those of claims whose reply it never saw too."""
        await self.retried("hand_back", {"me": self.me})

    async def cancel_queued(self) -> int:
        """Ends what is to be cancelled and is queued; returns how many."""
        return len(await self._retried_ids("cancel_queued", {}))

    async def cancelling(self) -> set[UUID]:
        """Active rows of this engine whose requester asked for their end."""
        return await self._retried_ids("cancelling", {"engine": self.engine})

    async def retry_due(self) -> int:
        """Lets attempts whose time has come be claimed; returns how many."""
        return len(await self._retried_ids("retry_due", {}))

    async def owned_rows(self, engine: str | None = None) -> list[Row]:
        """Every row that the controllers of an engine, this one if none is named, still owe something."""
        return [_row(found) for found in await self.retried("owned_rows", {"engine": engine or self.engine})]

    async def adopt(self, rows: Sequence[Row]) -> set[UUID]:
        """Puts this controller's name on rows whose own is gone; returns those that nobody else took."""
        params = {"ids": [row.id for row in rows], "epochs": [row.epoch for row in rows], "me": self.me}
        return await self._retried_ids("adopt", params | {"claimed_by": [row.claimed_by for row in rows]})

    async def rows(self, ids: Sequence[UUID]) -> dict[UUID, Row]:
        """How these rows stand now."""
        return {row.id: row for row in map(_row, await self.retried("rows", {"ids": list(ids)}))}

    async def forget(self) -> int:
        """Deletes sandboxes that are past the owner's retention; returns how many of up to 1,000 were dealt with."""
        found = (await self.retried("forget", {}))[0]
        for keeper in set(found["why"]) - self._keepers:
            log.warning("retention could not delete some sandboxes, retrying later", extra=about(kept_by=keeper))
        self._keepers |= set(found["why"])
        return int(found["forgotten"] + found["kept"])

    async def cancel_all(self) -> None:
        """Asks for the end of everything that has not ended."""
        await self.retried("cancel_all", {})

    async def unfinished(self) -> dict[str | None, int]:
        """How many rows are left to end or to clean, by engine (None: not claimed)."""
        return {found["engine"]: found["n"] for found in await self.retried("unfinished", {})}

    async def counts(self) -> dict[str, int]:
        """Rows of each state that is not terminal."""
        return {found["state"]: found["n"] for found in await self.once("counts", {})}

    async def overdue(self, max_running: int, seconds: float) -> Overdue | None:
        """A row that could have been claimed for longer than `seconds`, if nobody has claimed any for as long."""
        found = await self.once("overdue", {"max_running": max_running, "seconds": seconds, "me": self.me})
        return Overdue(**found[0]) if found else None

    async def set_aside(self, seconds: float) -> list[SetAside]:
        """Why rows are set aside that the database refuses to have claimed, the commonest reason first."""
        return [SetAside(**found) for found in await self.once("set_aside", {"seconds": seconds})]

    async def _readable(self, rows: Sequence[DictRow]) -> list[Claimed]:
        """Those that can be run; one whose columns cannot be read ends at once, and is in no other's way."""
        readable: list[Claimed] = []
        for found in rows:
            try:
                readable.append(_claimed(found))
            except (KeyError, TypeError, ValueError) as error:
                key = Key(found["id"], found["attempt"])
                log.error("row unreadable, recording it as failed", extra=about(key, error=error))
                refused = Outcome(State.FAILED, Reason.INVALID_REQUEST, f"the row cannot be read: {error}")
                await self.record(Ended(key, found["run_uid"], refused))
        return readable

    def _batch(self, name: LiteralString, doing: str) -> Batch[Any]:
        """Gathers the writes of the statement `name`; `doing` says what it means if it fails."""
        self._doing[name] = doing
        return Batch(partial(self._write, name), self._locked)

    async def _write(self, name: str, items: Sequence[Write]) -> set[UUID]:
        rows = [item.values(self._output_bytes) for item in items]
        arrays = {array: [row[array] for row in rows] for array in rows[0]}
        return await self._retried_ids(name, arrays, patient=False)

    async def _locked(self, ids: Sequence[UUID]) -> set[UUID]:
        return await self._retried_ids("locked", {"ids": list(ids)})

    async def _retried_ids(self, name: str, params: Mapping[str, Any], *, patient: bool = True) -> set[UUID]:
        return {found["id"] for found in await self.retried(name, params, patient=patient)}

    async def retried(self, name: str, params: Mapping[str, Any], *, patient: bool = True) -> list[DictRow]:
        """Runs a statement until the database has answered it; unless `patient`, not past another's lock, and at most
        STRAINED_TRIES times where another statement may pass that is smaller."""
        pause, tries = 0.05, 0
        while True:
            try:
                return await self.once(name, params)
            except DatabaseUnavailableError as error:
                tries += isinstance(error, Strained)
                over = not patient and (isinstance(error, Locked) or tries == STRAINED_TRIES)
                if over:
                    raise
                log.warning("statement failed, retrying", extra=about(statement=name, error=error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def once(self, name: str, params: Mapping[str, Any]) -> list[DictRow]:
        """Runs a statement once. Raises DatabaseUnavailableError if its answer does not come."""
        self.refuse_exchanged()
        with in_words(self._doing.get(name, f"the statement {name} failed")):
            async with self._pool.connection() as connection:
                try:
                    cursor = await connection.execute(self._sql[name], params)
                    return await cursor.fetchall() if cursor.description else []
                except psycopg.Error as error:
                    await self._throw_away(connection, error)
                    raise

    async def _throw_away(self, connection: AsyncConnection[DictRow], error: psycopg.Error) -> None:
        """Closes what this error leaves of no use; with it others may be, and not each statement is to find one."""
        if connection.closed:
            await self._pool.check()
        elif error.sqlstate in STALE:
            await connection.close()
            if time.monotonic() - self._renewed > RENEW_SECONDS:
                self._renewed = time.monotonic()
                await self._pool.drain()


def _row(found: DictRow) -> Row:
    known = {each.name: found[each.name] for each in fields(Row) if each.name in found}
    return Row(**known | {"state": State(found["state"]), "failed_attempts": found["runs"]})


def _claimed(found: DictRow) -> Claimed:
    """Raises TypeError where the row is not one that can be launched."""
    row = _row(found)
    asked = ("command", "timeout_seconds", "image", "env", "cpu_millis", "memory_mib", "disk_mib", "network", "tenant")
    if not isinstance(found["env"], dict):
        raise TypeError("env is not an object")
    launch = Launch(row.key, **{name: found[name] for name in asked})
    return Claimed(row, launch, float(found["created_age"]), found["waited"])
