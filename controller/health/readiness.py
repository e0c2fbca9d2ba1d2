"""Whether a controller can do its work, and does: what /readyz answers, however many ask."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from controller.backends.base import Backend
from controller.db.migrate import check_schema
from controller.db.store import Store
from controller.errors import SandboxError
from controller.reconcile.claims import Claims

READY_SECONDS = 5.0  # for database and engine to answer
KEPT_SECONDS = 1.0  # that an answer is given again: one check at a time, whoever asks
MANY_ASIDE = 10  # rows that no claim could take: fewer may each have a fault of their own
STALLED_SECONDS = 15.0  # that a row may wait for its claim while none is claimed at all


class Readiness:
    """Asks database and engine, and looks for a row that should have been claimed long ago."""

    def __init__(self, store: Store, backend: Backend, claims: Claims, url: str) -> None:
        self._store, self._backend, self._claims, self._url = store, backend, claims, url
        self._turn = asyncio.Lock()
        self._asked, self._answer = -float("inf"), ""
        self._passed_over: tuple[UUID, float] | None = None  # a row that claims should have brought; seen so since

    async def trouble(self) -> str:
        """What is wrong, in a sentence; empty where nothing is."""
        async with self._turn:
            if time.monotonic() - self._asked > KEPT_SECONDS:
                self._answer = await self._ask()
                self._asked = time.monotonic()
        return self._answer

    async def _ask(self) -> str:
        asked = "database"
        try:
            async with asyncio.timeout(READY_SECONDS):
                await check_schema(self._url)  # by a new connection: the pool's may be open from better days
                asked = "engine"
                await self._backend.ping()
                asked = "database"
                return await self._stalled()
        except TimeoutError:
            return f"the {asked} does not answer"
        except SandboxError as error:
            return str(error)

    async def _stalled(self) -> str:
        if time.monotonic() - self._claims.brought < STALLED_SECONDS:
            return ""
        found = await self._store.overdue(self._claims.max_running, STALLED_SECONDS)
        if found is None:
            self._passed_over = None
            return await self._refused()
        why = self._claims.trouble(STALLED_SECONDS) or self._why_passed_over(found.id)
        if not why:
            return ""
        held = f" (held up by database process {found.blockers})" if found.blockers else ""
        return f"sandbox {found.id} has waited {found.seconds:.0f} s to be claimed, and none is claimed: {why}{held}"

    async def _refused(self) -> str:
        """A row that the database refuses is set aside, and no trouble; where it is all of them, it is."""
        found = await self._store.aside(STALLED_SECONDS)
        if not found or found[0].claimed or sum(each.n for each in found) < MANY_ASIDE:
            return ""
        return f"the database refuses every claim, {found[0].n} rows are set aside: {found[0].why}"

    def _why_passed_over(self, sandbox_id: UUID) -> str:
        """Claims are answered without it: said only where that lasts, since it may have become due just now."""
        now = time.monotonic()
        if self._passed_over is None or self._passed_over[0] != sandbox_id:
            self._passed_over = sandbox_id, now
        if now - self._passed_over[1] < STALLED_SECONDS:
            return ""
        return "claims are answered without it, so another transaction may hold it locked"
