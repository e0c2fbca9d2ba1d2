"""The program: reads the configuration, checks that the target can take the stack, and creates it."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.config import Config
from infra.preflight import Found, preflight
from infra.preflight.gate import gate, unless_taken
from infra.waiting.cluster import ClusterWaits
from infra.waiting.engine import EngineWaits


def main() -> None:
    """Creates everything, and exports the outputs. Raises ConfigError or PreflightError before it creates anything."""
    config = Config.read()
    found = preflight(config)
    for words in found.warnings:
        pulumi.log.warn(words)
    for name, value in _stack(config, found).items():
        pulumi.export(name, value)


def _stack(config: Config, found: Found) -> dict[str, pulumi.Input[Any]]:
    """Creates the stack on the cluster or, without one, on the engine; only the provider that is used is loaded."""
    first, passed = unless_taken(found.taken), gate(config, found.faults)
    if found.cluster is None:
        from infra.stacks.docker import docker_stack

        return docker_stack(config, found.platform, passed, first, EngineWaits())
    from infra.stacks.kubernetes import kubernetes_stack

    return kubernetes_stack(config, found.cluster, passed, first, ClusterWaits(found.cluster.context))
