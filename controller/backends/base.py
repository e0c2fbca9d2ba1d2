"""The interface of every backend: the protocol's verbs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol
from uuid import UUID

from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output


class Marks(Protocol):
    """Marks on an engine, each with a controller's name. They distinguish it from a copy with the same identity.

    They belong to the installation that the backend was opened for. Every call raises TransientEngineError if the
    engine does not answer.
    """

    @property
    def advice(self) -> str:
        """What a user does on a copied machine to give its engine an identity of its own."""

    async def names(self) -> set[str]:
        """The names of all controllers that have left a mark."""

    async def leave(self, controller: str) -> None:
        """Leaves that controller's mark; does nothing if it exists."""

    async def remove(self, controller: str) -> None:
        """Removes that mark; does nothing if it is gone."""


class Backend(Protocol):
    """Runs attempts on one engine.

    Every verb may be repeated, and may be called by two controllers at once. Beside the errors named, each raises
    TransientEngineError if the engine has no capacity, times out or does not answer; the request may have taken effect.
    """

    @property
    def at_once(self) -> int:
        """The largest number of concurrent calls for this kind of engine."""

    @property
    def launching(self) -> int:
        """The largest number of rows that may be launching at once."""

    async def open(self, installation: UUID) -> str:
        """Opens the backend and returns the engine's identity, which outlives restarts of engine and controller.

        Called once, before every other verb. `installation` is the database's own id: only objects that carry it are
        ever listed or changed. Raises BackendUnavailableError, which says what is missing and what to do.
        """

    async def ping(self) -> None:
        """Checks that the engine that was opened answers. Changes no state, of the backend or of the engine.

        Raises BackendUnavailableError if it does not answer, and before `open` and after `close`.
        """

    @property
    def marks(self) -> Marks | None:
        """The marks of controllers on the engine that was opened; None if this kind of engine has none."""

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Creates the attempt's object, inert, or finds the existing one, whatever its phase.

        Returns None if the run appears later, in `observe`. `look`: the object may exist, so look before creating it.
        Raises RequestRejectedError if the request can never be run; ImagePullingError, without waiting, if its image is
        being pulled: then the attempt has no object, and the pull continues in the background.
        """

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts that inert run. Does nothing for a run that was released before, whatever became of it.

        However often and by whichever controller it is called, the run's command starts at most once.
        Raises RunNotFoundError if there is no such run, which then was not started; RequestRejectedError if the engine
        cannot start it at all.
        """

    def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Yields a whole listing first, then each change as it comes, and a whole listing again every few seconds and
        whenever changes may have been missed.

        Never ends by itself; raises TransientEngineError if the engine stops answering.
        """

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """Returns the last `limit` bytes of an ended run's output. Raises RunNotFoundError if nothing is left of it."""

    async def kill(self, key: Key, run_uid: str) -> None:
        """Ends that run at once, and keeps its outcome and output. Does nothing if it has ended or is gone."""

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Removes that run (with None, every run of the attempt) and everything it left. Ends it first if it is alive,
        and makes sure that it can never start. Returns when it is gone; does nothing if it is gone already."""

    async def close(self) -> None:
        """Closes the connection to the engine; runs continue."""
