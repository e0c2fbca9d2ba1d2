"""Whether the stack can come up where it is sent: asked before anything is made."""

from __future__ import annotations

from infra.config import Config
from infra.preflight_cluster import Cluster, find_cluster
from infra.preflight_engine import check_engine


def preflight(config: Config) -> Cluster | None:
    """Asks the Docker engine, where one is needed, and the cluster; which cluster it is. Raises PreflightError."""
    if config.target == "docker" or config.builds:
        check_engine(config)
    return find_cluster(config) if config.target == "kubernetes" else None
