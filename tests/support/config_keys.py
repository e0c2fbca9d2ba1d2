"""The keys of a stack's configuration."""

from __future__ import annotations

import re

from infra.config import Config

SECRETS = ("databaseUrl", "databasePassword", "registryPassword")


def every_key() -> set[str]:
    """Each as it is written in a stack's file."""
    fields = Config.__dataclass_fields__.keys() - {"project", "stack"}
    return {re.sub(r"_(.)", lambda found: found[1].upper(), field) for field in fields}
