"""How one controller's claims go, and why none of them brings a row."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from controller.reconcile.tracker import Lives

TOLD = 2  # of what sandboxes wait for, the most frequent


class Claims:
    """Notes when claims are asked, answered and refused. Times are monotonic seconds."""

    def __init__(self, lives: Lives, max_running: int) -> None:
        self._lives, self.max_running = lives, max_running
        self._answered = time.monotonic()  # the last one, or the controller's start
        self._asked: float | None = None  # since when one is under way
        self._error = ""  # of the last one, where it failed
        self._full: float | None = None  # since when every place for a launch is taken
        self.brought = -float("inf")  # when the last one that brought a row was answered

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around each claim."""
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

    def full(self) -> None:
        """There is no place for a launch."""
        self._full = self._full or time.monotonic()

    def trouble(self, seconds: float) -> str | None:
        """Why this controller has claimed nothing for that long; None where its claims are answered."""
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
        lives = [live for one in self._lives.launching if (live := self._lives.by_id.get(one)) is not None]
        why = Counter(live.waiting or "the engine has not answered yet" for live in lives)
        return "; ".join(f"{count} of {len(lives)}: {what}" for what, count in why.most_common(TOLD))
