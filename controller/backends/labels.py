"""The labels by which every engine's objects are known as ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from controller.protocol.model import Key

LABEL_APP = "ci-fixer-sandbox"


def installation_labels(installation: str) -> dict[str, str]:
    """What every object of that installation bears."""
    return {"app": LABEL_APP, "installation": installation}


def labels(key: Key, installation: str) -> dict[str, str]:
    """What an object of that attempt of that installation bears."""
    own = {"sandboxId": str(key.sandbox_id), "attempt": str(key.attempt)}
    return installation_labels(installation) | own


def selectors(installation: str, key: Key | None = None) -> list[str]:
    """What selects all of that installation's objects, or one attempt's: `name=value` each."""
    wanted = labels(key, installation) if key else installation_labels(installation)
    return [f"{name}={value}" for name, value in wanted.items()]


def docker_filters(installation: str, key: Key | None = None, **more: list[str]) -> str:
    """The `filters` parameter of a Docker engine that selects this installation's objects, or one attempt's."""
    return json.dumps({"label": selectors(installation, key), **more})


def key_of(found: Mapping[str, Any] | None, installation: str) -> Key | None:
    """Whose object this is by its labels, or None where it is none of that installation's."""
    found = found or {}
    try:
        key = Key(UUID(found["sandboxId"]), int(found["attempt"]))
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    return key if labels(key, installation).items() <= found.items() else None
