"""The program: reads the configuration, looks whether the target answers, and makes its stack."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.config import Config
from infra.preflight import preflight


def main() -> None:
    """Makes everything, and exports the outputs. Raises ConfigError or PreflightError before it makes anything."""
    config = Config.read()
    preflight(config)
    for name, value in _stack(config).items():
        pulumi.export(name, value)


def _stack(config: Config) -> dict[str, pulumi.Input[Any]]:
    """Makes the target's stack; each provider is loaded only where it is used."""
    match config.target:
        case "docker":
            from infra.dev import dev

            return dev(config)
        case "kubernetes":
            from infra.prod import prod

            return prod(config)
    raise ValueError(f"no target is called {config.target}")
