"""No configuration leads to a resource that the rules refuse, and the rules refuse what they name."""

from __future__ import annotations

from typing import Any

import pytest

from infra.policy.rules import RULES, violations
from tests.infra.policy_cases import ACCEPTED, DEPLOYMENT, REFUSED, deployment
from tests.support.mocked_stack import Deploy
from tests.support.provider_answers import DIGEST

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


@pytest.mark.parametrize(("fault", "kind", "properties"), REFUSED)
def test_a_rule_refuses_what_it_names_and_nothing_else(fault: str, kind: str, properties: dict[str, Any]) -> None:
    assert violations(kind, properties) == [fault]


def test_a_mount_of_the_node_is_refused_twice() -> None:
    assert violations(DEPLOYMENT, deployment(volumes=[{"name": "h", "hostPath": {"path": "/etc"}}])) == [
        "restricted_pods: the volume h is not of an allowed kind",
        "no_host_access: the volume h mounts the node's /etc",
    ]


@pytest.mark.parametrize(("kind", "properties"), ACCEPTED)
def test_what_keeps_to_the_rules_is_accepted(kind: str, properties: dict[str, Any]) -> None:
    assert violations(kind, properties) == []


def test_every_rule_has_something_that_it_refuses() -> None:
    assert {rule.__name__ for rule in RULES} == {fault.partition(":")[0] for fault, _, _ in REFUSED}


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
