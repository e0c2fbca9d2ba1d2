"""The cluster that a stack was made on, and no other."""

from __future__ import annotations

import pulumi
import pulumi_kubernetes as k8s

from infra.errors import PreflightError
from infra.preflight.cluster import Cluster


def cluster_provider(cluster: Cluster, stack: str, passed: pulumi.Resource) -> k8s.Provider:
    """Makes objects there. Raises PreflightError, before any is touched, where the stack is another cluster's."""
    after = pulumi.ResourceOptions(depends_on=[passed])
    made_on = pulumi.Stash("cluster-uid", input=cluster.uid, opts=after).output  # the first one, whatever comes later
    uid = made_on.apply(lambda known: _same(str(known), cluster, stack))
    return k8s.Provider(
        "cluster",
        kubeconfig="",  # whatever kubectl takes; None would record the file's path on this machine
        context=cluster.context,
        cluster_identifier=uid,
        # Said outright, all of them, since a shell's variables may say otherwise.
        delete_unreachable=False,
        enable_server_side_apply=True,
        skip_update_unreachable=False,
        upsert_existing_objects=False,  # what somebody else made is not taken over
        enable_patch_force=True,  # takes back what was changed by hand; else each such field is a conflict
        enable_secret_mutable=True,  # a secret keeps its name: earlier revisions of what uses it can still start
        # Whatever an earlier version gave: with another one Pulumi would make everything anew, volumes too.
        opts=pulumi.ResourceOptions(ignore_changes=["clusterIdentifier"]),
    )


def _same(made_on: str, cluster: Cluster, stack: str) -> str:
    """Pulumi would make all anew on the other cluster, and then delete there what bears the old one's names."""
    if made_on == cluster.uid:
        return made_on
    anew = f"pulumi stack rm --force --preserve-config {stack} && pulumi stack init {stack}"
    raise PreflightError(
        f"stack {stack} belongs to the cluster whose kube-system has the uid {made_on}, and the context"
        f" {cluster.context} is another ({cluster.uid}): set kubeContext to one of that cluster."
        f" To move the stack, destroy it there first; if that cluster is gone: {anew}"
    )
