"""The migration, which brings the database to the image's version before any controller of that image starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import MIGRATION, Naming
from infra.components.images import ENTRYPOINT
from infra.components.kubernetes.objects import CREATED_IS_ENOUGH, REPLACE_UNREADY, metadata, name_of, revision_of
from infra.components.kubernetes.pod_defaults import (
    CONTROLLER_USER,
    container_security,
    pod_security,
    pull_secrets,
    resources,
)
from infra.waiting.cluster import ClusterWaits
from infra.waiting.readiness import once_ready


@dataclass(frozen=True)
class MigrationArgs:
    """Another image, URL, password or volume is another migration. It waits for `after`."""

    naming: Naming
    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    owner_url: pulumi.Input[str]
    controller_password: pulumi.Input[str]
    requester_password: pulumi.Input[str]
    volume: pulumi.Input[str] | None
    image_pull_secret: str | None
    after: Sequence[pulumi.Resource]
    waits: ClusterWaits


class Migration(pulumi.ComponentResource):
    """A Job that has succeeded. Its template cannot be changed, so each migration has a name of its own."""

    def __init__(self, name: str, args: MigrationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Migration", name, None, opts)
        secret = k8s.core.v1.Secret(
            "migration-credentials",
            metadata=metadata(args.naming, MIGRATION, args.namespace),
            string_data={
                "DATABASE_URL": args.owner_url,
                "SANDBOX_CONTROLLER_PASSWORD": args.controller_password,
                "SANDBOX_REQUESTER_PASSWORD": args.requester_password,
            },
            immutable=True,  # other content is another secret, and so another Job
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stringData", "data"]),
        )
        container = k8s.core.v1.ContainerArgs(
            name=MIGRATION,
            image=args.image,
            command=ENTRYPOINT,
            args=["migrate"],
            env_from=[k8s.core.v1.EnvFromSourceArgs(secret_ref=k8s.core.v1.SecretEnvSourceArgs(name=name_of(secret)))],
            resources=resources("50m", "64Mi", "500m", "256Mi"),
            termination_message_policy="FallbackToLogsOnError",  # the pod says what the migration said
            security_context=container_security(),
        )
        pod = k8s.core.v1.PodSpecArgs(
            restart_policy="Never",
            automount_service_account_token=False,
            enable_service_links=False,
            image_pull_secrets=pull_secrets(args.image_pull_secret),
            security_context=pod_security(CONTROLLER_USER),
            containers=[container],
        )
        labelled = k8s.meta.v1.ObjectMetaArgs(
            labels=args.naming.labels(MIGRATION),
            annotations=None if args.volume is None else {f"{args.naming.project}/volume": args.volume},
        )
        job = k8s.batch.v1.Job(
            MIGRATION,
            metadata=metadata(
                args.naming, MIGRATION, args.namespace, annotations={**REPLACE_UNREADY, **CREATED_IS_ENOUGH}
            ),
            spec=k8s.batch.v1.JobSpecArgs(
                backoff_limit=2,  # network policies and names may take a moment to reach a new pod: 30 s of trials
                active_deadline_seconds=300,
                template=k8s.core.v1.PodTemplateSpecArgs(metadata=labelled, spec=pod),
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=args.after),
        )
        once_ready("migration", revision_of(job), args.waits.ready, pulumi.ResourceOptions(parent=self))
        self.register_outputs({})
