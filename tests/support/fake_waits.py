"""Waits that ask nobody: each is noted, and ends as the test says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.errors import NotReadyError


class FakeWaits:
    """Stands for the engine's and the cluster's waits; what has a name of the form `broken` never gets ready."""

    def __init__(self) -> None:
        self.waited: list[str] = []
        self.broken: str | None = None

    async def ready(self, made: Mapping[str, Any]) -> None:
        """Notes it. Raises NotReadyError."""
        self.waited.append(made["name"])
        if self.broken is not None and re.search(self.broken, made["name"]):
            raise NotReadyError(f"{made['name']} is not ready: it ended (exit code 1): no such host")

    healthy = ended_well = ready
