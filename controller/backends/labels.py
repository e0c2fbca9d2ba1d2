"""The labels that identify this project's objects on every engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from controller.protocol.model import Key

LABEL_APP = "ci-fixer-sandbox"


def installation_labels(installation: str) -> dict[str, str]:
    """The labels of every object of that installation."""
    return {"app": LABEL_APP, "installation": installation}


def labels(key: Key, installation: str) -> dict[str, str]:
    """The labels of an object of that attempt."""
    own = {"sandboxId": str(key.sandbox_id), "attempt": str(key.attempt)}
    return installation_labels(installation) | own


def selectors(installation: str, key: Key | None = None) -> list[str]:
    """Label selectors, each `name=value`, for all of that installation's objects or for one attempt's."""
    wanted = labels(key, installation) if key else installation_labels(installation)
    return [f"{name}={value}" for name, value in wanted.items()]


def docker_filters(installation: str, key: Key | None = None, **more: list[str]) -> str:
    """The same as the `filters` parameter of a Docker engine, with `more` filters."""
    return json.dumps({"label": selectors(installation, key), **more})


def key_of(found: Mapping[str, Any] | None, installation: str) -> Key | None:
    """The attempt that an object with these labels belongs to, or None if it is not of that installation."""
    found = found or {}
    try:
        key = Key(UUID(found["sandboxId"]), int(found["attempt"]))
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return key if labels(key, installation).items() <= found.items() else None
