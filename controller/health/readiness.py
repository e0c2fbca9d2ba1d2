"""Whether a controller can do its work, and does it: what /readyz answers, however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

from controller.backends.base import Backend
from controller.db.store import Store
from controller.errors import SandboxError
from controller.health.config import HealthConfig
from controller.reconcile.claims import Claims

MANY_ASIDE = 10  # rows that no claim could take: fewer may each have a fault of their own


class Readiness:
    """Asks database and engine, and looks for a row that should have been claimed long ago.

    `check_schema` asks the database by a new connection: those of a pool may be open from before it stopped answering.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        claims: Claims,
        check_schema: Callable[[], Awaitable[None]],
        config: HealthConfig,
    ) -> None:
        self._store, self._backend, self._claims = store, backend, claims
        self._check_schema, self._config = check_schema, config
        self._turn = asyncio.Lock()
        self._asked, self._answer = -float("inf"), ""
        self._passed_over: tuple[UUID, float] | None = None  # a row that claims should have brought; seen so since

    async def trouble(self) -> str:
        """Return what is wrong, in a sentence; empty if nothing is."""
        async with self._turn:
            if time.monotonic() - self._asked > self._config.kept:
                self._answer = await self._ask()
                self._asked = time.monotonic()
        return self._answer

    async def _ask(self) -> str:
        asked = "database"
        try:
            async with asyncio.timeout(self._config.ready):
                await self._check_schema()
                asked = "engine"
                await self._backend.ping()
                asked = "database"
                return await self._stalled()
        except TimeoutError:
            return f"the {asked} does not answer"
        except SandboxError as error:
            return str(error)

    async def _stalled(self) -> str:
        if time.monotonic() - self._claims.brought < self._config.unclaimed:
            return ""
        found = await self._store.overdue(self._claims.max_running, self._config.unclaimed)
        if found is None:
            self._passed_over = None
            return await self._rejected()
        why = self._claims.trouble(self._config.unclaimed) or self._why_passed_over(found.id)
        if not why:
            return ""
        held = f" (held up by database process {found.blockers})" if found.blockers else ""
        return f"sandbox {found.id} has waited {found.seconds:.0f} s to be claimed, and none is claimed: {why}{held}"

    async def _rejected(self) -> str:
        """Return what is wrong if the database rejects the claim of every row; single rows are set aside."""
        found = await self._store.set_aside(self._config.unclaimed)
        if not found or found[0].claimed or sum(each.n for each in found) < MANY_ASIDE:
            return ""
        return f"the database refuses every claim, {found[0].n} rows are set aside: {found[0].why}"

    def _why_passed_over(self, sandbox_id: UUID) -> str:
        """Return why claims are answered without the row, once that has lasted: it may have become due just now."""
        now = time.monotonic()
        if self._passed_over is None or self._passed_over[0] != sandbox_id:
            self._passed_over = sandbox_id, now
        if now - self._passed_over[1] < self._config.unclaimed:
            return ""
        return "claims are answered without it, so another transaction may hold it locked"
