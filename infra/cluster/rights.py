"""What the context's user must be allowed to do, so that a stack comes up, changes and goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from infra.config import Config

KEPT = ("get", "list", "watch", "create", "patch", "delete")  # what the provider does with an object of its own
SEEN = ("get", "list", "watch")  # what it does to find out how the pods behind an object are
LIMITS = ("limitranges", "resourcequotas")
RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True)
class Rule:
    """Verbs on kinds of one API group, in one namespace or, without one, in the cluster. `names`: on these alone."""

    namespace: str | None
    group: str
    kinds: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Right:
    """One verb on one kind of object; what the API server is asked about."""

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
    """What this stack needs, and nothing else. docs/stacks.md writes it out as Roles."""
    app, boxes = config.namespace, config.sandbox_namespace
    own = config.database_url is None
    given = (
        list(config.requester_namespaces) if config.create_namespaces else [app, boxes, *config.requester_namespaces]
    )
    found: list[Rule] = [
        Rule(None, "", ("namespaces",), ("get",), ("kube-system",)),
        # Asked as the API server asks itself: a Role in a namespace can show it.
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
        # What tells why a wait takes long, and what ends the sandboxes when the stack ends.
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
    """The controller's own rights: nobody can grant what he has not."""
    for rule in controller_rules():
        (group,) = rule["apiGroups"]
        yield Rule(namespace, group, tuple(rule["resources"]), tuple(rule["verbs"]))


def instead(namespace: str) -> Sequence[Right]:
    """What does for `granted`: to grant what one has not."""
    return [Right(namespace, RBAC, "roles", verb) for verb in ("escalate", "bind")]


def rights(config: Config) -> Sequence[Right]:
    """Each right of the rules, once."""
    return list(dict.fromkeys(each(rules(config))))


def each(found: Iterable[Rule]) -> Iterator[Right]:
    """The rights of these rules."""
    for rule in found:
        for kind in rule.kinds:
            for verb in rule.verbs:
                for name in rule.names or ("",):
                    yield Right(rule.namespace, rule.group, kind, verb, name)
