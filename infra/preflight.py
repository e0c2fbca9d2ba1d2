"""Whether the stack can come up where it is sent: asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infra.config import Config
from infra.errors import PreflightError
from infra.preflight_cluster import Cluster, find_cluster
from infra.preflight_engine import check_engine


def preflight(config: Config) -> Cluster | None:
    """Asks the Docker engine, where one is needed, and the cluster; which cluster it is. Raises PreflightError.

    Where something of the stack is there already, its faults are left to the gate: they keep nobody from destroying it.
    """
    if config.target == "docker":
        check_engine(config)
        return None
    cluster = find_cluster(config)
    if cluster.faults and cluster.empty:
        raise PreflightError.of(cluster.faults)
    return replace(cluster, faults=(*_engine_faults(config), *cluster.faults))


def _engine_faults(config: Config) -> Sequence[str]:
    """An engine is for building alone: without one the stack can end."""
    try:
        if config.builds:
            check_engine(config)
    except PreflightError as error:
        return [str(error)]
    return []
