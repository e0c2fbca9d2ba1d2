"""The controller in the cluster: as many as configured, any of which may go at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, Naming
from infra.components.images import ENTRYPOINT, HTTP_PORT, STOP_SECONDS
from infra.components.kubernetes.objects import CREATED_IS_ENOUGH, SKIP_AWAIT, name_of, revision_of
from infra.components.kubernetes.pod_defaults import (
    CONTROLLER_USER,
    container_security,
    from_secret,
    pod_security,
    pull_secrets,
    resources,
)
from infra.waiting.cluster import ClusterWaits
from infra.waiting.readiness import once_ready


@dataclass(frozen=True)
class ControllerPod:
    """Of a controller: `settings` are its own, `secret` names the one with its DATABASE_URL."""

    naming: Naming
    image: pulumi.Input[str]
    account: pulumi.Input[str]
    secret: pulumi.Input[str]
    settings: Mapping[str, pulumi.Input[str]]
    image_pull_secret: str | None

    def spec(self, name: str, words: Sequence[str], **more: Any) -> dict[str, Any]:
        """Of a pod that runs the controller with these words; `more` is its container's."""
        container = {
            "name": name,
            "image": self.image,
            "command": ENTRYPOINT,
            "args": list(words),
            # Here, and in no ConfigMap: `kubectl rollout undo` finds all that an earlier revision needs.
            "env": [
                from_secret("DATABASE_URL", self.secret),
                *({"name": key, "value": value} for key, value in sorted(self.settings.items())),
            ],
            "resources": resources("100m", "128Mi", "1", "512Mi"),
            "securityContext": container_security(),
            **more,
        }
        return {
            "serviceAccountName": self.account,
            "automountServiceAccountToken": True,  # it speaks with the API server
            "enableServiceLinks": False,
            "imagePullSecrets": pull_secrets(self.image_pull_secret),
            "securityContext": pod_security(CONTROLLER_USER),
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "containers": [container],
        }

    def drains(self, seconds: int) -> pulumi.Output[Any]:
        """The spec of a pod that ends every sandbox: what it takes to look after them, it takes from the controller."""
        spec = self.spec("drain", ["drain", "--timeout", str(seconds)])
        return pulumi.Output.from_input({**spec, "restartPolicy": "Never"})


@dataclass(frozen=True)
class AppArgs:
    """`secret_digest` tells what the pod's secret holds from what it held; `autoscaled`: somebody else changes
    `replicas`. All waits for `after`.
    """

    pod: ControllerPod
    namespace: pulumi.Input[str]
    replicas: int
    autoscaled: bool
    secret_digest: pulumi.Input[str]
    after: Sequence[pulumi.Resource]
    waits: ClusterWaits


class App(pulumi.ComponentResource):
    """Controllers that are ready. `host`: where their health and metrics are found."""

    host: pulumi.Output[str]

    def __init__(self, name: str, args: AppArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:App", name, None, opts)
        naming = args.pod.naming
        child = pulumi.ResourceOptions(parent=self, depends_on=args.after)
        metadata = naming.metadata(CONTROLLER, args.namespace, naming.name)
        chosen = {"matchLabels": naming.selector(CONTROLLER)}
        deployed: Any = {
            "replicas": args.replicas,
            "selector": chosen,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": naming.labels(CONTROLLER),
                    # Other credentials are the same secret's: pods take them when they start.
                    "annotations": {f"{naming.project}/credentials": args.secret_digest},
                },
                "spec": _spec(args.pod),
            },
        }
        controllers = k8s.apps.v1.Deployment(
            "controller",
            metadata=naming.metadata(CONTROLLER, args.namespace, naming.name, CREATED_IS_ENOUGH),
            spec=deployed,
            opts=pulumi.ResourceOptions.merge(
                child, pulumi.ResourceOptions(ignore_changes=["spec.replicas"] if args.autoscaled else None)
            ),
        )
        ready = once_ready("controller", revision_of(controllers), args.waits.ready, child)
        budget: Any = {"maxUnavailable": 1, "selector": chosen}
        k8s.policy.v1.PodDisruptionBudget("controller-budget", metadata=metadata, spec=budget, opts=child)
        port = {"name": "http", "port": HTTP_PORT, "targetPort": HTTP_PORT}
        exposed: Any = {"selector": naming.selector(CONTROLLER), "ports": [port]}
        service = k8s.core.v1.Service(
            "controller-service",
            metadata=naming.metadata(CONTROLLER, args.namespace, naming.name, SKIP_AWAIT),
            spec=exposed,
            opts=child,
        )
        named = pulumi.Output.all(name_of(service), args.namespace, ready.id)
        self.host = named.apply(lambda known: f"{known[0]}.{known[1]}.svc:{HTTP_PORT}")
        self.register_outputs({"host": self.host})


def _spec(pod: ControllerPod) -> dict[str, Any]:
    health, ready = (
        {"httpGet": {"path": path, "port": HTTP_PORT}, "timeoutSeconds": 8} for path in ("/healthz", "/readyz")
    )
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pod.naming.selector(CONTROLLER)},
    }
    spec = pod.spec(
        CONTROLLER,
        ["run"],
        ports=[{"name": "http", "containerPort": HTTP_PORT}],
        startupProbe={**health, "periodSeconds": 1, "failureThreshold": 60},
        livenessProbe={**health, "periodSeconds": 10, "failureThreshold": 6},
        readinessProbe={**ready, "periodSeconds": 5, "failureThreshold": 3},
    )
    return {**spec, "topologySpreadConstraints": [spread]}
