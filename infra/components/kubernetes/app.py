"""The controllers in the cluster: as many as configured, any of which may go at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, Naming
from infra.components.images import ENTRYPOINT, HTTP_PORT, STOP_SECONDS
from infra.components.kubernetes.objects import (
    CREATED_IS_ENOUGH,
    SKIP_AWAIT,
    as_json,
    metadata,
    name_of,
    revision_of,
    selector,
)
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
    """A pod of a controller: `settings` are the controller's, `secret` names the one with its DATABASE_URL."""

    naming: Naming
    image: pulumi.Input[str]
    account: pulumi.Input[str]
    secret: pulumi.Input[str]
    settings: Mapping[str, pulumi.Input[str]]
    image_pull_secret: str | None

    def runs(self) -> k8s.core.v1.PodSpecArgs:
        """The spec of a pod that claims sandboxes."""
        spread = k8s.core.v1.TopologySpreadConstraintArgs(
            max_skew=1,
            topology_key="kubernetes.io/hostname",
            when_unsatisfiable="ScheduleAnyway",
            label_selector=selector(self.naming, CONTROLLER),
        )
        container = self._container(
            CONTROLLER,
            ["run"],
            ports=[k8s.core.v1.ContainerPortArgs(name="http", container_port=HTTP_PORT)],
            startup_probe=_probe("/healthz", period_seconds=1, failure_threshold=60),
            liveness_probe=_probe("/healthz", period_seconds=10, failure_threshold=6),
            readiness_probe=_probe("/readyz", period_seconds=5, failure_threshold=3),
        )
        return self._spec(container, topology_spread_constraints=[spread])

    def drains(self, seconds: int) -> pulumi.Output[Any]:
        """The spec of a pod that ends every sandbox, as JSON: with the same rights and settings as a controller."""
        container = self._container("drain", ["drain", "--timeout", str(seconds)])
        return as_json(self._spec(container, restart_policy="Never"))

    def _container(self, name: str, words: Sequence[str], **more: Any) -> k8s.core.v1.ContainerArgs:
        return k8s.core.v1.ContainerArgs(
            name=name,
            image=self.image,
            command=ENTRYPOINT,
            args=list(words),
            # Here, and in no ConfigMap: `kubectl rollout undo` finds all that an earlier revision needs.
            env=[
                from_secret("DATABASE_URL", self.secret),
                *(k8s.core.v1.EnvVarArgs(name=key, value=value) for key, value in sorted(self.settings.items())),
            ],
            resources=resources("100m", "128Mi", "1", "512Mi"),
            security_context=container_security(),
            **more,
        )

    def _spec(self, container: k8s.core.v1.ContainerArgs, **more: Any) -> k8s.core.v1.PodSpecArgs:
        return k8s.core.v1.PodSpecArgs(
            service_account_name=self.account,
            automount_service_account_token=True,  # it speaks with the API server
            enable_service_links=False,
            image_pull_secrets=pull_secrets(self.image_pull_secret),
            security_context=pod_security(CONTROLLER_USER),
            termination_grace_period_seconds=STOP_SECONDS,
            containers=[container],
            **more,
        )


@dataclass(frozen=True)
class AppArgs:
    """`secret_digest` differs for another content of the pod's secret; `autoscaled`: something else changes
    `replicas`. Everything waits for `after`.
    """

    pod: ControllerPod
    namespace: pulumi.Input[str]
    replicas: int
    autoscaled: bool
    secret_digest: pulumi.Input[str]
    after: Sequence[pulumi.Resource]
    waits: ClusterWaits


class App(pulumi.ComponentResource):
    """Controllers that are ready. `host`: the address of their health and metrics."""

    host: pulumi.Output[str]

    def __init__(self, name: str, args: AppArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:App", name, None, opts)
        naming = args.pod.naming
        child = pulumi.ResourceOptions(parent=self, depends_on=args.after)
        controllers = k8s.apps.v1.Deployment(
            "controller",
            metadata=metadata(naming, CONTROLLER, args.namespace, naming.name, CREATED_IS_ENOUGH),
            spec=k8s.apps.v1.DeploymentSpecArgs(
                replicas=args.replicas,
                selector=selector(naming, CONTROLLER),
                strategy=k8s.apps.v1.DeploymentStrategyArgs(
                    type="RollingUpdate",
                    rolling_update=k8s.apps.v1.RollingUpdateDeploymentArgs(max_unavailable=0, max_surge=1),
                ),
                template=k8s.core.v1.PodTemplateSpecArgs(
                    metadata=k8s.meta.v1.ObjectMetaArgs(
                        labels=naming.labels(CONTROLLER),
                        # Other credentials are the same secret's: pods take them when they start.
                        annotations={f"{naming.project}/credentials": args.secret_digest},
                    ),
                    spec=args.pod.runs(),
                ),
            ),
            opts=pulumi.ResourceOptions.merge(
                child, pulumi.ResourceOptions(ignore_changes=["spec.replicas"] if args.autoscaled else None)
            ),
        )
        ready = once_ready("controller", revision_of(controllers), args.waits.ready, child)
        k8s.policy.v1.PodDisruptionBudget(
            "controller-budget",
            metadata=metadata(naming, CONTROLLER, args.namespace, naming.name),
            spec=k8s.policy.v1.PodDisruptionBudgetSpecArgs(max_unavailable=1, selector=selector(naming, CONTROLLER)),
            opts=child,
        )
        service = k8s.core.v1.Service(
            "controller-service",
            metadata=metadata(naming, CONTROLLER, args.namespace, naming.name, SKIP_AWAIT),
            spec=k8s.core.v1.ServiceSpecArgs(
                selector=naming.selector(CONTROLLER),
                ports=[k8s.core.v1.ServicePortArgs(name="http", port=HTTP_PORT, target_port=HTTP_PORT)],
            ),
            opts=child,
        )
        named = pulumi.Output.all(name_of(service), args.namespace, ready.id)
        self.host = named.apply(lambda known: f"{known[0]}.{known[1]}.svc:{HTTP_PORT}")
        self.register_outputs({"host": self.host})


def _probe(path: str, *, period_seconds: int, failure_threshold: int) -> k8s.core.v1.ProbeArgs:
    return k8s.core.v1.ProbeArgs(
        http_get=k8s.core.v1.HTTPGetActionArgs(path=path, port=HTTP_PORT),
        timeout_seconds=8,
        period_seconds=period_seconds,
        failure_threshold=failure_threshold,
    )
