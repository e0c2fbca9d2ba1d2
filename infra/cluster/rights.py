"""The rights that the context's user needs, so that a stack comes up, changes and goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from infra.config import Config

KEPT = ("get", "list", "watch", "create", "patch", "delete")  # the provider's verbs on an object of the stack
SEEN = ("get", "list", "watch")  # the provider's verbs on the pods behind an object
LIMITS = ("limitranges", "resourcequotas")
RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Rule:
    """Verbs on kinds of one API group, in a namespace or, without one, in the cluster; with `names`, on these alone."""

    namespace: str | None
    group: str
    kinds: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Right:
    """One verb on one kind of object: the subject of one access review."""

    namespace: str | None
    group: str
    kind: str
    verb: str
    name: str = ""


def controller_rules() -> list[Any]:
    """The rules of the Role that the controller ships, as they are written."""
    rules: list[Any] = yaml.safe_load((files("controller.backends.kubernetes") / "role.yaml").read_text())["rules"]
    return rules


def rules(config: Config) -> Sequence[Rule]:
    """The rights that this stack needs, and no other. docs/stacks.md has them as Roles."""
    app, boxes = config.namespace, config.sandbox_namespace
    own = config.database_url is None
    given = (
        list(config.requester_namespaces) if config.create_namespaces else [app, boxes, *config.requester_namespaces]
    )
    found: list[Rule] = [
        Rule(None, "", ("namespaces",), ("get",), ("kube-system",)),
        # In the namespace, as the API server does it: a Role there can grant it.
        *(Rule(one, "", ("namespaces",), ("get",), (one,)) for one in given),
        Rule(app, "", ("secrets", "serviceaccounts", "services"), KEPT),
        Rule(app, "", ("endpoints", "pods"), SEEN),
        Rule(app, "apps", ("deployments",), KEPT),
        Rule(app, "apps", ("replicasets",), SEEN),
        Rule(app, "batch", ("jobs",), KEPT),
        Rule(app, "networking.k8s.io", ("networkpolicies",), KEPT),
        Rule(app, "policy", ("poddisruptionbudgets",), KEPT),
        # A Deployment's wait looks at claims, whether a pod mounts one or not.
        Rule(app, "", ("persistentvolumeclaims",), KEPT if own else SEEN),
        *([Rule(app, "apps", ("statefulsets",), KEPT)] if own else []),
        # To report why a wait takes long, and to end the sandboxes when the stack ends.
        Rule(app, "", ("events",), ("list",)),
        Rule(app, "", ("pods/log", "pods/status"), ("get",)),
        Rule(app, "", ("pods",), ("create", "delete")),
        Rule(boxes, "batch", ("jobs",), ("deletecollection",)),
        Rule(boxes, RBAC, ("rolebindings", "roles"), KEPT),
        Rule(boxes, "networking.k8s.io", ("networkpolicies",), KEPT),
        *([Rule(boxes, "", LIMITS, KEPT)] if config.create_limits is not False else []),
        *granted(boxes),
        *(Rule(namespace, "", ("secrets",), KEPT) for namespace in config.requester_namespaces),
    ]
    return [*found, *([Rule(None, "", ("namespaces",), KEPT)] if config.create_namespaces else [])]


def granted(namespace: str) -> Iterator[Rule]:
    """The controller's own rights: a user can grant only rights that he has."""
    for rule in controller_rules():
        (group,) = rule["apiGroups"]
        yield Rule(namespace, group, tuple(rule["resources"]), tuple(rule["verbs"]))


def instead(namespace: str) -> Sequence[Right]:
    """The rights that replace `granted`: to grant rights that one does not have."""
    return [Right(namespace, RBAC, "roles", verb) for verb in ("escalate", "bind")]


def rights(config: Config) -> Sequence[Right]:
    """Each right that this stack needs, once."""
    return list(dict.fromkeys(each(rules(config))))


def each(found: Iterable[Rule]) -> Iterator[Right]:
    """The rights of these rules."""
    for rule in found:
        for kind in rule.kinds:
            for verb in rule.verbs:
                for name in rule.names or ("",):
                    yield Right(rule.namespace, rule.group, kind, verb, name)
