"""A controller's presence: its mark on the engine, its registration in the table, and which others there are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from controller.backends.base import Backend
from controller.db.registry import Attendant, Registry
from controller.errors import BackendUnavailableError, SandboxError, SettingsError, TransientEngineError
from controller.logs import about

log = logging.getLogger(__name__)

GAP_SECONDS = 5.0  # a gap between two looks as long as this discards what was seen before
LEAVE_SECONDS = 5.0  # for the table's answer when a controller stops
RENAMED = (  # a controller that is not known by its name would be taken for gone
    "DATABASE_URL leads through a pooler that changes application_name, by which controllers know each other: connect "
    "without it, or let it keep the name (PgBouncer: pool_mode = session, application_name_add_host = 0)"
)


class Lasting:
    """Finds what was there at every look for `seconds`. After a gap as long as that, it begins anew."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: dict[str, float] = {}
        self._looked = 0.0

    def look(self, seen: Collection[str]) -> set[str]:
        """Return those that were there at every look for long enough."""
        now = self._clock()
        since = self._since if now - self._looked <= max(self._seconds, GAP_SECONDS) else {}
        self._looked = now
        self._since = {each: since.get(each, now) for each in seen}
        return {each for each, begun in self._since.items() if now - begun >= self._seconds}


class Presence:
    """Registers this controller for its engine, and finds which others are.

    `sole`: no connected controller can be on another machine with this engine's identity. So a run that this engine
    does not have is gone.
    """

    def __init__(
        self, registry: Registry, backend: Backend, me: str, engine: str, *, grace: float, patience: float
    ) -> None:
        self._registry, self._backend, self._me, self._engine = registry, backend, me, engine
        self._away = Lasting(grace)
        self._patience = patience
        self.sole = False

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Be registered inside the block.

        Raises BackendUnavailableError if an earlier controller is on another engine of this identity, SettingsError if
        the server does not know controllers by their names.
        """
        try:
            await self._enter()
            yield
        finally:
            await self._leave()

    async def tend(self) -> list[Attendant]:
        """Renew what is missing, remove what is stale; return which controllers attend which engine."""
        marked = await self._marked()
        try:
            if not await self._registry.visible():  # nor are others: nobody is known to be gone
                log.warning(RENAMED)
                self.sole = False
                return []
            if await self._registry.register():
                log.warning("registration was missing, registered again")
            if marked is not None:
                await self._registry.saw(marked)
            attending = await self._registry.attending()
        except SandboxError:
            self.sole = False
            raise
        here = {each.name for each in attending if each.engine == self._engine and each.connected} - {self._me}
        self.sole = not here or (marked is not None and here <= marked)
        away = {each.name for each in attending if each.name and each.seq is not None and not each.connected}
        if gone := self._away.look(away):
            await self._registry.unregister(gone)
        await self._remove_stale((marked or set()) - {each.name for each in attending} - {self._me})
        return attending

    async def _enter(self) -> None:
        if not await self._registry.visible():
            raise SettingsError(RENAMED)
        try:
            if self._backend.marks is not None:
                await self._backend.marks.leave(self._me)
            await self._registry.register()
            await self._refuse_twins()
        except TransientEngineError as error:
            raise BackendUnavailableError(str(error)) from error

    async def _refuse_twins(self) -> None:
        """Raise BackendUnavailableError if an earlier controller is on another machine of the same identity.

        This controller has left its mark. An earlier controller is on this machine if it sees that mark. It is on
        another machine if it has looked twice since and has not seen it. If it does not look for `patience` seconds, it
        is here if its own mark is. That comes last: a machine that was copied while a controller ran has that
        controller's mark too.
        """
        marks, begun, give_up = self._backend.marks, dict[str, int](), time.monotonic() + self._patience
        while marks is not None:
            here = await marks.names()
            if self._me not in here:
                await marks.leave(self._me)
                begun.clear()
            unproven = {name: each for name, each in (await self._earlier()).items() if self._me not in each.sees}
            # a look under way when the mark was left may have missed it; the next look cannot have
            twins = {name for name, each in unproven.items() if each.looks >= begun.setdefault(name, each.looks) + 2}
            late = time.monotonic() > give_up
            if late:
                twins |= unproven.keys() - here
            if twins:
                raise BackendUnavailableError(
                    f"the controller {min(twins)} runs sandboxes on another machine under the identity of this engine, "
                    f"{self._engine}; one of the two machines is a copy: {marks.advice}"
                )
            if late or not unproven:
                return
            await asyncio.sleep(min(0.2, self._patience / 10))

    async def _earlier(self) -> dict[str, Attendant]:
        """Return the connected controllers that registered for this engine before this one, by name."""
        attending = [each for each in await self._registry.attending() if each.engine == self._engine]
        mine = next((each.seq for each in attending if each.name == self._me), None) or 0
        return {each.name: each for each in attending if each.name and each.connected and each.seq and each.seq < mine}

    async def _marked(self) -> set[str] | None:
        """Return whose marks are on the engine, after restoring this controller's if it is gone; None if unknown."""
        marks = self._backend.marks
        if marks is None:
            return None
        try:
            found = await marks.names()
            if self._me not in found:
                await marks.leave(self._me)
            return found
        except TransientEngineError as error:
            log.warning("engine marks unreadable, retrying", extra=about(error=error))
            return None

    async def _remove_stale(self, names: set[str]) -> None:
        marks = self._backend.marks
        if names and marks is not None:
            for name in await self._registry.unknown(names):
                await marks.remove(name)

    async def _leave(self) -> None:
        """Remove the registration before the mark: a registered controller always has one."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._registry.unregister([self._me])
            if self._backend.marks is not None:
                await self._backend.marks.remove(self._me)
        except (SandboxError, TimeoutError) as error:
            why = str(error) or "the database does not answer"
            log.warning("registration not removed, left to the next controller", extra=about(error=why))
