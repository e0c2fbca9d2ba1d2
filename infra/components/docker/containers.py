"""What the containers of a dev stack have in common."""

from __future__ import annotations

from typing import Any

# Said outright, whatever the engine's own default is: it would be a difference at each `up`.
LOGGED: dict[str, Any] = {"log_driver": "json-file", "log_opts": {"max-size": "10m", "max-file": "3"}}


def bounded(mebibytes: int) -> dict[str, Any]:
    """A limit of memory without swap beside it; an engine would add as much again."""
    return {"memory": mebibytes, "memory_swap": mebibytes}
