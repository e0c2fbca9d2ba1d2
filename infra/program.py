"""The program: reads the configuration, looks whether the target answers, and makes its stack."""

from __future__ import annotations

from typing import Any

import pulumi

from infra.config import Config
from infra.gate import gate
from infra.preflight import preflight
from infra.preflight_cluster import Cluster
from infra.waiting_cluster import ClusterWaits
from infra.waiting_engine import EngineWaits


def main() -> None:
    """Makes everything, and exports the outputs. Raises ConfigError or PreflightError before it makes anything."""
    config = Config.read()
    found = preflight(config)
    passed = gate(config, found.faults)
    for name, value in _stack(config, found.cluster, passed).items():
        pulumi.export(name, value)


def _stack(config: Config, cluster: Cluster | None, passed: pulumi.Resource) -> dict[str, pulumi.Input[Any]]:
    """Makes the stack, on the cluster or, without one, on the engine; each provider is loaded only where it is used."""
    if cluster is None:
        from infra.dev import dev

        return dev(config, passed, EngineWaits())
    from infra.prod import prod

    return prod(config, cluster, passed, ClusterWaits(cluster.context))
