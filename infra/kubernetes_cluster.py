"""The cluster that a stack was made on, and no other."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from infra.errors import PreflightError
from infra.preflight_cluster import Cluster


def cluster_provider(cluster: Cluster, stack: str) -> k8s.Provider:
    """Makes objects there. Raises PreflightError, before any is touched, where the stack is another cluster's."""
    made_on = pulumi.Stash("cluster-uid", input=cluster.uid).output  # the first one, whatever comes later
    uid = made_on.apply(lambda known: _same(str(known), cluster, stack))
    # An empty kubeconfig is whatever kubectl takes; without it the file's path on this machine would be recorded.
    return k8s.Provider("cluster", kubeconfig="", context=cluster.context, cluster_identifier=uid)


def _same(made_on: str, cluster: Cluster, stack: str) -> str:
    """Pulumi would make all anew on the other cluster, and then delete there what bears the old one's names."""
    if made_on == cluster.uid:
        return made_on
    gone = f"pulumi stack rm --force --preserve-config {stack}, then pulumi stack init {stack}"
    raise PreflightError(
        f"stack {stack} was made on another cluster (its kube-system has the uid {made_on}) than that of the context"
        f" {cluster.context} ({cluster.uid}): set kubeContext to one of that cluster; if it is gone for good: {gone}"
    )
