"""A backend that passes every verb on to another, so that a test changes only the verb that it is about."""

from __future__ import annotations

from typing import Any

from controller.backends.base import Backend


class Passing:
    """Has every attribute of the other backend that a subclass does not define."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)
