"""Removes what a killed `up` created and did not record, in namespaces that outlive the stack."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from infra.cluster.client import ClusterClient, ClusterError, ForbiddenError, Object
from infra.cluster.naming import INSTANCE, MANAGED_BY, NAME
from infra.cluster.rights import KEPT, rules
from infra.config import Config
from infra.errors import EndRefusedError

VOLUMES = "persistentvolumeclaims"


async def sweep(config: Config, context: str) -> None:
    """Deletes every object with the stack's labels, when all that the state knows is gone. Raises EndRefusedError."""
    await asyncio.to_thread(_sweep, config, context)


def _sweep(config: Config, context: str) -> None:
    cluster = ClusterClient(context)
    labels = {NAME: config.project, INSTANCE: config.stack, MANAGED_BY: "pulumi"}
    for path in sorted(set(_paths(config))):
        try:
            for one in _seen(cluster, path, labels):
                cluster.delete(f"{path}/{one['metadata']['name']}")
        except ClusterError as error:
            raise EndRefusedError(f"what an interrupted `up` may have left cannot be removed: {error}") from error


def _seen(cluster: ClusterClient, path: str, labels: Mapping[str, str]) -> Sequence[Object]:
    try:
        return cluster.items(path, labels)
    except ForbiddenError:
        return []  # a user who may not see them has created none


def _paths(config: Config) -> Iterator[str]:
    """The paths of the kinds that a stack creates in namespaces that are given, and so are not deleted with it."""
    given = set[str | None]() if config.create_namespaces else {config.namespace, config.sandbox_namespace}
    for rule in rules(config):
        if rule.namespace not in given or not set(KEPT) <= set(rule.verbs):
            continue
        for kind in rule.kinds:
            if kind != VOLUMES or not config.protect_database:
                api = f"apis/{rule.group}" if rule.group else "api"
                yield f"/{api}/v1/namespaces/{rule.namespace}/{kind}"
