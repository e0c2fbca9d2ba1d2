"""Intervals of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """Intervals of the HTTP server, in seconds; the defaults are those of production."""

    stalled_loop: float = 15.0  # an event loop that has not turned for this long is not healthy
    unclaimed: float = 15.0  # that a row may wait for its claim while none is claimed at all
    ready: float = 5.0  # for database and engine to answer
    kept: float = 1.0  # that a readiness answer is given again: one check at a time, however many ask
    count: float = 3.0  # for the database to count rows: a scrape must not wait longer for it
    request: float = 5.0  # from a connection's start to the end of its request's headers
    answer: float = 10.0  # from there to the end of its answer
