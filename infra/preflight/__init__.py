"""Whether the stack can come up where it is sent: asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.config import Config
from infra.errors import PreflightError
from infra.preflight.cluster import Cluster, find_cluster
from infra.preflight.engine import find_engine, login_faults, ping_engine


@dataclass(frozen=True)
class Found:
    """What the stack is sent to: a cluster, or None for the Docker engine.

    `faults` stop an `up`, `taken` (what a new stack would make, and somebody has) the first one; neither anything else.
    `warnings` are said. `platform`: what is built to run on the engine.
    """

    cluster: Cluster | None = None
    faults: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    platform: str = "linux/amd64"


def preflight(config: Config) -> Found:
    """Asks the Docker engine, where one is needed, and the cluster. Raises PreflightError where there is no answer."""
    if config.target == "docker":
        engine = find_engine(config)
        return Found(None, engine.faults, engine.taken, engine.warnings, engine.platform)
    cluster = find_cluster(config)
    return Found(cluster, (*_engine_faults(config), *cluster.faults), cluster.taken, cluster.warnings)


def _engine_faults(config: Config) -> Sequence[str]:
    """An engine is for building alone: without one the stack can end."""
    try:
        if config.builds:
            ping_engine()
            return login_faults(config)
    except PreflightError as error:
        return [str(error)]
    return []
