"""Who looks after which engine: the statements of controllers.sql."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from controller.db.store import Store


@dataclass(frozen=True, slots=True)
class Attendant:
    """A controller of an engine, or the holder of a row there."""

    engine: str
    name: str | None
    seq: int | None  # the order of registration; None: not registered
    connected: bool
    sees: Sequence[str]  # whose marks were on its engine when it last looked
    looks: int  # how often it has looked


class Registry:
    """The statements about controllers and engines."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def register(self) -> bool:
        """This controller looks after its engine; returns whether it was not registered."""
        (found,) = await self._store.retried("register", {"me": self._store.me, "engine": self._store.engine})
        return bool(found["new"])

    async def unregister(self, names: Collection[str]) -> None:
        """These controllers have stopped."""
        await self._store.retried("unregister", {"names": list(names)})

    async def saw(self, marks: Collection[str]) -> None:
        """This controller has looked at its engine, and seen the marks of these."""
        await self._store.retried("saw", {"me": self._store.me, "marks": sorted(marks)})

    async def attending(self) -> list[Attendant]:
        """Every controller and every holder of a row, of all engines."""
        return [Attendant(**found) for found in await self._store.retried("attending", {})]

    async def visible(self) -> bool:
        """Whether the server knows this controller's connections by its name, as others look for it."""
        (found,) = await self._store.retried("visible", {"me": self._store.me})
        return bool(found["visible"])

    async def unknown(self, names: Collection[str]) -> set[str]:
        """Those that are neither registered nor connected."""
        return {found["name"] for found in await self._store.retried("unknown", {"names": list(names)})}
