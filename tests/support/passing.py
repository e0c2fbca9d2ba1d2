"""A backend that passes every verb on to another, so that a test changes the one that it is about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from controller.backends.base import Backend, Marks
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output


class Passing:
    """Each verb as the other backend has it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def at_once(self) -> int:
        """Passed on."""
        return self.backend.at_once

    @property
    def launching(self) -> int:
        """Passed on."""
        return self.backend.launching

    @property
    def marks(self) -> Marks | None:
        """Passed on."""
        return self.backend.marks

    async def open(self, installation: UUID) -> str:
        """Passed on."""
        return await self.backend.open(installation)

    async def ping(self) -> None:
        """Passed on."""
        await self.backend.ping()

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Passed on."""
        return await self.backend.create(launch, look=look)

    async def release(self, key: Key, run_uid: str) -> None:
        """Passed on."""
        await self.backend.release(key, run_uid)

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Passed on."""
        async for sight in self.backend.observe():
            yield sight

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """Passed on."""
        return await self.backend.output(key, run_uid, limit)

    async def kill(self, key: Key, run_uid: str) -> None:
        """Passed on."""
        await self.backend.kill(key, run_uid)

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Passed on."""
        await self.backend.delete(key, run_uid)

    async def close(self) -> None:
        """Passed on."""
        await self.backend.close()
