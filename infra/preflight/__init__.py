"""The preflight: whether the stack can come up on its target, checked before anything is created."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.config import Config
from infra.errors import PreflightError
from infra.preflight.cluster import Cluster, find_cluster
from infra.preflight.engine import find_engine, login_faults, ping_engine


@dataclass(frozen=True)
class Found:
    """The target: a cluster, or None for the Docker engine.

    `faults` stop every `up`; `taken` (objects of the stack's names that its state does not know) stop the first one.
    Neither stops anything else. `warnings` are reported. `platform` is what images for the engine are built for.
    """

    cluster: Cluster | None = None
    faults: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    platform: str = "linux/amd64"


def preflight(config: Config) -> Found:
    """Asks the cluster, and the Docker engine if one is needed. Raises PreflightError if there is no answer."""
    if config.target == "docker":
        engine = find_engine(config)
        return Found(None, engine.faults, engine.taken, engine.warnings, engine.platform)
    cluster = find_cluster(config)
    return Found(cluster, (*_engine_faults(config), *cluster.faults), cluster.taken, cluster.warnings)


def _engine_faults(config: Config) -> Sequence[str]:
    """Faults of the engine, which only builds: without one the stack can still end."""
    try:
        if config.builds:
            ping_engine()
            return login_faults(config)
    except PreflightError as error:
        return [str(error)]
    return []
