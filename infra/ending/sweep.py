"""What an `up` that was killed left where the stack's namespaces stay: made, and not recorded in its state any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from infra.cluster.client import ClusterClient, ClusterError, Hidden, Object
from infra.cluster.naming import INSTANCE, MANAGED_BY, NAME
from infra.cluster.rights import KEPT, rules
from infra.config import Config
from infra.errors import EndRefused

VOLUMES = "persistentvolumeclaims"


async def sweep(config: Config, context: str) -> None:
    """Removes all that bears the stack's labels; it runs when all that the state knows is gone. Raises EndRefused."""
    await asyncio.to_thread(_sweep, config, context)


def _sweep(config: Config, context: str) -> None:
    cluster = ClusterClient(context)
    labels = {NAME: config.project, INSTANCE: config.stack, MANAGED_BY: "pulumi"}
    for path in sorted(set(_paths(config))):
        try:
            for one in _seen(cluster, path, labels):
                cluster.delete(f"{path}/{one['metadata']['name']}")
        except ClusterError as error:
            raise EndRefused(f"what an interrupted `up` may have left cannot be removed: {error}") from error


def _seen(cluster: ClusterClient, path: str, labels: Mapping[str, str]) -> Sequence[Object]:
    try:
        return cluster.items(path, labels)
    except Hidden:
        return []  # who may not see it has made nothing there


def _paths(config: Config) -> Iterator[str]:
    """Of the kinds that a stack makes in namespaces that it shares with no stack, and does not take along itself."""
    given = set[str | None]() if config.create_namespaces else {config.namespace, config.sandbox_namespace}
    for rule in rules(config):
        if rule.namespace not in given or not set(KEPT) <= set(rule.verbs):
            continue
        for kind in rule.kinds:
            if kind != VOLUMES or not config.protect_database:
                api = f"apis/{rule.group}" if rule.group else "api"
                yield f"/{api}/v1/namespaces/{rule.namespace}/{kind}"
