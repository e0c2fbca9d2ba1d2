"""No configuration leads to a resource that the rules refuse, and the rules refuse what they name."""

from __future__ import annotations

from typing import Any

import pytest

from infra.policy.rules import RULES, violations
from tests.infra.conftest import Deploy
from tests.support.provider_answers import DIGEST

SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "value": "x"}
POD, DEPLOYMENT = "kubernetes:core/v1:Pod", "kubernetes:apps/v1:Deployment"
ROLE = "kubernetes:rbac.authorization.k8s.io/v1:Role"
BINDING = "kubernetes:rbac.authorization.k8s.io/v1:RoleBinding"
POLICY, CONTAINER = "kubernetes:networking.k8s.io/v1:NetworkPolicy", "docker:index/container:Container"

DEV: list[dict[str, Any]] = [
    {},
    {"dockerSocket": "", "dockerSocketGroup": None},
    {"databasePassword": "given"},
    {"protectDatabase": True},
]
PROD: list[dict[str, Any]] = [
    {},
    {"databaseUrl": "postgresql://me:pw@db.example:6432/it?sslmode=require", "databaseCidrs": ["10.1.0.0/16"]},
    {"createNamespaces": False, "imagePullSecret": "login", "replicas": 0},
    {"requesterNamespaces": ["one", "two"], "monitoringNamespace": "metrics", "protectDatabase": True},
    {"registryUsername": "me", "registryPassword": "pw", "pullRegistry": "inside:5000", "apiServerCidrs": []},
    {"appImage": f"r.example/app@{DIGEST}", "sandboxImage": f"r.example/box@{DIGEST}", "registry": None},
]


def container(**more: Any) -> dict[str, Any]:
    """One that no rule refuses."""
    return {
        "name": "it",
        "image": f"r.example/ci-fixer-sandbox-app@{DIGEST}",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"cpu": "1", "memory": "1Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 1}},
        "livenessProbe": {"httpGet": {"path": "/", "port": 1}},
        **more,
    }


def pod(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A pod spec that no rule refuses."""
    return {
        "containers": list(containers) or [container()],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **more,
    }


def deployment(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Its properties."""
    return {"spec": {"template": {"spec": pod(*containers, **more)}}}


def role(**rule: Any) -> dict[str, Any]:
    """A Role with one rule."""
    return {"rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"], **rule}]}


def docker(**more: Any) -> dict[str, Any]:
    """A container of Docker that no rule refuses."""
    return {"name": "it", "image": DIGEST, "memory": 1, "healthcheck": {"tests": ["CMD", "true"]}, **more}


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("restricted_pods", DEPLOYMENT, deployment(container(securityContext={}))),
    ("restricted_pods", DEPLOYMENT, deployment(securityContext={})),
    ("restricted_pods", DEPLOYMENT, deployment(initContainers=[container(securityContext={"privileged": True})])),
    ("read_only_root", DEPLOYMENT, deployment(container(securityContext={"allowPrivilegeEscalation": False}))),
    ("resource_limits", DEPLOYMENT, deployment(container(resources={"limits": {"cpu": "1"}}))),
    ("no_host_access", DEPLOYMENT, deployment(volumes=[{"name": "h", "hostPath": {"path": "/var/run/docker.sock"}}])),
    ("no_host_access", DEPLOYMENT, deployment(hostNetwork=True)),
    ("probes", DEPLOYMENT, deployment(container(readinessProbe=None))),
    ("service_links", DEPLOYMENT, deployment(enableServiceLinks=True)),
    ("pinned_images", DEPLOYMENT, deployment(container(image="postgres:latest"))),
    ("pinned_images", CONTAINER, docker(image="registry:5000/postgres")),
    ("exact_images", DEPLOYMENT, deployment(container(image="r.example/ci-fixer-sandbox-app:prod"))),
    ("exact_images", DEPLOYMENT, deployment(container(image="postgres:15"))),
    ("no_wildcards", ROLE, role(verbs=["*"])),
    ("least_rights", ROLE, role(resources=["secrets"])),
    ("least_rights", ROLE, role(resources=["pods/exec"])),
    ("narrow_bindings", BINDING, {"subjects": [{"kind": "Group", "name": "system:authenticated"}]}),
    ("account_tokens", DEPLOYMENT, deployment(automountServiceAccountToken=None)),
    ("secured_namespaces", "kubernetes:core/v1:Namespace", {"metadata": {"name": "it"}}),
    ("inner_services", "kubernetes:core/v1:Service", {"spec": {"type": "LoadBalancer"}}),
    ("exact_network_rules", POLICY, {"spec": {"podSelector": {}}}),
    (
        "exact_network_rules",
        POLICY,
        {"spec": {"policyTypes": ["Ingress"], "ingress": [{"from": [{}], "ports": [{"port": "http"}]}]}},
    ),
    ("loopback_ports", CONTAINER, docker(ports=[{"internal": 1, "external": 1, "ip": "0.0.0.0"}])),
    ("unprivileged_containers", CONTAINER, docker(privileged=True)),
    ("unprivileged_containers", CONTAINER, docker(volumes=[{"hostPath": "/etc", "containerPath": "/etc"}])),
    ("bounded_containers", CONTAINER, docker(memory=None)),
    ("checked_containers", CONTAINER, docker(healthcheck=None)),
    ("plain_secrets", CONTAINER, docker(envs=["POSTGRES_PASSWORD=secret"])),
    ("plain_secrets", CONTAINER, docker(envs=["DATABASE_URL=postgresql://me:pw@host/it"])),
    ("plain_secrets", "kubernetes:core/v1:Secret", {"stringData": {"it": "x"}}),
]
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    (DEPLOYMENT, deployment()),
    (POD, {"spec": pod(container(image="postgres:15.14-bookworm"))}),
    (ROLE, role()),
    (BINDING, {"subjects": [{"kind": "ServiceAccount", "name": "it", "namespace": "there"}]}),
    ("kubernetes:core/v1:Service", {"spec": {"ports": [{"port": 1}]}}),
    ("kubernetes:core/v1:Secret", {"stringData": SECRET}),
    (CONTAINER, docker(envs=[SECRET], ports=[{"internal": 1, "external": 1, "ip": "127.0.0.1"}])),
]


@pytest.mark.parametrize(("rule", "kind", "properties"), REFUSED)
def test_a_rule_refuses_what_it_names(rule: str, kind: str, properties: dict[str, Any]) -> None:
    assert [fault for fault in violations(kind, properties) if fault.startswith(f"{rule}: ")]


@pytest.mark.parametrize(("kind", "properties"), ACCEPTED)
def test_what_keeps_to_the_rules_is_accepted(kind: str, properties: dict[str, Any]) -> None:
    assert violations(kind, properties) == []


def test_every_rule_has_something_that_it_refuses() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _, _ in REFUSED}


@pytest.mark.parametrize("config", DEV)
def test_no_resource_of_a_dev_stack_is_refused(dev: Deploy, config: dict[str, Any]) -> None:
    recorded = dev(**config)
    assert len(recorded.all()) > 10
    assert {name: found for kind, name, inputs in recorded.all() if (found := violations(kind, inputs))} == {}


@pytest.mark.parametrize("config", PROD)
def test_no_resource_of_a_prod_stack_is_refused(prod: Deploy, config: dict[str, Any]) -> None:
    recorded = prod(**config)
    assert len(recorded.all()) > 20
    assert {name: found for kind, name, inputs in recorded.all() if (found := violations(kind, inputs))} == {}
