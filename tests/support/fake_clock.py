"""A clock for code that schedules calls: time passes when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Scheduled:
    """A call that is due at a time of the fake clock."""

    at: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """It is not made any more."""
        self.cancelled = True


@dataclass
class FakeClock:
    """Time passes when the test says so."""

    now: float = 0.0
    scheduled: list[Scheduled] = field(default_factory=list)

    def schedule(self, seconds: float, call: Callable[[], None]) -> Any:
        """Has a call made in so many seconds, as `call_later` of a loop."""
        self.scheduled.append(Scheduled(self.now + seconds, call))
        return self.scheduled[-1]

    def passes(self, seconds: float) -> None:
        """Lets so many seconds pass, and makes the calls that are due then."""
        self.now += seconds
        due = [each for each in self.scheduled if each.at <= self.now]
        self.scheduled = [each for each in self.scheduled if each.at > self.now]
        for each in due:
            if not each.cancelled:
                each.call()
