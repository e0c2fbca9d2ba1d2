"""Options that all containers of a stack share."""

from __future__ import annotations

from typing import Any

# Explicit, for the engine's own default would be a difference at each `up`.
LOGGED: dict[str, Any] = {"log_driver": "json-file", "log_opts": {"max-size": "10m", "max-file": "3"}}


def bounded(mebibytes: int) -> dict[str, Any]:
    """A limit of memory without swap; by default an engine adds as much swap again."""
    return {"memory": mebibytes, "memory_swap": mebibytes}
