"""Whether the cluster can keep the stack's database as it is configured: its volume, and the files on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from kubernetes.utils.quantity import parse_quantity

from infra.cluster.client import ClusterClient, ForbiddenError, Object
from infra.config import Config
from infra.config.values import postgres_major

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
DEFAULT = "storageclass.kubernetes.io/is-default-class"


def database_faults(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Faults of the volume that is there, or of the one to be created; none for an existing database."""
    if config.database_url is not None:
        return
    name = f"{config.name}-database"
    try:
        claim = cluster.get(f"/api/v1/namespaces/{config.namespace}/persistentvolumeclaims/{name}")
        pods = cluster.get(f"/apis/apps/v1/namespaces/{config.namespace}/statefulsets/{name}")
    except ForbiddenError:
        return  # the missing rights are reported with the others
    if claim is None:
        yield from _class_faults(cluster, config)
        return
    yield from _claim_faults(cluster, config, claim)
    if pods is not None and pods["status"].get("readyReplicas"):
        running = pods["spec"]["template"]["spec"]["containers"][0]["image"]
        yield from major_faults(config, running)


def major_faults(config: Config, running: str) -> Iterator[str]:
    """A fault if another major version is configured than the running image's: it cannot read the files."""
    was, asked = postgres_major(running), postgres_major(config.postgres_image)
    if was is not None and asked is not None and was != asked:
        yield (
            f"{config.project}:postgresImage is {config.postgres_image}, and the database has the files of Postgres"
            f" {was} ({running}), which Postgres {asked} cannot read: keep the major version, and to change it, dump"
            " the rows and restore them in a new stack"
        )


def _claim_faults(cluster: ClusterClient, config: Config, claim: Object) -> Iterator[str]:
    """Faults of a volume that is there: it keeps its class, and never shrinks."""
    spec, volume = claim["spec"], f"the database's volume (claim {claim['metadata']['name']})"
    has = spec.get("storageClassName")
    if config.storage_class is not None and has is not None and config.storage_class != has:
        yield (
            f"{config.project}:storageClass is {config.storage_class}, and {volume} has the class {has}, which cannot"
            f" change: set it to {has}; to move, dump the rows and restore them in a new stack"
        )
    asked, requested = _bytes(config.storage_size), _bytes(spec["resources"]["requests"]["storage"])
    holds = _bytes(claim["status"].get("capacity", {}).get("storage", spec["resources"]["requests"]["storage"]))
    size = f"{config.project}:storageSize is {config.storage_size}, and {volume} has"
    if asked < requested and asked <= holds:
        yield f"{size} {spec['resources']['requests']['storage']}: it cannot shrink, so set that or more"
    elif asked > requested and has is not None and _grows(cluster, has) is False:
        yield (
            f"{size} {spec['resources']['requests']['storage']} of the StorageClass {has}, which does not allow it to"
            " grow (allowVolumeExpansion): set that size, or allow it there"
        )


def _grows(cluster: ClusterClient, name: str) -> bool | None:
    """Whether volumes of that class may grow; None if the class cannot be seen."""
    try:
        found = cluster.get(f"{CLASSES}/{name}")
    except ForbiddenError:
        return None
    return bool(found and found.get("allowVolumeExpansion"))


def _class_faults(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """A fault if there is no class for a new volume: the named one, or the cluster's default."""
    try:
        found = cluster.items(CLASSES)
        names = [one["metadata"]["name"] for one in found]
        if config.storage_class is None:
            there = any(one["metadata"].get("annotations", {}).get(DEFAULT) == "true" for one in found)
        else:
            there = config.storage_class in names
        if there or _waiting(cluster, config.storage_class or ""):
            return
    except ForbiddenError:
        return  # the wait for the claim reports it
    key, are = f"{config.project}:storageClass", f"there are: {', '.join(names) or 'none'}"
    if config.storage_class is None:
        yield f"{cluster.where} has no default StorageClass for the database's volume: set {key} to one; {are}"
    else:
        yield f"{cluster.where} has no StorageClass {config.storage_class}, which {key} names; {are}"


def _waiting(cluster: ClusterClient, name: str) -> Sequence[str]:
    """Volumes created by hand that a claim of that class could take; such a class need not be an object."""
    return [
        one["metadata"]["name"]
        for one in cluster.items("/api/v1/persistentvolumes")
        if one["spec"].get("storageClassName", "") == name and one["status"].get("phase") == "Available"
    ]


def _bytes(quantity: str) -> Decimal:
    return Decimal(parse_quantity(quantity))
