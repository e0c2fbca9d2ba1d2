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

    Every verb but `open` and `close` may be repeated, and may be called by two controllers at once. Beside the errors
    named, each raises TransientEngineError if the engine has no capacity, times out or does not answer; the request may
    have taken effect.

    What the protocol relies on, beside the verbs:
    - An object is called `Key.name` and carries the installation's id. So a second `create` finds the object of the
      first, and no installation touches another's objects.
    - A run ends itself, without a controller: TERM at `timeout_seconds` after its start, KILL 5 s later. It is over at
      most KILL_MARGIN seconds after its timeout. After that a row may be settled without a look at its run.
    - A run's command starts at most once, also if the engine starts the run again or a release arrives late.
    - A phase is reported only if the engine proves it: see `Phase` and `ObservedRun`.
    - A run's outcome and output can be read until `delete`, also by the next controller.
    """

    @property
    def at_once(self) -> int:
        """The largest number of concurrent calls for this kind of engine."""

    @property
    def launching(self) -> int:
        """The number of launch slots: how many rows one controller may hold that are claimed and not yet released."""

    async def open(self, installation: UUID) -> str:
        """Opens the backend and returns the engine's identity, which outlives restarts of engine and controller.

        Called once, before every other verb. `installation` is the database's own id: only objects that carry it are
        ever listed or changed. Checks what can be checked at once: rights, options, what the engine cannot limit.
        Raises BackendUnavailableError, which says what is missing and what to do.
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
        Without `look` an existing object is found all the same, at the price of a refused request.
        Raises RequestRejectedError if the request can never be run, or if an object of somebody else has the name
        (NameConflict): the row ends `failed` with that reason. Raises ImagePullingError, without waiting, if the image
        is being pulled: then the attempt has no object, the pull continues in the background, and the row is put back.
        """

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts that inert run. Does nothing for a run that was released before and is still there.

        However often and by whichever controller it is called, the run's command starts at most once.
        Raises RunNotFoundError if the engine has no such run, or only one that it can never start: this call started
        nothing, but an earlier release may have. Raises RequestRejectedError if the engine cannot start it at all: the
        run then counts as ended with that reason.
        """

    def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Yields a whole listing first, then each change as it comes, and a whole listing again at the engine's
        interval (process 1 s, Docker 10 s, Kubernetes 30 s) and whenever changes may have been missed.

        A change is one run in its new phase; a run that was removed is yielded as GONE, if nothing more is known of it.
        A change may be missed, come twice or come late: the next listing repairs it.
        Never ends by itself; raises TransientEngineError if the engine stops answering. It is then called again.
        """

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """Returns the last `limit` bytes of an ended run's output, stdout and stderr as the engine kept them.

        Raises RunNotFoundError if nothing is left of it; the outcome is then written without output."""

    async def kill(self, key: Key, run_uid: str) -> None:
        """Ends that run at once, and keeps its outcome and output. Does nothing if it has ended or is gone.

        It is for runs that were released. `decide` never asks for it on an inert run, for which engines differ: a
        process then never starts, a pod is deleted, a container stays as it is and can still be started. To stop an
        inert run, `delete` it. If the engine can note who asked, the run is reported with `ending` afterwards.
        """

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Removes that run (with None, the object and every run of the attempt) and everything it left. Ends it first
        if it is alive, and makes sure that it can never start. Returns when no listing has it any more, except as
        `recorded` (an ended run may be left to the engine to remove); does nothing if it is gone already."""

    async def close(self) -> None:
        """Closes the connection to the engine; runs continue."""
