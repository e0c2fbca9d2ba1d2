"""The project's errors: what happened, to which thing, what to do. A class's docstring is its message."""

from __future__ import annotations

import asyncio

from controller.protocol.model import Outcome, Reason, State


class SandboxError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class SettingsError(SandboxError):
    """A setting is missing or wrong."""


class SchemaError(SandboxError):
    """The database's schema does not fit this version of the controller."""


class DatabaseUnavailableError(SandboxError):
    """The database does not answer, or takes no writes now: wait, then try again."""


class DatabaseReadOnlyError(DatabaseUnavailableError):
    """The database is read-only."""


class DatabaseExchangedError(SandboxError):
    """DATABASE_URL now leads to the database of another installation: this controller has to end."""


class WriteRejectedError(SandboxError):
    """The database refuses this very statement until a right, a rule or the data changes.

    `data`: it is a value that the database cannot hold, so the same write without that value may pass.
    """

    def __init__(self, message: str | None = None, *, data: bool = False) -> None:
        super().__init__(message)
        self.data = data


class BackendUnavailableError(SandboxError):
    """The engine does not answer, or cannot run sandboxes."""


class BackendClosedError(BackendUnavailableError):
    """The backend is not open: open() comes before every other verb, and none after close()."""


class EngineError(SandboxError):
    """The engine did not do what it was asked."""


class TransientEngineError(EngineError):
    """The engine has no room, no time or gave no answer: look, then try again."""


class ImagePullingError(TransientEngineError):
    """The engine has not got the image yet, and nothing was made of the attempt."""

    def __init__(self, message: str, over: asyncio.Future[None] | None = None) -> None:
        super().__init__(message)
        self.over = over  # done when the pull that it waits for has ended; None where no pull is under way


class RunNotFoundError(SandboxError):
    """The engine has no such run."""


class RequestRejectedError(SandboxError):
    """The engine refuses this request for good; its words are the message."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.outcome = Outcome(State.FAILED, reason, message)
