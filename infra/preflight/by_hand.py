"""Changes by hand in the stack's namespaces: `up` reports them, before it undoes any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.cluster.client import ClusterClient, ForbiddenError, Object
from infra.cluster.naming import DESTROY_MANAGER, INSTANCE, MANAGED_BY, NAME
from infra.config import Config

# Prefixes of the field managers of the provider and the cluster.
PROGRAMS = ("pulumi-kubernetes", "kube-", "cloud-controller")
# Their lists are one value each: Pulumi sees no difference if something is added to one, not even after a refresh.
WATCHED = (
    ("networkpolicy", "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"),
    ("role", "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"),
    ("resourcequota", "/api/v1/namespaces/{}/resourcequotas"),
)
DEPLOYMENT = "/apis/apps/v1/namespaces/{}/deployments/{}"
AUTOSCALERS = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"


def autoscaler(cluster: ClusterClient, config: Config) -> str | None:
    """The name of the HorizontalPodAutoscaler that decides how many controllers run, if there is one."""
    wanted = {"kind": "Deployment", "name": config.name}
    try:
        for one in cluster.items(AUTOSCALERS.format(config.namespace)):
            if wanted.items() <= one["spec"]["scaleTargetRef"].items():
                return str(one["metadata"]["name"])
    except ForbiddenError:
        pass  # no right that a stack needs
    return None


def changed_by_hand(cluster: ClusterClient, config: Config, scaler: str | None) -> Iterator[str]:
    """A line for each object that was changed by hand."""
    yield from _scaled(cluster, config, scaler)
    labels = {NAME: config.project, INSTANCE: config.stack}
    for namespace in (config.namespace, config.sandbox_namespace):
        for kind, path in WATCHED:
            try:
                found = cluster.items(path.format(namespace), labels)
            except ForbiddenError:
                continue
            for one in found:
                yield from _told(config, kind, one)


def _told(config: Config, kind: str, one: Object) -> Iterator[str]:
    managers = _others(one, ("f:spec",), ("f:rules",))
    if managers:
        name, namespace = one["metadata"]["name"], one["metadata"]["namespace"]
        marked = f"kubectl -n {namespace} label {kind} {name} {MANAGED_BY}-"
        again = f"pulumi up --stack {config.stack} --refresh --run-program"
        yield (
            f"{kind} {name} in namespace {namespace} was changed by hand ({', '.join(managers)}); to restore"
            f" it: {marked} && {again}"
        )


def _scaled(cluster: ClusterClient, config: Config, scaler: str | None) -> Iterator[str]:
    """A line if the number of controllers is not the configured one."""
    if scaler is not None:
        words = f"{config.project}:replicas has no effect while it is there"
        yield f"HorizontalPodAutoscaler {scaler} decides how many controllers run: {words}"
    try:
        found = cluster.get(DEPLOYMENT.format(config.namespace, config.name))
    except ForbiddenError:
        return
    replicas = found["spec"].get("replicas") if found else None
    managers = _others(found, ("f:spec", "f:replicas")) if found else []
    if replicas == 0 and scaler is not None:  # which leaves it so
        scale = f"kubectl -n {config.namespace} scale deployment {config.name} --replicas 1"
        yield f"no controller runs, and HorizontalPodAutoscaler {scaler} starts none: {scale}"
    elif replicas == 0 and DESTROY_MANAGER in managers:
        again = f"pulumi up --stack {config.stack} --refresh --run-program"
        yield f"no controller runs, since a `destroy` was interrupted; to start them again: {again}"
    elif scaler is None and managers and replicas != config.replicas:
        keep = f"pulumi config set --stack {config.stack} replicas {replicas}"
        yield (
            f"Deployment {config.name} was scaled to {replicas} by hand ({', '.join(managers)}); it has"
            f" {config.replicas} again once `up` changes it; to keep {replicas}: {keep}"
        )


def _others(one: Object, *paths: tuple[str, ...]) -> list[str]:
    """The managers of fields at one of these paths, without the provider and the cluster."""
    entries = [entry for entry in one["metadata"].get("managedFields", ()) if entry.get("subresource") != "status"]
    held = {entry["manager"] for entry in entries for path in paths if _at(entry.get("fieldsV1"), path) is not None}
    return sorted(manager for manager in held if not manager.startswith(PROGRAMS))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
