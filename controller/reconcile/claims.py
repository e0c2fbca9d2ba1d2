"""Whether one controller's claims are answered, and if none brings a row, why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from controller.reconcile.tracker import Tracker

MOST_NAMED = 2  # of the causes that sandboxes wait for


class Claims:
    """Keeps when claims were sent, answered and rejected. Times are monotonic seconds."""

    def __init__(self, tracker: Tracker, max_running: int) -> None:
        self._tracker, self.max_running = tracker, max_running
        self._answered = time.monotonic()  # when the last claim was answered, or the controller started
        self._asked: float | None = None  # since when a claim is under way
        self._error = ""  # of the last claim, if it failed
        self._full: float | None = None  # since when every launch slot is taken
        self.brought = -float("inf")  # when the last claim that brought rows was answered

    @contextmanager
    def sent(self) -> Iterator[None]:
        """Keep, around a claim, when it was sent and how it was answered."""
        self._asked, self._full = time.monotonic(), None
        try:
            yield
        except Exception as error:
            self._error = str(error) or type(error).__name__
            raise
        else:
            self._answered, self._error = time.monotonic(), ""
        finally:
            self._asked = None

    def brought_rows(self) -> None:
        """Note that a claim brought rows."""
        self.brought = time.monotonic()

    def full(self) -> None:
        """Note that every launch slot is taken."""
        self._full = self._full or time.monotonic()

    def trouble(self, seconds: float) -> str | None:
        """Return why this controller has claimed nothing for so many seconds; None if its claims are answered."""
        now = time.monotonic()
        if self._full is not None and now - self._full > seconds:
            return f"all places for launches have been taken for {now - self._full:.0f} s: {self._takers()}"
        silent = now - self._answered
        if self._full is not None or silent <= seconds:
            return None
        failed = f"; the one before it failed: {self._error}" if self._error else ""
        if self._asked is not None and (now - self._asked > 1 or not self._error):
            return f"a claim has waited for the database for {now - self._asked:.0f} s{failed}"
        if self._error:
            return f"claims have failed for {silent:.0f} s: {self._error}"
        return f"no claim has been sent for {silent:.0f} s: another statement of this controller holds it up"

    def _takers(self) -> str:
        launching = self._tracker.launching()
        why = Counter(tracked.waiting or "the engine has not answered yet" for tracked in launching)
        return "; ".join(f"{count} of {len(launching)}: {what}" for what, count in why.most_common(MOST_NAMED))
