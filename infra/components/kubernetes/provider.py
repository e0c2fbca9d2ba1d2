"""The provider of the cluster that a stack was created on, and of no other."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from infra.errors import PreflightError
from infra.preflight.cluster import Cluster


def cluster_provider(cluster: Cluster, stack: str, passed: pulumi.Resource) -> k8s.Provider:
    """The provider. Raises PreflightError, before any object is touched, if the stack is of another cluster."""
    after = pulumi.ResourceOptions(depends_on=[passed])
    created_on = pulumi.Stash("cluster-uid", input=cluster.uid, opts=after).output  # keeps its first value
    uid = created_on.apply(lambda known: _same(str(known), cluster, stack))
    return k8s.Provider(
        "cluster",
        kubeconfig="",  # whatever kubectl takes; None would record the file's path on this machine
        context=cluster.context,
        cluster_identifier=uid,
        # All of them explicit, since environment variables may say otherwise.
        delete_unreachable=False,
        enable_server_side_apply=True,
        skip_update_unreachable=False,
        upsert_existing_objects=False,  # an object that somebody else created is not taken over
        enable_patch_force=True,  # undoes changes by hand; else each such field is a conflict
        enable_secret_mutable=True,  # a secret keeps its name: earlier revisions of what uses it can still start
        # Keeps the value of an earlier version: with another one Pulumi would replace everything, volumes too.
        opts=pulumi.ResourceOptions(ignore_changes=["clusterIdentifier"]),
    )


def _same(created_on: str, cluster: Cluster, stack: str) -> str:
    """On another cluster Pulumi would create everything again, and then delete there the objects of the old names."""
    if created_on == cluster.uid:
        return created_on
    again = f"pulumi stack rm --force --preserve-config {stack} && pulumi stack init {stack}"
    raise PreflightError(
        f"stack {stack} belongs to the cluster whose kube-system has the uid {created_on}, and the context"
        f" {cluster.context} is another ({cluster.uid}): set kubeContext to one of that cluster."
        f" To move the stack, destroy it there first; if that cluster is gone: {again}"
    )
