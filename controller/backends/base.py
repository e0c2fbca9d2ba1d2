"""The interface of every backend: the protocol's verbs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol
from uuid import UUID

from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output


class Marks(Protocol):
    """Marks on an engine, each with a controller's name: they tell the engine from another one of the same identity.

    They belong to the installation that the backend was opened for. Every call raises TransientEngineError if the
    engine does not answer.
    """

    @property
    def advice(self) -> str:
        """What to do on a machine that was copied, so that its engine gets an identity of its own."""

    async def names(self) -> set[str]:
        """Whose marks are there."""

    async def leave(self, controller: str) -> None:
        """Leaves that controller's mark; nothing where it is there."""

    async def remove(self, controller: str) -> None:
        """Takes that mark away; nothing where it is gone."""


class Backend(Protocol):
    """Runs attempts on one engine.

    Every verb can be repeated, and called by two controllers at once. Beside the errors named, each raises
    TransientEngineError if the engine has no room, no time or gives no answer (the request may have taken effect).
    """

    @property
    def at_once(self) -> int:
        """How many calls this kind of engine takes at once."""

    @property
    def launching(self) -> int:
        """How many rows may be on their way to their start."""

    async def open(self, installation: UUID) -> str:
        """Makes ready; returns the engine's identity, which outlives restarts of engine and controller.

        Comes once, before every other verb. `installation` is the database's own id: only objects that carry it are
        ever seen or touched. Raises BackendUnavailableError, saying what is missing and what to do.
        """

    async def ping(self) -> None:
        """Asks whether the engine that was opened answers; changes nothing, neither here nor there.

        Raises BackendUnavailableError where it does not, and before `open` and after `close`.
        """

    @property
    def marks(self) -> Marks | None:
        """The marks of controllers on the engine that was opened; None where this kind of engine has none."""

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Makes the attempt inert, or finds the one that is there, whatever its phase.

        None where the run appears later, in `observe`. `look`: it may be there already, so look before making.
        Raises RequestRejectedError if the request can never be run; ImagePullingError, without waiting, if its image is
        being pulled: then the attempt has no object, and the pull goes on by itself.
        """

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts that inert run; of one that was released before, whatever became of it, nothing.

        However often and by whomever it is called, the run's command starts once at the most.
        Raises RunNotFoundError if there is no such run, which then was not started; RequestRejectedError if the engine
        cannot start it at all.
        """

    def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """A whole listing first, then each change as it comes; a whole listing again after any doubt and
        every few seconds. Never ends by itself; raises TransientEngineError where the engine stops answering."""

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """The last `limit` bytes of an ended run's output. Raises RunNotFoundError where nothing is left of it."""

    async def kill(self, key: Key, run_uid: str) -> None:
        """Ends that run at once, and leaves its outcome and output to be read. Nothing where it is over or gone."""

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Removes that run, or with None every run of the attempt, and all that it left; ends it first where
        it lives, and makes sure that it can never start. Returns once it is gone; nothing where it is gone."""

    async def close(self) -> None:
        """Lets go of the engine; what runs there runs on."""
