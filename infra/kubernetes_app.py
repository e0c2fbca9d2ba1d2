"""The controller in the cluster: as many as configured, any of which may go at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.images import ENTRYPOINT, HTTP_PORT, STOP_SECONDS
from infra.kubernetes_pods import (
    CONTROLLER,
    CONTROLLER_USER,
    MADE_IS_ENOUGH,
    SKIP_AWAIT,
    Place,
    container_security,
    from_secret,
    name_of,
    pod_security,
    pull_secrets,
    resources,
    revision_of,
)
from infra.waiting import once_ready
from infra.waiting_cluster import ClusterWaits


@dataclass(frozen=True)
class AppArgs:
    """`settings` are the controller's; `secret` names the one with its DATABASE_URL, and `secret_digest` tells what
    it holds from what it held. All waits for `after`."""

    place: Place
    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    replicas: int
    account: pulumi.Input[str]
    secret: pulumi.Input[str]
    secret_digest: pulumi.Input[str]
    settings: Mapping[str, pulumi.Input[str]]
    image_pull_secret: str | None
    after: Sequence[pulumi.Resource]
    waits: ClusterWaits


class App(pulumi.ComponentResource):
    """Controllers that are ready. `host`: where their health and metrics are found."""

    host: pulumi.Output[str]

    def __init__(self, name: str, args: AppArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:App", name, None, opts)
        self._args = args
        child = pulumi.ResourceOptions(parent=self, depends_on=args.after)
        metadata = args.place.metadata(CONTROLLER, args.namespace, args.place.name)
        chosen = {"matchLabels": args.place.selector(CONTROLLER)}
        deployed: Any = {
            "replicas": args.replicas,
            "selector": chosen,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": args.place.labels(CONTROLLER),
                    # Other credentials are the same secret's: pods take them when they start.
                    "annotations": {f"{args.place.project}/credentials": args.secret_digest},
                },
                "spec": self._pod(),
            },
        }
        controllers = k8s.apps.v1.Deployment(
            "controller",
            metadata=args.place.metadata(CONTROLLER, args.namespace, args.place.name, MADE_IS_ENOUGH),
            spec=deployed,
            opts=child,
        )
        ready = once_ready("controller", revision_of(controllers), args.waits.ready, child)
        budget: Any = {"maxUnavailable": 1, "selector": chosen}
        k8s.policy.v1.PodDisruptionBudget("controller-budget", metadata=metadata, spec=budget, opts=child)
        port = {"name": "http", "port": HTTP_PORT, "targetPort": HTTP_PORT}
        exposed: Any = {"selector": args.place.selector(CONTROLLER), "ports": [port]}
        service = k8s.core.v1.Service(
            "controller-service",
            metadata=args.place.metadata(CONTROLLER, args.namespace, args.place.name, SKIP_AWAIT),
            spec=exposed,
            opts=child,
        )
        named = pulumi.Output.all(name_of(service), args.namespace, ready.id)
        self.host = named.apply(lambda known: f"{known[0]}.{known[1]}.svc:{HTTP_PORT}")
        self.register_outputs({"host": self.host})

    def _pod(self) -> dict[str, Any]:
        args = self._args
        health, ready = (
            {"httpGet": {"path": path, "port": HTTP_PORT}, "timeoutSeconds": 8} for path in ("/healthz", "/readyz")
        )
        container = {
            "name": CONTROLLER,
            "image": args.image,
            "command": ENTRYPOINT,
            "args": ["run"],
            # Here, and in no ConfigMap: `kubectl rollout undo` finds all that an earlier revision needs.
            "env": [
                from_secret("DATABASE_URL", args.secret),
                *({"name": name, "value": value} for name, value in sorted(args.settings.items())),
            ],
            "ports": [{"name": "http", "containerPort": HTTP_PORT}],
            "startupProbe": {**health, "periodSeconds": 1, "failureThreshold": 60},
            "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
            "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 3},
            "resources": resources("100m", "128Mi", "1", "512Mi"),
            "securityContext": container_security(),
        }
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": args.place.selector(CONTROLLER)},
        }
        return {
            "serviceAccountName": args.account,
            "automountServiceAccountToken": True,  # it speaks with the API server
            "enableServiceLinks": False,
            "imagePullSecrets": pull_secrets(args.image_pull_secret),
            "securityContext": pod_security(CONTROLLER_USER),
            "terminationGracePeriodSeconds": STOP_SECONDS,
            "topologySpreadConstraints": [spread],
            "containers": [container],
        }
