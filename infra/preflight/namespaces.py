"""Whether the stack's namespaces can be used, or created."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from infra.cluster.client import ClusterClient, ForbiddenError, Object
from infra.cluster.naming import CONTROLLER, INSTANCE, NAME, Naming
from infra.config import Config


def given_namespaces(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Faults of the namespaces that exist according to the configuration."""
    own = () if config.create_namespaces else (config.namespace, config.sandbox_namespace)
    for name in (*own, *config.requester_namespaces):
        try:
            found = cluster.get(f"/api/v1/namespaces/{name}")
        except ForbiddenError:
            continue  # the missing right is reported with the others
        if found is None:
            yield f"{cluster.where} has no namespace {name}: create it first"
        elif _ends(found):
            yield ending(found)
        elif name in own and _ours(config, found):
            key = f"{config.project}:createNamespaces"
            words = "createNamespaces false would delete it with everything in it"
            yield f"Namespace {name} was created by this stack; {words}. Set {key} to true."


def made_namespaces(cluster: ClusterClient, config: Config) -> tuple[Sequence[str], Mapping[str, str]]:
    """Faults of the namespaces that the stack creates; and, for each that has its labels, the error if its state does
    not know it.
    """
    faults: list[str] = []
    left: dict[str, str] = {}
    if not config.create_namespaces:
        return faults, left
    for key, name in (("namespace", config.namespace), ("sandboxNamespace", config.sandbox_namespace)):
        try:
            found = cluster.get(f"/api/v1/namespaces/{name}")
        except ForbiddenError:
            continue
        if found is None:
            continue
        if _ends(found):
            faults.append(ending(found))
        elif _ours(config, found):
            left[name] = (
                f"namespace {name} exists with this stack's labels, and the stack's state does not know it"
                " (another state has it, see pulumi whoami -v; or an `up` was killed, or a state was lost):"
                f" {_way_on(cluster, name)}"
            )
        else:
            faults.append(
                f"namespace {name} exists, and is not this stack's: name another by {config.project}:{key},"
                f" or set {config.project}:createNamespaces to false to use it as it is"
            )
    return faults, left


def taken_namespaces(cluster: ClusterClient, config: Config) -> Iterator[str]:
    """Faults of a new stack in given namespaces: a stack of its own name, or a neighbour's sandboxes, which would end
    with the first of the two."""
    if config.create_namespaces:
        return
    try:
        account = cluster.get(f"/api/v1/namespaces/{config.namespace}/serviceaccounts/{config.name}")
        roles = cluster.items(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{config.sandbox_namespace}/roles")
    except ForbiddenError:
        return  # the missing rights are reported with the others
    if account is not None:
        yield (
            f"namespace {config.namespace} has a stack {config.stack} already, and this stack's state does not know it:"
            " another state (pulumi whoami -v) has it, or the state was lost. Bring that state back, or give this"
            " stack another name (pulumi stack init NAME; `pulumi stack rm --force` forgets this one); if nobody needs"
            f" it: {_removal(config)}"
        )
    labels = [role["metadata"].get("labels", {}) for role in roles]
    stacks = {one[INSTANCE] for one in labels if one.get(NAME) == config.project and INSTANCE in one}
    if others := sorted(stacks - {config.stack}):
        yield (
            f"namespace {config.sandbox_namespace} has the sandboxes of stack {others[0]}: give each stack a"
            f" {config.project}:sandboxNamespace of its own"
        )


def _removal(config: Config) -> str:
    kinds = "all,secret,serviceaccount,role,rolebinding,networkpolicy,poddisruptionbudget"
    return f"kubectl -n {config.namespace} delete {kinds} -l {NAME}={config.project},{INSTANCE}={config.stack}"


def _way_on(cluster: ClusterClient, name: str) -> str:
    try:
        claims = cluster.items(f"/api/v1/namespaces/{name}/persistentvolumeclaims")
    except ForbiddenError:
        return f"if nobody's sandboxes and no volume are in it, kubectl delete namespace {name}, and `up` again"
    if held := ", ".join(one["metadata"]["name"] for one in claims):
        return f"it holds a volume ({held}), so keep it, and bring the state back (pulumi stack import)"
    return f"it holds no volume; if no other state has it, kubectl delete namespace {name}, and `up` again"


def ending(namespace: Object) -> str:
    """The fault of a namespace that is being deleted, with what holds it."""
    why = [
        one["message"]
        for one in namespace["status"].get("conditions", ())
        if one["status"] == "True" and one["type"].endswith(("Remaining", "Failure"))
    ]
    held = f", held by: {' '.join(why)}" if why else ""
    return f"namespace {namespace['metadata']['name']} is being deleted{held}; wait until it is gone, or name another"


def _ends(namespace: Object) -> bool:
    return "deletionTimestamp" in namespace["metadata"]


def _ours(config: Config, namespace: Object) -> bool:
    made = Naming(config.project, config.stack).labels(CONTROLLER)
    return bool(made.items() <= namespace["metadata"].get("labels", {}).items())
