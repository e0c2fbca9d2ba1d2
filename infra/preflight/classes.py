"""Whether the cluster has the classes, secrets and nodes that the configuration names for pods."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from infra.cluster.client import ClusterClient, ForbiddenError
from infra.config import ANYWHERE, Config

CLASSES = {
    "runtimeClassName": ("RuntimeClass", "/apis/node.k8s.io/v1/runtimeclasses"),
    "priorityClassName": ("PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses"),
}
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"  # behind the API server's Service
OF_API_SERVER = {"kubernetes.io/service-name": "kubernetes"}


def class_faults(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Classes that jobOptions names and that are not there. One that the user may not look up is left out."""
    for option, (kind, path) in CLASSES.items():
        name = config.job_options.get(option)
        if not name:
            continue
        try:
            if cluster.get(f"{path}/{name}") is None:
                names = ", ".join(one["metadata"]["name"] for one in cluster.items(path)) or "none"
                key = f"{config.project}:jobOptions"
                yield f"{cluster.where} has no {kind} {name}, which {option} of {key} names; there are: {names}"
        except ForbiddenError:
            continue


def secret_faults(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Secrets to pull images with that are not in the namespace of the pods."""
    asked = [
        (namespace, config.image_pull_secret, "imagePullSecret")
        for namespace in (config.namespace, config.sandbox_namespace)
    ]
    asked += [
        (config.sandbox_namespace, name, "imagePullSecrets of jobOptions")
        for name in config.job_options.get("imagePullSecrets", ())
    ]
    for namespace, name, key in asked:
        if name is None:
            continue
        try:
            if cluster.get(f"/api/v1/namespaces/{namespace}/secrets/{name}") is None:
                words = f"{cluster.where} has no secret {name} in namespace {namespace}, which {key} names"
                yield f"{words}: create it first (docs/stacks.md, A registry with a login)"
        except ForbiddenError:
            continue  # the missing right is reported with the others


def node_warnings(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Only warnings: a cluster may add nodes when pods wait for them."""
    labels = config.job_options.get("nodeSelector") or {}
    try:
        if labels and not cluster.items("/api/v1/nodes", labels):
            words = ", ".join(f"{key}={value}" for key, value in labels.items())
            yield f"no node has the labels {words} of jobOptions' nodeSelector: sandboxes wait until one has"
    except ForbiddenError:
        return


def api_server_faults(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Faults of apiServerCidrs: a controller that is cut off from the API server never becomes ready."""
    if not config.api_server_cidrs or config.api_server_cidrs == ANYWHERE:
        return
    try:
        slices = cluster.items(SLICES, OF_API_SERVER)
        service = cluster.get("/api/v1/namespaces/default/services/kubernetes")
    except ForbiddenError:
        return
    ends = [address for one in slices for end in one.get("endpoints") or () for address in end["addresses"]]
    inside = [*ends, *(service["spec"].get("clusterIPs", ()) if service else ())]  # plugins differ in which they see
    ranges = [ip_network(one) for one in config.api_server_cidrs]
    if ends and not any(ip_address(one) in span for one in inside for span in ranges):
        key = f"{config.project}:apiServerCidrs"
        yield f"{key} holds no address of the API server ({', '.join(ends)}), and the controller would not reach it"
