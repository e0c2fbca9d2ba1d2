"""The controller's metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controller.protocol.model import Outcome

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One controller's metrics, on a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.claimed = Counter("sandbox_claimed", "rows claimed or taken over", ["how"], registry=registry)
        self.outcomes = Counter("sandbox_outcomes", "attempts recorded", ["state", "reason"], registry=registry)
        self.errors = Counter("sandbox_errors", "unexpected errors of the controller", registry=registry)
        self.swept = Counter("sandbox_swept", "objects deleted that no row uses", registry=registry)
        self.queued_for = Histogram("sandbox_queued_seconds", "insert to claim", buckets=SECONDS, registry=registry)
        self.rows = Gauge("sandbox_rows", "rows of a state (queued: up to 10,000)", ["state"], registry=registry)
        self.in_hand = Gauge("sandbox_in_hand", "sandboxes that this controller tracks", registry=registry)
        self.engine_up = Gauge("sandbox_engine_up", "1 while the engine answers", registry=registry)

    def ended(self, outcome: Outcome) -> None:
        """Count an attempt's outcome."""
        self.outcomes.labels(outcome.state, outcome.reason).inc()
