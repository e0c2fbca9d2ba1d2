"""Rules on who may reach what: rights, tokens, namespaces, network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.policy.pods import pod_of
from infra.policy.wire import at, objects, strings

RBAC = "kubernetes:rbac.authorization.k8s.io/v1"
ROLES = {f"{RBAC}:Role", f"{RBAC}:ClusterRole"}
BINDINGS = {f"{RBAC}:RoleBinding", f"{RBAC}:ClusterRoleBinding"}
ENFORCE = "pod-security.kubernetes.io/enforce"
EVERYONE = ("system:authenticated", "system:unauthenticated", "system:serviceaccounts", "system:anonymous")
POWERFUL = {"pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "serviceaccounts/token"}
GROWING = {"escalate", "bind", "impersonate"}  # verbs by which a login gets more rights than it has
DNS = 53


def no_wildcards(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A role names its groups, resources and verbs one by one (NSA/CISA: least privilege)."""
    return [
        f"rule {index}: {part} may not be *"
        for index, rule in enumerate(_rights(kind, properties))
        for part in ("apiGroups", "resources", "verbs", "nonResourceURLs")
        if any("*" in one for one in strings(rule, part))
    ]


def least_rights(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """No role reads secrets, enters pods or grows its own rights (our design: `create jobs` is all it takes)."""
    found: list[str] = []
    for index, rule in enumerate(_rights(kind, properties)):
        resources, verbs = strings(rule, "resources"), strings(rule, "verbs")
        found += [f"rule {index}: no right on {one}" for one in resources if one in POWERFUL or _secret(one)]
        found += [f"rule {index}: no verb {one}" for one in verbs if one in GROWING]
    return found


def _rights(kind: str, properties: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return objects(properties, "rules") if kind in ROLES else []


def _secret(resource: str) -> bool:
    return resource.partition("/")[0] == "secrets"


def narrow_bindings(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A role is bound to a service account by name, never to everyone or to a `default` (NSA/CISA: RBAC)."""
    if kind not in BINDINGS:
        return []
    found = ["cluster-admin may not be bound"] if at(properties, "roleRef", "name") == "cluster-admin" else []
    for subject in objects(properties, "subjects"):
        name = str(subject.get("name"))
        if subject.get("kind") == "ServiceAccount" and name == "default":
            found.append("the service account `default` may have no role: every pod without another runs as it")
        elif name.startswith(EVERYONE):
            found.append(f"{name} may have no role")
    return found


def account_tokens(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A token is mounted only in a pod that asks, by an account of its own (NSA/CISA: service account tokens)."""
    if kind == "kubernetes:core/v1:ServiceAccount":
        if properties.get("automountServiceAccountToken") is False:
            return []
        return ["needs automountServiceAccountToken: false; a pod that uses the API says true itself"]
    pod = pod_of(kind, properties)
    if pod is None or pod.get("automountServiceAccountToken") is False:
        return []
    if pod.get("automountServiceAccountToken") is None:
        return ["needs automountServiceAccountToken: false, or true where it uses the API"]
    own = pod.get("serviceAccountName") not in (None, "", "default")
    return [] if own else ["mounts a token, so it needs a serviceAccountName of its own"]


def secured_namespaces(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A namespace enforces PodSecurity `restricted` (our design; Kubernetes Pod Security Admission)."""
    if kind != "kubernetes:core/v1:Namespace":
        return []
    level = at(properties, "metadata", "labels", ENFORCE)
    return [] if level == "restricted" else [f"needs the label {ENFORCE}: restricted, and has {level}"]


def inner_services(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A Service is reachable in its cluster alone (our design; kube-linter exposed-services)."""
    if kind != "kubernetes:core/v1:Service":
        return []
    given = at(properties, "spec", "type") or "ClusterIP"
    found = [] if given == "ClusterIP" else [f"needs the type ClusterIP, and has {given}"]
    return [*found, "externalIPs must be removed"] if at(properties, "spec", "externalIPs") else found


def exact_network_rules(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A NetworkPolicy says which way it works, to whom, and its ports as numbers (our design; NSA/CISA: networks)."""
    if kind != "kubernetes:networking.k8s.io/v1:NetworkPolicy":
        return []
    spec = at(properties, "spec")
    found = [] if strings(spec, "policyTypes") else ["needs policyTypes: what they default to depends on its rules"]
    for way, peers in (("ingress", "from"), ("egress", "to")):
        if objects(spec, way) and way.capitalize() not in strings(spec, "policyTypes"):
            found.append(f"has {way} rules, so its policyTypes need {way.capitalize()}")
        for index, rule in enumerate(objects(spec, way)):
            found += [f"{way} rule {index}: {words}" for words in _rule_faults(rule, peers)]
    return found


def _rule_faults(rule: Mapping[str, Any], peers: str) -> list[str]:
    ports = [one.get("port") for one in objects(rule, "ports")]
    faults = [f"the port {one} must be a number" for one in ports if not isinstance(one, int | float)]
    if any({} in (one, one.get("namespaceSelector")) for one in objects(rule, peers)):
        faults.append(f"an empty selector in `{peers}` is every namespace: name one")
    if not objects(rule, peers) and (not ports or set(ports) != {DNS}):
        faults.append(f"without `{peers}` it is open to any address; only port {DNS} may be")
    return faults
