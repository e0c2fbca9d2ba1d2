"""Waits that ask nobody: each is noted, and ends as the test says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.errors import NotReady


class FakeWaits:
    """Stands for the engine's and the cluster's waits; what `broken` names never gets ready."""

    def __init__(self) -> None:
        self.waited: list[str] = []
        self.broken: set[str] = set()

    async def ready(self, made: Mapping[str, Any]) -> None:
        self.waited.append(str(made["name"]))
        for name in self.broken:
            if name in str(made["name"]):
                raise NotReady(f"{made['name']} is not ready: it ended (exit code 1): no such host")

    healthy = ended_well = ready
