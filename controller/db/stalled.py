"""What stands in the way of claims, as the table tells it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Aside:
    """Why rows are set aside that claims pass over; the columns of the statement `aside`."""

    why: str
    n: int
    claimed: bool  # any row was, lately


@dataclass(frozen=True, slots=True)
class Overdue:
    """A row that should have been claimed by now; the columns of the statement `overdue`."""

    id: UUID
    seconds: float  # since its insert
    blockers: str | None  # processes of the database that this controller's statements wait for
