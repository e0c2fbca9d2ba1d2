"""The keys of a stack's configuration."""

from __future__ import annotations

from infra.config import KEYS
from infra.config.keys import written

EVERY_KEY = {key.name for key in KEYS.values()}  # each as it is written in a stack's file
SECRETS = tuple(key.name for key in KEYS.values() if key.secret)


def schema_defaults() -> dict[str, str]:
    """What Pulumi.yaml gives a stack that says nothing, as the engine hands it to the program."""
    return {key.name: written(key.default) for key in KEYS.values() if key.default is not None}
