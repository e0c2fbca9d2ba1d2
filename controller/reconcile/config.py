"""Limits and intervals of one controller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Controller limits and intervals. The first fields follow from the settings and the kind of engine; the others
    have the values that production runs with. Times are seconds."""

    max_running: int  # launching or running at once, over all controllers of the database
    max_launching: int  # rows claimed and not yet released: each has its start deadline running
    engine_calls: int  # calls that the engine takes at once
    output_bytes: int  # kept of each attempt's output
    start_deadline: float
    lease: float
    poll: float  # between looks at the table without a notification
    resync: float = 5.0  # between comparisons of the engine's open rows with its newest listing
    missing_grace: float = 10.0  # for which a run must be missing before it counts as lost
    engine_grace: float = 20.0  # for which an engine, or a registration, must be without a controller
    mark_patience: float = 15.0  # at the start, for the mark of an earlier controller to come back
    backoff: tuple[float, float] = (0.2, 10.0)  # after the first failure of an action, and at most
    output_patience: float = 3.5  # output that cannot be read by then does not hold up the outcome
    output_pause: float = 2.0  # between tries to read it: an engine's agent that restarts is back by then
    stop: float = 15.0  # at the end, for the actions under way
