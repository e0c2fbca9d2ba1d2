"""The program: reads the configuration, looks whether the target answers, and makes its stack."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.config import Config
from infra.preflight import Found, preflight
from infra.preflight.gate import gate, unless_taken
from infra.waiting.cluster import ClusterWaits
from infra.waiting.engine import EngineWaits


def main() -> None:
    """Makes everything, and exports the outputs. Raises ConfigError or PreflightError before it makes anything."""
    config = Config.read()
    found = preflight(config)
    for words in found.warnings:
        pulumi.log.warn(words)
    for name, value in _stack(config, found).items():
        pulumi.export(name, value)


def _stack(config: Config, found: Found) -> dict[str, pulumi.Input[Any]]:
    """Makes the stack, on the cluster or, without one, on the engine; each provider is loaded only where it is used."""
    first = unless_taken(found.taken)
    if found.cluster is None:
        from infra.stacks.docker import dev

        return dev(config, found.platform, gate(config, found.faults), first, EngineWaits())
    from infra.stacks.kubernetes import prod

    return prod(config, found.cluster, gate(config, found.faults), first, ClusterWaits(found.cluster.context))
