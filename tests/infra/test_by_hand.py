"""What is said of what people and autoscalers change in a stack's namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from infra.cluster.client import ClusterClient, ForbiddenError
from infra.cluster.naming import DESTROY_MANAGER
from infra.config import Config
from infra.preflight.by_hand import autoscaler, changed_by_hand
from tests.support.mocked_stack import PROJECT, configure

APP, BOXES = f"{PROJECT}-prod", f"{PROJECT}-prod-sandboxes"
OURS = {"manager": "pulumi-kubernetes-1a2b", "fieldsV1": {"f:spec": {"f:replicas": {}}, "f:rules": {}}}
SCALED = {"manager": "kubectl", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
CONTROLLER = {"manager": "kube-controller-manager", "subresource": "status", "fieldsV1": {"f:spec": {}}}
EDITED = {"manager": "kubectl-edit", "fieldsV1": {"f:spec": {"f:egress": {}}}}
RESTARTED = {"manager": "kubectl-rollout", "fieldsV1": {"f:spec": {"f:template": {}}}}
TYPED = {"manager": "kubectl-patch", "fieldsV1": {"f:rules": {}}}
LABELLED = {"manager": "kubectl-label", "fieldsV1": {"f:metadata": {"f:labels": {}}}}


class Shown:
    """Of a cluster, these objects by their paths; None is one that the user may not see."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects

    def get(self, path: str) -> Any:
        found = self._objects.get(path, ())
        if found is None:
            raise ForbiddenError(403, "no right")
        return found or None

    def items(self, path: str, labels: Mapping[str, str] | None = None) -> Any:
        return self.get(path) or ()


@pytest.fixture
def config() -> Config:
    """A prod stack with two controllers."""
    configure({"target": "kubernetes", "registry": "registry.example/team"}, "prod", ())
    return Config.read()


def said(config: Config, objects: Mapping[str, Any]) -> list[str]:
    """Every line about these objects."""
    cluster = cast(ClusterClient, Shown(objects))
    return list(changed_by_hand(cluster, config, autoscaler(cluster, config)))


def deployment(replicas: int, *managers: Mapping[str, Any]) -> dict[str, Any]:
    """The controllers' Deployment."""
    path = f"/apis/apps/v1/namespaces/{APP}/deployments/{APP}"
    return {path: {"metadata": {"name": APP, "managedFields": managers}, "spec": {"replicas": replicas}}}


def autoscalers(*names: str) -> dict[str, Any]:
    """Autoscalers of Deployments of these names."""
    path = f"/apis/autoscaling/v2/namespaces/{APP}/horizontalpodautoscalers"
    made = [
        {
            "metadata": {"name": "it"},
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": one}},
        }
        for one in names
    ]
    return {path: made}


def listed(kind: str, namespace: str, *managers: Mapping[str, Any]) -> dict[str, Any]:
    """One object of a kind."""
    path = f"/apis/{kind.replace(' ', f'/v1/namespaces/{namespace}/')}"
    return {path: [{"metadata": {"name": "it", "namespace": namespace, "managedFields": managers}}]}


def test_controllers_that_an_autoscaler_leaves_at_none_are_told(config: Config) -> None:
    words = "no controller runs, and HorizontalPodAutoscaler it starts none: kubectl -n"
    for replicas, told in ((0, 1), (1, 0)):
        lines = said(config, {**deployment(replicas, OURS), **autoscalers(APP)})
        assert sum(line.startswith(words) for line in lines) == told


def test_controllers_that_an_interrupted_destroy_stopped_are_told_as_that(config: Config) -> None:
    stopped = {"manager": DESTROY_MANAGER, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    (line,) = said(config, deployment(0, OURS, stopped))
    assert line.startswith("no controller runs, since a `destroy` was interrupted")
    assert line.endswith("pulumi up --stack prod --refresh --run-program")


def test_a_scale_by_hand_is_told_with_how_to_keep_it(config: Config) -> None:
    (line,) = said(config, deployment(5, OURS, SCALED, CONTROLLER))
    assert line == (
        f"Deployment {APP} was scaled to 5 by hand (kubectl); it has 2 again once `up` changes it; to keep 5: "
        "pulumi config set --stack prod replicas 5"
    )


@pytest.mark.parametrize(
    "objects",
    [
        {},
        deployment(2, OURS, CONTROLLER),
        deployment(2, SCALED),  # to what is configured
        deployment(3, OURS, RESTARTED),  # the key was changed, and `up` is to follow
        {**deployment(2), f"/apis/apps/v1/namespaces/{APP}/deployments/{APP}": None},
        {**autoscalers("another"), **deployment(2, OURS)},
        {f"/apis/autoscaling/v2/namespaces/{APP}/horizontalpodautoscalers": None},
        {f"/apis/networking.k8s.io/v1/namespaces/{BOXES}/networkpolicies": None},
        listed("networking.k8s.io networkpolicies", BOXES, OURS, LABELLED),
    ],
)
def test_of_what_nobody_fights_over_nothing_is_said(config: Config, objects: Mapping[str, Any]) -> None:
    assert said(config, objects) == []


def test_an_autoscaler_is_told_and_left_alone(config: Config) -> None:
    (line,) = said(config, {**autoscalers("another", APP), **deployment(7, SCALED)})
    assert line.startswith("HorizontalPodAutoscaler it decides how many controllers run: ci-fixer-sandbox:replicas has")


def test_rules_that_were_changed_by_hand_are_told_with_the_way_back(config: Config) -> None:
    objects = listed("networking.k8s.io networkpolicies", BOXES, OURS, EDITED)
    objects |= listed("rbac.authorization.k8s.io roles", BOXES, TYPED)
    policy, role = said(config, objects)
    assert policy == (
        f"networkpolicy it in namespace {BOXES} was changed by hand (kubectl-edit); to restore it: "
        f"kubectl -n {BOXES} label networkpolicy it app.kubernetes.io/managed-by- && "
        "pulumi up --stack prod --refresh --run-program"
    )
    assert role.startswith(f"role it in namespace {BOXES} was changed by hand (kubectl-patch)")
