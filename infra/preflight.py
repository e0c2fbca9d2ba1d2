"""Whether the stack can come up where it is sent: asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.config import Config
from infra.errors import PreflightError
from infra.preflight_cluster import Cluster, find_cluster
from infra.preflight_engine import find_engine


@dataclass(frozen=True)
class Found:
    """What the stack is sent to: a cluster, or None for the Docker engine. `faults` stop an `up`, and nothing else."""

    cluster: Cluster | None = None
    faults: tuple[str, ...] = ()


def preflight(config: Config) -> Found:
    """Asks the Docker engine, where one is needed, and the cluster. Raises PreflightError.

    Where something of the stack is there already, its faults are left to the gate: they keep nobody from destroying it.
    """
    if config.target == "docker":
        engine = find_engine(config)
        if engine.faults and engine.empty:
            raise PreflightError.of(engine.faults)
        return Found(faults=engine.faults)
    cluster = find_cluster(config)
    if cluster.faults and cluster.empty:
        raise PreflightError.of(cluster.faults)
    return Found(cluster, (*_engine_faults(config), *cluster.faults))


def _engine_faults(config: Config) -> Sequence[str]:
    """An engine is for building alone: without one the stack can end."""
    try:
        if config.builds:
            find_engine(config)
    except PreflightError as error:
        return [str(error)]
    return []
